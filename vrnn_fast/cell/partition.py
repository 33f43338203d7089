"""The one idea: cut the cell in three, so that only what is truly sequential runs step by step.

``before`` depends on x alone and ``after`` on x, z and h_{t-1} once they are known: both are dense passes over all
T*B rows. ``scan`` is the chain h_{t-1} -> posterior -> z -> cell -> h_t, which the prior joins where the posterior's
mean starts from its own, and all that weighs a particle where rows are resampled. Each part is a list of stages over
named buffers; an executor that can run a stage, and its gradient, runs every cell that can be described.

The first layers of encoder and cell are split by columns. All that they add up, for one time step and one row,
lives side by side in the buffer ``pre``, in an order in which each of the three products writes one contiguous slice::

    GRU   [ n_h | e | r | u | n_x ]      x columns -> e r u n_x     h columns -> n_h e r u     z columns -> r u n_x
    LSTM  [ e | i | f | g | o ]          x columns -> all           h columns -> all           z columns -> i f g o
    RNN   [ e | a ]                      x columns -> all           h columns -> all           z columns -> a

with e the encoder's first layer, r and u the reset and update gates, and the candidate n = tanh(n_x + r * n_h). Of
several recurrent layers the top one lies there, since the networks read its h; each one below has a buffer of its own.

A row of the buffers ``h.<layer>`` and ``c.<layer>`` belongs to time step t and holds the state that step starts from,
h_{t-1}. What a layer hands to the next one in the same step is in ``out.<layer>``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from .spec import FROM_INPUT, GATES, CellSpec, Layer, Std
from .stages import (
    Activate,
    Add,
    Begin,
    Bias,
    Block,
    Buffer,
    Dense,
    Divergence,
    Draw,
    Keep,
    Likelihood,
    Normalize,
    Partition,
    Recur,
    Resample,
    Sample,
    Slice,
    Stage,
    Term,
)


class _Draft:
    """Collects buffers and stages while :func:`partition` writes the program down."""

    def __init__(self, spec: CellSpec) -> None:
        self.spec = spec
        self.buffers: dict[str, Buffer] = {}

    def buffer(self, name: str, width: int, keep: Keep = Keep.NEVER) -> Slice:
        self.buffers[name] = Buffer(name, width, keep)
        return Slice(name, 0, width)

    def lay(self, name: str, buffer: str, keep: Keep = Keep.NEVER, beside: Slice | None = None) -> _Laid:
        """Decide where the layers of a network write: the heads' results side by side in ``buffer``, hidden layers of
        the same depth side by side in buffers of their own, which are kept as ``keep`` says. Results of normalisations,
        and of activations whose gradient needs what they read, lie beside those, in ``.norm`` and ``.active``, and are
        always computed again.

        What reads the input goes behind ``beside`` instead, but for results of heads beside which others go on.
        """
        network, ends = self.spec.network(name), {} if beside is None else {beside.buffer: beside.width}
        deep = any(len(head) > 1 for head in network.heads)

        def behind(where: str, width: int) -> Slice:
            start = ends.get(where, 0)
            ends[where] = start + width
            return Slice(where, start, width)

        def place(layer: Layer, where: str) -> _Place:
            if beside is not None and layer in network.first and (where != buffer or not deep):
                where = beside.buffer
            sums = behind(where, layer.outputs)
            read = sums if layer.norm is None else behind(f"{where}.norm", layer.outputs)
            apart = layer.activation in FROM_INPUT
            return _Place(layer, sums, read, behind(f"{where}.active", layer.outputs) if apart else read)

        hidden = tuple(place(layer, f"{buffer}.{i}") for i, layer in enumerate(network.hidden))
        heads = tuple(
            (*(place(layer, f"{buffer}.heads.{i}") for i, layer in enumerate(own)), place(last, buffer))
            for *own, last in network.heads
        )
        for where, width in ends.items():
            if beside is None or where != beside.buffer:
                again = where == buffer or where.endswith((".norm", ".active"))
                self.buffer(where, width, Keep.NEVER if again else keep)
        return _Laid(hidden, heads, self.spec.norm_eps)

    def network(self, name: str, sources: dict[str, Slice]) -> tuple[list[Stage], Slice]:
        """Return all stages of a network, which reads the sources in this order, and where its results are.

        There is a product for each source, the first of which brings the biases.
        """
        laid = self.lay(name, name)
        stages: list[Stage] = []
        for source in sources:
            if source in self.spec.inputs(name):
                parts = laid.parts(self.spec.column(name, source))
                stages.extend(_products(sources[source], parts, bias=not stages))
        return [*stages, *laid.finish()], laid.results

    def state(self) -> tuple[list[Slice], list[Slice]]:
        """Lay out h of every layer, and c of an LSTM's."""
        layers, hidden = range(self.spec.num_layers), self.spec.hidden_size
        h = [self.buffer(f"h.{i}", hidden, Keep.ALWAYS) for i in layers]
        return h, [self.buffer(f"c.{i}", hidden, Keep.ALWAYS) for i in layers] if self.spec.cell == "lstm" else []

    @property
    def candidate(self) -> Slice:
        """n_h of the top layer, behind which the encoder's first layers lie; of no width but for a GRU."""
        return Slice("pre", 0, self.spec.hidden_size if self.spec.cell == "gru" else 0)

    def recurrence(self, beside: int) -> list[_Layer]:
        """Lay out the sums of the recurrent layers, [n_h | gates] each, the top one's with so many columns in
        between."""
        layers, n_h = range(self.spec.num_layers), self.candidate.width
        gates = GATES[self.spec.cell] * self.spec.hidden_size
        self.buffer(self.candidate.buffer, n_h + beside + gates, Keep.STORED)
        for i in layers[:-1]:
            self.buffer(f"rnn.{i}", n_h + gates, Keep.STORED)
        rnn = [_Layer(self.spec, i, f"rnn.{i}", 0, n_h) for i in layers[:-1]]
        return [*rnn, _Layer(self.spec, layers[-1], self.candidate.buffer, 0, n_h + beside)]

    def advance(self, rnn: list[_Layer], h: list[Slice], c: list[Slice]) -> list[Stage]:
        """Lead from h_{t-1} to h_t, layer by layer, once the first one's sums are complete."""
        stages: list[Stage] = []
        output = None
        for i, layer in enumerate(rnn):
            if output is not None:
                stages.extend(_products(output, [layer.from_input(0)]))
            gates = layer.gates
            if self.spec.cell == "rnn":
                if self.spec.nonlinearity in FROM_INPUT:
                    gates = self.buffer(f"gates.{i}", self.spec.hidden_size)
                stages.append(Activate(layer.gates, gates, self.spec.nonlinearity))
            last = layer is rnn[-1]
            output = None if last else self.buffer(f"out.{i}", self.spec.hidden_size, Keep.STORED)
            stages.append(Recur(self.spec.cell, gates, layer.candidate, h[i], c[i] if c else None, output))
        return stages


