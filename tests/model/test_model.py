"""The contract of the module, on every executor of this machine."""

from __future__ import annotations

import copy
import importlib
import pickle
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from bench.peers.eager import EagerVRNN
from vrnn_fast import VRNN, VRNNOutput, VRNNStep, backends

X, H, Z, T, B = 5, 7, 3, 6, 4
LENGTHS = torch.tensor([6, 0, 3, 1])
REAL = torch.arange(T)[:, None] < LENGTHS


def build(executor: str, **options: Any) -> VRNN:
    return VRNN(X, H, Z, backend=executor, **{"dtype": torch.float64, **options})


def data(likelihood: str = "bernoulli") -> tuple[Tensor, Tensor]:
    x = torch.rand(T, B, X).round() if likelihood == "bernoulli" else torch.randn(T, B, X)
    return x.double(), torch.randn(T, B, Z, dtype=torch.float64)


def tensors(state: Any) -> tuple[Tensor, ...]:
    return tuple(state) if isinstance(state, tuple) else (state,)


def test_default_widths_are_the_originals() -> None:
    model = VRNN(28, 100, 16, bias=False)
    assert sum(p.numel() for p in model.parameters()) == 187_320 - 28 * 101  # less the unused dec_std
    assert list(model.spec.parameters()) == [
        (p.name, tuple(model.get_parameter(p.name).shape)) for p in model.spec.parameters()
    ]
    assert len(list(model.parameters())) == len(list(model.spec.parameters()))


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_results_are_those_of_the_module_loop(executor: str, cell: str, likelihood: str) -> None:
    model = build(executor, cell=cell, likelihood=likelihood)
    eager = EagerVRNN(
        X, H, Z, cell=cell, likelihood=likelihood, phi_x=(H, H), phi_z=(H,), encoder=(H, H), prior=(H,), decoder=(H, H)
    ).double()
    eager.load_state_dict(model.state_dict())
    x, eps = data(likelihood)
    start = tuple(torch.randn(B, H, dtype=torch.float64) for _ in range(model.spec.state_tensors))
    packed = tuple(s.unsqueeze(0) for s in start)
    out = model(x, LENGTHS, state=packed if cell == "lstm" else packed[0], eps=eps, outputs=("prior", "prediction"))
    run = eager.ragged(x, eps, LENGTHS, start)
    raw_mean, raw_std = run.raw[..., :X], run.raw[..., X:]
    wanted: list[tuple[Tensor, Tensor]] = [
        (out.nll, run.nll),
        (out.kl, run.kl),
        (out.latent, run.z),
        (out.posterior.mean, run.mean),
        (out.posterior.std, run.std),
        (out.prior.mean, run.prior_mean),
        (out.prior.std, run.prior_std),
        (out.elbo, -(run.nll + run.kl).sum(0)),
        (out.loss, (run.nll + run.kl).sum() / LENGTHS.sum()),
        *((a.squeeze(0), b) for a, b in zip(tensors(out.state), run.state, strict=True)),
    ]
    real = REAL.unsqueeze(-1)
    if likelihood == "bernoulli":
        wanted.append((out.prediction, torch.sigmoid(run.raw) * real))
    else:
        wanted.append((out.prediction.mean, raw_mean * real))
        wanted.append((out.prediction.std, (nn.functional.softplus(raw_std, threshold=100) + 1e-3) * real))
    for i, (a, b) in enumerate(wanted):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda m, n=i: f"result {n}: {m}")
    out.loss.backward()
    ((run.nll + run.kl).sum() / LENGTHS.sum()).backward()
    for name, p in model.named_parameters():
        expected = eager.get_parameter(name).grad
        torch.testing.assert_close(p.grad, expected, rtol=1e-8, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def test_every_result_is_zero_at_padding_whatever_stands_there(executor: str) -> None:
    model = build(executor, likelihood="gaussian")
    x, eps = data("gaussian")
    clean = model(x, LENGTHS, eps=eps, outputs=("prior", "prediction"))
    x, eps = x.masked_fill(~REAL[..., None], float("nan")), eps.masked_fill(~REAL[..., None], float("nan"))
    x.requires_grad_()
    out = model(x, LENGTHS, eps=eps, outputs=("prior", "prediction"), free_nats=0.5)
    for tensor in (out.nll, out.kl, out.latent, *out.posterior, *out.prior, *out.prediction):
        assert (tensor[~REAL] == 0).all()
        assert (tensor[REAL] != 0).any()
    for a, b in zip(pytree.tree_leaves(out)[1:], pytree.tree_leaves(clean)[1:], strict=True):
        assert torch.equal(a, b)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert x.grad is not None
    assert (x.grad[~REAL] == 0).all()


def test_an_empty_row_passes_its_state_through(executor: str) -> None:
    for cell in ("gru", "lstm"):
        model = build(executor, cell=cell)
        x, eps = data()
        start = tuple(torch.randn(1, B, H, dtype=torch.float64) for _ in range(model.spec.state_tensors))
        out = model(x, LENGTHS, state=start if cell == "lstm" else start[0], eps=eps)
        for before, after in zip(start, tensors(out.state), strict=True):
            assert torch.equal(before[:, 1], after[:, 1])
        assert out.elbo[1] == 0


def test_the_state_of_an_empty_row_reaches_nothing_else(executor: str) -> None:
    model = build(executor)
    x, eps = data()
    state = torch.zeros(1, B, H, dtype=torch.float64)
    state[:, 1] = float("nan")
    state.requires_grad_()
    out = model(x, LENGTHS, state=state, eps=eps, outputs=("prior", "prediction"))
    assert out.state[:, 1].isnan().all()
    assert out.loss.isfinite()
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert state.grad is not None
    assert (state.grad[:, 1] == 0).all()


def test_loss_is_what_the_contract_says(executor: str) -> None:
    model = build(executor)
    x, eps = data()
    for lengths, real in ((None, torch.ones(T, B, dtype=torch.bool)), (LENGTHS, REAL)):
        out = model(x, lengths, eps=eps)
        free = out.kl[real].median().item()
        nll, kl = out.nll[real].sum(), out.kl[real]
        for beta in (0.0, 0.3, torch.tensor(0.3, dtype=torch.float64)):
            loss = model(x, lengths, eps=eps, beta=beta).loss
            torch.testing.assert_close(loss, (nll + beta * kl.sum()) / real.sum())
        for floor in (free, torch.tensor(free, dtype=torch.float64)):
            loss = model(x, lengths, eps=eps, beta=2.0, free_nats=floor, normalizer=10).loss
            torch.testing.assert_close(loss, (nll + 2 * kl.clamp(min=free).sum()) / 10)
        loss = model(x, lengths, eps=eps, normalizer=torch.tensor(4.0)).loss
        torch.testing.assert_close(loss, (nll + kl.sum()) / 4)


def test_weights_of_another_precision_leave_the_loss_its_own(executor: str) -> None:
    model, weight = build(executor, dtype=torch.float32), torch.tensor(0.5, dtype=torch.float64)
    assert model(data()[0].float(), beta=weight, free_nats=weight, normalizer=weight).loss.dtype == torch.float32


def test_below_the_free_nats_the_kl_has_no_gradient(executor: str) -> None:
    model = build(executor)
    x, eps = data()
    model(x, eps=eps, free_nats=1e3).loss.backward()
    assert (model.prior_mean.weight.grad == 0).all()
    assert (model.enc_mean.weight.grad != 0).any()


def test_gradients_reach_every_result(executor: str) -> None:
    model = build(executor, likelihood="gaussian", cell="lstm")
    x, eps = data("gaussian")
    x.requires_grad_()
    eps.requires_grad_()
    h, c = (torch.randn(1, B, H, dtype=torch.float64, requires_grad=True) for _ in range(2))
    out = model(x, state=(h, c), eps=eps, outputs=("prior", "prediction"))
    for tensor in (out.loss, out.nll, out.elbo, out.latent, *out.posterior, *out.prior, *out.prediction, *out.state):
        gradients = torch.autograd.grad(tensor.sum(), [x, eps, h, c], retain_graph=True)
        assert all(g.isfinite().all() for g in gradients)
        assert any((g != 0).any() for g in gradients)


def test_optional_results_come_when_named(executor: str) -> None:
    model = build(executor)
    x, _ = data()
    assert model(x).prior is None
    assert model(x).prediction is None
    assert model(x, outputs=("prior",)).prediction is None
    assert model(x, outputs=["prediction"]).prediction.shape == (T, B, X)
    assert model(x, outputs={"prior"}).prior.std.shape == (T, B, Z)


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_batch_first_is_the_same_transposed(executor: str, cell: str) -> None:
    model = build(executor, cell=cell)
    swapped = build(executor, cell=cell, batch_first=True)
    swapped.load_state_dict(model.state_dict())
    x, eps = data()
    a = model(x, LENGTHS, eps=eps, outputs=("prior", "prediction"))
    b = swapped(x.transpose(0, 1), LENGTHS, eps=eps.transpose(0, 1), outputs=("prior", "prediction"))
    for name in ("nll", "kl", "latent", "prediction"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name).transpose(0, 1))
    for name in ("posterior", "prior"):
        for p, q in zip(getattr(a, name), getattr(b, name), strict=True):
            torch.testing.assert_close(p, q.transpose(0, 1))
    torch.testing.assert_close((a.loss, a.elbo, a.state), (b.loss, b.elbo, b.state))
    contiguous = swapped(x.transpose(0, 1).contiguous(), LENGTHS, eps=eps.transpose(0, 1).contiguous())
    torch.testing.assert_close(contiguous.loss, a.loss)


