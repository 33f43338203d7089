"""A whole batch of sequences, forward and backward: one launch for each scan, and a few for what is around it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ...cell.spec import CellSpec
from ...cell.stages import Keep
from ..base import Batch, Want
from ..call import Call, Remembered, backward, forward, on
from ..rows import aligned, allocate
from . import over_rows, pack, passes, tuning
from .over_rows import RowOptions
from .passes import Passes, RowPass
from .phases import TURNS, Phase
from .plan import argument, identifier
from .tuning import Config

launches: Counter[str] = Counter()  # of kernels of ours in this process: those of a step, and "generate"


StepLaunches: TypeAlias = tuple[tuple[str, tuple[str, ...]], ...]  # launches, each with its phases if it has several


def of_a_step(there: Passes, back: Passes) -> StepLaunches:
    """Return the launches of a training step on the loss alone, from the passes around both scans, in their order."""
    before = back.last if any(each.values.program.scan for each in back.last) else ()
    forward = *_named("before", there.first), "scan", *_named("after", there.last)
    backward = *_named("after backward", back.first), "scan", *_named("before backward", before)
    weights = "weights", ()
    return weights, ("forward", forward), weights, ("backward", backward), ("weight gradients", ())


def _named(name: str, of: tuple[RowPass, ...]) -> tuple[str, ...]:
    return (name if len(of) == 1 else f"{name} in {len(of)} parts",) if of else ()


class _Turn(NamedTuple):
    """A phase of the launch that comes next."""

    phase: Phase
    programs: int
    arguments: Mapping[str, Any]


class Launch(Call):
    """One call: its sizes, its rows, its configuration. Where the cell runs on its own (``mean`` as in :func:`plan`),
    the noise of its outputs is in the place of x."""

    def __init__(
        self,
        spec: CellSpec,
        given: Batch,
        parameters: Sequence[Tensor],
        precision: str,
        mean: bool | None = None,
        reverse: bool = False,
        config: Config | None = None,
    ) -> None:
        self.precision = precision
        particles = 1 if given.uniforms is None else given.uniforms.shape[2]
        self.config = config or tuning.choose(spec, given.x.dtype, given.x.device, precision, mean, particles)
        self.plan = self.config.plan(spec, mean, reverse=reverse)
        self.chip, size = tuning.chip_of(given.x.device), given.x.dtype.itemsize
        self.around: Passes | None = None  # what the kernels do over rows; None where torch does their work
        if mean is None:
            self.around = tuning.around(spec, self.config, size, precision, self.chip, reverse=reverse)
        self.adds_z = self.around is not None
        self.masks = self.around is not None and (reverse or bool(self.around.last))
        super().__init__(spec, given, parameters, self.plan, noise=mean is not None)
        if self.lengths is not None:
            self.order = allocate(given.x, (self.batch,), dtype=torch.int64)
        self._workspace: Tensor | None = None
        self._turns: Tensor | None = None
        self._next: list[_Turn] = []

    def workspace(self) -> Tensor:
        """Return the weights as all kernels of this call read them; the order of rows is found on the way."""
        from . import kernels

        if self._workspace is None:
            plans = (self.plan,) if self.around is None else self.around.plans
            space = self._workspace = allocate(self.given.x, (max(plan.workspace for plan in plans),))
            self._turns = allocate(self.given.x, (2,), dtype=torch.int32)
            phase, programs, names = kernels.packing(self.spec, plans)
            named = {argument(p): aligned(self.rows.parameters[p]) for p in names}
            arguments = {"workspace": space, TURNS: self._turns, **named, "PRECISION": self.precision}
            arguments |= {"PARTICLES": self.particles, "batch": self.batch}
            arguments |= {"lengths": self.lengths, "order": self.order}
            if self.lengths is not None:
                programs += -(-self.batch // (self.particles * pack.SEQUENCES))
            self.launch("weights", kernels.kernel("weights", (phase,)), programs, arguments)
        return self._workspace

    def take(self, phase: Phase, programs: int, arguments: Mapping[str, Any]) -> None:
        """Put a phase behind those of the launch that comes next."""
        self._next.append(_Turn(phase, programs, arguments))

    def go(self, way: str) -> None:
        """Launch what has been put together."""
        from . import kernels
        from .versions import INTERPRETED

        if turns := self._next:
            kernel = kernels.kernel(way.replace(" ", "_"), tuple(turn.phase for turn in turns))
            arguments: dict[str, Any] = {TURNS: self._turns} if len(turns) > 1 else {}
            for turn in turns:
                arguments |= turn.arguments
                if "PTX" in turn.phase.constants:
                    arguments["PTX"] = not (self.chip.amd or INTERPRETED)
            self._next = []
            self.launch(way, kernel, sum(turn.programs for turn in turns), arguments)

    def before(self) -> None:
        """See :class:`Call`."""
        if self.around is None:
            return super().before()
        options = RowOptions(self.spec.std, stored=frozenset(self.plan.parts), cleared=self.cleared())
        self.take_rows(over_rows.BEFORE, self.around.first, options)

    def cleared(self) -> tuple[tuple[str, int], ...]:
        """Name the results that only the scan writes, which knows of no padding."""
        if not self.masks or self.cut.sample is None or self.cut.divergence is None:
            return ()
        parts = self.cut.sample.z, self.cut.sample.std, self.cut.divergence.prior
        made = (part.buffer for part in parts if part.buffer in self.plan.made)
        return tuple((f"b_{identifier(name)}", self.plan.width(name)) for name in made)

    def after(self, want: Want) -> None:
        """See :class:`Call`."""
        if self.around is None or not self.around.last:
            self.go("forward")
            return super().after(want)
        stored = {self.cut.likelihood.source.buffer} if want.raw else set()
        if want.prior and self.cut.divergence is not None:
            stored |= {part.buffer for part in (self.cut.divergence.prior, self.cut.divergence.prior_std)}
        options = RowOptions(self.spec.std, results=True, stored=frozenset(stored))
        self.take_rows(over_rows.AFTER, self.around.last, options)
        return self.go("forward")

    def after_backward(self, upstream: Mapping[str, Tensor], wanted: set[str], keep: Keep) -> None:
        """See :class:`Call`."""
        if self.around is None:
            return super().after_backward(upstream, wanted, keep)
        if keep == Keep.STORED:
            self.around = replace(self.around, again=())
        self.take_rows(over_rows.AGAIN, self.around.again, RowOptions(self.spec.std))
        options = RowOptions(
            self.spec.std,
            stored=passes.needed(self.plan).difference(self.rows.value),
            given=frozenset(upstream),
            wanted=frozenset(wanted),
            cleared=(("g_eps", self.plan.width("eps")),) if "eps" in wanted else (),
        )
        self.take_rows(over_rows.AFTER_BACKWARD, self.around.first, options, upstream)

    def before_backward(self, upstream: Mapping[str, Tensor], wanted: set[str]) -> None:
        """See :class:`Call`."""
        if self.around is None:
            return super().before_backward(upstream, wanted)
        from . import kernels

        inputs, of = wanted & {"x", "cond"}, self.around.last
        if inputs or any(each.values.program.scan for each in of):
            options = RowOptions(
                self.spec.std,
                stored=passes.needed(self.plan).difference(self.rows.value),
                wanted=frozenset(inputs),
                begun=frozenset({t.buffer for t in self.plan.begun} | (inputs & self.rows.gradient.keys())),
            )
            self.take_rows(over_rows.BEFORE_BACKWARD, of, options)
        self.go("backward")
        rows, widest = self.rows, min(self.config.widest, 64)
        phase, programs = kernels.gradients(self.spec, self.plan, frozenset(rows.reached), widest)
        rows.d_parameters |= {name: allocate(p, tuple(p.shape)) for name, p in rows.parameters.items()}
        tensors = {argument(name): d for name, d in rows.d_parameters.items()}
        arguments = self.tensors(phase, {}) | tensors | self.of_rows()
        self._next.append(_Turn(phase, programs, arguments))
        self.go("weight gradients")

    def take_rows(
        self,
        name: str,
        of: tuple[RowPass, ...],
        options: RowOptions,
        upstream: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Put phases over all rows next; ``upstream`` are the gradients of results that they read, by name."""
        from . import kernels

        height = tuning.height(self.config, self.given.x.dtype.itemsize, self.precision)
        for number, each in enumerate(of):
            own = replace(options, stored=options.stored | each.leaves, cleared=() if number else options.cleared)
            phase = kernels.rows(name if len(of) == 1 else f"{name}_{number + 1}", each, own)
            given = {"weights": self.workspace(), over_rows.HEIGHT: height, **self.of_rows()}
            self.take(phase, -(-self.rows.count // height), self.tensors(phase, upstream or {}) | given)

    def of_rows(self) -> dict[str, Any]:
        """Name what all kernels over rows are told."""
        told = {"count": self.rows.count, "batch": self.batch, "lengths": self.lengths}
        return {**told, "PRECISION": self.precision}

    def tensors(self, phase: Phase, upstream: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
        """Find the tensors that a phase names: values (b) and gradients (g) of buffers, gradients of results (u), and
        parameters (p)."""
        rows, found = self.rows, dict[str, Tensor | None](self.parameters(phase))
        buffers = {identifier(name): name for name in rows.widths}
        for given in phase.arguments:
            kind, _, name = given.partition("_")
            if given == "mask":
                found[given] = self.flags(self.given.mask)
            elif kind == "u":
                found[given] = upstream[name]
            elif given in ("b_kl", "b_nll"):
                found[given] = allocate(rows.like, (rows.count,))
                setattr(rows, name, found[given])
            elif given == "b_mean":
                found[given] = rows.mean = allocate(rows.like, (rows.count, self.spec.latent_size))
            elif kind in "bg" and name in buffers:
                found[given] = rows.buffer(rows.value if kind == "b" else rows.gradient, buffers[name])
        return found

    def parameters(self, phase: Phase) -> dict[str, Tensor]:
        """Find the parameters that a phase reads as they are."""
        named = ((argument(name), p) for name, p in self.rows.parameters.items())
        return {name: aligned(p) for name, p in named if name in phase.arguments}

    def states(
        self, start: str, starts: Sequence[Tensor | None], end: str, ends: Sequence[Tensor]
    ) -> dict[str, Tensor | None]:
        """Name the states that a scan begins with and ends in as its arguments."""
        found: dict[str, Tensor | None] = {}
        for name, first, last in zip(self.plan.states, starts, ends, strict=True):
            found |= {f"{start}_{identifier(name)}": first, f"{end}_{identifier(name)}": last}
        return found

    def starts(self) -> list[Tensor]:
        return [aligned(start) for start in self.given.state]

    def forward_scan(self, stored: tuple[str, ...], final: Sequence[Tensor], ancestors: Tensor) -> None:
        """See :class:`Call`. A particle filter's kernel leaves nll and kl as well."""
        from . import kernels

        cut, rows, like = self.plan, self.rows, self.given.x
        tensors: dict[str, Any] = {
            f"b_{identifier(name)}": rows.buffer(rows.value, name) for name in (*cut.given, *stored)
        }
        tensors |= self.states("start", self.starts(), "final", final)
        if self.given.uniforms is not None:
            tensors |= {"b_uniforms": aligned(self.given.uniforms), "b_ancestors": ancestors}
            tensors |= {"enough": self.given.threshold * self.particles, "mask": self.flags(self.given.mask)}
            rows.nll = tensors["b_nll"] = allocate(like, (rows.count,), 0.0)
            if cut.divergence is not None:
                rows.kl = tensors["b_kl"] = allocate(like, (rows.count,), 0.0)
        self.take_scan(kernels.forward(self.spec, self.config, like.element_size(), stored), tensors)

    def backward_scan(
        self,
        given: tuple[str, ...],
        d_final: Sequence[Tensor | None],
        d_start: Sequence[Tensor],
        ancestors: Tensor,
        *,
        on_z: bool,
        on_eps: bool,
    ) -> None:
        """See :class:`Call`."""
        from . import kernels

        cut, rows = self.plan, self.rows
        values = (*cut.values, *(["eps"] if cut.sample else []))
        tensors: dict[str, Any] = {f"b_{identifier(name)}": rows.value[name] for name in values}
        tensors |= {f"g_{identifier(name)}": rows.buffer(rows.gradient, name) for name in given}
        tensors |= self.states("d_final", d_final, "d_start", d_start)
        if cut.resamples:
            tensors["b_ancestors"] = ancestors
        self.take_scan(kernels.backward(self.spec, self.config, self.given.x.element_size(), on_z, on_eps), tensors)
        if self.around is None:  # torch goes on
            self.go("backward")

    def take_scan(self, phase: Phase, arguments: Mapping[str, Tensor | float | None]) -> None:
        """Put a scan over all tiles of the batch next."""
        given = {
            **arguments,
            **self.parameters(phase),
            "weights": self.workspace(),
            "steps": self.steps,
            "batch": self.batch,
            "lengths": self.lengths,
            "order": self.order,
            "resets": self.flags(self.given.resets),
            "ROWS": self.config.rows,
            "PARTICLES": self.particles,
            "PRECISION": self.precision,
        }
        whole = self.config.rows // self.particles * self.particles
        self.take(phase, -(-self.batch // whole), given)

    def launch(self, way: str, kernel: Any, programs: int, arguments: Mapping[str, Any]) -> None:
        """Launch so many programs, on the current stream of the tensors' device."""
        from .versions import options

        launches[way] += 1
        most = tuning.told(way, self.given.x.dtype.itemsize, self.chip)
        with on(self.given.x.device):
            kernel[(programs,)](**arguments, **options(self.config.warps, most))


class _Timed(Launch):
    """A call that repeats each scan, and knows what they take.

    A scan writes where it has read, so that the numbers of a repeat mean nothing.
    """

    seconds = 0.0
    repeats = 10

    def launch(self, way: str, kernel: Any, programs: int, arguments: Mapping[str, Any]) -> None:
        once = partial(super().launch, way, kernel, programs, arguments)
        once()
        if way in ("forward", "backward"):
            self.seconds += _seconds(once, self.given.x.device, self.repeats) / self.repeats


def _seconds(once: Callable[[], None], device: torch.device, repeats: int) -> float:
    """Time so many launches, one behind the other."""
    if device.type != "cuda":
        start = perf_counter()
        for _ in range(repeats):
            once()
        return perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with on(device):
        begin.record()
        for _ in range(repeats):
            once()
        end.record()
        end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def scan_seconds(
    spec: CellSpec,
    config: Config,
    dtype: torch.dtype,
    device: torch.device,
    steps: int,
    batch: int,
    precision: str = "ieee",
) -> float:
    """Time both scans of a training step in one configuration, with the phases in their launches, by the device's
    clock."""
    there, back = (_Timed(*given) for given in _directions(spec, config, dtype, device, steps, batch, precision))
    _train(there, back)
    return there.seconds + back.seconds


class _Shown(Launch):
    """A call that launches nothing, and remembers the kernels."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.kernels: list[tuple[str, Any]] = []

    def launch(self, way: str, kernel: Any, programs: int, arguments: Mapping[str, Any]) -> None:
        self.kernels.append((way, kernel))


def training_kernels(
    spec: CellSpec, config: Config, dtype: torch.dtype, precision: str = "ieee"
) -> list[tuple[str, Any]]:
    """Return the kernels of a training step on the loss alone, in their order, by what they are."""
    there, back = (_Shown(*given) for given in _directions(spec, config, dtype, torch.device("cpu"), 1, 1, precision))
    _train(there, back)
    return there.kernels + back.kernels


def training_sources(
    spec: CellSpec, config: Config, dtype: torch.dtype, precision: str = "ieee"
) -> list[tuple[str, str]]:
    """Return the sources of :func:`training_kernels`."""
    from . import kernels

    return [(way, kernels.source_of(kernel)) for way, kernel in training_kernels(spec, config, dtype, precision)]


def _directions(
    spec: CellSpec, config: Config, dtype: torch.dtype, device: torch.device, steps: int, batch: int, precision: str
) -> Iterator[tuple[Any, ...]]:
    """Yield the arguments of the two calls of a training step, with random numbers."""
    from ..problem import Problem

    particles = 1 if spec.measure == "particle_filter" else 0
    problem = Problem.draw(spec, steps, batch, particles=particles)
    inputs = {name: t.to(device, dtype) for name, t in (problem.inputs | problem.flags).items()}
    state = tuple(inputs[f"state{i}"] for i in range(spec.state_tensors))
    given = Batch(inputs["x"], inputs["eps"], state, cond=inputs.get("cond"), uniforms=inputs.get("uniforms"))
    parameters = [inputs[p.name] for p in spec.parameters()]
    for reverse in (False, True):
        yield spec, given, parameters, precision, None, reverse, config


def _train(there: Launch, back: Launch) -> None:
    found = forward(there, Keep.STORED, Want())
    upstream = {"nll": torch.ones_like(found.nll), "kl": torch.ones_like(found.kl)}
    remembered = Remembered(found.z, found.std, found.ancestors, found.saved, Keep.STORED)
    backward(back, upstream, remembered, set())


def make(spec: CellSpec, batch: Batch, parameters: Sequence[Tensor], precision: str, *, reverse: bool) -> Launch:
    """Make a call without or with a reverse scan; see :class:`Launch`."""
    return Launch(spec, batch, parameters, precision, reverse=reverse)


def generate(
    spec: CellSpec, batch: Batch, parameters: Sequence[Tensor], precision: str, *, mean: bool
) -> tuple[Tensor, list[Tensor]]:
    """Let a cell run on its own in one launch, with noise (T, B, X) in the place of x: x (T, B, X) and the state."""
    from . import kernels

    own = Launch(spec, batch, parameters, precision, mean)
    cut, rows = own.plan, own.rows
    rows.run(cut.program.before)
    tensors: dict[str, Any] = {f"b_{identifier(name)}": rows.value[name] for name in cut.given}
    tensors["b_x"] = rows.buffer(rows.value, "x")
    state = [allocate(batch.x, tuple(start.shape)) for start in batch.state]
    tensors |= own.states("start", own.starts(), "final", state)
    phase = kernels.forward(spec, own.config, batch.x.element_size(), ("x",), mean)
    own.take_scan(phase, {name: t for name, t in tensors.items() if name in phase.arguments})
    own.go("generate")
    return own.result(rows.value["x"]), state
