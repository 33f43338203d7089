"""The interpreter of compiled kernels: each instruction by its page of the manual, each fault provoked."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.ptx.arithmetic import Rounding
from tests.support.ptx.report import Fault
from tests.support.ptx.snippets import Snippet, thread_address
from tests.support.ptx.text import Unknown, parse

Array = NDArray[Any]
snippets: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def assembled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """At the end an assembler must take every snippet of this process: what is tested is the language, and not what we
    think it is."""
    yield
    triton = pytest.importorskip("triton", reason="triton is not installed, which ships ptxas")
    heading, folder = Snippet("").text.partition(".visible")[0], tmp_path_factory.mktemp("assembled")
    named = (
        text.removeprefix(heading).replace("entry snippet", f"entry snippet{i}")
        for i, text in enumerate(sorted(set(snippets)))
    )
    (folder / "snippets.ptx").write_text(heading + "\n".join(named))
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    command = [assembler, "-arch=sm_90", folder / "snippets.ptx", "-o", folder / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


U32 = np.array([0, 1, 2, 31, 32, 33, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xDEADBEEF, 12345, 0xFFFF], np.uint32)
F32 = np.array(
    [0.0, -0.0, 1.0, -1.5, 3.14159, 1e-40, -1e-40, 65504.0, 1e38, np.inf, -np.inf, np.nan, 0.1, 2.5, 3.5, -2.5],
    np.float32,
)


def pairs(values: Array) -> tuple[Array, Array]:
    """Each with each, in whole warps."""
    both = np.array(list(itertools.product(values, values)), values.dtype)
    both = np.concatenate([both, np.repeat(both[-1:], -len(both) % 32, 0)])
    return both[:, 0].copy(), both[:, 1].copy()


def apply(instruction: str, *operands: Array, result: Any, rounding: Rounding | None = None) -> Array:
    """``instruction %out, %in0, %in1, ...`` of every thread, with the register files of the operands' sizes."""
    letters = {1: "h", 2: "h", 4: "r", 8: "d"}
    out = np.zeros(len(operands[0]), result)
    lines, names = [], []
    for i, operand in enumerate(operands):
        size = operand.dtype.itemsize
        name = f"%{letters[size]}{10 + i}"
        kind = operand.dtype.kind
        if kind == "f" and size == 4:
            name = f"%f{10 + i}"
        lines += [
            thread_address(f"%d{i}", "%d50", size),
            f"ld.global.{'f' if '%f' in name else 'b'}{8 * size} {name}, [%d50];",
        ]
        names.append(name)
    size = out.dtype.itemsize
    target = "%f1" if out.dtype == np.float32 else {2: "%h1", 4: "%r1", 8: "%d90"}[size]
    lines += [f"{instruction} {target}, {', '.join(names)};"]
    lines += [
        thread_address(f"%d{len(operands)}", "%d50", size),
        f"st.global.{'f' if target == '%f1' else 'b'}{8 * size} [%d50], {target};",
    ]
    arrays = {f"in{i}": o.copy() for i, o in enumerate(operands)} | {"out": out}
    snippet = Snippet("\n".join(lines), arrays, unwritten=["out"], threads=len(out))
    snippets.append(snippet.text)
    snippet.run(rounding).assert_clean()
    return out


