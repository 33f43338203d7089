"""A kernel of several phases, one behind the other in the same launch. Pure.

A program draws a number when it begins: the first numbers are the programs of the first phase, and so on. It waits
until all phases before its own are done. Whoever it waits for has drawn before it and so runs already, whatever number
of programs the device holds at a time: no launch is cooperative, and none can stand still. The last of all puts the
numbers back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .writer import HEAD, indent

TURNS = "turns"  # the argument that points to two integers: numbers drawn, and programs that are done
NEVER_SPECIALISED = "steps", "batch", "count"


@dataclass(frozen=True, eq=False)
class Phase:
    """What one program does, as a function of its place among those of its phase.

    Attributes:
        name: of the function.
        arguments: tensors and numbers, by the names that the kernel has for them too.
        constants: the kernel's constant that stands for each of the function's.
        lines: of the function; ``program`` is its place.
        programs: how many there are, as an expression of arguments and of the kernel's constants.
    """

    name: str
    arguments: tuple[str, ...]
    lines: tuple[str, ...]
    programs: str
    constants: Mapping[str, str] = field(default_factory=dict)


def source(name: str, phases: Sequence[Phase]) -> str:
    """Write the kernel ``name``, and the functions of its phases."""
    arguments = dict.fromkeys(argument for phase in phases for argument in phase.arguments)
    constants = dict.fromkeys(constant for phase in phases for constant in phase.constants.values())
    lines = [HEAD.rstrip("\n")]
    for phase in phases:
        lines += ["", "", *_function("@triton.jit", phase.name, ("program", *phase.arguments), phase.constants)]
        lines += indent(1, list(phase.lines))
    numbers = ", ".join(f'"{n}"' for n in NEVER_SPECIALISED if n in arguments)
    decorator = f"@triton.jit(do_not_specialize=[{numbers}])" if numbers else "@triton.jit"
    turns = [TURNS] if len(phases) > 1 else []
    lines += ["", "", *_function(decorator, name, (*arguments, *turns), constants)]
    return "\n".join((*lines, *indent(1, _turns(phases)))) + "\n"


def _function(decorator: str, name: str, arguments: Sequence[str], constants: Mapping[str, object]) -> list[str]:
    named = [*(f"    {a}," for a in arguments), *(f"    {c}: tl.constexpr," for c in constants)]
    return [decorator, f"def {name}(", *named, "):"]


def _turns(phases: Sequence[Phase]) -> list[str]:
    """Lead each program to its phase."""
    if len(phases) == 1:
        return [_call(phases[0], "tl.program_id(0)")]
    ends = [f"{phase.name}_end" for phase in phases]
    begins = ["0", *ends[:-1]]
    lines = [f"{e} = {b} + {p.programs}" for b, e, p in zip(begins, ends, phases, strict=True)]
    lines.append(f"turn = on.turn({TURNS})")
    for number, (phase, begin, end) in enumerate(zip(phases, begins, ends, strict=True)):
        last = number == len(phases) - 1
        lines.append("else:" if last else f"{'elif' if number else 'if'} turn < {end}:")
        lines += [f"    on.wait({TURNS}, {begin})"] if number else []
        lines.append(f"    {_call(phase, f'turn - {begin}' if number else 'turn')}")
    return [*lines, f"on.leave({TURNS}, {ends[-1]})"]


def _call(phase: Phase, program: str) -> str:
    return f"{phase.name}({', '.join((program, *phase.arguments, *phase.constants.values()))})"
