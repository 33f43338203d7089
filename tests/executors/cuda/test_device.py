"""The device layer of the CUDA kernels on a CPU: lane maps by the PTX manual, each primitive, each fault provoked."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tests.support import primitives
from vrnn_fast.executors.cuda import build, nvrtc
from vrnn_fast.executors.cuda.sources import SOURCE

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(build.unavailable() is not None, reason=f"emulator: {build.unavailable()}")
TF32, BF16, F16 = 1, 2, 3
Array = np.ndarray[Any, Any]


class Schedule(NamedTuple):
    order: int = 0  # round robin, a warp ahead, a warp behind, random
    warp: int = 0
    seed: int = 1
    late: int = 1


SCHEDULES = [Schedule(), Schedule(late=0), *(Schedule(o, w) for o in (1, 2) for w in (0, 1)), Schedule(3, seed=5)]


@pytest.fixture(scope="module")
def kernels() -> ctypes.CDLL:
    return build.library(primitives.source("primitives.cpp"), ["-Wall", "-Wextra", "-Werror"])


def pointer(array: Array) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


@pytest.fixture
def launch(kernels: ctypes.CDLL) -> Callable[..., str]:
    """``launch(name, schedule, *arguments)``: what went wrong, "" if nothing did."""

    def call(name: str, schedule: Schedule, *arguments: Any) -> str:
        function = getattr(kernels, name)
        function.restype = ctypes.c_char_p
        given = [pointer(a) if isinstance(a, np.ndarray) else ctypes.c_int64(a) for a in arguments]
        return str(function(*map(ctypes.c_int64, schedule), *given).decode())

    return call


PLACES = {
    "emulated": None,
    "interpreted": nvrtc.unavailable(),
    "on a GPU": None if torch.cuda.is_available() else "there is no GPU",
}


@pytest.fixture(
    params=[
        pytest.param(place, marks=pytest.mark.skipif(reason is not None, reason=f"{place}: {reason}"))
        for place, reason in PLACES.items()
    ]
)
def everywhere(request: pytest.FixtureRequest, launch: Callable[..., str]) -> Callable[..., str]:
    """``launch``, or the same as it is compiled: the PTX in its interpreter, and on the GPU that is there."""
    compiled = {"interpreted": primitives.interpreted, "on a GPU": primitives.on_gpu}
    if request.param == "emulated":
        return launch
    return lambda name, schedule, *arguments: compiled[request.param](name, *arguments)


# -- -- the tables of the PTX manual, "Matrix Fragments for mma.m16n8k16 with floating point type", "... mma.m16n8k8",
# and "ldmatrix" : groupID = laneid>> 2, threadID_in_group = laneid % 4


def c_of_m16n8(lane: int, i: int) -> tuple[int, int]:
    """row = groupID for ci where i < 2, groupID + 8 for i >= 2; col = threadID_in_group * 2 + (i & 0x1)."""
    return (lane >> 2) + (8 if i >= 2 else 0), (lane % 4) * 2 + (i & 1)


def a_of_m16n8k16(lane: int, i: int) -> tuple[int, int]:
    """row = groupID for ai where 0 <= i < 2 || 4 <= i < 6, else groupID + 8; col = threadID_in_group * 2 + (i & 0x1)
    for i < 4, and 8 more for i >= 4."""
    row = lane >> 2 if i in (0, 1, 4, 5) else (lane >> 2) + 8
    return row, (lane % 4) * 2 + (i & 1) + (8 if i >= 4 else 0)


def b_of_m16n8k16(lane: int, i: int) -> tuple[int, int]:
    """row = threadID_in_group * 2 + (i & 0x1) for bi where i < 2, and 8 more for i >= 2; col = groupID."""
    return (lane % 4) * 2 + (i & 1) + (8 if i >= 2 else 0), lane >> 2


def a_of_m16n8k8(lane: int, i: int) -> tuple[int, int]:
    """row = groupID for a0 and a2, groupID + 8 for a1 and a3; col = threadID_in_group for a0 and a1, and 4 more for a2
    and a3."""
    return (lane >> 2) + (8 if i in (1, 3) else 0), lane % 4 + (4 if i in (2, 3) else 0)


def b_of_m16n8k8(lane: int, i: int) -> tuple[int, int]:
    """row = threadID_in_group for b0, and 4 more for b1; col = groupID."""
    return lane % 4 + (4 if i == 1 else 0), lane >> 2


# as drawn : "Row 0: T0: r0, T1: r0, T2: r0, T3: r0; Row 1: T4 .. T7; ..."; two elements of 16 bits in each
LDMATRIX = [[(4 * row + column // 2, column % 2) for column in range(8)] for row in range(8)]
TABLES = (c_of_m16n8, a_of_m16n8k16, b_of_m16n8k16, a_of_m16n8k8, b_of_m16n8k8)
ELEMENTS = (4, 8, 4, 4, 2)


def place(kernels: ctypes.CDLL, which: int, lane: int, i: int) -> tuple[int, int]:
    at = (ctypes.c_int * 2)()
    kernels.place(which, lane, i, at)
    return at[0], at[1]


@pytest.mark.parametrize("which", range(5), ids=[t.__name__ for t in TABLES])
def test_lane_maps_are_those_of_the_manual(kernels: ctypes.CDLL, which: int) -> None:
    places = {}
    for lane, i in product(range(32), range(ELEMENTS[which])):
        places[lane, i] = place(kernels, which, lane, i)
        assert places[lane, i] == TABLES[which](lane, i), f"lane {lane}, element {i}"
    rows, columns = (1 + max(p[axis] for p in places.values()) for axis in (0, 1))
    assert sorted(places.values()) == list(product(range(rows), range(columns))), "each element has one holder"


def test_the_map_of_ldmatrix_is_that_of_the_manual(kernels: ctypes.CDLL) -> None:
    for row, column in product(range(8), range(8)):
        lane, e = LDMATRIX[row][column]
        assert place(kernels, 5, lane, e) == (row, column)
        assert place(kernels, 6, lane, e) == (column, row)
    owners = [kernels.row_owner(matrix, row) for matrix in range(4) for row in range(8)]
    assert owners == list(range(32)), "threads 0-7 name the rows of matrix 0, 8-15 of matrix 1, ..."


# -- -- numbers


def bf16(x: Array) -> Array:
    """To the nearest, ties to even: as bits."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return np.where(np.isnan(x), 0x7FFF, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint32)