def check_each(
    instruction: str, right: Callable[..., Array], values: Array, count: int = 2, result: Any = None
) -> None:
    operands = pairs(values) if count == 2 else (np.resize(values, -(-len(values) // 32) * 32),)
    found = apply(instruction, *operands, result=result or values.dtype)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(found, right(*operands).astype(found.dtype))


@pytest.mark.parametrize(
    ("instruction", "right"),
    [
        ("add.u32", np.add),
        ("sub.u32", np.subtract),
        ("mul.lo.u32", np.multiply),
        ("mul.hi.u32", lambda a, b: (a.astype(np.uint64) * b) >> np.uint64(32)),
        ("and.b32", np.bitwise_and),
        ("or.b32", np.bitwise_or),
        ("xor.b32", np.bitwise_xor),
        ("min.u32", np.minimum),
        ("max.u32", np.maximum),
        (
            "shl.b32",
            lambda a, b: np.array([(int(x) << min(int(y), 32)) & 0xFFFFFFFF for x, y in zip(a, b, strict=True)]),
        ),
        ("shr.u32", lambda a, b: np.array([int(x) >> min(int(y), 32) for x, y in zip(a, b, strict=True)])),
    ],
)
def test_integers(instruction: str, right: Callable[..., Array]) -> None:
    check_each(instruction, right, U32)


@pytest.mark.parametrize(
    ("instruction", "right"),
    [
        ("mul.hi.s32", lambda a, b: (a.astype(np.int64) * b) >> 32),
        ("min.s32", np.minimum),
        ("shr.s32", lambda a, b: np.array([int(x) >> min(int(y) & 0xFFFFFFFF, 31) for x, y in zip(a, b, strict=True)])),
        (
            "div.s32",
            lambda a, b: np.array([int(x / y) if y else -1 for x, y in zip(a.tolist(), b.tolist(), strict=True)]),
        ),
        ("rem.s32", lambda a, b: np.fmod(a, np.where(b == 0, 1, b)) + np.where(b == 0, a - np.fmod(a, 1) + 0, 0)),
    ],
)
def test_signed_integers(instruction: str, right: Callable[..., Array]) -> None:
    values = U32.view(np.int32)
    if instruction.startswith(("div", "rem")):
        values = np.array([7, -7, 3, -3, 1, -1, 1000, -2147483647], np.int32)  # what the manual leaves open is left out
    check_each(instruction, right, values)


def test_wide_products() -> None:
    a, b = pairs(U32)
    np.testing.assert_array_equal(apply("mul.wide.u32", a, b, result=np.uint64), a.astype(np.uint64) * b)
    c = np.arange(len(a), dtype=np.int64) * 0x123456789
    signed = a.view(np.int32).astype(np.int64) * b.view(np.int32)
    np.testing.assert_array_equal(
        apply("mad.wide.s32", a.view(np.int32), b.view(np.int32), c, result=np.int64), signed + c
    )


@pytest.mark.parametrize(
    ("instruction", "right"),
    [
        ("add.f32", np.add),
        ("sub.rn.f32", np.subtract),
        ("mul.f32", np.multiply),
        ("div.rn.f32", np.divide),
        ("min.f32", np.fmin),
        ("max.NaN.f32", np.maximum),
        ("copysign.f32", lambda a, b: np.copysign(b, a)),
    ],
)
def test_floats(instruction: str, right: Callable[..., Array]) -> None:
    check_each(instruction, right, F32)


def test_flush_to_zero() -> None:
    tiny = np.resize(np.array([1e-40, -1e-40, 1.0, 2e-38], np.float32), 32)
    found = apply("mul.ftz.f32", tiny, np.full(32, 0.5, np.float32), result=np.float32)
    np.testing.assert_array_equal(found[:4], np.array([0, -0.0, 0.5, 0], np.float32))
    assert np.signbit(found[1])


def test_a_fused_multiply_add_rounds_once() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(4096).astype(np.float32) for _ in range(2))
    near = -(a.astype(np.float64) * b).astype(np.float32)  # cancels all but the last bits
    half = np.float32(2.0**-24)  # ties that a double rounding decides wrongly
    ties = np.full(64, 1 + 2.0**-23, np.float32), np.full(64, 1 + 2.0**-23, np.float32), np.full(64, half, np.float32)
    for x, y, z in ((a, b, near), (a, b, rng.standard_normal(4096).astype(np.float32)), ties):
        found = apply("fma.rn.f32", x, y, z, result=np.float32)
        exact = [_exactly(*each) for each in zip(x.tolist(), y.tolist(), z.tolist(), strict=True)]
        np.testing.assert_array_equal(found, np.array(exact, np.float32))


@pytest.mark.parametrize(("mode", "direction"), [("rz", 0), ("rm", -np.inf)])
def test_rounding_in_one_direction(mode: str, direction: float) -> None:
    rng = np.random.default_rng(4)
    a, b, c = (rng.standard_normal(1024).astype(np.float32) for _ in range(3))
    b[:512] *= np.float32(1e-12)
    for name, operands in (("add", (a, b)), ("fma", (a, b, c))):
        found = apply(f"{name}.{mode}.f32", *operands, result=np.float32)
        for value, *given in zip(found, *(o.tolist() for o in operands), strict=True):
            terms = [Fraction(v) for v in given]
            right = terms[0] * terms[1] + terms[2] if name == "fma" else sum(terms)
            beyond = np.nextafter(value, np.float32(np.inf if direction or value >= 0 else -np.inf))
            low, high = sorted((Fraction(float(value)), Fraction(float(beyond))))
            assert low <= right <= high
            assert right != Fraction(float(beyond))


def _exactly(a: float, b: float, c: float) -> float:
    """a b + c as the nearest float32, by whole numbers."""
    right = Fraction(a) * Fraction(b) + Fraction(c)
    guess = np.float32(float(right))
    near = [guess, np.nextafter(guess, np.float32(np.inf)), np.nextafter(guess, np.float32(-np.inf))]
    best = min(near, key=lambda f: (abs(Fraction(float(f)) - right), int(f.view(np.uint32)) & 1))
    return float(best)


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "num", "nan"])
def test_comparisons_of_floats(name: str) -> None:
    a, b = pairs(F32)
    found = apply(f"setp.{name}.f32 %p1, %f10, %f11; selp.u32 %r1, 1, 0, %p1; //", a, b, result=np.uint32)
    nan = np.isnan(a) | np.isnan(b)
    plain = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    base = name.removesuffix("u")
    right = {"num": ~nan, "nan": nan}.get(name, plain.get(base, nan) & ~nan | (nan if name != base else False))
    np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("name", ["lt", "gt", "le", "ge"])
