"""The units of a reverse scan: d h_t to d h_{t-1}. Gradients of activations alone; those of weights come later. Pure.

A part's gradient is the sum of what all products that read the part pass back, times its activation's slope. Of each
recurrent layer there are two units: one turns the gradient of h_t into those of the gates, and leaves what passes them
in the state's registers; one adds to that what comes back from all that has read h_{t-1}.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

from ...cell.spec import Activation, CellSpec
from ...cell.stages import Activate, Add, Begin, Dense, Normalize, Recur, Resample, Sample, Slice
from ..cut import Cut, cut, halves, initial, learned
from .cluster import Cluster, ranks_of, shared_out, through_of
from .forward import gates_of, scaling, with_room
from .order import planned
from .plan import KernelPlan, Kind, Product, Unit, gradient, moments, scale, scaled, slopes


@lru_cache(maxsize=256)
def reverse(
    spec: CellSpec,
    cluster: Cluster | None = None,
    *,
    on_z: bool,
    on_eps: bool,
    given: frozenset[Slice] | None = None,
) -> KernelPlan:
    """Lay out the reverse scan of a cell. Pure.

    Args:
        cluster: whose ranks share it, if any.
        on_z: whether a gradient reaches z from outside.
        on_eps: whether one is wanted of eps.
        given: the gradients that it finds in memory; by default of all that is read after the scan.

    Raises:
        TypeError: a stage of the scan has no gradient here.
    """
    whole = cut(with_room(learned(spec)))
    read = [*whole.read_after, *([whole.sample.z] if on_z and whole.sample is not None else [])]
    found = ReverseUnits(
        whole,
        given if given is not None else {gradient(part) for own in read for part in whole.parts_of(own)},
        on_eps=on_eps,
    )
    for stage in reversed(whole.program.scan):
        found.add(stage)
    found.states()
    units = shared_out(found.units, cluster)
    ranks, through = ranks_of(cluster), through_of(cluster)
    return planned(whole, units, found.given, found.biases, reverse=True, ranks=ranks, through=through)


class ReverseUnits:
    """Collects units, stage by stage, from the last one on.

    Args:
        given: the gradients that are in memory.
        on_eps: whether a gradient of eps is wanted.
    """

    def __init__(self, whole: Cut, given: Iterable[Slice], *, on_eps: bool = False) -> None:
        self.cut, self.on_eps = whole, on_eps
        self.units: list[Unit] = []
        self.given = set(given)
        self.products: dict[Slice, list[Product]] = defaultdict(list)
        self.added: dict[Slice, Slice] = {}
        self.outside: dict[Slice, Slice] = {}  # what else is added to a gradient, in memory
        self.fresh: set[Slice] = set()  # values that another unit writes to memory in the same step
        self.made: set[Slice] = set()
        self.layers: list[Recur] = []
        self.activation: dict[Slice, Activation] = {}  # by what its slope comes from
        self.active: dict[Slice, Slice] = {}  # its results, where these are apart
        self.normal: dict[Slice, Normalize] = {}  # by the sums that are normalised
        self.biases: dict[Slice, Dense] = {}  # scales
        begins = [s.target for s in whole.program.scan if isinstance(s, Begin)]
        self.begun = {gradient(state): gradient(initial(state)) for state in begins}
        for stage in whole.program.scan:
            if isinstance(stage, Normalize):
                self.normal[stage.source] = stage
            if isinstance(stage, Activate):
                for own, result in zip(whole.parts_of(stage.source), whole.parts_of(stage.target), strict=True):
                    self.activation[own], self.active[own] = stage.activation, result

    def add(self, stage: object) -> None:
        match stage:
            case Dense():
                self.dense(stage)
            case Begin() | Normalize() | Activate():
                pass  # part of the state, of its layer, or of the cell update
            case Resample():
                pass  # whose gradients of states are in registers: see states
            case Add():
                self.added |= dict(zip(self.cut.parts_of(stage.source), self.cut.parts_of(stage.target), strict=True))
            case Sample():
                self.sample(stage)
            case Recur():
                self.recur(stage)
            case _:
                raise TypeError(f"{type(stage).__name__} has no gradient in a CUDA scan")

    def unit(
        self,
        kind: Kind,
        sums: Slice,
        others: tuple[Slice | None, ...],
        writes: Iterable[Slice],
        also: tuple[Slice, ...] = (),
        **options: Any,
    ) -> None:
        made, every = tuple(writes), (sums, *also)
        self.made.update(made)
        products = tuple(self.products[sums])
        reads, rereads = self.in_memory((sums, *others))
        self.units.append(Unit(kind, every, others, made, reads, products=products, rereads=rereads, **options))

    def in_memory(self, parts: Iterable[Slice | None]) -> tuple[tuple[Slice, ...], tuple[Slice, ...]]:
        """Divide what is in memory: what was there before the step, and what another unit writes there in it."""
        own = tuple(dict.fromkeys(part for part in parts if part is not None))
        found = tuple(part for part in own if part in self.given or not part.buffer.startswith("d "))
        return tuple(p for p in found if p not in self.fresh), tuple(p for p in found if p in self.fresh)

    def dense(self, stage: Dense) -> None:
        for target in self.cut.parts_of(stage.target):
            self.layer(target)
            self.pass_on(stage, target)

    def pass_on(self, stage: Dense, target: Slice) -> None:
        """Let the gradient of a part go to all that it was computed from."""
        for source in self.cut.parts_of(stage.source):
            product = Product(gradient(target), gradient(source), stage, transposed=True)
            self.products[gradient(source)].append(product)

    def layer(self, part: Slice) -> None:
        """Add a unit for a part that no other unit has made."""
        own, kind = gradient(part), self.activation.get(part, "identity")
        if own in self.made:
            return
        if part in self.normal:
            self.normalized(self.normal[part])
            return
        more, d = None if part not in self.added else gradient(self.added[part]), gradient(self.active.get(part, part))
        others = None if kind == "identity" else part, more, self.outside.get(d), None if d == own else own
        self.unit("layer_back", d, others, (own,), holds=() if more is None else (more,), activation=kind)
        self.made.add(d)

    def normalized(self, stage: Normalize) -> None:
        """Add the two units of a normalised layer: the gradient of what its result is scaled from, and behind that of
        all columns of a row the gradient of the sums."""
        sums, normal = stage.source, stage.target
        kind = self.activation.get(normal, "identity")
        own, d = gradient(normal), gradient(self.active.get(normal, normal))
        by_scale, of_scale = gradient(scale(normal)), gradient(scaled(normal))
        self.biases[scale(normal)] = scaling(stage)[scale(normal)]
        self.values_of(sums)
        self.unit(
            *("normalize_back", d),
            (None if kind == "identity" else normal, self.outside.get(d), own, by_scale, of_scale),
            writes=(own, by_scale, of_scale, slopes(sums)),
            also=(scale(normal),),
            holds=(sums,),
            waits=(moments(sums),),
            normalizes=sums,
            eps=stage.eps,
            activation=kind,
        )
        self.unit(
            *("center_back", gradient(sums), (by_scale,)),
            writes=(gradient(sums),),
            holds=(sums, by_scale),
            waits=(moments(sums), slopes(sums)),
            normalizes=sums,
            eps=stage.eps,
        )
        self.made.add(d)
        self.leave(normal, scaled(normal))

    def values_of(self, sums: Slice) -> None:
        """Add the unit of what is normalised, which is in memory, and of its moments."""
        self.given.add(sums)
        self.unit("moments", sums, (), (sums, moments(sums)), normalizes=sums)

    def leave(self, *parts: Slice | None) -> None:
        """Leave the gradients of these in memory; whoever launches a scan says what it leaves."""

    def gates(self, stage: Recur) -> tuple[Slice, ...]:
        """Return the gates of a recurrent layer; in the place of a result that is apart what it was computed from."""
        sums = {result: own for own, result in self.active.items()}
        return tuple(sums.get(gate, gate) for gate in gates_of(stage))

    def sample(self, stage: Sample) -> None:
        mean, raw = halves(stage.source)
        eps = replace(stage.z, buffer="eps")
        made = gradient(mean), gradient(raw)
        others = raw, eps, *made, gradient(eps) if self.on_eps else None
        self.unit("sample_back", gradient(stage.z), others, made, transform=stage.transform)

    def recur(self, stage: Recur) -> None:
        """Turn the gradient of h_t, which lies in registers, and that of what the layer above has read."""
        gates = self.gates(stage)
        values = gates if stage.candidate is None else (*gates, stage.candidate)
        made = tuple(gradient(part) for part in values)
        old = {"gru": stage.h, "lstm": stage.c, "rnn": None}[stage.cell]
        sums = Slice(f"d turn.{len(self.layers)}", 0, stage.h.width)
        if stage.output is not None:
            sums = gradient(stage.output)
        kinds: dict[str, Kind] = {"gru": "gru_back", "lstm": "lstm_back", "rnn": "rnn_back"}
        kind = self.activation.get(gates[0], "identity")
        self.unit(kinds[stage.cell], sums, (*made, *values, old), made, activation=kind)
        self.layers.append(stage)

    def states(self) -> None:
        """Add the units that end a step and, of a particle filter, those that begin one."""
        for stage in self.layers:
            h, c = gradient(stage.h), None if stage.c is None else gradient(stage.c)
            made = () if not self.cut.resamples else (h,) if c is None else (h, c)
            waits = (gradient(self.gates(stage)[0]),)
            begun = self.begun.get(h), None if c is None else self.begun.get(c)
            self.unit("state_back", h, (c, *begun), (*made, *(part for part in begun if part)), waits=waits)
            if made:
                given = Slice(f"d reached {stage.h.buffer}", 0, stage.h.width)
                self.units.append(Unit("give_back", (given,), (h, c), holds=made, waits=waits))