def test_conversions(everywhere: Callable[..., str]) -> None:
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, 1024 - 16, np.uint32)
    special = [0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.99, 65520, 6e-8, 2.98e-8, 5.97e-8, 6.1e-5, 1.0009765625]
    special += [1.00048828125, 1.0 + 2**-11, 1.0 + 2**-11 + 2**-20]
    x = np.concatenate([np.array(special, np.float32), bits.view(np.float32)])
    x[16::2] = generator.standard_normal(x[16::2].shape) * 10.0 ** generator.integers(-9, 6, x[16::2].shape)
    packed, back = np.zeros((1024, 2), np.uint32), np.zeros((1024, 3), np.float32)
    assert everywhere("convert", Schedule(), 1024, x, packed, back) == ""
    number = ~np.isnan(x)
    with np.errstate(over="ignore"):
        halves = x.astype(np.float16)
    assert np.isnan(back[~number]).all()
    np.testing.assert_array_equal(back[number, 0].view(np.uint32), (bf16(x) << 16)[number])
    np.testing.assert_array_equal(back[number, 1], halves[number].astype(np.float32))
    np.testing.assert_array_equal(packed[number, 0], (bf16(x) | bf16(-x) << 16)[number])
    own = halves.view(np.uint16).astype(np.uint32)
    np.testing.assert_array_equal(packed[number, 1], (own | (own ^ 0x8000) << 16)[number])
    finite = np.isfinite(x) & (np.abs(x) < 1e38) & (np.abs(x) > 1e-37)
    mantissa, exponent = np.frexp(x[finite].astype(np.float64))
    away = np.copysign(np.floor(np.abs(mantissa) * 2**11 + 0.5), mantissa)
    np.testing.assert_array_equal(back[finite, 2], np.ldexp(away, exponent - 11).astype(np.float32))


