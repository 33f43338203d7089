"""Single steps and calls without gradients on weights that stay packed: the same numbers, and never stale ones."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.support.likelihoods import Laplace
from vrnn_fast import VRNN, Bernoulli, VRNNStep, backends, parameters
from vrnn_fast.cell.spec import CellSpec
from vrnn_fast.executors import cpu
from vrnn_fast.executors.cpu import operators
from vrnn_fast.layouts.modules import shallow

pytestmark = pytest.mark.skipif(not backends()["cpu"].available, reason="the extension is not built")
X, H, Z = 5, 18, 3


class Doubled(Bernoulli):
    def prediction(self, raw: Tensor) -> Any:
        return 2 * raw


def build(**options: Any) -> VRNN:
    torch.manual_seed(1)
    return VRNN(X, H, Z, **{"dtype": torch.float64, **options})


def launched(call: Callable[[], object]) -> dict[str, int]:
    """The launches of a call by way: forward, backward, step."""
    before = operators.launch_counts()
    call()
    grown = {name: n - before[name] for name, n in operators.launch_counts().items() if n != before[name]}
    return {name.rpartition(".")[2]: n for name, n in grown.items()}


def flat(step: VRNNStep) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(tuple(step))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize(
    "likelihood", ["bernoulli", "gaussian", Laplace(), Doubled()], ids=["bernoulli", "gaussian", "Laplace", "Doubled"]
)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_step_without_gradients_equals_one_with(dtype: torch.dtype, cell: str, likelihood: Any, batch: int) -> None:
    model = build(dtype=dtype, cell=cell, likelihood=likelihood)
    x, eps = torch.rand(6, batch, X, dtype=dtype), torch.randn(6, batch, Z, dtype=dtype)
    state = slow_state = None
    for t in range(6):
        slow = model.step(x[t], slow_state, eps[t])
        with torch.no_grad():
            assert launched(lambda t=t, state=state: model.step(x[t], state, eps[t])) == {"step": 1}
            fast = model.step(x[t], state, eps[t])
        assert all(a.requires_grad for a in flat(slow))
        assert not any(a.requires_grad for a in flat(fast))
        assert [a.shape for a in flat(fast)] == [a.shape for a in flat(slow)]
        torch.testing.assert_close(fast, VRNNStep._make(slow))
        state, slow_state = fast.state, slow.state


def test_noise_is_drawn_as_before() -> None:
    model, x = build(), torch.rand(2, X, dtype=torch.float64)
    with torch.no_grad():
        torch.manual_seed(3)
        eps = torch.randn(2, Z, dtype=torch.float64)
        given = model.step(x, None, eps)
        torch.manual_seed(3)
        torch.testing.assert_close(model.step(x, None), given, rtol=0, atol=0)


def test_strides_do_not_matter() -> None:
    model = build(cell="lstm")
    x, eps = torch.rand(X, 6, dtype=torch.float64).T, torch.randn(6, 2 * Z, dtype=torch.float64)[:, ::2]
    state = tuple(torch.randn(1, H, 6, dtype=torch.float64).transpose(1, 2) for _ in range(2))
    with torch.no_grad():
        got = model.step(x, state, eps)
        expected = model.step(x.contiguous(), tuple(s.contiguous() for s in state), eps.contiguous())
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_many_sequences_go_to_many_threads() -> None:
    model = VRNN(28, 100, 16)
    x, eps = torch.rand(256, 28), torch.randn(256, 16)
    threads = torch.get_num_threads()
    try:
        with torch.no_grad():
            torch.set_num_threads(1)
            one = model.step(x, None, eps)
            torch.set_num_threads(2)
            torch.testing.assert_close(model.step(x, None, eps), one)
    finally:
        torch.set_num_threads(threads)


# ---- stale weights


def _adam(model: VRNN, **options: Any) -> None:
    train(model, torch.optim.Adam(model.parameters(), lr=1e-2, **options))


def train(model: VRNN, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(2):
        optimizer.zero_grad()
        with torch.enable_grad():
            model(torch.rand(4, 2, X, dtype=torch.float64)).loss.backward()
        optimizer.step()


def each(change: Callable[[nn.Parameter], object]) -> Callable[[VRNN], None]:
    def apply(model: VRNN) -> None:
        for p in model.parameters():
            change(p)

    return apply


def set_data(p: nn.Parameter) -> None:
    """Twice, so that the second may come to lie where the first was."""
    p.data = p.data * 0.5
    p.data = p.data * 0.5


def other_strides(model: VRNN) -> None:
    """The same memory, read the other way."""
    weight = model.enc[2].weight
    weight.data = weight.data.t()


def numpy_view(p: nn.Parameter) -> None:
    p.detach().numpy()[:] *= 0.5


def replace_parameter(model: VRNN) -> None:
    model.enc_mean.weight = nn.Parameter(model.enc_mean.weight.detach() * 0.5)


def replace_module(model: VRNN) -> None:
    model.enc_mean = nn.Linear(H, Z, dtype=torch.float64)


def replace_inner_module(model: VRNN) -> None:
    model.enc[2] = nn.Linear(H, H, dtype=torch.float64)


def load(model: VRNN) -> None:
    model.load_state_dict({k: v * 0.5 for k, v in model.state_dict().items()})


def assign(model: VRNN) -> None:
    model.load_state_dict({k: v * 0.5 for k, v in model.state_dict().items()}, assign=True)


def there_and_back(model: VRNN) -> None:
    model.float()
    model.double()


def parametrized(model: VRNN) -> None:
    parametrizations.weight_norm(model.enc[0])
    model.step(torch.rand(1, X, dtype=torch.float64), None)
    with torch.no_grad():
        model.enc[0].parametrizations.weight.original0.mul_(2)


def from_vector(model: VRNN) -> None:
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(vector * 0.5, model.parameters())


CHANGES: dict[str, Callable[[VRNN], None]] = {
    "in place": each(lambda p: p.mul_(0.5)),
    "one element": lambda m: m.enc_mean.bias[1].fill_(3.0),  # a view counts for its base
    "detached": each(lambda p: p.detach().mul_(0.5)),
    "data": each(lambda p: p.data.mul_(0.5)),
    "data of one bias": lambda m: m.enc_mean.bias.data.add_(1),
    "numpy": each(numpy_view),
    "set data": each(set_data),
    "strides": other_strides,
    "parameter": replace_parameter,
    "module": replace_module,
    "inner module": replace_inner_module,
    "load": load,
    "assign": assign,
    "dtype": there_and_back,
    "parametrized": parametrized,
    "vector": from_vector,
    "init": lambda m: nn.init.normal_(m.enc_mean.weight),
    "Adam": _adam,
    "foreach Adam": lambda m: _adam(m, foreach=True),
    "fused Adam": lambda m: _adam(m, fused=True),
    "SGD": lambda m: train(m, torch.optim.SGD(m.parameters(), lr=1e-2)),
    "foreach SGD": lambda m: train(m, torch.optim.SGD(m.parameters(), lr=1e-2, foreach=True)),
}


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_seen(change: str, inference: bool) -> None:
    model, x, eps = build(), torch.rand(2, X, dtype=torch.float64), torch.randn(2, Z, dtype=torch.float64)
    without_gradients = torch.inference_mode if inference else torch.no_grad

    def results(of: VRNN) -> list[Tensor]:
        with without_gradients():
            return [*flat(of.step(x, None, eps)), of(x[None], eps=eps[None]).loss]

    before = results(model)
    with torch.no_grad():
        CHANGES[change](model)
    after = results(model)
    fresh = build()
    if change == "parametrized":
        parametrizations.weight_norm(fresh.enc[0])
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(after, results(fresh), rtol=0, atol=0)
    assert not any(torch.equal(a, b) for a, b in zip(after[:2], before[:2], strict=True))


def test_refresh_after_a_change_that_nobody_counts() -> None:
    model, x, eps = build(), torch.rand(1, X, dtype=torch.float64), torch.randn(1, Z, dtype=torch.float64)
    with torch.no_grad():
        model.step(x, None, eps)
        model.rnn.weight_ih_l0.data[1, 1] += 1
        model.refresh()
        fresh = build()
        fresh.load_state_dict(model.state_dict())
        torch.testing.assert_close(model.step(x, None, eps), fresh.step(x, None, eps), rtol=0, atol=0)


@pytest.mark.parametrize("call", ["forward", "bound", "generate"])
def test_a_batch_of_sequences_sees_every_element(call: str) -> None:
    """As pruning changes them: one row, through data, which torch does not count."""
    model = VRNN(28, 100, 16, likelihood="gaussian")
    x, eps = torch.rand(3, 2, 28), torch.randn(3, 2, 16)

    def results(of: VRNN) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        if call == "generate":
            return of.generate(3, batch_size=2, generator=generator)[0]
        return of(x, eps=eps).nll if call == "forward" else of.bound(x, generator=generator)

    with torch.no_grad():
        for name in [name for name, p in model.named_parameters() if p.dim() > 1]:
            results(model)
            for at in ((37,), (-1, -1)):
                parameter = model.get_parameter(name)
                parameter.data[tuple(min(i, n - 1) for i, n in zip(at, parameter.shape, strict=False))] += 1.0
                assert torch.equal(results(model), results(copy.deepcopy(model))), (name, at)


def test_weights_are_packed_once() -> None:
    model, x = build(), torch.rand(1, X, dtype=torch.float64)
    with torch.no_grad():
        model.step(x, None)
        first = model._reader(model)
        assert isinstance(first, parameters.Reading)
        packed = first.once(cpu._pack, model.spec, thorough=False)
        model.step(x, None)
        model(x[None])
        assert model._reader(model) is first
        assert first.once(cpu._pack, model.spec, thorough=False) is packed
        model.enc_mean.bias.add_(1)
        assert model._reader(model) is first
        assert first.once(cpu._pack, model.spec, thorough=False) is not packed


def test_what_is_packed_ends_with_the_module() -> None:
    def watches() -> int:
        number = torch.ops.vrnn_fast.watch([torch.zeros(1)])
        return int(torch.ops.vrnn_fast.unwatch(number))

    gc.collect()
    before = watches()
    model = build()
    with torch.no_grad():
        model.step(torch.rand(1, X, dtype=torch.float64), None)
        assert watches() == before + 1
        model.enc_mean.bias.add_(1)
        model.step(torch.rand(1, X, dtype=torch.float64), None)
        assert watches() == before + 1
    del model
    gc.collect()
    assert watches() == before


def test_a_dead_module_leaves_no_memory_behind() -> None:
    model = build()
    with torch.no_grad():
        model.step(torch.rand(1, X, dtype=torch.float64), None)
    model.double().float()
    assert model._reader._last is None


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_share_nothing(twin: Callable[[VRNN], VRNN]) -> None:
    model, x, eps = build(), torch.rand(1, X, dtype=torch.float64), torch.randn(1, Z, dtype=torch.float64)
    with torch.no_grad():
        expected = model.step(x, None, eps)
        other = twin(model)
        torch.testing.assert_close(other.step(x, None, eps), expected, rtol=0, atol=0)
        other.enc_mean.bias.add_(1)
        assert not torch.equal(other.step(x, None, eps).kl, expected.kl)
        torch.testing.assert_close(model.step(x, None, eps), expected, rtol=0, atol=0)


def test_a_shallow_copy_reads_its_own_parameters() -> None:
    model, x, eps = build(), torch.rand(1, X, dtype=torch.float64), torch.randn(1, Z, dtype=torch.float64)
    with torch.no_grad():
        expected = model.step(x, None, eps)
        replica = shallow(model)
        replica._modules["enc_mean"] = nn.Linear(H, Z, dtype=torch.float64)
        assert not torch.equal(replica.step(x, None, eps).kl, expected.kl)
        torch.testing.assert_close(model.step(x, None, eps), expected, rtol=0, atol=0)


def test_functional_call_steps_on_what_it_is_given() -> None:
    model, other = build(), build()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
        x, eps = torch.rand(1, 1, X, dtype=torch.float64), torch.randn(1, 1, Z, dtype=torch.float64)
        expected = model(x, eps=eps).nll
        values = dict(other.named_parameters())
        got = torch.func.functional_call(model, values, (x,), {"eps": eps}).nll
        assert torch.equal(got, other(x, eps=eps).nll)
        assert torch.equal(model(x, eps=eps).nll, expected)


def test_a_hook_added_after_the_first_step_raises() -> None:
    model, x = build(), torch.rand(1, X, dtype=torch.float64)
    with torch.no_grad():
        model.step(x, None)
        model.enc[1].register_forward_hook(lambda *_: None)
        with pytest.raises(RuntimeError, match=r"sub-module 'enc\.1' carries a forward or backward hook"):
            model.step(x, None)


def test_a_child_added_after_the_first_step_raises() -> None:
    model, x = build(), torch.rand(1, X, dtype=torch.float64)
    with torch.no_grad():
        model.step(x, None)
        model.enc.append(nn.ReLU())
        with pytest.raises(RuntimeError, match="sub-module 'enc' has 5 children, was made with 4"):
            model.step(x, None)


def test_a_shape_changed_through_data_raises() -> None:
    model, x = build(), torch.rand(1, X, dtype=torch.float64)
    with torch.no_grad():
        model.step(x, None)
        model.enc_mean.weight.data = torch.zeros(Z + 1, H, dtype=torch.float64)
        with pytest.raises(ValueError, match=r"parameter enc_mean\.weight must have shape \(3, 18\), got \(4, 18\)"):
            model.step(x, None)


def test_a_model_born_in_inference_mode_steps() -> None:
    with torch.inference_mode():
        model = build()
        x, eps = torch.rand(1, X, dtype=torch.float64), torch.randn(1, Z, dtype=torch.float64)
        before = model.step(x, None, eps)
        model.enc_mean.bias.add_(1)
        assert not torch.equal(model.step(x, None, eps).kl, before.kl)


def test_frozen_weights_need_no_gradients() -> None:
    model, x = build().requires_grad_(False), torch.rand(1, X, dtype=torch.float64)
    assert launched(lambda: model.step(x, None)) == {"step": 1}
    model.enc_mean.bias.requires_grad_()
    assert launched(lambda: model.step(x, None)) == {"forward": 1}
    assert model.step(x, None).kl.requires_grad


def test_threads_may_share_a_module() -> None:
    """One thread changes the weights between two values while others step: every result is that of one or the other."""
    model, x, eps = build(), torch.rand(1, X, dtype=torch.float64), torch.randn(1, Z, dtype=torch.float64)
    bias, failures, done = model.prior_mean.bias, [], threading.Event()
    with torch.no_grad():
        expected = []
        for value in (0.0, 1.0):
            bias.fill_(value)
            expected.append(model.step(x, None, eps).kl.item())

    def step() -> None:
        with torch.no_grad():
            while not done.is_set():
                if model.step(x, None, eps).kl.item() not in expected:
                    failures.append("mixed")

    threads = [threading.Thread(target=step) for _ in range(3)]
    for thread in threads:
        thread.start()
    with torch.no_grad():
        for i in range(300):
            model.prior_mean.bias = nn.Parameter(torch.full((Z,), float(i % 2), dtype=torch.float64))
    done.set()
    for thread in threads:
        thread.join()
    assert not failures


def test_compiled_steps_see_new_weights() -> None:
    torch._dynamo.reset()
    model, x, eps = build(), torch.rand(1, X, dtype=torch.float64), torch.randn(1, Z, dtype=torch.float64)
    compiled = torch.compile(lambda x, eps: tuple(model.step(x, None, eps)[:3]), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(x, eps), tuple(model.step(x, None, eps)[:3]))
            for p in model.parameters():
                p.mul_(0.5)


# ---- the operators


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_opcheck(cell: str) -> None:
    spec = CellSpec(3, 4, 2, cell=cell, phi_x=(5,))
    parameters = [torch.randn(p.shape) for p in spec.parameters()]
    number = cpu._number(spec)
    state = [torch.randn(1, 2, 4) for _ in range(spec.state_tensors)]
    torch.library.opcheck(
        torch.ops.vrnn_fast.pack.default, (parameters, number), test_utils=("test_schema", "test_faketensor")
    )
    packed = operators.Packed(number, parameters)
    for want_raw in (False, True):
        arguments = (packed.weights, number, torch.rand(2, 3), torch.randn(2, 2), state, want_raw)
        torch.library.opcheck(torch.ops.vrnn_fast.step.default, arguments)


def test_operators_refuse_what_would_leave_their_memory() -> None:
    spec = CellSpec(3, 4, 2)
    parameters = [torch.randn(p.shape) for p in spec.parameters()]
    number, step = cpu._number(spec), torch.ops.vrnn_fast.step
    packed = operators.Packed(number, parameters).weights
    x, eps, state = torch.rand(2, 3), torch.randn(2, 2), [torch.randn(1, 2, 4)]
    step(packed, number, x, eps, state, True)
    for arguments, message in (
        ((packed[:-1], number, x, eps, state, True), "packed must have shape"),
        ((packed.double(), number, x, eps, state, True), "packed must be float32"),
        ((torch.full_like(packed, 7.0), number, x, eps, state, True), "not packed for this program"),
        ((torch.full_like(packed, float("nan")), number, x, eps, state, True), "not packed for this program"),
        ((packed, -1, x, eps, state, True), "there is no program -1"),
        ((packed, number, x[:, :2], eps, state, True), r"x must have shape \(2, 3\)"),
        ((packed, number, x, eps[:1], state, True), r"eps must have shape \(2, 2\)"),
        ((packed, number, x, eps, [], True), "state must be 1 tensors, got 0"),
        ((packed, number, x, eps, [state[0][:, :1]], True), r"state must have shape \(1, 2, 4\)"),
    ):
        with pytest.raises(RuntimeError, match=message):
            step(*arguments)
    with pytest.raises(RuntimeError, match="parameters, got 1"):
        torch.ops.vrnn_fast.pack(parameters[:1], number)
    with pytest.raises(ValueError, match=r"parameter 0 must be \(2, 7\), got \(1, 7\)"):
        torch.ops.vrnn_fast.pack([p[:1] for p in parameters], number)
    for operator, rest in ((torch.ops.vrnn_fast.unchanged, (True,)), (torch.ops.vrnn_fast.unwatch, ())):
        with pytest.raises(RuntimeError, match="there is no watch -1"):
            operator(-1, *rest)
