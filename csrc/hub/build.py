"""Write the kernels of the CPU as a folder that a hub of kernels takes, and that loads without installation.

``make hub`` makes ``build/hub/build/<variant>/``: the modules that package/__init__.py here stands on, those of
package/ in the place of vrnn_fast's, and the operators, in a namespace that no other build has. It refuses an import of
anything but the package itself, torch and Python's own library, and operators that ask for a later glibc than the hub's
machines have: ``python -m csrc.hub.build`` by itself links nothing against that.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from csrc.wheel.audit import audit

ROOT = Path(__file__).parents[2]
LAYERS = (ROOT / "csrc" / "hub" / "package", ROOT / "vrnn_fast")  # a module is that of the first that has it
WRITTEN = "_ops"
NAME = "vrnn-fast"
MACHINE = sysconfig.get_platform().removeprefix("linux-")  # that setup.py compiles for
VARIANT = f"torch-stable-abi210-cpu-{MACHINE}-linux"

OPS = '''"""The operators of this build. Written by csrc/hub/build.py."""

from pathlib import Path

import torch

NAMESPACE = "{name}"
LIBRARY = Path(__file__).with_name("{name}.abi3.so")

ops = torch.ops.{name}


def add_op_namespace_prefix(op_name: str) -> str:
    """Name an operator as torch does."""
    return f"{{NAMESPACE}}::{{op_name}}"
'''

INNER = '''"""The package in the folder above, for loaders that look for it under its own name.

Written by csrc/hub/build.py.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

if "{name}" not in sys.modules:
    _spec = spec_from_file_location("{name}", Path(__file__).parents[1] / "__init__.py")
    sys.modules["{name}"] = module_from_spec(_spec)
    try:
        _spec.loader.exec_module(sys.modules["{name}"])
    except BaseException:
        del sys.modules["{name}"]
        raise
globals().update((name, getattr(sys.modules["{name}"], name)) for name in sys.modules["{name}"].__all__)
'''


class ForeignImportError(ValueError):
    """A module imports what a package of the hub may not."""


def found(module: str, layers: tuple[Path, ...] = LAYERS) -> tuple[Path, Path] | None:
    """Find the file of a module, "" for the package itself: the layer that has it, and its path there."""
    path = Path(*module.split(".")) if module else Path()
    for layer in layers:
        for relative in (path / "__init__.py", path.with_suffix(".py") if module else path):
            if (layer / relative).is_file():
                return layer, relative
    return None


def modules(layers: tuple[Path, ...] = LAYERS) -> dict[str, tuple[Path, Path]]:
    """Find all that the package stands on.

    Raises:
        ForeignImportError: one of them imports anything else.
    """
    reached: dict[str, tuple[Path, Path]] = {}
    waiting = [""]
    while waiting:
        module = waiting.pop()
        place = found(module, layers)
        if module in reached or module == WRITTEN:
            continue
        if place is None:
            raise ForeignImportError(f"there is no module {module} in {' or '.join(layer.name for layer in layers)}")
        reached[module] = place
        waiting += _imported(module, *place, layers)
        waiting += [module.rpartition(".")[0]]
    return reached


def _imported(module: str, layer: Path, relative: Path, layers: tuple[Path, ...]) -> Iterator[str]:
    """List the modules of the package that one of them imports."""
    parts = module.split(".") if module else []
    here = parts if relative.name == "__init__.py" else parts[:-1]
    for node in ast.walk(ast.parse((layer / relative).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            way = [*here[: len(here) - node.level + 1], *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                inner = ".".join([*way, alias.name])
                yield inner if found(inner, layers) else ".".join(way)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                if name.partition(".")[0] not in {"torch", *sys.stdlib_module_names}:
                    raise ForeignImportError(
                        f"{layer.name}/{relative}, line {node.lineno}, imports {name}; a package of the hub may "
                        "import itself, by relative names, torch, and Python's own library"
                    )


def toolchain() -> list[str]:
    """List what else makes a build: for which machine, by which compiler, with which flags and headers."""
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    about = subprocess.run([*compiler, "--version"], check=True, capture_output=True, text=True).stdout
    flags = [os.environ.get(name, "").replace(str(ROOT), "") for name in ("CXXFLAGS", "LDFLAGS")]
    return [MACHINE, about, *flags, version("torch")]


def digest(contents: dict[Path, bytes]) -> str:
    """Digest all that makes a build, so that two builds have one name if they are the same."""
    made = hashlib.sha256("\0".join(toolchain()).encode())
    folders = (ROOT / "csrc" / name for name in ("core", "cpu", "torch", "wheel"))
    sources = [ROOT / "setup.py", *(p for folder in folders for p in folder.rglob("*.*") if p.suffix != ".pyc")]
    for path, content in sorted(contents.items()) + [(p, p.read_bytes()) for p in sorted(sources)]:
        made.update(f"{path.name} {len(content)} ".encode() + content)
    return made.hexdigest()[:10]


def compiled(name: str, to: Path, *, portable: bool) -> None:
    """Compile the operators in the namespace of that name. Objects of the kernels are those of the package's build."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", folder]
        subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"VRNN_FAST_NAMESPACE": name})
        for own in ROOT.glob(f"build/*/ninja/{name}"):
            shutil.rmtree(own)
        library = Path(folder, "vrnn_fast", "_ops.so")
        if portable:
            audit(library)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library, to)


def build(to: Path, variant: str = VARIANT, *, portable: bool = True) -> Path:
    """Write the package of a variant, and return its folder.

    Args:
        portable: whether it must load on every machine of the hub, which has glibc 2.28 or later.

    Raises:
        ForeignImportError: a module imports what it may not.
        PortabilityError: the operators ask for something later.
    """
    contents = {relative: (layer / relative).read_bytes() for layer, relative in modules().values()}
    name = f"_vrnn_fast_cpu_{digest(contents)}"
    about = {"id": name, "name": NAME, "version": 1, "license": "Apache-2.0", "python-depends": []}
    contents[Path(f"{WRITTEN}.py")] = OPS.format(name=name).encode()
    contents[Path(NAME.replace("-", "_"), "__init__.py")] = INNER.format(name=name).encode()
    contents[Path("metadata.json")] = json.dumps(about | {"backend": {"type": "cpu"}}, indent=2).encode()
    folder = to / "build" / variant
    shutil.rmtree(folder, ignore_errors=True)
    compiled(name, folder / f"{name}.abi3.so", portable=portable)
    for relative, content in contents.items():
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        (folder / relative).write_bytes(content)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the CPU's kernels as a folder that a hub of kernels takes.")
    parser.add_argument("to", type=Path, help="where build/<variant>/ is written")
    parser.add_argument("--variant", default=VARIANT, help="as the hub names it, default %(default)s")
    arguments = parser.parse_args()
    print(build(arguments.to, arguments.variant))
