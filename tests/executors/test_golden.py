"""Generated kernels, kept in tests/golden for a reader to open and a change to show.

``python -m tests.executors.test_golden`` writes them anew.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from vrnn_fast.cell.spec import CellSpec, Std
from vrnn_fast.executors.triton import kernels, launch, phases
from vrnn_fast.executors.triton.tuning import Config

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = Config(rows=16, warps=4, widest=64, ahead=True, shared=1 << 17, beside=32)  # of no machine
SIMPLE = Config(rows=16, warps=4, widest=64, ahead=False, shared=1 << 17, late=False, beside=32)
GAUSSIAN = {"likelihood": "gaussian", "decoder_heads": (("dec_mean", 8), ("dec_std.0", 8)), "output_std": Std()}
GRU = CellSpec(8, 16, 4, phi_x=(16,), phi_z=(16,), encoder=(16,), prior=(16,), decoder=(16,))
LSTM = CellSpec(8, 16, 4, cell="lstm", residual=True, encoder=(16,), prior=(16,), **GAUSSIAN)
FILTER = CellSpec(8, 16, 4, measure="particle_filter", encoder=(16,), **GAUSSIAN)


def sources() -> dict[str, str]:
    """By the names of the files."""
    found = {}
    for name, spec, config in (
        ("gru", GRU, CONFIG),
        ("lstm_gaussian_residual", LSTM, SIMPLE),
        ("particle_filter", FILTER, CONFIG),
    ):
        step = launch.training_sources(spec, config, torch.float32, "tf32")
        kept = {way for way, _ in step if name == "gru" or way in ("forward", "backward")}
        found |= {f"{name}_{way.replace(' ', '_')}.py": text for way, text in reversed(step) if way in kept}
    found["gru_generate.py"] = phases.source("generate", (kernels.forward(GRU, CONFIG, 4, ("x",), False),))
    return found


def test_there_are_no_others() -> None:
    assert {path.name for path in GOLDEN.glob("*.py")} == sources().keys()


@pytest.mark.parametrize("name", sources())
def test_a_kernel_is_generated_as_it_is_kept(name: str) -> None:
    """A change that is meant: python -m tests.executors.test_golden, and commit what changed."""
    kept = (GOLDEN / name).read_text()
    message = f"{name} is generated otherwise; if that is meant: python -m tests.executors.test_golden"
    assert sources()[name] == kept, message
    ast.parse(kept)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for path in GOLDEN.glob("*.py"):
        path.unlink()
    for name, source in sources().items():
        (GOLDEN / name).write_text(source)
