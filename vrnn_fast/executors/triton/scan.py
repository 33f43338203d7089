"""The two kernels of a scan: what a step does around its stages, and the passes that put all of it in order. Pure.

Each kernel is one loop over time for a tile of the batch. States are carried from step to step in registers; weights
are loaded once before the loop where they fit. What a step reads from memory is read a step ahead where there is room.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ...cell.stages import Begin
from ..cut import initial
from . import emit, order
from .operations import Compute, Leave, Operation, access, for_every_row, store
from .phases import Phase
from .plan import Plan, Tile
from .writer import Printer, Reads, arguments

FORWARD, BACKWARD = "forward_scan", "backward_scan"
ARGUMENTS = "weights", "steps", "batch", "lengths", "order", "resets"


def forward(plan: Plan, resident: frozenset[int], stored: tuple[str, ...], *, ahead: bool, late: bool) -> Phase:
    """Write the forward scan.

    Args:
        resident: numbers of the matrices that are loaded once; the others are streamed in every step.
        stored: the buffers that it writes.
        ahead: whether a step reads what the next one needs from memory.
        late: whether a tile's products wait until somebody needs it. Where operands are large, they do not.

    Raises:
        TypeError: a stage of the scan has no place there.
    """
    memory = order.memory(plan, resident, ())
    lowered = [operation for stage in plan.program.scan for operation in emit.forward(plan, stage)]
    values = order.begun([*_begin(plan, stored), *order.saved(lowered, plan, stored)], memory)
    step = order.found(values, memory)
    operations = [*(order.late(step) if late else step), *_end(plan)]
    return _phase(FORWARD, operations, "a step ahead" if ahead else "at the start", ("0", "s", "t + 1"))


def backward(plan: Plan, resident: frozenset[int], *, on_z: bool, on_eps: bool, ahead: bool, late: bool) -> Phase:
    """Write the reverse scan.

    Args:
        resident, ahead: as in :func:`forward`.
        on_z: whether a gradient reaches z from outside.
        on_eps: whether one is wanted of eps.
        late: whether what a step reads may wait in registers until it is needed.

    Raises:
        TypeError: a stage of the scan has no gradient there.
    """
    begun = _begun(plan, on_z=on_z, on_eps=on_eps)
    memory = order.memory(plan, resident, begun)
    lowered = [operation for stage in reversed(plan.program.scan) for operation in emit.backward(plan, stage)]
    gradients = order.at_once([*_begin_back(plan), *lowered, *_end_back(plan)], plan)
    unwanted = () if on_eps else plan.tiles.get("eps", ())
    summed = order.begun(order.wanted(gradients, unwanted), memory)
    operations = [*order.found(order.kept(summed, plan, begun, ()), memory)]
    reads: Reads = "a step ahead" if ahead else "at the start" if late else "where needed"
    return _phase(BACKWARD, operations, reads, ("longest - 1", "longest - 1 - s", "t - 1"))


def _phase(name: str, operations: Sequence[Operation], reads: Reads, times: tuple[str, str, str]) -> Phase:
    """Return the phase of a scan: a program for every tile of whole groups of particles."""
    lines = Printer(reads, order.both_ways(operations)).loop(operations, *times)
    constants = {name: name for name in ("ROWS", "PARTICLES", "PRECISION", "PTX")}
    programs = "tl.cdiv(batch, ROWS // PARTICLES * PARTICLES)"
    return Phase(name, arguments(ARGUMENTS, operations), lines, programs, constants)


# ---- values


def _begin(plan: Plan, stored: tuple[str, ...]) -> Iterator[Operation]:
    for tile in plan.state_tiles:
        pointer, loaded = _at_an_end(plan, "start", tile)
        yield Compute(makes=(tile.name,), arguments=(pointer,), lines=(f"{tile.name} = {loaded}",), place="once")
    anew = {tile.name: "0.0" for tile in plan.state_tiles}
    pointers: dict[str, None] = {}
    for stage, tile, _ in _begins(plan):
        (term,) = stage.terms
        pointer, anew[tile.name] = for_every_row(term.parameter, term.row + tile.start, tile)
        pointers[pointer] = None
    yield from _reset(anew, tuple(pointers))
    for tile in plan.state_tiles:
        if tile.buffer in stored:
            yield store(tile.name, access(plan, "b", tile))


def _end(plan: Plan) -> Iterator[Operation]:
    for tile in plan.state_tiles:
        yield from _go_on(plan, tile.name, tile.after, "final", tile)


# ---- gradients


def _begun(plan: Plan, *, on_z: bool, on_eps: bool) -> tuple[Tile, ...]:
    """List the tiles whose gradients begin in memory."""
    parts = (*plan.read_after, *((plan.sample.z,) if on_z and plan.sample is not None else ()))
    noisy = on_eps and plan.divergence is not None and plan.divergence.z is not None  # it meets the noise past z too
    tiles = (*(tile for part in parts for tile in plan.tiles_of(part)), *(plan.tiles["eps"] if noisy else ()))
    return tuple(dict.fromkeys(tiles))


def _begin_back(plan: Plan) -> Iterator[Operation]:
    for tile in plan.state_tiles:
        pointer, loaded = _at_an_end(plan, "d_final", tile)
        nothing = f"{tile.later} = tl.zeros((ROWS, {tile.padded}), tl.float32)"
        lines = nothing, f"if {pointer} is not None:", f"    {tile.later} = {loaded}"
        yield Compute(makes=(tile.later,), arguments=(pointer,), lines=lines, place="once")


def _end_back(plan: Plan) -> Iterator[Operation]:
    for buffer in plan.summed:
        yield from (Leave(tile=tile) for tile in plan.tiles[buffer])
    yield from _leave_initial(plan)
    yield from _reset({tile.gradient: "0.0" for tile in plan.state_tiles})
    for tile in plan.state_tiles:
        yield from _go_on(plan, tile.later, tile.gradient, "d_start", tile)


# ---- both


def _at_an_end(plan: Plan, prefix: str, tile: Tile) -> tuple[str, str]:
    """Return the argument that points to a state at an end of the sequence, and what reads a tile there."""
    found = access(plan, prefix, tile)
    loaded = f"on.load({found.pointer}, b.to(tl.int64), inside, {found.columns('PTX')}).to(tl.float32)"
    return found.pointer, loaded


BEGINS = "if resets is not None:", "    begins = tl.load(resets + row, mask=active, other=0) != 0"


def _reset(to: Mapping[str, str], pointers: tuple[str, ...] = ()) -> Iterator[Operation]:
    """Set variables to what they are where a sequence begins anew."""
    lines = (*BEGINS, *(f"    {name} = tl.where(begins[:, None], {then}, {name})" for name, then in to.items()))
    if names := tuple(to):
        yield Compute(makes=names, reads=names, arguments=pointers, lines=lines)


def _begins(plan: Plan) -> Iterator[tuple[Begin, Tile, Tile]]:
    """Yield the tiles of states that begin anew with something, and those of that."""
    for stage in plan.program.scan:
        if isinstance(stage, Begin):
            pairs = emit.pairs(plan, stage.target, initial(stage.target))
            yield from ((stage, state, own) for state, own in pairs)


def _leave_initial(plan: Plan) -> Iterator[Operation]:
    """Write the gradients of what states begin anew with: those of the rows that do, and zeros."""
    for _, state, own in _begins(plan):
        zeros = f"{own.gradient} = tl.zeros((ROWS, {own.padded}), tl.float32)"
        then = f"    {own.gradient} = tl.where(begins[:, None], {state.gradient}, 0.0)"
        yield Compute(makes=(own.gradient,), reads=(state.gradient,), lines=(zeros, *BEGINS, then))
        yield Leave(tile=own)


def _go_on(plan: Plan, name: str, then: str, prefix: str, tile: Tile) -> Iterator[Operation]:
    """Set a variable to ``then`` in the rows that the step belongs to, and write it behind the loop."""
    yield Compute(makes=(name,), reads=(then,), lines=(emit.where_active(name, then),))
    found = access(plan, prefix, tile)
    line = f"on.store({found.pointer}, b.to(tl.int64), inside, {name}, {found.columns('PTX')})"
    yield Compute(reads=(name,), arguments=(found.pointer,), lines=(line,), place="last")
