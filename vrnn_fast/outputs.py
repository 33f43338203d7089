"""What the calls of a model return, known to torch.compile and torch.export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, overload

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from .likelihoods import (
    CountParameters,
    FeatureComponents,
    GaussianComponents,
    LogisticComponents,
    MeanStd,
    StrokeComponents,
    StudentParameters,
)
from .ops import NAMESPACE
from .state import State


@dataclass
class VRNNOutput:
    """What a forward pass returns. Per-step results are (T, B, ...), or (B, T, ...) with ``batch_first``, and zero at
    padding.

    A tuple and a mapping as well, as the outputs of known model hubs are: ``out[0]`` and ``out["loss"]`` are the loss,
    and unpacking gives the results in the order below, without those that were not asked for.

    Attributes:
        loss: scalar, the sum over real steps of nll + beta * max(kl, free_nats), divided by the normalizer.
        nll: (T, B) -log p(x_t | z_<=t, x_<t) of the sampled z.
        kl: (T, B) KL(q(z_t) || p(z_t)), the exact one between the two Gaussians.
        elbo: (B,) the evidence lower bound of each row, -(nll + kl) summed over time. Without beta or free nats.
        latent: (T, B, Z) z_t = mean + std * eps.
        posterior: mean and std of q(z_t | z_<t, x_<=t), (T, B, Z) each.
        state: each row's state after its own last step, (num_layers, B, H), for an LSTM the pair (h, c) of them.
        prior: mean and std of p(z_t | z_<t, x_<t), (T, B, Z) each, if asked for.
        prediction: the parameters of p(x_t | z_<=t, x_<t), if asked for: Bernoulli probabilities (T, B, X), Gaussian
            mean and std (T, B, X) each, or what another likelihood's ``prediction`` makes of the decoder's output.

    Examples:
        >>> out = model(x)
        >>> out.loss is out[0] is out["loss"]
        True
    """

    loss: Tensor
    nll: Tensor
    kl: Tensor
    elbo: Tensor
    latent: Tensor
    posterior: MeanStd
    state: State
    prior: MeanStd | None = None
    prediction: Any = None

    def keys(self) -> tuple[str, ...]:
        """Return the names of the results that are there, in order.

        Examples:
            >>> model(x).keys()[:4]
            ('loss', 'nll', 'kl', 'elbo')
        """
        return tuple(field.name for field in fields(self) if getattr(self, field.name) is not None)

    def __iter__(self) -> Iterator[Any]:
        return iter([getattr(self, name) for name in self.keys()])

    def __len__(self) -> int:
        return len(self.keys())

    @overload
    def __getitem__(self, key: int | str) -> Any: ...

    @overload
    def __getitem__(self, key: slice) -> tuple[Any, ...]: ...

    def __getitem__(self, key: int | str | slice) -> Any:
        if not isinstance(key, str):
            return tuple(self)[key]
        if key in self.keys():
            return getattr(self, key)
        if hasattr(self, key):
            raise KeyError(f"{key} was not asked for: call the model with outputs=({key!r},)")
        raise KeyError(f"there is no result {key!r}, only {', '.join(self.keys())}")


torch.export.register_dataclass(VRNNOutput, serialized_type_name=f"{NAMESPACE}.VRNNOutput")
for _tuple in (
    MeanStd,
    CountParameters,
    FeatureComponents,
    GaussianComponents,
    LogisticComponents,
    StrokeComponents,
    StudentParameters,
):
    pytree._register_namedtuple(_tuple, serialized_type_name=f"{NAMESPACE}.{_tuple.__name__}")  # named, to be exported


class VRNNStep(NamedTuple):
    """What a single step returns.

    Attributes:
        nll: (B,) -log p(x_t | z_<=t, x_<t) in nats.
        kl: (B,) KL of posterior and prior in nats.
        prediction: the parameters of p(x_t | x_<t, z_<t) at the prior's mean of z_t: it has not seen x_t.
        state: the state after this step, in the form of ``VRNNOutput.state``.

    Examples:
        >>> model.step(x[0], None).nll.shape
        torch.Size([4])
    """

    nll: Tensor
    kl: Tensor
    prediction: Any
    state: State


class VRNNRollout(NamedTuple):
    """What the prior alone makes of a state. Per-step results are (T, B, ...), or (B, T, ...) with ``batch_first``.

    Attributes:
        latent: (T, B, Z) z_t = prior mean + prior std * eps.
        prior: mean and std of p(z_t | z_<t, x_<t), (T, B, Z) each, x_t being what the decoder expects.
        prediction: the parameters of p(x_t | z_<=t, x_<t), in the form of ``VRNNOutput.prediction``.
        state: the state after the last step, in the form of ``VRNNOutput.state``.

    Examples:
        >>> model.rollout_prior(torch.randn(5, 4, 2)).latent.shape
        torch.Size([5, 4, 2])
    """

    latent: Tensor
    prior: MeanStd
    prediction: Any
    state: State


def each(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply ``function`` to a tensor or to every tensor of a tuple, keeping the tuple's class."""
    if isinstance(value, Tensor):
        return function(value)
    mapped = [each(function, v) for v in value]
    return type(value)(*mapped) if hasattr(value, "_fields") else tuple(mapped)
