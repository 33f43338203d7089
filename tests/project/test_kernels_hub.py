"""A package in the layout of the kernels hub: loaded from a folder, beside the installed one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from csrc.hub.build import LAYERS, ForeignImportError, build, digest, modules
from vrnn_fast.executors.cpu import operators

pytestmark = pytest.mark.skipif(operators.load() is not None, reason=str(operators.load()))
ROOT = Path(__file__).parents[2]

# As the hub's loader does: by a file, under the name that the metadata gives, and with the installed package hidden
PROGRAM = """
import importlib.util, json, sys
from pathlib import Path

import torch

folder = Path(sys.argv[1])
about = json.loads((folder / "metadata.json").read_text())

def loaded(name, file):
    spec = importlib.util.spec_from_file_location(name, file)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def trained(package):
    torch.manual_seed(0)
    model = package.VRNN(5, 17, 3, likelihood="gaussian", backend="cpu")
    out = model(torch.randn(6, 4, 5))
    out.loss.backward()
    step = model.step(torch.randn(4, 5), model.new_state(4))
    return [out.loss, out.nll, out.kl, *(p.grad for p in model.parameters()), step.nll]

sys.modules["vrnn_fast"] = None
(folder / "model.py").rename(folder / "hidden.py")
try:
    loaded("broken", folder / "vrnn_fast" / "__init__.py")
except ModuleNotFoundError:
    assert about["id"] not in sys.modules
else:
    raise AssertionError("it loaded without a model")
(folder / "hidden.py").rename(folder / "model.py")
hub = loaded(about["id"], folder / "__init__.py")
alone = trained(hub)
del sys.modules["vrnn_fast"]
inner = loaded("other_loader", folder / "vrnn_fast" / "__init__.py")
assert inner.VRNN is hub.VRNN

import vrnn_fast
from vrnn_fast.executors.cpu.operators import launch_counts

assert not any(launch_counts().values())
for one, other in zip(alone, trained(vrnn_fast), strict=True):
    assert torch.equal(one, other)
assert launch_counts() == hub.launch_counts()
assert torch.ops.vrnn_fast.forward.default is not getattr(torch.ops, about["id"]).forward.default
"""


def test_it_is_what_the_hub_asks_for_and_computes_what_the_installed_package_computes(tmp_path: Path) -> None:
    package = build(tmp_path, portable=False)
    about = json.loads((package / "metadata.json").read_text())
    assert re.fullmatch(r"_vrnn_fast_cpu_[0-9a-f]{10}", about["id"])
    assert {"id", "name", "version", "license", "python-depends", "backend"} == set(about)
    assert package.parent == tmp_path / "build"
    assert re.fullmatch(r"torch-stable-abi210-cpu-\w+-linux", package.name)
    assert [path.name for path in package.glob("*.so")] == [f"{about['id']}.abi3.so"]
    assert f'"{about["id"]}"' in (package / "_ops.py").read_text()
    subprocess.run([sys.executable, "-c", PROGRAM, package], check=True, cwd=ROOT)
    command = [sys.executable, "-c", "import vrnn_fast; print(vrnn_fast.__file__, vrnn_fast.VRNN(5, 17, 3).explain())"]
    environment = os.environ | {"PYTHONPATH": str(package)}
    said = subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout
    assert said.startswith(f"{package / 'vrnn_fast' / '__init__.py'} cpu: ")


def test_another_way_to_compile_has_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("CXX", "CXXFLAGS", "LDFLAGS"):
        monkeypatch.delenv(variable, raising=False)
    names = {digest({})}
    for variable, value in (("CXX", "gcc"), ("CXXFLAGS", "-O2"), ("LDFLAGS", "-s")):
        monkeypatch.setenv(variable, value)
        names.add(digest({}))
    assert len(names) == 4
    monkeypatch.setenv("LDFLAGS", f"{ROOT}/build/glibc.o")
    here = digest({})
    monkeypatch.setenv("LDFLAGS", "/build/glibc.o")
    assert digest({}) == here, "it depends on where the checkout lies"


@pytest.mark.parametrize("line", ["import numpy", "from vrnn_fast.cell import spec", "from .nowhere import nothing"])
def test_no_other_import_enters_a_package(tmp_path: Path, line: str) -> None:
    for name in ("cell", "likelihoods"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "likelihoods" / "__init__.py").write_text(f"def late():\n    {line}\n")
    with pytest.raises(ForeignImportError, match=r"__init__.py, line 2, imports|no module likelihoods.nowhere"):
        modules((tmp_path, *LAYERS))
