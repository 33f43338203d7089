"""The recipes of CONTRIBUTING.md: their lists are complete, and those that need no C++ are followed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Laplace, Normal, kl_divergence

from tests.support.foreign import own
from tests.support.likelihoods import ScaledLaplace
from tests.support.oracle import assert_obeys_the_law
from vrnn_fast import VRNN, LayoutError, accelerate, backends, executors, layouts, parameters
from vrnn_fast.acceleration import mirror
from vrnn_fast.cell import spec as cell_spec
from vrnn_fast.cell.spec import ACTIVATIONS, CellSpec
from vrnn_fast.executors import reference
from vrnn_fast.layouts.base import Deviation, Layout, Outcome, Run
from vrnn_fast.layouts.structure import Roles, Structure

ROOT = Path(__file__).parents[2]
TITLES = ("An activation", "A stage", "A likelihood", "A layout", "An executor")


def recipe(title: str) -> list[Path]:
    """The files that a recipe lists."""
    text = (ROOT / "CONTRIBUTING.md").read_text().split(f"\n### {title}\n")[1].split("\n#")[0]
    return [ROOT / path for path in re.findall(r"^- `([^`]+)`: \S", text, flags=re.MULTILINE)]


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from (p for p in sorted((ROOT / folder).rglob("*")) if p.suffix in (".py", ".h", ".cpp"))


def names_all(path: Path, words: tuple[str, ...]) -> bool:
    """Whether a file has each word, leaky_relu as LeakyReLU too."""
    text = path.read_text()
    return all(re.search(rf"\b({word}|{word.replace('_', '')})\b", text, flags=re.IGNORECASE) for word in words)


def relative(paths: Iterator[Path] | list[Path]) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in paths}


@pytest.mark.parametrize("title", TITLES)
def test_every_file_and_folder_of_a_recipe_exists(title: str) -> None:
    files = recipe(title)
    assert len(files) >= 5
    assert [path for path in files if not path.is_file()] == []
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:vrnn_fast|csrc|tests|examples|\.github|\.ci)/[^`]*)`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_recipe_of_an_activation_is_complete() -> None:
    files = recipe("An activation")
    known = ("leaky_relu", "tanh", "elu")  # where identity is, nothing is done
    naming = {path for path in sources("vrnn_fast", "csrc", "bench") if names_all(path, known)}
    listed = {path for path in files if "tests" not in path.relative_to(ROOT).parts}
    assert relative(list(naming)) == relative(list(listed))
    for path in set(files) - listed:
        assert names_all(path, ACTIVATIONS), path


def test_the_recipe_of_a_stage_is_complete() -> None:
    listed = relative(recipe("A stage"))
    python = relative(path for path in sources("vrnn_fast") if names_all(path, ("Activate", "Divergence", "Recur")))
    cpp = relative(
        path
        for path in sources("csrc")
        if all(
            re.search(rf"Op::{op}\b|VRNN_ENCODED\(Op, .*\b{op}\b", path.read_text()) for op in ("add", "recur", "draw")
        )
    )
    assert len(python) > 3
    assert len(cpp) > 2
    assert python | cpp <= listed


def test_a_likelihood_is_added() -> None:
    model = VRNN(3, 8, 2, likelihood=ScaledLaplace(), dtype=torch.float64)
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    out = model(x, outputs=("prediction",))
    assert out.prediction.shape == x.shape
    scale = torch.full_like(x, 0.7)
    known = Laplace(x + 0.3, scale).log_prob(x).sum(-1)
    torch.testing.assert_close(ScaledLaplace().log_prob(torch.cat([x + 0.3, scale.log()], -1), x), known)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    hidden = model(x, mask=torch.zeros(x.shape, dtype=torch.bool))
    assert not hidden.nll.any()
    assert model.generate(6, batch_size=2)[0].shape == (6, 2, 3)
    assert model.bound(x, objective="iwae", num_particles=3).isfinite().all()


def test_the_recipe_of_a_likelihood_is_complete() -> None:
    """Whoever knows two likelihoods that have nothing in common knows all."""
    naming = relative(path for path in sources("vrnn_fast") if names_all(path, ("Categorical", "Gamma")))
    naming |= relative(path for path in sources("tests") if re.search(r"Categorical\((.|\n)*Gamma\(", path.read_text()))
    assert len(naming) > 2
    assert naming <= relative(recipe("A likelihood"))


class Loss(Outcome):
    """What the forward of :class:`own.SequenceModel` returns."""

    @property
    def deviations(self) -> Mapping[str, Deviation]:
        return {"mean": Deviation("its loss is a mean over time steps, so that long sequences count for less")}

    def output(self, run: Run, fix: frozenset[str]) -> dict[str, Tensor]:
        kl = kl_divergence(Normal(run.mean, run.std), Normal(run.prior_mean, run.prior_std)).sum(-1)
        losses = F.binary_cross_entropy_with_logits(run.heads[0], run.x, reduction="none").sum(-1) + kl
        loss = losses.sum(0).mean() if "mean" in fix else losses.mean()
        return {"loss": loss, "logits": run.heads[0].transpose(0, 1)}


class Sequential(Layout):
    def outcomes(self, model: nn.Module, structure: Structure) -> Iterator[Outcome]:
        yield Loss()


ROLES = Roles(
    phi_x="embed",
    phi_z="embed_latent",
    encoder="infer",
    encoder_mean="infer_mu",
    encoder_std="infer_sigma",
    prior="expect",
    prior_mean="expect_mu",
    prior_std="expect_sigma",
    decoder="render",
    decoder_heads=("logits",),
    cell="memory",
)
LAYOUT = Sequential("sequential", "a model of this test", ROLES, batch_first=True)


def test_a_layout_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    model = own.SequenceModel(6, 8, 2).double()
    with pytest.raises(LayoutError, match="no known layout"):
        accelerate(model)
    monkeypatch.setattr(layouts, "LAYOUTS", (*layouts.LAYOUTS, LAYOUT))
    with pytest.warns(UserWarning, match=r"accelerated as layout sequential .* mean: its loss is a mean .* \(kept\)"):
        fast = accelerate(model)
    x, found = torch.rand(3, 5, 6, dtype=torch.float64), []
    for module in (model, fast, accelerate(model, layout="sequential", fix=("mean",))):
        torch.manual_seed(1)
        found.append(module(x))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2]["loss"], 5 * found[0]["loss"])


def test_an_activation_is_added_as_far_as_the_reference_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the files of the recipe that are needed for that, from the first to the mirror."""
    build: Any = partial(VRNN, 6, 8, 2, activation="softsign", backend="reference")
    with pytest.raises(ValueError, match="activation must be one of"):
        build()
    monkeypatch.setattr(cell_spec, "ACTIVATIONS", (*ACTIVATIONS, "softsign"))
    monkeypatch.setitem(reference._ACTIVATIONS, "softsign", F.softsign)
    modules: Any = (parameters._ACTIVATIONS, mirror._ACTIVATIONS)
    monkeypatch.setitem(modules[0], "softsign", nn.Softsign)
    monkeypatch.setitem(modules[1], nn.Softsign, "softsign")
    model = build()
    assert "Softsign()" in str(model)
    model(torch.rand(5, 4, 6)).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    theirs = own.SequenceModel(6, 8, 2)
    for name in ("embed", "embed_latent", "infer", "expect", "render"):
        network = theirs.get_submodule(name)
        for i in range(1, len(cast(nn.Sequential, network)), 2):
            network.register_module(str(i), nn.Softsign())
    monkeypatch.setattr(layouts, "LAYOUTS", (LAYOUT,))
    with pytest.warns(UserWarning, match="accelerated as layout sequential"):
        fast = accelerate(theirs, backend="reference")  # which proves that the numbers are the same
    assert fast(torch.rand(3, 5, 6))["loss"].isfinite()


