"""The Bach chorales that the music21 package ships, as piano rolls on a quarter-note grid.

Nothing of the corpus is part of this package: scores are read where music21 installed them, and the rolls are kept
in the user's cache folder.
"""

from __future__ import annotations

import importlib.util
import math
import os
import warnings
import zipfile
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
from numpy.typing import NDArray

from ..replacing import replacing
from .dataset import Contents
from .reading import DataError, NamedSequence, Opened, Part, Source, hash_of

NAME = "chorales"
LOWEST, PITCHES = 21, 88  # the keys of a piano, as MIDI numbers from 21 on
DENSITY = (2.5, 5.0)  # notes per step, on average over a piece: chorales have four voices
MAX_STEPS = 200
_FORMAT = 1  # of the cached file, and of the reading it holds
_SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}

Roll = NDArray[np.bool_]


class Score(NamedTuple):
    """Notes as (start, end, MIDI pitch), times in quarters from the beginning, and the tonic's pitch class."""

    notes: list[tuple[Fraction, Fraction, int]]
    tonic: int


def load(source: Source) -> Contents:
    """Return all chorales, split by a hash of the file name: six tenths to train, two to valid, two to test."""
    if source.likelihood == "gaussian":
        raise DataError("the chorales are 0 or 1: likelihood must be 'bernoulli', got 'gaussian'")
    parts: dict[Part, list[torch.Tensor]] = {"train": [], "valid": [], "test": []}
    for name, roll in rolls().items():
        parts[_part(name)].append(torch.from_numpy(roll).float())
    return Contents(NAME, "bernoulli", parts)


def opened(source: Source) -> Opened:
    """Open the same one after the other, to be packed."""
    load(source)
    names = ((f"{_part(name)} {name}", roll) for name, roll in rolls().items())
    return Opened(NAME, NAME, "bernoulli", (NamedSequence(name, name, roll, name) for name, roll in names))


def _part(name: str) -> Part:
    tenth = hash_of(name) % 10
    return "train" if tenth < 6 else "valid" if tenth < 8 else "test"


def rolls() -> dict[str, Roll]:
    """Return every chorale's (T, 88) roll by file name, from the cache or, the first time, from the scores."""
    path = cache_path()
    if path.exists():
        try:
            return _read_cache(path)
        except Exception as error:  # whatever is wrong with it, the scores are still there
            warnings.warn(f"{path} is damaged ({error}): reading the scores again", stacklevel=2)
    found = {score.name: roll for score in scores() if (roll := roll_of(read(score))) is not None}
    try:
        _write_cache(path, found)
    except OSError as error:
        warnings.warn(f"the rolls could not be kept for the next time: {error}", stacklevel=2)
    return found


