"""A trained model at work: sequences drawn from it, and single frames taken in as they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vrnn_fast import Stream
from vrnn_fast.state import State

from ..contender import Entry, NamedTensors
from ..shapes import Shape
from .eager import EagerVRNN
from .ours import model_of

GENERATION, FRAME = "generation", "frame"


def _eager(shape: Shape, dtype: torch.dtype) -> EagerVRNN:
    model = EagerVRNN(**shape.model).to(dtype)
    model.load_state_dict(shape.parameters(dtype))
    return model


def _source(shape: Shape) -> torch.Generator:
    """Return the source of the noise of :meth:`vrnn_fast.VRNN.generate`: that of z at all steps, then that of x."""
    return torch.Generator().manual_seed(shape.draw)


def _drawn(x: Tensor, state: State) -> NamedTensors:
    """Return what the same noise must lead to: an event that rounding decided otherwise changes all that follows."""
    return {"samples": x, "state": torch.stack(state) if isinstance(state, tuple) else state}


def prepare_eager_generation(shape: Shape, dtype: torch.dtype) -> Entry:
    model, like = _eager(shape, dtype), shape.data(dtype)[0][0]

    @torch.no_grad()
    def generate(noise: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, State]:
        return model.generate(shape.steps, like, noise)

    def results() -> NamedTensors:
        source = _source(shape)
        eps = torch.randn(shape.steps, shape.batch, shape.model["latent_size"], generator=source)
        output = torch.empty(shape.steps, shape.batch, shape.model["input_size"])
        output = output.normal_(generator=source) if model.gaussian else output.uniform_(generator=source)
        return _drawn(*generate((eps.to(dtype), output.to(dtype))))

    return Entry({GENERATION: generate}, results)


def prepare_generation(shape: Shape, dtype: torch.dtype) -> Entry:
    model = model_of(shape, dtype)

    def generate(source: torch.Generator | None = None) -> tuple[Tensor, State]:
        return model.generate(shape.steps, shape.batch, generator=source)

    return Entry({GENERATION: generate}, lambda: _drawn(*generate(_source(shape))))


def _frames(begin: Callable[[], Any], frame: Callable[[int, Any], tuple[Any, ...]], shape: Shape) -> Entry:
    """Make the passes of frames: ``frame(t, state)`` gives NLL, KL, the prediction and the next state. The first frame
    is what is timed."""

    @torch.no_grad()
    def results() -> NamedTensors:
        state, frames = begin(), []
        for t in range(shape.steps):
            *numbers, state = frame(t, state)
            frames.append([torch.as_tensor(n).reshape(shape.batch, -1) for n in numbers])
        return dict(zip(("nll", "kl", "prediction"), map(torch.stack, zip(*frames, strict=True)), strict=True))

    start = begin()
    return Entry({FRAME: torch.no_grad()(lambda: frame(0, start))}, results)


def prepare_eager_frames(shape: Shape, dtype: torch.dtype) -> Entry:
    """Do what a user of the eager model does: predict from the prior, then one step of the loop."""
    model, (x, eps) = _eager(shape, dtype), shape.data(dtype)

    def frame(t: int, state: Tensor) -> tuple[Any, ...]:
        (logits,) = model.decode(model.phi_z(model.prior_of(state[-1])[0]), state[-1])
        kl, nll, following = model.step(x[t], eps[t], state)
        return nll, kl, torch.sigmoid(logits), following  # sums over a batch of one

    return _frames(lambda: model.start(x[0]), frame, shape)


def prepare_steps(shape: Shape, dtype: torch.dtype) -> Entry:
    model, (x, eps) = model_of(shape, dtype), shape.data(dtype)

    def frame(t: int, state: Any) -> tuple[Any, ...]:
        return tuple(model.step(x[t], state, eps[t]))

    return _frames(lambda: model.new_state(shape.batch), frame, shape)


def prepare_stream(shape: Shape, dtype: torch.dtype) -> Entry:
    stream = Stream(model_of(shape, dtype), shape.batch)
    x, eps = (t.numpy() for t in shape.data(dtype))

    def frame(t: int, state: None) -> tuple[Any, ...]:
        return (*stream.push(x[t], eps[t]), None)

    return _frames(stream.reset, frame, shape)
