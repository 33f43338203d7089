"""The two kernels of a scan as Triton source, stage by stage. Pure: the same plan gives the same text.

Each kernel is one loop over time for a tile of the batch. A stage becomes a line or two for each of its tiles, calling
functions.py; states are carried from step to step in registers, weights are loaded once before the loop where they fit.
What a step reads from memory is read a step ahead.

Below, each stage's forward stands beside its backward; STAGES lists them. scan.py says what a step holds, writer.py
writes the lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from ...cell.spec import Std
from ...cell.stages import (
    Activate,
    Add,
    Begin,
    Bias,
    Dense,
    Divergence,
    Draw,
    Likelihood,
    Normalize,
    Recur,
    Resample,
    Sample,
    Slice,
    Stage,
)
from ..cut import halves, observed
from ..operators import BEGINS, NORMALIZES
from .phases import Phase
from .plan import Plan, Tile
from .scan import Backward, Forward

FORWARD, BACKWARD = "forward_scan", "backward_scan"


def forward(plan: Plan, resident: frozenset[int], stored: tuple[str, ...], *, ahead: bool, late: bool) -> Phase:
    """Write the forward scan.

    Args:
        resident: numbers of the matrices that are loaded once; the others are streamed in every step.
        stored: the buffers that it writes.
        ahead: whether a step reads what the next one needs from memory.
        late: whether a tile's products wait until somebody needs it.

    Raises:
        TypeError: a stage of the scan has no place there.
    """
    scan = Forward(plan, resident, stored, ahead=ahead, late=late)
    for scan.number, stage in enumerate(plan.program.scan):
        emitter(stage).forward(scan, stage)
        scan.save(*scan.last_writer)
    return scan.phase(FORWARD)


def backward(plan: Plan, resident: frozenset[int], *, on_z: bool, on_eps: bool, ahead: bool, late: bool) -> Phase:
    """Write the reverse scan; with a gradient that reaches z from outside, and one wanted of eps, or not.

    Raises:
        TypeError: a stage of the scan has no gradient there.
    """
    scan = Backward(plan, resident, ahead=ahead, late=late, on_z=on_z, on_eps=on_eps)
    for scan.number, stage in reversed(tuple(enumerate(plan.program.scan))):
        emit = emitter(stage).backward
        if isinstance(emit, str):
            raise TypeError(f"{type(stage).__name__} has no gradient in the scan: {emit}")
        emit(scan, stage)
    return scan.phase(BACKWARD)


class Emitter(NamedTuple):
    """How a stage is written in the two kernels; of a gradient that is not in the scan, why."""

    forward: Callable[[Any, Any], None]
    backward: Callable[[Any, Any], None] | str


def emitter(stage: Stage) -> Emitter:
    if type(stage) in REFUSED:
        raise TypeError(f"{type(stage).__name__} is not run here: {REFUSED[type(stage)]}")
    if type(stage) not in STAGES:
        raise TypeError(f"{type(stage).__name__} is not among the stages that emit.py can write")
    return STAGES[type(stage)]


# ---- sums


def _zeros_forward(scan: Forward, stage: Bias) -> None:
    if stage.terms:
        raise TypeError("a bias of parameters belongs before the scan")
    for tile in scan.plan.tiles_of(stage.target):
        scan.put(tile, f"tl.zeros((ROWS, {tile.padded}), tl.float32)")


def _dense_forward(scan: Forward, stage: Dense) -> None:
    matrix, tiles_of = scan.plan.matrix(stage), scan.plan.tiles_of
    first = () if stage.bias is None else (None,)
    for source in (*first, *tiles_of(stage.source)):
        for target in tiles_of(stage.target):
            scan.term(matrix, target, source)


def _dense_backward(scan: Backward, stage: Dense) -> None:
    for target in scan.plan.tiles_of(stage.target):
        scan.back(scan.plan.matrix(stage), target)


def _add_forward(scan: Forward, stage: Add) -> None:
    for target, source in pairs(scan.plan, stage.target, stage.source):
        scan.put(target, f"{scan.value(target)} + {scan.value(source)}")


def _add_backward(scan: Backward, stage: Add) -> None:
    for target, source in pairs(scan.plan, stage.target, stage.source):
        scan.add(source, scan.gradient(target))


# ---- activations


def _activate_forward(scan: Forward, stage: Activate) -> None:
    for source, target in pairs(scan.plan, stage.source, stage.target):
        scan.put(target, f'on.activate({scan.value(source)}, "{stage.activation}")')


def _activate_backward(scan: Backward, stage: Activate) -> None:
    for source, target in pairs(scan.plan, stage.source, stage.target):
        given = f"{scan.value(source)}, {scan.gradient(target)}"
        scan.put(source, f'on.activate_backward({given}, "{stage.activation}")')
        scan.complete(source)


# ---- the latent variable


def _sample_forward(scan: Forward, stage: Sample) -> None:
    for mean, raw, eps, std, z in _sampled(scan.plan, stage):
        scan.put(std, deviation_of(scan.value(raw), stage.transform))
        scan.put(z, f"{scan.value(mean)} + {std.name} * {scan.value(eps)}")


def _sample_backward(scan: Backward, stage: Sample) -> None:
    for mean, raw, eps, _, z in _sampled(scan.plan, stage):
        d = scan.gradient(z)
        if scan.on_eps:
            scan.add(eps, f"{d} * {deviation_of(scan.value(raw), stage.transform)}")
            scan.keep(eps)
        scan.add(mean, d)
        total = f"{scan.gradient(raw)} + {d} * {scan.value(eps)}"
        scan.put(raw, f"on.deviation_backward({scan.value(raw)}, {total}, {constants_of(stage.transform)})")
        scan.complete(mean, raw)


def _sampled(plan: Plan, stage: Sample) -> Iterator[tuple[Tile, ...]]:
    """Put together tiles of mean, raw, eps, std and z that belong together."""
    yield from pairs(plan, *halves(stage.source), Slice("eps", 0, stage.z.width), stage.std, stage.z)


# ---- the cell


def _recur_forward(scan: Forward, stage: Recur) -> None:
    for gates, candidate, h, c, output in _recurring(scan.plan, stage):
        values, names = scan.values(gates), ", ".join(g.name for g in gates)
        if candidate is not None:
            given = f"{values}, {scan.value(candidate)}, {scan.value(h)}"
            scan.step.append(f"{names}, after_{h.name} = on.gru({given})")
        elif c is not None:
            scan.step.append(f"{names}, after_{h.name}, after_{c.name} = on.lstm({values}, {scan.value(c)})")
        else:
            scan.step.append(f"after_{h.name} = {values}")
        if output is not None:
            scan.put(output, f"after_{h.name}")
        scan.save(*gates, *(() if output is None else (output,)))


def _recur_backward(scan: Backward, stage: Recur) -> None:
    for gates, candidate, h, c, output in _recurring(scan.plan, stage):
        values = scan.values(gates) if stage.cell != "rnn" else ""
        names = ", ".join(f"d_{g.name}" for g in gates)
        scan.known |= {f"d_{g.name}" for g in gates}
        d = f"later_{h.name}"
        if output is not None:
            d = f"{d} + {scan.gradient(output)}"
        if candidate is not None:
            scan.known.add(f"d_{candidate.name}")
            given = f"{values}, {scan.value(candidate)}, {scan.value(h)}, {d}"
            scan.step.append(f"{names}, d_{candidate.name}, past = on.gru_backward({given})")
            scan.add(h, "past")
        elif c is not None:
            scan.known.add(f"d_{c.name}")
            given = f"{values}, {scan.value(c)}, {d}, later_{c.name}"
            scan.step.append(f"{names}, d_{c.name} = on.lstm_backward({given})")
        else:
            scan.step.append(f"{names} = {d}")
        scan.complete(*gates, *(() if candidate is None else (candidate,)))


class _Recurring(NamedTuple):
    """Tiles of one cell update that belong together."""

    gates: tuple[Tile, ...]
    candidate: Tile | None
    h: Tile
    c: Tile | None
    output: Tile | None


def _recurring(plan: Plan, stage: Recur) -> Iterator[_Recurring]:
    width, tiles_of = stage.h.width, plan.tiles_of
    starts = range(stage.gates.start, stage.gates.start + stage.gates.width, width)
    gates = pairs(plan, *(Slice(stage.gates.buffer, start, width) for start in starts))
    h = tiles_of(stage.h)
    others = (tiles_of(part) if part else (None,) * len(h) for part in (stage.candidate, stage.c, stage.output))
    for own, tile, candidate, c, output in zip(gates, h, *others, strict=True):
        yield _Recurring(own, candidate, tile, c, output)


# ---- particles: what weighs them, and how they go on


def _log_ratio_forward(scan: Forward, stage: Divergence) -> None:
    if stage.z is None:
        raise TypeError("the divergence of two densities belongs behind the scan")
    parts = (stage.z, replace(stage.z, buffer="eps"), stage.posterior_std, *halves(stage.prior))
    for tiles in pairs(scan.plan, *parts):
        *given, raw = map(scan.value, tiles)
        scan.add_up("kl", f"on.log_ratio({', '.join(given)}, {deviation_of(raw, stage.transform)})", tiles[0])


def _likelihood_forward(scan: Forward, stage: Likelihood) -> None:
    gaussian = stage.kind == "gaussian"
    parts = halves(stage.source) if gaussian else (stage.source,)
    for x, *raw in pairs(scan.plan, observed(stage), *parts):
        given = scan.values((x, *raw)) + (f", {constants_of(stage.transform)}" if gaussian else "")
        there = f"on.load({scan.argument('mask')}, row, active, {scan.columns(x, 'mask')})"
        scan.step.append(f"terms = on.{stage.kind}({given})")
        scan.step.append("if mask is not None:")
        scan.step.append(f"    terms = tl.where({there} != 0, terms, 0.0)")
        scan.add_up("nll", "terms", x)


def _resample_forward(scan: Forward, stage: Resample) -> None:
    scan.once.append("since = tl.zeros((ROWS,), tl.float32)")
    scan.load_row("uniforms", "tl.float32")
    scan.argument("enough")
    for name in ("nll", "kl"):
        if name in scan.known:
            scan.step.append(f"since = since - {name}")
            scan.step.append(f"tl.store({scan.pointer('b', name)} + row, {name}, mask=active)")
    scan.step += [
        "goes_on = on.running(t + 1, length)",
        "ancestors = on.resample(since, uniforms, enough, goes_on, ROWS, PARTICLES)",
        "since = tl.where(ancestors < 0, since, 0.0)",
        f"tl.store({scan.pointer('b', 'ancestors')} + row, ancestors.to(tl.int64), mask=active)",
        "chosen = on.chosen(ancestors, ROWS, PARTICLES)",
    ]
    scan.step += [f"after_{tile.name} = on.take(after_{tile.name}, chosen)" for tile in scan.states]


def _resample_backward(scan: Backward, stage: Resample) -> None:
    scan.load_row("ancestors", "tl.int32")
    for later in (f"later_{tile.name}" for tile in scan.states):
        scan.keep_active(later, f"on.give_back({later}, ancestors, ROWS, PARTICLES)")


# ---- a cell that runs on its own


def _draw_forward(scan: Forward, stage: Draw) -> None:
    if stage.kind == "bernoulli":
        for logit, noise, x in pairs(scan.plan, stage.source, stage.noise, stage.x):
            if stage.mean:
                scan.put(x, f"on.sigmoid({scan.value(logit)})")
            else:
                scan.put(x, f"on.bernoulli_draw({scan.value(logit)}, {scan.value(noise)})")
    else:
        for centre, raw, noise, x in pairs(scan.plan, *halves(stage.source), stage.noise, stage.x):
            scan.put(x, scan.value(centre))
            if not stage.mean:
                scan.put(x, f"{x.name} + {deviation_of(scan.value(raw), stage.transform)} * {scan.value(noise)}")


WEIGHED = "none passes from a particle's weight to a state, so it is computed behind the scan, by rows.py"

REFUSED: dict[type[Stage], str] = {Begin: BEGINS, Normalize: NORMALIZES}

STAGES: dict[type[Stage], Emitter] = {
    Bias: Emitter(_zeros_forward, "zeros have none, and parameters are added before the scan, by rows.py"),
    Dense: Emitter(_dense_forward, _dense_backward),
    Add: Emitter(_add_forward, _add_backward),
    Activate: Emitter(_activate_forward, _activate_backward),
    Sample: Emitter(_sample_forward, _sample_backward),
    Recur: Emitter(_recur_forward, _recur_backward),
    Divergence: Emitter(_log_ratio_forward, WEIGHED),
    Likelihood: Emitter(_likelihood_forward, WEIGHED),
    Resample: Emitter(_resample_forward, _resample_backward),
    Draw: Emitter(_draw_forward, "a cell that runs on its own is given nothing to learn from"),
}


def pairs(plan: Plan, *parts: Slice) -> Iterator[tuple[Tile, ...]]:
    """Put together tiles of slices of the same width that belong together."""
    yield from zip(*map(plan.tiles_of, parts), strict=True)


def constants_of(std: Std) -> str:
    """Return the constants of functions.deviation."""
    scale = 0.5 if std.kind == "log_variance" else std.sharpness
    low, high = (None if math.isinf(bound) else bound for bound in std.clamp)
    least = None if std.plain else std.min_std
    return ", ".join(map(repr, (std.kind == "softplus", std.offset, scale, std.floor, least, low, high)))


def deviation_of(raw: str, std: Std) -> str:
    return f"on.deviation({raw}, {constants_of(std)})"