def test_noise_is_drawn_once_by_torch(executor: str) -> None:
    x, _ = data()
    for batch_first in (False, True):
        model = build(executor, batch_first=batch_first)
        given = x.transpose(0, 1) if batch_first else x
        g = torch.Generator().manual_seed(5)
        out = model(given, generator=g)
        eps = torch.randn(T, B, Z, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        again = model(given, eps=eps.transpose(0, 1) if batch_first else eps)
        assert torch.equal(out.latent, again.latent)
        torch.manual_seed(5)
        assert torch.equal(model(given).latent, out.latent)


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_a_prefix_and_its_continuation_equal_one_long_run(executor: str, cell: str) -> None:
    model = build(executor, cell=cell)
    x, eps = data()
    whole = model(x, eps=eps)
    head = model(x[:2], eps=eps[:2])
    tail = model(x[2:], eps=eps[2:], state=head.state)
    torch.testing.assert_close(torch.cat([head.nll, tail.nll]), whole.nll)
    torch.testing.assert_close(torch.cat([head.kl, tail.kl]), whole.kl)
    torch.testing.assert_close(tail.state, whole.state)


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_steps_chained_equal_a_sequence(executor: str, cell: str) -> None:
    model = build(executor, cell=cell, likelihood="gaussian")
    x, eps = data("gaussian")
    whole = model(x, eps=eps)
    state: Any = model.new_state(B)
    for t in range(T):
        step = model.step(x[t], state, eps[t])
        assert isinstance(step, VRNNStep)
        torch.testing.assert_close((step.nll, step.kl), (whole.nll[t], whole.kl[t]))
        other = model.step(torch.zeros_like(x[t]), state)
        assert torch.equal(step.prediction.mean, other.prediction.mean)  # it has not seen x_t
        state = step.state
    torch.testing.assert_close(state, whole.state)
    assert model.step(x[0], None).prediction.std.shape == (B, X)


def test_the_prediction_of_a_step_is_the_decoder_at_the_priors_mean(executor: str) -> None:
    model = build(executor)
    x, eps = data()
    state = torch.randn(1, B, H, dtype=torch.float64)
    h = state[0]
    with torch.no_grad():
        fz = model.phi_z(model.prior_mean(model.prior(h)))
        expected = model.dec_mean(model.dec(torch.cat([fz, h], 1)))
        torch.testing.assert_close(model.step(x[0], state, eps[0]).prediction, expected)


def test_init_state(executor: str) -> None:
    gru, lstm = build(executor), build(executor, cell="lstm")
    state = gru.new_state(2)
    assert isinstance(state, Tensor)
    assert state.shape == (1, 2, H)
    assert state.dtype == torch.float64
    assert [s.shape for s in lstm.new_state(2)] == [(1, 2, H)] * 2
    x, eps = data()
    assert torch.equal(gru(x, eps=eps).loss, gru(x, eps=eps, state=gru.new_state(B)).loss)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_generate(executor: str, likelihood: str) -> None:
    model = build(executor, likelihood=likelihood, cell="lstm")
    samples, state = model.generate(9, batch_size=3, generator=torch.Generator().manual_seed(1))
    again, _ = model.generate(9, batch_size=3, generator=torch.Generator().manual_seed(1))
    other, _ = model.generate(9, batch_size=3, generator=torch.Generator().manual_seed(2))
    assert samples.shape == (9, 3, X)
    assert [s.shape for s in state] == [(1, 3, H)] * 2
    assert torch.equal(samples, again)
    assert not torch.equal(samples, other)
    assert not samples.requires_grad
    if likelihood == "bernoulli":
        assert set(samples.unique().tolist()) == {0.0, 1.0}
    means, _ = model.generate(9, batch_size=3, sample_output=False)
    assert means.unique().numel() > 9
    swapped = build(executor, likelihood=likelihood, cell="lstm", batch_first=True)
    swapped.load_state_dict(model.state_dict())
    assert torch.equal(
        swapped.generate(9, batch_size=3, generator=torch.Generator().manual_seed(1))[0], samples.transpose(0, 1)
    )


def test_generate_continues_each_row_from_its_own_last_step(executor: str) -> None:
    model = build(executor)
    x, _ = data()
    lengths = torch.tensor([6, 1, 3, 0])
    seeded = torch.Generator().manual_seed(1)
    samples, state = model.generate(5, prefix=x, lengths=lengths, generator=seeded)
    seeded = torch.Generator().manual_seed(1)
    out = model(x, lengths, generator=seeded)
    assert samples.shape == (5, B, X)
    expected, end = model.generate(5, state=out.state, generator=seeded)  # the same draws
    assert torch.equal(samples, expected)
    assert torch.equal(state, end)


def test_a_cold_model_repeats_itself(executor: str) -> None:
    model = build(executor, likelihood="gaussian")
    cold, _ = model.generate(8, batch_size=64, temperature=1e-6)
    warm, _ = model.generate(8, batch_size=64)
    assert cold.std(1).max() < 1e-4
    assert warm.std(1).min() > 1e-2


def test_generated_data_has_the_likelihood_that_the_model_gives_it(executor: str) -> None:
    # E[-log p(x)] of the model's own samples is its entropy: for a decoder that ignores z and h, known exactly
    model = build(executor, decoder=())
    with torch.no_grad():
        model.dec_mean[0].weight.zero_()
        model.dec_mean[0].bias.fill_(1.0)
    samples, _ = model.generate(400, batch_size=50)
    p = torch.sigmoid(torch.tensor(1.0)).double()
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()) * X
    assert model(samples).nll.mean().item() == pytest.approx(entropy.item(), abs=0.02)


