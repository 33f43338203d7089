"""A run as a package, and the C++ program of examples/ that streams with it: built and run as the page says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from tests.support.oracle import Errors
from vrnn_fast import VRNN, GaussianMixture, Likelihood, StudentT, backends, cli
from vrnn_fast.export import OPERATORS, PackagedStep, write_package
from vrnn_fast.training.runs import load_model

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "pages" / "export.md").read_text()
STEPS, X = 12, 3
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="nothing can be built here without g++")


def said(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=status != 0)
    assert result.exit_code == status, result.output
    return " ".join((result.output if status == 0 else str(result.exception)).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LSTM whose initial state is learned, of features far from mean 0 and deviation 1."""
    folder, chance = tmp_path_factory.mktemp("export"), np.random.default_rng(0)
    walks = {f"{part}{i}": chance.normal(3, 50, (9, X)) for part in ("train", "valid", "test") for i in range(4)}
    np.savez(folder / "walks.npz", **walks)
    sizes = ("--model.hidden_size", 17, "--model.latent_size", 4, "--model.cell", "lstm")
    options = ("--model.learn_initial_state", "true", "--epochs", 2, "--threads", 1)
    said("train", folder / "walks.npz", "--data.likelihood", "gaussian", "--run", folder / "run", *sizes, *options)
    return folder / "run"


@pytest.fixture(scope="module")
def package(run: Path) -> Path:
    path = run.parent / "bin" / "walks.pt2"
    words = said("export", run, "--to", path, "--threads", 1)
    beside = {OPERATORS} if backends()["cpu"].available else set()
    assert {p.name for p in path.parent.iterdir()} == {path.name, *beside}
    assert f"written to {path.parent}" in words
    return path


@pytest.fixture(scope="module")
def program(run: Path) -> Path:
    """What the page's commands build."""
    folder = run.parent
    (folder / "examples").symlink_to(ROOT / "examples")
    (commands,) = re.findall(r"```sh\n(TORCH=.*?)\n\./streaming", PAGE, flags=re.DOTALL)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["bash", "-ec", commands], cwd=folder, env=os.environ | {"PATH": path}, check=True)
    return folder / "streaming"


def streamed(program: Path, package: Path, frames: Tensor) -> subprocess.CompletedProcess[str]:
    lines = "".join(",".join(map(str, frame)) + "\n" for frame in frames.tolist())
    return subprocess.run([program, package], input=lines, capture_output=True, text=True, check=False)


