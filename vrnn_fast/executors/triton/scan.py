"""What a step of the two kernels holds: tiles of values on the way forward, and of gradients on the way back.

Registers are what there is least of, so sums live as short as they can: forward a tile's products are written where its
value is first needed, in reverse where its gradient is complete. Of a cell's gates, those of one block of columns.
Where operands are what is large, forward writes all products of a tile as soon as it is known instead.
"""

from __future__ import annotations

from collections import defaultdict

from ...cell.stages import Dense
from ..cut import slices, written
from .phases import Phase
from .plan import Matrix, Plan, Tile, identifier
from .writer import Reads, Writer


class Scan(Writer):
    """What both directions do with tiles, weights and states.

    Args:
        resident: numbers of the matrices that are loaded once; the others are streamed in every step.
        reads: as in :class:`Writer`.
    """

    def __init__(self, plan: Plan, resident: frozenset[int], reads: Reads) -> None:
        super().__init__(reads)
        self.plan, self.resident = plan, resident
        self.number = 0  # of the stage that is being written
        self.known: set[str] = set()  # variables that a step has written
        self.states = [tile for name in plan.states for tile in plan.tiles[name]]

    def scan_phase(self, name: str, lines: list[str]) -> Phase:
        """Return the phase of a scan: a program for every tile of whole groups of particles."""
        constants = {name: name for name in ("ROWS", "PARTICLES", "PRECISION", "PTX")}
        programs = "tl.cdiv(batch, ROWS // PARTICLES * PARTICLES)"
        return Phase(name, tuple(self.arguments), self.settle(lines), programs, constants)

    def pointer(self, prefix: str, buffer: str) -> str:
        """Name the argument that points to a buffer's values (b), gradients (g) or, of a state, either end."""
        return self.argument(f"{prefix}_{identifier(buffer)}")

    def columns(self, tile: Tile, pointer: str, *, write: bool = False) -> str:
        """Return the last arguments of an access of a tile."""
        direct = self.tile_at(pointer, write=write)
        return f"{tile.start}, {tile.width}, {tile.padded}, {self.plan.width(tile.buffer)}, {direct}"

    def load(self, prefix: str, tile: Tile, variable: str) -> None:
        """Read a tile, unless the step has it."""
        if variable not in self.known:
            self.known.add(variable)
            pointer = self.pointer(prefix, tile.buffer)
            self.read(variable, f"on.load({pointer}, {{row}}, {{active}}, {self.columns(tile, pointer)})", "tl.float32")

    def load_row(self, variable: str, dtype: str) -> None:
        """Read a number of each row."""
        pointer = self.pointer("b", variable)
        self.read(variable, f"tl.load({pointer} + {{row}}, mask={{active}}, other=0)", dtype)

    def store(self, prefix: str, tile: Tile, variable: str) -> None:
        self.store_at(self.pointer(prefix, tile.buffer), tile, variable)

    def store_at(self, pointer: str, tile: Tile, variable: str) -> None:
        """Write a tile to where an argument points, in rows that there are."""
        self.step.append(f"on.store({pointer}, row, active, {variable}, {self.columns(tile, pointer, write=True)})")

    def load_state(self, prefix: str, tile: Tile, variable: str, *, given: bool = True) -> None:
        """Read a tile of a state before the loop; zeros where it is not ``given``, but may be."""
        pointer = self.pointer(prefix, tile.buffer)
        loaded = f"on.load({pointer}, b.to(tl.int64), inside, {self.columns(tile, pointer)}).to(tl.float32)"
        if given:
            self.once.append(f"{variable} = {loaded}")
        else:
            self.once += [f"{variable} = tl.zeros((ROWS, {tile.padded}), tl.float32)", f"if {pointer} is not None:"]
            self.once += [f"    {variable} = {loaded}"]

    def store_state(self, prefix: str, tile: Tile, variable: str) -> None:
        """Write a tile of a state behind the loop."""
        pointer = self.pointer(prefix, tile.buffer)
        columns = self.columns(tile, pointer, write=True)
        self.last.append(f"on.store({pointer}, b.to(tl.int64), inside, {variable}, {columns})")

    def reset(self, *variables: str) -> None:
        """Set to zero where a sequence begins anew."""
        if not variables:
            return
        self.step += ["if resets is not None:", "    begins = tl.load(resets + row, mask=active, other=0) != 0"]
        self.step += [f"    {v} = tl.where(begins[:, None], 0.0, {v})" for v in variables]

    def keep_active(self, variable: str, then: str) -> None:
        """Set a variable to ``then`` in the rows that the step belongs to."""
        self.step.append(f"{variable} = tl.where(active[:, None], {then}, {variable})")

    def weight(self, matrix: Matrix, target: Tile, source: Tile) -> str:
        """Return the variable that holds the weights between two tiles; its lines are written where they belong."""
        name = f"w{matrix.number}_{target.start}_{source.start}"
        if name not in self.known:
            rows, columns = (target, source) if self.plan.reverse else (source, target)
            at = matrix.weights(target, source)
            line = f"{name} = on.weight(weights, {at}, {rows.padded}, {columns.padded})"
            if matrix.number in self.resident:
                self.known.add(name)
                self.once.append(line)
            else:
                self.step.append(line)
        return name

    def value(self, tile: Tile) -> str:
        """Return the variable of a tile, read from memory if nobody has written it in this step."""
        self.load("b", tile, tile.name)
        return tile.name

    def values(self, tiles: tuple[Tile, ...]) -> str:
        return ", ".join(map(self.value, tiles))


