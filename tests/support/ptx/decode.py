"""What each instruction does, decided once for a program: by name, then by its modifiers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import arithmetic, clusters, moves, warps
from .machine import WARP, Block, Lanes, Step
from .memory import SHARED_WINDOW, Bytes
from .report import Fault
from .text import Address, Instruction, Kernel, Number, Operand, Register, Symbol, Unknown, Vector
from .values import SIZES, UNSIGNED, Array, bits_of, typed

Reader = Callable[[Block], Array]
Writer = Callable[[Block, Lanes, Array], None]

_SPECIAL: dict[str, Callable[[Block], Array]] = {
    "%tid.x": lambda b: np.arange(b.threads, dtype=np.uint32),
    "%laneid": lambda b: np.arange(b.threads, dtype=np.uint32) % np.uint32(WARP),
    "%warpid": lambda b: np.arange(b.threads, dtype=np.uint32) // np.uint32(WARP),
    "%ctaid.x": lambda b: np.full(b.threads, b.index, np.uint32),
    "%ntid.x": lambda b: np.full(b.threads, b.threads, np.uint32),
    "%cluster_ctarank": lambda b: np.full(b.threads, b.index % b.launch.kernel.cluster, np.uint32),
    "%cluster_nctarank": lambda b: np.full(b.threads, b.launch.kernel.cluster, np.uint32),
    "%nctaid.x": lambda b: np.full(b.threads, b.launch.grid, np.uint32),
    **{f"%{name}.{axis}": (lambda b, n=n: np.full(b.threads, n, np.uint32)) for axis in "yz"
       for name, n in (("tid", 0), ("ctaid", 0), ("ntid", 1), ("nctaid", 1))},
}  # fmt: skip


def decode(
    instruction: Instruction, kernel: Kernel, constants: Mapping[str, int], shared: Mapping[str, tuple[int, bytes]]
) -> Step:
    """The step that a block takes at this instruction.

    Raises:
        Unknown: it is not known here; says its line.
    """
    make = _INSTRUCTIONS.get(instruction.name)
    if make is None:
        raise Unknown(f"instruction: {instruction.line}")
    try:
        return make(Decoder(instruction, kernel, constants, shared))
    except Unknown as unknown:
        raise Unknown(f"{unknown} in: {instruction.line}") from None
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise Unknown(f"{type(error).__name__} {error} in: {instruction.line}") from error


class Decoder:
    """An instruction and the names that it may use."""

    def __init__(self, instruction: Instruction, kernel: Kernel, constants: Any, shared: Any) -> None:
        self.instruction, self.kernel, self.constants, self.shared = instruction, kernel, constants, shared
        self.name, self.modifiers, self.operands = instruction.name, instruction.modifiers, instruction.operands

    @property
    def kind(self) -> str:
        return self.modifiers[-1]

    def read(self, operand: Operand | None, kind: str, *, use: bool = True) -> Reader:
        """An operand as numbers of a kind. What nobody has written is told of where it is used, and not where it is
        moved: compilers fill halves of a register with nothing."""
        if isinstance(operand, Number):
            return self._number(operand, kind)
        if isinstance(operand, Symbol):
            place = self.shared[operand.name][0] if operand.name in self.shared else self.constants[operand.name]
            return lambda block: np.full(block.threads, place, UNSIGNED[SIZES[kind]])
        if not isinstance(operand, Register):
            raise Unknown(f"operand {operand}")
        name, size, line = operand.name, SIZES[kind], self.instruction.line
        if name in _SPECIAL:
            return lambda block: typed(_SPECIAL[name](block).astype(UNSIGNED[size]), kind)
        width = self.kernel.registers[name]

        def register(block: Block) -> Array:
            bits = block.registers.get(name)
            if bits is None:
                bits = block.registers[name] = np.zeros(block.threads, UNSIGNED[width])
                block.holes[name] = (1 << max(1, width)) - 1
            if use and block.holes.get(name, 0) & ((1 << max(1, size)) - 1):
                block.report.unwritten[name, line] += 1
            if operand.negated:
                return ~bits
            return typed(bits if width == size else bits.astype(UNSIGNED[size]), kind)

        return register

    def _number(self, number: Number, kind: str) -> Reader:
        size = SIZES[kind]
        if kind == "pred":
            return lambda block: np.full(block.threads, bool(number.value))
        if number.float_bytes == 8 and size == 4:
            raise Unknown("a double literal of a float")
        bits = np.array([number.value & ((1 << 8 * size) - 1)], UNSIGNED[size])
        value = typed(bits, kind)
        return lambda block: np.broadcast_to(value, (block.threads, *value.shape[1:]))

    def write(self, operand: Operand | None, kind: str) -> Writer:
        """Where a result of a kind goes: lanes that do not execute keep what they had."""
        if operand is None or (isinstance(operand, Register) and operand.name == "_"):
            return lambda block, lanes, value: None
        if not isinstance(operand, Register):
            raise Unknown(f"result {operand}")
        name, width, narrow = operand.name, self.kernel.registers[operand.name], SIZES[kind]
        extends = kind.startswith("s") and width > narrow

        def register(block: Block, lanes: Lanes, value: Array) -> None:
            bits = bits_of(value, kind)
            block.holes.pop(name, None)
            if width != narrow:
                bits = (bits.view(f"i{narrow}").astype(f"i{width}") if extends else bits).astype(UNSIGNED[width])
            old = block.registers.get(name)
            if lanes.all_threads:
                block.registers[name] = bits.copy() if bits.base is not None or not bits.flags.writeable else bits
            elif old is None:
                block.registers[name] = np.where(lanes.mask, bits, UNSIGNED[width].type(0))
            else:
                block.registers[name] = np.where(lanes.mask, bits, old)

        return register

    def address(self, operand: Operand) -> Reader:
        assert isinstance(operand, Address), operand
        return moves.address_of(operand, self.kernel, self.constants, self.shared)

    def simple(self, function: Callable[..., Array], result: str, *kinds: str) -> Step:
        """A result of as many operands as there are kinds."""
        write = self.write(self.operands[0], result)
        readers = [self.read(o, k) for o, k in zip(self.operands[1:], kinds, strict=True)]
        return lambda block, lanes: write(block, lanes, function(*(r(block) for r in readers)))


# ---- numbers


def _plain(d: Decoder) -> Step:
    kind, count = d.kind, len(d.operands) - 1
    if d.name in ("mul", "mad") and {"hi", "wide"} & set(d.modifiers):
        return _long_product(d)
    if d.name in ("div", "sqrt", "rcp") and {"full", "approx"} & set(d.modifiers):
        return _elementary(d)
    if d.name in ("and", "or", "xor", "not") and kind == "pred":
        function = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor, "not": np.logical_not}[d.name]
        return d.simple(function, "pred", *["pred"] * count)
    return d.simple(arithmetic.plain(d.name, d.modifiers, kind), kind, *[kind] * count)


def _long_product(d: Decoder) -> Step:
    kind = d.kind
    half, result = (
        (arithmetic.high, kind) if "hi" in d.modifiers else (arithmetic.wide, f"{kind[0]}{2 * int(kind[1:])}")
    )
    if d.name == "mul":
        return d.simple(half, result, kind, kind)
    return d.simple(lambda a, b, c: half(a, b) + c, result, kind, kind, result)


def _elementary(d: Decoder) -> Step:
    name = f"{d.name}.{d.modifiers[0]}"
    rest = set(d.modifiers[1:]) - {"ftz", "f32"}
    if rest or name not in arithmetic.ELEMENTARY or d.kind != "f32":
        raise Unknown(name)
    function, ftz = arithmetic.ELEMENTARY[name], "ftz" in d.modifiers
    write = d.write(d.operands[0], "f32")
    readers = [d.read(o, "f32") for o in d.operands[1:]]

    def step(block: Block, lanes: Lanes) -> None:
        given = (arithmetic.flushed(r(block)) if ftz else r(block) for r in readers)
        found = block.launch.rounding(name, function(*(g.astype(np.float64) for g in given)))
        write(block, lanes, arithmetic.flushed(found) if ftz else found)

    return step


def _shift(d: Decoder) -> Step:
    return d.simple(arithmetic.shift_left if d.name == "shl" else arithmetic.shift_right, d.kind, d.kind, "u32")


def _select(d: Decoder) -> Step:
    return d.simple(lambda a, b, p: np.where(p if a.ndim == 1 else p[:, None], a, b), d.kind, d.kind, d.kind, "pred")


def _compare(d: Decoder) -> Step:
    names = [m for m in d.modifiers[:-1] if m not in ("ftz", "and", "or", "xor")]
    joined = [m for m in d.modifiers if m in ("and", "or", "xor")]
    (name,) = names
    function = arithmetic.compare(name, d.kind)
    results = moves.elements(d.operands[0])
    writers = [d.write(r, "pred") for r in results]
    a, b = (d.read(o, d.kind) for o in d.operands[1:3])
    third = d.read(d.operands[3], "pred") if joined else None
    join = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[joined[0]] if joined else None

    def step(block: Block, lanes: Lanes) -> None:
        found = function(a(block), b(block))
        both = (found[:, 0], found[:, 1]) if d.kind.endswith("x2") else (found, ~found)
        for write, value in zip(writers, both, strict=False):
            write(block, lanes, value if join is None or third is None else join(value, third(block)))

    return step


def _convert(d: Decoder) -> Step:
    to, of, function = arithmetic.convert(d.modifiers)
    return d.simple(function, to, *[of] * (len(d.operands) - 1))


def _bit_field(d: Decoder) -> Step:
    if d.kind not in ("u32", "s32"):
        raise Unknown(d.kind)
    return d.simple(arithmetic.bit_field, d.kind, d.kind, "u32", "u32")


def _insert_bits(d: Decoder) -> Step:
    if d.kind != "b32":
        raise Unknown(d.kind)
    return d.simple(arithmetic.insert_bits, "b32", "b32", "b32", "u32", "u32")


def _permute(d: Decoder) -> Step:
    if d.modifiers != ("b32",):
        raise Unknown("a mode of prmt")
    return d.simple(arithmetic.permute, "b32", "b32", "b32", "b32")


def _logic(d: Decoder) -> Step:
    table = d.operands[4]
    assert isinstance(table, Number)
    d.operands = d.operands[:4]
    return d.simple(lambda a, b, c: arithmetic.logic(a, b, c, table.value), "b32", "b32", "b32", "b32")


def _funnel(d: Decoder) -> Step:
    direction, mode, kind = d.modifiers
    assert kind == "b32"
    return d.simple(arithmetic.funnel(direction, mode == "clamp"), "b32", "b32", "b32", "u32")


def _count_bits(d: Decoder) -> Step:
    count = {"popc": lambda v: v.bit_count(), "clz": lambda v: 32 - v.bit_length()}[d.name]
    assert d.kind == "b32"
    return d.simple(lambda a: np.array([count(int(v)) for v in a], np.uint32), "u32", "b32")


# ---- moves


def _move(d: Decoder) -> Step:
    kind, (into, of) = d.kind, d.operands
    if isinstance(into, Vector) and isinstance(of, Vector):
        raise Unknown("a move between vectors")
    bits = kind if kind == "pred" else f"b{8 * SIZES[kind]}"
    if isinstance(of, Vector):
        parts, size = of.elements, SIZES[kind] // len(of.elements)
        readers = [d.read(e, f"b{8 * size}", use=False) for e in parts]
        write = d.write(into, kind)

        def pack(block: Block, lanes: Lanes) -> None:
            write(block, lanes, np.stack([r(block) for r in readers], 1).view(UNSIGNED[SIZES[kind]])[:, 0])
            _leave_holes(block, into, sum(_holes(block, e) << i * size for i, e in enumerate(parts)))

        return pack
    read = d.read(of, bits, use=False)
    parts, size = (into.elements if isinstance(into, Vector) else (into,)), SIZES[kind]
    if isinstance(into, Vector):
        size //= len(parts)
    writers = [d.write(e, kind if kind == "pred" else f"b{8 * size}") for e in parts]

    def unpack(block: Block, lanes: Lanes) -> None:
        value, holes = read(block), _holes(block, of)
        pieces = (
            [value] if len(parts) == 1 else np.ascontiguousarray(value).view(UNSIGNED[size]).reshape(-1, len(parts)).T
        )
        for i, (part, write_part, piece) in enumerate(zip(parts, writers, pieces, strict=True)):
            write_part(block, lanes, np.ascontiguousarray(piece))
            _leave_holes(block, part, holes >> i * size & ((1 << max(1, size)) - 1))

    return unpack


def _holes(block: Block, operand: Operand | None) -> int:
    return block.holes.get(operand.name, 0) if isinstance(operand, Register) else 0


def _leave_holes(block: Block, operand: Operand | None, holes: int) -> None:
    if holes and isinstance(operand, Register):
        block.holes[operand.name] = holes


def _address_space(d: Decoder) -> Step:
    to_space, shared = "to" in d.modifiers, any(m.startswith("shared") for m in d.modifiers)
    window = (SHARED_WINDOW if shared else 0) * (-1 if to_space else 1)
    kind = d.kind
    return d.simple(lambda a: (a.astype(np.int64) + window).astype(a.dtype), kind, kind)


def _load(d: Decoder) -> Step:
    access = moves.Access(d.instruction)
    into, of = d.operands
    writers = [d.write(e, access.kind) for e in moves.elements(into)]
    assert isinstance(of, Address)
    if access.space == "param" and not isinstance(of.base, str):
        access.space = "global"  # where a parameter lies whose address was taken
    if access.space == "param":
        assert isinstance(of.base, str)
        name, offset = of.base, of.offset

        def parameter(block: Block, lanes: Lanes) -> None:
            for i, write in enumerate(writers):
                begin = offset + i * access.element
                word = block.launch.arguments[name][begin : begin + access.element]
                write(block, lanes, np.repeat(np.frombuffer(word.tobytes(), UNSIGNED[access.element]), block.threads))

        return parameter
    address = d.address(of)
    bits = f"{'s' if access.kind[0] == 's' else 'b'}{8 * access.element}"
    writers = [d.write(e, bits) for e in moves.elements(into)]

    def step(block: Block, lanes: Lanes) -> None:
        found = moves.load(block, lanes, access, address(block))
        for i, write in enumerate(writers):
            write(
                block, lanes, moves.from_bytes(found[:, i * access.element : (i + 1) * access.element], access.element)
            )

    return step


def _store(d: Decoder) -> Step:
    if d.modifiers[0] == "async":
        return _push(d)
    access = moves.Access(d.instruction)
    into, of = d.operands
    address = d.address(into)
    readers = [d.read(e, f"b{8 * access.element}") for e in moves.elements(of)]

    def step(block: Block, lanes: Lanes) -> None:
        values = np.concatenate([moves.as_bytes(r(block)) for r in readers], 1)
        moves.store(block, lanes, access, address(block), values)

    return step


def _atomic(d: Decoder) -> Step:
    operation = next(m for m in d.modifiers if m in _ATOMIC)
    kept = tuple(m for m in d.modifiers if m != operation)
    access = moves.Access(Instruction(None, ".".join((d.name, *kept)), (), d.instruction.line))
    access.order = access.order or "relaxed"
    kind, first = access.kind, 1 if d.name == "atom" else 0
    address = d.address(d.operands[first])
    readers = [d.read(o, kind) for o in d.operands[first + 1 :]]
    write = d.write(d.operands[0], kind) if first else None
    function = _ATOMIC[operation]

    def step(block: Block, lanes: Lanes) -> None:
        given = [r(block) for r in readers]

        def update(old: Bytes, thread: int) -> Bytes:
            value = typed(old.view(UNSIGNED[access.size]), kind)
            new = function(value, *(g[thread : thread + 1] for g in given))
            return bits_of(new.astype(value.dtype), kind).view(np.uint8)

        found = moves.update(block, lanes, access, address(block), update)
        if write is not None:
            write(block, lanes, typed(moves.from_bytes(found, access.size), kind))

    return step


_ATOMIC: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, new: new,
    "cas": lambda old, expected, new: np.where(old == expected, new, old),
    "inc": lambda old, most: np.where(old >= most, 0, old + 1),
}


def _asynchronous(d: Decoder) -> Step:
    if d.modifiers[:2] == ("async", "commit_group"):
        return moves.commit
    if d.modifiers[:2] in (("async", "wait_group"), ("async", "wait_all")):
        pending = d.operands[0].value if d.operands and isinstance(d.operands[0], Number) else 0
        if d.modifiers[1] == "wait_all":
            return lambda block, lanes: (moves.commit(block, lanes), moves.wait_for_copies(block, lanes, 0))[1]
        return lambda block, lanes: moves.wait_for_copies(block, lanes, pending)
    known = {"async", "ca", "cg", "shared", "global", "L2"}
    if d.modifiers[0] != "async" or {m.partition("::")[0] for m in d.modifiers} - known:
        raise Unknown(d.name)
    size = d.operands[2]
    assert isinstance(size, Number)
    into, of = d.address(d.operands[0]), d.address(d.operands[1])
    real = d.read(d.operands[3], "u32") if len(d.operands) > 3 else lambda block: np.full(block.threads, size.value)
    return lambda block, lanes: moves.copy_later(
        block, lanes, into(block), of(block), size.value, real(block).astype(np.int64)
    )


# ---- clusters


def _peer(d: Decoder) -> Step:
    kind = d.kind
    if d.modifiers not in (("shared::cluster", "u32"), ("u64",)):
        raise Unknown(d.name)
    write, at, rank = d.write(d.operands[0], kind), d.read(d.operands[1], kind), d.read(d.operands[2], "u32")

    def step(block: Block, lanes: Lanes) -> None:
        found = clusters.peer(at(block).astype(np.int64), rank(block).astype(np.int64))
        write(block, lanes, found.astype(UNSIGNED[SIZES[kind]]))

    return step


def _gate(d: Decoder) -> Step:
    what, *modifiers = d.modifiers
    if modifiers[-2:] != ["shared::cta", "b64"]:
        raise Unknown(d.name)
    if what == "init":
        at, count = d.address(d.operands[0]), d.read(d.operands[1], "u32")
        return lambda block, lanes: clusters.make(block, lanes, at(block), int(count(block)[lanes.threads[0]]))
    if what == "arrive" and d.operands[0] == Symbol("_"):
        at = d.address(d.operands[1])
        more = d.read(d.operands[2], "u32") if "expect_tx" in modifiers else None
        return lambda block, lanes: clusters.arrive(
            block, lanes, at(block), np.zeros(block.threads, np.int64) if more is None else more(block).astype(np.int64)
        )
    if (what, *modifiers[:3]) != ("try_wait", "parity", "acquire", "cluster"):
        raise Unknown(d.name)
    write, at, parity = d.write(d.operands[0], "pred"), d.address(d.operands[1]), d.read(d.operands[2], "u32")
    return lambda block, lanes: write(block, lanes, clusters.is_over(block, lanes, at(block), parity(block)))


def _push(d: Decoder) -> Step:
    known = ("async", "shared::cluster", "mbarrier::complete_tx::bytes")
    if d.modifiers[:3] != known or d.modifiers[3:] not in (("u32",), ("v2", "u32"), ("v4", "u32")):
        raise Unknown(d.name)
    at, gate = d.address(d.operands[0]), d.address(d.operands[2])
    readers = [d.read(r, "u32") for r in moves.elements(d.operands[1])]

    def step(block: Block, lanes: Lanes) -> None:
        values = np.stack([r(block) for r in readers], 1)
        clusters.push(block, lanes, at(block), moves.as_bytes(values), gate(block))

    return step


# ---- warps


def _shuffle(d: Decoder) -> Step:
    _, mode, kind = d.modifiers
    assert kind == "b32"
    value, inside = (*moves.elements(d.operands[0]), None)[:2]
    write, tell = d.write(value, "b32"), d.write(inside, "pred")
    a, b, c, mask = (d.read(o, "u32") for o in d.operands[1:5])

    def step(block: Block, lanes: Lanes) -> None:
        warps.members(block, lanes, mask(block))
        found, there = warps.shuffle(mode, a(block), b(block), c(block))
        write(block, lanes, found)
        tell(block, lanes, there)

    return step


def _vote(d: Decoder) -> Step:
    _, mode, kind = d.modifiers
    write = d.write(d.operands[0], kind)
    value, mask = d.read(d.operands[1], "pred"), d.read(d.operands[2], "u32")

    def step(block: Block, lanes: Lanes) -> None:
        warps.members(block, lanes, mask(block))
        true, here = warps.ballot(value(block), lanes), warps.ballot(lanes.mask, lanes)
        found = {"ballot": true, "all": true == here, "any": true != 0, "uni": (true == here) | (true == 0)}[mode]
        write(block, lanes, found)

    return step


def _active(d: Decoder) -> Step:
    write = d.write(d.operands[0], "b32")
    return lambda block, lanes: write(block, lanes, warps.ballot(lanes.mask, lanes))


def _elect(d: Decoder) -> Step:
    into, chosen = moves.elements(d.operands[0])
    write, tell = d.write(into, "b32"), d.write(chosen, "pred")

    def step(block: Block, lanes: Lanes) -> None:
        word = warps.ballot(lanes.mask, lanes)
        first = np.array([(int(v) & -int(v)).bit_length() - 1 for v in word], np.uint32)
        write(block, lanes, first)
        tell(block, lanes, first == np.arange(block.threads) % WARP)

    return step


def _reduce(d: Decoder) -> Step:
    _, operation, kind = d.modifiers
    function = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
                "xor": np.bitwise_xor}[operation]  # fmt: skip
    write = d.write(d.operands[0], kind)
    value, mask = d.read(d.operands[1], kind), d.read(d.operands[2], "u32")

    def step(block: Block, lanes: Lanes) -> None:
        warps.members(block, lanes, mask(block))
        write(block, lanes, warps.reduce_lanes(function, value(block), lanes))

    return step


def _matrix(d: Decoder) -> Step:
    known = {"sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta", "b16"}
    if set(d.modifiers) - known:
        raise Unknown(d.name)
    transposed = "trans" in d.modifiers
    load = d.name == "ldmatrix"
    registers = moves.elements(d.operands[0 if load else 1])
    address = d.address(d.operands[1 if load else 0])
    if int(next(m for m in d.modifiers if m[0] == "x")[1:]) != len(registers):
        raise Unknown("as many registers as matrices are wanted")
    if load:
        writers = [d.write(r, "b32") for r in registers]

        def read(block: Block, lanes: Lanes) -> None:
            found = warps.load_matrices(block, lanes, address(block), len(registers), transposed)
            for write, value in zip(writers, found, strict=True):
                write(block, lanes, value)

        return read
    readers = [d.read(r, "b32") for r in registers]
    return lambda block, lanes: warps.store_matrices(
        block, lanes, address(block), [r(block) for r in readers], transposed
    )


def _product(d: Decoder) -> Step:
    shape = re.fullmatch(
        r"mma\.sync\.aligned\.m16n8k(\d+)\.row\.col\.f32\.(f16|bf16|tf32)\.\2\.f32", d.instruction.opcode
    )
    if shape is None:
        raise Unknown("a shape or a type of mma")
    k, kind = int(shape[1]), shape[2]
    warps.fragments(k, kind)
    into, a, b, c = (moves.elements(o) for o in d.operands)
    writers = [d.write(r, "f32") for r in into]
    left, right, start = (
        [d.read(r, kind) for r in registers] for registers, kind in ((a, "b32"), (b, "b32"), (c, "f32"))
    )

    def step(block: Block, lanes: Lanes) -> None:
        _ = lanes.warps
        given = ([r(block) for r in readers] for readers in (left, right, start))
        for write, value in zip(writers, warps.multiply(k, kind, *given), strict=True):
            write(block, lanes, value)

    return step


# ---- control


def _branch(d: Decoder) -> Step:
    (target,) = d.operands
    assert isinstance(target, Symbol)
    at = d.kernel.labels[target.name]
    return lambda block, lanes: block.jump(lanes, at)


def _barrier(d: Decoder) -> Step:
    modifiers = set(d.modifiers) - {"cta", "aligned"}
    if d.modifiers in (("cluster", "arrive", "release", "aligned"), ("cluster", "wait", "acquire", "aligned")):
        arrives = "arrive" in modifiers

        def meet(block: Block, lanes: Lanes) -> None:
            _ = lanes.warps
            (block.cluster.arrive if arrives else block.cluster.wait)(block, lanes)

        return meet
    if modifiers == {"warp", "sync"}:
        mask = d.read(d.operands[0], "u32")
        return lambda block, lanes: warps.members(block, lanes, mask(block))
    if modifiers not in ({"sync"}, {"arrive"}):
        raise Unknown(d.name)
    aligned = d.name == "bar" or "aligned" in d.modifiers
    number = d.read(d.operands[0], "u32")
    count = d.read(d.operands[1], "u32") if len(d.operands) > 1 else None
    wait = modifiers == {"sync"}

    def step(block: Block, lanes: Lanes) -> None:
        which = number(block)
        for one in np.unique(which[lanes.mask]):  # warps may meet at barriers of their own
            own = Lanes(lanes.mask & (which == one))
            if aligned:
                _ = own.warps
            block.arrive(own, int(one), None if count is None else int(count(block)[own.threads[0]]), wait=wait)

    return step


def _fence(d: Decoder) -> Step:
    if d.modifiers[:1] == ("mbarrier_init",):  # what it orders, the barrier of the cluster behind it does
        return lambda block, lanes: None
    if any("proxy" in m or m.startswith("mbarrier") for m in d.modifiers):
        raise Unknown(d.name)
    return lambda block, lanes: block.clocks.fence(np.unique(block.warp_of[lanes.mask]))


def _trap(d: Decoder) -> Step:
    def step(block: Block, lanes: Lanes) -> None:
        raise Fault("trap")

    return step


_INSTRUCTIONS: dict[str, Callable[[Decoder], Step]] = {
    **dict.fromkeys(("add", "sub", "mul", "mad", "fma", "div", "rem", "neg", "abs", "min", "max", "and", "or", "xor",
                     "not", "sqrt", "rcp",
            "copysign"), _plain),
    **dict.fromkeys(("ex2", "lg2", "rsqrt", "tanh"), _elementary),
    **dict.fromkeys(("shl", "shr"), _shift),
    "selp": _select, "setp": _compare, "cvt": _convert, "bfe": _bit_field,
    "bfi": _insert_bits, "prmt": _permute, "lop3": _logic,
    "shf": _funnel, "popc": _count_bits, "clz": _count_bits,
    "mov": _move, "cvta": _address_space, "ld": _load, "ldu": _load, "st": _store, "atom": _atomic, "red": _atomic,
    "cp": _asynchronous, "mapa": _peer, "mbarrier": _gate,
    "shfl": _shuffle, "vote": _vote, "activemask": _active, "elect": _elect, "redux": _reduce,
    "ldmatrix": _matrix, "stmatrix": _matrix, "mma": _product,
    "bra": _branch, "bar": _barrier, "barrier": _barrier, "fence": _fence, "membar": _fence,
    "ret": lambda d: Block.end, "exit": lambda d: Block.end, "trap": _trap,
    **dict.fromkeys(("nanosleep", "pmevent"), lambda d: lambda block, lanes: None),
}  # fmt: skip