class _Place(NamedTuple):
    """A layer, and where it writes: its sums, what its activation reads, and its results, mostly all in one place."""

    layer: Layer
    sums: Slice
    read: Slice
    target: Slice


@dataclass(frozen=True)
class _Laid:
    """A network as :class:`Network` has it, and where its layers write."""

    hidden: tuple[_Place, ...]
    heads: tuple[tuple[_Place, ...], ...]
    eps: float

    @property
    def first(self) -> tuple[_Place, ...]:
        """The layers that read the network's input."""
        return self.hidden[:1] or tuple(head[0] for head in self.heads)

    @property
    def results(self) -> Slice:
        """Those of the heads side by side, or of the last hidden layer."""
        last = [head[-1].target for head in self.heads] or [self.hidden[-1].target]
        return replace(last[0], width=sum(target.width for target in last))

    def parts(self, column: int) -> list[_Part]:
        """Return what the input's columns from ``column`` on give to the layers that read it, and their biases."""
        return [_part(place, column) for place in self.first]

    def finish(self) -> Iterator[Stage]:
        """Return all behind the layers that read the input, whose sums are complete."""
        for i, place in enumerate(self.hidden):
            if i:
                yield from _products(self.hidden[i - 1].target, [_part(place)], bias=True)
            yield from _followed([place], self.eps)
        if self.hidden:
            yield from _products(self.hidden[-1].target, [_part(head[0]) for head in self.heads], bias=True)
        for i in range(1, max(map(len, self.heads), default=0)):
            deeper = [head for head in self.heads if len(head) > i]
            yield from _followed([head[i - 1] for head in deeper], self.eps)
            for head in deeper:
                yield from _products(head[i - 1].target, [_part(head[i])], bias=True)