class Forward(Scan):
    """Values. A tile's variable has the tile's name; that of a state's next value begins with ``after``.

    Args:
        stored: the buffers that the kernel writes.
        late: whether a tile's products wait until somebody needs it.
    """

    def __init__(
        self, plan: Plan, resident: frozenset[int], stored: tuple[str, ...], *, ahead: bool, late: bool
    ) -> None:
        super().__init__(plan, resident, "a step ahead" if ahead else "at the start")
        self.stored, self.late = stored, late
        self.pending: dict[Tile, list[tuple[Matrix, Tile | None]]] = {}  # products and, for None, biases
        self.unsaved: set[Tile] = set()
        self.saved: set[Tile] = set()
        self.last_writer: dict[Tile, int] = {}
        for number, stage in enumerate(plan.program.scan):
            for part in written(stage):
                self.last_writer.update(dict.fromkeys(plan.tiles_of(part), number))
        for tile in self.states:
            self.load_state("start", tile, tile.name)
        self.reset(*(tile.name for tile in self.states))
        for tile in self.states:
            self.known.add(tile.name)
            if tile.buffer in self.stored:
                self.store("b", tile, tile.name)

    def phase(self, name: str) -> Phase:
        """Return all of it, once every stage is written."""
        for tile in tuple(self.pending):
            if tile in self.unsaved:
                self.value(tile)
        for tile in self.states:
            self.keep_active(tile.name, f"after_{tile.name}")
            self.store_state("final", tile, tile.name)
        return self.scan_phase(name, self.lines("0", "s", "t + 1"))

    def value(self, tile: Tile) -> str:
        for matrix, source in self.pending.pop(tile, ()):
            self.add(matrix, tile, source)
        super().value(tile)
        if tile in self.unsaved:
            self.unsaved.remove(tile)
            self.store("b", tile, tile.name)
        return tile.name

    def put(self, tile: Tile, expression: str) -> None:
        self.known.add(tile.name)
        self.step.append(f"{tile.name} = {expression}")

    def term(self, matrix: Matrix, tile: Tile, source: Tile | None) -> None:
        """Add a term to a tile, now or when somebody needs it."""
        if self.late:
            self.pending.setdefault(tile, []).append((matrix, source))
        else:
            self.add(matrix, tile, source)

    def add(self, matrix: Matrix, tile: Tile, source: Tile | None) -> None:
        """Add a term to a tile: a product, or the bias."""
        if source is None:
            bias = f"bias{matrix.number}_{tile.start}"
            place = self.once if matrix.number in self.resident else self.step
            place.append(f"{bias} = on.bias(weights, {matrix.bias(tile)}, {tile.padded})")
            self.put(tile, f"on.spread({bias}, ROWS)")
        else:
            self.load("b", tile, tile.name)
            weights = self.weight(matrix, tile, source)
            self.put(tile, f"on.product({self.value(source)}, {weights}, {tile.name}, PRECISION)")

    def add_up(self, name: str, terms: str, tile: Tile) -> None:
        """Add the columns of some terms to a number of each row."""
        total = f"on.total({terms}, {tile.width}, {tile.padded})"
        self.step.append(f"{name} = {name} + {total}" if name in self.known else f"{name} = {total}")
        self.known.add(name)

    def save(self, *tiles: Tile) -> None:
        """Write those tiles to memory that shall be there and that no stage but this one still writes."""
        for tile in tiles:
            if self.last_writer[tile] == self.number and tile.buffer in self.stored and tile not in self.saved:
                self.saved.add(tile)
                self.unsaved.add(tile)
                if tile not in self.pending:
                    self.value(tile)


