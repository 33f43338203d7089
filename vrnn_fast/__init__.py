"""Variational recurrent networks (Chung et al. 2015) as one fused launch per batch of sequences."""

from .acceleration.accelerate import accelerate
from .acceleration.difference import ProofError
from .answers import Answers, Forecast
from .cell.spec import Std
from .checkpoints.convert import load_checkpoint
from .executors import backends
from .layouts.structure import LayoutError
from .likelihoods import (
    Bernoulli,
    Categorical,
    DiscretizedLogisticMixture,
    FeatureMixture,
    FixedGaussian,
    Gamma,
    Gaussian,
    GaussianMixture,
    Handwriting,
    ItakuraSaito,
    Likelihood,
    NegativeBinomial,
    Ordinal,
    Poisson,
    SharedMixture,
    StudentT,
)
from .model import VRNN
from .outputs import VRNNOutput, VRNNRollout, VRNNStep
from .stream import Stream, StreamStep

__version__ = "0.1.0"

__all__ = [
    "VRNN",
    "Answers",
    "Bernoulli",
    "Categorical",
    "DiscretizedLogisticMixture",
    "FeatureMixture",
    "FixedGaussian",
    "Forecast",
    "Gamma",
    "Gaussian",
    "GaussianMixture",
    "Handwriting",
    "ItakuraSaito",
    "LayoutError",
    "Likelihood",
    "NegativeBinomial",
    "Ordinal",
    "Poisson",
    "ProofError",
    "SharedMixture",
    "Std",
    "Stream",
    "StreamStep",
    "StudentT",
    "VRNNOutput",
    "VRNNRollout",
    "VRNNStep",
    "__version__",
    "accelerate",
    "backends",
    "load_checkpoint",
]
