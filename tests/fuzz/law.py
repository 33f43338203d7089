"""Run a case on its executor and hold it to the law of tests/support/oracle.py."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from inspect import signature
from typing import Any
from unittest import mock

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from tests.support.oracle import Errors
from tests.support.replay import RecordNoise, ReplayNoise
from vrnn_fast import VRNN
from vrnn_fast.likelihoods import as_likelihood

from .case import BOUNDS, Case

STRUCTURE = {f.name for f in fields(Case)} & signature(VRNN).parameters.keys() - {"dtype", "likelihood"}
DRAWS = (6, 24)  # of the numbers of a case that broke the law once, and of one that still does

Results = dict[str, Tensor]


class Wrong(AssertionError):
    """A case that was run and found to be wrong."""


class Unlawful(Wrong):
    """A result or a gradient that is further from the oracle than the law allows."""


class Unrepeatable(Wrong):
    """The same call gave other bits."""


class Refused(Exception):
    """The executor says that it cannot run the case, or plain torch cannot: it draws from no NaN."""


def run(case: Case) -> None:
    """Compare every result and every gradient with plain torch in the same dtype, against float64.

    One draw of the numbers may be bad luck: an input of a ReLU or of a clamp that lies on its kink but for rounding, a
    particle that is drawn by a hair, an error of torch's that happens to be zero. So for what broke the law numbers are
    drawn anew, and it is wrong where it breaks the law over all these draws together, and in more than half of them
    alone: six of them, and once more four times as many, for of ten thousand cases one or two are wrong in four draws
    of six by chance alone. A defect does so on every draw.

    In float64 the oracle is plain torch itself, which cannot show its own error. That of float32, smaller by the ratio
    of roundings, stands for it. Numbers that plain torch has not (NaN and infinity) are not compared.

    Raises:
        Unlawful, Unrepeatable: what is wrong, with its numbers.
        Refused: the executor does not run such a case.
    """
    first = _Draw(case)
    wrong = _alone(case, *first.compared())
    for draws in DRAWS:
        if wrong:
            wrong = _on_every_draw(case, wrong, draws)
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise Unlawful("; ".join(list(wrong.values())[:3]) + more)
    for name, value in first.ours().items():
        if not torch.allclose(value, first.found[name], rtol=0, atol=0, equal_nan=True):
            raise Unrepeatable(f"{name} is {value.flatten()[:3]}, and was {first.found[name].flatten()[:3]}")


def _on_every_draw(case: Case, wrong: Iterable[str], draws: int) -> dict[str, str]:
    """What of it is wrong on so many other draws as well."""
    together, often = Errors(getattr(torch, case.dtype)), Counter[str]()
    for seed in range(1, draws + 1):
        compared = _Draw(replace(case, seed=case.seed + (seed << 16))).compared()
        together.add(*compared)
        often.update(_alone(case, *compared).keys())
        if not any(2 * (often[name] + draws - seed) > draws for name in wrong):
            return {}
    still = together.violations()
    return {n: f"{still[n]} ({often[n]} of {draws})" for n in wrong if n in still and 2 * often[n] > draws}


def _alone(case: Case, *compared: Results) -> dict[str, str]:
    """What breaks the law in a single draw."""
    errors = Errors(getattr(torch, case.dtype))
    errors.add(*compared)
    return errors.violations()


@contextmanager
def _machine(threads: int, isa: str | None) -> Iterator[None]:
    """So many of torch's threads, and this build of the kernels."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with mock.patch.dict(os.environ, {"VRNN_FAST_ISA": isa} if isa else {}):
            yield
    finally:
        torch.set_num_threads(before)


