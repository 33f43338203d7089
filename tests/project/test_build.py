"""What the build promises: one operator library for every torch from 2.10 on, and for every processor of its family."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from setuptools.config.pyprojecttoml import load_file

from vrnn_fast.executors.cpu import operators
from vrnn_fast.ops import LIBRARY

ROOT = Path(__file__).parents[2]
OPS = LIBRARY
NATIVE = sorted(OPS.parent.glob("_native.*"))
TORCH_2_10 = "0x020a000000000000"

on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="this processor has one build of the kernels")


def output(*command: str, stdin: str = "") -> str:
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True).stdout


def undefined_symbols(library: Path, weak: bool = True) -> set[str]:
    """Return what a library must find elsewhere and, where ``weak``, what it does without."""
    found = (line.split() for line in output("nm", "-D", "--undefined-only", str(library)).splitlines())
    return {name for kind, name in found if weak or kind != "w"}


def test_what_was_built_loads() -> None:
    """Else the suites of what it holds would skip, and nobody would notice."""
    assert operators.load() is None
    assert not NATIVE or importlib.import_module("vrnn_fast._native").features()


def test_operators_use_only_the_stable_abi_of_torch_2_10() -> None:
    """The preprocessor obeys the guards in torch's own headers: what it leaves for a target is that version's ABI."""
    declarations = output(
        *shlex.split(os.environ.get("CXX", "g++")),
        *("-E", "-P", "-x", "c++", f"-DTORCH_TARGET_VERSION={TORCH_2_10}"),
        *("-I", str(Path(torch.__file__).parent / "include"), "-"),
        stdin="#include <torch/csrc/stable/c/shim.h>\n",
    )
    stable = set(re.findall(r"\b((?:aoti|torch)_\w+)\s*\(", declarations))
    used, needed = (
        {name for name in undefined_symbols(OPS, weak) if re.match("aoti_|torch_", name)} for weak in (True, False)
    )
    assert "torch_library_impl" in needed
    assert needed <= stable, f"not in libtorch 2.10: {sorted(needed - stable)}"
    assert used - needed == {"torch_from_blob"}, "csrc/torch/recycled.h does without it"


@pytest.mark.parametrize("library", [OPS, *NATIVE], ids=lambda path: path.name)
def test_no_torch_class_is_linked(library: Path) -> None:
    """A mangled name of torch's C++ would tie the library to one torch version."""
    mangled = {n for n in undefined_symbols(library) if re.match(r"_Z\w*?(2at|3c10|5torch|5caffe)", n)}
    assert not mangled


def test_operators_do_not_depend_on_a_python_version() -> None:
    assert not {n for n in undefined_symbols(OPS) if re.match(r"_?Py[A-Z_]", n)}


@on_x86
@pytest.mark.parametrize("library", [OPS, *NATIVE], ids=lambda path: path.name)
def test_wide_instructions_stay_in_the_builds_chosen_by_cpuid(library: Path) -> None:
    """One inline function shared between builds, merged by the linker, would crash an older processor.

    So would an initialiser, which runs before anybody has asked the processor.
    """
    function, leaks = "", set()
    for line in output("objdump", "-d", "--no-show-raw-insn", str(library)).splitlines():
        if header := re.match(r"[0-9a-f]+ <(.*)>:", line):
            function = header[1]
            chosen = re.search(r"avx(2|512)", function) and not function.startswith("_GLOBAL_")
        elif re.match(r"\s+[0-9a-f]+:\s+v(?!err|erw)", line) and not chosen:
            leaks.add(function)
    assert function
    assert not leaks


@on_x86
def test_loading_leaves_denormal_numbers_alone() -> None:
    """Linking with -ffast-math would flush them to zero in the user's whole process."""
    load = "from vrnn_fast.executors.cpu import operators; operators.load()"
    code = f"import numpy; {load}; assert numpy.float32(1e-40) * numpy.float32(0.5) > 0"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_package_works_without_the_native_module() -> None:
    code = (
        "import sys; sys.modules['vrnn_fast._native'] = None\n"
        "import torch, vrnn_fast\n"
        "model = vrnn_fast.VRNN(3, 5, 2)\n"
        "model(torch.rand(4, 2, 3)).loss.backward()\n"
        "vrnn_fast.backends(), model.explain()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_build_files_keep_their_promises() -> None:
    setup = (ROOT / "setup.py").read_text()
    assert len(setup.splitlines()) < 110
    assert f'"{TORCH_2_10}"' in setup
    build = [ROOT / "setup.py", ROOT / "Makefile", ROOT / "pyproject.toml", *ROOT.glob("csrc/**/*.*")]
    build = [path for path in build if path.suffix != ".pyc"]  # of csrc/hub/build.py, where somebody has run it
    for path in build:
        assert not re.search(r"-march=native|-ffast-math|-Ofast", path.read_text()), path
    for path in (ROOT / "csrc" / "numpy").iterdir():
        assert "torch/" not in path.read_text(), path


def test_a_wheel_is_built_for_each_python_that_the_checkers_hold_us_to() -> None:
    """Those that the classifiers name, from the oldest on."""
    project, tool = (load_file(ROOT / "pyproject.toml")[name] for name in ("project", "tool"))
    named = (re.fullmatch(r"Programming Language :: Python :: 3\.(\d+)", c) for c in project["classifiers"])
    known = [int(found[1]) for found in named if found is not None]
    assert known == list(range(known[0], known[-1] + 1))
    assert tool["cibuildwheel"]["build"].split() == [f"cp3{minor}-*" for minor in known]
    assert project["requires-python"] == f">=3.{known[0]}"
    assert (tool["mypy"]["python_version"], tool["ruff"]["target-version"]) == (f"3.{known[0]}", f"py3{known[0]}")


def test_an_old_setuptools_is_named_with_what_to_do() -> None:
    """It would print a page about the licence's name."""
    requires = load_file(ROOT / "pyproject.toml")["build-system"]["requires"]
    assert "setuptools>=77" in requires
    assert not any(r.startswith("numpy") for r in requires), "nothing of the build uses it"
    code = "import setuptools; setuptools.__version__ = '65.5.1'; exec(open('setup.py').read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "building vrnn_fast needs setuptools 77 or later, found 65.5.1: pip install 'setuptools>=77', then try again"
    ]


def test_the_source_distribution_is_what_builds_and_no_half_of_the_tests(tmp_path: Path) -> None:
    names = output("git", "-C", str(ROOT), "ls-files").splitlines() if (ROOT / ".git").exists() else []
    if not names:
        pytest.skip("not a checkout")
    for name in names:
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run([sys.executable, "setup.py", "-q", "sdist"], cwd=tmp_path, check=True, capture_output=True)
    (archive,) = (tmp_path / "dist").iterdir()
    with tarfile.open(archive) as file:
        found = {name.partition("/")[2] for name in file.getnames()}
    assert not any(name.startswith("tests") for name in found)
    assert {name for name in names if name.startswith(("csrc/", "vrnn_fast/"))} <= found
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE"} <= found
