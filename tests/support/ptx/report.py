"""What a launch was seen to do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


class Fault(Exception):
    """A launch that a GPU would not survive, or would not end."""


@dataclass
class Report:
    """Of all blocks of a launch. Races, reads and wavefronts are counted by the line of the program that makes them."""

    races: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # (memory, kind, line)
    overlaps: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # such stores, but of equal values
    unwritten: Counter[tuple[str, str]] = field(default_factory=Counter)  # (memory or register, line)
    wavefronts: Counter[str] = field(default_factory=Counter)  # of shared memory
    least_wavefronts: Counter[str] = field(default_factory=Counter)  # if no two lanes met in a bank
    issued: Counter[str] = field(default_factory=Counter)  # instructions of warps, by name
    barriers: int = 0  # that opened, of all blocks

    def __add__(self, other: Report) -> Report:
        pairs = ((name, getattr(self, name) + getattr(other, name)) for name in vars(self) if name != "barriers")
        return Report(**dict(pairs), barriers=self.barriers + other.barriers)

    @property
    def conflicts(self) -> float:
        """Wavefronts of shared memory, of their least number."""
        return self.wavefronts.total() / max(1, self.least_wavefronts.total())

    def worst_lines(self, count: int = 5) -> list[tuple[str, float]]:
        """The lines that waste most wavefronts, with their ratio."""
        wasted = {line: n - self.least_wavefronts[line] for line, n in self.wavefronts.items()}
        lines = sorted(wasted, key=wasted.__getitem__, reverse=True)[:count]
        return [(line, self.wavefronts[line] / self.least_wavefronts[line]) for line in lines if wasted[line]]

    def assert_clean(self) -> None:
        """No race and no read of what nobody wrote."""
        assert not self.races, dict(self.races)
        assert not self.unwritten, dict(self.unwritten)
