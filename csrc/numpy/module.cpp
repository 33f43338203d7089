// What this build and this machine can do, and single steps on NumPy arrays. No torch header: the module does not
// depend on torch's version, and the package works without it.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>

#include "cpu/features.h"
#include "cpu/peak.h"
#include "engine.h"

namespace py = pybind11;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class T>
std::unique_ptr<vrnn::Engine<T>> make_engine(const std::vector<int64_t>& code, const std::vector<double>& constants,
                                             const std::vector<Array<T>>& parameters, int64_t batch) {
    std::vector<const T*> data;
    std::vector<vrnn::Extent> extents;
    for (const Array<T>& p : parameters) {
        if (p.ndim() != 1 && p.ndim() != 2) throw py::value_error("a parameter must have 1 or 2 dimensions");
        data.push_back(p.data());
        extents.push_back({p.ndim(), p.shape(0), p.ndim() == 2 ? p.shape(1) : 1});
    }
    return std::make_unique<vrnn::Engine<T>>(code, constants, data, extents, batch);
}

// An argument of step: converted by nobody, so that no copy hides in the loop.
template <class T>
const T* rows(const py::object& value, const char* name, int64_t batch, int64_t width) {
    if (!py::isinstance<py::array>(value))
        throw py::type_error(std::string(name) + " must be a NumPy array, got " + Py_TYPE(value.ptr())->tp_name);
    const auto a = py::reinterpret_borrow<py::array>(value);
    if (!py::isinstance<Array<T>>(a))
        throw py::type_error(std::string(name) + " must be a C-contiguous array of dtype " +
                             std::string(py::str(py::dtype::of<T>())) + ", got " + std::string(py::str(a.dtype())));
    if (a.size() != batch * width)
        throw py::value_error(std::string(name) + " must hold " + std::to_string(batch) + " x " +
                              std::to_string(width) + " values, got " + std::to_string(a.size()));
    return static_cast<const T*>(a.data());
}

template <class T>
void define_engine(py::module_& m, const char* name) {
    using Engine = vrnn::Engine<T>;
    py::class_<Engine>(m, name)
        .def(py::init(&make_engine<T>), py::arg("code"), py::arg("constants"), py::arg("parameters"),
             py::arg("batch_size"))
        .def(
            "step",
            [](Engine& e, const py::object& x, const py::object& eps) -> py::tuple {
                const T* const x_data = rows<T>(x, "x", e.batch(), e.input());
                const T* const eps_data = rows<T>(eps, "eps", e.batch(), e.latent());
                Array<T> nll(e.batch()), kl(e.batch()), mean({e.batch(), e.input()});
                if (!e.gaussian()) {
                    e.step(x_data, eps_data, nll.mutable_data(), kl.mutable_data(), mean.mutable_data(), nullptr);
                    return py::make_tuple(std::move(nll), std::move(kl), std::move(mean));
                }
                Array<T> std({e.batch(), e.input()});
                e.step(x_data, eps_data, nll.mutable_data(), kl.mutable_data(), mean.mutable_data(),
                       std.mutable_data());
                return py::make_tuple(std::move(nll), std::move(kl), py::make_tuple(std::move(mean), std::move(std)));
            },
            py::arg("x"), py::arg("eps"),
            "Move on by one time step: x (B, X), eps (B, Z) -> nll (B,), kl (B,), and the prediction at the prior's "
            "mean: probabilities (B, X), or mean and std of a Gaussian likelihood.")
        .def(
            "state",
            [](py::object self, int64_t which) {
                Engine& e = self.cast<Engine&>();
                if (which < 0 || which >= e.state_tensors()) throw py::index_error("no such state");
                return Array<T>({e.batch(), e.hidden()}, e.state(which), self);
            },
            py::arg("which"), "h (0) or c (1), (B, H): a view to read and to write.")
        .def_property_readonly("isa", &Engine::isa);
}

py::array apply(const std::string& function, const Array<float>& x, std::optional<py::array> out) {
    const char* const names[] = {"exp", "log", "sigmoid", "tanh", "softplus", "expm1", "normal_cdf"};
    for (int i = 0; i < 7; ++i) {
        if (function != names[i]) continue;
        if (!out) out = Array<float>(x.size());
        rows<float>(*out, "out", 1, x.size());
        if (!out->writeable()) throw py::value_error("out must be writeable");
        vrnn::chosen_kernels().float32.apply(static_cast<vrnn::Function>(i), x.size(), x.data(),
                                             static_cast<float*>(out->mutable_data()));
        return *std::move(out);
    }
    throw py::value_error("function must be one of exp, log, sigmoid, tanh, softplus, expm1, normal_cdf, got '" +
                          function + "'");
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "What this build of vrnn_fast and this machine can do, and single steps on NumPy arrays.";
    m.def(
        "features",
        [] {
            py::dict found;
            for (const vrnn::Feature& feature : vrnn::cpu_features()) found[feature.name] = feature.present;
            return found;
        },
        "Instruction-set extensions by name, and whether this processor has them.");
    m.def("usable_isas", &vrnn::usable_isas, "The kernel builds that this processor can run, best last.");
    m.def("fma_peak", &vrnn::fma_peak, py::arg("isa"), py::arg("seconds") = 0.2,
          py::call_guard<py::gil_scoped_release>(),
          "GFLOP/s of float32 multiply-adds on one thread with the vectors of `isa`.\n\n"
          "Raises ValueError if this machine cannot run it.");
    m.def("apply", &apply, py::arg("function"), py::arg("x"), py::arg("out") = py::none(),
          "An elementary function of the kernels, elementwise on float32 x: exp, log, sigmoid, tanh, softplus, expm1, "
          "normal_cdf; into out, a float32 array of as many values, or a new one.");
    m.def(
        "encoding",
        [] {
            py::dict found;
            found["format"] = vrnn::program_format;
            found["line"] = vrnn::line;
            found["most_states"] = vrnn::most_states;
            found["most_buffers"] = vrnn::most_buffers;
            found["Op"] = vrnn::Op_names;
            found["Activation"] = vrnn::Activation_names;
            found["Cell"] = vrnn::Cell_names;
            found["Loss"] = vrnn::Loss_names;
            found["StdKind"] = vrnn::StdKind_names;
            found["Output"] = vrnn::Output_names;
            found["Keep"] = vrnn::Keep_names;
            return found;
        },
        "What this build takes the numbers of a program's code for: its format and limits, and by enum the members' "
        "names in their order.");
    define_engine<float>(m, "Engine32");
    define_engine<double>(m, "Engine64");
}
