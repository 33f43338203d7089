"""What the decoder's raw output means: the log-density of x_t, its parameters, its mean, a sample.

``raw`` is always the decoder's heads side by side, (..., R), before any transform. Bernoulli and Gaussian are computed
inside a fused launch; any other :class:`Likelihood` receives the raw output that the launch returns.
"""

from __future__ import annotations

from .base import Likelihood, decoder_heads, softplus, standard_deviation
from .bernoulli import Bernoulli, bernoulli_log_prob
from .categorical import Categorical, Ordinal
from .counts import CountParameters, NegativeBinomial, Poisson
from .gamma import Gamma, ItakuraSaito
from .gaussian import FixedGaussian, Gaussian, MeanStd, gaussian_log_prob
from .handwriting import Handwriting, StrokeComponents
from .logistic import DiscretizedLogisticMixture, LogisticComponents
from .mixture import FeatureComponents, FeatureMixture, GaussianComponents, GaussianMixture, SharedMixture
from .student import StudentParameters, StudentT

__all__ = [
    "Bernoulli",
    "Categorical",
    "CountParameters",
    "DiscretizedLogisticMixture",
    "FeatureComponents",
    "FeatureMixture",
    "FixedGaussian",
    "Gamma",
    "Gaussian",
    "GaussianComponents",
    "GaussianMixture",
    "Handwriting",
    "ItakuraSaito",
    "Likelihood",
    "LogisticComponents",
    "MeanStd",
    "NegativeBinomial",
    "Ordinal",
    "Poisson",
    "SharedMixture",
    "StrokeComponents",
    "StudentParameters",
    "StudentT",
    "as_likelihood",
    "bernoulli_log_prob",
    "decoder_heads",
    "gaussian_log_prob",
    "softplus",
    "standard_deviation",
]


def as_likelihood(likelihood: str | Likelihood) -> Likelihood:
    """Take ``"bernoulli"``, ``"gaussian"`` or an object.

    Raises:
        ValueError: an unknown name. TypeError: neither a name nor a :class:`Likelihood`.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if not isinstance(likelihood, str):
        raise TypeError(f"likelihood must be 'bernoulli', 'gaussian' or a Likelihood object, got {likelihood!r}")
    if likelihood == "bernoulli":
        return Bernoulli()
    if likelihood == "gaussian":
        return Gaussian()
    raise ValueError(f"likelihood must be 'bernoulli', 'gaussian' or a Likelihood object, got {likelihood!r}")
