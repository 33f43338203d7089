"""The way of a kernel to a GPU without one: NVRTC is the real one, the driver a stand-in that gives launches to the
emulator."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.executors.cuda.cells import GRU, cell
from tests.support import standin_driver
from tests.support.oracle import Problem
from vrnn_fast import executors
from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.executors import cuda, select, trial, verification
from vrnn_fast.executors.base import Batch
from vrnn_fast.executors.cuda import build, chip, driver, launch, nvrtc, sources
from vrnn_fast.executors.cuda.cluster import Cluster
from vrnn_fast.executors.cuda.driver import DriverError, Kernel
from vrnn_fast.executors.cuda.sources import CompileError
from vrnn_fast.executors.cuda.steps import all_by, training
from vrnn_fast.executors.verification import Verdict

pytestmark = [
    pytest.mark.skipif(build.unavailable() is not None, reason=f"emulator: {build.unavailable()}"),
    pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed (pip install nvidia-cuda-nvrtc)"),
]
CPU = torch.device("cpu")
BUDGET = 97  # of the driver's attributes: bytes of shared memory that a block may have


def run(seed: int = 0, batch: int = 18) -> dict[str, Tensor]:
    return Problem.draw(GRU, 3, batch, seed=seed, resets=True).run(cuda, torch.float32)


WHOLE = ("all of forward", "all of backward")


@pytest.mark.parametrize(
    ("attribute", "value", "names"),
    [(16, 4, WHOLE), (16, 3, training(GRU)), (95, 0, training(GRU)), (1001, 0, training(GRU))],
    ids=["one launch each way", "few multiprocessors", "not cooperative", "not resident"],
)
def test_a_training_step_goes_the_whole_way(attribute: int, value: int, names: tuple[str, ...]) -> None:
    """Source, machine code, module, launch: the numbers are those of the emulator, to the last bit; and those of one
    launch are those of many."""
    expected, sizes, given = run(), [], driver.launch

    def measured(index: int, kernel: Kernel, blocks: int, arguments: bytes, cleared: Sequence[Tensor]) -> None:
        sizes.append(len(arguments))
        assert kernel.cooperative == (kernel.name in WHOLE) == bool(cleared)
        given(index, kernel, blocks, arguments, cleared)

    before = launch.launches.copy()
    with standin_driver.installed() as gpu, mock.patch.object(driver, "launch", measured):
        gpu.attribute(attribute, value)
        found = run()
        assert gpu.driver.standin_cleared() == (2 if names is WHOLE else 0)
    assert not gpu.faults
    for name, t in expected.items():
        assert torch.equal(found[name], t), name
    assert launch.launches - before == Counter(names)
    assert len(gpu.launches) == len(names)
    for one, name in zip(gpu.launches, names, strict=True):
        assert one.block == (256, 1, 1)
        assert one.stream == standin_driver.STREAM
        assert one.architecture == "sm_90a"
        assert one.shared <= 227 << 10
        assert one.grid == (4, 1, 1) or name not in WHOLE, "a block for each multiprocessor"
        assert one.grid == (2, 1, 1) or name not in ("forward", "backward")
    told = {size for _, _, size in gpu.modules}
    assert told >= set(sizes), "one struct, as large as the machine code says"


def by_two(run: Callable[[], Any]) -> Any:
    """Let clusters of two scan."""
    own = Cluster(2)
    with mock.patch.object(launch, "chosen", return_value=all_by(own)):
        return run()


@pytest.mark.parametrize(
    ("attribute", "value", "names"),
    [(16, 8, WHOLE), (16, 7, training(GRU)), (95, 0, training(GRU)), (1001, 0, training(GRU))],
    ids=["one launch each way", "no room for workers", "not cooperative", "no cluster at once"],
)
def test_clusters_go_the_whole_way(attribute: int, value: int, names: tuple[str, ...]) -> None:
    """Two that scan, of two tiles, and two of workers."""
    expected, before = run(), launch.launches.copy()
    with standin_driver.installed() as gpu:
        gpu.attribute(16, 8)
        gpu.attribute(attribute, value)
        found = by_two(run)
    assert not gpu.faults
    for name, t in expected.items():
        assert torch.equal(found[name], t), name
    assert launch.launches - before == Counter(names)
    for one, name in zip(gpu.launches, names, strict=True):
        assert one.ranks == (2 if name in (*WHOLE, "forward", "backward") else 1)
        assert one.grid == ((8 if name in WHOLE else 4), 1, 1) or one.ranks == 1


def generated(problem: Problem, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """What a cell draws on its own."""
    given = {name: t.to(dtype) for name, t in problem.inputs.items()}
    parameters = [given[p.name] for p in problem.spec.parameters()]
    noise = torch.rand(given["x"].shape, generator=torch.Generator().manual_seed(0)).logit().to(dtype)
    x, _ = cuda.generate(problem.spec, parameters, Batch(noise, given["eps"], (given["state0"],)), mean=False)
    return x


def test_generation_goes_the_whole_way() -> None:
    problem = Problem.draw(GRU, 3, 2)
    expected = generated(problem, torch.float32)
    with standin_driver.installed() as gpu:
        found = generated(problem, torch.float32)
    assert len(gpu.launches) == 1
    assert torch.equal(found, expected)


def test_a_kernel_is_loaded_once_and_a_batch_without_rows_launches_nothing() -> None:
    with standin_driver.installed() as gpu:
        run()
        loaded = len(gpu.modules)
        run(batch=17)
        assert len(gpu.modules) == loaded
        before = len(gpu.launches)
        driver.launch(0, Kernel("none", "", 0), 0, b"")
        assert len(gpu.launches) == before


def test_the_driver_is_asked_for_clusters_and_one_without_a_place_is_announced_once() -> None:
    """1002 is the most blocks of a cluster that find multiprocessors beside each other, as on a part of a chip; 95,
    whether all blocks of a launch run at once."""
    wide = CellSpec(5, 256, 16, phi_x=(9,), phi_z=(256,), encoder=(256,), prior=(), decoder=())
    problem, found = Problem.draw(wide, 1, 2), []
    launch.announce.cache_clear()
    with standin_driver.installed() as gpu:
        for most, together, ranks, told in (
            (16, 1, 16, ""),
            (4, 0, 4, "8 or of 16 blocks, so that clusters of up to 4 scan"),
            (1, 1, 1, "8 or of 16 blocks, so that up to 16 blocks scan that meet in memory"),
            (1, 0, 1, "8 or of 16 blocks, so that single blocks scan"),
        ):
            gpu.attribute(16, 16)
            gpu.attribute(95, together)
            gpu.attribute(1002, most)
            room = chip.room(CPU)
            assert [room.blocks(n) for n in (1, 2, 4, 8, 16)] == [16, *(16 * (n <= most) for n in (2, 4, 8, 16))]
            assert room.blocks(8, "memory") == 16 * together
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                found += [generated(problem), generated(problem)]
            assert max(one.ranks for one in gpu.launches[-2:]) == ranks
            expected = f"cpu scans in bf16 otherwise than a whole chip: it has no place for a cluster of {told}"
            assert [str(w.message) for w in said] == [expected] * bool(told)
    assert not gpu.faults
    assert all(torch.equal(x, found[0]) for x in found[1:])


# ---- a chip's own budget


def test_a_smaller_chip_has_other_tiers() -> None:
    """What it has, the driver says; no table of names does."""
    spec = cell(hidden_size=23)
    problem = Problem.draw(spec, 2, 2)
    with standin_driver.installed() as gpu:
        gpu.attribute(BUDGET, 28 << 10)
        gpu.attribute(75, 8)
        found = problem.run(cuda, torch.bfloat16)
    assert all(one.shared <= 28 << 10 and one.architecture == "sm_80" for one in gpu.launches)
    assert gpu.launches
    for name, t in problem.run(cuda, torch.bfloat16).items():
        assert torch.equal(found[name], t), name


def test_a_chip_that_is_too_old_or_too_small_is_told_so() -> None:
    with standin_driver.installed() as gpu:
        gpu.attribute(75, 7)
        gpu.attribute(76, 5)
        x = torch.rand(1, 1, 5)
        assert cuda.refuses(cell(hidden_size=7), x) == "its kernels need compute capability 8.0, and cpu has 7.5"
        gpu.attribute(75, 9)
        gpu.attribute(BUDGET, 2 << 10)
        reason = "what a block keeps of 16 rows of this cell in f32 does not fit into 2 KB of shared memory"
        assert cuda.refuses(cell(hidden_size=8), x) == reason
        with pytest.raises(DriverError, match="wants 4096 bytes of shared memory in a block, and GPU 0 has 2048"):
            driver.launch(0, Kernel("wide", "", 4096), 1, b"")
        gpu.fail("cuDeviceGetAttribute", 101)
        driver.chip.cache_clear()
        assert "does not tell its attribute 75: unknown (101)" in str(cuda.refuses(cell(hidden_size=9), x))


# ---- CUDA graphs


def test_nothing_is_loaded_while_a_graph_is_captured() -> None:
    with standin_driver.installed() as gpu:
        gpu.capture(True)
        with pytest.raises(
            DriverError, match="kernel 'all of forward' is not there yet, and nothing can be loaded while"
        ):
            run()
        with pytest.raises(DriverError, match="kernel 'none' is not there yet"):
            driver.launch(0, Kernel("none", "", 0), 1, b"")
        gpu.capture(False)
        expected = run()
        gpu.capture(True)
        launch._tables.cache_clear()
        with pytest.raises(DriverError, match="the tables of this cell are not there yet, and nothing can be loaded"):
            run()
        gpu.capture(False)
        run()
        gpu.capture(True)  # from now on the stand-in loads nothing
        found = run()
        assert len(gpu.launches) == 6
    assert all(torch.equal(found[name], t) for name, t in expected.items())


def test_the_kernels_of_a_call_are_compiled_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "cache_directory", lambda: tmp_path)
    threads = set()
    compiled = nvrtc.compiled

    def noted(*arguments: Any) -> bytes:
        threads.add(threading.get_ident())
        return compiled(*arguments)

    kernels = [Kernel(str(i), f"{TEXT} // {i}", 0) for i in range(3)]
    with standin_driver.installed(), mock.patch.object(nvrtc, "compiled", noted):
        driver.compile_ahead(0, kernels)
        assert len(list(tmp_path.iterdir())) == 3
        assert threading.get_ident() not in threads
    with standin_driver.installed(), pytest.raises(CompileError):
        driver.compile_ahead(0, [Kernel("wrong", "what is this", 0)])


# ---- machine code on disk


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(nvrtc, "cache_directory", lambda: tmp_path)
    return tmp_path


TEXT = 'extern "C" __global__ void vrnn_scan(int* to) { *to = 1; }'


def test_machine_code_is_kept_by_chip_and_damaged_one_is_compiled_anew(folder: Path) -> None:
    first = nvrtc.cubin(TEXT, "sm_90a")
    with mock.patch.object(nvrtc, "compiled", side_effect=AssertionError("it is on disk")):
        assert nvrtc.cubin(TEXT, "sm_90a") == first
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    for damaged in (b"", whole[:40], whole[:-1], whole[:100] + b"\1" + whole[101:]):
        assert damaged != whole
        path.write_bytes(damaged)
        assert nvrtc.cubin(TEXT, "sm_90a") == first
        assert path.read_bytes() == whole
    nvrtc.cubin(TEXT, "sm_80")
    assert len(list(folder.iterdir())) == 2
    with mock.patch.object(nvrtc, "version", return_value=(12, 8)):
        nvrtc.cubin(TEXT, "sm_80")
    with mock.patch.object(sources, "digest", return_value="another version"):
        nvrtc.cubin(TEXT, "sm_80")
    assert len(list(folder.iterdir())) == 4


def test_a_disk_that_takes_nothing_stops_nobody(folder: Path) -> None:
    with mock.patch.object(nvrtc, "replacing", side_effect=OSError("no space left on device")):
        assert nvrtc.cubin(TEXT, "sm_90a").startswith(b"\x7fELF")
    assert not list(folder.iterdir())


# ---- what goes wrong has a message


def test_a_compiler_that_refuses_is_quoted(folder: Path) -> None:
    with pytest.raises(
        CompileError, match=r"NVRTC 1\d\.\d+ \(.*\) does not compile a kernel for sm_90a: NVRTC_ERROR_"
    ) as e:
        nvrtc.cubin("what is this", "sm_90a")
    assert "error:" in str(e.value)
    with pytest.raises(CompileError, match="does not compile a kernel for sm_9999: NVRTC_ERROR_INVALID_OPTION"):
        nvrtc.cubin(TEXT, "sm_9999")


@pytest.mark.parametrize(
    ("function", "code", "words"),
    [
        (
            "cuModuleLoadData",
            209,
            r"kernel 'all of forward', compiled by NVRTC .* was not loaded .* 13\.0: CUDA_ERROR_NO_BINARY.* update",
        ),
        (
            "cuFuncSetAttribute",
            1,
            r"kernel 'all of forward' does not get its \d+ bytes of shared memory: CUDA_ERROR_INVALID",
        ),
        (
            "cuLaunchKernelEx",
            720,
            r"kernel 'all of forward' \(4 blocks, .* was not launched: CUDA_ERROR_COOPERATIVE.* something else holds",
        ),
        (
            "cuMemsetD8Async",
            1,
            "what kernel 'all of forward' counts with on GPU 0 was not cleared: CUDA_ERROR_INVALID_VALUE",
        ),
        (
            "cuLaunchKernelEx",
            701,
            r"kernel 'all of forward' \(4 blocks, \d+ KB .* each\) on GPU 0 was not launched: .*RESOURCES .* too many",
        ),
        ("cuCtxPushCurrent_v2", 700, "the context of GPU 0 was not taken: CUDA_ERROR_ILLEGAL_ADDRESS"),
    ],
)
def test_the_driver_is_quoted(function: str, code: int, words: str) -> None:
    with standin_driver.installed() as gpu:
        gpu.fail(function, code)
        with pytest.raises(DriverError, match=words):
            run()
        gpu.driver.standin_begin(*[None] * 2)


def test_a_driver_that_is_not_there_is_named() -> None:
    driver.library.cache_clear()
    with (
        mock.patch.object(driver.ctypes, "CDLL", side_effect=OSError("libcuda.so.1: cannot open")),
        pytest.raises(DriverError, match=r"NVIDIA's driver was not found: libcuda\.so\.1: cannot open"),
    ):
        driver.library()


# ---- as an executor


def test_reasons_to_be_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "emulated", False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    absent = "there is no GPU (VRNN_FAST_CUDA=emulate runs its kernels on CPU tensors, slowly)"
    assert cuda.unavailable() == absent
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert cuda.unavailable() is None
    monkeypatch.setattr(nvrtc, "library", lambda: None)
    assert "NVRTC, which compiles its kernels, was not found (pip install" in str(cuda.unavailable())
    monkeypatch.setattr(sources, "SOURCE", Path("/nowhere"))
    assert cuda.unavailable() == "the sources of its kernels are not in /nowhere: install vrnn-fast again"
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert cuda.unavailable() == "it is made for NVIDIA's GPUs"


def test_auto_takes_it_after_its_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a GPU, before Triton."""
    monkeypatch.setattr(executors, "_UNAVAILABLE", {e.name: None for e in executors.executors})
    reasons: dict[str, str | None] = {"cuda": None, "triton": None}
    monkeypatch.setattr(verification, "verified", lambda name, device: Verdict(name, {}, reasons[name]))
    verification._distrusted.cache_clear()
    with standin_driver.installed():
        monkeypatch.setattr(executors.cpu, "refuses", lambda *given: "it runs on CPU tensors")
        assert not cuda.trusted or cuda.emulated
        assert select("auto", GRU, torch.rand(1, 1, 5))[0] is cuda
    verification._distrusted.cache_clear()


def test_it_passes_its_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a few structures; `vrnn-fast verify` tries all."""
    names = ("gru", "gru of one step and one sequence", "particle filter")
    monkeypatch.setattr(trial, "STRUCTURES", tuple(s for s in trial.STRUCTURES if s.name in names))
    executor: Any = cuda
    with standin_driver.installed() as gpu:
        found = {f.name: f for f in trial.findings(executor, CPU)}
    assert not gpu.faults
    assert gpu.launches
    assert not [f for f in found.values() if f.wrong]
    assert not [f for f in found.values() if f.refused]


def test_a_wheel_carries_the_sources(tmp_path: Path) -> None:
    """A kernel is compiled where it runs."""
    root = Path(__file__).parents[3]
    command = [sys.executable, "setup.py", "-q", "build_py", "-d", str(tmp_path)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    carried, own = tmp_path / "vrnn_fast" / "executors" / "cuda" / "csrc", root / "csrc" / "cuda"
    names = {p.relative_to(own) for p in own.rglob("*") if p.is_file()}
    assert {p.relative_to(carried) for p in carried.rglob("*") if p.is_file()} == names
    code = "from vrnn_fast.executors.cuda import sources; print(sources.SOURCE)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == str(carried)
