"""What a data set is: sequences of feature vectors, in three parts, and where they came from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from ..likelihoods import bernoulli_log_prob

Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
Output = Literal["bernoulli", "gaussian"]
Item = TypeVar("Item")


class DataError(ValueError):
    """The data is missing, unreadable, or not what was asked for."""


@dataclass(frozen=True)
class Source:
    """Where sequences come from; enough to read them again when a run is resumed.

    Attributes:
        path: ``"chorales"``, an ``.npz`` or ``.npy`` file, or a folder of ``.npy`` or ``.wav`` files.
        likelihood: what a feature is; None means gaussian for sound and bernoulli for all else.
        frame: samples per time step, for sound.
        rate: samples per second that every sound file must have; None takes the first file's.
        max_steps: longer files of sound are cut into sequences of this many time steps.
        max_gigabytes: what a file may expand to in memory; none is refused for its size on disk.
    """

    path: str = "chorales"
    likelihood: Output | None = None
    frame: int = 200
    rate: int | None = None
    max_steps: int = 200
    max_gigabytes: float = 1.0


@dataclass(frozen=True)
class Dataset:
    """Float32 sequences of shape (T_i, X), T_i >= 1, of one feature size X.

    Attributes:
        likelihood: what a feature is: 0 or 1 (bernoulli), or any finite number (gaussian).
        mean, scale: of each feature, or of all of them: what was read is ``x * scale + mean``. Gaussian features are
            standardised by their training part, and bounds are nats of the standardised features.
        rate: samples per second of sound, else None.
    """

    name: str
    likelihood: Output
    train: tuple[Tensor, ...]
    valid: tuple[Tensor, ...]
    test: tuple[Tensor, ...]
    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    rate: int | None = None

    def __post_init__(self) -> None:
        for part in PARTS:
            _require_sequences(self.name, part, self[part])

    def __getitem__(self, part: Part) -> tuple[Tensor, ...]:
        return {"train": self.train, "valid": self.valid, "test": self.test}[part]

    @property
    def features(self) -> int:
        """X, the size of a feature vector."""
        return self.train[0].shape[1]

    def steps(self, part: Part) -> int:
        """Count the time steps that the sequences of a part have together."""
        return sum(lengths_of(self[part]))

    def fingerprint(self) -> str:
        """Return a hash of every number in every part: two data sets that agree in it train alike."""
        digest = hashlib.sha256(self.likelihood.encode())
        for part in PARTS:
            for x in self[part]:
                digest.update(f"{part} {tuple(x.shape)}".encode())
                digest.update(x.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def baseline(self) -> float:
        """Return nats per time step of the test part when features are independent in time and of each other.

        Each is a Bernoulli with its (smoothed) training frequency, or a Gaussian with its training mean and deviation.
        """
        mean, std = (m.double() for m in self.moments())
        steps, nll = self.steps("train"), 0.0
        logits = ((mean * steps + 1) / (steps + 2)).logit()
        for x in self.test:
            if self.likelihood == "bernoulli":
                nll -= bernoulli_log_prob(logits.expand(x.shape), x.double()).sum().item()
            else:
                at = (x.double() - mean) / (std + 1e-3)
                nll += (0.5 * at.square() + (std + 1e-3).log() + 0.5 * math.log(2 * math.pi)).sum().item()
        return nll / self.steps("test")

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each feature over the training part, (X,) each, float64."""
        return _moments(self.train)


@dataclass(frozen=True)
class Contents:
    """What a source holds: float32 sequences of shape (T_i, X) as they were read, by part; a part may be empty."""

    name: str
    likelihood: Output
    parts: Mapping[Part, Sequence[Tensor]]
    rate: int | None = None

    @property
    def features(self) -> int:
        """X, the size of a feature vector."""
        return next(x.shape[1] for part in PARTS for x in self.parts[part])

    def dataset(self) -> Dataset:
        """Return all parts; gaussian features are standardised by the training part.

        Raises:
            DataError: a part is empty, sound is silent, or a number is too large to be standardised.
        """
        mean, scale = self._scaling()
        train, valid, test = (self.standardised(part, mean, scale) for part in PARTS)
        return Dataset(self.name, self.likelihood, train, valid, test, mean, scale, self.rate)

    def standardised(self, part: Part, mean: Sequence[float], scale: Sequence[float]) -> tuple[Tensor, ...]:
        """Return ``(x - mean) / scale`` of a part, both for each feature or one for all; DataError as above."""
        center, spread = (torch.tensor(values, dtype=torch.float64) for values in (mean, scale))
        _require_sequences(self.name, part, self.parts[part])
        found = tuple(((x.double() - center) / spread).float() for x in self.parts[part])
        for i, x in enumerate(found):
            if not x.isfinite().all():
                step, feature = x.isfinite().logical_not().nonzero()[0].tolist()
                value = self.parts[part][i][step, feature].item()
                raise DataError(
                    f"{self.name}: standardised by the training part, {value:.3g} is not finite in float32, at step "
                    f"{step}, feature {feature} of {part} sequence {i}"
                )
        return found

    def _scaling(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and deviation of each training feature; of sound 0 and the deviation of all samples."""
        train = self.parts["train"]
        _require_sequences(self.name, "train", train)
        if self.likelihood == "bernoulli":
            return (0.0,), (1.0,)
        if self.rate is None:
            mean, scale = (m.float() for m in _moments(train))
            return tuple(mean.tolist()), tuple(torch.where(scale > 0, scale, 1.0).tolist())
        scale = _moments([x.reshape(-1, 1) for x in train])[1].float()
        if not scale > 0:
            raise DataError(f"{self.name}: the training part is silent")
        return (0.0,), tuple(scale.tolist())


def _moments(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over time, (X,) each: the same with any number of threads."""
    steps = sum(len(x) for x in sequences)
    mean = torch.stack([x.sum(0, dtype=torch.float64) for x in sequences]).sum(0) / steps
    variance = torch.stack([(x.double() - mean).square().sum(0) for x in sequences]).sum(0) / steps
    constant = torch.stack([(x == sequences[0][0]).all(0) for x in sequences]).all(0)  # whatever the mean rounds to
    return mean, torch.where(constant, 0.0, variance.sqrt())


def _require_sequences(name: str, part: Part, sequences: Sequence[Tensor]) -> None:
    if not sequences:
        raise DataError(f"{name}: the {part} part holds no sequence")


def lengths_of(sequences: Sequence[Tensor]) -> list[int]:
    """Return their time steps."""
    return [len(x) for x in sequences]


def hash_of(name: str) -> int:
    """Return a number that depends on the name alone, the same on every machine."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16)


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
