"""The version for reading computes what the model computes: in float64, outputs and every gradient."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.oracle import Errors
from vrnn_fast import VRNN
from vrnn_fast.executors import reference
from vrnn_fast.executors.base import Batch, Want

PATH = Path(__file__).parents[2] / "examples" / "teaching.py"
TEACHING = runpy.run_path(str(PATH))
X, H, Z = 5, 7, 3


def test_its_parameters_are_those_of_the_model() -> None:
    found = TEACHING["parameters"](X, H, Z, np.random.default_rng(0))
    expected = {name: tuple(p.shape) for name, p in VRNN(X, H, Z).named_parameters()}
    assert {name: value.shape for name, value in found.items()} == expected


@pytest.mark.parametrize(("steps", "batch"), [(6, 4), (1, 1)])
def test_it_is_the_reference(steps: int, batch: int) -> None:
    errors = Errors(torch.float64)
    for seed in range(3):
        random = np.random.default_rng(seed)
        p = TEACHING["parameters"](X, H, Z, random)
        leaves = {name: torch.from_numpy(value).clone().requires_grad_() for name, value in p.items()}
        inputs = {
            "x": random.uniform(size=(steps, batch, X)),
            "eps": random.standard_normal((steps, batch, Z)),
            "h0": random.standard_normal((batch, H)),
        }
        leaves |= {name: torch.from_numpy(value).clone().requires_grad_() for name, value in inputs.items()}
        upstream = {name: random.standard_normal((steps, batch)) for name in ("nll", "kl")}
        upstream["state"] = random.standard_normal((batch, H))

        results, kept = TEACHING["forward"](p, *inputs.values())
        gradients = TEACHING["backward"](p, results, kept, *upstream.values())

        spec = VRNN(X, H, Z).spec
        run = reference.run(
            spec,
            [leaves[name] for name, _ in spec.parameters()],
            Batch(leaves["x"], leaves["eps"], (leaves["h0"],)),
            Want(prior=True, raw=True),
        )
        right = {name: getattr(run, name) for name in ("nll", "kl", "z", "mean", "std", "prior_mean", "prior_std")}
        right |= {"logits": run.raw, "state": run.state[0]}
        sum((right[name] * torch.from_numpy(value)).sum() for name, value in upstream.items()).backward()

        found = results | {f"d {name}": value for name, value in gradients.items()}
        right = {name: t.detach() for name, t in right.items()} | {f"d {n}": leaf.grad for n, leaf in leaves.items()}
        errors.add({name: torch.from_numpy(value) for name, value in found.items()}, right, right)
    errors.assert_at_most_twice_torchs()


def test_it_checks_itself_and_learns(capsys: pytest.CaptureFixture[str]) -> None:
    TEACHING["main"]()
    first, *progress = capsys.readouterr().out.splitlines()
    derivative, difference = (float(word.strip(",")) for word in (first.split()[3], first.split()[-1]))
    assert derivative == pytest.approx(difference, rel=1e-3)
    losses = [float(line.split()[3]) for line in progress]
    assert losses[-1] < losses[0] / 2


def test_it_is_short_and_needs_numpy_alone() -> None:
    source = PATH.read_text()
    imported = {line.split()[1] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imported == {"__future__", "numpy", "numpy.typing"}
    assert len(source.splitlines()) <= 300