@dataclass(frozen=True)
class _Part:
    """Rows of weights, and of biases, for the columns of a target that one product may share with others."""

    target: Slice
    blocks: tuple[Block, ...]
    terms: tuple[Term, ...] = ()


def _part(place: _Place, column: int = 0) -> _Part:
    """Return the weights of a layer from input ``column`` on, and its bias."""
    layer, target = place.layer, place.sums
    return _Part(target, (Block(layer.weight, 0, layer.outputs, column, 0),), (Term(layer.bias, 0, layer.outputs, 0),))


def _followed(places: list[_Place], eps: float) -> Iterator[Stage]:
    """Yield what follows the sums of some layers: normalisations, then activations."""
    for layer, sums, read, _ in places:
        if layer.norm is not None:
            scale, shift = (Term(f"{layer.norm}.{leaf}", 0, read.width, 0) for leaf in ("weight", "bias"))
            yield Normalize(sums, read, (scale, replace(shift, at=read.width)), eps)
    yield from _activations(places)


def _activations(places: Iterable[_Place]) -> Iterator[Stage]:
    """Yield one stage for all that lie side by side and have the same; none for an affine layer."""
    joined: list[Activate] = []
    for layer, _, read, target in places:
        last = joined[-1] if joined else None
        if last and last.activation == layer.activation and _adjoin(last.source, read):
            source, result = (replace(part, width=part.width + read.width) for part in (last.source, last.target))
            joined[-1] = Activate(source, result, layer.activation)
        else:
            joined.append(Activate(read, target, layer.activation))
    return (stage for stage in joined if stage.activation != "identity")


def _adjoin(before: Slice, after: Slice) -> bool:
    return (after.buffer, after.start) == (before.buffer, before.start + before.width)


def _products(source: Slice, parts: Iterable[_Part], *, bias: bool = False) -> Iterator[Dense]:
    """Yield one product for all parts that lie side by side."""
    joined: list[_Part] = []
    for part in parts:
        i = next((i for i, before in enumerate(joined) if _adjoin(before.target, part.target)), None)
        if i is None:
            joined.append(part)
            continue
        before, at = joined[i], joined[i].target.width
        joined[i] = _Part(
            replace(before.target, width=at + part.target.width),
            (*before.blocks, *(replace(b, at=at + b.at) for b in part.blocks)),
            (*before.terms, *(replace(t, at=at + t.at) for t in part.terms)),
        )
    for part in joined:
        yield Dense(source, part.target, part.blocks, part.terms if bias else None)


class _Layer:
    """One recurrent layer: where its sums are, and which weights add to them."""

    def __init__(self, spec: CellSpec, index: int, buffer: str, start: int, gates: int) -> None:
        hidden = spec.hidden_size
        self.spec, self.index = spec, index
        self.gates = Slice(buffer, gates, GATES[spec.cell] * hidden)
        self.candidate = Slice(buffer, start, hidden) if spec.cell == "gru" else None

    def from_input(self, column: int) -> _Part:
        """Return what the input's columns from ``column`` on give to the gates, and all their biases but the
        candidate's."""
        gates = self.gates.width
        terms: tuple[Term, ...] = ()
        if self.spec.bias:
            own = gates - (self.candidate.width if self.candidate else 0)
            terms = (Term(f"rnn.bias_ih_l{self.index}", 0, gates, 0), Term(f"rnn.bias_hh_l{self.index}", 0, own, 0))
        return _Part(self.gates, (Block(f"rnn.weight_ih_l{self.index}", 0, gates, column, 0),), terms)

    def of_candidate(self) -> _Part | None:
        """Return n_h: b_hn sits inside r * (W_hn h + b_hn), every other bias adds up in one place."""
        if self.candidate is None:
            return None
        hidden = self.candidate.width
        terms = (Term(f"rnn.bias_hh_l{self.index}", 2 * hidden, hidden, 0),) if self.spec.bias else ()
        return _Part(self.candidate, (Block(f"rnn.weight_hh_l{self.index}", 2 * hidden, hidden, 0, 0),), terms)

    def from_state(self) -> _Part:
        """Return what h gives to the gates; the candidate's share of a GRU apart."""
        width = self.gates.width - (self.candidate.width if self.candidate else 0)
        target = Slice(self.gates.buffer, self.gates.start, width)
        return _Part(target, (Block(f"rnn.weight_hh_l{self.index}", 0, width, 0, 0),))