def test_the_recipe_of_a_layout_is_complete() -> None:
    """Whoever knows one known layout by its module knows the others."""
    knowing = relative(
        path
        for path in sources("vrnn_fast")
        if re.search(r"^from \.\S* import .*\b(deep_features|dynamical_vae)\b", path.read_text(), flags=re.MULTILINE)
    )
    assert knowing
    assert knowing <= relative(recipe("A layout"))


class Counting:
    """The equations once more, and a count of who asked for them."""

    name, verified = "counting", "nothing but this test"

    def __init__(self) -> None:
        self.runs = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return getattr(reference, name)  # unavailable, refuses, launches, step, generate

    def run(self, *arguments: Any, **named: Any) -> Any:
        self.runs += 1
        return reference.run(*arguments, **named)


def test_an_executor_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Counting()
    monkeypatch.setattr(executors, "executors", (*executors.executors, mine))
    monkeypatch.setitem(executors._UNAVAILABLE, mine.name, mine.unavailable())
    assert list(backends())[-1] == mine.name
    x = torch.rand(4, 3, 5)
    model = VRNN(5, 6, 2, backend=mine.name)
    model(x).loss.backward()
    assert mine.runs == 1
    assert mine.name in model.explain()
    VRNN(5, 6, 2)(x)
    assert mine.runs == 1  # the last in order is not chosen unasked
    assert_obeys_the_law(CellSpec(5, 6, 2), 4, 3, [4, 0, 2], executor=mine, dtype=torch.float32, draws=2)
    assert mine.runs > 1