class _Draw:
    """A case with its numbers. Those of a tensor depend on the seed, its name and its shape alone, and are rounded so
    that every dtype of the case holds them."""

    def __init__(self, case: Case) -> None:
        self.case, self.found = case, dict[str, Tensor]()
        self.rows = (case.batch, case.steps) if case.batch_first and case.call != "step" else (case.steps, case.batch)
        self.noise: RecordNoise | None = None
        self.models: dict[torch.dtype, VRNN] = {}
        self.likelihood = as_likelihood(case.make_likelihood())
        if isinstance(self.likelihood, nn.Module):
            self.likelihood.double()
        self.inputs = self._inputs()
        self.flags = self._flags()

    def compared(self) -> tuple[Results, Results, Results]:
        """Ours, plain torch's and the oracle's, zero where plain torch has no finite number."""
        dtype = getattr(torch, self.case.dtype)
        single = torch.float32 if dtype == torch.float64 else dtype
        try:
            with _machine(1, None):
                torchs, right = (self._results("reference", precision) for precision in (single, torch.float64))
        except RuntimeError as error:
            raise Refused(f"plain torch: {error}") from error
        if dtype == torch.float64:
            ratio = torch.finfo(dtype).eps / torch.finfo(single).eps
            torchs = {n: right[n] + (t.double() - right[n]) * ratio for n, t in torchs.items()}
        self.found = self.ours()
        known = {n: t.isfinite() & right[n].isfinite() for n, t in torchs.items()}
        ours, torchs, right = (
            {n: torch.where(known[n], t, 0) for n, t in results.items()} for results in (self.found, torchs, right)
        )
        return ours, torchs, right

    def ours(self) -> Results:
        """What the executor of the case makes of it."""
        try:
            with _machine(self.case.threads, self.case.isa):
                return self._results(self.case.executor, getattr(torch, self.case.dtype))
        except RuntimeError as error:
            if " cannot run: " in str(error):
                raise Refused(str(error)) from error
            raise

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(zlib.crc32(f"{self.case.seed} {name}".encode()))

    def _rounded(self, tensor: Tensor) -> Tensor:
        return tensor.to(torch.bfloat16 if self.case.dtype == "bfloat16" else torch.float32).double()

    def _numbers(self, name: str, *shape: int, scale: float = 1.0) -> Tensor:
        return self._rounded(scale * torch.randn(shape, generator=self._generator(name)))

    def _inputs(self) -> dict[str, Tensor]:
        """What has a gradient: x, noise, the conditioning input and the state, in the caller's layout."""
        case, rows = self.case, self.rows
        raw = self._numbers("raw", *rows, sum(self.likelihood.heads(case.input_size).values()))
        with torch.no_grad():
            x = self._rounded(self.likelihood.sample(raw, 1.0, self._generator("x")))
        particles = (case.particles,) if case.call in BOUNDS else ()
        inputs = {"x": x, "eps": self._numbers("eps", *rows, *particles, case.latent_size)}
        if case.cond_size:
            inputs["cond"] = self._numbers("cond", *rows, case.cond_size)
        if case.nan and case.lengths is not None:
            real = torch.arange(case.steps)[:, None] < self._lengths(case.lengths)
            real = real.T if case.batch_first else real
            for name, value in inputs.items():
                if case.layouts.get(name) != "expanded":
                    inputs[name] = torch.where(real[(..., *(None,) * (value.dim() - 2))], value, torch.nan)
        if case.state == "given":
            for part in self._parts():
                inputs[f"state.{part}"] = self._numbers(part, case.num_layers, case.batch, case.hidden_size)
        return inputs

    def _lengths(self, said: tuple[int, ...]) -> Tensor:
        full = (*said, *(self.case.steps,) * self.case.batch)
        return torch.tensor([min(n, self.case.steps) for n in full[: self.case.batch]])

    def _parts(self) -> tuple[str, ...]:
        return ("h", "c") if self.case.cell == "lstm" else ("h",)

    def _flags(self) -> dict[str, Tensor]:
        """What has none."""
        case, flags = self.case, {}
        if case.lengths is not None:
            flags["lengths"] = self._lengths(case.lengths)
        if case.resets:
            flags["resets"] = torch.rand(self.rows, generator=self._generator("resets")) < 0.3
        if case.mask:
            flags["mask"] = torch.rand((*self.rows, case.input_size), generator=self._generator("mask")) < 0.7
        if case.call == "fivo":
            flags["uniforms"] = torch.rand((*self.rows, case.particles), generator=self._generator("uniforms"))
            flags["uniforms"] = self._rounded(flags["uniforms"])
        return flags

    def _model(self, backend: str, dtype: torch.dtype) -> VRNN:
        """The same one for all backends, without gradients yet."""
        case = self.case
        if dtype not in self.models:
            asked = {name: getattr(case, name) for name in STRUCTURE} | {"likelihood": case.make_likelihood()}
            self.models[dtype] = model = VRNN(**asked, dtype=dtype)
            for name, p in model.named_parameters():
                value = self._numbers(name, *p.shape, scale=case.scale / p.shape[-1] ** 0.5).to(dtype)
                p.data = _laid_out(case.layouts.get("parameters", ""), value)
                p.requires_grad_(not name.startswith(case.frozen))
            if case.state == "start":
                parts = len(self._parts()), case.num_layers, case.hidden_size
                model.initial_state = self._numbers("start", *parts).to(dtype)
        model = self.models[dtype]
        model.backend = backend
        model.zero_grad()
        return model

    def _results(self, backend: str, dtype: torch.dtype) -> Results:
        """Every result and, as ``d <name>``, every gradient."""
        case, model = self.case, self._model(backend, dtype)
        leaves = {n: t.to(dtype, copy=True) for n, t in self.inputs.items()}
        for name, leaf in leaves.items():
            leaf.requires_grad_(not name.startswith(case.frozen))
        flags = {n: t.to(dtype) if t.is_floating_point() else t for n, t in self.flags.items()}
        with nullcontext() if case.upstream else torch.no_grad():
            given = {n: _laid_out(self._layout(n), t) for n, t in (leaves | flags).items()}
            parts = [given.pop(f"state.{part}") for part in self._parts() if f"state.{part}" in given]
            given["state"] = tuple(parts) if len(parts) == 2 else parts[0] if parts else None
            results = {n: t for n, t in self._call(model, given).items() if isinstance(t, Tensor)}
        reached = {
            n: t
            for n, t in results.items()
            if t.requires_grad and (case.call != "forward" or n.rpartition(".")[0] in case.upstream)
        }
        upstream = [self._numbers(f"d {n}", *t.shape).to(dtype) for n, t in reached.items()]
        torch.autograd.backward(list(reached.values()), upstream)
        wanted = {n: t for n, t in (leaves | dict(model.named_parameters())).items() if t.requires_grad}
        gradients = {f"d {n}": torch.zeros_like(t) if t.grad is None else t.grad for n, t in wanted.items()}
        return {n: t.detach() for n, t in results.items()} | gradients

    def _layout(self, name: str) -> str:
        return self.case.layouts.get(name.partition(".")[0], "")

    def _call(self, model: VRNN, given: dict[str, Any]) -> Results:
        """What the call of the case returns, flattened: ``state.0``, ``state.1``."""
        case = self.case
        if case.call == "forward":
            options = {"beta": case.beta, "free_nats": case.free_nats, "outputs": case.outputs}
            out = model(**given, **options, **self._masking())
            names = ("loss", "nll", "kl", "elbo", "latent", "state", *case.outputs)
            found = {name: getattr(out, name) for name in names} | out.posterior._asdict()
        elif case.call == "step":
            found, state = {}, given["state"]
            for t in range(case.steps):
                of_t = {name: given[name][t] for name in ("eps", "cond") if name in given}
                found[f"{t}"] = step = model.step(given["x"][t], state, **of_t)
                state = step.state
        elif case.call == "generate":
            found = {"drawn": self._generated(model, given)}
        else:
            options = {"objective": case.call, "num_particles": case.particles, "threshold": case.threshold}
            found = {"bound": model.bound(**given, **options, **self._masking())}
        return {f"{n}.{i}": t for n, value in found.items() for i, t in enumerate(pytree.tree_leaves(value))}

    def _masking(self) -> dict[str, bool]:
        return {"mask_inputs": True} if self.case.mask_inputs else {}

    def _generated(self, model: VRNN, given: dict[str, Any]) -> object:
        """After a prefix, unless a state is given; with the noise that was drawn first, in every dtype."""
        case, cond = self.case, given.get("cond")
        start = {"state": given["state"], "batch_size": case.batch}
        if given["state"] is None:
            start = {"prefix": given["x"], "lengths": given.get("lengths"), "prefix_cond": cond}
        if cond is not None:
            cond = cond.nan_to_num()
        mode = ReplayNoise(self.noise) if self.noise else RecordNoise()
        with mode:
            drawn = model.generate(case.steps, **start, cond=cond, sample_output=not case.mean, temperature=0.75)
        if isinstance(mode, RecordNoise):
            self.noise = mode
        return drawn


def _laid_out(layout: str, tensor: Tensor) -> Tensor:
    """The same values in other places (but for ``"expanded"``, which repeats the first along dimension 1)."""
    if layout == "transposed":
        backwards = tuple(reversed(range(tensor.dim())))
        return tensor.permute(backwards).contiguous().permute(backwards)
    if layout == "sliced":
        return torch.stack([tensor, tensor], -1)[..., 0]
    if layout == "offset":
        return torch.cat([tensor[:1], tensor])[1:]
    if layout == "expanded":
        return tensor[:, :1].expand_as(tensor)
    return tensor
