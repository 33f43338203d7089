"""What a variational recurrent cell is made of, without a tensor in sight.

A :class:`CellSpec` names the six networks of Chung et al. 2015 ("A Recurrent Latent Variable Model for
Sequential Data", equations 5 to 11) by their widths. Everything downstream (the cut into stages, the parameter
list, the kernels) is derived from it, so two equal specs always run the same program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import KW_ONLY, dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple, TypeAlias, TypeVar, get_args

from .. import checks

Value = TypeVar("Value")

Activation = Literal["relu", "leaky_relu", "tanh", "elu", "identity", "silu", "gelu"]
Cell = Literal["gru", "lstm", "rnn"]
StdKind = Literal["softplus", "log_std", "log_variance"]
Fused = Literal["bernoulli", "gaussian", "external"]
Conditioned = Literal["encoder", "prior", "decoder", "phi_z", "cell"]
Measure = Literal["kl", "log_weight", "particle_filter"]

ACTIVATIONS: tuple[str, ...] = get_args(Activation)
FROM_INPUT: tuple[Activation, ...] = ("silu", "gelu")  # whose gradient needs what they were computed from
GATES: dict[str, int] = {"gru": 3, "lstm": 4, "rnn": 1}
STD_FLOOR = 1e-6
SOURCES: dict[str, tuple[str, ...]] = {  # what each network, and the first recurrent layer, reads side by side
    "phi_x": ("x",),
    "phi_z": ("z", "cond"),
    "encoder": ("phi_x", "cond", "h"),
    "prior": ("cond", "h"),
    "decoder": ("cond", "phi_z", "h"),
    "cell": ("phi_x", "phi_z", "cond"),
}
INSTEAD = {"decoder": ("phi_z", "z"), "cell": ("phi_x", None)}  # what one of the sources may be left out for
_PREFIXES = {"phi_x": "phi_x", "phi_z": "phi_z", "encoder": "enc", "prior": "prior", "decoder": "dec"}  # of parameters
MOST_LAYERS = 8  # recurrent ones: csrc/core/program.h holds twice as many states
MOST_DEPTH = 32  # hidden layers of each network, and of a head: the buffers of all of them are counted there

Activations: TypeAlias = Activation | tuple[Activation, ...]


class ParameterSpec(NamedTuple):
    """One parameter: its state-dict name and its shape as torch stores it, (out, in) or (out,)."""

    name: str
    shape: tuple[int, ...]


class Layer(NamedTuple):
    """One layer of a network, ``activation(weight @ input + bias)``, by the prefix of its two parameters.

    ``norm`` is that of the two of the layer normalisation before the activation, where there is one.
    """

    prefix: str
    inputs: int
    outputs: int
    activation: Activation = "identity"
    norm: str | None = None

    @property
    def weight(self) -> str:
        return f"{self.prefix}.weight"

    @property
    def bias(self) -> str:
        return f"{self.prefix}.bias"


@dataclass(frozen=True)
class Std:
    """How a standard deviation comes from the raw output of its head, each feature on its own::

        u            = min(max(raw, low), high) + offset
        softplus       s = log(1 + exp(sharpness u)) / sharpness
        log_std        s = exp(u)
        log_variance   s = exp(u / 2)
        std          = max(s + floor, min_std)

    ``clamp`` is (low, high). ``sharpness`` is softplus's alone. Where a clamp or the maximum holds a value, no gradient
    passes. With neither floor nor min_std a standard deviation may become 0, and the KL infinite or, as a difference of
    infinities, NaN.

    Raises:
        ValueError: an unknown kind or a constant out of its domain, naming it.

    Examples:
        >>> VRNN(3, 16, 2, std=Std("log_std", clamp=(-5, 2)))(x).posterior.std.shape
        torch.Size([5, 4, 2])
    """

    kind: StdKind = "softplus"
    _: KW_ONLY
    offset: float = 0.0
    sharpness: float = 1.0
    floor: float = STD_FLOOR
    min_std: float = 0.0
    clamp: tuple[float, float] = (-math.inf, math.inf)

    def __post_init__(self) -> None:
        checks.one_of("std", self.kind, get_args(StdKind))
        checks.constant("std's offset", self.offset)
        checks.positive("std's sharpness", self.sharpness)
        if self.kind != "softplus" and self.sharpness != 1:
            raise ValueError(f"std's sharpness must be 1 without a softplus, got {self.sharpness!r}")
        for name in ("floor", "min_std"):
            checks.positive(f"std's {name}", getattr(self, name), zero=True)
        object.__setattr__(self, "clamp", checks.interval("std's clamp", self.clamp))  # a list where a file was read

    @property
    def plain(self) -> bool:
        """Whether it is softplus(raw) + floor.

        Examples:
            >>> Std(floor=0.1).plain
            True
        """
        constants = (self.offset, self.sharpness, self.min_std, *self.clamp)
        return self.kind == "softplus" and constants == (0, 1, 0, -math.inf, math.inf)


@dataclass(frozen=True)
class Network:
    """Hidden layers, and heads that read the last of them.

    A head is a chain of layers of its own, the last of which is affine. ``hidden`` may be empty: then the heads (if
    any) read the network's input directly.
    """

    hidden: tuple[Layer, ...] = ()
    heads: tuple[tuple[Layer, ...], ...] = ()

    @property
    def first(self) -> tuple[Layer, ...]:
        """The layers that read the network's input."""
        return self.hidden[:1] or tuple(head[0] for head in self.heads)

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.hidden + tuple(layer for head in self.heads for layer in head)


