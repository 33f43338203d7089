"""The Triton executor against the oracle, on the GPU that is there, or in triton's interpreter (TRITON_INTERPRET=1).

Imports torch, triton, numpy and pytest only. tests/executors/test_triton.py runs all of it in the interpreter.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.foreign import audio
from tests.support.interpreting import patched_once
from tests.support.oracle import (
    Errors,
    Problem,
    assert_confident_predictions_keep_their_digits,
    assert_lawful_where_terms_vanish,
    assert_masks_stop_infinity,
    assert_no_divergence_no_gradient_of_it,
    assert_nobody_gets_a_gradient_unasked,
    assert_nothing_comes_from_the_last_update,
    assert_obeys_the_law,
)
from vrnn_fast import VRNN, Std, accelerate, checks
from vrnn_fast.cell.spec import ACTIVATIONS, CellSpec
from vrnn_fast.cell.stages import Keep
from vrnn_fast.executors import SequenceResult, call, reference, rows, select, triton
from vrnn_fast.executors.base import Batch, Want
from vrnn_fast.executors.triton import kernels, launch, tuning
from vrnn_fast.executors.triton.passes import Room, passes
from vrnn_fast.executors.triton.tuning import Config

pytestmark = pytest.mark.skipif(triton.unavailable() is not None, reason=f"triton: {triton.unavailable()}")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# A GPU's ex2.approx, lg2.approx and div.full are each within 2 ulp by the manual of PTX, where the interpreter rounds
# once: six roundings more than the law's two pass on a device.
ROUNDINGS = 8.0 if DEVICE.type == "cuda" else None

DEEP: dict[str, Any] = {"phi_x": (9,), "phi_z": (5,), "encoder": (33, 8), "prior": (7,), "decoder": (6,)}
GAUSSIAN: dict[str, Any] = {
    "likelihood": "gaussian",
    "decoder_heads": (("dec_mean", 5), ("dec_std.0", 5)),
    "output_std": Std(floor=1e-3),
}
RAGGED = [1, 2, 0]
AFFINE = (("phi_x", ("identity",)), ("phi_z", ("identity",)), ("encoder", ("tanh", "identity")))
STATE_SPACE = (("decoder", ("z", "h")), ("cell", ("phi_z",)))
SMOOTH = (("phi_z", "gelu"), ("encoder", ("gelu", "tanh")), ("enc_std", "elu"))
RESIDUAL = {"residual": True, "cond_size": 2}
APART = (("enc_std", (4,)), ("prior_mean", (9, 17)), ("prior_std", (3,)), ("dec_mean", (18, 4)))
NO_Z: dict[str, Any] = {"latent_size": 0, "phi_z": (), "encoder": (), "prior": None}
TRAINING = {"weights": 2, "forward": 1, "backward": 1, "weight gradients": 1}  # launches of a step
EVERYWHERE = ("encoder", "prior", "decoder", "cell")


@contextmanager
def rows_apart() -> Iterator[None]:
    """Let no row of the interpreter's products know of another, as on a GPU: they add one column at a time.

    Its own are NumPy's, where the last bit of a row may depend on where the row stands (OpenBLAS on AVX2).
    """
    if not triton._INTERPRETED:
        yield
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
        total = d.data.copy()
        for k in range(a.data.shape[1]):
            total += a.data[:, k : k + 1].astype(total.dtype) * b.data[k : k + 1].astype(total.dtype)
        return TensorHandle(total, d.dtype.scalar)

    with mock.patch.object(InterpreterBuilder, "create_dot", dot):
        yield


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with patched_once():
        yield


def on_device(*tensors: Any) -> Iterator[Any]:
    return (t.to(DEVICE) if isinstance(t, Tensor) else t for t in tensors)


def run(spec: CellSpec, parameters: Any, batch: Batch, want: Want) -> SequenceResult:
    """The executor, with tensors sent to its device and results brought back."""
    there = dict(zip(batch._fields, on_device(*batch), strict=True))
    there |= {"state": tuple(on_device(*batch.state)), "lengths": batch.lengths}
    result = triton.run(spec, list(on_device(*parameters)), Batch(**there), want)
    *per_step, state, ancestors = result
    rest = tuple(s.cpu() for s in state), None if ancestors is None else ancestors.cpu()
    return SequenceResult(*(t.cpu() for t in per_step), *rest)


here = SimpleNamespace(run=run)


def check(spec: CellSpec, steps: int = 2, batch: int = 3, lengths: list[int] | None = None, **options: Any) -> None:
    options = {"dtype": torch.float32, "draws": 2, "roundings": ROUNDINGS} | options
    assert_obeys_the_law(spec, steps, batch, lengths, executor=here, **options)


def cell(**options: Any) -> CellSpec:
    return CellSpec(**{"input_size": 5, "hidden_size": 17, "latent_size": 3, **options})


@pytest.mark.parametrize("kind", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("recompute", [False, True], ids=["stored", "recomputed"])
def test_every_cell(kind: str, recompute: bool) -> None:
    check(cell(cell=kind, **DEEP, **GAUSSIAN), lengths=RAGGED, recompute=recompute)


def test_confident_predictions_keep_their_digits() -> None:
    assert_confident_predictions_keep_their_digits(cell(**DEEP), here, torch.float32)


def test_confident_predictions_of_particles_keep_their_digits() -> None:
    """The filter weighs them inside the scan."""
    logit = torch.tensor([10.0, -10.0, 25.0])
    x, eps, uniforms = torch.tensor([1.0, 0.0, 1.0]), torch.zeros(1, 1, 3), torch.zeros(1, 1, 1)
    spec = cell(**DEEP | {"decoder": ()}, input_size=3, measure="particle_filter")
    parameters = {p.name: torch.zeros(p.shape) for p in spec.parameters()} | {"dec_mean.0.bias": logit}
    batch = Batch(x.expand(1, 1, 3), eps, (torch.zeros(1, 17),), uniforms=uniforms)
    found = run(spec, parameters.values(), batch, Want(prior=True, raw=True)).nll
    right = torch.nn.functional.softplus(-logit.double().abs()).sum()
    torch.testing.assert_close(found.double().squeeze(), right, rtol=4 * torch.finfo(torch.float32).eps, atol=0)


@pytest.mark.parametrize("measure", ["kl", "log_weight"])
def test_without_a_divergence_in_the_loss_there_is_no_gradient_of_it(measure: Any) -> None:
    spec = cell(std=Std(floor=0.0), measure=measure, **DEEP)
    assert_no_divergence_no_gradient_of_it(spec, here, torch.float32)


@pytest.mark.parametrize(
    ("measure", "std"),
    [("kl", Std()), ("kl", Std("log_variance", floor=0.0)), ("log_weight", Std()), ("particle_filter", Std())],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_where_terms_vanish(measure: Any, std: Std) -> None:
    assert_lawful_where_terms_vanish(cell(measure=measure, std=std), here, torch.float32)


def test_masks_stop_infinity() -> None:
    assert_masks_stop_infinity(here, torch.float32)


FAMILY: dict[str, dict[str, Any]] = {
    "no hidden layer": {},
    "no bias": {"cell": "lstm", "bias": False, **GAUSSIAN},
    "two layers": {"num_layers": 2, "cell": "lstm", "encoder": (8,)},
    "three layers without bias": {"num_layers": 3, "bias": False, "phi_z": (5,)},
    "two simple layers": {"num_layers": 2, "cell": "rnn", "nonlinearity": "elu"},
    "deep heads": {"head_layers": (4, 9), "encoder": (8,), "activation": "silu"},
    "packed heads": {"packed_heads": True, "encoder": (8,), "cell": "lstm"},
    "packed deep heads": {"packed_heads": True, "head_layers": (17,)},
    "residual": {"residual": True, **DEEP},
    "standard normal": {"prior": None, "encoder": (8,)},
    "conditioned everywhere": {"cond_size": 33, "cond_networks": EVERYWHERE, **DEEP},
    "conditioned residual": {"cell": "lstm", "prior": (7,), **RESIDUAL},
    "all at once": {
        "cond_size": 2,
        "cond_networks": EVERYWHERE,
        "residual": True,
        "num_layers": 2,
        "head_layers": (4,),
    },
    "no z": NO_Z,
    "no z, the rest": NO_Z | {"cond_size": 2, "cond_networks": EVERYWHERE, "num_layers": 2, "cell": "rnn"},
    "weights of the sample": {"measure": "log_weight", **DEEP},
    "weights, residual, no network of z": {"measure": "log_weight", "residual": True, "encoder": (8,)},
    "activations of their own": {"activations": (("phi_z", "elu"), ("encoder", "tanh")), **DEEP},
    "affine ends": {"activations": AFFINE, **DEEP},
    "state-space": {"cond_size": 2, "cond_networks": ("phi_z", "encoder"), "input_order": STATE_SPACE, **DEEP},
    "smooth activations": {"activation": "silu", "activations": SMOOTH, **DEEP, "head_layers": (4,)},
    "smooth simple layers": {"activation": "gelu", "cell": "rnn", "nonlinearity": "silu", "num_layers": 2},
    "heads of their own": {"own_layers": APART, "activations": (("prior_mean", "elu"),), **RESIDUAL},
    "normalised": {"normalized": tuple(DEEP), **DEEP, "residual": True, "head_layers": (4,), "norm_eps": 1e-3},
    "normalised, smooth": {"normalized": tuple(DEEP), **DEEP, "activation": "silu"},
}


@pytest.mark.parametrize("member", FAMILY)
def test_the_whole_family(member: str) -> None:
    check(cell(**FAMILY[member]), lengths=RAGGED, recompute=len(member) % 2 == 1, draws=3)


@pytest.mark.parametrize(
    "options", [{"num_layers": 2, **GAUSSIAN}, {"cell": "lstm", "initial_state": True}], ids=["gru", "lstm"]
)
def test_resets_and_masks(options: dict[str, Any]) -> None:
    check(cell(**options), 3, lengths=[3, 2, 3], resets=True, mask=True)


def test_torch_has_all_rows_of_a_cell_too_wide_for_passes() -> None:
    with mock.patch.object(tuning, "around", return_value=None):
        spec = cell(normalized=tuple(DEEP), initial_state=True, **DEEP)
        check(spec, lengths=RAGGED, resets=True, recompute=True)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 17, 3, 1), (1, 33, 17, 17), (2, 3, 33, 33), (17, 1, 3, 3)])
def test_odd_sizes(sizes: tuple[int, int, int, int]) -> None:
    steps, batch, hidden, latent = sizes
    check(CellSpec(3, hidden, latent, phi_z=(3,)), steps, batch, draws=1 if steps > 2 else 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_half_precision(dtype: torch.dtype, kind: str) -> None:
    check(cell(cell=kind, **DEEP), lengths=RAGGED, dtype=dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: Any) -> None:
    check(cell(cell="rnn", nonlinearity=activation, activation=activation, encoder=(8,)), 2)


@pytest.mark.parametrize(
    "std",
    [
        Std("softplus", offset=0.5, sharpness=0.7, floor=1e-4),
        Std("softplus", sharpness=2.0, floor=0.0, min_std=0.6),
        Std("log_std", floor=0.0, clamp=(-0.3, 0.4)),
        Std("log_variance", offset=-0.2, min_std=0.8),
    ],
    ids=lambda std: std.kind,
)
def test_every_standard_deviation(std: Std) -> None:
    check(cell(std=std, latent_size=7, **(GAUSSIAN | {"output_std": std})), 2)


CONFIGS = {
    "narrow tiles": Config(16, 4, 16, True, 1 << 20),
    "streamed weights": Config(16, 8, 128, False, 0),
    "more rows": Config(32, 4, 32, True, 4000),
    "sums held": Config(16, 4, 32, True, 4000, late=False),
    "few rows": Config(8, 8, 32, False, 4000, late=False),
}


@contextmanager
def configured(config: Config) -> Iterator[None]:
    with mock.patch.object(tuning, "choose", return_value=config):
        yield


@pytest.mark.parametrize("name", CONFIGS)
def test_every_way_to_write_a_kernel(name: str) -> None:
    kind = "gru" if name == "streamed weights" else "lstm"
    with configured(CONFIGS[name]):
        check(cell(cell=kind, hidden_size=37, encoder=(35,), residual=kind == "lstm"), 2, draws=1)


def test_the_default_model_runs_in_full_float32() -> None:
    torch.manual_seed(0)
    own, x = VRNN(28, 100, 16, backend="triton").to(DEVICE), torch.rand(1, 2, 28, device=DEVICE)
    plain = VRNN(28, 100, 16, backend="reference").to(DEVICE)
    plain.load_state_dict(own.state_dict())
    eps, losses = torch.randn(1, 2, 16, device=DEVICE), []
    for each in (own, plain):
        losses.append(each(x, eps=eps).loss)
        losses[-1].backward()
    torch.testing.assert_close(*losses)
    for a, b in zip(own.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, torch.zeros_like(b) if b.grad is None else b.grad)


def test_a_cell_runs_on_in_pieces() -> None:
    """With the same noise, to the last bit: the state is all that goes from one launch to the next."""
    spec, generator = cell(cell="lstm", num_layers=2), torch.Generator().manual_seed(1)

    def normal(*sizes: int) -> Tensor:
        return (torch.randn(sizes, generator=generator) / sizes[-1] ** 0.5).to(DEVICE)

    parameters = [normal(*p.shape) for p in spec.parameters()]
    eps, noise = normal(5, 3, spec.latent_size), normal(5, 3, spec.input_size)
    state = tuple(normal(3, spec.hidden_size) for _ in range(spec.state_tensors))
    whole, end = triton.generate(spec, parameters, Batch(noise, eps, state), mean=False)
    pieces = []
    for part in (slice(0, 2), slice(2, 5)):
        x, state = triton.generate(spec, parameters, Batch(noise[part], eps[part], state), mean=False)
        pieces.append(x)
    assert torch.equal(torch.cat(pieces), whole)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(state, end, strict=True))


@pytest.mark.parametrize("member", [*FAMILY, "gaussian", "gaussian means"])
def test_a_cell_runs_on_its_own(member: str) -> None:
    spec = cell(**(FAMILY[member] if member in FAMILY else GAUSSIAN | DEEP))
    mean = len(member) % 2 == 0 and member != "gaussian"
    problem = Problem.draw(spec, 3, 3)
    noise = torch.randn((3, 3, 5), generator=torch.Generator().manual_seed(1))

    def played(executor: Any, dtype: torch.dtype) -> dict[str, Tensor]:
        given = {name: t.to(dtype) for name, t in problem.inputs.items()}
        state = tuple(given[f"state{i}"] for i in range(spec.state_tensors))
        place = list(on_device(*(given[p.name] for p in spec.parameters()), given["eps"], noise.to(dtype), *state))
        count, cond = len(place) - len(state) - 2, given.get("cond")
        eps, drawn, *start = place[count:]
        batch = Batch(drawn, eps, tuple(start), cond=None if cond is None else cond.to(DEVICE))
        x, after = executor.generate(spec, place[:count], batch, mean=mean)
        return {"x": x.cpu()} | {f"state{i}": s.cpu() for i, s in enumerate(after)}

    before, errors = launch.launches.copy(), Errors(torch.float32)
    errors.add(
        *(played(e, d) for e, d in ((triton, torch.float32), (reference, torch.float32))),
        played(reference, torch.float64),
    )
    errors.assert_at_most_twice_torchs()
    assert launch.launches - before == {"weights": 1, "generate": 1}


# ---- ragged batches


@pytest.mark.parametrize("particles", [1, 3])
def test_tiles_take_rows_by_their_length(particles: int) -> None:
    lengths = torch.randint(0, 9, (137,), generator=torch.Generator().manual_seed(0))
    spec = cell(measure="kl" if particles == 1 else "particle_filter")
    problem = Problem.draw(spec, 9, 137 * particles, particles=0 if particles == 1 else particles)
    inputs = {name: t.float() for name, t in (problem.inputs | problem.flags).items()}
    given = Batch(
        *(inputs["x"], inputs["eps"], (inputs["state0"],)),
        lengths=lengths.repeat_interleave(particles),
        uniforms=inputs.get("uniforms"),
    )
    given = Batch(*on_device(*given._replace(state=())))._replace(state=tuple(on_device(*given.state)))
    own = launch.Launch(spec, given, list(on_device(*(inputs[p.name] for p in spec.parameters()))), "ieee")
    own.workspace()
    right = torch.argsort(lengths, descending=True, stable=True)
    assert own.order is not None
    assert torch.equal(own.order.cpu().view(-1, particles), particles * right.unsqueeze(1) + torch.arange(particles))


@contextmanager
def in_the_order(order: Callable[[int], Tensor]) -> Iterator[None]:
    """Let tiles take rows in another order than that of their lengths."""
    original = launch.Launch.workspace

    def workspace(own: launch.Launch) -> Tensor:
        space = original(own)
        if own.order is not None:
            own.order.copy_(order(own.batch))
        return space

    with mock.patch.object(launch.Launch, "workspace", workspace):
        yield


@pytest.mark.parametrize("particles", [0, 3])
def test_the_order_of_rows_changes_no_bit(particles: int) -> None:
    """Rows know nothing of each other, whichever tile holds them."""
    spec = replace(cell(cell="lstm", encoder=(8,)), measure="particle_filter" if particles else "kl")
    lengths = grouped([3, 0, 1, 3, 2, 0, 1] * (1 if particles else 3), max(1, particles))
    options = {"resets": True, "mask": True, "particles": particles}
    problem = Problem.draw(spec, 3, len(lengths), lengths, **options)
    with rows_apart():
        found = problem.run(here, torch.float32)
        with in_the_order(torch.arange):
            unsorted = problem.run(here, torch.float32)
        if DEVICE.type == "cpu":  # a race on a GPU: all rows write to one
            with in_the_order(lambda size: torch.zeros(size, dtype=torch.int64)):
                of_the_first = problem.run(here, torch.float32)
            assert not torch.equal(found["final0"], of_the_first["final0"])
    for name, t in found.items():
        assert torch.equal(t, unsorted[name]), name


def test_ragged_batches_of_many_tiles() -> None:
    check(cell(cell="lstm", encoder=(8,)), 3, 37, [3, 0, 1, 2, 3, 1] * 6 + [2], draws=1)


# ---- particles


def filtered(**options: Any) -> CellSpec:
    return cell(measure="particle_filter", **options)


def grouped(lengths: list[int], particles: int) -> list[int]:
    return [n for n in lengths for _ in range(particles)]


@pytest.mark.parametrize(("kind", "particles"), [("gru", 3), ("lstm", 4), ("lstm", 5), ("rnn", 1)])
def test_particles_are_resampled(kind: str, particles: int) -> None:
    """Six sequences are more than a tile holds, and 3 and 5 particles fill no tile."""
    lengths, gaussian = grouped([3, 0, 2, 3, 3, 1], particles), GAUSSIAN if particles % 2 else {}
    spec = filtered(cell=kind, **DEEP, **gaussian)
    check(spec, 3, 6 * particles, lengths, particles=particles, recompute=kind == "lstm")


@pytest.mark.parametrize("member", [m for m in FAMILY if "weights" not in m])
def test_particles_of_the_whole_family(member: str) -> None:
    spec = filtered(**(FAMILY[member] | GAUSSIAN))
    check(spec, 4, 8, grouped([4, 2], 4), particles=4, recompute=len(member) % 2 == 1)


@pytest.mark.parametrize(
    "options", [{"num_layers": 2, **GAUSSIAN}, {"cell": "lstm", "initial_state": True}], ids=["gru", "lstm"]
)
def test_particles_with_resets_and_masks(options: dict[str, Any]) -> None:
    check(filtered(**options), 4, 8, particles=4, resets=True, mask=True)


@pytest.mark.parametrize("name", ["streamed weights", "sums held"])
def test_particles_in_every_way_to_write_a_kernel(name: str) -> None:
    wide = GAUSSIAN | {"input_size": 19, "decoder_heads": (("dec_mean", 19), ("dec_std.0", 19)), "latent_size": 18}
    with configured(CONFIGS[name]):
        check(filtered(hidden_size=37, encoder=(35,), residual=True, **wide), 3, 6, particles=3)


def test_particles_that_fill_more_than_the_smallest_tile() -> None:
    check(filtered(cell="lstm"), 3, 40, grouped([3, 2], 20), particles=20)


def test_more_particles_than_a_tile_holds_are_refused() -> None:
    problem = Problem.draw(filtered(), 1, 129, particles=129)
    with pytest.raises(ValueError, match="a tile holds all particles of a sequence, at most 128, and there are 129"):
        problem.run(here, torch.float32)


def test_uniforms_that_do_not_fit_are_refused() -> None:
    problem, plain = Problem.draw(filtered(), 2, 4, particles=2), Problem.draw(cell(), 2, 4)
    own = problem.flags["uniforms"]
    plain.flags["uniforms"] = own
    with pytest.raises(ValueError, match="uniforms belong to a cell that resamples, and to no other"):
        plain.run(here, torch.float32)
    for wrong in (own[:1], own[:, :1], torch.rand(2, 1, 3)):
        problem.flags["uniforms"] = wrong
        with pytest.raises(ValueError, match=r"uniforms must be \(T, B / particles, particles\)"):
            problem.run(here, torch.float32)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="on a GPU the assertion ends the process")
def test_particles_of_several_lengths_are_refused() -> None:
    problem = Problem.draw(filtered(), 2, 4, [2, 2, 2, 1], particles=2)
    with pytest.raises(RuntimeError, match="particles of a sequence must be as long as each other"):
        problem.run(here, torch.float32)


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-24, 1.0])
def test_uniforms_at_their_ends_draw_particles_with_weight(uniform: float) -> None:
    """The first and the last particle are impossible: nobody may go on from them."""
    problem = Problem.draw(filtered(**GAUSSIAN), 2, 4, particles=4)
    problem.inputs["x"][:, (0, 3)] = 1e4
    problem.flags["uniforms"] = torch.full((2, 1, 4), uniform)
    ancestors = problem.run(here, torch.float32)["ancestors"]
    assert (ancestors[0] == (1 if uniform == 0.0 else 2)).all()
    assert (ancestors[1] == -1).all()


def test_nan_in_a_sequence_reaches_no_other() -> None:
    problem = Problem.draw(filtered(**DEEP), 4, 12, particles=3)
    clean = problem.run(here, torch.float32)
    problem.inputs["x"][1, 4, 3] = float("nan")
    dirty = problem.run(here, torch.float32)
    assert dirty["nll"][1:, 4].isnan().all()
    assert (dirty["ancestors"][1:, 1] == -1).all()
    for name in ("nll", "z", "final0", "d x", "d eps"):
        rows = dirty[name].unflatten(-2 if dirty[name].dim() > 2 or name == "final0" else -1, (4, 3)), clean[name]
        assert rows[0].isnan().any()
    others = [0, 1, 2, *range(6, 12)]
    for name in ("nll", "z", "d x", "d eps"):
        assert torch.equal(dirty[name][:, others], clean[name][:, others]), name
    assert (clean["ancestors"] >= 0).any()


def test_a_module_is_trained_by_a_filter() -> None:
    own, (x, lengths, _) = model(cell="lstm"), batch(5)
    plain = VRNN(5, 8, 3, phi_x=(), encoder=(8,), decoder=(), backend="reference", cell="lstm").to(DEVICE)
    plain.load_state_dict(own.state_dict())
    eps, uniforms = torch.randn(5, 4, 6, 3), torch.rand(5, 4, 6)
    given = {"eps": eps.to(DEVICE), "uniforms": uniforms.to(DEVICE), "lengths": lengths, "threshold": 0.9}
    before = launch.launches.copy()
    found = [m.bound(x, objective="fivo", num_particles=6, **given) for m in (own, plain)]
    torch.testing.assert_close(*found)
    for bound in found:
        bound.mean().backward()
    assert launch.launches - before == TRAINING
    for a, b in zip(own.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


# ---- memory


def poison(dtype: torch.dtype) -> float:
    """What nobody writes: NaN, or a number that is no row."""
    return float("nan") if dtype.is_floating_point else torch.iinfo(dtype).min


def guarded(tensor: Tensor, bands: list[Tensor]) -> Tensor:
    """The same numbers between two bands of poison, which are remembered."""
    band, count = 1024, tensor.numel()
    whole = tensor.new_full((count + 2 * band,), poison(tensor.dtype))
    bands += (whole[:band], whole[band + count :])
    inner = whole[band : band + count].view(tensor.shape)
    return inner.copy_(tensor)


def poisoned(bands: list[Tensor]) -> Callable[..., Tensor]:
    def allocate(like: Tensor, shape: Any, fill: float | None = None, dtype: torch.dtype | None = None) -> Tensor:
        fill = poison(dtype or like.dtype) if fill is None else fill
        return guarded(like.new_full(shape, fill, dtype=dtype), bands)

    return allocate


@pytest.mark.parametrize(
    ("kind", "lengths", "recompute", "particles"),
    [
        *(("gru", lengths, recompute, 0) for lengths in (None, RAGGED) for recompute in (False, True)),
        *(("gru", lengths, False, 3) for lengths in (None, RAGGED)),
        *(("lstm", RAGGED, recompute, 0) for recompute in (False, True)),
        ("lstm", None, True, 3),
    ],
)
def test_nothing_is_read_unwritten_nor_written_outside(
    kind: str, lengths: list[int] | None, recompute: bool, particles: int
) -> None:
    options: dict[str, Any] = {"resets": lengths is not None, "mask": lengths is not None, "particles": particles}
    spec, group = cell(cell=kind, num_layers=2, **DEEP), max(1, particles)
    if particles:
        spec, lengths = replace(spec, measure="particle_filter"), lengths and grouped(lengths, particles)
    problem = Problem.draw(spec, 2, 3 * group, lengths, **options)
    expected = problem.run(here, torch.float32, recompute=recompute)
    bands: list[Tensor] = []
    allocate, own = poisoned(bands), triton.run

    def among_bands(spec: CellSpec, parameters: Any, batch: Batch, want: Want) -> Any:
        place = [_Guard.apply(t, bands) for t in (*parameters, batch.x, batch.eps, *batch.state)]
        count = len(parameters)
        if particles:
            batch = batch._replace(uniforms=guarded(batch.uniforms, bands))
        x, eps, *state = place[count:]
        return own(spec, place[:count], batch._replace(x=x, eps=eps, state=tuple(state)), want)

    with (
        mock.patch.object(rows, "allocate", allocate),
        mock.patch.object(call, "allocate", allocate),
        mock.patch.object(launch, "allocate", allocate),
        mock.patch.object(triton, "run", among_bands),
    ):
        found = problem.run(here, torch.float32, recompute=recompute)
    assert len(bands) > 40
    assert all((band.isnan() if band.is_floating_point() else band == poison(band.dtype)).all() for band in bands)
    for name, t in found.items():
        assert torch.equal(t, expected[name]), name


class _Guard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, bands: list[Tensor]) -> Tensor:
        return guarded(tensor, bands)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def test_padding_never_reaches_a_result() -> None:
    problem = Problem.draw(cell(**DEEP, cond_size=2), 2, 3, RAGGED)
    expected = problem.run(here, torch.float32)
    for b, n in enumerate(RAGGED):
        for name in ("x", "eps", "cond"):
            problem.inputs[name][n:, b] = float("nan")
        for name in ("nll", "kl", "z", "mean", "std", "prior_mean", "prior_std", "raw"):
            problem.upstream[name][n:, b] = float("nan")
    for name, t in problem.run(here, torch.float32).items():
        assert torch.equal(t, expected[name]), name


def test_nan_in_x_reaches_its_row_and_no_other() -> None:
    problem = Problem.draw(cell(**DEEP), 3, 4)
    clean = problem.run(here, torch.float32)
    problem.inputs["x"][1, 1, 3] = float("nan")
    dirty = problem.run(here, torch.float32)
    assert dirty["nll"][1:, 1].isnan().all()
    assert dirty["final0"][1].isnan().all()
    for row in (0, 2, 3):
        assert torch.equal(dirty["nll"][:, row], clean["nll"][:, row])


def test_strides_of_either_layout() -> None:
    problem = Problem.draw(cell(**DEEP), 3, 4)
    expected = problem.run(here, torch.float32)
    for name in ("x", "eps"):
        problem.inputs[name] = problem.inputs[name].transpose(0, 1).contiguous().transpose(0, 1)
        assert not problem.inputs[name].is_contiguous()
    for name, t in problem.run(here, torch.float32).items():
        assert torch.equal(t, expected[name]), name


def test_slices_of_other_tensors() -> None:
    """They begin where a kernel does not read 16 bytes at a time."""
    problem, own = Problem.draw(cell(**DEEP), 3, 4, [3, 1, 2, 3], resets=True, mask=True), triton.run
    expected = problem.run(here, torch.float32)

    def sliced(tensor: Tensor) -> Tensor:
        found = torch.cat((tensor.new_ones(1), tensor.flatten()))[1:].view(tensor.shape)
        assert found.data_ptr() % 16
        return found

    def of_slices(spec: CellSpec, parameters: Any, batch: Batch, want: Want) -> Any:
        parts = {name: sliced(getattr(batch, name)) for name in ("x", "eps", "lengths", "resets", "mask")}
        return own(spec, parameters, batch._replace(**parts, state=tuple(map(sliced, batch.state))), want)

    with mock.patch.object(triton, "run", of_slices):
        found = problem.run(here, torch.float32)
    for name, t in found.items():
        assert torch.equal(t, expected[name]), name


@pytest.mark.parametrize("particles", [0, 3])
def test_repeats_are_equal_to_the_last_bit(particles: int) -> None:
    spec, lengths = cell(encoder=(8,)), [2, 1, 2] * 5 + [0, 1]
    if particles:
        spec, lengths = replace(spec, measure="particle_filter"), grouped([3, 2, 3, 0, 1, 3], particles)
    problem = Problem.draw(spec, max(lengths), len(lengths), lengths, particles=particles)
    first = problem.run(here, torch.float32)
    for name, t in problem.run(here, torch.float32).items():
        assert torch.equal(t, first[name]), name


# ---- launches


def launched(profile: torch.profiler.profile) -> Counter[str]:
    """What of torch's own would be launches on a GPU inside the operators of a step."""
    quiet = ("empty", "empty_strided", "view", "as_strided", "_reshape_alias", "resize_", "to", "promote_types")

    def counts(event: Any) -> bool:
        parent = event.cpu_parent
        while parent is not None and not parent.name.startswith("vrnn_fast::triton"):
            parent = parent.cpu_parent
        elements = [0 not in shape for shape in event.input_shapes if shape]
        return parent is not None and all(elements)

    leaves = (e for e in profile.events() if e.name.startswith("aten::") and not e.cpu_children)
    names = ((e, e.name.removeprefix("aten::")) for e in leaves)
    return Counter(name for event, name in names if name not in quiet and counts(event))


