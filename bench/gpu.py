"""``python -m bench.gpu``: the Triton executor on the GPU that is there. Results first, then microseconds a time step.

Nobody has run it on a GPU yet. It writes bench/results/gpu-<name>.md.
"""

from __future__ import annotations

import argparse
import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from vrnn_fast import VRNN
from vrnn_fast.executors.triton import tuning
from vrnn_fast.executors.triton.tuning import Config

from .contender import FORWARD_LOSS, drop_gradients
from .measure import disagreements
from .record import RESULTS
from .resources import SHAPES
from .shapes import Shape

Call = Callable[[], object]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
GATES = {"gru": (3, 4), "lstm": (4, 4), "rnn": (1, 1)}  # of FlashRNN: products, biases


@dataclass(frozen=True)
class Job:
    """One shape in one dtype on one device: its models, its data."""

    shape: Shape
    dtype: torch.dtype
    device: torch.device

    def model(self, backend: str, dtype: torch.dtype | None = None) -> VRNN:
        """The model that every contender starts from."""
        model = VRNN(**self.shape.model, backend=backend, dtype=dtype or self.dtype, device=self.device)
        model.load_state_dict(self.shape.parameters(dtype or self.dtype))
        return model

    def data(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """x, eps and, where the model takes one, the conditioning input."""
        x, eps = self.shape.data(dtype or self.dtype)
        found = {"x": x, "eps": eps, "cond": self.shape.condition(dtype or self.dtype)}
        return {name: t.to(self.device) for name, t in found.items() if t is not None}

    def training(self, model: nn.Module, **inputs: Tensor) -> Callable[[], Tensor]:
        """Forward and backward; gradients are left behind."""

        parameters = tuple(model.parameters())

        def train() -> Tensor:
            drop_gradients(parameters)
            loss: Tensor = model(**inputs).loss
            loss.backward()
            return loss.detach()

        return train

    def forward(self, model: nn.Module, **inputs: Tensor) -> Callable[[], Tensor]:
        """Forward alone."""

        def run() -> Tensor:
            with torch.no_grad():
                loss: Tensor = model(**inputs).loss
                return loss

        return run

    def results(self, backend: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The loss of either pass and every parameter's gradient, on the CPU."""
        model, inputs = self.model(backend, dtype), self.data(dtype)
        loss, forward_loss = (make(model, **inputs)() for make in (self.training, self.forward))
        gradients = {f"gradient of {n}": p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
        return {"loss": loss.cpu(), FORWARD_LOSS: forward_loss.cpu(), **gradients}

    def problem(self) -> str | None:
        """None if our results obey the law, else what does not."""
        eager, exact = self.results("reference"), self.results("reference", torch.float64)
        return next(iter(disagreements(self.results("triton"), eager, exact).values()), None)

    def yardstick(self) -> tuple[Call, Call]:
        """cuDNN's recurrent layer of the same width, fed as inside the VRNN, without the other five networks."""
        spec = self.model("reference").spec
        inputs = spec.phi_x_size + spec.phi_z_size
        layer: nn.Module = (nn.LSTM if spec.cell == "lstm" else nn.GRU)(
            inputs, spec.hidden_size, device=self.device, dtype=self.dtype
        )
        x = torch.randn(self.shape.steps, self.shape.batch, inputs, device=self.device, dtype=self.dtype)

        def run() -> Tensor:
            with torch.no_grad():
                output: Tensor = layer(x)[0]
                return output

        parameters = tuple(layer.parameters())

        def train() -> None:
            drop_gradients(parameters)
            layer(x)[0].sum().backward()

        return run, train

    def flashrnn(self) -> tuple[Call, Call] | str:
        """FlashRNN (Pöppel et al. 2024) of the same width, fed as the yardstick, fused; or why it is not there."""
        try:
            function: Any = importlib.import_module("flashrnn").flashrnn
        except ImportError:
            return "not installed"
        spec, (steps, batch) = self.model("reference").spec, (self.shape.steps, self.shape.batch)
        inputs, hidden, (gates, biases) = spec.phi_x_size + spec.phi_z_size, spec.hidden_size, GATES[spec.cell]
        place: Any = {"device": self.device, "dtype": self.dtype}
        x, layer = torch.randn(batch, steps, inputs, **place), nn.Linear(inputs, gates * hidden, bias=False, **place)
        recurrent = torch.zeros(gates, 1, hidden, hidden, **place, requires_grad=True)
        bias = torch.zeros(biases, 1, hidden, **place, requires_grad=True)
        options = {"function": "elman" if spec.cell == "rnn" else spec.cell, "backend": "cuda_fused"}
        options["dtype"] = str(self.dtype).removeprefix("torch.")

        def outputs() -> Tensor:
            products = layer(x).view(batch, steps, gates, 1, hidden)
            found: Tensor = function(products, recurrent, bias, **options)[0]
            return found

        def run() -> Tensor:
            with torch.no_grad():
                return outputs()

        def train() -> None:
            torch.autograd.grad(outputs().sum(), (*layer.parameters(), recurrent, bias))

        try:
            train()
        except Exception as error:  # it compiles itself, here and now
            return f"does not run: {type(error).__name__}"
        return run, train

    def contenders(self, compiled: Sequence[str]) -> Iterator[tuple[str, tuple[Call, Call] | str]]:
        """Name, and forward with forward and backward; or why there is none."""
        data = self.data()
        for name, backend in (("vrnn_fast", "triton"), ("eager loop", "reference")):
            model = self.model(backend)
            calls = self.forward(model, **data), self.training(model, **data)
            yield name, calls
            if self.device.type == "cuda":
                yield f"{name}, CUDA graph", (captured(calls[0]), captured(calls[1]))
            for mode in compiled:
                fast: Any = torch.compile(model, mode=mode)
                yield f"{name}, compiled ({mode})", (self.forward(fast, **data), self.training(fast, **data))
        yield f"nn.{'LSTM' if self.shape.model.get('cell') == 'lstm' else 'GRU'} alone", self.yardstick()
        yield "flashrnn alone", self.flashrnn()

    def tune(self, seconds: float) -> Config:
        """Measure every way to write the kernels, and keep the fastest."""
        spec = self.model("triton").spec

        def measured(config: Config) -> float:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                choose, tuning.choose = tuning.choose, lambda *_: config
                try:
                    return time(self.training(self.model("triton"), **self.data()), self.device, seconds)
                finally:
                    tuning.choose = choose

        return tuning.tune(spec, self.dtype, self.device, measured)


def captured(call: Call) -> Call:
    """The call as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def time(call: Call, device: torch.device, seconds: float) -> float:
    """The median seconds of a call, after a warm-up."""

    def once() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return perf_counter() - start

    once()
    times, spent = [once()], 0.0
    while spent < seconds:
        times.append(once())
        spent += times[-1]
    return median(times)


def lines(job: Job, seconds: float, compiled: Sequence[str]) -> Iterator[str]:
    """The rows of one job, or why there are none."""
    dtype = str(job.dtype).removeprefix("torch.")
    problem = job.problem()
    if problem is not None:
        yield f"| {job.shape.name} | {dtype} | no result: {problem} | | |"
        return
    for name, calls in job.contenders(compiled):
        if isinstance(calls, str):
            yield f"| {job.shape.name} | {dtype} | {name}: {calls} | | |"
            continue
        per_step = (1e6 * time(call, job.device, seconds) / job.shape.steps for call in calls)
        yield f"| {job.shape.name} | {dtype} | {name} | {' | '.join(f'{t:.2f}' for t in per_step)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, tune, measure, print, record."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), action="append", help="this shape (may be repeated)")
    parser.add_argument("--dtype", choices=sorted(DTYPES), action="append", help="this dtype (may be repeated)")
    parser.add_argument("--compiled", choices=("default", "reduce-overhead"), action="append", default=[])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each measurement (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU")
    device = torch.device("cuda")
    name = torch.cuda.get_device_name(device)
    table = [f"# {name}", "", f"torch {torch.__version__}; microseconds a time step, medians.", ""]
    table += ["| shape | dtype | what | forward | forward+backward |", "| --- | --- | --- | --: | --: |"]
    for shape in options.shape or ("narrow", "motion", "reference", "speech"):
        for dtype in options.dtype or DTYPES:
            job = Job(SHAPES[shape], DTYPES[dtype], device)
            print(f"{shape} {dtype}: {job.tune(options.seconds)}")
            for line in lines(job, options.seconds, options.compiled):
                print(line, flush=True)
                table.append(line)
    (RESULTS / f"gpu-{name.lower().replace(' ', '-')}.md").write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