def fragments(matrix: Array, table: Callable[[int, int], tuple[int, int]], elements: int) -> Array:
    """(32, elements): what lanes hold of a matrix, by the manual."""
    return np.array([[matrix[table(lane, i)] for i in range(elements)] for lane in range(32)])


def registers(fragment: Array, kind: int) -> Array:
    """float (32, n) as registers."""
    if kind == TF32:
        return np.ascontiguousarray(fragment, np.float32).view(np.uint32)
    bits = bf16(fragment) if kind == BF16 else fragment.astype(np.float16).view(np.uint16).astype(np.uint32)
    return np.ascontiguousarray(bits[:, ::2] | bits[:, 1::2] << 16)


@pytest.mark.parametrize("kind", [TF32, BF16, F16], ids=["tf32", "bf16", "f16"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_products(everywhere: Callable[..., str], kind: int, schedule: Schedule) -> None:
    generator, depth = np.random.default_rng(3), 8 if kind == TF32 else 16
    # small integers are exact in every format, and so is their sum; TF32's further bits are cut off
    a, b = (generator.integers(-8, 9, shape).astype(np.float32) for shape in ((16, depth), (depth, 8)))
    c = generator.integers(-8, 9, (16, 8)).astype(np.float32)
    tables = (a_of_m16n8k8, b_of_m16n8k8) if kind == TF32 else (a_of_m16n8k16, b_of_m16n8k16)
    counts = (4, 2) if kind == TF32 else (8, 4)
    cut = np.float32(1 + 2**-11) if kind == TF32 else np.float32(1)
    left, right = (registers(fragments(m * cut, t, n), kind) for m, t, n in zip((a, b), tables, counts, strict=True))
    sums = np.ascontiguousarray(fragments(c, c_of_m16n8, 4), np.float32)
    out = np.full((32, 4), np.nan, np.float32)
    assert everywhere("mma", schedule, kind, left, right, sums, out) == ""
    np.testing.assert_array_equal(out, fragments(a @ b + c, c_of_m16n8, 4))


@pytest.mark.parametrize("matrices", [2, 4])
@pytest.mark.parametrize("transposed", [False, True], ids=["as they lie", "transposed"])
def test_load_matrices(everywhere: Callable[..., str], matrices: int, transposed: bool) -> None:
    values = np.arange(matrices * 64, dtype=np.uint16).reshape(matrices, 8, 8)
    out = np.zeros((32, matrices), np.uint32)
    assert everywhere("load_matrices", Schedule(), matrices, transposed, values.view(np.uint32), out) == ""
    for i in range(matrices):
        found = np.zeros((8, 8), np.uint16)
        for row, column in product(range(8), range(8)):
            lane, e = LDMATRIX[row][column]
            found[row, column] = out[lane, i] >> 16 * e & 0xFFFF
        np.testing.assert_array_equal(found, values[i].T if transposed else values[i])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("mask", [1, 2, 16, 31])
def test_shuffles(everywhere: Callable[..., str], schedule: Schedule, mask: int) -> None:
    values, out = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    assert everywhere("shuffle_xor", schedule, values, out, mask) == ""
    np.testing.assert_array_equal(out, values[np.arange(64) ^ mask])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_barriers(everywhere: Callable[..., str], schedule: Schedule) -> None:
    total, peers = np.zeros(1, np.int32), np.zeros(256, np.int32)
    assert everywhere("barrier", schedule, total) == ""
    assert total[0] == 36
    assert everywhere("named_barrier", schedule, peers) == ""
    np.testing.assert_array_equal(peers, (np.arange(256) ^ 32) + 1)


def aligned(count: int) -> Array:
    """(count,) words from a multiple of 16 bytes on."""
    room = np.zeros(count + 4, np.uint32)
    start = -room.ctypes.data % 16 // 4
    return room[start : start + count]


@pytest.mark.parametrize("size", [4, 8, 16])
def test_copies_land_when_they_are_waited_for(
    everywhere: Callable[..., str], launch: Callable[..., str], size: int
) -> None:
    words = size // 4
    values = aligned(64 * words)
    values[:] = np.arange(64 * words) + 1
    for late in (0, 1):
        out = np.zeros((2, 64 * words), np.uint32)
        assert everywhere("copy_async", Schedule(late=late), size, values, out) == ""
        np.testing.assert_array_equal(out[0], values)
        if everywhere is launch:  # elsewhere it may land whenever it likes
            np.testing.assert_array_equal(out[1], np.full_like(values, 0xFFFFFFFF) if late else values)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_counters_between_blocks(everywhere: Callable[..., str], schedule: Schedule) -> None:
    counter, message, out = np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros(3, np.int32)
    assert everywhere("publish", schedule, counter, message, out) == ""
    assert out.tolist() == [0, 42, 42]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("words", [1, 2, 4])
def test_blocks_of_a_cluster_push_to_each_other(everywhere: Callable[..., str], schedule: Schedule, words: int) -> None:
    """Two clusters of four, and more turns than a gate has phases before its parity comes again."""
    turns = 9
    out = np.zeros((turns, 8, 4), np.uint32)
    assert everywhere("exchange", schedule, words, turns, out) == ""
    sent = sum(100 * np.arange(turns)[:, None, None] + 10 * np.arange(4) + i for i in range(words))
    np.testing.assert_array_equal(out, np.broadcast_to(sent, out.shape))


@pytest.mark.parametrize("without", range(3), ids=["gates shown", "phase over", "buffer read"])
def test_no_wait_of_a_cluster_can_be_left_out(launch: Callable[..., str], without: int) -> None:
    def notices(schedule: Schedule) -> bool:
        found, out = np.zeros((2, 9, 8, 4), np.uint32)
        assert launch("exchange", Schedule(), 1, 9, found) == ""
        return launch("exchange_without", schedule, without, 1, 9, out) != "" or not np.array_equal(out, found)

    assert any(map(notices, SCHEDULES))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_blocks_of_a_cluster_read_each_other(everywhere: Callable[..., str], schedule: Schedule) -> None:
    out, arrived = np.zeros(8, np.int32), np.zeros(8, np.int32)
    assert everywhere("read_peer", schedule, out, arrived) == ""
    np.testing.assert_array_equal(out, 7 + np.array([1, 2, 3, 0, 5, 6, 7, 4]))
    assert (arrived == 2).all()


def test_it_is_told_how_long_a_wait_in_vain_lasts() -> None:
    (found,) = re.findall(
        r"constexpr u32 patience = ([\d']+); +// microseconds", (SOURCE / "device/cuda.h").read_text()
    )
    words = {10_000_000: "ten seconds", 30_000_000: "thirty seconds"}[int(found.replace("'", ""))]
    told = Path(__file__).parents[3] / "docs" / "pages" / "gpu.md"
    assert f"a wait in vain ends the launch with an error, after about {words}." in " ".join(told.read_text().split())


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc was not found")
@pytest.mark.parametrize("chip", ["sm_80", "sm_90a"])
def test_all_of_it_compiles_for_a_gpu(chip: str, tmp_path: Path) -> None:
    command = ["nvcc", "-std=c++17", f"-arch={chip}", f"-I{SOURCE}", "-cubin", "-Werror", "all-warnings"]
    done = subprocess.run([*command, HERE / "primitives.cu", "-o", tmp_path / "made"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# -- -- faults


FAULTS: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "H100": (
        "too_much_shared_memory",
        (232449, 232448),
        "a block asks for 232449 bytes of shared memory, and the chip has 232448",
    ),
    "uneven": ("uneven_block", (), "a block is 1 to 32 whole warps, not 33 threads"),
    "two collectives": (
        "two_collectives",
        (),
        "lanes of one warp meet in load_matrices of 4 and shuffle_xor (block 0, thread 0)",
    ),
    "a lane missing": ("lane_missing", (), "block 0, thread 5 ends while lanes of its warp wait in a collective"),
    "half a block": (
        "half_a_block_at_a_barrier",
        (),
        "deadlock: 32 threads wait: block 1, thread 0 at barrier",
    ),
    "named barrier": (
        "named_barrier_never_completed",
        (),
        "deadlock: 32 threads wait: block 0, thread 0 at named barrier",
    ),
    "two sizes": (
        "barrier_of_two_sizes",
        (),
        "block 0, thread 32 expects 96 threads at a barrier where others expect 64",
    ),
    "no such barrier": (
        "barrier_of_no_number",
        (),
        "block 0, thread 0: a named barrier is one of 1 to 15, for whole warps, not 16 for 64 threads",
    ),
    "row outside": (
        "row_outside",
        (512,),
        "block 0, thread 0: load_matrices at byte 512, outside of the 512 bytes of shared memory",
    ),
    "row askew": ("row_outside", (8,), "block 0, thread 0: load_matrices at byte 8, which is no multiple of 16"),
    "copy outside": (
        "copy_outside",
        (-16,),
        "block 0, thread 0: copy_async at byte -16, outside of the 512 bytes of shared memory",
    ),
    "copy askew": ("copy_outside", (4,), "block 0, thread 0: copy_async at byte 4, which is no multiple of 16"),
    "write behind": ("write_outside", (512,), "block 0 wrote outside of its shared memory"),
    "write before": ("write_outside", (-1,), "block 0 wrote outside of its shared memory"),
    "half a cluster": ("half_a_cluster", (), "a grid is whole clusters of 1 to 16 blocks, not 6 in clusters of 4"),
    "a block missing in a cluster": (
        "block_missing_in_a_cluster",
        (),
        "deadlock: 32 threads wait: block 0, thread 0 at cluster_barrier",
    ),
    "peer outside": ("peer_outside", (), "block 0, thread 0 names peer 2 in a cluster of 2"),
    "no gate": ("at_a_gate", (0,), "block 0, thread 0: wait_at at a gate that block 0 has not made"),
    "gate never over": ("at_a_gate", (1,), "deadlock: 1 threads wait: block 0, thread 0 at wait_at"),
    "too many arrive": ("at_a_gate", (2,), "block 0, thread 0: more than the 1 of a phase arrive at a gate"),
    "store nobody waits for": ("at_a_gate", (3,), "block 1 has ended while a store to it was on its way"),
    "store to nobody": ("at_a_gate", (4,), "block 0, thread 0: store_async to block 1, which has ended"),
    "store outside": (
        "at_a_gate",
        (5,),
        "block 0, thread 0: store_async at byte 76, outside of the 64 bytes of shared memory",
    ),
    "gate made twice": ("at_a_gate", (6,), "block 0, thread 0: a gate is made once"),
    "nobody publishes": (
        "nobody_publishes",
        (),
        "deadlock: 64 threads wait: block 0, thread 0 at wait_for",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_have_a_message(launch: Callable[..., str], fault: str) -> None:
    name, arguments, message = FAULTS[fault]
    assert launch(name, Schedule(), *arguments) == message
    total = np.zeros(1, np.int32)
    assert launch("barrier", Schedule(), total) == "", "the next launch is as good as any"
    assert total[0] == 36


def found_without_barrier(launch: Callable[..., str]) -> Iterator[bool]:
    for schedule in SCHEDULES:
        out = np.zeros(32, np.float32)
        assert launch("missing_barrier", schedule, out) == ""
        yield bool((out == 1).all())


def test_a_missing_barrier_shows_when_a_warp_runs_ahead(launch: Callable[..., str]) -> None:
    """Shared memory begins as NaN, and turn by turn the fault may stay hidden."""
    assert dict(zip(SCHEDULES, found_without_barrier(launch), strict=True))[Schedule(1, 1)] is False
    assert not all(found_without_barrier(launch))


def test_a_copy_that_nobody_waits_for_is_not_there(launch: Callable[..., str]) -> None:
    values, out = np.arange(32, dtype=np.uint32), np.zeros(32, np.uint32)
    assert launch("copy_without_wait", Schedule(), values, out) == ""
    assert (out == 0xFFFFFFFF).all()