@pytest.mark.parametrize("options", [{}, {"cell": "lstm"}, {"recompute": True}], ids=str)
@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
def test_a_training_step_is_a_few_launches(options: dict[str, Any], ragged: bool) -> None:
    """Ours; torch only spreads the gradients of a row's numbers, of which it has one each, over the rows."""
    own, x = VRNN(5, 8, 3, backend="triton", **options).to(DEVICE), torch.rand(3, 4, 5, device=DEVICE)
    lengths = torch.tensor([3, 1, 0, 2], device=DEVICE) if ragged else None
    own(x, lengths).loss.backward()
    ours: Counter[str] = Counter()
    with (
        mock.patch.object(launch.Launch, "launch", lambda _, way, *__: ours.update([way])),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile,
    ):
        own(x, lengths).loss.backward()
    torchs = launched(profile)
    assert ours == TRAINING
    assert torchs.keys() <= {"copy_"}, torchs
    assert torchs.total() <= 2, torchs


@pytest.mark.parametrize(
    "options",
    [
        {"cond_size": 2, "cond_networks": EVERYWHERE, **DEEP, **GAUSSIAN},
        {"measure": "log_weight", **DEEP},
        {"normalized": tuple(DEEP), "activation": "silu", **DEEP},
    ],
    ids=["cond", "log weight", "normalised, smooth"],
)
def test_where_a_program_has_no_room_its_work_is_several_passes(options: dict[str, Any]) -> None:
    spec = cell(**options)
    problem = Problem.draw(spec, 2, 3, RAGGED)
    whole = problem.run(here, torch.float32)
    config = tuning.choose(spec, torch.float32, DEVICE)
    found = (Room(1 << 20, 1 << 20, 1 << 20, most) for most in range(100))
    room = next(r for r in found if all(passes(spec, config.widest, r, reverse=reverse) for reverse in (False, True)))
    there, back = (passes(spec, config.widest, room, reverse=reverse) for reverse in (False, True))
    assert there is not None
    assert back is not None
    assert min(len(there.last), len(back.first), len(back.again)) > 1
    before = launch.launches.copy()
    with mock.patch.object(tuning, "room", return_value=room):
        parts = problem.run(here, torch.float32)
        assert launch.launches - before == TRAINING
        again = problem.run(here, torch.float32, recompute=True)
    for name, t in parts.items():
        assert torch.equal(t, whole[name]), name
    for name, t in problem.run(here, torch.float32, recompute=True).items():
        assert torch.equal(t, again[name]), name


