"""What readers of files have in common: named sequences, one after the other, and parts that their names decide."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
Output = Literal["bernoulli", "gaussian"]
Item = TypeVar("Item")
_PART = re.compile(r"train|valid|val(?![a-z])|test", re.IGNORECASE)  # a valse is no validation


class DataError(ValueError):
    """The data is missing, unreadable, or not what was asked for."""


@dataclass(frozen=True)
class Source:
    """Where sequences come from; enough to read them again when a run is resumed.

    Attributes:
        path: ``"chorales"``; an ``.npz``, ``.npy`` or ``.csv`` file; a folder of such files, of sound or of MIDI; or a
            pack that ``vrnn-fast pack`` made of any of these.
        likelihood: what a feature is; None means gaussian for sound, for a pack what it says, and bernoulli for
            all else.
        frame: samples per time step, for sound.
        rate: samples per second that every sound file must have; None takes the first file's.
        max_steps: longer files of sound are cut into sequences of this many time steps.
        grid: time steps of a quarter note, for MIDI.
        max_gigabytes: what a file may expand to in memory; none is refused for its size on disk. Of ``.npy`` files
            that have more together, no more is in memory than is trained on.
    """

    path: str = "chorales"
    likelihood: Output | None = None
    frame: int = 200
    rate: int | None = None
    max_steps: int = 200
    grid: int = 1
    max_gigabytes: float = 1.0


class NamedSequence(NamedTuple):
    """An array (T, X) and its name, which decides what part of the data it is of.

    Attributes:
        place: what an error calls it.
        group: the name of what it was cut from, all of which is one part where there are enough of those.
    """

    name: str
    place: str
    array: NDArray[Any]
    group: str


@dataclass(frozen=True)
class Opened:
    """What a source holds, to be read once, in order.

    Attributes:
        place: what an error calls it.
        rate: samples per second, of sound.
    """

    name: str
    place: str
    likelihood: Output
    sequences: Iterator[NamedSequence]
    rate: int | None = None


def checked(named: NamedSequence, array: NDArray[Any], likelihood: Output, first: int = 0) -> NDArray[np.float32]:
    """Return numbers (T, X) as float32, from step ``first`` of their sequence on.

    Raises:
        DataError: one of them is not what the likelihood is of.
    """
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    fits = np.isin(array, (0, 1)) if likelihood == "bernoulli" else np.isfinite(values)
    if not fits.all():
        step, feature = np.argwhere(~fits)[0].tolist()
        expected = "0 or 1 for a bernoulli likelihood" if likelihood == "bernoulli" else "finite in float32"
        where = f"got {array[step, feature]} at step {first + step}, feature {feature}"
        raise DataError(f"{named.place} must be {expected}, {where}")
    return values


def parts_of(place: str, named: Sequence[tuple[str, Item]]) -> dict[Part, list[Item]]:
    """Divide: what is named train..., valid... (or val) and test... are those parts; if nothing is, hashes decide.

    Raises:
        DataError: some names are of a part, and others are not, or there are too few to divide.
    """
    parts: dict[Part, list[Item]] = {"train": [], "valid": [], "test": []}
    others = []
    for name, item in named:
        found = _PART.match(name)
        if found is None:
            others.append(repr(name))
        else:
            parts[next(part for part in PARTS if part.startswith(found[0].lower()))].append(item)
    if len(others) == len(named):
        try:
            return divide(named)
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
    if others:
        first = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        raise DataError(f"{place}: if any name starts with train, valid (or val) or test all must, got {first}")
    return parts


def divide(named: Sequence[tuple[str, Item]]) -> dict[Part, list[Item]]:
    """Split 80/10/10 in the order of the names' hashes, at least one item to each part.

    Raises:
        DataError: fewer than three items.
    """
    if len(named) < 3:
        raise DataError(
            f"3 sequences are the least that can be split into train, valid and test, got {len(named)}; fewer must be "
            "named after their parts"
        )
    items = [item for _, item in sorted(named, key=lambda pair: hash_of(pair[0]))]
    tenth = max(1, round(len(items) / 10))
    return {"test": items[:tenth], "valid": items[tenth : 2 * tenth], "train": items[2 * tenth :]}


def hash_of(name: str) -> int:
    """Return a number that depends on the name alone, the same on every machine."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16)


def by_part(place: str, found: Sequence[tuple[NamedSequence, Item]]) -> dict[Part, list[Item]]:
    """Divide what became of named sequences: what was cut from one group stays together, where there are three groups.

    Raises:
        DataError: as :func:`parts_of`.
    """
    groups: dict[str, list[Item]] = {}
    for named, item in found:
        groups.setdefault(named.group, []).append(item)
    if len(groups) < 3:
        return parts_of(place, [(named.name, item) for named, item in found])
    parts = parts_of(place, list(groups.items()))
    return {part: [item for group in parts[part] for item in group] for part in PARTS}


def require_one_width(place: str, widths: Mapping[int, str]) -> None:
    """Raise DataError where sequences have other feature sizes than others, of each of which one is named."""
    if len(widths) > 1:
        found = ", ".join(f"{size} in {name!r}" for size, name in widths.items())
        raise DataError(f"{place}: every sequence must have the same feature size, got {found}")


def require_size(path: Path, size: int, source: Source) -> None:
    """Raise DataError if a file would expand beyond what it may, and beyond itself."""
    if size > max(source.max_gigabytes * 1e9, path.stat().st_size):
        raise DataError(
            f"{path} expands to {size / 1e9:.3g} GB, and max_gigabytes is {source.max_gigabytes:g}: raise that "
            "(--max-gigabytes on the command line) if this is meant"
        )


def one_line(error: Exception) -> str:
    """Return its message without line breaks, or what it is where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
