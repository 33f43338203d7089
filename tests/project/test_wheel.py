"""What ``make wheel`` links into the extensions, so that they load wherever glibc is 2.28 or later."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import pytest

from csrc.wheel.audit import LIMITS, PortabilityError, audit, latest

ROOT = Path(__file__).parents[2]
GLIBC = tuple(map(int, platform.libc_ver()[1].split(".")))
# What the extensions ask of libstdc++ and glibc, and what libstdc++ asks of glibc for it
USES = """
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <exception>
#include <fstream>
#include <memory>
#include <mutex>
#include <random>
#include <sstream>
#include <vector>
extern "C" double uses(const char* name) {
    static std::once_flag once;
    std::call_once(once, [] {});
    std::ostringstream said;
    said << std::ifstream(name).rdbuf() << std::random_device()();
    const auto failure = std::make_shared<std::exception_ptr>(std::current_exception());
    std::vector<double> found(std::strlen(name));
    return std::exp(std::atof(name)) + std::log(std::atof(name)) + said.str().size() + found.size() + bool(*failure)
        + bool(dlsym(nullptr, name));
}
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="csrc/wheel is for x86-64")
@pytest.mark.skipif(GLIBC > (2, 36), reason=f"csrc/wheel is for compilers beside glibc 2.36 or older, here is {GLIBC}")
def test_nothing_of_a_wheel_asks_for_a_later_glibc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = (ROOT / "Makefile").read_text()
    flags = re.search(r"(-std=gnu17 .*) -c csrc/wheel/glibc\.c", recipe)
    linking = re.search(r"^LINKED := (.*) -s$", recipe, flags=re.MULTILINE)
    assert flags is not None
    assert linking is not None
    (tmp_path / "uses.cpp").write_text(USES)
    own = tmp_path / "glibc.o"
    source = ROOT / "csrc/wheel/glibc.c"
    subprocess.run(["gcc", *flags[1].split(), "-Wall", "-Werror", "-c", source, "-o", own], check=True)
    library = tmp_path / "uses.so"
    command = ["g++", "-O2", "-fPIC", "-shared", tmp_path / "uses.cpp", "-o", library]
    subprocess.run([*command, own, *linking[1].split()], check=True)
    assert latest(library).keys() == {"GLIBC"}
    audit(library)
    monkeypatch.setitem(LIMITS, "GLIBC", (2, 1, 9))
    with pytest.raises(
        PortabilityError,
        match=r"uses\.so must ask for GLIBC_2\.1\.9 at most, and asks for GLIBC_2\.\d.*, as make wheel and make hub do",
    ):
        audit(library)
