"""Damaged programs, handed to every operator: each is refused or run in its own memory, and none ends the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from random import Random

import torch
from torch import Tensor

from vrnn_fast.cell.encode import Program, encode
from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.executors.cpu import ProgramKind, operators

STEPS, GROUPS, PARTICLES = 3, 2, 2
BATCH = GROUPS * PARTICLES
HUGE = (-(2**63), 2**63 - 1, 2**62, -(2**31), 2**31, 2**24, 1000, 320, 17)
RAISED = (ValueError, RuntimeError, IndexError, OverflowError)  # by the operators; MemoryError is a RuntimeError there


def try_programs(seed: int, cases: int) -> int:
    """Hand so many damaged programs to all operators. How many were run rather than refused."""
    return sum(_attempt(Random(f"{seed} {number}")) for number in range(cases))


def _attempt(chance: Random) -> bool:
    spec = _spec(chance)
    draws = spec.measure == "kl" and spec.likelihood != "external"
    ways: tuple[ProgramKind, ...] = ("inference", "samples", "means") if draws else ("inference",)
    program = encode(spec, chance.choice(ways))
    if chance.random() < 0.1:
        code = [chance.randrange(-4, 40) for _ in range(chance.randrange(len(program.code)))]
        code = program.code[: chance.randrange(len(program.code))] + code
    else:
        code = _damaged(program.code, chance)
    parameters = [torch.randn(p.shape) for p in spec.parameters()]
    runs = [_run(call) for call in _calls(spec, program._replace(code=code), parameters)]
    return any(runs)


def _spec(chance: Random) -> CellSpec:
    x, measure = chance.choice((1, 5)), chance.choice(("kl", "kl", "log_weight", "particle_filter"))
    likelihood = chance.choice(("bernoulli", "gaussian", "external")[: 2 if measure == "particle_filter" else 3])
    heads = (("dec_mean", x), ("dec_std", x)) if likelihood == "gaussian" else (("dec_mean", x),)
    return CellSpec(
        input_size=x,
        hidden_size=chance.choice((3, 16)),
        latent_size=chance.choice((1, 4)),
        cell=chance.choice(("gru", "lstm", "rnn")),
        num_layers=chance.choice((1, 1, 2)),
        phi_x=chance.choice(((), (6,))),
        prior=chance.choice((None, (7,))),
        cond_size=chance.choice((0, 2)),
        likelihood=likelihood,
        decoder_heads=heads,
        measure=measure,
        activation=chance.choice(("relu", "silu")),
    )


def _damaged(code: list[int], chance: Random) -> list[int]:
    """A few numbers of it replaced by a neighbour, by another of its own, or by one that nobody expects."""
    code = list(code)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.randrange(1, len(code))
        match chance.randrange(4):
            case 0:
                code[at] += chance.choice((-1, 1))
            case 1:
                code[at] = chance.choice(code)
            case 2:
                code[at] = chance.choice(HUGE)
            case _:
                other = chance.randrange(1, len(code))
                code[at], code[other] = code[other], code[at]
    return code


def _calls(spec: CellSpec, program: Program, parameters: list[Tensor]) -> Iterator[tuple[object, ...]]:
    """An operator and its arguments: the tensors are those of the whole program."""
    library = torch.ops.vrnn_fast
    code, constants = program.code, program.constants
    x, eps = torch.rand(STEPS, BATCH, spec.input_size), torch.randn(STEPS, BATCH, spec.latent_size)
    cond = torch.randn(STEPS, BATCH, spec.cond_size) if spec.cond_size else None
    uniforms = torch.rand(STEPS, GROUPS, PARTICLES) if spec.measure == "particle_filter" else None
    state = [torch.randn(BATCH, spec.hidden_size) for _ in range(spec.state_tensors)]
    size = STEPS * BATCH * program.saved + operators.SLACK
    given = (x, eps, cond, None, None, None)
    yield library.generate, eps, x, cond, state, parameters, None, code, constants
    options = (False, True, True, 0.5)
    forward = (*given, uniforms, state, parameters, None, code, constants)
    yield library.forward, *forward, 0, *options
    yield library.forward, *forward, size, *options
    try:
        *_, ancestors, saved = library.forward(*forward, size, *options)
    except RAISED:
        pass
    else:
        upstream = [torch.ones(STEPS, BATCH), torch.ones(STEPS, BATCH)]
        backward = (upstream, [0, 1], *given, state, parameters, ancestors if uniforms is not None else None, saved)
        yield library.backward, *backward, code, constants, False, True, True, cond is not None
    try:
        number = library.hold_program(code, constants, len(parameters))
    except RAISED:
        return
    try:
        packed = torch.ones(library.packed_size(number))
        for operator in (library.flops, library.output_width):
            yield operator, number
        yield library.pack, parameters, number
        with suppress(RAISED):
            packed = library.pack(parameters, number)
        yield library.step, packed, number, x[0], eps[0], [s.unsqueeze(0) for s in state], True
    finally:
        library.release_program(number)


def _run(call: tuple[object, ...]) -> bool:
    operator, *arguments = call
    try:
        operator(*arguments)  # type: ignore[operator]
    except RAISED:
        return False
    return True
