"""The five models, and the widths at which they cost the same."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from vrnn_fast import VRNN
from vrnn_fast.training.options import build

PaperModel = Literal["RNN-Gauss", "RNN-GMM", "VRNN-I-Gauss", "VRNN-Gauss", "VRNN-GMM"]
DATA, RECONSTRUCTION, SAMPLE = "data", "reconstruction", "sample"  # what there is to see of a run
KINDS: tuple[PaperModel, ...] = get_args(PaperModel)


@dataclass(frozen=True)
class PaperSetting:
    """How a run trains.

    Attributes:
        width: of every network and of the LSTM of VRNN-Gauss.
        components: of a mixture.
        particles: of the importance-weighted bound that a VRNN is measured with too.
    """

    kind: PaperModel
    seed: int
    width: int = 96
    latent: int = 32
    components: int = 5
    epochs: int = 12
    batch_size: int = 16
    segment: int = 40
    learning_rate: float = 2e-3
    particles: int = 16


@dataclass(frozen=True)
class PaperTask:
    """What the models learn.

    Attributes:
        title, about, likeness: of its page; ``about`` says what the data is, ``likeness`` what is compared with it.
        published: nats of a sequence of ``published_on`` in table 1 of the paper, as recalled.
        sequence, step, unit: what these are called; ``unit`` is what the length of a sequence is told in.
        features: X.
        likelihood: describes so many Gaussians of x to :func:`vrnn_fast.training.options.build`.
    """

    name: str
    title: str
    about: str
    likeness: str
    published: Mapping[PaperModel, str]
    published_on: str
    sequence: str
    step: str
    unit: str
    features: int
    likelihood: Callable[[int], Any]

    def arguments(self, setting: PaperSetting, width: int) -> dict[str, Any]:
        """Return the arguments of VRNN for a kind of model."""
        latent = has_latent(setting.kind)
        networks = ("phi_x", "phi_z", "encoder", "prior", "decoder") if latent else ("phi_x", "decoder")
        found: dict[str, Any] = {"hidden_size": width, "latent_size": setting.latent if latent else 0}
        found |= {"cell": "lstm", "activation": "relu", **{name: [width] for name in networks}}
        if setting.kind == "VRNN-I-Gauss":
            found["prior"] = "standard_normal"
        return {**found, "likelihood": self.likelihood(setting.components if setting.kind.endswith("GMM") else 1)}

    def model(self, setting: PaperSetting, width: int) -> VRNN:
        """Build it."""
        return build(self.arguments(setting, width), self.features, "gaussian")

    def width_of_equal_cost(self, setting: PaperSetting) -> int:
        """Find the width, in steps of four, at which a model costs what VRNN-Gauss does."""

        def costs(kind: PaperModel, width: int) -> int:
            return cost(self.model(PaperSetting(**{**asdict(setting), "kind": kind}), width))

        aim, widths = costs("VRNN-Gauss", setting.width), range(4, 4 * setting.width, 4)
        above = bisect_left(widths, aim, key=lambda width: costs(setting.kind, width))
        return min(widths[max(0, above - 1) : above + 1], key=lambda width: abs(costs(setting.kind, width) - aim))


def has_latent(kind: PaperModel) -> bool:
    """Say whether a kind of model has z."""
    return kind.startswith("VRNN")


def cost(model: VRNN) -> int:
    """Count the multiplications of its matrices for a time step."""
    return sum(p.numel() for p in model.parameters() if p.dim() == 2)
