// Where torch keeps the operators of this build: VRNN_FAST_NAMESPACE, which setup.py defines. vrnn_fast/ops.py has the
// same name.
#pragma once

// torch's macros paste the name that they are given, so that it must be expanded before
#define VRNN_FAST_LIBRARY(ns, m) STABLE_TORCH_LIBRARY(ns, m)
#define VRNN_FAST_LIBRARY_IMPL(ns, key, m) STABLE_TORCH_LIBRARY_IMPL(ns, key, m)
#define VRNN_FAST_QUOTED(ns) #ns
#define VRNN_FAST_PREFIX(ns) VRNN_FAST_QUOTED(ns) "::"
#define VRNN_FAST_OPERATOR(name) VRNN_FAST_PREFIX(VRNN_FAST_NAMESPACE) name
