"""The fused CPU executor against the oracle: every stage, every build of the kernels, odd sizes, ragged lengths."""

from __future__ import annotations

import copy
import functools
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from enum import Enum
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.support.family import DEEP, FAMILY
from tests.support.machine import usable_isas
from tests.support.oracle import (
    Problem,
    assert_confident_predictions_keep_their_digits,
    assert_lawful_where_terms_vanish,
    assert_masks_stop_infinity,
    assert_no_divergence_no_gradient_of_it,
    assert_nobody_gets_a_gradient_unasked,
    assert_nothing_comes_from_the_last_update,
    assert_obeys_the_law,
)
from vrnn_fast import VRNN
from vrnn_fast.cell.encode import encode
from vrnn_fast.cell.partition import partition
from vrnn_fast.cell.spec import ACTIVATIONS, MOST_DEPTH, MOST_LAYERS, CellSpec, Std
from vrnn_fast.cell.stages import Keep
from vrnn_fast.executors import cpu, reference
from vrnn_fast.executors.base import Batch, Want
from vrnn_fast.executors.cpu import operators

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))

GAUSSIAN = {
    "likelihood": "gaussian",
    "decoder_heads": (("dec_mean", 5), ("dec_std.0", 5)),
    "output_std": Std(floor=1e-3),
}
RAGGED = [3, 7, 0, 7, 1]