def test_launches_do_not_grow_with_time() -> None:
    """Neither ours, whose counter also proves what ran, nor torch's."""
    spec, grown = cell(hidden_size=3, **NO_Z), []
    Problem.draw(spec, 2, 2).run(here, torch.float32)
    for steps in (2, 64):
        before = launch.launches.copy()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            Problem.draw(spec, steps, 2).run(here, torch.float32)
        calls = {e.key: e.count for e in profile.key_averages() if e.key.startswith(("aten::", "vrnn_fast::"))}
        grown.append((launch.launches - before, calls))
    assert grown[0] == grown[1]
    assert grown[0][0] == TRAINING
    assert grown[0][1]["vrnn_fast::triton_forward"] == grown[0][1]["vrnn_fast::triton_backward"] == 1
    before = launch.launches.copy()
    Problem.draw(spec, 2, 2).run(reference, torch.float32)
    assert launch.launches == before


# ---- as a module


def model(**options: Any) -> VRNN:
    own = VRNN(5, 8, 3, phi_x=(), encoder=(8,), decoder=(), backend="triton", **options)
    return own.to(DEVICE)


def batch(steps: int = 3, size: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    x, eps = torch.rand(steps, size, 5).round(), torch.randn(steps, size, 3)
    return x.to(DEVICE), torch.tensor([steps, 1, 0, 2, 2, 0][:size]), eps.to(DEVICE)


def test_a_module_trains_steps_and_generates() -> None:
    own, (x, lengths, eps) = model(cell="lstm"), batch()
    plain = VRNN(5, 8, 3, phi_x=(), encoder=(8,), decoder=(), backend="reference", cell="lstm").to(DEVICE)
    plain.load_state_dict(own.state_dict())
    found = [m(x, lengths, eps=eps, outputs=("prior", "prediction")) for m in (own, plain)]
    torch.testing.assert_close(found[0].loss, found[1].loss)
    torch.testing.assert_close(found[0].prediction, found[1].prediction)
    for out in found:
        out.loss.backward()
    for a, b in zip(own.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    steps = [m.step(x[0], own.new_state(4), eps=eps[0]) for m in (own, plain)]
    torch.testing.assert_close(steps[0], steps[1])
    drawn, state = own.generate(3, prefix=x, lengths=lengths)
    assert drawn.shape == (3, 4, 5)
    assert own.generate(2, state=state)[0].shape == (2, 4, 5)
    assert own.explain().startswith(
        f"triton: a training step is, whatever T is, {sum(TRAINING.values())} launches: "
        "weights, forward (before, scan, after), weights, backward (after backward, scan), weight gradients; "
    )


def test_explain_shows_the_kernels_that_run() -> None:
    own, (x, lengths, eps) = model(), batch()
    kernels.kernel.cache_clear()
    with mock.patch.object(kernels, "module", wraps=kernels.module) as module:
        own(x, lengths, eps=eps).loss.backward()
        own.generate(2, batch_size=3)
    text = own.explain(source=True)
    assert module.call_count == text.count("Generated by") == sum(TRAINING.values()) + 2
    assert all(source in text for (source,), _ in module.call_args_list)


def test_it_is_asked_for_by_name() -> None:
    own = model()
    own.backend = "auto"
    executor, _ = select("auto", own.spec, batch()[0])
    assert executor is not triton
    assert "is preferred" in own.explain().splitlines()[-1]


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_training_step_equals_eager() -> None:
    torch._dynamo.reset()
    own = model()

    def step(x: Tensor, lengths: Tensor, eps: Tensor) -> Tensor:
        out = own(x, lengths, eps=eps, beta=0.5)
        return out.loss

    compiled = torch.compile(step, fullgraph=True, backend="inductor" if DEVICE.type == "cuda" else "aot_eager")
    given, gradients = batch(), []
    for function in (step, compiled):
        own.zero_grad()
        function(*given).backward()
        gradients.append([p.grad.clone() for p in own.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def two_steps(module: nn.Module, rows: slice, share: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The gradients of two steps of training with those rows of a batch, where so many processes share it."""
    torch.manual_seed(1)
    found, optimizer, (x, lengths, eps) = {}, torch.optim.SGD(module.parameters(), lr=0.5), batch(3, 6)
    for step in range(2):
        optimizer.zero_grad()
        given = x[:, rows].to(dtype), lengths[rows]
        module(*given, eps=eps[:, rows].to(dtype), normalizer=int(lengths.sum()) / share).loss.backward()
        optimizer.step()
        for name, p in module.named_parameters():
            assert p.grad is not None, name
            found[f"{name.removeprefix('module.')}, step {step}"] = p.grad.cpu().clone()
    return found


def work(rank: int, folder: str, weights: dict[str, Tensor]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    own = model()
    own.load_state_dict(weights)
    with patched_once():
        found = two_steps(DistributedDataParallel(own), slice(rank, None, 2), 2, torch.float32)
    torch.save((found, dict(launch.launches)), f"{folder}/{rank}")
    dist.barrier()  # gloo may abort a process whose neighbour leaves first
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """DistributedDataParallel: one process has 5 real steps, the other 3."""
    weights = {name: t.cpu() for name, t in model().state_dict().items()}
    mp.spawn(work, (str(tmp_path), weights), nprocs=2)
    found, errors = [torch.load(tmp_path / str(rank)) for rank in range(2)], Errors(torch.float32)
    alone = []
    for dtype in (torch.float32, torch.float64):
        plain = VRNN(5, 8, 3, phi_x=(), encoder=(8,), decoder=(), backend="reference")
        plain.load_state_dict(weights)
        alone.append(two_steps(plain.to(DEVICE, dtype), slice(None), 1, dtype))
    for gradients, launches in found:
        errors.add(gradients, *alone)
        assert launches == {way: 2 * count for way, count in TRAINING.items()}
    errors.assert_at_most_twice_torchs()


class _Calls(TorchDispatchMode):
    """The names of all operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


def accelerated(original: nn.Module, backend: str = "triton") -> nn.Module:
    """A speech model of 5 samples a frame."""
    return accelerate(original, layout=audio.SPEECH, backend=backend)


@pytest.mark.filterwarnings("ignore:accelerated as layout")
def test_an_accelerated_model_trains_on_ragged_batches() -> None:
    theirs, lengths, found = audio.FramesOnly(5, 8, 3, 2).to(DEVICE), batch()[1].to(DEVICE), []
    x, before = torch.rand(4, 3 * 5, device=DEVICE), launch.launches.copy()
    for backend in ("triton", "reference"):
        torch.manual_seed(1)
        loss, fields = accelerated(theirs, backend)(x, lengths)
        found.append((loss, fields, torch.autograd.grad(loss, list(theirs.parameters()))))
    torch.testing.assert_close(*found)
    assert launch.launches - before == TRAINING


@pytest.mark.filterwarnings("ignore:accelerated as layout")
@pytest.mark.parametrize("kind", ["loss", "fivo", "accelerated"])
def test_a_captured_call_reads_no_value(kind: str) -> None:
    """What a CUDA graph forbids: nothing but assertions looks at lengths, uniforms and x."""
    own, (x, lengths, _) = model(), batch()
    own.check_values, lengths = True, lengths.to(DEVICE)
    theirs = accelerated(audio.FramesOnly(5, 8, 3, 2).to(DEVICE))

    def train() -> list[str]:
        with _Calls() as calls:
            if kind == "accelerated":
                loss = theirs(torch.rand(4, 3 * 5, device=DEVICE), lengths)[0]
            else:
                loss = (
                    own(x, lengths).loss
                    if kind == "loss"
                    else own.bound(x, objective=kind, num_particles=3, lengths=lengths).sum()
                )
            loss.backward()
        return calls.names

    reads = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal"}
    with mock.patch.object(launch.Launch, "launch"):
        assert reads & set(train())
        with mock.patch.object(checks, "_captured", return_value=True):
            names = train()
    assert not reads & set(names)
    assert "aten::_assert_async.msg" in names


def test_what_a_captured_call_asserts() -> None:
    own, (x, _, _) = model(), batch()
    with mock.patch.object(checks, "_captured", return_value=True):
        if DEVICE.type == "cpu":
            with pytest.raises(RuntimeError, match="lengths must be from 0 to T, and not all 0"):
                own(x, torch.tensor([3, 1, 4, 2]))
        with pytest.raises(ValueError, match=r"lengths must be on cpu where a CUDA graph is captured, got meta"):
            checks.lengths(torch.ones(4, dtype=torch.int64, device="meta"), 3, 4, torch.device("cpu"))


if DEVICE.type == "cuda":

    def test_ragged_batches_inside_a_cuda_graph() -> None:
        own, (x, lengths, eps) = model(), batch()
        lengths, other = lengths.to(DEVICE), torch.tensor([0, 2, 3, 1], device=DEVICE)

        def train() -> Tensor:
            own.zero_grad(set_to_none=False)
            loss = own(x, lengths, eps=eps, normalizer=1.0).loss
            loss.backward()
            return loss.detach()

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                train()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = train()
        for values in (lengths.clone(), other):
            lengths.copy_(values)
            graph.replay()
            found = [loss.clone(), *(p.grad.clone() for p in own.parameters())]
            for a, b in zip(found, [train(), *(p.grad for p in own.parameters())], strict=True):
                assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore")
def test_operators_keep_their_promises() -> None:
    spec = cell(hidden_size=4, latent_size=2, cond_size=2)
    x, eps, cond = (torch.randn(2, 3, w, device=DEVICE, requires_grad=w == 5) for w in (5, 2, 2))
    state = [torch.randn(3, 4, device=DEVICE, requires_grad=True)]
    parameters = [torch.randn(p.shape, device=DEVICE, requires_grad=True) for p in spec.parameters()]
    options = (triton.operators.encode(spec), "ieee", int(Keep.STORED), True, True, 0.5)
    arguments = (x, eps, cond, None, None, None, None, state, parameters)
    torch.library.opcheck(torch.ops.vrnn_fast.triton_forward.default, (*arguments, *options))
    ragged = (*arguments[:3], torch.tensor([2, 1, 2]), *arguments[4:])
    promises = ("test_schema", "test_autograd_registration", "test_faketensor")  # what is kept of padding is any number
    torch.library.opcheck(torch.ops.vrnn_fast.triton_forward.default, (*ragged, *options), test_utils=promises)
    resampling = triton.operators.encode(replace(spec, measure="particle_filter"))
    arguments = (x, eps, cond, None, None, None, torch.rand(2, 1, 3, device=DEVICE), state, parameters)
    torch.library.opcheck(torch.ops.vrnn_fast.triton_forward.default, (*arguments, resampling, *options[1:]))


def test_a_configuration_is_timed_by_its_scans_alone() -> None:
    before = launch.launches.copy()
    spec, config = cell(hidden_size=4), CONFIGS["narrow tiles"]
    assert launch.scan_seconds(spec, config, torch.float32, DEVICE, 2, 3) > 0
    repeats = 1 + launch._Timed.repeats
    assert launch.launches - before == TRAINING | {"forward": repeats, "backward": repeats}


def results_off_by(results: Callable[..., dict[str, Tensor]], much: float) -> Callable[..., dict[str, Tensor]]:
    """Those of Triton, wrong."""

    def wrong(self: Any, backend: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        found = results(self, backend, dtype)
        return {n: t + much for n, t in found.items()} if backend == "triton" else found

    return wrong


def test_the_benchmark_checks_and_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "cache_directory", lambda: tmp_path)
    from bench.gpu.setting import TINY
    from bench.gpu.times import Job

    job = Job(TINY, torch.float32, DEVICE)
    rows = list(job.rows(("triton",), (), 0.0))
    names = [row["what"] for row in rows if "graph" not in row["what"]]
    assert names[:-1] == ["vrnn_fast, triton", "eager loop", "nn.GRU alone", "nn.LSTM alone"]
    assert names[-1].startswith("flashrnn alone")
    assert all(float(row[way]) > 0 for row in rows[:-1] for way in ("forward", "forward+backward"))
    monkeypatch.setattr(Job, "results", results_off_by(Job.results, 0.1))
    wrong = next(iter(job.rows(("triton",), (), 0.0)))
    assert wrong.keys() == {"shape", "dtype", "what"}
    assert wrong["what"].startswith("vrnn_fast, triton: no result: loss is off by")
    with mock.patch.object(tuning, "candidates", return_value=[CONFIGS["narrow tiles"]]):
        assert job.tune(0.0) == CONFIGS["narrow tiles"]


@pytest.mark.parametrize("kind", ["gru", "lstm", "rnn"])
def test_the_benchmark_takes_flashrnn_where_it_is(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.gpu.times import GATES, Job
    from bench.shapes import Shape, uniform

    job = Job(Shape("tiny", 2, 3, uniform(4, 8, 3, cell=kind)), torch.float32, DEVICE)
    monkeypatch.setitem(sys.modules, "flashrnn", None)
    assert job.flashrnn() == "not installed"

    def flashrnn(x: Tensor, recurrent: Tensor, bias: Tensor, *, function: str, backend: str, dtype: str) -> Any:
        gates, biases = GATES[kind]
        assert [t.shape for t in (x, recurrent, bias)] == [(3, 2, gates, 1, 8), (gates, 1, 8, 8), (biases, 1, 8)]
        assert (function, backend, dtype) == ("elman" if kind == "rnn" else kind, "cuda_fused", "float32")
        return x.sum() + recurrent.sum() + bias.sum(), None

    monkeypatch.setitem(sys.modules, "flashrnn", SimpleNamespace(flashrnn=flashrnn))
    calls = job.flashrnn()
    assert not isinstance(calls, str)
    for one in calls:
        one()
    monkeypatch.setitem(sys.modules, "flashrnn", SimpleNamespace(flashrnn=lambda *_, **__: 1 / 0))
    assert job.flashrnn() == "does not run: ZeroDivisionError"


def test_nobody_gets_a_gradient_unasked() -> None:
    assert_nobody_gets_a_gradient_unasked(here, torch.float32)


def test_nothing_comes_from_the_last_update() -> None:
    assert_nothing_comes_from_the_last_update(here, torch.float32)
