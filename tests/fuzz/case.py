"""A case: a model, a call of it and where it runs, written as one line of Python; and how chance draws one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from random import Random
from typing import Any, Literal, TypeVar, get_args

from vrnn_fast import (
    Categorical,
    DiscretizedLogisticMixture,
    FeatureMixture,
    FixedGaussian,
    Gamma,
    Gaussian,
    GaussianMixture,
    Handwriting,
    ItakuraSaito,
    Likelihood,
    NegativeBinomial,
    Ordinal,
    SharedMixture,
    Std,
    StudentT,
)
from vrnn_fast.cell.spec import ACTIVATIONS, INSTEAD, SOURCES, Cell, CellSpec, Conditioned, StdKind
from vrnn_fast.likelihoods import as_likelihood

Item = TypeVar("Item")
Call = Literal["forward", "step", "generate", "elbo", "iwae", "fivo"]
Layout = Literal["transposed", "sliced", "offset", "expanded"]

BOUNDS: tuple[str, ...] = ("elbo", "iwae", "fivo")
NETWORKS = ("phi_x", "phi_z", "encoder", "prior", "decoder")
RESULTS = ("loss", "nll", "kl", "elbo", "latent", "mean", "std", "state", "prior", "prediction")
GIVEN = ("x", "eps", "cond", "state", "uniforms", "resets", "mask")  # and, never expanded, lengths and parameters
OUTSIDE: dict[str, Callable[[], Likelihood]] = {  # of the launch
    "categorical": lambda: Categorical(3),
    "fixed": lambda: FixedGaussian(0.5),
    "gamma": lambda: Gamma(2.0),
    "itakura": ItakuraSaito,
    "counts": NegativeBinomial,
    "grades": lambda: Ordinal(3),
    "tails": StudentT,
    "mixture": lambda: GaussianMixture(2),
    "features": lambda: FeatureMixture(2),
    "shared": lambda: SharedMixture(2),
    "logistic": lambda: DiscretizedLogisticMixture(2, bins=17),
    "handwriting": lambda: Handwriting(2),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one run of the fuzzer runs. Every default is the plainest value, so that a small case is a short line.

    The first fields are arguments of VRNN, under their names; the others say how it is called.

    Attributes:
        scale: of the parameters, whose standard deviation is this over the root of their fan-in.
        output_std: of a Gaussian likelihood, where it is not softplus plus 1e-3.
        call: a method of the model, or a kind of ``VRNN.bound``.
        lengths: real steps of each row, of those that are not named all. ``nan``: whether padding holds NaN.
        state: ``""`` for none, ``"given"``, or ``"start"``, the model's own.
        outputs: those asked of forward. ``upstream``: results that a gradient comes to; () is a call without gradients.
        frozen: beginnings of names of parameters, or inputs, that want no gradient.
        layouts: of inputs, other than contiguous; of ``"parameters"`` for all of them.
        seed: of all numbers: parameters, inputs, flags and upstream gradients.
    """

    input_size: int = 1
    hidden_size: int = 1
    latent_size: int = 1
    cell: str = "rnn"
    num_layers: int = 1
    bias: bool = False
    nonlinearity: str = "tanh"
    phi_x: tuple[int, ...] = ()
    phi_z: tuple[int, ...] = ()
    encoder: tuple[int, ...] = ()
    prior: tuple[int, ...] | str = ()
    decoder: tuple[int, ...] = ()
    input_order: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    activation: str | Mapping[str, str | tuple[str, ...]] = "identity"
    head_layers: tuple[int, ...] | Mapping[str, tuple[int, ...]] = ()
    packed_heads: bool = False
    cond_size: int = 0
    cond_networks: tuple[str, ...] = ("encoder", "prior", "decoder")
    residual: bool = False
    layer_norm: tuple[str, ...] = ()
    layer_norm_eps: float = 1e-5
    std: Std = field(default_factory=Std)
    likelihood: str = "bernoulli"
    batch_first: bool = False
    recompute: bool = False

    scale: float = 1.0
    output_std: Std | None = None
    call: str = "forward"
    dtype: str = "float32"
    steps: int = 1
    batch: int = 1
    lengths: tuple[int, ...] | None = None
    nan: bool = False
    state: str = ""
    resets: bool = False
    mask: bool = False
    mask_inputs: bool = False
    particles: int = 1
    threshold: float = 0.5
    mean: bool = False
    beta: float = 1.0
    free_nats: float = 0.0
    outputs: tuple[str, ...] = ()
    upstream: tuple[str, ...] = ("loss",)
    frozen: tuple[str, ...] = ()
    layouts: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0

    executor: str = "cpu"
    threads: int = 1
    isa: str | None = None

    def __str__(self) -> str:
        """The line that runs it: ``from tests.fuzz import *; run(Case(steps=3))``."""
        return f"from tests.fuzz import *; run({_written(self)})"

    def make_likelihood(self) -> str | Likelihood:
        """The argument of VRNN."""
        if self.likelihood in OUTSIDE:
            return OUTSIDE[self.likelihood]()
        return Gaussian(std=self.output_std) if self.output_std else self.likelihood