def by_python(run: Path, frames: Tensor, backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same with VRNN.step, in the units of the data."""
    model, header = load_model(run, backend)
    model.to(dtype)
    mean, scale = (torch.tensor(header["data"][name], dtype=dtype) for name in ("mean", "scale"))
    torch.manual_seed(0)
    state, found = None, []
    with torch.no_grad():
        for frame in frames.to(dtype):
            eps = torch.randn(1, model.latent_size).to(dtype)
            nll, kl, expected, state = model.step(((frame - mean) / scale).unsqueeze(0), state, eps)
            found.append(torch.cat([nll + kl, expected.mean[0] * scale + mean, expected.std[0] * scale]))
    return parts(torch.stack(found))


def parts(table: Tensor) -> dict[str, Tensor]:
    return {"surprise": table[:, 0], "mean": table[:, 1 : 1 + X], "std": table[:, 1 + X :]}


@needs_compiler
def test_a_stream_without_python_is_that_of_python(run: Path, package: Path, program: Path) -> None:
    frames = 3 + 50 * torch.randn(STEPS, X)
    done = streamed(program, package, frames)
    assert done.returncode == 0, done.stderr
    ours = torch.tensor([[float(word) for word in line.split(",")] for line in done.stdout.splitlines()])
    right, plain = (by_python(run, frames, "reference", dtype) for dtype in (torch.float64, torch.float32))
    errors = Errors(torch.float32)
    errors.add(parts(ours), plain, right)
    errors.assert_at_most_twice_torchs()
    assert right["mean"].std() > 0.01


@needs_compiler
def test_what_goes_wrong_is_said_in_a_line(package: Path, program: Path, tmp_path: Path) -> None:
    def error(path: Path, frames: Tensor) -> str:
        done = streamed(program, path, frames)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: {path}: ")
        return line

    unasked = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (unasked.returncode, unasked.stderr) == (2, "usage: streaming model.pt2 < frames.csv\n")
    frames = torch.zeros(1, X)
    assert f"line 1 must be {X} numbers, got '0.0 0.0'" in error(package, frames[:, :2])
    assert "open failed" in error(tmp_path / "missing.pt2", frames)
    whole = package.read_bytes()
    for path, content in ((tmp_path / "half.pt2", whole[: len(whole) // 2]), (tmp_path / "none.pt2", b"")):
        path.write_bytes(content)
        assert error(path, frames)
    with zipfile.ZipFile(package) as old, zipfile.ZipFile(tmp_path / "old.pt2", "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("_metadata.json"):
                version = torch.__version__.partition("+")[0]
                content = content.replace(f'"torch": "{version}"'.encode(), b'"torch": "1.0"')
            new.writestr(name, content)
    assert "the package is of torch 1.0, this program of" in error(tmp_path / "old.pt2", frames)
    if backends()["cpu"].available:
        shutil.copy(package, tmp_path / "alone.pt2")
        assert f"{OPERATORS} does not load, which lies beside a package" in error(tmp_path / "alone.pt2", frames)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_packaged_step_is_a_step(cell: Any, executor: str) -> None:
    """Of rows that go on and rows that begin, with a conditioning input."""
    options: dict[str, Any] = {"cell": cell, "num_layers": 2, "cond_size": 2, "learn_initial_state": True}
    model = VRNN(X, 8, 2, likelihood=StudentT(), backend=executor, **options)
    mean, scale = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])
    with torch.no_grad():
        model.initial_state.normal_()
        x, eps, cond, begins = torch.randn(4, X), torch.randn(4, 2), torch.randn(4, 2), torch.arange(4) % 2 == 0
        state, new = torch.randn(model.spec.state_parts, 2, 4, 8).unbind(), model.new_state(4)
        new = new if isinstance(new, tuple) else (new,)
        begun = tuple(torch.where(begins.unsqueeze(-1), n, s) for n, s in zip(new, state, strict=True))
        nll, kl, predicted, after = model.step(x, begun if cell == "lstm" else begun[0], eps, cond)
        found = PackagedStep(model, mean.tolist(), scale.tolist())(x * scale + mean, eps, begins, state, cond)
    units = predicted._replace(mean=predicted.mean * scale + mean, scale=predicted.scale * scale)
    expected = (nll, kl, *units, *(after if isinstance(after, tuple) else (after,)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class Undecided(Likelihood):
    """Whose code depends on the data."""

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        return -(raw - x).square().sum(-1) * (2.0 if raw.sum() > 0 else 1.0)

    def mean(self, raw: Tensor) -> Tensor:
        return raw


@needs_compiler
def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    with pytest.raises(ValueError, match=r"a package must be named \.pt2, got .*model\.so"):
        write_package(VRNN(X, 8, 2), tmp_path / "model.so")
    with pytest.raises(ValueError, match=r"likelihood .*Undecided.* cannot be exported: "):
        write_package(VRNN(X, 8, 2, likelihood=Undecided()), path)
    with pytest.raises(ValueError, match="likelihood must be Gaussian or StudentT where x is scaled, got GaussianMix"):
        write_package(VRNN(X, 8, 2, likelihood=GaussianMixture(2)), path, scale=[2.0])
    with pytest.raises(RuntimeError, match="a package runs on the CPU, and the model is on meta"):
        write_package(VRNN(X, 8, 2, device="meta"), path)
    assert not list(tmp_path.iterdir())


def test_a_missing_compiler_is_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    words = said("export", run, "--to", tmp_path / "model.pt2", status=1)
    assert "there is no no-such-compiler: install g++, or name another in CXX" in words


def test_a_table_becomes_a_package_in_its_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pd = pytest.importorskip("pandas", reason="the extra `tables` is not installed")
    pytest.importorskip("sklearn", reason="the extra `tables` is not installed")
    from vrnn_fast.tables import Detector
    from vrnn_fast.training import export

    written: list[Any] = []

    def note(model: VRNN, path: Path, **options: Any) -> dict[str, str]:
        written.append((model.backend, options))
        return {"operators": ""}

    monkeypatch.setattr(export, "write_package", note)
    table = pd.DataFrame(np.random.default_rng(0).normal(5, 2, (64, 2)), columns=["heat", "flow"])
    small = {"updates": 1, "window": 16, "hidden_size": 8, "latent_size": 2}
    Detector(**small).fit(table).save(tmp_path / "run")
    said("export", tmp_path / "run", "--to", tmp_path / "model.pt2", "--backend", "reference", "--batch-size", 2)
    ((backend, options),) = written
    assert (backend, options["batch_size"]) == ("reference", 2)
    trained = table[:-6]  # a tenth is held back for validation
    np.testing.assert_allclose(options["mean"], trained.mean(), rtol=1e-6)
    np.testing.assert_allclose(options["scale"], trained.std(ddof=0), rtol=1e-6)
    Detector(covariates=["flow"], **small).fit(table).save(tmp_path / "told")
    words = said("export", tmp_path / "told", "--to", tmp_path / "model.pt2", status=1)
    assert "was told covariates or uneven time steps" in words