def test_comparisons_of_integers(name: str) -> None:
    function = {"lt": np.less, "gt": np.greater, "le": np.less_equal, "ge": np.greater_equal}[name]
    a, b = pairs(U32)
    for kind, view in (("u32", np.uint32), ("s32", np.int32)):
        found = apply(f"setp.{name}.{kind} %p1, %r10, %r11; selp.u32 %r1, 1, 0, %p1; //", a, b, result=np.uint32)
        np.testing.assert_array_equal(found, function(a.view(view), b.view(view)))


def bfloat16(values: Array) -> Array:
    """Rounded by hand: to the nearest multiple of the last bit, ties to even."""
    import torch

    return torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def test_conversions() -> None:
    finite = np.resize(
        np.concatenate([F32[np.isfinite(F32)], np.random.default_rng(1).standard_normal(50).astype(np.float32)]), 64
    )
    halves = finite[np.abs(finite) < 6e4][:32]
    np.testing.assert_array_equal(
        apply("cvt.rn.f16.f32", halves, result=np.uint16), halves.astype(np.float16).view(np.uint16)
    )
    np.testing.assert_array_equal(
        apply("cvt.f32.f16", halves.astype(np.float16).view(np.uint16), result=np.float32), halves.astype(np.float16)
    )
    np.testing.assert_array_equal(apply("cvt.rn.bf16.f32", finite, result=np.uint16), bfloat16(finite))
    both = apply("cvt.rn.bf16x2.f32", finite, -finite, result=np.uint32)  # the first operand is the upper half
    np.testing.assert_array_equal(both >> 16, bfloat16(finite))
    np.testing.assert_array_equal(both & 0xFFFF, bfloat16(-finite))
    tf32 = apply("cvt.rna.tf32.f32", finite, result=np.uint32)
    assert not (tf32 & 0x1FFF).any()
    error = np.abs(tf32.view(np.float32).astype(np.float64) - finite)
    assert (error <= np.maximum(np.abs(finite.astype(np.float64)) * 2.0**-11, 2.0**-137)).all()
    floats = np.resize(np.array([0.5, 1.5, -0.5, -1.5, 2.5, 1e20, -1e20, np.nan], np.float32), 32)
    np.testing.assert_array_equal(apply("cvt.rmi.f32.f32", floats, result=np.float32), np.floor(floats))
    for mode, function in (("rni", np.rint), ("rzi", np.trunc)):
        right = np.clip(np.nan_to_num(function(floats.astype(np.float64))), -(2**31), 2**31 - 1).astype(np.int32)
        np.testing.assert_array_equal(apply(f"cvt.{mode}.s32.f32", floats, result=np.int32), right)
    narrow = np.resize(U32, 32)
    np.testing.assert_array_equal(apply("cvt.s64.s32", narrow.view(np.int32), result=np.int64), narrow.view(np.int32))
    np.testing.assert_array_equal(apply("cvt.u64.u32", narrow, result=np.uint64), narrow)
    np.testing.assert_array_equal(apply("cvt.u16.u32", narrow, result=np.uint16), narrow.astype(np.uint16))
    np.testing.assert_array_equal(
        apply("cvt.rn.f32.s32", narrow.view(np.int32), result=np.float32), narrow.view(np.int32).astype(np.float32)
    )


def test_bits() -> None:
    a = np.resize(U32, 96)
    for start, length in ((0, 32), (5, 3), (28, 8), (31, 1), (4, 0)):
        field = (a.astype(np.uint64) >> np.uint64(start)) & np.uint64((1 << length) - 1)
        found = apply(f"bfe.u32 %r1, %r10, {start}, {length}; //", a, result=np.uint32)
        np.testing.assert_array_equal(found, field)
    signed = apply("bfe.s32 %r1, %r10, 4, 8; //", a, result=np.int32)
    np.testing.assert_array_equal(signed, (a >> np.uint32(4)).astype(np.uint8).view(np.int8))
    inserted = apply("bfi.b32 %r1, %r10, %r11, 4, 8; //", a, np.roll(a, 5), result=np.uint32)
    np.testing.assert_array_equal(
        inserted, (np.roll(a, 5) & np.uint32(0xFFFFF00F)) | ((a & np.uint32(255)) << np.uint32(4))
    )
    swapped = apply("prmt.b32 %r1, %r10, %r10, 0x1032; //", a, result=np.uint32)
    np.testing.assert_array_equal(swapped, (a >> np.uint32(16)) | (a << np.uint32(16)))
    c = np.roll(a, 7)
    found = apply("lop3.b32 %r1, %r10, %r11, %r12, 0x96; //", a, np.roll(a, 3), c, result=np.uint32)
    np.testing.assert_array_equal(found, a ^ np.roll(a, 3) ^ c)
    left = apply("shf.l.wrap.b32 %r1, %r10, %r11, 8; //", a, c, result=np.uint32)
    np.testing.assert_array_equal(left, (c << np.uint32(8)) | (a >> np.uint32(24)))
    np.testing.assert_array_equal(apply("popc.b32", a, result=np.uint32), [int(v).bit_count() for v in a])


