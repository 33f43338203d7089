"""What the compilers make of the Triton executor's kernels: registers that spill, and shared memory.

``make ptx`` compiles more shapes, and widths that no table has (VRNN_FAST_PTX=sweep)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.sweep import SWEPT

pytest.importorskip("triton", reason="triton is not installed")

from bench import resources
from vrnn_fast import VRNN
from vrnn_fast.executors.triton import tuning
from vrnn_fast.executors.triton.tuning import CHIPS

SPILLED: dict[tuple[str, str, str, int], tuple[int, int]] = {  # at most, forward and backward; operands, particles
    ("sm_80", "narrow", "bfloat16", 1): (0, 8),  # backward 0 by triton 3.9
    ("sm_90", "reference", "bfloat16", 1): (0, 0),
    ("sm_90", "narrow", "bfloat16", 4): (0, 0),
    ("sm_90", "narrow", "float32", 1): (0, 0),
    ("gfx942", "narrow", "bfloat16", 1): (0, 0),
}
if SWEPT:
    SPILLED |= {
        ("sm_90", "narrow", "bfloat16", 1): (0, 0),
        ("sm_90", "motion", "bfloat16", 1): (0, 0),
        ("sm_80", "narrow", "bfloat16", 4): (0, 0),
        ("gfx942", "narrow", "bfloat16", 4): (0, 0),
        ("sm_80", "narrow", "float32", 1): (0, 0),
        ("sm_90", "motion", "float32", 1): (0, 0),
        ("sm_90", "speech", "float32", 1): (0, 0),
        ("sm_90", "narrow", "tf32", 4): (0, 0),
    }


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", SPILLED, ids=str)
def test_kernels_compile_for_chips_that_are_not_here(case: tuple[str, str, str, int]) -> None:
    chip, shape, kind, particles = case
    dtype, precision = next(of for of in resources.OPERANDS if resources.operands(*of) == kind)
    spec = resources.spec_of(resources.SHAPES[shape], particles)
    config = tuning.candidates(spec, dtype.itemsize, CHIPS[chip], precision, particles=particles)[0]
    cut = config.plan(spec)
    bound = tuning.shared_bytes(cut, config.rows, dtype.itemsize, tuning.resident(cut, config, dtype.itemsize))
    kernels: dict[str, Any] = resources.kernels_of(spec, config, dtype, precision)
    for (way, kernel), spilled in zip(kernels.items(), SPILLED[case], strict=True):
        found = resources.compiled(kernel, chip, config, dtype, precision, particles=particles)
        assert found.spilled <= spilled, (way, found)
        assert found.shared <= min(bound, CHIPS[chip].shared), (way, found)


if SWEPT:

    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.parametrize("kind", ["gru", "lstm", "rnn"])
    @pytest.mark.parametrize("hidden", [17, 48, 80, 112])
    @pytest.mark.parametrize("chip", ["sm_80", "sm_90"])
    @pytest.mark.parametrize(("dtype", "precision"), resources.OPERANDS)
    def test_nothing_spills_at_a_width_that_no_table_has(
        dtype: torch.dtype, precision: str, chip: str, hidden: int, kind: Any
    ) -> None:
        spec = VRNN(28, hidden, 16, cell=kind, backend="reference", device="meta").spec
        config = next(iter(tuning.candidates(spec, dtype.itemsize, CHIPS[chip], precision)), None)
        if config is None:
            pytest.skip(f"no configuration fits: explain() refuses H = {hidden} in {dtype}, {precision}, on {chip}")
        for way, kernel in resources.kernels_of(spec, config, dtype, precision).items():
            assert resources.compiled(kernel, chip, config, dtype, precision).spilled == 0, way
