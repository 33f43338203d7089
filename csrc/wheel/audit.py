"""What a library asks of the machine that it meets, and whether every Linux of glibc 2.28 or later has it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

Version = tuple[int, ...]
LIMITS: dict[str, Version] = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11)}  # manylinux_2_28


class PortabilityError(ValueError):
    """A library asks for more than it may."""


def latest(library: Path) -> dict[str, Version]:
    """Find the latest version that a library asks for of each of :data:`LIMITS` that it asks for."""
    command = ["readelf", "--version-info", "--wide", str(library)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Version] = {}
    for name, number in re.findall(rf"Name: ({'|'.join(LIMITS)})_([\d.]+)", said):
        found[name] = max(found.get(name, ()), tuple(map(int, number.split("."))))
    return found


def audit(library: Path) -> None:
    """Do nothing if a library loads wherever glibc is 2.28 or later.

    Raises:
        PortabilityError: it asks for something later.
    """
    for name, version in latest(library).items():
        if version > LIMITS[name]:
            asked, most = (f"{name}_{'.'.join(map(str, v))}" for v in (version, LIMITS[name]))
            raise PortabilityError(
                f"{library.name} must ask for {most} at most, and asks for {asked}: link csrc/wheel/glibc.c and "
                "libstdc++.a into it, as make wheel and make hub do"
            )
