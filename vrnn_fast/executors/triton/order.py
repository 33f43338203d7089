"""Passes over a program's operations: what is written to memory and read from it, where, and in which order. Pure.

Registers are what there is least of, so sums live as short as they can: on the way back a gradient goes through the
products that made its tile as soon as it is whole, and forward a tile's products may wait until it is needed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ...cell.stages import Normalize
from .operations import (
    Back,
    Fetch,
    Leave,
    Load,
    Operation,
    Share,
    Spread,
    Store,
    TileOperand,
    TileProduct,
    Weight,
    Whole,
    access,
    back,
    bias_of,
    for_every_row,
    load,
    scaling_of,
    store,
    weights_of,
)
from .plan import Plan, Tile


def memory(plan: Plan, resident: Collection[int], gradients: Iterable[Tile]) -> dict[str, Fetch]:
    """List what may be read, by variable: weights, those of ``resident`` matrices once; all values; and gradients that
    begin in memory."""
    found: dict[str, Fetch] = {}
    for matrix in plan.matrices:
        stays = matrix.number in resident
        for target in matrix.targets:
            if matrix.stage.bias is not None and not plan.reverse:
                name = bias_of(matrix, target)
                line = f"{name} = on.bias(weights, {matrix.bias(target)}, {target.padded})"
                found[name] = Weight(makes=(name,), line=line, resident=stays)
            for source in matrix.sources:
                name, (rows, columns) = weights_of(matrix, target, source), (source, target)
                if plan.reverse:
                    rows, columns = columns, rows
                at = matrix.weights(target, source)
                line = f"{name} = on.weight(weights, {at}, {rows.padded}, {columns.padded})"
                found[name] = Weight(makes=(name,), line=line, resident=stays)
    for stage in plan.program.scan:
        if isinstance(stage, Normalize):
            found |= _scaling(plan, stage)
    for tiles in plan.tiles.values():
        found |= {tile.name: load(tile.name, access(plan, "b", tile)) for tile in tiles}
    return found | {tile.gradient: load(tile.gradient, access(plan, "g", tile)) for tile in gradients}


def _scaling(plan: Plan, stage: Normalize) -> Iterator[tuple[str, Weight]]:
    """List what the columns of a normalisation are scaled and shifted by, the same for every row."""
    for term, leaf in zip(stage.terms, ("weight", "bias"), strict=True):
        for tile in plan.tiles_of(stage.target):
            name, at = scaling_of(tile, leaf), term.row + tile.start - stage.target.start
            pointer, loaded = for_every_row(term.parameter, at, tile)
            yield name, Weight(makes=(name,), arguments=(pointer,), line=f"{name} = {loaded}", resident=False)


# ---- values


def saved(operations: Sequence[Operation], plan: Plan, stored: Collection[str]) -> Iterator[Operation]:
    """Write to memory the tiles of ``stored`` buffers, each where it is whole for the last time."""
    last: dict[Tile, int] = {}
    for number, operation in enumerate(operations):
        if isinstance(operation, Whole):
            last |= dict.fromkeys(operation.tiles, number)
    for number, operation in enumerate(operations):
        if isinstance(operation, Whole):
            for tile in operation.tiles:
                if tile.buffer in stored and last[tile] == number:
                    yield store(tile.name, access(plan, "b", tile))
        else:
            yield operation


def late(operations: Iterable[Operation]) -> list[Operation]:
    """Let what is read from memory, and a tile's products and bias, wait until somebody needs it; the store of such a
    tile waits with them. What nobody needs is left out, but for stores."""
    waiting: dict[str, list[Operation]] = {}
    found: list[Operation] = []

    def come(name: str) -> None:
        for operation in waiting.pop(name, ()):
            write(operation)

    def write(operation: Operation) -> None:
        for name in operation.reads:
            come(name)
        found.append(operation)

    for operation in operations:
        name = (operation.makes or operation.reads)[0]
        if isinstance(operation, Fetch | Spread | TileOperand | TileProduct) or (
            isinstance(operation, Store) and name in waiting
        ):
            waiting.setdefault(name, []).append(operation)
        else:
            write(operation)
    for name in tuple(waiting):
        if any(isinstance(operation, Store) for operation in waiting.get(name, ())):
            come(name)
    return found


# ---- gradients


def at_once(operations: Sequence[Operation], plan: Plan) -> Iterator[Operation]:
    """Lead gradients back through products where they are whole, or else where the first product of a tile stands:
    through all of them, so that none waits for another tile's."""
    led: set[int] = set()
    for number, operation in enumerate(operations):
        match operation:
            case Whole(tiles=tiles):
                numbers = [later for tile in tiles for later in _led_from(tile, operations, number)]
            case Back(target=target):
                numbers = [number, *_led_from(target, operations, number)]
            case _:
                numbers = []
                yield operation
        for later in numbers:
            if later not in led:
                led.add(later)
                yield from _through(operations[later], plan)


