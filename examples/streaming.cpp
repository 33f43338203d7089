// Follow a live signal without Python: read a frame of numbers from each line of stdin, and write how surprising it
// was, in nats, and what the model had expected before it saw it. The model is a package of `vrnn-fast export`;
// docs/pages/export.md tells how to build this file.
#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/version.h>

#include <algorithm>
#include <filesystem>
#include <iomanip>
#include <iostream>
#include <iterator>
#include <sstream>
#include <stdexcept>

using torch::inductor::AOTIModelPackageLoader;

static void require(bool good, const std::string& words) {
    if (!good) throw std::runtime_error(words);
}

static void follow(const std::filesystem::path& package) {
    auto about = AOTIModelPackageLoader::load_metadata_from_package(package, "model");
    require(about["torch"] == TORCH_VERSION,
            "the package is of torch " + about["torch"] + ", this program of " TORCH_VERSION ": export it again");
    const auto operators = package.parent_path() / about["operators"];
    require(about["operators"].empty() || dlopen(std::filesystem::absolute(operators).c_str(), RTLD_NOW),
            operators.string() + " does not load, which lies beside a package when it is exported");
    AOTIModelPackageLoader model(package);

    const auto size = [&](const char* name) { return std::stol(about.at(name)); };
    std::vector<at::Tensor> state(size("state_parts"), at::zeros({size("num_layers"), 1, size("hidden_size")}));
    at::Tensor begins = at::ones({1}, at::kBool);
    std::string line;
    for (long number = 1; std::getline(std::cin, line); ++number) {
        std::replace(line.begin(), line.end(), ',', ' ');
        std::istringstream words(line);
        const std::vector<float> frame{std::istream_iterator<float>(words), {}};
        require(words.eof() && frame.size() == size_t(size("input_size")),
                "line " + std::to_string(number) + " must be " + about["input_size"] + " numbers, got '" + line + "'");
        std::vector<at::Tensor> inputs{at::tensor(frame).unsqueeze(0), at::randn({1, size("latent_size")}), begins};
        inputs.insert(inputs.end(), state.begin(), state.end());
        const auto outputs = model.run(inputs);  // nll, kl, the parameters of the prediction, the state
        const auto after = outputs.end() - state.size();
        std::cout << (outputs[0] + outputs[1]).item<float>();
        for (auto part = outputs.begin() + 2; part != after; ++part)
            for (const at::Tensor& value : part->flatten().unbind()) std::cout << ',' << value.item<float>();
        std::cout << std::endl;
        state.assign(after, outputs.end());
        begins = at::zeros({1}, at::kBool);
    }
}

int main(int count, char** words) {
    if (count != 2) {
        std::cerr << "usage: streaming model.pt2 < frames.csv" << std::endl;
        return 2;
    }
    try {
        at::manual_seed(0);
        std::cout << std::setprecision(9);
        follow(words[1]);
    } catch (const std::exception& error) {
        const std::string reason = error.what();  // of torch's errors a backtrace follows
        std::cerr << "error: " << words[1] << ": " << reason.substr(0, reason.find('\n')) << std::endl;
        return 1;
    }
}