@dataclass(frozen=True)
class CellSpec:
    """The structure of one variational recurrent cell. Widths are feature counts.

    ``likelihood`` says which negative log-likelihood the launch computes itself; ``"external"`` leaves the
    decoder's raw output to an object outside. ``decoder_heads`` lists that output's heads, names and widths;
    left out, it is one as wide as x. ``std`` is that of posterior and prior, ``output_std`` the fused Gaussian's.
    ``prior`` None is a standard normal prior. With ``residual`` the encoder gives what the posterior's mean adds to
    the prior's (Fraccaro et al. 2016, "Sequential Neural Models with Stochastic Layers", equation 12).

    ``num_layers`` recurrent layers are chained as in ``torch.nn.GRU``; all networks read the top one's state.
    ``cond_size`` features of a conditioning input go to those that ``cond_networks`` names. ``head_layers`` are hidden
    layers that every head of encoder, prior and decoder has for itself, ``own_layers`` those of heads (``dec_mean``)
    that have other ones; with ``packed_heads`` each of these networks has one head for all its parameters.
    ``latent_size`` 0 leaves z out, and with it phi_z, encoder and prior: an ordinary autoregressive network whose
    decoder is the output layer.
    ``activations`` names networks and heads whose activation is another one, or a tuple of one for each hidden layer;
    ``"identity"`` leaves a layer affine. A head that is not named has its network's, where that is one for all.
    ``input_order`` names networks whose sources stand in another order than in ``SOURCES``. The decoder's may be z
    itself instead of phi_z, and the cell's may lack phi_x: what x tells then reaches the state by z alone.

    ``measure`` is what -(nll + kl) of a step measures. ``"kl"`` is the exact divergence of eq. 11. In its place
    ``"log_weight"`` has log q(z_t) - log p(z_t) of the sample itself, and so the log of its importance weight (Burda et
    al. 2016, "Importance Weighted Autoencoders"). ``"particle_filter"`` has the same, and rows that lie side by side
    are the particles of one sequence, which are resampled as they run (Maddison et al. 2017, "Filtering Variational
    Objectives", algorithm 1).

    ``normalized`` names the networks whose hidden layers, those of heads too, are normalised before their activation
    (Ba et al. 2016, "Layer Normalization"), ``norm_eps`` is added to the variance.

    With ``initial_state`` a sequence that begins anew does so from a state among the parameters, the last of them, and
    not from zeros.
    """

    input_size: int
    hidden_size: int
    latent_size: int
    cell: Cell = "gru"
    num_layers: int = 1
    bias: bool = True
    nonlinearity: Activation = "tanh"
    phi_x: tuple[int, ...] = ()
    phi_z: tuple[int, ...] = ()
    encoder: tuple[int, ...] = ()
    prior: tuple[int, ...] | None = ()
    decoder: tuple[int, ...] = ()
    head_layers: tuple[int, ...] = ()
    packed_heads: bool = False
    activation: Activation = "relu"
    residual: bool = False
    std: Std = Std()
    likelihood: Fused = "bernoulli"
    decoder_heads: tuple[tuple[str, int], ...] = ()
    output_std: Std = Std(floor=0.0)
    cond_size: int = 0
    cond_networks: tuple[Conditioned, ...] = ("encoder", "prior", "decoder")
    activations: tuple[tuple[str, Activations], ...] = ()
    own_layers: tuple[tuple[str, tuple[int, ...]], ...] = ()
    input_order: tuple[tuple[str, tuple[str, ...]], ...] = ()
    measure: Measure = "kl"
    normalized: tuple[str, ...] = ()
    norm_eps: float = 1e-5
    initial_state: bool = False

    def __post_init__(self) -> None:
        for name, least in (("input_size", 1), ("hidden_size", 1), ("latent_size", 0), ("cond_size", 0)):
            checks.integer(name, getattr(self, name), least=least)
        networks = tuple(name for name in SOURCES if name != "cell")
        for name in (*networks, "head_layers"):
            if name != "prior" or self.prior is not None:
                checks.widths(name, getattr(self, name), MOST_DEPTH)
        for name, allowed in (
            ("cell", get_args(Cell)),
            ("activation", ACTIVATIONS),
            ("nonlinearity", ACTIVATIONS),
            ("likelihood", get_args(Fused)),
            ("measure", get_args(Measure)),
        ):
            checks.one_of(name, getattr(self, name), allowed)
        checks.integer("num_layers", self.num_layers, most=MOST_LAYERS)
        checks.positive("norm_eps", self.norm_eps)
        for name in self.normalized:
            if name not in networks:
                raise ValueError(f"layer_norm may hold {', '.join(networks)}, got {name!r}")
        for name in self.cond_networks:
            if name not in get_args(Conditioned):
                raise ValueError(f"cond_networks may hold {', '.join(get_args(Conditioned))}, got {name!r}")
        for name, order in self.input_order:
            if name not in SOURCES or len(SOURCES[name]) < 2:
                raise ValueError(f"input_order may name those of phi_z, encoder, prior, decoder and cell, got {name!r}")
            self._check_order(name, order)
        if not self.latent_size:
            if self.phi_z or self.encoder or self.prior:
                raise ValueError("with latent_size=0 there is no z: phi_z, encoder and prior must be ()")
            object.__setattr__(self, "prior", None)
        if self.cell != "rnn" and self.nonlinearity != "tanh":
            raise ValueError(f"nonlinearity is for cell='rnn', got {self.nonlinearity!r} with cell={self.cell!r}")
        if self.residual and self.prior is None:
            raise ValueError("residual adds the prior's mean, and that of a standard normal prior is zero")
        if self.measure == "particle_filter" and self.likelihood == "external":
            raise ValueError("a particle filter weighs its rows as it runs, by a Bernoulli or Gaussian likelihood")
        if not self.decoder_heads:
            object.__setattr__(self, "decoder_heads", (("dec_mean.0", self.input_size),))
        for name, width in self.decoder_heads:
            checks.integer(f"the width of the decoder's head {name!r}", width)
        heads = tuple(head for name in networks for head in self.head_names(name))
        for name, own in self.own_layers:
            if name not in heads:
                raise ValueError(f"head_layers may be given for each of {', '.join(heads)}, got {name!r}")
            checks.widths(f"head_layers of {name}", own, MOST_DEPTH)
        other = tuple((head, self.layers_of(head)) for head in heads if self.layers_of(head) != self.head_layers)
        object.__setattr__(self, "own_layers", other)
        self._check_activations((*networks, *heads))
        if self.cond_size and not any(name == "cell" or self.network(name).layers for name in self.cond_networks):
            raise ValueError(f"cond_networks must name who reads the conditioning input, got {self.cond_networks!r}")
        widths = [width for _, width in self.decoder_heads]
        expected = {"bernoulli": 1, "gaussian": 2, "external": 0}[self.likelihood] * [self.input_size]
        if expected and widths != expected:
            raise ValueError(f"the {self.likelihood} likelihood reads heads of widths {expected}, got {widths}")
        object.__setattr__(self, "key", repr(self))

    def _check_order(self, name: str, order: tuple[str, ...]) -> None:
        """Raise ValueError for what is not the sources of a network, in some order."""
        sources = sorted(replace(self, input_order=()).inputs(name))
        allowed, but = [sources], ""
        left_out, instead = INSTEAD.get(name, ("", None))
        if left_out in sources and self.latent_size:
            others = [source for source in sources if source != left_out]
            allowed.append(sorted([*others, *([instead] if instead else [])]))
            but = f", {instead} in the place of {left_out} or not" if instead else f", with or without {left_out}"
        if sorted(order) not in allowed:
            raise ValueError(f"input_order of {name} must be {', '.join(sources)} in some order{but}, got {order!r}")

    def _check_activations(self, owners: Collection[str]) -> None:
        """Raise ValueError for what is no activation, follows nothing, or does not say what follows each layer."""
        for name, given in self.activations:
            every = given if isinstance(given, tuple) else (given,)
            if name not in owners or any(activation not in ACTIVATIONS for activation in every):
                raise ValueError(
                    f"activation may name one of {', '.join(ACTIVATIONS)}, or one for each hidden layer, for each of "
                    f"{', '.join(owners)}, got {given!r} for {name!r}"
                )
            depth = len((getattr(self, name) or ()) if name in SOURCES else self.layers_of(name))
            if isinstance(given, tuple) and len(given) != depth:
                raise ValueError(f"activation must name one for each of {name}'s {depth} hidden layers, got {given!r}")

    key: ClassVar[str]  # all of the structure as text: of each spec, but none of its fields

    def constant(self, key: str, make: Callable[..., Value], *arguments: object) -> Value:
        """Return ``make(self, *arguments)``. What traces code may take it for a constant of the cells with this
        ``key``."""
        return make(self, *arguments)

    @property
    def phi_x_size(self) -> int:
        """Width of what the encoder and the cell see of x_t: phi_x's last layer, or x itself."""
        return self.phi_x[-1] if self.phi_x else self.input_size

    @property
    def phi_z_size(self) -> int:
        """Width of what the decoder and the cell see of z_t: phi_z's last layer, or z itself."""
        return self.phi_z[-1] if self.phi_z else self.latent_size

    @property
    def output_size(self) -> int:
        """Width of the decoder's raw output: its heads side by side."""
        return sum(width for _, width in self.decoder_heads)

    @property
    def state_tensors(self) -> int:
        """How many (B, H) tensors a recurrent state has: h of every layer, then for an LSTM c of every layer."""
        return self.num_layers * self.state_parts

    @property
    def state_parts(self) -> int:
        """How many tensors (num_layers, B, H) the caller's state has: h, and c of an LSTM."""
        return 2 if self.cell == "lstm" else 1

    def inputs(self, name: str) -> dict[str, int]:
        """Return what a network, or the first layer of the ``cell``, reads: sources and widths in the order of
        columns."""
        sources = dict(self.input_order).get(name, SOURCES[name])
        widths = {
            "x": self.input_size,
            "z": self.latent_size,
            "h": self.hidden_size,
            "phi_x": self.phi_x_size,
            "phi_z": self.phi_z_size,
            "cond": self.cond_size if name in self.cond_networks else 0,
        }
        return {source: widths[source] for source in sources if widths[source]}

    def heads(self, name: str) -> tuple[tuple[str, int], ...]:
        """Return the heads of a network, or the one for all of its parameters: where the last layer is, and its
        width."""
        z, prefix = self.latent_size, _PREFIXES[name]
        if (name == "prior" and self.prior is None) or (name == "encoder" and not z):
            return ()
        heads = {
            "encoder": (("enc_mean", z), ("enc_std.0", z)),
            "prior": (("prior_mean", z), ("prior_std.0", z)),
            "decoder": self.decoder_heads,
        }.get(name, ())
        if heads and self.packed_heads:
            return ((f"{prefix}_params", sum(width for _, width in heads)),)
        return heads

    def head_names(self, name: str) -> tuple[str, ...]:
        """Return what a network's heads are called: ``enc_mean`` and ``enc_std``."""
        return tuple(head.partition(".")[0] for head, _ in self.heads(name))

    def layers_of(self, head: str) -> tuple[int, ...]:
        """Return the widths of the hidden layers that ``enc_mean``, or another head, has for itself."""
        return dict(self.own_layers).get(head, self.head_layers)

    def activations_of(self, name: str, head: str | None = None) -> tuple[Activation, ...]:
        """Return what follows each hidden layer of a network, or of one of its heads."""
        named = dict(self.activations)
        given = named.get(name, self.activation)
        if head is not None:
            given = named.get(head, self.activation if isinstance(given, tuple) else given)
        depth = len((getattr(self, name) or ()) if head is None else self.layers_of(head))
        return given if isinstance(given, tuple) else (given,) * depth

    def column(self, name: str, source: str) -> int:
        """Tell where the columns of a source begin in what a network, or the ``cell``, reads."""
        inputs = self.inputs(name)
        return sum(inputs[before] for before in list(inputs)[: list(inputs).index(source)])

    def network(self, name: str) -> Network:
        """Return the layers of ``phi_x``, ``phi_z``, ``encoder``, ``prior`` or ``decoder``, in the order they run."""
        if not self.latent_size and name in ("phi_z", "encoder"):
            return Network()
        prefix, inputs = _PREFIXES[name], sum(self.inputs(name).values())
        modules = 3 if name in self.normalized else 2  # of a hidden layer: affine, normalisation, activation

        def norm(prefix: str, i: int) -> str | None:
            return f"{prefix}.{modules * i + 1}" if name in self.normalized else None

        hidden = []
        for i, (width, activation) in enumerate(zip(getattr(self, name) or (), self.activations_of(name), strict=True)):
            hidden.append(Layer(f"{prefix}.{modules * i}", inputs, width, activation, norm(prefix, i)))
            inputs = width
        heads = []
        for head, (place, width) in zip(self.head_names(name), self.heads(name), strict=True):
            own = self.layers_of(head)
            kinds = (*self.activations_of(name, head), "identity")
            pairs = zip(pairwise((inputs, *own, width)), kinds, strict=True)
            layers = (
                Layer(f"{head}.{modules * i}", *widths, activation, norm(head, i) if i < len(own) else None)
                for i, (widths, activation) in enumerate(pairs)
            )
            heads.append(tuple(layers) if own else (Layer(place, inputs, width),))
        return Network(tuple(hidden), tuple(heads))

    def parameters(self) -> Iterator[ParameterSpec]:
        """Yield every parameter in the order in which executors receive them."""
        for name in ("phi_x", "phi_z", "encoder", "prior", "decoder"):
            for layer in self.network(name).layers:
                yield ParameterSpec(layer.weight, (layer.outputs, layer.inputs))
                yield ParameterSpec(layer.bias, (layer.outputs,))
                if layer.norm is not None:
                    yield ParameterSpec(f"{layer.norm}.weight", (layer.outputs,))
                    yield ParameterSpec(f"{layer.norm}.bias", (layer.outputs,))
        gates, inputs = GATES[self.cell] * self.hidden_size, sum(self.inputs("cell").values())
        for i in range(self.num_layers):
            yield ParameterSpec(f"rnn.weight_ih_l{i}", (gates, self.hidden_size if i else inputs))
            yield ParameterSpec(f"rnn.weight_hh_l{i}", (gates, self.hidden_size))
            if self.bias:
                yield ParameterSpec(f"rnn.bias_ih_l{i}", (gates,))
                yield ParameterSpec(f"rnn.bias_hh_l{i}", (gates,))
        if self.initial_state:
            for part in "hc"[: self.state_parts]:
                yield from (ParameterSpec(f"initial.{part}{i}", (self.hidden_size,)) for i in range(self.num_layers))
