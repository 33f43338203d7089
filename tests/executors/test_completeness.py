"""Every stage in every executor and direction: it runs there, or is refused by name with a reason.

The reference is not among them: it is written from the equations, and knows a CellSpec's words instead of stages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, get_args
from unittest import mock

import pytest
import torch

from tests.support.oracle import Problem
from vrnn_fast.cell import encode, stages
from vrnn_fast.cell.partition import generation, partition
from vrnn_fast.cell.spec import ACTIVATIONS, MOST_LAYERS, Activation, Cell, CellSpec, Fused, Measure, Std, StdKind
from vrnn_fast.cell.stages import Activate, Bias, Draw, Keep, Partition, Slice, Stage
from vrnn_fast.executors import reference
from vrnn_fast.executors.base import PER_STEP
from vrnn_fast.executors.call import Outputs
from vrnn_fast.executors.cpu import schema
from vrnn_fast.executors.cut import cut as cut_of
from vrnn_fast.executors.cut import written
from vrnn_fast.executors.rows import Rows
from vrnn_fast.executors.triton import emit, scan
from vrnn_fast.executors.triton.plan import plan

# the package has functions of these names
cuda_forward, cuda_reverse = (import_module(f"vrnn_fast.executors.cuda.{name}") for name in ("forward", "reverse"))
ROOT = Path(__file__).parents[2]
STAGES: tuple[type, ...] = get_args(Stage)
SIZES: dict[str, Any] = {"input_size": 5, "hidden_size": 4, "latent_size": 3, "phi_z": (4,), "encoder": (4,)}
GAUSSIAN: dict[str, Any] = {"likelihood": "gaussian", "decoder_heads": (("dec_mean", 5), ("dec_std.0", 5))}
CELLS: tuple[dict[str, Any], ...] = (
    {"phi_x": (4,), "decoder": (4,)},
    {"cell": "lstm", "num_layers": 2, "residual": True, **GAUSSIAN},
    {"cell": "rnn", "cond_size": 2, "prior": None},
)
DIRECTIONS = "forward", "backward", "generation"


class Example(NamedTuple):
    """A stage in a program that has it."""

    spec: CellSpec
    program: Partition
    stage: Any


@cache
def specs() -> tuple[CellSpec, ...]:
    return tuple(CellSpec(**SIZES | own, measure=word) for own in CELLS for word in get_args(Measure))


def programs(direction: str) -> Iterator[tuple[CellSpec, Partition]]:
    """What executors run in a direction; going back, Triton has what weighs a particle behind the scan."""
    for spec in specs():
        if direction == "generation":
            yield from ((spec, generation(spec, mean=mean)) for mean in (False, True))
        else:
            yield spec, plan(spec, 16, reverse=direction == "backward").program


@cache
def examples() -> dict[type, Example]:
    found: dict[type, Example] = {}
    for direction in DIRECTIONS:
        for spec, program in programs(direction):
            for stage in program.stages:
                found.setdefault(type(stage), Example(spec, program, stage))
    for options in ({"initial_state": True}, {"normalized": ("encoder",)}):  # which no cell above has
        spec = CellSpec(**SIZES | options)
        for stage in partition(spec).scan:
            found.setdefault(type(stage), Example(spec, partition(spec), stage))
    return found


def refusal(rows: Rows, direction: str, stage: Any) -> str | None:
    """Why a stage does not run on whole buffers, or None where it does."""
    try:
        rows.backward(stage, {}, wanted=set()) if direction == "backward" else rows.forward(stage)
    except TypeError as error:
        if str(error) != f"{type(stage).__name__} belongs to the scan":
            raise
        return str(error)
    return None


def rows_of(spec: CellSpec, program: Partition) -> Rows:
    """Ones in every buffer of one row."""
    widths = {b.name: b.width for b in program.buffers}
    parameters = {p.name: torch.ones(p.shape) for p in spec.parameters()}
    rows = Rows(spec, widths, parameters, torch.ones(1), 1, None, ())
    for name in widths:
        rows.buffer(rows.value, name).fill_(1.0)
        rows.buffer(rows.gradient, name).fill_(1.0)
    return rows


# ---- where a stage must be, and whether it is


def encoding() -> dict[str, Any]:
    """What the compiled code knows; a text of names as a tuple."""
    native = pytest.importorskip("vrnn_fast._native", reason="the native module is optional and not built here")
    return {k: tuple(v.split(", ")) if isinstance(v, str) else v for k, v in native.encoding().items()}


def kernels(direction: str) -> set[str]:
    """The stages that have a case in a direction, which -Werror=switch asks for too."""
    there, back = (ROOT / "csrc" / "cpu" / "run.h").read_text().split("static void run_backward(", 1)
    return set(re.findall(r"case Op::(\w+):", back if direction == "backward" else there))


def on_cpu(example: Example, direction: str) -> str | None:
    """None, or where a stage is missing."""
    kind = type(example.stage)
    if kind not in encode.OPS:
        return "OPS of cell/encode.py"
    if kind.__name__.lower() not in encoding()["Op"]:
        return "Op of csrc/core/program.h"
    if kind.__name__.lower() not in kernels(direction):
        return "csrc/cpu/run.h"
    alone = replace(example.program, before=(), scan=(example.stage,), after=())
    way: encode.ProgramKind = "samples" if direction == "generation" else "inference"
    with mock.patch.multiple(encode, partition=lambda spec: alone, generation=lambda spec, mean: alone):
        try:
            encode.encode.__wrapped__(example.spec, way)
        except AssertionError:  # of forgotten
            return "encode of cell/encode.py"
    return None


def on_triton(example: Example, direction: str) -> str | None:
    """None where a stage runs, "refused: " and the reason where it does not, or where it is missing."""
    kind, rows = type(example.stage), rows_of(example.spec, example.program)
    try:
        written(example.stage)
    except AssertionError:
        return "written of executors/cut.py"
    if kind not in emit.STAGES:
        return "STAGES of executors/triton/emit.py"
    pair = emit.STAGES[kind]
    emitted = pair.backward if direction == "backward" else pair.forward
    if callable(emitted) or refusal(rows, direction, example.stage) is None:
        return None
    return f"refused: {emitted}" if len(emitted.split()) > 3 else "a reason in executors/triton/emit.py"


def on_cuda(example: Example, direction: str) -> str | None:
    """None where a stage runs, in the scan or over all rows, or "refused: " and the reason where it does not."""
    if refusal(rows_of(example.spec, example.program), direction, example.stage) is None:
        return None
    try:
        whole = cut_of(example.program)
    except AssertionError:
        return "written of executors/cut.py"
    back = direction == "backward"
    units = cuda_reverse.ReverseUnits(whole, ()) if back else cuda_forward.ForwardUnits(whole)
    try:
        units.add(example.stage)
    except TypeError as error:
        return f"refused: {error}"
    return None


REFUSED = {(Draw, "backward"): "refused: a cell that runs on its own is given nothing to learn from"}
REFUSED_ON_CUDA = {(Draw, "backward"): "refused: Draw has no gradient in a CUDA scan"}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", STAGES, ids=lambda kind: kind.__name__)
def test_every_stage_runs_or_is_refused_by_name(kind: type, direction: str) -> None:
    example = examples()[kind]
    assert on_cpu(example, direction) is None
    assert on_triton(example, direction) == REFUSED.get((kind, direction))
    assert on_cuda(example, direction) == REFUSED_ON_CUDA.get((kind, direction))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_no_program_has_a_stage_where_it_is_refused(direction: str) -> None:
    for spec, program in programs(direction):
        for stage in program.scan:
            pair = emit.STAGES[type(stage)]
            assert callable(pair.backward if direction == "backward" else pair.forward), stage
        for stage in (*program.before, *program.after):
            assert refusal(rows_of(spec, program), direction, stage) is None


def test_every_stage_is_one_of_the_union() -> None:
    parts = {Slice, stages.Block, stages.Term, stages.Buffer, Partition}
    own = {c for c in vars(stages).values() if is_dataclass(c) and c.__module__ == stages.__name__}
    assert own - parts == set(STAGES)
    assert examples().keys() == set(STAGES)  # and there is a program that has it


# ---- the test of the tests


@dataclass(frozen=True)
class Smooth:
    """A stage that nobody knows."""

    target: Slice


@pytest.fixture
def unknown() -> Example:
    spec, program, activate = examples()[Activate]
    stage = Smooth(activate.target)
    return Example(spec, replace(program, scan=(*program.scan, stage)), stage)


def test_a_stage_that_is_forgotten_in_one_place_is_found(unknown: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody adds a stage, place by place, and each time what is left is named."""
    assert {Smooth, *STAGES} != set(STAGES)
    assert {on_cpu(unknown, d) for d in DIRECTIONS} == {"OPS of cell/encode.py"}
    monkeypatch.setattr(encode, "OPS", (*encode.OPS, Smooth))
    assert {on_cpu(unknown, d) for d in DIRECTIONS} == {"Op of csrc/core/program.h"}
    known = encoding()
    monkeypatch.setitem(globals(), "encoding", lambda: known | {"Op": (*known["Op"], "smooth")})
    assert {on_cpu(unknown, d) for d in DIRECTIONS} == {"csrc/cpu/run.h"}
    there = {d: kernels(d) for d in DIRECTIONS}
    monkeypatch.setitem(globals(), "kernels", lambda d: there[d] | ({"smooth"} if d != "backward" else set()))
    assert on_cpu(unknown, "backward") == "csrc/cpu/run.h"
    monkeypatch.setitem(globals(), "kernels", lambda d: there[d] | {"smooth"})
    assert {on_cpu(unknown, d) for d in DIRECTIONS} == {"encode of cell/encode.py"}

    assert {on_cuda(unknown, d) for d in DIRECTIONS} == {"written of executors/cut.py"}
    own = Example(unknown.spec, examples()[Activate].program, unknown.stage)
    assert on_cuda(own, "forward") == "refused: Smooth has no unit in a CUDA scan"
    assert on_cuda(own, "backward") == "refused: Smooth has no gradient in a CUDA scan"

    assert {on_triton(unknown, d) for d in DIRECTIONS} == {"written of executors/cut.py"}
    monkeypatch.setitem(globals(), "written", lambda stage: (stage.target,))
    assert {on_triton(unknown, d) for d in DIRECTIONS} == {"STAGES of executors/triton/emit.py"}
    monkeypatch.setitem(emit.STAGES, Smooth, emit.Emitter(lambda scan, stage: None, ""))
    assert on_triton(unknown, "backward") == "a reason in executors/triton/emit.py"
    monkeypatch.setitem(emit.STAGES, Smooth, emit.Emitter(lambda scan, stage: None, "not yet: nobody has asked for it"))
    assert on_triton(unknown, "backward") == "refused: not yet: nobody has asked for it"