@pytest.fixture(params=usable_isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("VRNN_FAST_ISA", request.param)
    return str(request.param)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


class Kept(Enum):
    """What forward keeps for backward."""

    ALL = "all"
    OF_THE_SCAN = "of the scan"
    STATES = "states"


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what backward reads pass for large, so that all but the scan is computed again."""
    monkeypatch.setattr(operators, "SMALL", 0)


@pytest.fixture(params=Kept, ids=lambda kept: kept.value)
def kept(request: pytest.FixtureRequest) -> Kept:
    if request.param is Kept.OF_THE_SCAN:
        request.getfixturevalue("large")
    return Kept(request.param)


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("lengths", [None, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize("likelihood", [{}, GAUSSIAN], ids=["bernoulli", "gaussian"])
def test_every_build(
    isa: str, dtype: torch.dtype, cell: str, kept: Kept, lengths: list[int] | None, likelihood: dict[str, object]
) -> None:
    spec = CellSpec(5, 19, 3, cell=cell, **DEEP, **likelihood)
    assert_obeys_the_law(spec, 7, 5, lengths, executor=cpu, dtype=dtype, recompute=kept is Kept.STATES)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("lengths", [None, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize("likelihood", [{}, GAUSSIAN], ids=["bernoulli", "gaussian"])
def test_bfloat16(cell: str, lengths: list[int] | None, likelihood: dict[str, object]) -> None:
    spec = CellSpec(5, 19, 3, cell=cell, **DEEP, **likelihood)
    assert_obeys_the_law(spec, 7, 5, lengths, executor=cpu, dtype=torch.bfloat16)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(isa: str, dtype: torch.dtype, activation: str) -> None:
    assert_obeys_the_law(CellSpec(3, 12, 4, activation=activation, **DEEP), 6, 4, executor=cpu, dtype=dtype)


STDS = (
    Std("softplus", offset=0.5, sharpness=0.7, floor=1e-4),
    Std("softplus", sharpness=2.0, floor=0.0, min_std=0.6),
    Std("log_std", floor=0.0, clamp=(-0.3, 0.4)),
    Std("log_variance", offset=-0.2, min_std=0.8),
)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("std", STDS, ids=lambda std: std.kind)
def test_every_standard_deviation(isa: str, dtype: torch.dtype, std: Std) -> None:
    for recompute in (False, True):
        spec = CellSpec(5, 19, 7, std=std, **DEEP, **(GAUSSIAN | {"output_std": std}))
        assert_obeys_the_law(spec, 6, 4, executor=cpu, dtype=dtype, recompute=recompute)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("prior", [{"residual": True}, {"prior": None}], ids=["residual", "standard normal"])
@pytest.mark.parametrize("nets", [{}, DEEP], ids=["flat", "deep"])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_every_prior(
    isa: str, dtype: torch.dtype, cell: str, nets: dict[str, object], prior: dict[str, object]
) -> None:
    for recompute in (False, True):
        spec = CellSpec(5, 19, 3, cell=cell, **(nets | prior))
        assert_obeys_the_law(spec, 7, 5, RAGGED, executor=cpu, dtype=dtype, recompute=recompute)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("nonlinearity", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_every_simple_cell(isa: str, dtype: torch.dtype, nonlinearity: str, bias: bool) -> None:
    for recompute in (False, True):
        spec = CellSpec(5, 19, 3, cell="rnn", bias=bias, nonlinearity=nonlinearity, **DEEP)
        assert_obeys_the_law(spec, 7, 5, RAGGED, executor=cpu, dtype=dtype, recompute=recompute)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("member", FAMILY)
def test_the_whole_family(isa: str, member: str, cell: str) -> None:
    options = {"input_size": 5, "hidden_size": 19, "latent_size": 3, "cell": cell, **DEEP, **FAMILY[member]}
    for recompute, likelihood in ((False, GAUSSIAN), (True, {})):
        spec = CellSpec(**options, **likelihood)
        assert_obeys_the_law(spec, 7, 5, RAGGED, executor=cpu, dtype=torch.float32, recompute=recompute, draws=4)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("member", FAMILY)
def test_the_whole_family_without_a_hidden_layer(dtype: torch.dtype, member: str, cell: str) -> None:
    spec = CellSpec(**{"input_size": 5, "hidden_size": 19, "latent_size": 3, "cell": cell, **FAMILY[member]})
    for recompute in (False, True):
        assert_obeys_the_law(spec, 7, 5, RAGGED, executor=cpu, dtype=dtype, recompute=recompute, draws=4)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("likelihood", [{}, GAUSSIAN], ids=["bernoulli", "gaussian"])
def test_resets_and_masks(isa: str, dtype: torch.dtype, cell: str, layers: int, likelihood: dict[str, Any]) -> None:
    spec = CellSpec(5, 19, 3, cell=cell, num_layers=layers, **DEEP, **likelihood)
    for lengths, recompute in ((None, False), (RAGGED, True)):
        options: dict[str, Any] = {"executor": cpu, "dtype": dtype, "recompute": recompute}
        assert_obeys_the_law(spec, 7, 5, lengths, resets=True, mask=True, **options)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_resets_to_an_initial_state(isa: str, dtype: torch.dtype, cell: str, layers: int) -> None:
    spec = CellSpec(5, 19, 3, cell=cell, num_layers=layers, initial_state=True, **DEEP)
    for lengths, recompute in ((None, False), (RAGGED, True)):
        options: dict[str, Any] = {"executor": cpu, "dtype": dtype, "recompute": recompute}
        assert_obeys_the_law(spec, 7, 5, lengths, resets=True, **options)
    found = Problem.draw(spec, 3, 2).run(cpu, dtype)
    assert not any(found[f"d {p.name}"].any() for p in spec.parameters() if p.name.startswith("initial"))


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("network", ["phi_x", "phi_z", "encoder", "prior", "decoder"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_every_depth(dtype: torch.dtype, network: str, depth: int, bias: bool) -> None:
    nets = DEEP | {network: (11,) * depth}
    for cell in ("gru", "lstm", "rnn"):
        assert_obeys_the_law(CellSpec(4, 10, 3, cell=cell, bias=bias, **nets), 5, 3, executor=cpu, dtype=dtype)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_no_hidden_layer_at_all(isa: str, dtype: torch.dtype, cell: str) -> None:
    for recompute in (False, True):
        spec = CellSpec(3, 6, 2, cell=cell)
        assert_obeys_the_law(spec, 5, 3, [5, 2, 0], executor=cpu, dtype=dtype, recompute=recompute)


@pytest.mark.parametrize("size", [1, 3, 17, 33, 100, 129])
def test_odd_sizes(isa: str, size: int) -> None:
    widths = dict.fromkeys(("phi_x", "phi_z", "encoder", "prior", "decoder"), (size,))
    for steps, batch in ((1, 1), (1, 3), (5, 1), (3, 17)):
        for dtype in (torch.float32, torch.float64):
            assert_obeys_the_law(CellSpec(size, size, size, **widths), steps, batch, executor=cpu, dtype=dtype)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("lengths", [None, [2, 0], [0, 0]], ids=["every step", "an idle sequence", "no step"])
@pytest.mark.parametrize("member", ["all at once", "conditioned everywhere"])
def test_calls_of_few_rows(isa: str, dtype: torch.dtype, member: str, lengths: list[int] | None) -> None:
    options = {"input_size": 5, "hidden_size": 19, "latent_size": 3, **DEEP, **FAMILY[member]}
    for recompute in (False, True):
        assert_obeys_the_law(CellSpec(**options), 2, 2, lengths, executor=cpu, dtype=dtype, recompute=recompute)


@pytest.mark.parametrize(("steps", "batch", "packs"), [(4, 1, False), (2, 2, False), (5, 1, True)])
def test_few_rows_are_not_worth_packing(isa: str, steps: int, batch: int, packs: bool) -> None:
    """What a call saves has room for packed weights, which torch's deterministic mode fills with NaN."""
    spec = CellSpec(5, 19, 3, **DEEP)
    program, parameters = encode(spec), [torch.randn(p.shape, requires_grad=True) for p in spec.parameters()]
    given = Batch(torch.rand(steps, batch, 5), torch.randn(steps, batch, 3), (torch.zeros(batch, 19),))
    torch.use_deterministic_algorithms(True)
    try:
        saved = operators.forward(program, None, given, parameters, None, Want()).saved
    finally:
        torch.use_deterministic_algorithms(False)
    written = int((~saved[steps * batch * program.saved + operators.SLACK :].isnan()).sum())
    assert (written >= sum(p.numel() for p in parameters if p.dim() == 2)) == packs


def test_external_likelihood_leaves_the_nll_to_others() -> None:
    spec = CellSpec(3, 6, 2, likelihood="external", **DEEP)
    assert_obeys_the_law(spec, 4, 3, executor=cpu, dtype=torch.float64)
    assert not Problem.draw(spec, 4, 3).run(cpu, torch.float64)["nll"].any()


def test_confident_predictions_keep_their_digits(isa: str, dtype: torch.dtype) -> None:
    assert_confident_predictions_keep_their_digits(CellSpec(19, 8, 3, **DEEP), cpu, dtype)


@pytest.mark.parametrize("measure", ["kl", "log_weight"])
def test_without_a_divergence_in_the_loss_there_is_no_gradient_of_it(isa: str, measure: Any) -> None:
    spec = CellSpec(5, 8, 3, std=Std(floor=0.0), measure=measure, **DEEP)
    assert_no_divergence_no_gradient_of_it(spec, cpu, torch.float64)


COLLAPSED: dict[str, dict[str, Any]] = {
    "plain": {},
    "residual": {"residual": True},
    "standard normal": {"prior": None},
    "log variance": {"std": Std("log_variance", floor=0.0)},
    "layers": {"cell": "lstm", "num_layers": 2},
}


@pytest.mark.parametrize("measure", ["kl", "log_weight", "particle_filter"])
@pytest.mark.parametrize("member", COLLAPSED)
def test_where_terms_vanish(isa: str, dtype: torch.dtype, member: str, measure: Any) -> None:
    spec = CellSpec(5, 19, 3, measure=measure, **(DEEP | COLLAPSED[member]))
    assert_lawful_where_terms_vanish(spec, cpu, dtype)


def test_masks_stop_infinity(isa: str, dtype: torch.dtype) -> None:
    assert_masks_stop_infinity(cpu, dtype)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("decoder", [(), (6,)], ids=["flat", "deep"])
@pytest.mark.parametrize("widths", [(1,), (40, 40, 7), (3, 17, 1, 33)])
def test_heads_of_any_width(isa: str, dtype: torch.dtype, widths: tuple[int, ...], decoder: tuple[int, ...]) -> None:
    heads = tuple((f"dec_{i}", width) for i, width in enumerate(widths))
    nets = DEEP | {"decoder": decoder}
    for recompute in (False, True):
        spec = CellSpec(3, 6, 2, likelihood="external", decoder_heads=heads, **nets)
        assert_obeys_the_law(spec, 4, 3, [4, 0, 2], executor=cpu, dtype=dtype, recompute=recompute)


SHARED = CellSpec(28, 64, 8, phi_x=(64,), phi_z=(64,), encoder=(64,), prior=(64,), decoder=(64,))
SHARED_LENGTHS = torch.randint(0, 25, (37,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture
def thread_count() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("thread_count")
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_any_number_of_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    assert_obeys_the_law(SHARED, 24, 37, SHARED_LENGTHS, executor=cpu, dtype=torch.float32)


@pytest.mark.usefixtures("thread_count")
@pytest.mark.parametrize("particles", [0, 4])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (3, 2)])
def test_backward_on_another_number_of_threads(before: int, after: int, recompute: bool, particles: int) -> None:
    """Forward deals the rows out, and backward finds them where it put them."""
    spec = replace(SHARED, measure="particle_filter") if particles else SHARED
    lengths = [n for n in SHARED_LENGTHS[:9] for _ in range(particles)] if particles else SHARED_LENGTHS

    def gradients(before: int, after: int) -> dict[str, Tensor]:
        problem = Problem.draw(spec, 24, len(lengths), lengths, particles=particles)
        torch.set_num_threads(before)
        return problem.run(
            cpu, torch.float64, recompute=recompute, between=functools.partial(torch.set_num_threads, after)
        )

    same, other = gradients(before, before), gradients(before, after)
    assert same.keys() == other.keys()
    for name, value in same.items():
        assert torch.equal(other[name], value), name


def test_all_is_kept_where_it_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, rows = CellSpec(5, 19, 3, **DEEP), 7 * 5
    program, parameters = encode(spec), [torch.randn(p.shape, requires_grad=True) for p in spec.parameters()]
    given = Batch(torch.rand(7, 5, 5), torch.randn(7, 5, 3), (torch.zeros(5, 19),))

    def saved(recompute: bool = False) -> int:
        want = Want(recompute=recompute)
        return operators.forward(program, None, given, parameters, None, want).saved.numel()

    assert program.saved_recompute < program.saved < program.saved_small
    monkeypatch.setattr(operators, "SMALL", rows * program.saved_small * 4)
    largest = saved()
    assert largest - saved(recompute=True) == rows * (program.saved_small - program.saved_recompute)
    monkeypatch.setattr(operators, "SMALL", rows * program.saved_small * 4 - 1)
    assert largest - saved() == rows * (program.saved_small - program.saved)


def test_large_memory_is_used_again() -> None:
    """Of what forward saves, by one call after the other, and as fresh as fresh memory."""
    spec, steps, batch = CellSpec(5, 19, 3, **DEEP), 160, 256
    program, parameters = encode(spec), [torch.randn(p.shape, requires_grad=True) for p in spec.parameters()]
    given = Batch(torch.rand(steps, batch, 5), torch.randn(steps, batch, 3), (torch.zeros(batch, 19),))

    def saved() -> Tensor:
        return operators.forward(program, None, given, parameters, None, Want()).saved

    first = saved()
    where, values = first.data_ptr(), first.clone()
    assert first.numel() * 4 > 32 << 20
    second = saved()
    assert second.data_ptr() != where, "somebody has it still"
    del first, second
    again = [saved().data_ptr() for _ in range(2)]
    torch.use_deterministic_algorithms(True)
    try:
        poisoned = saved()
    finally:
        torch.use_deterministic_algorithms(False)
    assert poisoned.isnan().any()
    assert torch.equal(poisoned.nan_to_num(0), values.where(~poisoned.isnan(), 0))
    assert operators.release_memory() == 0, "somebody has it"
    if torch.__version__ >= (2, 11):
        assert again[0] == again[1] == poisoned.data_ptr()
        size = 4 * poisoned.numel()
        del poisoned
        assert operators.release_memory() >= size


def test_the_deepest_model_that_can_be_described() -> None:
    deepest = (1,) * MOST_DEPTH
    networks = dict.fromkeys(("phi_x", "phi_z", "encoder", "prior", "decoder", "head_layers"), deepest)
    spec = CellSpec(2, 3, 1, "lstm", MOST_LAYERS, cond_size=1, activation="identity", **networks)
    assert 800 < len(partition(replace(spec, activation="silu", normalized=tuple(DEEP))).buffers) <= 832
    for seed in range(3):
        problem = Problem.draw(spec, 3, 2, seed=seed)
        found, right = problem.run(cpu, torch.float32), problem.run(reference, torch.float64)
        for name, value in right.items():  # of products of 32 weights, the law's comparison is a matter of luck
            near = max(1e-4 * value.abs().max().item(), torch.finfo(torch.float32).tiny)
            torch.testing.assert_close(found[name].double(), value, rtol=0, atol=near)
    with pytest.raises(ValueError, match="phi_x must have at most 32 layers, got 33"):
        CellSpec(2, 3, 1, phi_x=(*deepest, 1))


def test_strides_of_either_layout() -> None:
    spec = CellSpec(5, 8, 3, **DEEP)
    problem = Problem.draw(spec, 6, 4)
    expected = problem.run(cpu, torch.float64)
    for name in ("x", "eps"):
        t = problem.inputs[name]
        problem.inputs[name] = t.transpose(0, 1).contiguous().transpose(0, 1)
        assert not problem.inputs[name].is_contiguous()
    for name, t in problem.run(cpu, torch.float64).items():
        assert torch.equal(t, expected[name]), name
    problem.inputs["x"] = problem.inputs["x"].repeat_interleave(2, -1)[..., ::2]
    assert problem.inputs["x"].stride(-1) == 2
    for name, t in problem.run(cpu, torch.float64).items():
        assert torch.equal(t, expected[name]), name


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("member", [None, "all at once", "packed deep heads", "no z, the rest"])
def test_every_element_is_written_and_none_is_read_before(isa: str, cell: str, kept: Kept, member: str | None) -> None:
    """With fresh memory full of NaN, a forgotten output and a read of unwritten scratch both show.

    Scratch is what the launch before has left: one on NaN leaves NaN.
    """
    sizes = {"input_size": 5, "hidden_size": 19, "latent_size": 3, "cell": cell}
    spec = CellSpec(**sizes, **DEEP) if member is None else CellSpec(**{**sizes, **DEEP, **FAMILY[member]})
    flags = {"resets": member is not None, "mask": member is not None}
    problem, ruined = (Problem.draw(spec, 7, 5, RAGGED, **flags) for _ in range(2))
    expected = problem.run(cpu, torch.float32, recompute=kept is Kept.STATES)
    for t in ruined.inputs.values():
        t.fill_(float("nan"))
    ruined.run(cpu, torch.float32, recompute=kept is Kept.STATES)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all(), "fresh memory is not poisoned"
        poisoned = problem.run(cpu, torch.float32, recompute=kept is Kept.STATES)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, t in poisoned.items():
        assert torch.equal(t, expected[name]), name


def test_padding_never_reaches_a_result() -> None:
    problem = Problem.draw(CellSpec(5, 19, 3, **DEEP), 7, 5, RAGGED)
    expected = problem.run(cpu, torch.float32)
    for b, n in enumerate(RAGGED):
        problem.inputs["x"][n:, b] = float("nan")
        problem.inputs["eps"][n:, b] = float("nan")
        for name in ("nll", "kl", "z", "mean", "std", "prior_mean", "prior_std", "raw"):
            problem.upstream[name][n:, b] = float("nan")
    for name, t in problem.run(cpu, torch.float32).items():
        assert torch.equal(t, expected[name]), name


def test_nan_in_x_reaches_its_row_and_no_other() -> None:
    problem = Problem.draw(CellSpec(5, 8, 3, **DEEP), 6, 4)
    clean = problem.run(cpu, torch.float32)
    problem.inputs["x"][2, 1, 3] = float("nan")
    dirty = problem.run(cpu, torch.float32)
    assert dirty["nll"][2:, 1].isnan().all()
    assert dirty["final0"][1].isnan().all()
    for row in (0, 2, 3):
        assert torch.equal(dirty["nll"][:, row], clean["nll"][:, row])


def test_repeats_are_equal_to_the_last_bit(isa: str) -> None:
    spec = CellSpec(28, 100, 16, phi_x=(100,), phi_z=(100,), encoder=(100,), prior=(100,), decoder=(100,))
    problem = Problem.draw(spec, 20, 24, [20, 3, 11] * 8)
    first = problem.run(cpu, torch.float32)
    for _ in range(3):
        for name, t in problem.run(cpu, torch.float32).items():
            assert torch.equal(t, first[name]), name


def test_counters_prove_what_ran(isa: str) -> None:
    problem = Problem.draw(CellSpec(3, 4, 2), 3, 2)
    before = operators.launch_counts()
    problem.run(reference, torch.float32)
    assert operators.launch_counts() == before
    problem.run(cpu, torch.float32)
    after = operators.launch_counts()
    changed = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert changed == {f"cpu.{isa}.forward": 1, f"cpu.{isa}.backward": 1}


def test_an_unknown_isa_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VRNN_FAST_ISA", "mmx")
    with pytest.raises(RuntimeError, match="VRNN_FAST_ISA is 'mmx'; this machine can run: baseline"):
        Problem.draw(CellSpec(3, 4, 2), 3, 2).run(cpu, torch.float32)


def test_a_layer_of_one_that_is_normalised_is_a_constant() -> None:
    """To the last bit: the gradient of what it reads is 0, as torch's is to 17 digits."""
    found = Problem.draw(CellSpec(5, 19, 3, phi_x=(1,), normalized=("phi_x",)), 3, 2).run(cpu, torch.float32)
    assert not found["d phi_x.0.weight"].any()
    assert found["d phi_x.1.bias"].any()


SMOOTH: tuple[dict[str, Any], ...] = (
    {"activation": "tanh"},
    {"activation": "silu", "normalized": tuple(DEEP), "input_order": (("decoder", ("z", "h")), ("cell", ("phi_z",)))},
    {"activation": "gelu", "cond_size": 2, "cond_networks": ("phi_z",), "initial_state": True},
)


@pytest.mark.parametrize("options", SMOOTH, ids=lambda options: options["activation"])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_gradcheck(cell: str, options: dict[str, Any]) -> None:
    networks = {"phi_x": (3,), "phi_z": (2,), "encoder": (3,), "prior": (2,), "decoder": (3,)}
    spec = CellSpec(2, 3, 2, cell=cell, **networks, **options)
    problem = Problem.draw(spec, 3, 2, [3, 2], resets=True)
    names = list(problem.inputs)

    def outputs(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = dict(zip(names, tensors, strict=True))
        state = tuple(given[f"state{i}"] for i in range(spec.state_tensors))
        batch = Batch(given["x"], given["eps"], state, problem.lengths, given.get("cond"), **problem.flags)
        result = cpu.run(spec, [given[p.name] for p in spec.parameters()], batch, Want(prior=True, raw=True))
        return (*result[:8], *result.state)

    leaves = [t.clone().requires_grad_() for t in problem.inputs.values()]
    assert torch.autograd.gradcheck(outputs, leaves, fast_mode=True)


def test_opcheck_forward_and_backward() -> None:
    spec = CellSpec(3, 4, 2, cell="lstm", phi_x=(5,), cond_size=2)
    steps, batch = 4, 3
    program = encode(spec)
    leaf = functools.partial(torch.randn, requires_grad=True)
    x, eps, cond = leaf(steps, batch, 3), torch.randn(steps, batch, 2), leaf(steps, batch, 2)
    flags = (torch.rand(steps, batch) < 0.5, torch.rand(steps, batch, 3) < 0.5)
    optional = (torch.tensor([4, 2, 3]), *flags, None)
    state, parameters = [leaf(batch, 4), leaf(batch, 4)], [leaf(p.shape) for p in spec.parameters()]
    size = steps * batch * program.saved + operators.SLACK
    arguments = (x, eps, cond, *optional, state, parameters, None, program.code, program.constants)
    # the opaque buffer has elements that nobody writes: make them NaN in both runs, and NaN equal to itself
    close = functools.partial(torch.testing.assert_close, equal_nan=True)
    torch.use_deterministic_algorithms(True)
    try:
        with mock.patch("torch.testing.assert_close", close):
            torch.library.opcheck(torch.ops.vrnn_fast.forward.default, (*arguments, size, False, True, True, 0.5))
            with torch.no_grad():
                saved = torch.ops.vrnn_fast.forward(*arguments, size, False, False, False, 0.5)[-1]
            detached = [t.detach() for t in parameters]
            upstream = [torch.randn(steps, batch), torch.randn(steps, batch, 2), torch.randn(batch, 4)]
            torch.library.opcheck(
                torch.ops.vrnn_fast.backward.default,
                (
                    *(upstream, [0, 2, 9], x.detach(), eps, cond.detach(), *optional[:-1]),
                    *([s.detach() for s in state], detached, None, saved, program.code, program.constants),
                    *(False, True, False, True),
                ),
            )
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_foreign_program_is_refused() -> None:
    program = encode(CellSpec(3, 4, 2))
    x, eps, state = torch.zeros(1, 1, 3), torch.zeros(1, 1, 2), [torch.zeros(1, 4)]
    parameters = [torch.zeros(p.shape) for p in CellSpec(3, 4, 2).parameters()]
    for code, message in (
        ([99, *program.code[1:]], f"reads format {program.code[0]}"),
        (program.code[:-1], "ends in the middle"),
        ([*program.code, 0], "goes on behind"),
    ):
        with pytest.raises(ValueError, match=message):
            torch.ops.vrnn_fast.forward(
                *(x, eps, *(None,) * 5, state, parameters, None),
                *(code, program.constants, 0, False, False, False, 0.5),
            )
    with pytest.raises(ValueError, match=r"parameter 0 must be \(\d+, \d+\), got \(1, \d+\)"):
        torch.ops.vrnn_fast.forward(
            *(x, eps, *(None,) * 5, state, [p[:1] for p in parameters], None),
            *(program.code, program.constants, 0, False, False, False, 0.5),
        )
    rest = (program.constants, 0, False, False, False, 0.5)
    for place, huge in itertools.product(range(len(program.code)), (2**63 - 1, -(2**63))):
        code = [*program.code[:place], huge, *program.code[place + 1 :]]
        try:  # any number anywhere is refused, or changes nothing that is read
            torch.ops.vrnn_fast.forward(x, eps, *(None,) * 5, state, parameters, None, code, *rest)
        except (ValueError, RuntimeError, IndexError):
            continue
    rest = (parameters, None, program.code, program.constants, 0, False, False, False, 0.5)
    with pytest.raises(RuntimeError, match="state must be 1 tensors, got 2"):
        torch.ops.vrnn_fast.forward(x, eps, *(None,) * 5, state * 2, *rest)
    with pytest.raises(RuntimeError, match="cond must be given where the program has it, and nowhere else"):
        torch.ops.vrnn_fast.forward(x, eps, x, *(None,) * 4, state, *rest)


CALL = CellSpec(5, 4, 3, phi_x=(6,), cond_size=2)


def called() -> dict[str, Tensor]:
    """What the operators take of T = 7 steps of B = 2 sequences."""
    return {
        "x": torch.rand(7, 2, 5),
        "eps": torch.randn(7, 2, 3),
        "cond": torch.randn(7, 2, 2),
        "lengths": torch.tensor([7, 4]),
        "resets": torch.zeros(7, 2, dtype=torch.bool),
        "mask": torch.ones(7, 2, 5, dtype=torch.bool),
        "state": torch.zeros(2, 4),
    }


@pytest.mark.parametrize("name", called())
@pytest.mark.parametrize("fault", ["shorter", "of one row", "of another dtype", "with a dimension less"])
def test_operators_look_at_every_size_before_they_read(name: str, fault: str) -> None:
    """Whoever calls them past the module gets an error, not another tensor's memory."""
    given = called()
    parameters = [torch.randn(p.shape) for p in CALL.parameters()]
    program = encode(CALL)
    size = 14 * program.saved + operators.SLACK

    def forward(saved: int) -> Any:
        options = (None, program.code, program.constants, saved, False, False, False, 0.5)
        flat = [given[n] for n in ("x", "eps", "cond", "lengths", "resets", "mask")]
        return torch.ops.vrnn_fast.forward(*flat, None, [given["state"]], parameters, *options)

    def backward(saved: Tensor, upstream: Tensor, slot: int) -> None:
        flat = [given[n] for n in ("x", "eps", "cond", "lengths", "resets", "mask")]
        rest = (None, saved, program.code, program.constants, False, False, False, False)
        torch.ops.vrnn_fast.backward([upstream], [slot], *flat, [given["state"]], parameters, *rest)

    saved = forward(size)[-1]
    backward(saved, torch.ones(7, 2), 0)
    for slot, sizes in ((0, (7, 1)), (2, (7, 2, 2)), (7, (7, 2, 4)), (8, (1, 4))):
        with pytest.raises(RuntimeError, match="an upstream gradient must have shape"):
            backward(saved, torch.ones(sizes), slot)
    with pytest.raises(RuntimeError, match="saved must have room for"):
        forward(size - operators.SLACK - 1)
    with pytest.raises(RuntimeError, match="saved is not what forward saved"):
        backward(saved[operators.SLACK + 1 :], torch.ones(7, 2), 0)
    t = given[name]
    given[name] = {
        "shorter": t[: t.shape[0] - 1],
        "of one row": t[:, :1] if t.dim() > 1 else t[:1],
        "of another dtype": t.half() if t.is_floating_point() else t.int(),
        "with a dimension less": t[0],
    }[fault]
    for call in (functools.partial(forward, size), functools.partial(backward, saved, torch.ones(7, 2), 0)):
        with pytest.raises(RuntimeError, match=r" must (be|have shape|have 3 dimensions)"):  # T and B are those of x
            call()


def test_the_three_parts_hold_what_they_promise() -> None:
    """before and after touch nothing that only the scan knows at that time."""
    program = partition(CellSpec(5, 8, 3, **DEEP))
    names = {b.name for b in program.buffers}
    kept = {keep: {b.name for b in program.buffers if b.keep == keep} for keep in Keep}
    assert kept[Keep.ALWAYS] == {"h.0"}
    assert kept[Keep.STORED] == {"pre", "posterior.1"}
    assert kept[Keep.NEVER] == {"x", "eps"}
    assert not any(getattr(getattr(s, "source", None), "buffer", None) == "h.0" for s in program.before)
    for stage in program.stages:
        for value in vars(stage).values():
            if hasattr(value, "buffer"):
                assert value.buffer in names


IN_ANOTHER_PLACE = """
import torch
from vrnn_fast import VRNN
torch.manual_seed(0)
model = VRNN(28, 64, 8, backend="cpu")
x, eps = torch.rand(12, 16, 28), torch.randn(12, 16, 8)

def loss():
    model.zero_grad()
    out = model(x, eps=eps)
    out.loss.backward()
    return out.loss.item(), sum(p.grad.double().sum().item() for p in model.parameters())
"""

PLACES = {
    "a Python thread": """
import threading
expected, found = loss(), []
thread = threading.Thread(target=lambda: found.append(loss()))
thread.start()
thread.join(60)
assert found == [expected], (found, expected)
""",
    "two Python threads at once": """
import copy, threading
expected, models, found = loss(), [copy.deepcopy(model) for _ in range(2)], []

def own(m):
    for _ in range(20):
        m.zero_grad()
        m(x, eps=eps).loss.backward()
        found.append(m(x, eps=eps).loss.item())

threads = [threading.Thread(target=own, args=(m,)) for m in models]
[t.start() for t in threads]
[t.join(60) for t in threads]
assert set(found) == {expected[0]} and len(found) == 40
""",
    "inside a parallel region": """
import copy, ctypes
expected, models, found = loss(), [copy.deepcopy(model) for _ in range(2)], []

@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def body(_):
    own = models.pop()
    own.zero_grad()
    out = own(x, eps=eps)
    out.loss.backward()
    found.append((out.loss.item(), sum(p.grad.double().sum().item() for p in own.parameters())))

openmp = next(line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line)
while models:  # one body may be all that OMP_THREAD_LIMIT allows
    ctypes.CDLL(openmp).GOMP_parallel(body, None, len(models), 0)
assert len(found) == 2
assert all(abs(a - b) <= 1e-5 * abs(b) for run in found for a, b in zip(run, expected)), (found, expected)
""",
    "a forked DataLoader worker": """
class Losses(torch.utils.data.Dataset):
    def __len__(self): return 2
    def __getitem__(self, i): return loss()[0]

expected = loss()[0]
options = dict(num_workers=1, batch_size=None, multiprocessing_context="fork", timeout=60)
for value in torch.utils.data.DataLoader(Losses(), **options):
    assert abs(value - expected) <= 1e-5 * abs(expected), (value, expected)
""",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("limit", [None, "1"], ids=["no limit", "OMP_THREAD_LIMIT=1"])
def test_right_wherever_it_is_called(place: str, limit: str | None) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_THREAD_LIMIT"}
    if limit is not None:
        environment["OMP_THREAD_LIMIT"] = limit
    code = IN_ANOTHER_PLACE + PLACES[place]
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_launches_do_not_grow_with_time() -> None:
    spec = CellSpec(3, 4, 2, **DEEP)
    Problem.draw(spec, 2, 2).run(cpu, torch.float32)  # the first run numbers the program
    grown = []
    for steps in (2, 64):
        before = sum(operators.launch_counts().values())
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            Problem.draw(spec, steps, 2).run(cpu, torch.float32)
        calls = {e.key: e.count for e in profile.key_averages() if e.key.startswith("vrnn_fast::")}
        grown.append((sum(operators.launch_counts().values()) - before, calls))
    assert grown[0] == grown[1]
    assert grown[0][0] == 2
    assert grown[0][1] == {"vrnn_fast::forward": 1, "vrnn_fast::backward": 1}


def test_what_many_structures_leave_behind_is_bounded() -> None:
    """Python remembers so many of them, the operators as many more; whoever still needs one has it."""
    model = VRNN(3, 4, 2, phi_x=(2,), backend="cpu")
    first, leaves = model.spec, list(model.parameters())
    x, eps = torch.rand(4, 2, 3).round(), torch.randn(4, 2, 2)
    kept = [model(x, eps=eps).loss for _ in range(2)]
    wanted = torch.autograd.grad(kept[0], leaves)
    remembered = cpu._number.cache_parameters()["maxsize"]
    assert remembered is not None
    for width in range(2 * remembered + 50):
        cpu._number(CellSpec(3, 1, 1, phi_x=(), phi_z=(), encoder=(), prior=(), decoder=(1 + width,)))
    held = torch.ops.vrnn_fast.hold_program(*encode(first)[:2], len(leaves))
    known = torch.ops.vrnn_fast.release_program(held)
    assert known <= 2 * remembered + 10, "beside those that other tests still hold"
    assert all(map(torch.equal, torch.autograd.grad(kept[1], leaves), wanted))
    copied = copy.deepcopy(number := cpu._number(first))
    assert (type(copied), copied) == (int, number), "a copy gives nothing back when it goes"


def test_nobody_gets_a_gradient_unasked(isa: str) -> None:
    assert_nobody_gets_a_gradient_unasked(cpu, torch.float32)


def test_nothing_comes_from_the_last_update(isa: str) -> None:
    assert_nothing_comes_from_the_last_update(cpu, torch.float32)
