"""A GPU executor proves itself where it runs: ``auto`` takes it after a trial on that very device, and says why not.

The trial (:mod:`.trial`) runs in a process of its own, so that a kernel that computes nonsense, hangs or crashes costs
a minute and a line. Its verdict is kept on disk for this version of the package, device, driver and executor; processes
that start together wait for the one of them that tries. ``VRNN_FAST_VERIFY=0`` turns it off: what was not tried is then
not taken.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import platform
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..replacing import replacing
from .cache import cache_directory
from .cuda import nvrtc
from .trial import Finding

VARIABLE = "VRNN_FAST_VERIFY"
START, SILENCE = 120.0, 60.0  # seconds without a word, until it has begun and from then on, after which it hangs
_LOG = logging.getLogger("vrnn_fast")


@dataclass(frozen=True)
class Verdict:
    """The result of a trial.

    Attributes:
        reason: why the executor is not trusted; None if it is.
        shares: the largest error of each structure, as a share of what the law allows.
        refused: why the executor refuses a structure, for those that it does.
    """

    executor: str
    where: Mapping[str, str]  # the device, and the versions of all that it stands on
    reason: str | None
    shares: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def as_json(self) -> str:
        """Write what :func:`remembered` reads, and what can be sent as a record."""
        return json.dumps(asdict(self), indent=1)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def distrusted(executor: str, device: torch.device) -> str | None:
    """Return None if the executor has proven itself on this device, else why ``auto`` does not take it."""
    return _distrusted(executor, str(device))


@lru_cache(maxsize=64)
def _distrusted(executor: str, device: str) -> str | None:
    if os.environ.get(VARIABLE) == "0":
        return f"{VARIABLE}=0 turned off the trial on this device that it must pass first"
    verdict = verified(executor, torch.device(device))
    return None if verdict.reason is None else f"it did not pass its trial on this device: {verdict.reason}"


def verified(executor: str, device: torch.device, *, again: bool = False) -> Verdict:
    """Return the verdict on the executor's trial on this device: the one on disk, or, if there is none or ``again``, of
    a new one."""
    where = surroundings(device)
    key = hashlib.sha256(json.dumps([executor, where]).encode()).hexdigest()[:16]
    folder = cache_directory() / "verified"
    folder.mkdir(exist_ok=True)
    path = folder / f"{executor}_{key}.json"
    with (folder / f"{key}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the ranks of a node: one tries, the others wait for what it finds
        verdict = None if again else remembered(path)
        if verdict is None:
            if not again:
                _LOG.warning(
                    "trying backend %r on %s, once, which takes about a minute; %s=0 leaves it out",
                    *(executor, where["device"], VARIABLE),
                )
            verdict = attempt(executor, f"vrnn_fast.executors.{executor}", device, where)
            with replacing(path) as file:
                file.write(verdict.as_json().encode())
    return verdict


def remembered(path: Path) -> Verdict | None:
    """Read the verdict in a file; None if there is none that can be read."""
    try:
        return Verdict(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def surroundings(device: torch.device) -> dict[str, str]:
    """Return all that a verdict depends on."""
    found = {"device": _processor(), "driver": "none"}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["device"] = f"{properties.name} (sm_{properties.major}{properties.minor})"
        found["driver"] = str(getattr(torch._C, "_cuda_getDriverVersion", lambda: "unknown")())
    packages = {"vrnn_fast": _version("vrnn-fast"), "torch": torch.__version__, "triton": _version("triton")}
    packages["nvrtc"] = ".".join(map(str, nvrtc.version())) if nvrtc.library() else "not installed"
    return found | packages | {"python": platform.python_version(), "sources": _digest()}


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@lru_cache(maxsize=1)
def _digest() -> str:
    """Digest all that makes a kernel: a checkout changes without a new version."""
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(path for folder in (package, package.parent / "csrc") for path in folder.rglob("*")):
        if path.suffix in (".py", ".so", ".h", ".cu") and path.parent.name != "training":
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def attempt(
    executor: str, module: str, device: torch.device, where: Mapping[str, str], silence: float = SILENCE
) -> Verdict:
    """Try the executor that a module is, in a process of its own, which is ended after ``silence`` seconds without a
    word."""
    begin = time.perf_counter()
    found: list[Finding] = []
    command = [sys.executable, "-m", f"{__package__}.trial", module, str(device)]
    environment = os.environ | {VARIABLE: "0"}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as child,
    ):
        try:
            reason = _listen(child, found, silence)
        finally:
            child.kill()
        if reason == "":
            errors.seek(0)
            last = errors.read().strip().rpartition("\n")[2]
            reason = f"its process ended with status {child.wait()}" + (f": {last[:300]}" if last else "")
    shares = {finding.name: finding.share for finding in found if finding.refused is None}
    refused = {finding.name: finding.refused for finding in found if finding.refused is not None}
    return Verdict(executor, where, reason, shares, refused, round(time.perf_counter() - begin, 1))


def _listen(child: subprocess.Popen[str], found: list[Finding], silence: float) -> str | None:
    """Collect what the child finds. None when all is right, "" when the child ended before it was done, else what is
    wrong."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    patience, at = START, ""
    while True:
        try:
            line = lines.get(timeout=patience)
        except queue.Empty:
            where = f"in {at}" if at else "before it began"
            return f"it said nothing for {patience:.0f} s {where}, and was ended"
        if line is None:
            child.wait()
            return ""
        if not line.startswith("{"):
            continue
        said, patience = json.loads(line), silence
        if said == {"done": True}:
            return None
        if "at" in said:
            at = said["at"]
        else:
            found.append(Finding(**said))
            if found[-1].wrong:
                return f"{found[-1].name}: {found[-1].wrong[0]}"