def test_an_unknown_stage_is_refused_before_a_kernel_is_written(unknown: Example) -> None:
    cut = replace(plan(unknown.spec, 16), program=replace(unknown.program, scan=(unknown.stage,)))
    with pytest.raises(TypeError, match="Smooth is not among the stages that emit"):
        scan.forward(cut, frozenset(), (), ahead=False, late=False)
    for stage, reason in (
        (examples()[Draw].stage, "Draw has no gradient in the scan: a cell that runs on its own is given nothing"),
        (Bias(Slice("pre", 0, 4), ()), "Bias has no gradient in the scan: zeros have none"),
    ):
        cut = replace(plan(unknown.spec, 16), program=replace(unknown.program, scan=(stage,)))
        with pytest.raises(TypeError, match=reason):
            scan.backward(cut, frozenset(), on_z=False, on_eps=False, ahead=False, late=False)


# ---- the same words on both sides


def test_python_and_the_compiled_code_mean_the_same_numbers() -> None:
    assert encoding() == {
        "format": encode.FORMAT,
        "line": encode.LINE,
        "most_states": 2 * MOST_LAYERS,
        "most_buffers": 832,
        "Op": tuple(kind.__name__.lower() for kind in encode.OPS),
        "Activation": ACTIVATIONS,
        "Cell": encode.CELLS,
        "Loss": encode.LIKELIHOODS,
        "StdKind": encode.STD_KINDS,
        "Output": PER_STEP,
        "Keep": tuple(keep.name.lower() for keep in Keep),
    }
    assert get_args(Cell) == encode.CELLS
    assert get_args(Fused) == encode.LIKELIHOODS
    assert [keep.value for keep in Keep] == list(range(len(Keep)))


