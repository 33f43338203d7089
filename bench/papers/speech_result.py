"""What a run on speech is, and what it came to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

SpeechModel = Literal["RNN-Gauss", "RNN-GMM", "VRNN-I-Gauss", "VRNN-Gauss", "VRNN-GMM"]
KINDS: tuple[SpeechModel, ...] = get_args(SpeechModel)


@dataclass(frozen=True)
class SpeechSetting:
    """How a run trains.

    Attributes:
        width: of every network and of the LSTM of VRNN-Gauss.
        components: of a mixture.
        particles: of the importance-weighted bound that a VRNN is measured with too.
    """

    kind: SpeechModel
    seed: int
    width: int = 96
    latent: int = 32
    components: int = 5
    epochs: int = 12
    batch_size: int = 16
    segment: int = 40
    learning_rate: float = 2e-3
    particles: int = 16


@dataclass
class SpeechResult:
    """What a run came to, on held-out recordings, in nats of samples of unit deviation; higher is better.

    Attributes:
        width: what a model of this cost has.
        cost: multiplications for a frame.
        bound: of a recording, on average: log p of an RNN, the evidence lower bound of a VRNN.
        tighter: the importance-weighted bound of a VRNN.
        recordings, seconds: how many, and how long they are together.
        trained: seconds of processor time.
        curve: the validation bound after each epoch, in nats per frame.
        distances: in dB; see :mod:`bench.papers.spectra`.
    """

    setting: SpeechSetting
    machine: dict[str, object]
    data: str
    width: int
    cost: int
    parameters: int
    bound: float
    tighter: float | None
    recordings: int
    seconds: float
    trained: float
    curve: list[float]
    distances: dict[str, float]

    @property
    def per_second(self) -> float:
        """The bound of a second of sound."""
        return self.bound * self.recordings / self.seconds

    @classmethod
    def of_json(cls, text: str) -> SpeechResult:
        """Read what :func:`json.dumps` made of ``asdict``."""
        entries = json.loads(text)
        return cls(**{**entries, "setting": SpeechSetting(**entries["setting"])})


def results_in(folder: Path) -> list[SpeechResult]:
    """Read what runs left there, in the order of kinds and seeds."""
    found = [SpeechResult.of_json(path.read_text()) for path in folder.glob("*.json")]
    return sorted(found, key=lambda r: (KINDS.index(r.setting.kind), r.setting.seed))
