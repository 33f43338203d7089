"""Results first, then microseconds a time step, of contenders that take turns.

``python -m bench.gpu.times SETTING BACKEND/SHAPE/DTYPE`` checks one pass and ends: what the sanitizer looks at.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vrnn_fast import VRNN
from vrnn_fast.executors.triton import tuning
from vrnn_fast.executors.triton.tuning import Config

from ..contender import FORWARD_LOSS, Thunk, drop_gradients
from ..measure import Timed, disagreements, take_turns
from ..shapes import Shape
from .children import ROOT, Row
from .setting import DTYPES, Setting, shape_of

TUNING = 20.0  # seconds for a shape in a dtype
GATES = {"gru": (3, 4), "lstm": (4, 4), "rnn": (1, 1)}  # of FlashRNN: products, biases


@dataclass(frozen=True)
class Job:
    """One shape in one dtype on one device: its models, its data."""

    shape: Shape
    dtype: torch.dtype
    device: torch.device

    def model(self, backend: str, dtype: torch.dtype | None = None) -> VRNN:
        """Return the model that every contender starts from."""
        model = VRNN(**self.shape.model, backend=backend, dtype=dtype or self.dtype, device=self.device)
        model.load_state_dict(self.shape.parameters(dtype or self.dtype))
        return model

    def data(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Return x, eps and, where the model takes one, the conditioning input."""
        x, eps = self.shape.data(dtype or self.dtype)
        found = {"x": x, "eps": eps, "cond": self.shape.condition(dtype or self.dtype)}
        return {name: t.to(self.device) for name, t in found.items() if t is not None}

    def training(self, model: nn.Module, **inputs: Tensor) -> Callable[[], Tensor]:
        """Return forward and backward; gradients are left behind."""

        parameters = tuple(model.parameters())

        def train() -> Tensor:
            drop_gradients(parameters)
            loss: Tensor = model(**inputs).loss
            loss.backward()
            return loss.detach()

        return train

    def forward(self, model: nn.Module, **inputs: Tensor) -> Callable[[], Tensor]:
        """Return forward alone."""

        def run() -> Tensor:
            with torch.no_grad():
                loss: Tensor = model(**inputs).loss
                return loss

        return run

    def results(self, backend: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Return the loss of either pass and every parameter's gradient, on the CPU."""
        model, inputs = self.model(backend, dtype), self.data(dtype)
        loss, forward_loss = (make(model, **inputs)() for make in (self.training, self.forward))
        gradients = {f"gradient of {n}": p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
        return {"loss": loss.cpu(), FORWARD_LOSS: forward_loss.cpu(), **gradients}

    def problem(self, backend: str) -> str | None:
        """Return None if our results obey the law, else what does not."""
        eager, exact = self.results("reference"), self.results("reference", torch.float64)
        return next(iter(disagreements(self.results(backend), eager, exact).values()), None)

    def yardstick(self, kind: type[nn.GRU | nn.LSTM]) -> tuple[Thunk, Thunk]:
        """Return cuDNN's recurrent layer of the same width, fed as inside the VRNN, without the other five networks."""
        spec = self.model("reference").spec
        inputs = spec.phi_x_size + spec.phi_z_size
        layer: nn.Module = kind(inputs, spec.hidden_size, device=self.device, dtype=self.dtype)
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

    def flashrnn(self) -> tuple[Thunk, Thunk] | str:
        """Return FlashRNN (Pöppel et al. 2024) of the same width, fed as the yardstick, fused; or why there is none."""
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

    def contenders(
        self, backends: Sequence[str], compiled: Sequence[str]
    ) -> Iterator[tuple[str, tuple[Thunk, Thunk] | str]]:
        """Name, and forward with forward and backward; or why there is none."""
        data = self.data()
        for name in (*backends, "reference"):
            called = "eager loop" if name == "reference" else f"vrnn_fast, {name}"
            if name != "reference" and (problem := self._tried(name)) is not None:
                yield called, f"no result: {problem}"
                continue
            model = self.model(name)
            calls = self.forward(model, **data), self.training(model, **data)
            yield called, calls
            if self.device.type == "cuda":
                yield f"{called}, CUDA graph", (captured(calls[0]), captured(calls[1]))
            for mode in compiled:
                fast: Any = torch.compile(model, mode=mode)
                yield f"{called}, compiled ({mode})", (self.forward(fast, **data), self.training(fast, **data))
        yield "nn.GRU alone", self.yardstick(nn.GRU)
        yield "nn.LSTM alone", self.yardstick(nn.LSTM)
        yield "flashrnn alone", self.flashrnn()

    def _tried(self, backend: str) -> str | None:
        """Return :meth:`problem`, or why the backend does not run this."""
        try:
            return self.problem(backend)
        except RuntimeError as error:
            if "CUDA error" in str(error):  # nothing can be launched any more
                raise
            return str(error).partition("\n")[0]

    def tune(self, at_most: float) -> Config:
        """Measure the ways to write Triton's kernels, and keep the fastest; after so many seconds no other is begun."""
        from vrnn_fast.executors.triton.launch import scan_seconds

        spec, sizes = self.model("triton").spec, (self.shape.steps, self.shape.batch)

        def measured(config: Config) -> float:
            return scan_seconds(spec, config, self.dtype, self.device, *sizes)

        return tuning.tune(spec, self.dtype, self.device, measured, at_most=at_most)

    def rows(self, backends: Sequence[str], compiled: Sequence[str], seconds: float) -> Iterator[Row]:
        """Measure every contender, all in turn, and where a call can be one as a CUDA graph too."""
        contenders = dict(self.contenders(backends, compiled))
        calls = {name: both for name, both in contenders.items() if not isinstance(both, str)}
        threads = (torch.get_num_threads(),)
        medians: list[dict[str, float]] = []
        for which in (0, 1):
            timed = {name: Timed(waited_for(both[which], self.device), threads) for name, both in calls.items()}
            found = take_turns(timed, seconds * len(timed), block=0.02)
            medians.append({name: 1e6 * timing.median / self.shape.steps for name, timing in found.items()})
        head = {"shape": self.shape.name, "dtype": str(self.dtype).removeprefix("torch.")}
        for name, both in contenders.items():
            if isinstance(both, str):
                yield {**head, "what": f"{name}: {both}"}
                continue
            forward, training = (of[name] for of in medians)
            speedup = f"{medians[1]['eager loop'] / training:.2f}"
            times = {"forward": f"{forward:.2f}", "forward+backward": f"{training:.2f}"}
            yield {**head, "what": name, **times, "times eager": speedup}


def job_of(setting: Setting, item: str) -> Job:
    """Return the job that ``"shape/dtype"`` names."""
    shape, _, dtype = item.partition("/")
    return Job(shape_of(shape), DTYPES[dtype], setting.device)


def items(setting: Setting) -> list[str]:
    """Name every shape in every dtype."""
    return setting.jobs


def run(setting: Setting, item: str) -> Iterator[Row]:
    """Measure one shape in one dtype."""
    yield from job_of(setting, item).rows(setting.backends, setting.compiled, setting.seconds)


def tunings(setting: Setting) -> list[str]:
    """Name every shape in every dtype, where Triton is asked for."""
    return setting.jobs if "triton" in setting.backends else []


def tune(setting: Setting, item: str) -> Iterator[Row]:
    """Find the fastest way to write the kernels of one shape in one dtype."""
    yield {"shape/dtype": item, "fastest": str(job_of(setting, item).tune(TUNING))}


def compilations(setting: Setting) -> list[str]:
    """Name all in one: what is compiled goes to the disk."""
    return ["everything"]


def compile_all(setting: Setting, item: str) -> Iterator[Row]:
    """Check every pass in a process of its own, so many at a time as there are cores."""
    waiting = [f"{backend}/{job}" for backend in setting.backends for job in setting.jobs]
    running: dict[str, tuple[subprocess.Popen[str], float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                name = waiting.pop(0)
                command = [sys.executable, "-m", "bench.gpu.times", setting.as_json(), name]
                pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
                child = subprocess.Popen(command, cwd=ROOT, env=setting.environment, **pipes)
                running[name] = child, time.monotonic()
            for name, (child, begun) in list(running.items()):
                if child.poll() is not None:
                    said = child.communicate()[1].strip().rpartition("\n")[2]
                    outcome = "checked" if child.returncode == 0 else said[:200]
                    yield {"pass": name, "seconds": round(time.monotonic() - begun, 1), "outcome": outcome}
                    del running[name]
            time.sleep(0.05)
    finally:
        for child, _ in running.values():
            child.kill()


def captured(call: Thunk) -> Thunk:
    """Return the call as one CUDA graph."""
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


def waited_for(call: Thunk, device: torch.device) -> Thunk:
    """Return the call, and all that it began."""
    if device.type != "cuda":
        return call

    def waiting() -> None:
        call()
        torch.cuda.synchronize(device)

    return waiting


def main(setting: str, item: str) -> None:
    """Check one pass."""
    asked = Setting.of_json(setting)
    backend, _, job = item.partition("/")
    problem = job_of(asked, job).problem(backend)
    if problem is not None:
        raise SystemExit(problem)


if __name__ == "__main__":
    main(*sys.argv[1:])
