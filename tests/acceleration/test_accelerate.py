"""Foreign models beside their accelerated selves: the same numbers, gradients and parameters."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from tests.support.accelerated import Case, binary, both, default_dtype, tensors
from tests.support.foreign import copied
from tests.support.oracle import Errors
from tests.support.replay import RecordNoise, ReplayNoise
from vrnn_fast import accelerate, backends
from vrnn_fast.acceleration.module import Accelerated
from vrnn_fast.executors.cpu import operators

pytestmark = pytest.mark.filterwarnings("ignore:accelerated as layout")


def results(case: Case, model: nn.Module, x: Tensor) -> dict[str, Any]:
    """What a forward returns and leaves as attributes, and the gradients of a random mixture of it all."""
    x = x.clone().requires_grad_()
    output = case.run(model, x)
    found: dict[str, Any] = {
        f"output{pytree.keystr(path)}": leaf for path, leaf in pytree.tree_flatten_with_path(output)[0]
    }
    found |= {name: value for name, value in vars(model).items() if isinstance(value, Tensor) and name[0] != "_"}
    mixture = torch.Generator().manual_seed(0)
    total = sum(
        (t * torch.randn(t.shape, generator=mixture, dtype=torch.float32).to(t.dtype)).sum()
        for t in found.values()
        if isinstance(t, Tensor) and t.requires_grad
    )
    leaves = {"x": x, **dict(model.named_parameters())}
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return found | {f"d {name}": g for name, g in zip(leaves, gradients, strict=True)}


def test_every_field_and_every_gradient_in_double_precision(case: Case) -> None:
    with default_dtype(torch.float64):
        model, x = case.build(), case.data()
        original = case.copy(model)
        fast = case.accelerate(model)
        torch.manual_seed(3)
        theirs = results(case, original, x)
        torch.manual_seed(3)
        ours = results(case, fast, x)
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(ours[name], value, rtol=1e-11, atol=1e-12, msg=name)
        elif isinstance(value, float):
            assert ours[name] == pytest.approx(value, rel=1e-11, abs=1e-12), name
        else:
            assert ours[name] == value, name


def test_in_single_precision_by_the_law(case: Case) -> None:
    """The error, root mean square over some seeds, is at most twice the original's own, both against float64."""
    errors = Errors(torch.float32)
    for seed in range(6):
        torch.manual_seed(seed)
        model, x = case.build(), case.data()
        with default_dtype(torch.float64):
            precise = case.copy(model).double()
        fast = case.accelerate(model)
        with RecordNoise() as record:
            torch.manual_seed(seed)
            theirs = results(case, model, x)
        torch.manual_seed(seed)
        ours = results(case, fast, x)
        with default_dtype(torch.float64), ReplayNoise(record):
            oracle = results(case, precise, x.double())
        for name, right in oracle.items():
            if isinstance(right, Tensor) and right.is_floating_point():
                part = name.rstrip("0123456789[]")
                single = ours[name].float(), theirs[name].float()  # some metrics are float64, of float32 numbers
                errors.add({part: single[0]}, {part: single[1]}, {part: right})
    errors.assert_at_most_twice_torchs()


def test_three_steps_of_an_optimiser_that_was_built_before(case: Case) -> None:
    with default_dtype(torch.float64):
        model, x = case.build(), case.data()
        original = case.copy(model)
        optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.1) for m in (original, model)]
        fast = case.accelerate(model)
        for step in range(3):
            for module, optimizer in zip((original, fast), optimizers, strict=True):
                torch.manual_seed(step)
                optimizer.zero_grad()
                case.loss(case.run(module, x)).backward()
                optimizer.step()
    for (name, p), q, r in zip(original.named_parameters(), model.parameters(), fast.parameters(), strict=True):
        assert q is r
        torch.testing.assert_close(q, p, rtol=1e-8, atol=1e-10, msg=name)
        assert (q.grad is None) == (p.grad is None), name


