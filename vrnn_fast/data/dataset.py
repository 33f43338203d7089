"""What a data set is: sequences of feature vectors, in three parts, and where they came from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..likelihoods import bernoulli_log_prob
from .reading import PARTS, DataError, Output, Part
from .stored import Series, Stored, in_pieces, standardised


@dataclass(frozen=True)
class Known:
    """What somebody found out about data, so that nobody has to read all of it again.

    Attributes:
        mean, std: of each training feature as it was read, (X,) float64.
    """

    fingerprint: str
    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Dataset:
    """Float32 sequences of shape (T_i, X), T_i >= 1, of one feature size X, in memory or in a file.

    Attributes:
        likelihood: what a feature is: 0 or 1 (bernoulli), or any finite number (gaussian).
        mean, scale: of each feature, or of all of them: what was read is ``x * scale + mean``. Gaussian features are
            standardised by their training part, and bounds are nats of the standardised features.
        rate: samples per second of sound, else None.
        known: what needs not be found out again.
    """

    name: str
    likelihood: Output
    train: tuple[Series, ...]
    valid: tuple[Series, ...]
    test: tuple[Series, ...]
    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    rate: int | None = None
    known: Known | None = None

    def __post_init__(self) -> None:
        for part in PARTS:
            _require_sequences(self.name, part, self[part])

    def __getitem__(self, part: Part) -> tuple[Series, ...]:
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
        if self.known is not None:
            return self.known.fingerprint
        digest = hashlib.sha256(self.likelihood.encode())
        for part in PARTS:
            for x in self[part]:
                digest.update(f"{part} {tuple(x.shape)}".encode())
                for piece in in_pieces(x):
                    digest.update(piece.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def baseline(self) -> float:
        """Return nats per time step of the test part when features are independent in time and of each other.

        Each is a Bernoulli with its (smoothed) training frequency, or a Gaussian with its training mean and deviation.
        """
        mean, std = (m.double() for m in self.moments())
        steps, nll = self.steps("train"), 0.0
        logits = ((mean * steps + 1) / (steps + 2)).logit()
        for x in (piece for whole in self.test for piece in in_pieces(whole)):
            if self.likelihood == "bernoulli":
                nll -= bernoulli_log_prob(logits.expand(x.shape), x.double()).sum().item()
            else:
                at = (x.double() - mean) / (std + 1e-3)
                nll += (0.5 * at.square() + (std + 1e-3).log() + 0.5 * math.log(2 * math.pi)).sum().item()
        return nll / self.steps("test")

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each feature over the training part, (X,) each, float64."""
        if self.known is None:
            return moments(self.train)
        center, spread = (torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.scale))
        return (self.known.mean - center) / spread, self.known.std / spread


@dataclass(frozen=True)
class Contents:
    """What a source holds: float32 sequences of shape (T_i, X) as they were read, by part; a part may be empty."""

    name: str
    likelihood: Output
    parts: Mapping[Part, Sequence[Series]]
    rate: int | None = None
    known: Known | None = None

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
        return Dataset(self.name, self.likelihood, train, valid, test, mean, scale, self.rate, self.known)

    def standardised(self, part: Part, mean: Sequence[float], scale: Sequence[float]) -> tuple[Series, ...]:
        """Return ``(x - mean) / scale`` of a part, both for each feature or one for all; DataError as above, for what
        stays in a file when it is read."""
        center, spread = (torch.tensor(values, dtype=torch.float64) for values in (mean, scale))
        _require_sequences(self.name, part, self.parts[part])
        found: tuple[Series, ...] = tuple(
            replace(x, mean=center, scale=spread) if isinstance(x, Stored) else standardised(x, center, spread)
            for x in self.parts[part]
        )
        for i, x in enumerate(found):
            if isinstance(x, Tensor) and not x.isfinite().all():
                step, feature = x.isfinite().logical_not().nonzero()[0].tolist()
                value = self.parts[part][i][step : step + 1][0, feature].item()
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
        mean, std = (self.known.mean, self.known.std) if self.known else moments(train)
        if self.rate is None:
            center, scale = mean.float(), std.float()
            return tuple(center.tolist()), tuple(torch.where(scale > 0, scale, 1.0).tolist())
        spread = (std.square() + (mean - mean.mean()).square()).mean().sqrt()  # of all samples, in any place of a frame
        if spread <= 1e-12 * mean.abs().max():
            raise DataError(f"{self.name}: the training part is silent")
        return (0.0,), (spread.float().item(),)


def moments(sequences: Sequence[Series]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over time, (X,) each: the same with any number of threads."""
    steps, first = sum(len(x) for x in sequences), sequences[0][:1]
    total = variance = torch.zeros(first.shape[1], dtype=torch.float64)
    constant = torch.ones(first.shape[1], dtype=torch.bool)  # whatever the mean rounds to
    for piece in (piece for x in sequences for piece in in_pieces(x)):
        total = total + piece.sum(0, dtype=torch.float64)
        constant &= (piece == first).all(0)
    mean = total / steps
    for piece in (piece for x in sequences for piece in in_pieces(x)):
        variance = variance + (piece.double() - mean).square().sum(0)
    return mean, torch.where(constant, 0.0, (variance / steps).sqrt())


def _require_sequences(name: str, part: Part, sequences: Sequence[Series]) -> None:
    if not sequences:
        raise DataError(f"{name}: the {part} part holds no sequence")


def lengths_of(sequences: Sequence[Series]) -> list[int]:
    """Return their time steps."""
    return [len(x) for x in sequences]
