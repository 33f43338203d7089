"""Which buffers of a program a gradient reaches, from the results that have one. csrc/core/reach.cpp is its twin."""

from __future__ import annotations

from collections.abc import Collection

from .stages import Activate, Add, Dense, Divergence, Likelihood, Normalize, Partition, Recur, Sample, Slice


def reached(program: Partition, given: Collection[str]) -> frozenset[str]:
    """Find the buffers that the gradients of some results reach, by the names of the results; ``state`` is any final
    state.

    The parameters behind all others have a gradient of zero. A product would not find it: zero times the infinity of a
    state that ran away is NaN.
    """
    found: set[str] = set()

    def add(*parts: Slice | None) -> None:
        found.update(part.buffer for part in parts if part is not None)

    for stage in program.stages:
        match stage:
            case Likelihood() if "raw" in given or ("nll" in given and stage.kind != "external"):
                add(stage.source)
            case Sample():
                add(stage.z if "z" in given else None, stage.source if {"mean", "std"} & set(given) else None)
            case Divergence() if "kl" in given:
                add(stage.posterior, stage.prior, stage.z)
            case Divergence() if {"prior_mean", "prior_std"} & set(given):
                add(stage.prior)
            case Recur() if "state" in given:
                add(stage.h, stage.c)
    before = -1
    while before != len(found):
        before = len(found)
        for stage in reversed(tuple(program.stages)):
            match stage:
                case Dense() | Normalize() | Activate() | Add() if stage.target.buffer in found:
                    add(stage.source)
                case Sample() if stage.z.buffer in found:
                    add(stage.source)
                case Recur() if found & {part.buffer for part in (stage.h, stage.c, stage.output) if part is not None}:
                    add(stage.gates, stage.candidate, stage.h, stage.c)
    return frozenset(found)
