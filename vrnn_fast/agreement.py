"""The law of errors, for tests, benchmarks, training and accelerate: how wrong a result may be.

Right is what the reference gives in float64. Ours may be wrong by twice what plain torch is in the same dtype::

    error <= times * torch's error + roundings * eps * largest

Errors are root mean squares, over the elements of a tensor and over several draws of the numbers where there are some:
a single element's error is a matter of luck. Torch's own may be zero by luck, or because torch is the oracle, in
float64: so a few roundings of the largest value that is right, eps being the dtype's, pass. ``times`` is 2, and
``roundings`` are 2, or 32 in float64; whoever must allow something else says so by these names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


def allowed(
    torchs: float, largest: float, dtype: torch.dtype, *, times: float = 2.0, roundings: float | None = None
) -> float:
    """Tell how large an error may be where torch's is ``torchs``, and the largest value that is right ``largest``."""
    if roundings is None:
        roundings = 32 if dtype == torch.float64 else 2
    return times * torchs + roundings * torch.finfo(dtype).eps * largest


class Errors:
    """Errors of results by name, beside those of plain torch in the same dtype, over some draws.

    Args:
        dtype: of our results.
        times, roundings: as in :func:`allowed`.
    """

    def __init__(self, dtype: torch.dtype, *, times: float = 2.0, roundings: float | None = None) -> None:
        self.dtype = dtype
        self._times, self._roundings = times, roundings
        self._ours: dict[str, list[Tensor]] = defaultdict(list)
        self._torchs: dict[str, list[Tensor]] = defaultdict(list)
        self._largest: dict[str, float] = defaultdict(float)

    def add(
        self,
        ours: Mapping[str, Tensor],
        torchs: Mapping[str, Tensor],
        right: Mapping[str, Tensor],
        cancelled: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Take in one draw.

        Args:
            ours, torchs, right: what we found, what plain torch did, and the oracle's in float64, by the same names.
            cancelled: terms that cancel each other in some of these, where the oracle is as exact as their last digit
                allows.

        Raises:
            ValueError: names, shapes or dtypes that cannot be compared.
        """
        if not ours.keys() == torchs.keys() == right.keys():
            raise ValueError(f"results must have the same names, got {[sorted(r) for r in (ours, torchs, right)]}")
        for name, value in right.items():
            if value.dtype != torch.float64 or ours[name].dtype != self.dtype:
                raise ValueError(f"{name} must be {self.dtype} beside float64, got {ours[name].dtype}, {value.dtype}")
            if not ours[name].shape == torchs[name].shape == value.shape:
                raise ValueError(f"{name} must have one shape, got {[tuple(r[name].shape) for r in (ours, right)]}")
            if value.numel():
                self._ours[name].append((ours[name].double() - value).square().mean())
                self._torchs[name].append((torchs[name].double() - value).square().mean())
                terms = value if cancelled is None else cancelled.get(name, value)
                self._largest[name] = max(self._largest[name], terms.abs().max().item())

    def violations(self) -> dict[str, str]:
        """Return what is off by more than the law allows, by name, in words."""
        wrong = {}
        for name, error, torchs, most in self._found():
            if not error <= most:  # so that NaN is one
                wrong[name] = f"{name} is off by {error:.3g}, plain torch by {torchs:.3g}, allowed are {most:.3g}"
        return wrong

    def largest_share(self) -> float:
        """Return the largest error, as a part of what is allowed: above 1 there is a violation. 0 where nothing is
        off."""
        return max((error / most if error else 0.0 for _, error, _, most in self._found()), default=0.0)

    def _found(self) -> Iterator[tuple[str, float, float, float]]:
        """Yield name, our error, torch's, and how large ours may be."""
        for name, errors in self._ours.items():
            error, torchs = (torch.stack(e).mean().sqrt().item() for e in (errors, self._torchs[name]))
            most = allowed(torchs, self._largest[name], self.dtype, times=self._times, roundings=self._roundings)
            yield name, error, torchs, most

    def __bool__(self) -> bool:
        """Tell whether anything was compared."""
        return bool(self._ours)
