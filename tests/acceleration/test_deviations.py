"""Known deviations of foreign models: told in one warning, kept unless fixed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from tests.support.accelerated import SAMPLES, binary, both, default_dtype, real, sound
from tests.support.foreign import audio, copied, dynamical, trajectories, variants
from vrnn_fast import ProofError, accelerate, checks

pytestmark = pytest.mark.filterwarnings("ignore:accelerated as layout")


def warning(**options: Any) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        accelerate(copied.VRNN(6, 9, 4, **options.pop("model", {})), **options)
    mine = [str(w.message) for w in caught if "accelerated as" in str(w.message)]
    assert len(mine) <= 1
    return mine[0] if mine else ""


def test_one_warning_lists_each_deviation() -> None:
    text = warning()
    assert "layout eager-vrnn (the most copied PyTorch VRNN)" in text
    for name in ("nan:", "nll:", "kl:"):
        assert name in text
    assert "kl:" not in warning(fix=("kl",))
    assert warning(fix=("kl", "nll", "nan")) == ""
    assert "TypeError" in warning(model={"gaussian": True})


def test_what_yields_no_number_is_fixed_and_nothing_else() -> None:
    model, x = copied.VRNN(6, 9, 4), binary()
    logits = torch.tensor([-40.0, -10.0, 0.0, 10.0, 20.0, 200.0])
    with torch.no_grad():
        model.dec_mean[0].weight.zero_()
        model.dec_mean[0].bias.copy_(logits)
    assert model(x)[1].isnan()
    fast = accelerate(model)
    kl, nll, _, _ = fast(x)
    theta = torch.sigmoid(logits)
    theirs = model.nll_bernoulli(theta[:4], x[..., :4]) - (x[..., 4:] * torch.log(theta[4:] + copied.EPS)).sum()
    torch.testing.assert_close(nll, theirs + ((1 - x[..., 4:]) * logits[4:]).sum())
    (kl + nll).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in fast.parameters())


def test_a_gaussian_original_that_raises_gets_its_number() -> None:
    broken, fixed = (copied.VRNN(6, 9, 4, gaussian=True, fixed=f) for f in (False, True))
    fixed.load_state_dict(broken.state_dict())
    x = real()
    with pytest.raises(TypeError):
        broken(x)
    log = torch.log
    fast = accelerate(broken)
    assert torch.log is log
    torch.manual_seed(0)
    theirs = fixed(x)
    torch.manual_seed(0)
    torch.testing.assert_close(fast(x), theirs)


@pytest.mark.parametrize("gaussian", [False, True])
def test_fixed_losses_are_the_exact_ones(gaussian: bool) -> None:
    with default_dtype(torch.float64):
        model = copied.VRNN(6, 9, 4, gaussian=gaussian)
        fast = accelerate(model, fix=("kl", "nll"))
        x = real() if gaussian else binary()
        _, nll, _, (outputs, output_stds) = fast(x)
        if gaussian:
            density = Normal(torch.stack(outputs), torch.stack(output_stds))
        else:
            density = Bernoulli(torch.stack(outputs))
        torch.testing.assert_close(nll, -density.log_prob(x).sum())
        one, p = fast(x[:1]), model.prior(torch.zeros(5, 9))  # what the prior reads at the first step is known
        exact = kl_divergence(Normal(one[2][0][0], one[2][1][0]), Normal(model.prior_mean(p), model.prior_std(p)))
        torch.testing.assert_close(one[0], exact.sum())


def test_speech_with_lengths_a_state_and_its_weights() -> None:
    with default_dtype(torch.float64):
        model, x = audio.FramesOnly(7, 4, 6, 3), sound()
        fast = accelerate(model, layout=audio.SPEECH)
        lengths = torch.tensor([7, 3, 1, 0, 5])
        state = torch.randn(5, 14, requires_grad=True)
        found = []
        for module in (model, fast):
            torch.manual_seed(0)
            loss, fields = module(x, lengths, beta=0.5, free_nats=0.1, h0=state)
            gradients = torch.autograd.grad(loss + fields["h_n"].sum(), [state, *model.parameters()])
            found.append((loss, fields, gradients))
        torch.testing.assert_close(found[1], found[0])
        with pytest.raises(ProofError, match=r"say what forward returns with layout=\{'outputs': ...\}"):
            accelerate(model)
        with pytest.raises(ValueError, match=r"h0 must have shape \(B = 5, H = 14\), got \(4, 14\)"):
            fast(x, h0=torch.zeros(4, 14))


def test_lengths_stay_on_the_device_where_a_cuda_graph_is_captured() -> None:
    """Of meta tensors nothing can be read."""
    fast = accelerate(audio.FramesOnly(7, 4, 6, 3), layout=audio.SPEECH, backend="reference").to("meta")
    x, lengths = sound().to("meta"), torch.tensor([7, 3, 1, 0, 5])
    with mock.patch.object(checks, "_captured", return_value=True):
        loss, _ = fast(x, lengths.to("meta"), beta=0.5)
        loss.backward()
        assert loss.device.type == "meta"
        with pytest.raises(ValueError, match="lengths must be on meta where a CUDA graph is captured, got cpu"):
            fast(x, lengths)


@pytest.mark.parametrize("samples", [42, 40, 6, 1])
@pytest.mark.parametrize("rank", [2, 3])
def test_speech_as_it_is_called(samples: int, rank: int) -> None:
    """Frames that are not full, samples with a dimension of their own, a state from the last chunk."""
    with default_dtype(torch.float64):
        model, x = audio.VRNNAudio(7, 4, 6, 3), sound()[:, :samples]
        fast = accelerate(model)
        x = x.unsqueeze(-1) if rank == 3 else x
        state = torch.randn(5, 14, requires_grad=True)
        lengths = SAMPLES.clamp(max=samples)
        found = []
        for module in (model, fast):
            torch.manual_seed(0)
            loss, metrics, outputs = module(x, lengths, beta=0.3, free_nats=0.2, h0=state)
            gradients = torch.autograd.grad(
                loss + outputs.h_n.sum(), [state, *model.parameters()], materialize_grads=True
            )
            found.append((loss, vars(outputs), [m.value for m in metrics], gradients))
        torch.testing.assert_close(found[1], found[0])


def test_speech_fixed_goes_on_from_its_last_frame() -> None:
    with default_dtype(torch.float64):
        model, x = audio.VRNNAudio(7, 4, 6, 3), sound()
        fast = accelerate(model, fix=("h_n",))
        torch.manual_seed(0)
        states, _ = model.vrnn.walk(x, torch.zeros(5, 14))
        torch.manual_seed(0)
        _, _, outputs = fast(x, SAMPLES)
        torch.testing.assert_close(outputs.h_n, states[-1])


def test_a_scripted_cell_goes_on_in_the_fast_model() -> None:
    model = audio.VRNNAudio(7, 4, 6, 3)
    fast = accelerate(model)
    twin = copy.deepcopy(fast)
    x, h = torch.randn(5, 7), torch.randn(5, 14)
    with torch.no_grad():
        for p in fast.parameters():
            p.mul_(1.1)
    for module in (fast, twin, twin.double()):
        inputs = x.to(next(module.parameters()).dtype), h.to(next(module.parameters()).dtype)
        torch.manual_seed(0)
        expected = audio.VRNNAudio(7, 4, 6, 3, scripted=False).to(inputs[0].dtype)
        expected.load_state_dict(module.state_dict())
        torch.manual_seed(0)
        theirs = expected.vrnn.vrnn_cell(*inputs)[0]
        torch.manual_seed(0)
        torch.testing.assert_close(module.vrnn.vrnn_cell(*inputs)[0], theirs)
    assert fast.vrnn.vrnn_cell.r_dim == 14
    with pytest.raises(AttributeError, match="nothing"):
        fast.vrnn.vrnn_cell.nothing  # noqa: B018


def test_the_loss_of_dynamical_reads_what_its_forward_left() -> None:
    model = dynamical.VRNN(6, 4, dim_RNN=9)
    fast, x = accelerate(model), torch.rand(7, 5, 6)
    found = []
    for module in (model, fast):
        torch.manual_seed(0)
        found.append(module.loss(x, module(x)))
    torch.testing.assert_close(*found)
    assert "z_mean" in vars(fast)
    accelerate(model)  # which holds the results of its last run


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_dynamical_is_fixed_where_its_kl_is_computed(beta: float) -> None:
    with default_dtype(torch.float64):
        model, x = dynamical.VRNN(6, 4, dim_RNN=9), torch.rand(7, 5, 6)
        with pytest.warns(UserWarning, match=r"kl: its KL drops the -1, .* \(kept\)"):
            accelerate(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fast = accelerate(model, fix=("kl",))
        y = fast(x)
        left = {name: getattr(fast, name) for name in ("z_mean", "z_logvar", "z_mean_p", "z_logvar_p")}
        loss, parts = fast.loss(x, y), fast.parts(x, y, beta)
        q, p = Normal(fast.z_mean, (fast.z_logvar / 2).exp()), Normal(fast.z_mean_p, (fast.z_logvar_p / 2).exp())
        kl, divergence = kl_divergence(q, p).sum(), (x / y.exp() - torch.log(x / y.exp()) - 1).sum()
        torch.testing.assert_close(loss, divergence + kl)
        torch.testing.assert_close(parts, {"recon": divergence / 35, "kl": beta * kl / 35, "nats": True})
        assert all(getattr(fast, name) is value for name, value in left.items())
        fixed, exact = (
            torch.autograd.grad(t, list(fast.parameters()), retain_graph=True) for t in (loss, divergence + kl)
        )
        torch.testing.assert_close(fixed, exact)


def test_a_deviation_outside_of_the_class_is_told_and_cannot_be_fixed() -> None:
    with pytest.warns(UserWarning, match=r"kl: its KL drops the -1, .* \(outside of forward, kept\)"):
        accelerate(dynamical.WithoutLoss(6, 4, dim_RNN=9))
    with pytest.raises(ValueError, match="fix may hold nothing for layout dynamical-vae"):
        accelerate(dynamical.WithoutLoss(6, 4, dim_RNN=9), fix=("kl",))


def test_deviations_of_an_outcome_that_was_found_by_running() -> None:
    with pytest.warns(UserWarning, match=r"noise: its noise is uniform on \[0, 1\) .* \(kept\)"):
        accelerate(variants.DrawsUniform(6, 9, 4))
    with pytest.warns(UserWarning, match=r"kl: its KL is that of the prior to the posterior.*reduction: "):
        accelerate(variants.ReturnsMeans(6, 9, 4))
    with default_dtype(torch.float64):
        plain, faulty, x = copied.VRNN(6, 9, 4), variants.DrawsUniform(6, 9, 4), binary()
        faulty.load_state_dict(plain.state_dict())
        torch.manual_seed(0)
        theirs = accelerate(faulty, fix=("noise",))(x)
        torch.manual_seed(0)
        run = [torch.randn(5, 4) for _ in x]  # uniform noise has the parameters' dtype here
        model = copied.VRNN(6, 9, 4)
        model.load_state_dict(plain.state_dict())
        model.draw = lambda mean, std: mean + std * run.pop(0)
        torch.testing.assert_close(theirs, model(x))

        faulty = variants.ReturnsMeans(6, 9, 4)
        faulty.load_state_dict(plain.state_dict())
        fixed = accelerate(faulty, fix=("kl", "nll", "reduction"))
        exact = accelerate(plain, fix=("kl", "nll"))
        torch.manual_seed(0)
        kl, nll, _, _ = exact(x)
        torch.manual_seed(0)
        found = fixed(x)
    steps = x.shape[0] * x.shape[1]
    torch.testing.assert_close(found["kl"], kl / steps)
    torch.testing.assert_close(found["loss"], (kl + nll) / steps)


def saturated(model: nn.Module, logit: float) -> nn.Module:
    """Its logits in turn about this large and this small."""
    with torch.no_grad():
        model.dec_mean[0].bias.copy_(logit * torch.tensor([1.0, -1, 1, -1, 1, -1]))
    return model


@pytest.mark.parametrize("logit", [0.0, 16.0, 20.0, 40.0])
def test_theta_that_loses_its_digits_is_accelerated_and_told(logit: float) -> None:
    model = saturated(variants.WithoutEps(6, 9, 4), logit)
    with pytest.warns(UserWarning, match=r"nan: .* NaN or infinite from logit 17 on \(always fixed"):
        fast = accelerate(model)
    kl, nll, _, _ = fast(binary())
    assert kl.isfinite()
    assert nll.isfinite()


@pytest.mark.parametrize("build", [variants.CrossEntropy, variants.Clamped])
def test_a_bounded_likelihood_stays_bounded(build: Callable[[int, int, int], nn.Module]) -> None:
    """It is what the original gives, until fixed."""
    with default_dtype(torch.float64):
        model, x = build(6, 9, 4), binary()
        with pytest.warns(UserWarning, match="bound: .*likelihood"):
            fast = accelerate(model)
        fixed = accelerate(model, fix=("bound",))
        for logit in (1.0, 20.0, 50.0, 200.0):
            saturated(model, logit)
            found = []
            for module in (model, fast, fixed):
                torch.manual_seed(0)
                kl, nll, _, outputs = module(x)
                gradients = torch.autograd.grad(kl + nll, list(module.parameters()), allow_unused=True)
                found.append((kl, nll, outputs, gradients))
            torch.testing.assert_close(found[1], found[0])
            logits = torch.logit(torch.stack(found[2][2][0]))
            if logit == 1:
                exact = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
                torch.testing.assert_close(found[2][1], exact)
        assert found[2][1] > found[0][1]  # at the last logit


def test_a_bound_that_nobody_knows_is_refused() -> None:
    words = r"output\[1\], float64 of shape \(\), is, where the decoder saturates, another number .*'outputs'"
    with pytest.raises(ProofError, match=words):
        accelerate(variants.ClampedElsewhere(6, 9, 4))


def test_a_constant_of_single_precision_is_found_told_and_fixed() -> None:
    with default_dtype(torch.float64):
        model, x = trajectories.VRNN(6, 6, 4, 7, 9), real()
        with pytest.warns(UserWarning, match=r"constant: .* off by -?[\d.]+e-08 nats .* rounded to float32 \(kept\)"):
            fast = accelerate(model)
        fixed = accelerate(model, fix=("constant",))
        found = []
        for module in (model, fast, fixed):
            torch.manual_seed(0)
            found.append(module(x)["recon_loss"].item())
        off = float(trajectories.half_log_two_pi(x).double()) - 0.5 * torch.log(torch.tensor(2 * torch.pi)).item()
        assert found[1] == pytest.approx(found[0], rel=1e-13)
        assert found[0] - found[2] == pytest.approx(6 * 5 * 6 * off, rel=1e-4)


def test_noise_is_counted_not_shaped() -> None:
    model, x = variants.DrawsFlat(6, 9, 4), binary()
    fast = accelerate(model)
    torch.manual_seed(0)
    theirs = both(model(x))
    torch.manual_seed(0)
    torch.testing.assert_close(both(fast(x)), theirs)
