"""The text of a kernel as instructions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias


class Unknown(NotImplementedError):
    """Something in a program that this interpreter does not know. Says what, and where."""


@dataclass(frozen=True)
class Register:
    name: str
    negated: bool = False  # of a predicate


@dataclass(frozen=True)
class Number:
    """A literal: an integer, or the bits of a float of that many bytes."""

    value: int
    float_bytes: int = 0


@dataclass(frozen=True)
class Address:
    """[base + offset]: a register, a named variable, or a bare number."""

    base: Register | str | None
    offset: int


@dataclass(frozen=True)
class Symbol:
    """A variable, a parameter or a label."""

    name: str


@dataclass(frozen=True)
class Vector:
    """{a, b, ...}; None where "_" drops an element."""

    elements: tuple[Register | Number | None, ...]


Operand: TypeAlias = Register | Number | Address | Symbol | Vector


@dataclass(frozen=True)
class Instruction:
    guard: Register | None
    opcode: str
    operands: tuple[Operand, ...]
    line: str

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def modifiers(self) -> tuple[str, ...]:
        return tuple(self.opcode.split(".")[1:])


@dataclass
class Variable:
    """Shared or constant memory that the program declares; ``size`` None is what the launch gives."""

    space: str
    align: int
    size: int | None
    content: bytes = b""


@dataclass
class Kernel:
    name: str
    parameters: dict[str, int] = field(default_factory=dict)  # bytes of each, in order
    threads: int | None = None
    cluster: int = 1  # blocks
    registers: dict[str, int] = field(default_factory=dict)  # bytes of each, 0 for a predicate
    variables: dict[str, Variable] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    code: list[Instruction] = field(default_factory=list)


BYTES = {"pred": 0} | {f"{kind}{bits}": bits // 8 for kind in "busf" for bits in (8, 16, 32, 64)}
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_INSTRUCTION = re.compile(r"(?:@(!?[%\w$]+)\s+)?([a-z]\w*(?:[.:]+\w+)*)\s*(.*)", re.DOTALL)
_VARIABLE = re.compile(
    r"(?:\.(?:visible|extern|weak)\s+)?\.(shared|global|const)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)"
    r"(?:\[(\d*)\])?(?:\s*=\s*\{([^}]*)\})?$"
)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)?\.align\s+\d+\s+)?([\w$]+)(?:\[(\d+)\])?"
)
_DECLARED = re.compile(r"([%\w$]+?)(?:<(\d+)>)?$")


def parse(text: str, name: str | None = None) -> Kernel:
    """The kernel of that name in a module's text, or the only one.

    Raises:
        Unknown: there are functions, or a statement that is none of the manual's.
        ValueError: the module has no such kernel.
    """
    text = _COMMENT.sub("", text)
    entries = {m[1]: m for m in re.finditer(r"\.entry\s+([\w$]+)\s*\(", text)}
    if name is None and len(entries) == 1:
        (name,) = entries
    if name is None or name not in entries:
        raise ValueError(f"the module has kernels {list(entries)}; asked for {name!r}")
    start = entries[name].end()
    kernel = Kernel(name)
    for statement in re.split(r";|\n(?=\.visible)", text[: min(m.start() for m in entries.values())]):
        _declare(kernel, " ".join(statement.split()))
    close = text.index(")", start)
    for kind, parameter, count in _PARAMETER.findall(text[start:close]):
        kernel.parameters[parameter] = BYTES[kind] * int(count or 1)
    begin = text.index("{", close)
    if found := re.search(r"\.(?:req|max)ntid\s+(\d+)", text[close:begin]):
        kernel.threads = int(found[1])
    if found := re.search(r"\.reqnctapercluster\s+(\d+)", text[close:begin]):
        kernel.cluster = int(found[1])
    for scope, statement in _statements(text, begin):
        _add(kernel, scope, statement)
    return kernel


def _statements(text: str, begin: int) -> Iterator[tuple[tuple[int, ...], str]]:
    """The statements of a body, each with the blocks that it is in; braces of operands are not blocks."""
    scope, blocks, at, word = (0,), 0, begin + 1, ""
    while True:
        c = text[at]
        at += 1
        if c == "{" and not word.strip():
            blocks += 1
            scope = (*scope, blocks)
        elif c == "{":
            end = text.index("}", at)
            word += text[at - 1 : end + 1]
            at = end + 1
        elif c == "}":
            scope = scope[:-1]
            if not scope:
                return
        elif (
            c == ";"
            or (c == ":" and re.fullmatch(r"\s*[\w$]+", word))
            or (c == "\n" and re.match(r"\s*\.(loc|file)\b", word))
        ):
            yield scope, " ".join((word + ":" if c == ":" else word).split())
            word = ""
        else:
            word += c


def _declare(kernel: Kernel, statement: str) -> None:
    """A variable of the module or of the body, if the statement is one."""
    found = _VARIABLE.search(statement)
    if not found:
        return
    space, align, kind, name, count, content = found.groups()
    size = None if count == "" else BYTES[kind] * int(count or 1)
    values = b"".join(
        int(v, 0).to_bytes(BYTES[kind], "little", signed=v.strip().startswith("-"))
        for v in (content or "").split(",")
        if v.strip()
    )
    kernel.variables[name] = Variable(space, int(align or BYTES[kind]), size, values)


def _add(kernel: Kernel, scope: tuple[int, ...], statement: str) -> None:
    if not statement or re.match(r"\.(loc|file|pragma|section|maxnreg)\b", statement):
        return
    if statement.endswith(":"):
        kernel.labels[_scoped(kernel.labels, statement[:-1], scope, new=True)] = len(kernel.code)
        return
    if statement.startswith(".reg"):
        _, kind, names = statement.split(maxsplit=2)
        for declared in names.split(","):
            found = _DECLARED.match(declared.strip())
            assert found, statement
            each = [found[1]] if found[2] is None else [f"{found[1]}{i}" for i in range(int(found[2]))]
            for name in each:
                kernel.registers[_scoped(kernel.registers, name, scope, new=True)] = BYTES[kind.removeprefix(".")]
        return
    if statement.startswith("."):
        before = len(kernel.variables)
        _declare(kernel, statement)
        if len(kernel.variables) == before:
            raise Unknown(f"directive: {statement}")
        return
    found = _INSTRUCTION.fullmatch(statement)
    if not found:
        raise Unknown(f"statement: {statement}")
    guard, opcode, rest = found.groups()
    read = _Operands(kernel, scope)
    operands = tuple(read.operand(part) for part in _split(rest))
    kernel.code.append(Instruction(None if guard is None else read.register(guard), opcode, operands, statement))


def _split(text: str) -> Iterator[str]:
    """At commas outside of brackets."""
    depth, part = 0, ""
    for c in text:
        depth += (c in "{[") - (c in "}]")
        if c == "," and depth == 0:
            yield part.strip()
            part = ""
        else:
            part += c
    if part.strip():
        yield part.strip()


def _scoped(known: dict[str, int], name: str, scope: tuple[int, ...], *, new: bool = False) -> str:
    """A name as the innermost block that has it knows it; in the body itself names are as they are written."""
    for depth in range(len(scope), 0, -1):
        full = name if depth == 1 else f"{name}@{scope[depth - 1]}"
        if new or full in known:
            return full
    return name


@dataclass(frozen=True)
class _Operands:
    kernel: Kernel
    scope: tuple[int, ...]

    def register(self, text: str) -> Register:
        return Register(_scoped(self.kernel.registers, text.lstrip("!"), self.scope), text.startswith("!"))

    def operand(self, text: str) -> Operand:
        if text.startswith("{"):
            return Vector(tuple(self.element(part) for part in _split(text[1:-1])))
        if text.startswith("["):
            return self.address(text[1:-1].strip())
        if "|" in text:
            return Vector(tuple(self.element(part) for part in text.split("|")))
        if (number := _number(text)) is not None:
            return number
        bare = text.lstrip("!")
        if bare.startswith("%") or _scoped(self.kernel.registers, bare, self.scope) in self.kernel.registers:
            return self.register(text)
        return Symbol(_scoped(self.kernel.labels, text, self.scope))

    def element(self, text: str) -> Register | Number | None:
        if text.strip() == "_":
            return None
        found = self.operand(text.strip())
        assert isinstance(found, (Register, Number)), text
        return found

    def address(self, text: str) -> Address:
        base, sign, offset = re.fullmatch(r"([^\s+-]+|(?=-))\s*(?:([+-])\s*)?(-?\w+)?", text).groups()
        distance = int(offset, 0) * (-1 if sign == "-" else 1) if offset else 0
        if (number := _number(base)) is not None:
            return Address(None, number.value + distance)
        found = self.operand(base)
        return Address(found.name if isinstance(found, Symbol) else self.register(base), distance)


def _number(text: str) -> Number | None:
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
        return Number(int(text[2:], 16), 4)
    if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
        return Number(int(text[2:], 16), 8)
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?", text):
        return Number(int(text.removesuffix("U"), 0))
    return None
