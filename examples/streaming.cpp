// Follow a live signal without Python: read a frame of numbers from each line of stdin, and write how surprising it
// was, in nats, and what the model had expected before it saw it. The model is a package of `vrnn-fast export`;
// docs/pages/export.md tells how to build this file.
#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/version.h>

#include <filesystem>
#include <iostream>
#include <iterator>
#include <sstream>

static void follow(const std::filesystem::path& package) {
    using Loader = torch::inductor::AOTIModelPackageLoader;
    auto about = Loader::load_metadata_from_package(package, "model");
    TORCH_CHECK(about["torch"] == TORCH_VERSION, "the package is of torch ", about["torch"],
                ", this program of " TORCH_VERSION ": export it again");
    const auto operators = package.parent_path() / about["operators"];
    TORCH_CHECK(about["operators"].empty() || dlopen(std::filesystem::absolute(operators).c_str(), RTLD_NOW),
                operators.string(), " does not load, which lies beside a package when it is exported");
    Loader model(package);

    const auto size = [&](const char* name) { return std::stol(about.at(name)); };
    std::vector<at::Tensor> state(size("state_parts"), at::zeros({size("num_layers"), 1, size("hidden_size")}));
    std::string line;
    for (long number = 1; std::getline(std::cin, line); ++number) {
        std::replace(line.begin(), line.end(), ',', ' ');
        std::istringstream words(line);
        const std::vector<float> frame{std::istream_iterator<float>(words), {}};
        TORCH_CHECK(words.eof() && frame.size() == size_t(size("input_size")), "line ", number, " must be ",
                    about["input_size"], " numbers, got '", line, "'");
        const at::Tensor eps = at::randn({1, size("latent_size")}), begins = at::full({1}, number == 1);
        std::vector<at::Tensor> inputs{at::tensor(frame).unsqueeze(0), eps, begins};
        inputs.insert(inputs.end(), state.begin(), state.end());
        const auto outputs = model.run(inputs);  // nll, kl, the parameters of the prediction, the state
        const auto after = outputs.end() - state.size();
        std::cout << (outputs[0] + outputs[1]).item<float>();
        for (auto part = outputs.begin() + 2; part != after; ++part)
            for (const at::Tensor& value : part->flatten().unbind()) std::cout << ',' << value.item<float>();
        std::cout << std::endl;
        state.assign(after, outputs.end());
    }
}

int main(int count, char** words) try {
    if (count != 2) return std::cerr << "usage: streaming model.pt2 < frames.csv" << std::endl, 2;
    at::manual_seed(0);
    std::cout.precision(9);
    follow(words[1]);
} catch (const std::exception& error) {
    const std::string reason = error.what();  // of torch's errors a backtrace follows
    std::cerr << "error: " << words[1] << ": " << reason.substr(0, reason.find('\n')) << std::endl;
    return 1;
}
