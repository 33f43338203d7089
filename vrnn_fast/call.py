"""What the modules behind a model's methods know of it: a view of the module, taken at each call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from .cell.spec import CellSpec
from .likelihoods import Likelihood


@lru_cache(maxsize=256)
def _with_initial_state(spec: CellSpec) -> CellSpec:
    return replace(spec, initial_state=True)


class ModelCall(NamedTuple):
    """One call of a model.

    Attributes:
        parameters: in the order of executors, as they are at this call.
        spec: the structure that they belong to.
        likelihood: what the decoder's output means.
        initial_state: (1 or 2, num_layers, H), what ``state=None`` stands for; None is zeros.
        backend: who shall run it.
        batch_first: whether the caller's tensors are (B, T, ...).
        recompute: whether to keep less for the backward pass.
        check_values: whether to look for values that no result could come of.
    """

    parameters: Sequence[Tensor]
    spec: CellSpec
    likelihood: Likelihood
    initial_state: Tensor | None
    backend: str
    batch_first: bool
    recompute: bool
    check_values: bool

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and device that arguments must have."""
        return self.parameters[0]

    def for_resets(self, resets: Tensor | None) -> ModelCall:
        """Return the call itself or, where resets go to an initial state, one whose parameters that state ends."""
        if resets is None or self.initial_state is None:
            return self
        spec = self.spec.constant(self.spec.key, _with_initial_state)
        return self._replace(spec=spec, parameters=[*self.parameters, *self.initial_state.flatten(0, 1).unbind()])

    @property
    def external(self) -> bool:
        """Whether the likelihood is computed outside of the launch."""
        return self.spec.likelihood == "external"

    def turned(self, tensor: Tensor) -> Tensor:
        """Turn a tensor from (T, B, ...) to the layout of the caller, or back."""
        return tensor.transpose(0, 1) if self.batch_first else tensor