def _written(value: object) -> str:
    """Without what is the default."""
    if not isinstance(value, (Case, Std)):
        return repr(value)
    defaults = type(value)()
    own = {f.name: getattr(value, f.name) for f in fields(value)}
    said = [f"{name}={_written(v)}" for name, v in own.items() if v != getattr(defaults, name)]
    return f"{type(value).__name__}({', '.join(said)})"


SMALL = (1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 19, 31, 33)
LARGE = (32, 48, 63, 64, 65, 100, 129)


def case_of(seed: int, number: int, executor: str = "cpu", isas: Sequence[str | None] = (None,)) -> Case:
    """The case of a number, on any machine but for the last choice, that of a build out of ``isas``."""
    return draw(Random(f"{seed} {number}"), executor, isas)


def draw(random: Random, executor: str, isas: Sequence[str | None]) -> Case:
    """A case of anything that the family knows and that this executor may be asked for."""
    interpreted = executor == "triton"
    some = random.choice
    shape = some(("small",) * 14 + ("wide", "long")) if not interpreted else "tiny"

    def chance(share: float) -> bool:
        return random.random() < share

    def width() -> int:
        return some({"wide": LARGE, "tiny": SMALL[:-2]}.get(shape, SMALL))

    def widths(share: float = 0.5) -> tuple[int, ...]:
        most = 2 if shape == "tiny" else 4
        return tuple(width() for _ in range(random.randint(1, most))) if chance(share) else ()

    def several(of: Sequence[Item], share: float = 0.5) -> tuple[Item, ...]:
        return tuple(item for item in of if chance(share))

    def std() -> Std:
        if chance(0.4):
            return Std()
        kind = some(get_args(StdKind))
        return Std(
            kind,
            offset=some((0.0, 0.0, 0.5, -0.75)),
            sharpness=some((1.0, 0.5, 2.0)) if kind == "softplus" else 1.0,
            floor=some((1e-6, 1e-3, 0.25)),
            min_std=some((0.0, 0.0, 0.125, 0.75)),
            clamp=(some((-math.inf, -math.inf, -3.0, -0.5)), some((math.inf, math.inf, 2.0, 0.25))),
        )

    likelihood = some(("bernoulli", "gaussian") * 6 + tuple(OUTSIDE))
    latent_size = 0 if chance(0.06) else width()
    cell = some(get_args(Cell))
    prior: tuple[int, ...] | str = "standard_normal" if chance(0.15) else widths()
    with_prior = latent_size > 0 and prior != "standard_normal"
    cond_size = width() if chance(0.35) else 0
    structure = {
        "input_size": 3 if likelihood == "handwriting" else width(),
        "hidden_size": width(),
        "latent_size": latent_size,
        "cell": cell,
        "num_layers": some((1, 1, 1, 2, 3)),
        "bias": chance(0.7),
        "nonlinearity": some(("tanh", *ACTIVATIONS)) if cell == "rnn" else "tanh",
        "phi_x": widths(),
        "phi_z": widths() if latent_size else (),
        "encoder": widths() if latent_size else (),
        "prior": prior if latent_size else (),
        "decoder": widths(),
        "packed_heads": chance(0.2),
        "cond_size": cond_size,
        "cond_networks": (*several(get_args(Conditioned)[:-1]), "cell")
        if chance(0.7) or not with_prior
        else ("encoder", "prior"),
        "residual": with_prior and chance(0.25),
        "std": std(),
    }
    if executor == "cpu" and chance(0.15):
        structure |= {"layer_norm": several(NETWORKS), "layer_norm_eps": some((1e-5, 1e-5, 1e-2))}
    heads = _heads(structure, likelihood)
    own = {head: widths(0.7) for head in several(heads)} if chance(0.15) else widths(0.2)
    depths = {name: len(structure[name]) for name in NETWORKS if structure[name] != "standard_normal"}
    depths |= {head: len(own.get(head, ()) if isinstance(own, Mapping) else own) for head in heads}
    activations = {
        name: some(ACTIVATIONS) if chance(0.7) else tuple(some(ACTIVATIONS) for _ in range(depth))
        for name, depth in depths.items()
        if chance(0.4)
    }
    structure |= {"head_layers": own, "activation": some(ACTIVATIONS) if chance(0.5) else activations}
    call = some(("forward",) * 6 + get_args(Call))
    dtypes = ("float32", "bfloat16") if interpreted else ("float32", "float32", "float64", "bfloat16")
    steps = {"long": (17, 33, 40), "tiny": (1, 2, 3)}.get(shape, (1, 2, 3, 4, 5, 6, 7, 9))
    batches = {"long": (1, 8, 17, 33), "tiny": (1, 2, 3, 5)}.get(shape, (1, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17))
    count, rows = some(steps), some(batches)
    mask = call in ("forward", *BOUNDS) and chance(0.25)
    state = some(("", "", "given", "start"))
    outputs = several(("prior", "prediction"), 0.3)
    given = several(GIVEN, 0.15) if chance(0.4) else ()
    return Case(
        **structure,
        input_order=_orders(random, structure) if chance(0.2) else {},
        likelihood=likelihood,
        output_std=std() if likelihood == "gaussian" and chance(0.5) else None,
        batch_first=chance(0.25),
        recompute=chance(0.3),
        scale=some((0.5, 0.5, 1.0, 1.5)),
        call=call,
        dtype=some(dtypes),
        steps=count,
        batch=rows,
        lengths=_lengths(random, count, rows) if chance(0.5) and call != "step" else None,
        nan=chance(0.3),
        state=state,
        resets=call in ("forward", *BOUNDS) and (state != "start" or executor == "cpu") and chance(0.25),
        mask=mask,
        mask_inputs=mask and chance(0.5),
        particles=some((1, 2, 3, 5)) if call in BOUNDS else 1,
        threshold=some((0.0, 0.5, 0.9, 1.0)),
        mean=chance(0.5),
        beta=some((1.0, 1.0, 0.0, 0.5)),
        free_nats=some((0.0, 0.0, 0.125)),
        outputs=outputs,
        upstream=() if chance(0.15) else ("loss",) if chance(0.4) else several(RESULTS) or ("latent",),
        frozen=several(("x", "eps", "cond", "state", "phi_", "enc", "prior", "dec", "rnn.weight", "rnn.bias"), 0.3)
        if chance(0.5)
        else (),
        layouts={name: some(get_args(Layout)) for name in given}
        | {name: some(get_args(Layout)[:-1]) for name in several(("lengths", "parameters"), 0.1)},
        seed=random.randrange(1 << 16),
        executor=executor,
        threads=some((2, 3)) if not interpreted and chance(0.15) else 1,
        isa=some(isas),
    )