class Backward(Scan):
    """Gradients. That of a tile begins with ``d``, that of a state's next value with ``later``.

    Args:
        on_z: whether a gradient reaches z from outside.
        on_eps: whether one is wanted of eps.
        late: whether what a step reads may wait in registers until it is needed.
    """

    def __init__(
        self, plan: Plan, resident: frozenset[int], *, ahead: bool, late: bool, on_z: bool, on_eps: bool
    ) -> None:
        super().__init__(plan, resident, "a step ahead" if ahead else "at the start" if late else "where needed")
        self.on_eps = on_eps
        self.begun: set[Tile] = set()  # gradients that begin in memory
        self.stored: set[Tile] = set()
        self.passed: set[tuple[Matrix, Tile]] = set()
        self.products: dict[Tile, list[tuple[int, Matrix]]] = defaultdict(list)  # that make a tile
        self.touched: dict[Tile, list[int]] = defaultdict(list)  # stages, without products
        for tile in self.states:
            self.load_state("d_final", tile, f"later_{tile.name}", given=False)
        for part in (*plan.read_after, *((plan.sample.z,) if on_z and plan.sample is not None else ())):
            self.begun.update(plan.tiles_of(part))
        if on_eps and plan.divergence is not None and plan.divergence.z is not None:  # it meets the noise past z too
            self.begun.update(plan.tiles["eps"])
        for number, stage in enumerate(plan.program.scan):
            if isinstance(stage, Dense):
                for tile in plan.tiles_of(stage.target):
                    self.products[tile].append((number, plan.matrix(stage)))
            else:
                for part in slices(stage):
                    for tile in plan.tiles_of(part):
                        self.touched[tile].append(number)

    def phase(self, name: str) -> Phase:
        """Return all of it, once every stage is written."""
        for buffer in self.plan.summed:
            for tile in self.plan.tiles[buffer]:
                if self.total(tile):
                    self.keep(tile)
        gradients = {tile: self.gradient(tile) for tile in self.states}
        self.reset(*gradients.values())
        for tile, d in gradients.items():
            self.keep_active(f"later_{tile.name}", d)
            self.store_state("d_start", tile, f"later_{tile.name}")
        return self.scan_phase(name, self.lines("longest - 1", "longest - 1 - s", "t - 1"))

    def gradient(self, tile: Tile) -> str:
        """Return the variable of a tile's gradient."""
        if tile in self.begun:
            self.load("g", tile, f"d_{tile.name}")
        return f"d_{tile.name}"

    def total(self, tile: Tile) -> str | None:
        """Return the variable of a gradient that has begun."""
        return self.gradient(tile) if tile in self.begun or f"d_{tile.name}" in self.known else None

    def put(self, tile: Tile, expression: str) -> None:
        self.stored.discard(tile)
        self.known.add(f"d_{tile.name}")
        self.step.append(f"d_{tile.name} = {expression}")

    def add(self, tile: Tile, expression: str) -> None:
        """Add a share to a tile's gradient."""
        total = self.total(tile)
        self.put(tile, expression if total is None else f"{total} + {expression}")

    def keep(self, tile: Tile) -> None:
        """Write a gradient to memory, where it is not as it is."""
        if tile not in self.stored:
            self.stored.add(tile)
            self.store("g", tile, self.gradient(tile))

    def passes(self, tile: Tile) -> bool:
        """Tell whether a gradient goes on to that tile."""
        return True

    def back(self, matrix: Matrix, target: Tile) -> None:
        """Lead a gradient through one of the products that made its tile, once."""
        if (matrix, target) in self.passed:
            return
        self.passed.add((matrix, target))
        self.keep(target)
        for source in filter(self.passes, self.plan.tiles_of(matrix.stage.source)):
            weights = self.weight(matrix, target, source)
            given = f"{self.gradient(target)}, {weights}, {self.total(source)}"
            self.put(source, f"on.product({given}, PRECISION)")

    def complete(self, *tiles: Tile) -> None:
        """Take these gradients, which are whole after this stage, on to the products since another stage touched the
        tiles."""
        for tile in tiles:
            before = max((n for n in self.touched[tile] if n < self.number), default=-1)
            for made, matrix in reversed(self.products[tile]):
                if before < made < self.number:
                    self.back(matrix, tile)
