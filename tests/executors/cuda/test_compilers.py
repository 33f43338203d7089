"""What the compilers of CUDA make of the kernels: registers, spills, shared memory. None of them needs a GPU."""

from __future__ import annotations

import shutil

import pytest

from bench import cuda_clusters
from bench.cuda_resources import DTYPES, PASSES, SCANS, KernelSource, compiled, joined, kernel
from vrnn_fast.executors.cuda import nvrtc
from vrnn_fast.executors.cuda.kernels import fixed
from vrnn_fast.executors.cuda.memory import CHIPS, Operand
from vrnn_fast.executors.cuda.steps import A100

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc was not found")


def made(size: int, kind: Operand, chip: str, way: str, stacked: int = 1) -> KernelSource:
    found = kernel(size, kind, chip, way, stacked)
    assert found is not None
    return found


@needs_nvcc
@pytest.mark.parametrize("chip", ["sm_80", "sm_90a"])
def test_a_folded_kernel_leaves_room_for_as_many_blocks_as_shared_memory_does(chip: str) -> None:
    """80 registers for three, which one of the feasibility study, written by hand, has at H = 64; 128 for two."""
    for size, registers in ((32, 80), (64, 128)):
        found = compiled(made(size, "bf16", chip, "forward").text, chip)
        assert found.spilled == 0
        assert found.registers <= registers


CASES: list[tuple[int, Operand, str, str]] = [
    (64, "f32", "sm_90a", "forward"),
    (64, "bf16", "sm_80", "backward"),
    (64, "tf32", "sm_80", "backward"),
    (128, "bf16", "sm_90a", "forward"),
    (128, "bf16", "sm_90a", "backward"),
    *((64, "bf16", "sm_80", way) for way in PASSES),
    (128, "bf16", "sm_90a", "after, backward"),
]


@needs_nvcc
@pytest.mark.parametrize(("size", "kind", "chip", "way"), CASES)
def test_nothing_spills(size: int, kind: Operand, chip: str, way: str) -> None:
    found = made(size, kind, chip, way)
    assert compiled(found.text, chip).spilled == 0
    assert found.memory.shared <= CHIPS[chip.removesuffix("a")]


@needs_nvcc
@pytest.mark.parametrize("way", PASSES)
def test_nothing_spills_of_a_pass_of_32_rows(way: str) -> None:
    """Whose sums are twice as many: where workers take so many, of a wide cell."""
    found = made(256, "bf16", "sm_90a", way, stacked=2)
    assert found.memory.plan.stacked == 2
    assert compiled(found.text, "sm_90a").spilled == 0


@needs_nvcc
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_nothing_spills_of_a_cluster(way: str) -> None:
    found = cuda_clusters.scan(256, way)
    assert found.kernel.ranks == 8
    assert compiled(found.kernel.text, "sm_90a").spilled == 0
    assert found.memory.shared <= CHIPS["sm_90"]


@needs_nvcc
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_nothing_spills_of_blocks_that_meet_in_memory(way: str) -> None:
    found = cuda_clusters.scan(256, way, room=A100)
    assert (found.step.plan.ranks, found.step.plan.through) == (8, "memory")
    assert compiled(found.kernel.text, "sm_80").spilled == 0
    assert found.memory.shared <= CHIPS["sm_80"]


@needs_nvcc
@pytest.mark.parametrize("way", SCANS)
def test_nothing_spills_of_one_launch_by_clusters(way: str) -> None:
    found = cuda_clusters.whole(128, way, "sm_90a")
    assert found is not None
    assert (found.ranks, found.cooperative) == (4, True)
    assert compiled(found.text, "sm_90a").spilled == 0
    assert found.shared <= CHIPS["sm_90"]


@needs_nvcc
@pytest.mark.parametrize("kind", ["bf16", "tf32", "f32"])
@pytest.mark.parametrize("name", ["pack", "weights", "sums"])
def test_nothing_spills_of_what_every_cell_has(name: str, kind: Operand) -> None:
    found = fixed(name, kind, DTYPES[kind], 20)
    assert compiled(found.kernel.text, "sm_80").spilled == 0


@needs_nvcc
@pytest.mark.parametrize(("size", "chip"), [(64, "sm_80"), (128, "sm_90a")])
@pytest.mark.parametrize("way", SCANS)
def test_nothing_spills_of_all_in_one(size: int, chip: str, way: str) -> None:
    """A block has a multiprocessor to itself, so that its threads may have as many registers as there are."""
    found = joined(size, "bf16", chip, way)
    assert found is not None
    assert compiled(found.text, chip).spilled == 0


@needs_nvcc
def test_no_kernel_is_compiled_that_cannot_be_launched() -> None:
    """Dynamic shared memory is invisible to the compiler, so the header says it."""
    found = made(96, "bf16", "sm_90a", "forward")
    text = found.text.replace(f"shared_limit = {CHIPS['sm_90']};", f"shared_limit = {CHIPS['sm_80']};")
    assert text != found.text
    with pytest.raises(ValueError, match="a block asks for more shared memory than the chip has"):
        compiled(text, "sm_80")


@pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed (pip install nvidia-cuda-nvrtc)")
def test_nvrtc_compiles_it_without_a_gpu_and_without_any_header_of_cuda() -> None:
    cubin = nvrtc.compiled(made(64, "bf16", "sm_90a", "forward").text, "sm_90a")
    assert cubin.startswith(b"\x7fELF")
    assert b"vrnn_scan" in cubin
