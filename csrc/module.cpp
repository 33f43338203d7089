// What this build and this machine can do, for vrnn-fast info and the benchmark. No torch header: the module does not
// depend on torch's version, and the package works without it.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/features.h"
#include "cpu/peak.h"

namespace py = pybind11;

PYBIND11_MODULE(_native, m) {
    m.doc() = "What this build of vrnn_fast and this machine can do.";
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
}