def partition(spec: CellSpec) -> Partition:
    """Cut a cell into the stages before, inside and after the scan. Pure: the same spec gives the same program."""
    draft = _Draft(spec)
    latent, filtered = spec.latent_size, spec.measure == "particle_filter"
    sources = {"x": draft.buffer("x", spec.input_size)}
    draft.buffer("eps", latent)
    h, c = draft.state()
    if spec.cond_size:
        sources["cond"] = draft.buffer("cond", spec.cond_size)
    sources["h"] = h[-1]

    # first layers of encoder and recurrent layers, [n_h | e | gates] each
    encoder = draft.lay("encoder", "posterior", Keep.STORED, draft.candidate)
    rnn = draft.recurrence(sum(p.sums.width for p in encoder.first if p.sums.buffer == draft.candidate.buffer))

    def first_parts(source: str) -> list[_Part]:
        """Return what a source gives to encoder and first recurrent layer."""
        parts = []
        if latent and source in spec.inputs("encoder"):
            parts.extend(encoder.parts(spec.column("encoder", source)))
        if source in spec.inputs("cell"):
            parts.append(rnn[0].from_input(spec.column("cell", source)))
        return parts

    before: list[Stage] = []

    def without_known(stages: list[Stage]) -> list[Stage]:
        """Let what cond gives to a network of the scan, which begins with it, stand before the scan."""
        known = [s for s in stages if isinstance(s, Dense) and s.source == sources.get("cond")]
        before.extend(known)
        return stages[len(known) :]

    sources["phi_x"] = sources["x"]
    if spec.phi_x:
        stages, sources["phi_x"] = draft.network("phi_x", sources)
        before.extend(stages)
    biased = rnn[1:] if "phi_x" in spec.inputs("cell") else rnn  # by no product before the scan
    biases = [*(layer.of_candidate() for layer in rnn), *(layer.from_input(0) for layer in biased)]
    before.extend(Bias(part.target, part.terms) for part in biases if part)
    before.extend(_products(sources["phi_x"], first_parts("phi_x"), bias=True))
    if spec.cond_size:
        before.extend(_products(sources["cond"], first_parts("cond")))

    scan: list[Stage] = []
    if spec.initial_state:
        states = [(f"initial.{part.buffer.replace('.', '')}", part) for part in (*h, *c)]
        scan.extend(Begin(part, (Term(name, 0, part.width, 0),)) for name, part in states)
    after: list[Stage] = []
    weigh = scan if filtered else after
    for layer in reversed(rnn):
        parts: list[_Part | None] = [layer.of_candidate()]
        if latent and layer is rnn[-1]:
            parts.extend(encoder.parts(spec.column("encoder", "h")))
        parts.append(layer.from_state())
        scan.extend(_products(h[layer.index], [part for part in parts if part]))
    if latent:
        if spec.prior is None:
            prior, transform = _standard_normal(draft, weigh)
        else:
            transform = spec.std
            stages, prior = draft.network("prior", {n: sources[n] for n in ("cond", "h") if n in sources})
            if spec.residual:
                scan.extend(without_known(stages))
            else:
                weigh.extend(stages)
        scan.extend(encoder.finish())
        posterior = encoder.results
        if spec.residual:
            scan.append(Add(replace(prior, width=latent), replace(posterior, width=latent)))
        posterior_std = draft.buffer("posterior_std", latent)
        sources["z"] = sources["phi_z"] = draft.buffer("z", latent)
        scan.append(Sample(posterior, posterior_std, sources["z"], spec.std))
        if spec.phi_z:
            stages, sources["phi_z"] = draft.network("phi_z", {n: sources[n] for n in ("cond", "z") if n in sources})
            scan.extend(without_known(stages))
        scan.extend(_products(sources["phi_z"], [rnn[0].from_input(spec.column("cell", "phi_z"))]))
        z = None if spec.measure == "kl" else sources["z"]
        weigh.append(Divergence(posterior, posterior_std, prior, draft.buffer("prior_std", latent), transform, z))
    scan.extend(draft.advance(rnn, h, c))
    stages, raw = draft.network("decoder", {n: sources[n] for n in ("phi_z", "z", "h", "cond") if n in sources})
    weigh.extend([*stages, Likelihood(raw, spec.likelihood, spec.output_std)])
    if filtered:
        scan.append(Resample())
    given = "x", "eps", "cond"
    buffers = (b if b.name in given else replace(b, keep=max(b.keep, Keep.IF_SMALL)) for b in draft.buffers.values())
    return Partition(tuple(buffers), tuple(before), tuple(scan), tuple(after))


