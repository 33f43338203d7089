"""MIDI files as piano rolls: which of the 128 pitches sound at each step of a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .reading import DataError, NamedSequence, Opened, Source, one_line

SUFFIXES = (".mid", ".midi")
PITCHES = 128
_DRUMS = 9  # the channel whose notes are no pitches


def opened(path: Path, files: Sequence[Path], source: Source) -> Opened:
    """Open rolls (T, 128) of ``source.grid`` steps per quarter note, each file a sequence, without its drums.

    Raises:
        DataError: what is asked for cannot be of notes, or the package that reads them is not there.
    """
    if source.likelihood == "gaussian":
        raise DataError(f"{path} holds notes: likelihood must be 'bernoulli', got 'gaussian'")
    if source.grid < 1:
        raise DataError(f"grid must be at least 1, got {source.grid}")
    try:
        import mido
    except ImportError as error:
        raise DataError("reading MIDI takes the mido package: pip install 'vrnn-fast[midi]'") from error
    found = (NamedSequence(file.stem, str(file), _roll(file, mido, source.grid), file.stem) for file in files)
    return Opened(path.name, str(path), "bernoulli", found)


def _roll(file: Path, mido: Any, grid: int) -> NDArray[np.uint8]:
    try:
        notes = _notes(mido.MidiFile(file))
    except Exception as error:  # whatever its parser stumbles over
        raise DataError(f"{file} is not readable MIDI: {one_line(error)}") from error
    if not notes:
        raise DataError(f"{file} holds no note")
    roll = np.zeros((math.ceil(max(end for _, end, _ in notes) * grid), PITCHES), dtype=np.uint8)
    for start, end, pitch in notes:
        roll[math.ceil(start * grid) : math.ceil(end * grid), pitch] = 1
    return roll


def _notes(file: Any) -> list[tuple[Fraction, Fraction, int]]:
    """Return start, end and pitch of each note, times in quarters."""
    if file.ticks_per_beat <= 0:
        raise ValueError("its times are frames of a film, not parts of a quarter note")
    notes = []
    for track in file.tracks:
        ticks, sounding = 0, dict[tuple[int, int], Fraction]()
        for message in track:
            ticks += message.time
            if message.type not in ("note_on", "note_off") or message.channel == _DRUMS:
                continue
            now, key = Fraction(ticks, file.ticks_per_beat), (message.channel, message.note)
            if key in sounding:
                notes.append((sounding.pop(key), now, message.note))
            if message.type == "note_on" and message.velocity:
                sounding[key] = now
    return [note for note in notes if note[1] > note[0]]