def test_output_is_a_pytree(executor: str) -> None:
    x, _ = data()
    out = build(executor)(x, outputs=("prior",))
    leaves, spec = pytree.tree_flatten(out)
    assert len(leaves) == 10
    assert all(isinstance(leaf, Tensor) for leaf in leaves)
    doubled = pytree.tree_map(lambda t: 2 * t, out)
    assert isinstance(doubled, VRNNOutput)
    assert torch.equal(doubled.posterior.std, 2 * out.posterior.std)
    assert isinstance(pytree.tree_unflatten(leaves, spec), VRNNOutput)


def test_output_is_a_tuple_and_a_mapping(executor: str) -> None:
    """As trainers and unpacking take it; what was not asked for is not there."""
    x, eps = data()
    model = build(executor)
    out = model(x, eps=eps)
    loss, nll, *_, state = out
    assert (loss is out[0], out["loss"] is out[0], nll is out.nll, state is out[-1] is out.state) == (True,) * 4
    assert list(dict(out)) == list(out.keys()) == ["loss", "nll", "kl", "elbo", "latent", "posterior", "state"]
    assert len(out) == len(tuple(out)) == 7
    assert [r is s for r, s in zip(out[1:3], (out.nll, out.kl), strict=True)] == [True, True]
    with pytest.raises(KeyError, match=r"prior was not asked for: call the model with outputs=\('prior',\)"):
        out["prior"]
    with pytest.raises(KeyError, match="no result 'los', only loss, nll"):
        out["los"]
    with pytest.raises(IndexError):
        out[7]
    asked = model(x, eps=eps, outputs=("prediction",))
    assert (len(asked), asked[7] is asked.prediction) == (8, True)
    with torch.no_grad():
        asked = model(x, eps=eps, outputs=("prediction",))
    for twin in (copy.copy(asked), copy.deepcopy(asked), pickle.loads(pickle.dumps(asked))):
        assert isinstance(twin, VRNNOutput)
        assert (len(twin), torch.equal(twin[1], asked.nll)) == (8, True)


