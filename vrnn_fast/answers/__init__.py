"""What a trained model tells of data: how unlikely it is, how it goes on, and what is missing from it.

All three stand on the particles of a filter (Gordon et al. 1993, "Novel approach to nonlinear/non-Gaussian Bayesian
state estimation"), which is a launch of the same kernels that train the model.
"""

from .methods import Answers
from .result import Forecast

__all__ = ["Answers", "Forecast"]
