"""The two extension modules, compiled by ninja: in parallel, and only what changed. Metadata is in pyproject.toml.

``vrnn_fast/_ops.so`` holds the torch operators. It uses nothing but the stable ABI of libtorch 2.10, and no Python at
all, so one build serves every later torch. ``vrnn_fast._native`` is an ordinary pybind11 module without torch; the
package works without it, so its failure is a warning.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from glob import glob
from importlib.util import find_spec
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

OLDEST = 77  # as in pyproject.toml, whose words an older one does not know
if int(setuptools.__version__.partition(".")[0]) < OLDEST:
    found = f"found {setuptools.__version__}: pip install 'setuptools>={OLDEST}', then try again"
    sys.exit(f"building vrnn_fast needs setuptools {OLDEST} or later, {found}")

NAMESPACE = os.environ.get("VRNN_FAST_NAMESPACE", "vrnn_fast")  # of the operators; csrc/hub/build.py asks for another
X86 = sysconfig.get_platform() == "linux-x86_64"  # of _PYTHON_HOST_PLATFORM, where another machine is built for
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror=switch", "-Icsrc"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"] + ["-DVRNN_X86"] * X86
ISA_FLAGS = {  # by the end of a source's name; a baseline source gets none
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma", "-mprefer-vector-width=512"],
}


def isa(source: str) -> str:
    return Path(source).stem.rpartition("_")[2]


def sources(*patterns: str) -> list[str]:
    return sorted(s for p in patterns for s in glob(p) if X86 or isa(s) not in ISA_FLAGS)


def package(name: str) -> Path:
    """Where an installed package lies, without importing it."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise CompileError(f"building needs {name}: install it, then this with pip install --no-build-isolation")
    return Path(spec.submodule_search_locations[0])


class CarrySources(build_py):
    def run(self) -> None:  # CUDA kernels are compiled at first use, where there may be no checkout
        super().run()
        if not self.editable_mode:
            shutil.copytree("csrc/cuda", Path(self.build_lib, "vrnn_fast/executors/cuda/csrc"), dirs_exist_ok=True)


class NinjaBuild(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        if fullname.endswith("_ops"):
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def build_extension(self, ext: Extension) -> None:
        include, link = [sysconfig.get_path("include"), package("pybind11") / "include"], []
        if ext.name.endswith("_ops"):
            torch = package("torch")
            include, link = [torch / "include"], [f"-L{torch / 'lib'}", "-ltorch_cpu"]
        own = [f"-D{name}={value}" for name, value in ext.define_macros]
        own += [flag for path in include for flag in ("-isystem", str(path))]
        folder, target = Path(self.build_temp, "ninja"), Path(self.get_ext_fullpath(ext.name))
        own_folder = folder / NAMESPACE  # kernels know nothing of a namespace
        script = own_folder / f"{ext.name}.ninja"
        cxx = os.environ.get("CXX", "g++")
        lines = [
            f"builddir = {folder}",
            f"rule cxx\n  command = {cxx} $flags -MD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
            f"rule link\n  command = {cxx} $flags -shared $in -o $out " + shlex.join(link).replace("$", "$$"),
        ]
        objects = []
        for source in ext.sources:
            home, extra = (folder, ISA_FLAGS.get(isa(source), [])) if source in KERNELS else (own_folder, own)
            objects.append(f"{home / Path(source).stem}.o")
            command = shlex.join(FLAGS + extra) + " " + os.environ.get("CXXFLAGS", "")
            lines.append(f"build {objects[-1]}: cxx {source}\n  flags = " + command.replace("$", "$$"))
        linking = os.environ.get("LDFLAGS", "").replace("$", "$$")
        lines.append(f"build {own_folder / target.name}: link {' '.join(objects)}\n  flags = {linking}\n")
        own_folder.mkdir(parents=True, exist_ok=True)
        script.write_text("\n".join(lines))
        try:
            subprocess.run([sys.executable, "-m", "ninja", "-f", str(script)], check=True)
        except subprocess.CalledProcessError as error:
            raise CompileError(f"{ext.name}: ninja failed, see above") from error
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(own_folder / target.name), str(target))


KERNELS = sources("csrc/core/*.cpp", "csrc/cpu/*.cpp")  # both modules hold them; they are compiled once
STABLE_ABI = [("TORCH_TARGET_VERSION", "0x020a000000000000"), ("VRNN_FAST_NAMESPACE", NAMESPACE)]
OPS = Extension("vrnn_fast._ops", sources("csrc/torch/*.cpp") + KERNELS, define_macros=STABLE_ABI)
NATIVE = Extension("vrnn_fast._native", sources("csrc/numpy/*.cpp") + KERNELS, optional=True)
BUILT = [OPS] + [NATIVE] * (NAMESPACE == "vrnn_fast")  # whoever names the operators wants no more than them
setup(ext_modules=BUILT, cmdclass={"build_ext": NinjaBuild, "build_py": CarrySources})