def test_output_unpacks_in_compiled_code(executor: str) -> None:
    model = build(executor)
    x, eps = data()

    def step() -> tuple[Tensor, Tensor, int]:
        out = model(x, eps=eps)
        loss, *rest = out
        return out["nll"].sum() + out[0], loss, len(rest)

    found = torch.compile(step, fullgraph=True, backend="eager")()
    torch.testing.assert_close(found, step())


def test_data_parallel_is_refused_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would cut x along time, and join states along layers, without a word. Its copies to GPUs are left out here."""
    copies = importlib.import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(copies, "_get_device_index", lambda device, _: device)
    monkeypatch.setattr(
        copies, "_broadcast_coalesced_reshape", lambda tensors, devices, detach: [tensors] * len(devices)
    )
    for model in (VRNN(X, H, Z), nn.Sequential(VRNN(X, H, Z))):
        with pytest.raises(RuntimeError, match=r"nn\.DataParallel cannot run a VRNN: .* Use DistributedDataParallel"):
            nn.parallel.replicate(model, [0, 1])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_what_is_carried_on_may_be_detached_in_place(executor: str, cell: str, layers: int) -> None:
    """As the state of nn.GRU: a view could not be, for one layer alone. Nor does anything alias the start."""
    model = build(executor, cell=cell, num_layers=layers, batch_first=True)
    model.initial_state = torch.randn(model.spec.state_parts, layers, H, dtype=torch.float64)
    x, eps = data()
    xs, noise = x.transpose(0, 1), eps.transpose(0, 1)
    states = [model(xs, eps=noise).state, model.step(x[0], None).state, model.rollout_prior(noise).state]
    with torch.no_grad():
        states += [model(xs, eps=noise).state, model.step(x[0], None).state]
    states += [model.generate(3, batch_size=B)[1], model.new_state(1)]
    for carried in (*states, model.generate(3)[0], model.generate(3, num_samples=2)[0]):
        for tensor in tensors(carried):
            tensor.detach_()
            assert not tensor.requires_grad
    before = model.initial_state.clone()
    for tensor in tensors(states[-1]):
        tensor.zero_()
    assert torch.equal(model.initial_state, before)


def test_recompute_changes_no_number(executor: str) -> None:
    x, eps = data()
    plain, thrifty = build(executor), build(executor, recompute=True)
    thrifty.load_state_dict(plain.state_dict())
    for model in (plain, thrifty):
        model(x, LENGTHS, eps=eps).loss.backward()
    for p, q in zip(plain.parameters(), thrifty.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_hooks_on_the_module_run(executor: str) -> None:
    x, _ = data()
    model = build(executor)
    seen: list[float] = []
    model.register_forward_hook(lambda module, args, out: seen.append(out.loss.item()))
    out = model(x)
    assert seen == [out.loss.item()]


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
@pytest.mark.parametrize("name", ["enc.0", "phi_x", "dec_mean.1", "rnn"])
def test_a_hook_on_a_sub_module_raises(kind: str, name: str) -> None:
    x, _ = data()
    model = build("reference")
    handle = getattr(model.get_submodule(name), f"register_{kind}_hook")(lambda *_: None)
    for call in (lambda: model(x), lambda: model.step(x[0], None), lambda: model.generate(1)):
        with pytest.raises(RuntimeError, match=f"sub-module '{name}' carries a forward or backward hook"):
            call()
    handle.remove()
    model(x)


def test_a_replaced_sub_module_raises() -> None:
    class LoRA(nn.Linear):
        pass

    x, _ = data()
    for name, parent, key, module in (
        ("enc.2", "enc", "2", LoRA(7, 7, dtype=torch.float64)),
        ("enc.1", "enc", "1", nn.Tanh()),
        ("rnn", "", "rnn", nn.GRU(14, 7, dtype=torch.float64)),
        ("prior_mean", "", "prior_mean", nn.Identity()),
    ):
        model = build("reference")
        model.get_submodule(parent)._modules[key] = module
        with pytest.raises(RuntimeError, match=f"sub-module '{name}' was replaced by a {type(module).__name__}"):
            model(x)
    model = build("reference")
    model.phi_z.append(nn.ReLU())
    with pytest.raises(RuntimeError, match="sub-module 'phi_z' has 3 children, was made with 2"):
        model(x)
    model = build("reference")
    del model.phi_z[1]
    with pytest.raises(RuntimeError, match=r"sub-module 'phi_z' has 1 children|sub-module 'phi_z.1' is missing"):
        model(x)
    model = build("reference")
    model.enc_mean = nn.Linear(7, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"parameter enc_mean.weight must have shape \(3, 7\), got \(4, 7\)"):
        model(x)


def test_a_module_of_the_same_class_may_stand_in(executor: str) -> None:
    x, eps = data()
    model = build(executor)
    before = model(x, eps=eps).loss
    model.enc_mean = nn.Linear(7, 3, dtype=torch.float64)
    assert not torch.equal(model(x, eps=eps).loss, before)


def test_training_is_ordinary(executor: str) -> None:
    model = build(executor, dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = torch.zeros(T, B, X)
    x[::2] = 1
    first = last = model(x).loss.item()
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(x, LENGTHS).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        last = loss.item()
    assert last < 0.8 * first


def test_explain_names_the_executor_and_the_reasons(executor: str) -> None:
    model = VRNN(X, H, Z, backend=executor)
    text = model.explain()
    assert text.startswith(f"{executor}: ")
    assert len(text.splitlines()) == len(backends())
    assert model.explain(torch.zeros(2, 1, X)) == model.explain(torch.zeros(64, 9, X))
    if executor == "reference":
        assert "grows with T" in text
    assert f"backend={executor!r}" in repr(model)
    assert model.explain(source=True).startswith(f"{text}\n\nno kernel is generated: ")


@pytest.mark.parametrize("backend", [n for n in ("cpu", "reference") if backends()[n].available])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_rank_without_a_step_adds_nothing(backend: str, cell: Any) -> None:
    """Where a normalizer says that others have some: states pass through, gradients are zero."""
    model = VRNN(5, 8, 3, cell=cell, num_layers=2, backend=backend)
    start = torch.randn(2, 3, 8) if cell == "gru" else (torch.randn(2, 3, 8), torch.randn(2, 3, 8))
    none = torch.zeros(3, dtype=torch.int64)
    out = model(torch.rand(4, 3, 5), none, state=start, normalizer=7.0)
    out.loss.backward()
    assert out.loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    for after, before in zip(*(s if isinstance(s, tuple) else (s,) for s in (out.state, start)), strict=True):
        assert torch.equal(after, before)
    with pytest.raises(ValueError, match=r"got 0 for every row; where other ranks have steps, pass a normalizer"):
        model(torch.rand(4, 3, 5), none)
