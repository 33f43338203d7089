"""Copies and pickles of an accelerated model."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from tests.support.accelerated import CASES, OWN, Case, tensors, written
from tests.support.foreign import copied, dynamical, own
from vrnn_fast import accelerate, backends
from vrnn_fast.acceleration.module import Accelerated
from vrnn_fast.executors.cpu import operators

pytestmark = pytest.mark.filterwarnings("ignore:accelerated as layout")


def test_a_copy_is_a_module_of_its_own(case: Case) -> None:
    fast, x = case.accelerate(case.build()), case.data()
    twin = copy.deepcopy(fast)
    assert not any(p is q for p, q in zip(fast.parameters(), twin.parameters(), strict=True))
    torch.manual_seed(0)
    ours = tensors(case.run(fast, x))
    torch.manual_seed(0)
    torch.testing.assert_close(tensors(case.run(twin, x)), ours)
    case.loss(case.run(twin, x)).backward()
    assert all(p.grad is None for p in fast.parameters())


# others are scripted
PICKLED = [name for name in CASES if not name.startswith("speech") or name == "speech without a residual"]


@pytest.mark.parametrize("name", PICKLED)
def test_it_is_saved_whole_where_the_original_is(name: str) -> None:
    case = CASES[name]
    fast, x = case.accelerate(case.build()), case.data()
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    found = []
    for module in (fast, torch.load(file, weights_only=False), pickle.loads(pickle.dumps(fast))):
        assert isinstance(module, Accelerated)
        torch.manual_seed(0)
        before = sum(operators.launch_counts().values())
        found.append(tensors(case.run(module, x)))
        if backends()["cpu"].available:
            assert sum(operators.launch_counts().values()) > before
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_a_pickle_keeps_what_is_fixed_and_how_it_samples() -> None:
    fast = accelerate(copied.VRNN(6, 9, 4), fix=("kl",))
    twin = pickle.loads(pickle.dumps(fast))
    assert isinstance(twin, copied.VRNN)
    assert twin._recipe == fast._recipe
    if backends()["cpu"].available:
        before = sum(operators.launch_counts().values())
        twin.sample(3)
        assert sum(operators.launch_counts().values()) == before + 1
    dynamic = pickle.loads(pickle.dumps(accelerate(dynamical.VRNN(6, 4, dim_RNN=9), fix=("kl",))))
    x = torch.rand(7, 5, 6)
    y = dynamic(x)
    q, p = (
        Normal(dynamic.z_mean, (dynamic.z_logvar / 2).exp()),
        Normal(dynamic.z_mean_p, (dynamic.z_logvar_p / 2).exp()),
    )
    torch.testing.assert_close(dynamic.loss(x, y), dynamic.divergence(x, y) + kl_divergence(q, p).sum())


def test_outputs_that_cannot_be_imported_cannot_be_pickled() -> None:
    fast = accelerate(own.SequenceModel(6, 9, 4), layout={**OWN, "outputs": lambda run: written(run)})
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(fast)
