"""Speech to learn from: recordings that Debian ships, fetched when they are wanted, or voices that are computed."""

from __future__ import annotations

import shutil
import subprocess
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile
from numpy.typing import NDArray

from vrnn_fast.data import DataError

from .fetching import cache, fetching

PACKAGE, SPEAKER = "asterisk-core-sounds-en-wav", "en_US_f_Allison"
DITHER = 0.01  # of the deviation of all samples
_RATE = 8000
_WITHOUT = "silence"  # a folder of it


def fetched() -> Path:
    """Return a folder of the recordings, kept in the user's cache: some 570 prompts of one voice, 26 minutes.

    Noise of :data:`DITHER` is in them, for one frame in ten is all but digital silence, whose density has no bound.

    Raises:
        DataError: apt cannot fetch the package here, or it holds something else.
    """
    folder = cache() / "speech"
    if folder.exists():
        return folder
    with TemporaryDirectory() as place:
        with fetching(PACKAGE, "a folder"):
            subprocess.run(["apt-get", "download", PACKAGE], cwd=place, check=True, capture_output=True, text=True)
            (archive,) = Path(place).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", archive, place], check=True, capture_output=True, text=True)
        found = [p for p in sorted(Path(place).rglob("*.wav")) if SPEAKER in p.parts and _WITHOUT not in p.parts]
        if len(found) < 500:
            raise DataError(f"{PACKAGE} holds {len(found)} recordings of {SPEAKER}, expected more than 500")
        voices = {f"{path.parent.name}-{path.stem}".removeprefix(f"{SPEAKER}-"): _read(path) for path in found}
    _write(voices, folder)
    return folder


def generated(folder: Path, count: int = 60, seconds: float = 2.0) -> Path:
    """Write voices that nobody has: pulses of a wandering pitch through three wandering resonances."""
    draw = np.random.default_rng(0)
    _write({f"voice{i:03d}": _voice(draw, int(seconds * _RATE)) for i in range(count)}, folder)
    return folder


def _read(path: Path) -> NDArray[np.float64]:
    samples, rate = soundfile.read(path)
    if rate != _RATE or samples.ndim != 1:
        raise DataError(f"{path.name} of {PACKAGE} has {rate} samples per second, expected {_RATE} on one channel")
    return np.asarray(samples)


def _write(voices: dict[str, NDArray[np.float64]], folder: Path) -> None:
    """Write them with their noise, all or nothing."""
    deviation = np.sqrt(np.mean(np.concatenate([v**2 for v in voices.values()])))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as place:
        for name, samples in voices.items():
            noise = np.random.default_rng(zlib.crc32(name.encode())).normal(scale=DITHER * deviation, size=len(samples))
            soundfile.write(Path(place, f"{name}.wav"), np.clip(samples + noise, -1, 1), _RATE, subtype="PCM_16")
        shutil.copytree(place, folder)


def _voice(draw: np.random.Generator, samples: int) -> NDArray[np.float64]:
    def wander(low: float, high: float) -> NDArray[np.float64]:
        knots = draw.uniform(low, high, 2 + samples // 1000)
        return np.interp(np.linspace(0, len(knots) - 1, samples), np.arange(len(knots)), knots)

    phase = np.cumsum(wander(80, 220) / _RATE)
    source = np.diff(np.floor(phase), prepend=0.0) + 0.02 * draw.normal(size=samples)
    for low, high in ((250, 900), (900, 2200), (2200, 3400)):
        angles, radius = 2 * np.pi * wander(low, high) / _RATE, 0.97
        first = second = 0.0
        found = np.empty(samples)
        for t, (value, angle) in enumerate(zip(source, np.cos(angles), strict=True)):
            first, second = value + 2 * radius * angle * first - radius**2 * second, first
            found[t] = first
        source = found / np.abs(found).max()
    loudness = np.clip(wander(-0.4, 1), 0, 1)
    return 0.5 * source * loudness