@pytest.mark.parametrize(
    ("instruction", "right", "ulp"),
    [("ex2.approx.ftz.f32", np.exp2, 2), ("rcp.approx.f32", lambda a: 1 / a, 1), ("lg2.approx.f32", np.log2, 1)],
)
def test_elementary_functions_may_be_off_by_what_the_manual_says(
    instruction: str, right: Callable[..., Array], ulp: int
) -> None:
    x = np.linspace(0.6, 1.9, 1024, dtype=np.float32)
    exact = right(x.astype(np.float64))
    np.testing.assert_array_equal(apply(instruction, x, result=np.float32), exact.astype(np.float32))
    last = np.spacing(np.abs(exact).astype(np.float32))
    if instruction.startswith("lg2"):
        last = np.maximum(last, 2.0**-22)
    off = np.abs(apply(instruction, x, result=np.float32, rounding=Rounding(3)) - exact) / last
    assert 0.6 * ulp < off.max() <= ulp + 0.5


# ---- lanes


def test_shuffles() -> None:
    a = np.arange(64, dtype=np.uint32) * 3
    lane = np.arange(64) % 32
    first = np.arange(64) // 32 * 32
    for mode, by, c, source in (
        ("bfly", 4, 31, lane ^ 4),
        ("down", 3, 31, np.where(lane + 3 < 32, lane + 3, lane)),
        ("up", 3, 0, np.where(lane - 3 >= 0, lane - 3, lane)),
        ("idx", 9, 31, np.full(64, 9)),
        ("bfly", 8, 0x181F, np.where((lane ^ 8) <= ((lane & 24) | 7), lane ^ 8, lane)),  # segments of 8 lanes
    ):
        found = apply(f"shfl.sync.{mode}.b32 %r1|%p1, %r10, {by}, {c}, 0xffffffff; //", a, result=np.uint32)
        np.testing.assert_array_equal(found, a[first + source], err_msg=f"{mode} {by} {c}")


def test_reductions_and_votes() -> None:
    a = np.random.default_rng(0).integers(-1000, 1000, 64).astype(np.int32)
    found = apply("redux.sync.max.s32 %r1, %r10, 0xffffffff; //", a, result=np.int32)
    np.testing.assert_array_equal(found, np.repeat(a.reshape(2, 32).max(1), 32))
    ballot = apply("setp.lt.s32 %p1, %r10, 0; vote.sync.ballot.b32 %r1, %p1, 0xffffffff; //", a, result=np.uint32)
    right = [sum(1 << i for i in range(32) if row[i] < 0) for row in a.reshape(2, 32)]
    np.testing.assert_array_equal(ballot, np.repeat(np.array(right, np.uint32), 32))


