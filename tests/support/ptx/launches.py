"""The Triton executor with its launches executed as compiled: CPU tensors, the PTX of a chip, the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from vrnn_fast.executors import triton as executor
from vrnn_fast.executors.triton import launch, tuning

from .arithmetic import Rounding
from .machine import run
from .memory import Memory
from .report import Report
from .text import parse

_TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
}


@dataclass
class Launches:
    """What was launched, and what it was seen to do."""

    reports: list[tuple[str, Report]] = field(default_factory=list)
    rounding: Rounding = field(default_factory=Rounding)

    @property
    def scans(self) -> dict[str, Report]:
        """What each scan was seen to do."""
        return {way: report for way, report in self.reports if way in tuning.SCANS}

    @property
    def total(self) -> Report:
        return sum((report for _, report in self.reports), Report())


@contextmanager
def compiled(
    chip: str = "sm_90", *, rounding: Rounding | None = None, edit: Callable[[str], str] = str
) -> Iterator[Launches]:
    """Within, the Triton executor takes CPU tensors, and each launch runs as it is compiled for that chip, after
    ``edit`` has changed the text of a scan."""
    seen = Launches(rounding=rounding or Rounding())

    def execute(call: Any, way: str, kernel: Any, programs: int, arguments: Mapping[str, Any]) -> None:
        launch.launches[way] += 1
        constants = {name: value for name, value in arguments.items() if name.isupper() or value is None}
        live = {name: arguments[name] for name in kernel.arg_names if name not in constants}
        types = tuple((name, _type(live[name])) for name in live)
        constants = {name: constants[name] for name in kernel.arg_names if name in constants}
        text, shared = _compile(kernel, types, tuple(constants.items()), chip, call.config.warps)
        program = parse(edit(text) if way in tuning.SCANS else text)
        memory = Memory()
        passed = [_pass(memory, name, value) for name, value in live.items()]
        passed += [0] * (len(program.parameters) - len(passed))  # triton's own scratch memory, unused
        report = run(
            program,
            programs,
            dict(zip(program.parameters, passed, strict=True)),
            memory,
            dynamic_shared=shared,
            rounding=seen.rounding,
        )
        seen.reports.append((way, report))

    with (
        mock.patch.object(executor, "_INTERPRETED", True),
        mock.patch.object(tuning, "chip_of", return_value=tuning.CHIPS[chip]),
        mock.patch.object(launch.Launch, "launch", execute),
    ):
        yield seen


def _type(value: Any) -> str:
    return f"*{_TYPES[value.dtype]}" if isinstance(value, Tensor) else "fp32" if isinstance(value, float) else "i32"


def _pass(memory: Memory, name: str, value: Any) -> int | float:
    if not isinstance(value, Tensor):
        return value
    assert value.is_contiguous(), name
    bits = value.detach().view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()])
    return memory.add(name, bits.numpy())


@lru_cache(maxsize=64)
def _compile(
    kernel: Any, types: tuple[tuple[str, str], ...], constants: tuple[tuple[str, Any], ...], chip: str, warps: int
) -> tuple[str, int]:
    """The program's text, and the bytes of shared memory that it wants."""
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vrnn_fast.executors.triton.versions import options

    signature = {name: "constexpr" for name, _ in constants} | dict(types)
    signature = {name: signature[name] for name in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if signature[name].startswith("*")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(constants), attrs=aligned)
    target = GPUTarget("cuda", int(chip.removeprefix("sm_")), 32)
    with knobs.runtime.scope():
        knobs.runtime.add_stages_inspection_hook = _stop_at_ptx
        found = triton.compile(source, target=target, options=options(warps, None))
    return found.asm["ptx"], found.metadata.shared


def _stop_at_ptx(_: Any = None, stages: dict[str, Any] | None = None, *__: Any) -> tuple[str, str] | None:
    """Leave the assembler out, which would take a good part of the time. Asked without stages, what such a compilation
    is called in triton's cache."""
    if stages is None:
        return "without machine code", "without machine code"
    stages["cubin"] = lambda *_: b""
    return None
