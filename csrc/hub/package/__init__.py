"""Variational recurrent networks (Chung et al. 2015) as one fused launch per batch of sequences, on the CPU.

The whole of it, with likelihoods, ``accelerate``, streams, tables and a command line, is the package vrnn_fast.
"""

from . import likelihoods
from .answers import Forecast
from .cell.spec import Std
from .executors import backends
from .executors.cpu.operators import launch_counts
from .model import VRNN
from .outputs import VRNNOutput, VRNNRollout, VRNNStep

__all__ = [
    "VRNN",
    "Forecast",
    "Std",
    "VRNNOutput",
    "VRNNRollout",
    "VRNNStep",
    "backends",
    "launch_counts",
    "likelihoods",
]
