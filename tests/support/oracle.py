"""The law of errors in tests: what :mod:`vrnn_fast.agreement` says, of cells drawn at random."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import torch
from torch import Tensor

from vrnn_fast import agreement
from vrnn_fast.cell.spec import CellSpec, Std
from vrnn_fast.executors import reference
from vrnn_fast.executors.problem import Problem


def assert_nobody_gets_a_gradient_unasked(executor: ModuleType, dtype: torch.dtype) -> None:
    """Where a state runs away, what nothing asks of has a gradient of zero, and not zero times infinity."""
    for upstream, unasked in (("final0", ("prior_", "dec")), ("kl", ("dec",)), ("nll", ("prior_",))):
        spec = CellSpec(3, 5, 2, cell="rnn", nonlinearity="identity", prior=(4,), decoder=(6,))
        problem = Problem.draw(spec, 4, 3)
        problem.upstream = {name: g for name, g in problem.upstream.items() if name == upstream}
        problem.inputs["x"][1, 0] = 3e38
        problem.inputs["state0"][1] = 3e38
        found = problem.run(executor, dtype)
        assert not found["final0"].isfinite().all()
        silent = [name for name in found if name.startswith(tuple(f"d {u}" for u in unasked))]
        assert len(silent) >= 2
        for name in silent:
            assert not found[name].any(), f"{name} by {upstream}: {found[name]}"


def assert_nothing_comes_from_the_last_update(executor: ModuleType, dtype: torch.dtype) -> None:
    """Where no final state is asked for, a sequence's last update that is NaN spoils no gradient, except of the weights
    that multiplied infinity and NaN themselves."""
    for cell, nonlinearity in (("gru", "tanh"), ("lstm", "tanh"), ("rnn", "tanh"), ("rnn", "elu"), ("rnn", "identity")):
        for lengths in ([4, 4, 4], [4, 2, 3]):
            spec = CellSpec(
                *(3, 5, 2, cell), nonlinearity=nonlinearity, num_layers=2, cond_size=2, cond_networks=("cell",)
            )
            problem = Problem.draw(spec, 4, 3, lengths)
            problem.upstream = {name: problem.upstream[name] for name in ("nll", "kl")}
            problem.inputs["rnn.weight_ih_l0"][:, -spec.cond_size :] = 1.0
            for row, length in enumerate(lengths):
                problem.inputs["cond"][length - 1, row] = torch.tensor([torch.inf, -torch.inf])
            found = problem.run(executor, dtype)
            assert found["final0"].isnan().all()
            gradients = {name: t for name, t in found.items() if name.startswith("d ")}
            spoiled = [name for name, t in gradients.items() if not t.isfinite().all()]
            assert set(spoiled) <= {"d rnn.weight_ih_l0", "d rnn.weight_ih_l1"}, f"{spoiled} of {cell}, {lengths}"


class Errors(agreement.Errors):
    """Our errors beside those of plain torch in the same dtype, root mean square over some draws."""

    def assert_at_most_twice_torchs(self) -> None:
        """No violation, of something."""
        assert self
        assert not (wrong := self.violations()), "; ".join(wrong.values())


def assert_at_most_twice_torchs(ours: Tensor, torchs: Tensor, right: Tensor, name: str = "the result") -> None:
    """One result, of one draw, obeys the law."""
    assert ours.dtype == torchs.dtype
    errors = Errors(ours.dtype)
    errors.add(*({name: tensor.detach()} for tensor in (ours, torchs, right)))
    errors.assert_at_most_twice_torchs()


def assert_confident_predictions_keep_their_digits(spec: CellSpec, executor: ModuleType, dtype: torch.dtype) -> None:
    """A Bernoulli decoder that is sure, and right: what is left of -log p(x) and of its gradient is small, and known to
    as many digits as anything else."""
    errors = Errors(dtype)
    for seed in range(6):
        problem = Problem.draw(spec, 4, 3, seed=seed)
        sure = 10.0 * torch.ones(spec.input_size, dtype=torch.float64)
        sure[1::2] *= -1
        problem.inputs["dec_mean.0.bias"] = sure
        problem.inputs["x"] = (sure > 0).double().expand_as(problem.inputs["x"]).clone()
        runs = [problem.run(*of) for of in ((executor, dtype), (reference, dtype), (reference, torch.float64))]
        errors.add(*({name: r[name] for name in ("nll", "d dec_mean.0.bias")} for r in runs))
        assert runs[-1]["nll"].max() < 0.01
    errors.assert_at_most_twice_torchs()


def assert_no_divergence_no_gradient_of_it(spec: CellSpec, executor: ModuleType, dtype: torch.dtype) -> None:
    """Of a prior whose standard deviation is 0 the KL is infinite, which is nothing to a loss that leaves it out."""
    problem = Problem.draw(spec, 4, 3)
    problem.inputs["prior_std.0.bias"] -= 1e4
    kept = {"nll", "z", "final0"}
    problem.upstream = {name: t for name, t in problem.upstream.items() if name in kept}
    found, right = (problem.run(e, dtype) for e in (executor, reference))
    assert not found["kl"].isfinite().any()
    for name, gradient in right.items():
        if name.startswith("d "):
            torch.testing.assert_close(found[name], gradient, msg=lambda m, n=name: f"{n}: {m}")


def assert_lawful_where_terms_vanish(spec: CellSpec, executor: ModuleType, dtype: torch.dtype) -> None:
    """Posterior collapse: with no weights at all, tiny ones, or heads of equal biases alone, posterior and prior are as
    good as equal. What of a divergence's gradient is left is as exact as torch's, which often is exactly 0."""
    particles = 2 if spec.measure == "particle_filter" else 0
    for scale in (0.0, 1e-38, None):
        errors = Errors(dtype)
        for seed in range(4):
            problem = Problem.draw(spec, 3, 4, seed=seed, particles=particles)
            for p in spec.parameters():
                head, _, kind = p.name.rpartition(".")
                if scale is not None:
                    problem.inputs[p.name] = (scale * problem.inputs[p.name]).float().double()
                elif kind == "weight" and head.startswith(("enc_", "prior_")):
                    problem.inputs[p.name].zero_()
                elif head.startswith("enc_"):
                    prior = problem.inputs.get(f"prior_{head[4:]}.{kind}")
                    same = torch.zeros_like(problem.inputs[p.name]) if prior is None else prior
                    problem.inputs[p.name] = torch.zeros_like(same) if spec.residual and "mean" in head else same
            problem.upstream = {"kl": torch.ones_like(problem.upstream["kl"])}
            runs = [problem.run(*of) for of in ((executor, dtype), (reference, dtype), (reference, torch.float64))]
            names = [n for n in runs[0] if n == "kl" or n.startswith("d ")]
            eps = problem.inputs["eps"]
            cancelled = {"d eps": eps, "kl": eps.square()}  # by the sample, which it has moved, and which was rounded
            found = ({name: r[name] for name in names} for r in runs)
            errors.add(*found, None if spec.measure == "kl" else cancelled)
        errors.assert_at_most_twice_torchs()


def assert_masks_stop_infinity(executor: ModuleType, dtype: torch.dtype) -> None:
    """In a cell that runs away gradients overflow. A unit that ReLU or a clamp has masked stays at 0, as torch's does;
    0 times infinity would be NaN."""
    log_variance = Std("log_variance")
    spec = CellSpec(
        *(1, 2, 2, "rnn"),
        nonlinearity="identity",
        std=log_variance,
        phi_z=(17, 19),
        encoder=(23,),
        prior=None,
        decoder=(1,),
        likelihood="gaussian",
        output_std=log_variance,
        decoder_heads=(("dec_mean", 1), ("dec_std.0", 1)),
    )
    stopped = 0
    for seed in range(30):
        problem = Problem.draw(spec, 3, 1, seed=seed)
        for p in spec.parameters():
            problem.inputs[p.name] *= 4
        found, right = (problem.run(e, dtype) for e in (executor, reference))
        assert_nan_where_torch_has(found, right)
        stopped += any(t.isnan().any() and (t == 0).any() for t in right.values())
    assert stopped > 5


def assert_nan_where_torch_has(found: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    for name, t in right.items():
        if t.isfinite().all() or name.startswith("d "):
            spoiled = found[name].isnan() & ~t.isnan()
            assert not spoiled.any(), (
                f"{name}: {int(spoiled.sum())} of {t.numel()} are NaN where torch has {t[spoiled]}"
            )


def assert_obeys_the_law(
    spec: CellSpec,
    steps: int,
    batch: int,
    lengths: list[int] | None = None,
    *,
    executor: ModuleType,
    dtype: torch.dtype,
    recompute: bool = False,
    draws: int = 6,
    resets: bool = False,
    mask: bool = False,
    particles: int = 0,
    roundings: float | None = None,
) -> None:
    """Each output's and gradient's error, root mean square over some draws, is at most twice torch's; ``roundings`` as
    in :func:`vrnn_fast.agreement.allowed`.

    Where rounding made torch draw other ancestors than the oracle, that draw of the problem compares nothing; more than
    half of them must.
    """
    errors = Errors(dtype, roundings=roundings)
    compared = resampled = 0
    for seed in range(draws):
        problem = Problem.draw(spec, steps, batch, lengths, seed, resets=resets, mask=mask, particles=particles)
        oracle = problem.run(reference, torch.float64)
        plain = problem.run(reference, dtype)
        found = problem.run(executor, dtype, recompute=recompute)
        if particles:
            ancestors = oracle.pop("ancestors")
            if not torch.equal(plain.pop("ancestors"), ancestors):
                continue
            compared += 1
            resampled += int((ancestors >= 0).sum())
            torch.testing.assert_close(found.pop("ancestors"), ancestors)
        errors.add(found, plain, oracle)
    assert not particles or (2 * compared > draws and (resampled > 0) == (particles > 1))
    errors.assert_at_most_twice_torchs()