def operand(matrix: Array, kind: str) -> Array:
    """A matrix as the bits of its elements, and as the numbers that these are."""
    return matrix.astype(np.float16).view(np.uint16) if kind == "f16" else bfloat16(matrix)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_products_of_16_bits(kind: str) -> None:
    """Fragments by the manual's formulas for m16n8k16 (ISA 9.0, 9.7.14.5.8), written out element by element."""
    rng = np.random.default_rng(2)
    a, b, c = (rng.standard_normal(shape).astype(np.float32) for shape in ((16, 16), (16, 8), (16, 8)))
    a_bits, b_bits = operand(a, kind), operand(b, kind)
    registers = np.zeros((32, 10), np.uint32)
    for lane in range(32):
        group, within = lane >> 2, lane % 4
        for i in range(8):
            row = group if i < 2 or 4 <= i < 6 else group + 8
            column = within * 2 + (i & 1) + (8 if i >= 4 else 0)
            registers[lane, i // 2] |= np.uint32(int(a_bits[row, column]) << 16 * (i & 1))
        for i in range(4):
            row = within * 2 + (i & 1) + (8 if i >= 2 else 0)
            registers[lane, 4 + i // 2] |= np.uint32(int(b_bits[row, group]) << 16 * (i & 1))
        for i in range(4):
            registers[lane, 6 + i] = c[group + (8 if i >= 2 else 0), within * 2 + (i & 1)].view(np.uint32)
    found = product(f"m16n8k16.row.col.f32.{kind}.{kind}.f32", registers, 4, 2)
    numbers = [
        m.view(np.float16).astype(np.float64)
        if kind == "f16"
        else (m.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        for m in (a_bits, b_bits)
    ]
    np.testing.assert_array_equal(found, (numbers[0] @ numbers[1] + c).astype(np.float32))


def test_products_of_tf32() -> None:
    """m16n8k8 (ISA 9.0, 9.7.14.5.7); the hardware ignores the last 13 bits of an operand."""
    rng = np.random.default_rng(3)
    a, b, c = (rng.standard_normal(shape).astype(np.float32) for shape in ((16, 8), (8, 8), (16, 8)))
    registers = np.zeros((32, 10), np.uint32)
    for lane in range(32):
        group, within = lane >> 2, lane % 4
        for i in range(4):
            row, column = group + (8 if i in (1, 3) else 0), within + (4 if i >= 2 else 0)
            registers[lane, i] = a[row, column].view(np.uint32)
        for i in range(2):
            registers[lane, 4 + i] = b[within + 4 * i, group].view(np.uint32)
        for i in range(4):
            registers[lane, 6 + i] = c[group + (8 if i >= 2 else 0), within * 2 + (i & 1)].view(np.uint32)
    found = product("m16n8k8.row.col.f32.tf32.tf32.f32", registers, 4, 2)
    cut = [(m.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64) for m in (a, b)]
    np.testing.assert_array_equal(found, (cut[0] @ cut[1] + c).astype(np.float32))


def product(shape: str, registers: Array, of_a: int, of_b: int) -> Array:
    """D (16, 8) of each lane's registers of A, B and C."""
    count = registers.shape[1]
    out = np.zeros((32, 4), np.float32)
    names = [f"%r{10 + i}" if i < of_a + of_b else f"%f{10 + i}" for i in range(count)]
    lines = [thread_address("%d0", "%d50", 4 * count)]
    lines += [f"ld.global.{'f' if name[1] == 'f' else 'b'}32 {name}, [%d50+{4 * i}];" for i, name in enumerate(names)]
    parts = names[:of_a], names[of_a : of_a + of_b], names[of_a + of_b :]
    a, b, c = ("{" + ", ".join(part) + "}" for part in parts)
    lines += [f"mma.sync.aligned.{shape} {{%f1, %f2, %f3, %f4}}, {a}, {b}, {c};", thread_address("%d1", "%d50", 16)]
    lines += ["st.global.v4.f32 [%d50], {%f1, %f2, %f3, %f4};"]
    snippet = Snippet("\n".join(lines), {"given": registers.copy(), "out": out}, unwritten=["out"])
    snippets.append(snippet.text)
    snippet.run().assert_clean()
    matrix = np.zeros((16, 8), np.float32)
    for lane in range(32):
        for i in range(4):
            matrix[(lane >> 2) + (8 if i >= 2 else 0), lane % 4 * 2 + (i & 1)] = out[lane, i]
    return matrix


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_from_shared_memory(transposed: bool) -> None:
    """ldmatrix: lane l holds row l / 4, columns 2 (l % 4) and the next of matrix q in register q; row i of it lies at
    the address that lane 8 q + i gives."""
    given = np.arange(4 * 64, dtype=np.uint16)
    out = np.zeros((32, 4), np.uint32)
    trans = ".trans" if transposed else ""
    body = f"""
    {thread_address("%d0", "%d50", 16)}
    ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%d50];
    mov.u32 %r5, shared; mad.lo.u32 %r6, %r99, 16, %r5;
    st.shared.v4.b32 [%r6], {{%r1, %r2, %r3, %r4}};
    bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r11, %r12, %r13, %r14}}, [%r6];
    {thread_address("%d1", "%d50", 16)}
    st.global.v4.b32 [%d50], {{%r11, %r12, %r13, %r14}};
    """
    snippet = Snippet(body, {"given": given, "out": out}, unwritten=["out"])
    snippets.append(snippet.text)
    report = snippet.run()
    report.assert_clean()
    assert report.conflicts == 1
    matrices = given.reshape(4, 8, 8).swapaxes(1, 2) if transposed else given.reshape(4, 8, 8)
    for lane in range(32):
        for q in range(4):
            low, upper = matrices[q, lane // 4, 2 * (lane % 4)], matrices[q, lane // 4, 2 * (lane % 4) + 1]
            assert out[lane, q] == int(low) | int(upper) << 16


def test_matrices_to_shared_memory() -> None:
    """stmatrix puts them where ldmatrix finds them."""
    given, out = np.arange(128, dtype=np.uint32), np.zeros(128, np.uint32)
    body = f"""
    {thread_address("%d0", "%d50", 16)}
    ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%d50];
    mov.u32 %r5, shared; mad.lo.u32 %r6, %r99, 16, %r5;
    stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%r6], {{%r1, %r2, %r3, %r4}};
    ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {{%r11, %r12, %r13, %r14}}, [%r6];
    {thread_address("%d1", "%d50", 16)}
    st.global.v4.b32 [%d50], {{%r11, %r12, %r13, %r14}};
    """
    snippet = Snippet(body, {"given": given, "out": out}, unwritten=["out"])
    snippets.append(snippet.text)
    snippet.run().assert_clean()
    np.testing.assert_array_equal(out, given)


# ---- who touched what

EXCHANGE = """
    mov.u32 %r1, %tid.x; mov.u32 %r5, shared;
    mad.lo.u32 %r6, %r1, 4, %r5; xor.b32 %r2, %r1, 32; mad.lo.u32 %r7, %r2, 4, %r5;
    st.shared.b32 [%r6], %r1;
    {barrier}
    ld.shared.b32 %r3, [%r7];
    {behind}
    mad.wide.u32 %d50, %r1, 4, %d0; st.global.b32 [%d50], %r3;
"""


def exchange(barrier: str, behind: str = "") -> tuple[Array, Snippet]:
    """Two warps, each of which reads what the other stored."""
    out = np.zeros(64, np.uint32)
    body = EXCHANGE.format(barrier=barrier, behind=behind)
    return out, Snippet(body, {"out": out}, unwritten=["out"], threads=64)


@pytest.mark.parametrize("barrier", ["bar.sync 0;", "bar.sync 3, 64;", "barrier.cta.sync.aligned 1;"])
def test_a_barrier_orders_what_two_warps_do(barrier: str) -> None:
    out, snippet = exchange(barrier)
    snippets.append(snippet.text)
    report = snippet.run()
    report.assert_clean()
    assert report.barriers == 1
    np.testing.assert_array_equal(out, np.arange(64) ^ 32)


@pytest.mark.parametrize("barrier", ["", "bar.warp.sync 0xffffffff;", "membar.cta;"])
def test_a_barrier_that_is_missing_is_a_race(barrier: str) -> None:
    _, snippet = exchange(barrier)
    races = snippet.run().races
    assert {kind for _, kind, _ in races} == {"read after a store"}


def test_a_second_store_needs_a_second_barrier() -> None:
    again = "{barrier} st.shared.b32 [%r6], 7;"
    _, snippet = exchange("bar.sync 0;", again.format(barrier=""))
    assert {kind for _, kind, _ in snippet.run().races} == {"store after a read"}
    _, snippet = exchange("bar.sync 0;", again.format(barrier="bar.sync 0;"))
    snippet.run().assert_clean()


def test_equal_stores_of_two_warps_are_told_apart() -> None:
    store = """
    mov.u32 %r1, %tid.x; {value} and.b32 %r3, %r1, 31; mov.u32 %r5, shared; mad.lo.u32 %r6, %r3, 4, %r5;
    st.shared.b32 [%r6], %r2;
    """
    equal = Snippet(store.format(value="mov.u32 %r2, 5;"), threads=64).run()
    assert not equal.races
    assert len(equal.overlaps) == 1
    assert Snippet(store.format(value="mov.u32 %r2, %r1;"), threads=64).run().races


FLAGS = """
    mov.u32 %r1, %ctaid.x; setp.ne.u32 %p1, %r1, 0; @%p1 bra wait;
    mov.u32 %r2, 42; st.global.b32 [%d0], %r2; {before} {store} [%d1], 1; bra.uni end;
    wait: {load} %r3, [%d1]; setp.eq.u32 %p2, %r3, 0; @%p2 bra wait; {after}
    ld.global.b32 %r4, [%d0]; st.global.b32 [%d2], %r4;
    end:
"""


@pytest.mark.parametrize(
    ("before", "store", "load", "after", "ordered"),
    [
        ("", "st.release.gpu.global.b32", "ld.acquire.gpu.global.b32", "", True),
        ("fence.acq_rel.gpu;", "st.relaxed.gpu.global.b32", "ld.relaxed.gpu.global.b32", "fence.acq_rel.gpu;", True),
        ("membar.gl;", "st.volatile.global.b32", "ld.volatile.global.b32", "membar.gl;", True),
        ("", "red.release.gpu.global.add.u32", "ld.acquire.gpu.global.b32", "", True),
        ("", "st.relaxed.gpu.global.b32", "ld.acquire.gpu.global.b32", "", False),
        ("", "st.release.gpu.global.b32", "ld.relaxed.gpu.global.b32", "", False),
        ("fence.acq_rel.gpu;", "st.relaxed.gpu.global.b32", "ld.relaxed.gpu.global.b32", "", False),
    ],
)
def test_blocks_that_wait_for_a_flag(before: str, store: str, load: str, after: str, ordered: bool) -> None:
    data, flag, out = (np.zeros(1, np.uint32) for _ in range(3))
    body = FLAGS.format(before=before, store=store, load=load, after=after)
    snippet = Snippet(body, {"data": data, "flag": flag, "out": out}, grid=2)
    snippets.append(snippet.text)
    races = snippet.run().races
    assert out[0] == 42
    assert bool(races) is not ordered, races


def test_reads_of_nothing_are_told() -> None:
    report = Snippet("mov.u32 %r1, shared; ld.shared.b32 %r2, [%r1+64];").run()
    assert [name for name, _ in report.unwritten] == ["shared memory"]
    report = Snippet("add.u32 %r1, %r2, 1;").run()
    assert [name for name, _ in report.unwritten] == ["%r2"]
    half = (
        "mov.u16 %h1, 7; mov.b32 %r1, {%h1, %h2}; mov.b32 {%h3, %h4}, %r1; mov.b16 %h5, %h{use}; add.u16 %h6, %h5, 1;"
    )
    assert not Snippet(half.replace("{use}", "3")).run().unwritten
    assert [name for name, _ in Snippet(half.replace("{use}", "4")).run().unwritten] == ["%h5"]
    report = Snippet("ld.global.b32 %r1, [%d0];", {"out": np.zeros(4, np.uint32)}, unwritten=["out"]).run()
    assert [name for name, _ in report.unwritten] == ["out"]


def test_an_asynchronous_copy_lands_when_it_is_waited_for() -> None:
    copy = """
    {address} mov.u32 %r5, shared; mad.lo.u32 %r6, %r99, 16, %r5;
    cp.async.cg.shared.global [%r6], [%d50], 16; cp.async.commit_group;
    add.s64 %d51, %d50, 512; add.u32 %r7, %r6, 512;
    cp.async.ca.shared.global [%r7], [%d51], 16, 4; cp.async.commit_group;
    cp.async.wait_group {pending};
    ld.shared.b32 %r1, [%r6+4]; ld.shared.b32 %r2, [%r7]; ld.shared.b32 %r3, [%r7+4];
    {result} st.global.b32 [%d50], %r1; st.global.b32 [%d50+4], %r2; st.global.b32 [%d50+8], %r3;
    """
    address, result = thread_address("%d0", "%d50", 16), thread_address("%d1", "%d50", 12)
    given, out = np.arange(256, dtype=np.uint32), np.zeros((32, 3), np.uint32)
    body = copy.format(address=address, result=result, pending=0)
    snippet = Snippet(body, {"given": given, "out": out}, unwritten=["out"])
    snippets.append(snippet.text)
    snippet.run().assert_clean()
    four = given.reshape(64, 4)
    np.testing.assert_array_equal(out, np.stack([four[:32, 1], four[32:, 0], np.zeros(32)], 1))
    report = Snippet(copy.format(address=address, result=result, pending=1), {"given": given, "out": out}).run()
    assert {line.split("[")[1] for _, line in report.unwritten} == {"%r7]", "%r7+4]"}


@pytest.mark.parametrize(("stride", "wavefronts"), [(1, 1), (2, 2), (32, 32), (33, 1), (0, 1)])
def test_bank_conflicts(stride: int, wavefronts: int) -> None:
    body = f"mov.u32 %r1, %tid.x; mov.u32 %r5, shared; mad.lo.u32 %r6, %r1, {4 * stride}, %r5; st.shared.b32 [%r6], 1;"
    report = Snippet(body, shared=8192).run()
    assert report.wavefronts.total() == wavefronts
    assert report.conflicts == wavefronts


def test_bank_conflicts_of_wide_accesses_and_matrices() -> None:
    body = "mov.u32 %r1, %tid.x; mov.u32 %r5, shared; mad.lo.u32 %r6, %r1, {stride}, %r5; {access}"
    wide = "mov.u32 %r2, 0; st.shared.v4.b32 [%r6], {%r2, %r2, %r2, %r2};"
    assert Snippet(body.format(stride=16, access=wide), shared=8192).run().wavefronts.total() == 4
    assert Snippet(body.format(stride=128, access=wide), shared=8192).run().wavefronts.total() == 32
    rows = "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r6], {%r1, %r1, %r1, %r1};"
    assert Snippet(body.format(stride=16, access=rows), shared=8192).run().conflicts == 1
    assert Snippet(body.format(stride=128, access=rows), shared=8192).run().conflicts == 8


# ---- faults


FEW = "mov.u32 %r1, %tid.x; setp.lt.u32 %p1, %r1, 7; @%p1"
ONE_WARP = "mov.u32 %r1, %tid.x; setp.lt.u32 %p1, %r1, 32; @%p1"
PRODUCT = (
    "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%f1, %f2, %f3, %f4}, {%r1, %r1}, {%r1}, {%f1, %f2, %f3, %f4};"
)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "ld.global.b32 %r1, [%d0+64];",
            "outside of every tensor .*: the next is out, 64 bytes, touched from 64 to 68",
        ),
        ("ld.global.b32 %r1, [%d0-4];", "touched from -4 to 0"),
        ("ld.global.b32 %r1, [%d0+2];", "no multiple of that"),
        ("mov.u32 %r1, shared; ld.shared.b32 %r2, [%r1+1024];", "memory has 1024 bytes, and an access ends at 1028"),
        ("trap;", "trap"),
        ("again: bra again;", "no end after"),
        (f"{FEW} bar.sync 0;", "divergent"),
        (f"{ONE_WARP} bar.sync 0, 64; bar.sync 1;", "deadlock: block 0 waits at barrier"),
        (f"{FEW} shfl.sync.idx.b32 %r2, %r1, 0, 31, 0xffffffff;", "missing"),
        (f"{FEW} {PRODUCT}", "divergent"),
    ],
)
def test_faults(body: str, words: str) -> None:
    with pytest.raises(Fault, match=words):
        Snippet(body, {"out": np.zeros(16, np.uint32)}, threads=64).run(limit=2000)


@pytest.mark.parametrize(
    "instruction",
    [
        "wgmma.fence.sync.aligned;",
        "mbarrier.init.shared.b64 [%r1], 1;",
        "add.sat.s32 %r1, %r2, %r3;",
        "ld.shared::cluster.b32 %r1, [%r2];",
        "fence.proxy.async;",
    ],
)
def test_what_it_does_not_know_is_refused_by_name(instruction: str) -> None:
    with pytest.raises(Unknown, match=instruction.partition(" ")[0].partition(".")[0]):
        Snippet(instruction).run()


def test_names_of_inner_blocks_are_their_own() -> None:
    out = np.zeros(1, np.uint32)
    body = """
    { .reg .b32 t; mov.b32 t, 3; mov.b32 %r1, t; }
    { .reg .b32 t; .reg .pred p; setp.eq.u32 p, %r1, 3; @p mov.b32 t, 4; st.global.b32 [%d0], t; }
    """
    snippet = Snippet(body, {"out": out}, unwritten=["out"])
    snippets.append(snippet.text)
    snippet.run()
    assert out[0] == 4


def test_branches_that_diverge_meet_again() -> None:
    out = np.zeros(32, np.uint32)
    body = f"""
    mov.u32 %r1, %tid.x; mov.u32 %r2, 0; mov.u32 %r3, 0;
    again: setp.ge.u32 %p1, %r3, %r1; @%p1 bra done; add.u32 %r2, %r2, %r3; add.u32 %r3, %r3, 1; bra again;
    done: bar.warp.sync 0xffffffff; {thread_address("%d0", "%d50", 4)} st.global.b32 [%d50], %r2;
    """
    snippet = Snippet(body, {"out": out}, unwritten=["out"])
    snippets.append(snippet.text)
    snippet.run().assert_clean()
    np.testing.assert_array_equal(out, [i * (i - 1) // 2 for i in range(32)])


def test_lanes_that_take_a_way_round_are_waited_for() -> None:
    """A compiler may put the code of a few lanes behind that of the others."""
    body = """
    mov.u32 %r1, %tid.x; mov.u32 %r2, 1; setp.lt.u32 %p1, %r1, 7; @%p1 bra away;
    together: bar.sync 0; redux.sync.add.s32 %r3, %r2, 0xffffffff; bra.uni end;
    away: mov.u32 %r2, 3; bra together;
    end: {address} st.global.b32 [%d50], %r3;
    """
    out = np.zeros(32, np.uint32)
    snippet = Snippet(body.replace("{address}", thread_address("%d0", "%d50", 4)), {"out": out}, unwritten=["out"])
    snippets.append(snippet.text)
    snippet.run().assert_clean()
    assert (out == 7 * 3 + 25).all()


def test_a_kernel_is_chosen_by_name() -> None:
    text = Snippet("").text
    with pytest.raises(ValueError, match=r"kernels \['snippet'\]; asked for 'other'"):
        parse(text, "other")