def _led_from(tile: Tile, operations: Sequence[Operation], begin: int) -> Iterator[int]:
    """Tell which products take on a tile's gradient from there until some stage touches the tile."""
    for number in range(begin + 1, len(operations)):
        operation = operations[number]
        if isinstance(operation, Back):
            if operation.target == tile:
                yield number
        elif {tile.name, tile.gradient} & {*operation.makes, *operation.reads}:
            return


def _through(operation: Operation, plan: Plan) -> Iterator[Operation]:
    assert isinstance(operation, Back)
    matrix, target = operation.matrix, operation.target
    yield Leave(tile=target)
    for source in plan.tiles_of(matrix.stage.source):
        yield back(source.gradient, weights_of(matrix, target, source), target.gradient)


def wanted(operations: Iterable[Operation], unwanted: Collection[Tile]) -> Iterator[Operation]:
    """Leave out gradients that nobody wants."""
    names = {tile.gradient for tile in unwanted}
    for operation in operations:
        if isinstance(operation, Leave):
            if operation.tile not in unwanted:
                yield operation
        elif not (operation.makes and names.issuperset(operation.makes)):
            yield operation


def kept(
    operations: Iterable[Operation], plan: Plan, begun: Iterable[Tile], there: Iterable[Tile]
) -> Iterator[Operation]:
    """Write the gradients that shall be kept, where they are not in memory as they are. There they have ``begun``, and
    those ``there`` are as they are at first."""
    made, same = ({tile.gradient for tile in tiles} for tiles in (begun, there))
    for operation in operations:
        if isinstance(operation, Leave):
            name = operation.tile.gradient
            if name in made and name not in same:
                same.add(name)
                yield store(name, access(plan, "g", operation.tile))
        else:
            made.update(operation.makes)
            same.difference_update(operation.makes)
            yield operation


# ---- both


def begun(operations: Iterable[Operation], given: Collection[str]) -> Iterator[Operation]:
    """Let sums go on: from what is made before them or ``given`` in memory."""
    made: set[str] = set()
    for operation in operations:
        if isinstance(operation, Share | TileProduct) and (operation.total in made or operation.total in given):
            operation = replace(operation, begun=True, reads=(*operation.reads, operation.total))
        made.update(operation.makes)
        yield operation


def found(
    operations: Iterable[Operation], memory: Mapping[str, Fetch], made: Collection[str] = ()
) -> Iterator[Operation]:
    """Read from memory what is needed and not ``made`` before, each where it is needed first."""
    known = set(made)
    for operation in operations:
        for name in operation.reads:
            fetch = memory.get(name)
            streamed = isinstance(fetch, Weight) and not fetch.resident
            if fetch is not None and (streamed or name not in known):
                yield fetch
                known.add(name)
        known.update(operation.makes)
        yield operation


def both_ways(operations: Iterable[Operation]) -> frozenset[str]:
    """Name the arguments whose tiles are read and written."""
    reads, writes = set[str](), set[str]()
    for operation in operations:
        if isinstance(operation, Load):
            reads.add(operation.access.pointer)
        elif isinstance(operation, Store):
            writes.add(operation.access.pointer)
    return frozenset(reads & writes)