def _heads(structure: Mapping[str, Any], likelihood: str) -> tuple[str, ...]:
    """The names of what may have hidden layers of its own."""
    plain = Case(input_size=structure["input_size"], likelihood=likelihood)
    given = as_likelihood(plain.make_likelihood()).heads(plain.input_size)
    heads = {"enc": ("mean", "std"), "prior": ("mean", "std"), "dec": [h.partition(".")[0][4:] for h in given]}
    if not structure["latent_size"]:
        del heads["enc"], heads["prior"]
    elif structure["prior"] == "standard_normal":
        del heads["prior"]
    return tuple(
        f"{n}_{h}" for n, names in heads.items() for h in (("params",) if structure["packed_heads"] else names)
    )


def _orders(random: Random, structure: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The sources of some networks, shuffled."""
    asked = {
        name: value
        for name, value in structure.items()
        if name not in ("activation", "head_layers", "std") and "norm" not in name
    }
    spec = CellSpec(**asked | {"prior": None if asked["prior"] == "standard_normal" else asked["prior"]})
    orders = {}
    for name in SOURCES:
        if name == "prior" and spec.prior is None:
            continue
        sources = list(spec.inputs(name))
        if name in INSTEAD and structure["latent_size"] and random.random() < 0.5:
            left_out, instead = INSTEAD[name]
            sources = [source for source in (instead if s == left_out else s for s in sources) if source]
        random.shuffle(sources)
        if len(SOURCES[name]) > 1 and sources and random.random() < 0.5:
            orders[name] = tuple(sources)
    return orders


def _lengths(random: Random, steps: int, batch: int) -> tuple[int, ...]:
    """Of some rows 0, but not of all."""
    lengths = [random.randint(0, steps) for _ in range(batch)]
    lengths[random.randrange(batch)] = steps if random.random() < 0.7 else random.randint(1, steps)
    return tuple(lengths)