ROWS = """
template <class T>
static void twice(int64_t rows, int64_t width, Matrix<T> target) {
    for (int64_t i = 0; i < rows; ++i)
        for_vectors<T>(width, [&](int64_t j, int64_t n) { store(target[i] + j, T(2) * load(target[i] + j, n), n); });
}
"""
TWICE: dict[str, tuple[tuple[str, str], ...]] = {
    "vrnn_fast/cell/stages.py": (
        ("@dataclass(frozen=True)\nclass Draw:", "@dataclass(frozen=True)\nclass Twice:\n    target: Slice\n\n\n{}"),
        ("| Begin | Normalize\n", "| Begin | Normalize | Twice\n"),
    ),
    "vrnn_fast/cell/partition.py": (
        ("    weigh.extend([*stages, Likelihood(", "    weigh.extend([*stages, Twice(raw), Likelihood("),
        ("    Term,\n", "{}    Twice,\n"),
    ),
    "vrnn_fast/executors/reference.py": (
        ('        return torch.cat(self._network("decoder"', '        return 2 * torch.cat(self._network("decoder"'),
    ),
    "vrnn_fast/cell/encode.py": (
        ("    Term,\n", "{}    Twice,\n"),
        ("    Normalize,\n)\nCELLS", "    Normalize,\n    Twice,\n)\nCELLS"),
        (
            "            case Resample():\n",
            "            case Twice():\n                yield from self._slices(stage.target)\n{}",
        ),
        ("FORMAT = 11", "FORMAT = 12"),
    ),
    "csrc/core/program.h": (
        ("begin, normalize);", "begin, normalize, twice);"),
        ("program_format = 11", "program_format = 12"),
    ),
    "csrc/core/decode.cpp": (("        case Op::add:\n", "        case Op::twice: s.target = slice(); break;\n{}"),),
    "csrc/core/validate.cpp": (("            case Op::resample: break;\n", "{}            case Op::twice: break;\n"),),
    "csrc/core/reach.cpp": (("        case Op::bias:\n", "{}        case Op::twice:\n"),),
    "csrc/cpu/run.h": (
        (
            "        case Op::add: return add_rows<T>(p.rows, s.target.width, p.value(",
            "        case Op::twice: return twice<T>(p.rows, s.target.width, p.value(s.target));\n{}",
        ),
        (
            "        case Op::add: return add_rows<T>(p.rows, s.target.width, p.gradient(",
            "        case Op::twice: return twice<T>(p.rows, s.target.width, p.gradient(s.target));\n{}",
        ),
        ('#include "unpacked.h"\n\nnamespace vrnn::VRNN_ISA {\n', "{}" + ROWS),
    ),
}
"""A stage that doubles what it finds, in the files of the recipe: what stands there, and what comes in its place."""

