"""Passes of the loops in plain torch, and of torch's own recurrent layers."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..contender import FORWARD, FORWARD_LOSS, TRAINING, Entry, NamedTensors, run_of
from ..shapes import Shape, forward_flops
from .compiled import CompiledCell, CompiledLoop, CompiledScan
from .eager import EagerVRNN

MOST_UNROLLED = 8  # steps; compilation takes about ten seconds for each of them


def _inputs(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return x, eps and, where the model takes one, the conditioning input."""
    cond = shape.condition(dtype)
    return (*shape.data(dtype), *(() if cond is None else (cond,)))


def _prepare(kind: type[EagerVRNN], shape: Shape, dtype: torch.dtype) -> Entry:
    model = kind(**shape.model).to(dtype)
    model.load_state_dict(shape.parameters(dtype))
    inputs = _inputs(shape, dtype)
    return run_of(model, lambda: model.loss(*inputs), forward_flops(model, shape))


def prepare_eager(shape: Shape, dtype: torch.dtype) -> Entry:
    return _prepare(EagerVRNN, shape, dtype)


def prepare_compiled_cell(shape: Shape, dtype: torch.dtype) -> Entry:
    torch.compiler.reset()  # what was compiled for another shape would be looked at, and passed over, at every step
    return _prepare(CompiledCell, shape, dtype)


def prepare_compiled_loop(shape: Shape, dtype: torch.dtype) -> Entry:
    return _prepare(CompiledLoop, shape, dtype)


def prepare_compiled_scan(shape: Shape, dtype: torch.dtype) -> Entry:
    torch.compiler.reset()
    return _prepare(CompiledScan, shape, dtype)


def too_long_to_unroll(shape: Shape) -> str | None:
    if shape.steps > MOST_UNROLLED:
        return f"unrolled, {shape.steps} steps take minutes to compile; it is tried up to {MOST_UNROLLED}"
    return None


class _Alone(nn.Module):
    """Recurrent layers of torch, fed as inside the VRNN: by phi_x and phi_z, which want gradients."""

    def __init__(self, kind: type[nn.GRU | nn.LSTM], shape: Shape) -> None:
        super().__init__()
        widths = shape.model["phi_x"][-1:] or (shape.model["input_size"],)
        widths += shape.model["phi_z"][-1:] or (shape.model["latent_size"],)
        layers = shape.model.get("num_layers", 1)
        self.layer = kind(sum(widths), shape.model["hidden_size"], layers, bias=shape.model["bias"])
        self.inputs = nn.Parameter(torch.randn(shape.steps, shape.batch, sum(widths)))

    def forward(self) -> Tensor:
        out: Tensor = self.layer(self.inputs)[0]
        return out.sum()


def _alone(kind: type[nn.GRU | nn.LSTM], shape: Shape, dtype: torch.dtype) -> Entry:
    model = _Alone(kind, shape).to(dtype)
    return replace(run_of(model, model, forward_flops(model, shape)), results=None)


def prepare_gru_alone(shape: Shape, dtype: torch.dtype) -> Entry:
    return _alone(nn.GRU, shape, dtype)


def prepare_lstm_alone(shape: Shape, dtype: torch.dtype) -> Entry:
    return _alone(nn.LSTM, shape, dtype)


def no_gpu(shape: Shape) -> str | None:
    return None if torch.cuda.is_available() else "there is no GPU here"


def prepare_graphed_loop(shape: Shape, dtype: torch.dtype) -> Entry:
    """Run the eager loop on the GPU, each pass captured once in a CUDA graph and replayed."""
    model = EagerVRNN(**shape.model).to("cuda", dtype)
    model.load_state_dict(shape.parameters(dtype))
    inputs = tuple(t.cuda() for t in _inputs(shape, dtype))
    train_graph, forward_graph, side = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model.zero_grad(set_to_none=True)
            model.loss(*inputs).backward()
    torch.cuda.current_stream().wait_stream(side)
    model.zero_grad(set_to_none=True)
    with torch.cuda.graph(train_graph):
        value = model.loss(*inputs)
        value.backward()
    with torch.no_grad(), torch.cuda.graph(forward_graph):
        forward_value = model.loss(*inputs)

    def replay(graph: torch.cuda.CUDAGraph) -> None:
        graph.replay()
        torch.cuda.synchronize()

    def results() -> NamedTensors:
        replay(forward_graph)
        replay(train_graph)
        gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
        found = {"loss": value, FORWARD_LOSS: forward_value, **gradients}
        return {name: t.detach().cpu() for name, t in found.items()}

    passes = {FORWARD: lambda: replay(forward_graph), TRAINING: lambda: replay(train_graph)}
    return Entry(passes, results, forward_flops(model, shape))
