"""Methods of the original beside forward: proven samples, and what runs as it is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.accelerated import OWN
from tests.support.foreign import copied, own, trajectories, variants
from vrnn_fast import accelerate, backends
from vrnn_fast.executors.cpu import operators
from vrnn_fast.layouts.sampling import Player

pytestmark = pytest.mark.filterwarnings("ignore:accelerated as layout")


class SamplesDoubled(copied.VRNN):
    def sample(self, seq_len: int) -> Tensor:
        return 2 * super().sample(seq_len)


def test_methods_of_the_class_run_as_they_are_written() -> None:
    """A sampling of its own, too."""
    model = SamplesDoubled(6, 9, 4)
    with pytest.warns(UserWarning, match="sample runs as its class is written, not on a backend"):
        fast = accelerate(model)
    torch.manual_seed(4)
    theirs = model.sample(5)
    torch.manual_seed(4)
    assert torch.equal(fast.sample(5), theirs)
    assert torch.equal(fast.kld(*[torch.ones(2, 4)] * 4), model.kld(*[torch.ones(2, 4)] * 4))


class SamplesInEval(copied.VRNN):
    def sample(self, seq_len: int) -> Tensor:
        return super().sample(seq_len) * (1 + self.training)


class SamplesBatches(copied.VRNN):
    def sample(self, batch: int, seq_len: int) -> Tensor:  # type: ignore[override]
        return torch.stack([super(SamplesBatches, self).sample(seq_len) for _ in range(batch)])


class SamplesItself(own.SequenceModel):
    def sample(self, seq_len: int) -> Tensor:
        return torch.randn(seq_len, 6)


@pytest.mark.parametrize(
    ("build", "options", "words"),
    [
        (SamplesDoubled, {}, r"sample differs by [\d.e-]+ with random parameters in train\(\) with gradients"),
        (SamplesInEval, {}, r"sample differs by [\d.e-]+ with random parameters in train\(\)"),
        (SamplesBatches, {}, "the original's own sample fails in float64 on 1, .*missing 1 required .* 'seq_len'"),
        (SamplesItself, {"layout": OWN}, "does not sample from such a decoder: the gaussian likelihood reads heads of"),
    ],
)
def test_a_sampling_that_is_not_proven_is_told_once(
    build: Callable[[int, int, int], nn.Module], options: dict[str, Any], words: str
) -> None:
    with pytest.warns(UserWarning, match="sample runs as its class is written.*" + words) as caught:
        accelerate(build(6, 9, 4), **options)
    assert sum("sample runs" in str(warning.message) for warning in caught) == 1


def test_an_error_of_ours_in_sampling_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(Player, "play", fails)
    with pytest.raises(ZeroDivisionError, match="ours"):
        accelerate(copied.VRNN(6, 9, 4))


STATES = torch.Generator().manual_seed(0)


SAMPLED: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], int]] = {
    "eager": (lambda: copied.VRNN(6, 9, 4), (11,), 1),
    "eager of one step": (lambda: copied.VRNN(6, 9, 4), (1,), 1),
    "eager, Gaussian": (lambda: copied.VRNN(6, 9, 4, gaussian=True, fixed=True), (11,), 1),
    "eager with two layers and uniform noise": (lambda: variants.DrawsUniform(6, 9, 4, n_layers=2), (11,), 1),
    "trajectories": (lambda: trajectories.VRNN(6, 6, 4, 7, 9), (torch.randn(8, 5, 6, generator=STATES),), 7),
    "trajectories after a prefix": (
        lambda: trajectories.VRNN(6, 6, 4, 7, 9),
        (torch.randn(8, 5, 6, generator=STATES), 4),
        1 + 3,
    ),
    "trajectories, all of it known": (
        lambda: trajectories.VRNN(6, 6, 4, 7, 9),
        (torch.randn(8, 5, 6, generator=STATES), 9),
        1,
    ),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_samples_are_the_originals(name: str) -> None:
    build, arguments, launches = SAMPLED[name]
    model = build()
    fast = accelerate(model)
    for _ in range(2):
        torch.manual_seed(4)
        with torch.no_grad():
            theirs = model.sample(*arguments)
        torch.manual_seed(4)
        before = sum(operators.launch_counts().values())
        with torch.no_grad():
            ours = fast.sample(*arguments)
        if backends()["cpu"].available:
            assert sum(operators.launch_counts().values()) == before + launches
        torch.testing.assert_close(ours, theirs)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.3)


def test_samples_have_the_gradients_of_the_originals() -> None:
    copied_, trajectory = accelerate(copied.VRNN(6, 9, 4)), accelerate(trajectories.VRNN(6, 6, 4, 7, 9))
    assert not copied_.sample(3).requires_grad
    assert trajectory.sample(torch.randn(4, 5, 6))[0].requires_grad
    with (
        pytest.raises(ValueError, match=r"states must have shape \(T \+ 1, B, X = 6\), got \(4, 5, 3\)"),
        torch.no_grad(),
    ):
        trajectory.sample(torch.randn(4, 5, 3))
