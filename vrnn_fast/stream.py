"""A trained model, one frame at a time, on NumPy arrays and without torch in the loop."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from . import checks
from .cell.encode import encode
from .model import VRNN

Array = NDArray[Any]

_DRAWN = 4096  # numbers of noise at a time


class StreamStep(NamedTuple):
    """The results of one frame: nll (B,) and kl (B,) in nats, and the prediction that was made before it was seen.

    Examples:
        >>> Stream(model).push(x[0, 0].numpy()).kl.shape
        (1,)
    """

    nll: Array
    kl: Array
    prediction: Array | tuple[Array, Array]


class Stream:
    """Push a frame, get its bound and what the model had predicted: as :meth:`VRNN.step`, on one thread.

    The prediction is p(x_t | x_<t) at the prior's mean of z_t: probabilities for a Bernoulli likelihood, (mean, std)
    for a Gaussian one. Weights are a snapshot: after training, :meth:`refresh` reads them again, and so does a copy, by
    ``copy.deepcopy`` or ``pickle``, which goes on from the same state with the same noise.

    Args:
        model: on the CPU, float32 or float64, with a Bernoulli or Gaussian likelihood.
        batch_size: how many streams move on together, B.
        seed: of the noise that the posterior's samples are drawn with.

    Raises:
        RuntimeError: the native module is not built, or the model is on another device.
        TypeError: the model is no VRNN, or its dtype is neither float32 nor float64.
        ValueError: its likelihood is computed outside the launch, it has a conditioning input, or batch_size is below
            1.

    Examples:
        >>> stream = Stream(model, batch_size=4)
        >>> nll, kl, forecast = stream.push(x[0].numpy())
    """

    def __init__(self, model: VRNN, batch_size: int = 1, *, seed: int | None = None) -> None:
        if not isinstance(model, VRNN):
            raise TypeError(f"model must be a VRNN, got {type(model).__name__}")
        checks.integer("batch_size", batch_size)
        if model.spec.cond_size:
            raise ValueError("Stream takes no conditioning input, and this model has one: use VRNN.step")
        if model.spec.likelihood == "external":
            raise ValueError("Stream needs a Bernoulli or Gaussian likelihood; this model's is computed outside")
        self.model = model
        self.batch_size = batch_size
        self._noise = np.random.default_rng(seed)
        self._drawn: Array = np.empty(0)
        self._next = 0
        self.refresh()

    def refresh(self) -> None:
        """Read the model's weights again. The state stays.

        Examples:
            >>> Stream(model).refresh()
        """
        try:
            native = importlib.import_module("._native", __package__)
        except ImportError as error:
            raise RuntimeError(f"Stream needs the native module, which is not built: {error}") from error
        spec = self.model.spec
        with torch.no_grad():
            parameters = [p.detach() for p in self.model._reader(self.model)]
        for p in parameters:
            if p.device.type != "cpu":
                raise RuntimeError(f"Stream runs on the CPU, and the model is on {p.device}")
            if p.dtype not in (torch.float32, torch.float64):
                raise TypeError(f"Stream computes in float32 or float64, and the model is {p.dtype}")
        program = encode(spec)
        single = parameters[0].dtype == torch.float32
        before = self.state if hasattr(self, "_engine") else None
        dtype: type[np.float32 | np.float64] = np.float32 if single else np.float64
        if self._drawn.dtype != dtype:
            self._drawn, self._next = np.empty(0, dtype), 0
        self._engine = (native.Engine32 if single else native.Engine64)(
            program.code, program.constants, [p.contiguous().numpy() for p in parameters], self.batch_size
        )
        if before is not None:
            self.state = before
        else:
            self.reset()

    @property
    def state(self) -> tuple[Array, ...]:
        """Copies of every layer's h (B, H) and, for an LSTM, every layer's c. Assign to continue from another state.

        Examples:
            >>> [h.shape for h in Stream(model, batch_size=4).state]
            [(4, 16)]
        """
        return tuple(self._engine.state(i).copy() for i in range(self.model.spec.state_tensors))

    @state.setter
    def state(self, value: tuple[Array, ...]) -> None:
        tensors, expected = self.model.spec.state_tensors, (self.batch_size, self.model.hidden_size)
        if not isinstance(value, (tuple, list)):
            raise TypeError(f"state must be a tuple of arrays, got {type(value).__name__}")
        if len(value) != tensors:
            raise ValueError(f"state must be {tensors} arrays, got {len(value)}")
        for i, part in enumerate(value):
            if np.shape(part) != expected:
                raise ValueError(f"state[{i}] must have shape {expected}, got {np.shape(part)}")
        for i, part in enumerate(value):
            self._engine.state(i)[:] = part

    def reset(self) -> None:
        """Begin anew from the state that :meth:`VRNN.new_state` gives.

        Examples:
            >>> Stream(model).reset()
        """
        start = self.model.initial_state
        for i in range(self.model.spec.state_tensors):
            self._engine.state(i)[:] = 0 if start is None else start.detach().flatten(0, 1)[i].numpy()

    def push(self, x: Array, eps: Array | None = None) -> StreamStep:
        """Take in one frame.

        Args:
            x: (B, X), or (X,) for one stream, of the model's dtype and C-contiguous.
            eps: (B, Z) noise of the posterior's sample, likewise; None draws it.

        Raises:
            TypeError: x or eps is no array, has another dtype or is not contiguous.
            ValueError: it has another number of elements.

        Examples:
            >>> Stream(model).push(x[0, 0].numpy()).prediction.shape
            (1, 3)
        """
        return StreamStep._make(self._engine.step(x, self._draw() if eps is None else eps))

    def _draw(self) -> Array:
        """Draw standard normal (B, Z), drawn for many frames at a time."""
        if self._next == len(self._drawn):
            frame = self.batch_size, self.model.latent_size
            frames = max(1, _DRAWN // max(1, frame[0] * frame[1]))
            self._drawn, self._next = self._noise.standard_normal((frames, *frame), dtype=self._drawn.dtype), 0
        self._next += 1
        noise: Array = self._drawn[self._next - 1]
        return noise

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_engine"} | {"state": self.state}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        state = attributes.pop("state")
        vars(self).update(attributes)
        self.refresh()
        self.state = state