def test_it_is_the_original_to_whoever_looks(case: Case) -> None:
    model = case.build()
    fast = case.accelerate(model)
    assert isinstance(fast, type(model))
    assert list(fast.state_dict()) == list(model.state_dict())
    assert all(p is q for p, q in zip(model.parameters(), fast.parameters(), strict=True))
    assert [n for n, _ in fast.named_parameters()] == [n for n, _ in model.named_parameters()]
    for name, value in vars(model).items():
        if not name.startswith("_"):
            assert getattr(fast, name) == value
    assert inspect.signature(fast.forward) == inspect.signature(model.forward)


def test_the_original_goes_on_unchanged(case: Case) -> None:
    model, x = case.build(), case.data()
    modules = [(name, type(m)) for name, m in model.named_modules()]
    attributes = {name: set(vars(m)) for name, m in model.named_modules()}
    state = {name: t.clone() for name, t in model.state_dict().items()}
    before, random = torch.get_default_dtype(), torch.get_rng_state()
    torch.manual_seed(1)
    theirs = tensors(case.run(model, x))
    torch.set_rng_state(random)
    fast = case.accelerate(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_default_dtype() == before
    case.run(fast, x)
    fast.eval()
    assert all(m.training for m in model.modules())
    assert [(name, type(m)) for name, m in model.named_modules()] == modules
    assert not isinstance(model, Accelerated)
    assert {name: set(vars(m)) for name, m in model.named_modules()} == attributes | {"": set(vars(model))}
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(theirs, tensors(case.run(model, x)), strict=True))


@pytest.mark.skipif(not backends()["cpu"].available, reason="the extension is not built")
def test_the_fused_executor_ran(case: Case) -> None:
    fast, x = case.accelerate(case.build()), case.data()
    before = sum(operators.launch_counts().values())
    case.loss(case.run(fast, x)).backward()
    assert sum(operators.launch_counts().values()) == before + 2 * case.launches * len(fast._recipe.structures)


def test_parametrized_layers_and_frozen_parameters() -> None:
    with default_dtype(torch.float64):
        model, x = copied.VRNN(6, 9, 4), binary()
        nn.utils.parametrizations.weight_norm(model.enc[0])
        model.prior[0].weight.requires_grad_(False)
        original, fast = copy.deepcopy(model), accelerate(model)
        assert list(fast.state_dict()) == list(model.state_dict())
        found = []
        for module in (original, fast):
            torch.manual_seed(0)
            both(module(x)).backward()
            found.append([p.grad for p in module.parameters()])
        for theirs, ours in zip(*found, strict=True):
            assert (theirs is None) == (ours is None)
            if theirs is not None:
                torch.testing.assert_close(ours, theirs)


def test_every_sub_module_keeps_its_mode() -> None:
    with default_dtype(torch.float64):
        model, x = copied.VRNN(6, 9, 4), binary()
        model.enc.eval()
        modes = [module.training for module in model.modules()]
        fast = accelerate(model)
        assert [module.training for module in model.modules()] == modes
        assert [module.training for module in fast.modules()] == modes
        for module in (model, fast):
            module.eval()
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                found = []
                for module in (model, fast):
                    torch.manual_seed(0)
                    found.append(module(x))
                torch.testing.assert_close(*found)


def test_a_wrapper_with_the_prefix_module() -> None:
    model = copied.VRNN(6, 9, 4)
    wrapped = nn.DataParallel(model)
    fast = accelerate(wrapped)
    assert isinstance(fast, nn.DataParallel)
    assert list(fast.state_dict()) == list(wrapped.state_dict())
    assert next(iter(fast.state_dict())).startswith("module.")
    assert isinstance(fast.module, Accelerated)
    assert wrapped.module is model
    x = binary()
    torch.manual_seed(0)
    theirs = both(wrapped(x))
    torch.manual_seed(0)
    torch.testing.assert_close(both(fast(x)), theirs)