SOFTSIGN: dict[str, tuple[tuple[str, str], ...]] = {
    "vrnn_fast/cell/spec.py": (('"silu", "gelu"]', '"silu", "gelu", "softsign"]'),),
    "vrnn_fast/executors/reference.py": (('    "identity": lambda', '    "softsign": F.softsign,\n{}'),),
    "vrnn_fast/parameters.py": (('    "identity": nn.Identity', '    "softsign": nn.Softsign,\n{}'),),
    "csrc/core/program.h": (("silu, gelu);", "silu, gelu, softsign);"),),
    "csrc/cpu/stages/activate.h": (
        (
            "        case Activation::elu: return x",
            "        case Activation::softsign: return x / (T(1) + (x < 0 ? -x : x));\n{}",
        ),
        (
            "        case Activation::elu: return y > 0",
            "        case Activation::softsign: return d * (one - (y < 0 ? -y : y)) * (one - (y < 0 ? -y : y));\n{}",
        ),
        (
            "        case Activation::elu: return activate_rows<",
            "        case Activation::softsign: return activate_rows<T, Activation::softsign>(rows, width, x, y);\n{}",
        ),
        (
            "        case Activation::elu: return activate_rows_backward<",
            (
                "        case Activation::softsign:\n"
                "            return activate_rows_backward<T, Activation::softsign>(rows, width, at, dy, dx);\n{}"
            ),
        ),
    ),
}
"""An activation, likewise."""

AGREE = """
import torch
from vrnn_fast import VRNN
for likelihood in ("bernoulli", "gaussian"):
    networks = {"encoder": "softsign", "decoder": "softsign"}
    options = {"likelihood": likelihood, "dtype": torch.float64, "activation": networks}
    ours, right = (VRNN(5, 9, 3, backend=b, **options) for b in ("cpu", "reference"))
    right.load_state_dict(ours.state_dict())
    x, eps = torch.rand(6, 4, 5, dtype=torch.float64).round(), torch.randn(6, 4, 3, dtype=torch.float64)
    found = [m(x, torch.tensor([6, 0, 3, 1]), eps=eps, outputs=("prediction",)) for m in (ours, right)]
    torch.testing.assert_close(found[0].nll, found[1].nll)
    torch.testing.assert_close(found[0].prediction, found[1].prediction)
    for out in found:
        out.loss.backward()
    for p, q in zip(ours.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
print(found[0].nll.sum().item())
"""


def test_a_stage_and_an_activation_are_added_as_far_as_the_cpu_runs_them(tmp_path: Path) -> None:
    """In a copy, compiled for the baseline alone: results and gradients are those of equations that have them, too."""
    pytest.importorskip("ninja", reason="nothing can be built here without ninja")
    if shutil.which("g++") is None:
        pytest.skip("nothing can be built here without g++")
    for folder in ("csrc", "vrnn_fast"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.rmtree(tmp_path / "csrc" / "numpy")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    assert TWICE.keys() <= relative(recipe("A stage"))
    assert SOFTSIGN.keys() <= relative(recipe("An activation"))
    for name, edits in (*TWICE.items(), *SOFTSIGN.items()):
        text = (tmp_path / name).read_text()
        for old, new in edits:
            assert text.count(old) == 1, f"{name} has {old!r} {text.count(old)} times"
            text = text.replace(old, new.replace("{}", old, 1))
        (tmp_path / name).write_text(text)
    run = partial(subprocess.run, cwd=tmp_path, capture_output=True, text=True, check=False)
    baseline = os.environ | {"CXXFLAGS": "-O0", "_PYTHON_HOST_PLATFORM": "linux-any"}
    made = run([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], env=baseline)
    assert (tmp_path / "vrnn_fast" / "_ops.so").is_file(), made.stdout + made.stderr
    found = run([sys.executable, "-c", AGREE], env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert found.returncode == 0, found.stderr
    assert float(found.stdout) > 0