def cache_path() -> Path:
    """Return where the rolls are kept: a file named after this reading's version and music21's."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "vrnn_fast" / f"chorales-{_FORMAT}-music21-{_music21_version()}.npz"


def scores() -> list[Path]:
    """Return the files of all pieces with a BWV number, in order of their names."""
    package = importlib.util.find_spec("music21")  # found, not imported: that takes a second
    if package is None or not package.submodule_search_locations:
        raise _missing()
    folder = Path(package.submodule_search_locations[0]) / "corpus" / "bach"
    found = sorted(p for p in folder.glob("bwv*") if p.suffix in (".mxl", ".xml", ".krn"))
    if not found:
        raise DataError(f"no score bwv* in {folder}: this music21 was installed without its corpus")
    return found


def read(path: Path) -> Score:
    """Read the notes of one score: MusicXML by the standard library, in a tenth of the time, the rest by music21.

    Raises:
        DataError: the file is no such score.
    """
    try:
        if path.suffix == ".krn":
            return _read_kern(path)
        if path.suffix == ".mxl":
            with zipfile.ZipFile(path) as archive:
                container = ElementTree.fromstring(archive.read("META-INF/container.xml"))
                rootfile = container.find(".//{*}rootfile")
                if rootfile is None:
                    raise KeyError("rootfile")
                return _read_musicxml(ElementTree.fromstring(archive.read(rootfile.attrib["full-path"])))
        return _read_musicxml(ElementTree.parse(path).getroot())
    except (ElementTree.ParseError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DataError(f"{path} is not a readable score: {error}") from error


def roll_of(score: Score) -> Roll | None:
    """Return (T, 88): the pitches of each quarter, moved to C by at most a tritone; None for what is no chorale."""
    steps = math.ceil(max(end for _, end, _ in score.notes))
    shift = (5 - score.tonic) % 12 - 5
    roll = np.zeros((steps, PITCHES), dtype=np.bool_)
    for start, end, pitch in score.notes:
        roll[math.ceil(start) : math.ceil(end), pitch + shift - LOWEST] = True
    return roll if steps <= MAX_STEPS and DENSITY[0] <= roll.sum() / steps <= DENSITY[1] else None


def _read_musicxml(root: ElementTree.Element) -> Score:
    notes: list[tuple[Fraction, Fraction, int]] = []
    for part in root.iterfind("part"):
        divisions = 1
        barline = Fraction(0)
        for measure in part.iterfind("measure"):
            now = latest = onset = barline
            for item in measure:
                if item.tag == "attributes":
                    divisions = int(item.findtext("divisions", str(divisions)))
                elif item.tag in ("note", "backup", "forward"):
                    duration = Fraction(int(item.findtext("duration", "0")), divisions)
                    if item.find("chord") is None:  # further notes of a chord share the first one's onset
                        onset = now
                        now += -duration if item.tag == "backup" else duration
                    pitch = item.find("pitch")
                    if pitch is not None and duration:  # rests have no pitch, grace notes no duration
                        notes.append((onset, onset + duration, _midi(pitch)))
                    latest = max(latest, now)
            barline = latest
    fifths = int(root.findtext("part/measure/attributes/key/fifths", "0"))
    minor = root.findtext("part/measure/attributes/key/mode") == "minor"
    return Score(notes, (7 * fifths + (9 if minor else 0)) % 12)


def _midi(pitch: ElementTree.Element) -> int:
    octave, alter = int(pitch.findtext("octave", "")), int(pitch.findtext("alter", "0"))
    return 12 * (octave + 1) + _SEMITONES[pitch.findtext("step", "")] + alter


def _read_kern(path: Path) -> Score:
    try:
        from music21 import converter, key, stream
    except ImportError as error:
        raise _missing() from error
    score = converter.parse(path)
    if not isinstance(score, stream.Score):
        raise ValueError(f"it holds a {type(score).__name__}")
    flat = score.flatten()
    notes = [
        (start := Fraction(note.offset), start + Fraction(note.quarterLength), pitch.midi)
        for note in flat.notes
        for pitch in note.pitches
    ]
    return Score(notes, next(iter(flat.getElementsByClass(key.Key))).tonic.pitchClass)


def _read_cache(path: Path) -> dict[str, Roll]:
    with np.load(path) as file:
        names, lengths, stacked = file["names"], file["lengths"], file["rolls"]
    if stacked.dtype != np.bool_ or stacked.shape != (lengths.sum(), PITCHES) or len(names) != len(lengths):
        raise ValueError(f"rolls of type {stacked.dtype} and shape {stacked.shape} for {len(names)} pieces")
    return dict(zip(names.tolist(), np.split(stacked, lengths.cumsum()[:-1]), strict=True))


def _write_cache(path: Path, found: dict[str, Roll]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lengths = [len(roll) for roll in found.values()]
    with replacing(path) as file:
        np.savez_compressed(file, names=list(found), lengths=lengths, rolls=np.concatenate(list(found.values())))


def _music21_version() -> str:
    try:
        return version("music21")
    except ModuleNotFoundError as error:
        raise _missing() from error


def _missing() -> DataError:
    return DataError("the chorales come with the music21 package: pip install 'vrnn-fast[train]'")