def generation(spec: CellSpec, *, mean: bool) -> Partition:
    """Write the program of a cell that runs on its own: z from the prior, x (its sample or its mean) from the decoder
    and back through phi_x. All but the noise is inside the scan; x is written."""
    draft = _Draft(spec)
    sources = {"x": draft.buffer("x", spec.input_size)}
    draft.buffer("eps", spec.latent_size)
    h, c = draft.state()
    if spec.cond_size:
        sources["cond"] = draft.buffer("cond", spec.cond_size)
    sources["h"] = h[-1]
    noise = draft.buffer("noise", spec.input_size)
    rnn = draft.recurrence(0)

    def network(name: str) -> tuple[list[Stage], Slice]:
        return draft.network(name, {n: sources[n] for n in spec.inputs(name)})

    biases = [part for layer in rnn for part in (layer.of_candidate(), layer.from_input(0)) if part]
    before: list[Stage] = [Bias(part.target, part.terms) for part in biases]
    scan: list[Stage] = []
    for layer in reversed(rnn):
        scan.extend(_products(h[layer.index], [p for p in (layer.of_candidate(), layer.from_state()) if p]))
    if spec.latent_size:
        if spec.prior is None:
            prior, transform = _standard_normal(draft, before)
        else:
            stages, prior = network("prior")
            transform = spec.std
            scan.extend(stages)
        sources["z"] = sources["phi_z"] = draft.buffer("z", spec.latent_size)
        scan.append(Sample(prior, draft.buffer("prior_std", spec.latent_size), sources["z"], transform))
        if spec.phi_z:
            stages, sources["phi_z"] = network("phi_z")
            scan.extend(stages)
    stages, raw = network("decoder")
    scan.extend([*stages, Draw(raw, noise, sources["x"], spec.likelihood, spec.output_std, mean)])
    sources["phi_x"] = sources["x"]
    if spec.phi_x and "phi_x" in spec.inputs("cell"):
        stages, sources["phi_x"] = network("phi_x")
        scan.extend(stages)
    for source in spec.inputs("cell"):
        part = rnn[0].from_input(spec.column("cell", source))
        (before if source == "cond" else scan).extend(_products(sources[source], [part]))
    scan.extend(draft.advance(rnn, h, c))
    return Partition(tuple(draft.buffers.values()), tuple(before), tuple(scan), ())


def _standard_normal(draft: _Draft, stages: list[Stage]) -> tuple[Slice, Std]:
    """Return [mean | raw] of N(0, 1): zeros, and a std of exp(raw)."""
    prior = draft.buffer("prior", 2 * draft.spec.latent_size)
    stages.append(Bias(prior, ()))
    return prior, Std("log_std", floor=0)
