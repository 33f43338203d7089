"""The operators called directly, by somebody who gets an argument wrong: an exception, before anything is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fuzz.programs import try_programs
from tests.support.machine import usable_isas
from vrnn_fast.cell.encode import ProgramKind, encode
from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.executors import cpu
from vrnn_fast.executors.cpu import operators

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=f"cpu: {cpu.unavailable()}")

T, B, X, H, Z, C = 4, 6, 5, 9, 3, 2
PLAIN = CellSpec(X, H, Z, phi_x=(7,))
CONDITIONED = CellSpec(X, H, Z, phi_x=(7,), cond_size=C)
FILTERED = CellSpec(X, H, Z, phi_x=(7,), measure="particle_filter")
LABEL = 16  # elements behind packed weights, the first of which is the build

Arguments = dict[str, Any]


def parameters_of(spec: CellSpec) -> list[Tensor]:
    return [torch.randn(p.shape) for p in spec.parameters()]


def forward_of(spec: CellSpec, **changed: Any) -> Arguments:
    program = encode(spec)
    return {
        "x": torch.rand(T, B, X),
        "eps": torch.randn(T, B, Z),
        "cond": torch.randn(T, B, C) if spec.cond_size else None,
        "lengths": torch.tensor([T, 2, 2, T, 1, 1] if spec.measure == "kl" else [T] * B),
        "resets": torch.rand(T, B) < 0.3,
        "mask": torch.rand(T, B, X) < 0.7,
        "uniforms": torch.rand(T, B // 2, 2) if spec.measure == "particle_filter" else None,
        "state": [torch.randn(B, H)],
        "parameters": parameters_of(spec),
        "packed": None,
        "program": program.code,
        "constants": program.constants,
        "saved_size": T * B * program.saved + operators.SLACK,
        "recompute": False,
        "want_prior": True,
        "want_raw": True,
        "threshold": 1.1,
    } | changed


def backward_of(spec: CellSpec, **changed: Any) -> Arguments:
    given = forward_of(spec)
    *_, ancestors, saved = torch.ops.vrnn_fast.forward(**given)
    for name in ("uniforms", "packed", "saved_size", "want_prior", "want_raw", "threshold"):
        del given[name]
    given |= {
        "upstream": [torch.randn(T, B), torch.randn(T, B, Z), torch.randn(B, H)],
        "slots": [0, 2, 8],
        "ancestors": ancestors if spec.measure == "particle_filter" else None,
        "saved": saved,
        "want_x": True,
        "want_eps": True,
        "want_cond": spec.cond_size > 0,
    }
    return given | changed


def generate_of(spec: CellSpec, **changed: Any) -> Arguments:
    program = encode(spec, "samples")
    return {
        "eps": torch.randn(T, B, Z),
        "noise": torch.randn(T, B, X),
        "cond": torch.randn(T, B, C) if spec.cond_size else None,
        "state": [torch.randn(B, H)],
        "parameters": parameters_of(spec),
        "packed": None,
        "program": program.code,
        "constants": program.constants,
    } | changed


def packed_of(spec: CellSpec) -> Tensor:
    return torch.ops.vrnn_fast.pack(parameters_of(spec), cpu._number(spec))


def prepared(spec: CellSpec) -> Arguments:
    """What changes where weights were packed beforehand."""
    return {
        "parameters": [],
        "packed": packed_of(spec),
        "program": [cpu._number(spec)],
        "constants": [],
        "saved_size": 0,
    }


def step_of(spec: CellSpec, **changed: Any) -> Arguments:
    return {
        "packed": packed_of(spec),
        "number": cpu._number(spec),
        "x": torch.rand(B, X),
        "eps": torch.randn(B, Z),
        "state": [torch.randn(1, B, H)],
        "want_raw": True,
    } | changed


def pack_of(spec: CellSpec) -> Arguments:
    return {"parameters": parameters_of(spec), "number": cpu._number(spec)}


CALLS: list[tuple[str, Callable[[CellSpec], Arguments], CellSpec]] = [
    ("forward", forward_of, PLAIN),
    ("forward", forward_of, CONDITIONED),
    ("forward", forward_of, FILTERED),
    ("forward", lambda spec: forward_of(spec, **prepared(spec)), PLAIN),
    ("backward", backward_of, PLAIN),
    ("backward", backward_of, CONDITIONED),
    ("backward", backward_of, FILTERED),
    ("generate", generate_of, PLAIN),
    ("generate", generate_of, CONDITIONED),
    ("step", step_of, PLAIN),
    ("pack", pack_of, PLAIN),
]
calls = pytest.mark.parametrize(("name", "given", "spec"), CALLS, ids=lambda value: value if type(value) is str else "")


def run(name: str, arguments: Arguments) -> Any:
    with torch.no_grad():
        return getattr(torch.ops.vrnn_fast, name)(**arguments)


def refusal(name: str, arguments: Arguments) -> str:
    """The message of the exception that the call raises, if it does."""
    try:
        run(name, arguments)
    except (RuntimeError, ValueError) as error:
        return str(error)
    return ""


def replaced(arguments: Arguments, by: Callable[[Tensor], Tensor | None]) -> Iterator[tuple[str, Arguments]]:
    """The arguments with one of their tensors replaced, for each of them that is read."""
    read = [not n.startswith("enc") or "noise" not in arguments for n in (p.name for p in PLAIN.parameters())]
    for name, value in arguments.items():
        if isinstance(value, Tensor) and (other := by(value)) is not None:
            yield name, arguments | {name: other}
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, Tensor) and (name != "parameters" or read[i]) and (other := by(item)) is not None:
                    yield f"{name}[{i}]", arguments | {name: [*value[:i], other, *value[i + 1 :]]}


def cut(dimension: int) -> Callable[[Tensor], Tensor | None]:
    return lambda t: t.narrow(dimension, 0, t.shape[dimension] - 1) if t.dim() > dimension else None


@calls
@pytest.mark.parametrize(
    "by",
    [
        lambda t: t.to("meta"),
        lambda t: t.double() if t.dtype == torch.float32 else t.to(torch.int32),
        cut(0),
        cut(1),
        cut(2),
        lambda t: t.unsqueeze(0),
        lambda t: t[..., 0] if t.dim() > 1 else t[0],
        lambda t: t.new_empty(0),
    ],
    ids=["meta", "dtype", "row", "column", "feature", "dimension more", "dimension less", "empty"],
)
def test_every_tensor_is_looked_at(
    name: str, given: Callable[[CellSpec], Arguments], spec: CellSpec, by: Callable[[Tensor], Tensor | None]
) -> None:
    """Its device, its dtype and its shape."""
    arguments = given(spec)
    run(name, arguments)
    for place, wrong in replaced(arguments, by):
        assert refusal(name, wrong), f"{place} was taken as it came"


@calls
@pytest.mark.parametrize(
    "by",
    [
        lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
        lambda t: torch.stack([t, t], -1)[..., 0],
        lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape),
    ],
    ids=["transposed", "sliced", "offset"],
)
def test_a_layout_changes_no_bit_or_is_refused(
    name: str, given: Callable[[CellSpec], Arguments], spec: CellSpec, by: Callable[[Tensor], Tensor]
) -> None:
    def bits(results: Any) -> list[Tensor]:
        flat = torch.utils._pytree.tree_leaves(results)
        return {"forward": flat[:-1], "pack": []}.get(name, flat)  # what is opaque has elements that nobody writes

    arguments = given(spec)
    right = bits(run(name, arguments))
    for place, other in replaced(arguments, by):
        if message := refusal(name, other):
            assert place in ("lengths", "packed", "saved", "ancestors"), place
            assert f"{place} must be contiguous" in message or place == "saved", message
            continue
        for a, b in zip(bits(run(name, other)), right, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_a_program_of_another_kind_is_refused() -> None:
    drawing = encode(PLAIN, "samples")
    own = {"program": drawing.code, "constants": drawing.constants}
    for name, arguments in (("forward", forward_of(PLAIN)), ("backward", backward_of(PLAIN))):
        with pytest.raises(RuntimeError, match="the program generates: call vrnn_fast::generate"):
            run(name, arguments | own)
    number = cpu._number(PLAIN, "samples")
    packed = torch.ops.vrnn_fast.pack(parameters_of(PLAIN), number)
    with pytest.raises(RuntimeError, match="the program generates"):
        run("step", step_of(PLAIN, packed=packed, number=number))
    for spec in (FILTERED, CONDITIONED):
        with pytest.raises(RuntimeError, match="a single step resamples no particles and takes no cond"):
            run("step", step_of(spec))
    inferring = encode(PLAIN)
    with pytest.raises(RuntimeError, match="does not generate"):
        run("generate", generate_of(PLAIN, program=inferring.code, constants=inferring.constants))


def test_weights_that_are_not_packed_for_the_program_are_refused() -> None:
    right = packed_of(PLAIN)
    for wrong in (torch.zeros_like(right), torch.full_like(right, 7.0), torch.full_like(right, torch.nan)):
        with pytest.raises(RuntimeError, match="not packed for this program"):
            run("step", step_of(PLAIN, packed=wrong))
        with pytest.raises(RuntimeError, match="not packed for this program"):
            run("forward", forward_of(PLAIN, **prepared(PLAIN) | {"packed": wrong}))
    other = packed_of(CellSpec(X, H, Z, phi_x=(7,), activation="tanh"))
    assert other.shape == right.shape
    with pytest.raises(RuntimeError, match="not packed for this program"):
        run("step", step_of(PLAIN, packed=other))


@pytest.mark.parametrize(("number", "isa"), [(0, "baseline"), (1, "avx2"), (2, "avx512")])
def test_weights_for_another_processor_are_refused(number: int, isa: str) -> None:
    """As if a process on another machine had packed them: no illegal instruction."""
    packed, arguments = packed_of(PLAIN), backward_of(PLAIN)
    packed[-LABEL], arguments["saved"][-LABEL] = number, number
    for name, given in (("step", step_of(PLAIN, packed=packed)), ("backward", arguments)):
        if isa in usable_isas():
            run(name, given)
        else:
            with pytest.raises(RuntimeError, match=f"packed for {isa} instructions, which this processor lacks"):
                run(name, given)


def test_what_another_call_saved_is_refused() -> None:
    arguments = backward_of(PLAIN)
    lengths, swapped = arguments["lengths"], backward_of(PLAIN)["saved"]
    run("backward", arguments)
    other = CellSpec(X, H, Z, phi_x=(7,), activation="tanh")
    for wrong, message in (
        ({"lengths": lengths.flip(0)}, "with the same inputs, lengths and recompute"),
        ({"lengths": None}, "with the same inputs, lengths and recompute"),
        ({"recompute": True}, "with the same inputs, lengths and recompute"),
        ({"saved": swapped}, "with the same inputs, lengths and recompute"),
        ({"saved": torch.zeros_like(swapped)}, "saved is not what forward saved"),
        ({"saved": swapped[:-1]}, "saved is not what forward saved"),
        ({"saved": torch.cat((torch.zeros(64), arguments["saved"]))}, "saved is not what forward saved"),
        ({"saved": backward_of(other)["saved"]}, "saved is not what forward saved"),
        (backward_of(other) | {"program": arguments["program"]}, "not packed for this program"),
        ({"resets": None}, "with the same inputs, lengths and recompute"),
    ):
        with pytest.raises(RuntimeError, match=message):
            run("backward", arguments | wrong)


def test_ancestors_are_among_the_particles() -> None:
    arguments = backward_of(FILTERED)
    right: Tensor = arguments["ancestors"]
    assert (right >= 0).any()
    half = torch.where(torch.arange(2) == 0, right.clamp(min=0), -1)
    for wrong in (right + 2, right - 2, right.clone().fill_(2**62), half):
        with pytest.raises(RuntimeError, match="ancestors must be in 0 to 1, or -1 for all particles"):
            run("backward", arguments | {"ancestors": wrong})
    with pytest.raises(RuntimeError, match="ancestors must be contiguous"):
        run("backward", arguments | {"ancestors": right[:1].expand_as(right)})
    with pytest.raises(RuntimeError, match="ancestors belong to a program that resamples"):
        run("backward", arguments | {"ancestors": None})


@pytest.mark.parametrize("name", ["mask", "resets"])
def test_any_byte_but_zero_is_true(name: str) -> None:
    """As NumPy and torch take it."""
    arguments = forward_of(PLAIN)
    right = run("forward", arguments)
    odd = torch.where(arguments[name], 255, 0).to(torch.uint8).view(torch.bool)
    for a, b in zip(run("forward", arguments | {name: odd})[:8], right[:8], strict=True):
        assert torch.equal(a, b)


def test_numbers_that_no_memory_has_room_for() -> None:
    for size in (2**63 - 1, 2**60):
        with pytest.raises(RuntimeError, match="saved_size must be at most"):
            run("forward", forward_of(PLAIN, saved_size=size))
    with pytest.raises(RuntimeError, match="saved must have room for"):
        run("forward", forward_of(PLAIN, saved_size=1))


@pytest.mark.parametrize("name", ["x", "eps", "lengths", "cond"])
def test_memory_that_was_freed(name: str) -> None:
    arguments = forward_of(CONDITIONED)
    arguments[name].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=f"{name} must have memory: its storage was freed"):
        run("forward", arguments)
    arguments = forward_of(CONDITIONED)
    arguments["parameters"][1].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="a parameter must have memory"):
        run("forward", arguments)


def test_upstream_gradients_have_places() -> None:
    arguments = backward_of(PLAIN)
    for slots, message in (
        ([0, 2], "slots must number each of 3"),
        ([0, 2, 9], "no output 9"),
        ([0, 2, -1], "no output -1"),
        ([2, 0, 8], "an upstream gradient must have shape"),
        ([0, 0, 8], "slots must number each output once, got 0 twice"),
    ):
        with pytest.raises(RuntimeError, match=message):
            run("backward", arguments | {"slots": slots})
    with pytest.raises(RuntimeError, match="want_cond asks for the gradient of a cond that is not given"):
        run("backward", arguments | {"want_cond": True})


@pytest.mark.parametrize("way", ["samples", "inference"])
def test_single_steps_on_arrays_refuse_the_same(way: ProgramKind) -> None:
    native = pytest.importorskip("vrnn_fast._native", reason="the pybind11 module is not built")
    program = encode(PLAIN, way)
    arrays = [p.numpy() for p in parameters_of(PLAIN)]
    if way == "samples":
        with pytest.raises(ValueError, match="no single step's"):
            native.Engine32(program.code, program.constants, arrays, 2)
        return
    for wrong in ([a[:1] for a in arrays], [a.flatten() for a in arrays], [a[None, None] for a in arrays]):
        with pytest.raises(ValueError, match=r"parameter 0 must (be \(7, 5\)|have 2 dimensions)|1 or 2 dimensions"):
            native.Engine32(program.code, program.constants, wrong, 2)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        native.Engine32(program.code, program.constants, arrays, 0)


def test_damaged_programs_end_in_exceptions() -> None:
    """Some of what ``make sanitize`` runs."""
    assert 0 < try_programs(seed=0, cases=300) < 300
