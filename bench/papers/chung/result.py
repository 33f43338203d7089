"""What a run came to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .models import KINDS, PaperSetting


@dataclass
class PaperResult:
    """What a run came to, on held-out sequences, in nats of standardised data; higher is better.

    Attributes:
        width: what a model of this cost has.
        cost: multiplications for a time step.
        bound: of a sequence, on average: log p of an RNN, the evidence lower bound of a VRNN.
        tighter: the importance-weighted bound of a VRNN.
        sequences, extent: how many, and how long they are together, in the task's unit.
        trained: seconds of processor time.
        curve: the validation bound after each epoch, in nats per time step.
        likeness: of what the model reconstructs and draws to the data; see :mod:`.spectra` and :mod:`.strokes`.
    """

    setting: PaperSetting
    machine: dict[str, object]
    data: str
    width: int
    cost: int
    parameters: int
    bound: float
    tighter: float | None
    sequences: int
    extent: float
    trained: float
    curve: list[float]
    likeness: dict[str, float]

    @property
    def per_unit(self) -> float:
        """The bound of a unit of length."""
        return self.bound * self.sequences / self.extent

    @classmethod
    def of_json(cls, text: str) -> PaperResult:
        """Read what :func:`json.dumps` made of ``asdict``."""
        entries = json.loads(text)
        return cls(**{**entries, "setting": PaperSetting(**entries["setting"])})


def results_in(folder: Path) -> list[PaperResult]:
    """Read what runs left there, in the order of kinds and seeds."""
    found = [PaperResult.of_json(path.read_text()) for path in folder.glob("*.json")]
    return sorted(found, key=lambda r: (KINDS.index(r.setting.kind), r.setting.seed))
