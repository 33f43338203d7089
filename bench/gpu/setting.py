"""What a run on a GPU is asked for. It travels to the processes of its parts as JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ..resources import SHAPES
from ..shapes import Shape, uniform

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
BACKENDS = ("cuda", "triton")
TINY = Shape("tiny", 2, 3, uniform(4, 8, 3, phi_x=(), encoder=(8,), decoder=(), bias=True))
_BY_NAME = {**SHAPES, TINY.name: TINY}


@dataclass(frozen=True)
class Setting:
    """A run.

    Attributes:
        emulated: a rehearsal: the emulator and the interpreter on CPU tensors. Its times mean nothing.
        shapes, dtypes, backends: by name.
        seconds: for each measurement.
        compiled: modes of torch.compile to measure as well; one of an eager loop takes a minute.
    """

    emulated: bool = False
    shapes: tuple[str, ...] = ("narrow", "motion", "reference", "speech")
    dtypes: tuple[str, ...] = tuple(DTYPES)
    backends: tuple[str, ...] = BACKENDS
    seconds: float = 1.0
    compiled: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where all of it runs."""
        return torch.device("cpu" if self.emulated else "cuda")

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the processes of its parts."""
        emulated = {"VRNN_FAST_CUDA": "emulate", "TRITON_INTERPRET": "1"} if self.emulated else {}
        return {**os.environ, "VRNN_FAST_VERIFY": "0", **emulated}

    @property
    def jobs(self) -> list[str]:
        """Every shape in every dtype, as ``"shape/dtype"``."""
        return [f"{shape}/{dtype}" for shape in self.shapes for dtype in self.dtypes]

    def short(self, steps: int) -> Setting:
        """Return the same with few shapes, each of a few steps."""
        return replace(self, shapes=tuple(f"{name}:{steps}" for name in self.shapes[:3]))

    def as_json(self) -> str:
        """Return what :meth:`of_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def of_json(cls, text: str) -> Setting:
        """Return the setting that :meth:`as_json` wrote."""
        entries: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in json.loads(text).items()}
        return cls(**entries)


def shape_of(name: str) -> Shape:
    """Return a shape by its name, which may end in the number of steps: ``"narrow:4"``."""
    known, _, steps = name.partition(":")
    shape = _BY_NAME[known]
    return replace(shape, steps=int(steps)) if steps else shape


def known_shapes() -> list[str]:
    """Return the names that :func:`shape_of` takes."""
    return sorted(_BY_NAME)
