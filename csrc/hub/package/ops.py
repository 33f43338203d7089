"""Where torch keeps the operators of this build: _ops.py, which csrc/hub/build.py writes, has their name."""

from ._ops import LIBRARY, NAMESPACE, add_op_namespace_prefix, ops

__all__ = ["LIBRARY", "NAMESPACE", "add_op_namespace_prefix", "ops"]