def test_results_have_the_same_places_in_both_executors() -> None:
    for result in (schema.ForwardResult, Outputs):
        assert result._fields[: len(PER_STEP)] == PER_STEP


@pytest.mark.parametrize("name", ["forward", "backward", "generate", "step"])
def test_python_names_the_arguments_of_an_operator_as_its_schema_does(name: str) -> None:
    compiled = getattr(torch.ops.vrnn_fast, name).default._schema
    arguments = getattr(schema, f"{name.capitalize()}Arguments")
    assert tuple(argument.name for argument in compiled.arguments) == arguments._fields
    if name == "forward":
        assert tuple(result.name for result in compiled.returns) == schema.ForwardResult._fields


def test_the_compiler_asks_for_every_member_of_an_enum() -> None:
    assert '"-Werror=switch"' in (ROOT / "setup.py").read_text()
    for path in (*ROOT.glob("csrc/core/*.*"), *ROOT.glob("csrc/cpu/**/*.*")):
        assert "default:" not in path.read_text(), path


@pytest.mark.parametrize("word", ACTIVATIONS)
def test_every_activation_is_in_each_executor(word: Activation) -> None:
    assert word in reference._ACTIVATIONS
    spec, program, stage = examples()[Activate]
    rows = rows_of(spec, program)
    for direction in ("forward", "backward"):
        assert refusal(rows, direction, replace(stage, activation=word)) is None
    functions = (ROOT / "vrnn_fast" / "executors" / "triton" / "functions.py").read_text()
    assert word == "identity" or functions.count(f'KIND == "{word}"') == 2  # forward and backward


@pytest.mark.parametrize(
    "options",
    [
        *({"cell": word} for word in get_args(Cell)),
        *({"cell": "rnn", "nonlinearity": word, "activation": word} for word in ACTIVATIONS),
        *({"std": Std(word)} for word in get_args(StdKind)),
        *({"measure": word} for word in get_args(Measure)),
        *({"likelihood": word} | (GAUSSIAN if word == "gaussian" else {}) for word in get_args(Fused)),
    ],
    ids=str,
)
def test_every_word_of_a_cell_runs_in_the_reference(options: dict[str, Any]) -> None:
    particles = 2 if options.get("measure") == "particle_filter" else 0
    problem = Problem.draw(CellSpec(**SIZES | options), 2, 2, particles=particles)
    for name, tensor in problem.run(reference, torch.float64).items():
        assert tensor.isfinite().all(), name
