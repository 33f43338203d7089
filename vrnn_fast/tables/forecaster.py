"""Forecasts: what comes after the last row of each series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scoringrules
import torch
from numpy.typing import NDArray

from .. import checks
from .base import Estimator
from .frames import Table, as_pandas, like
from .reader import TableError, TimeSeries, in_zone_of, said

_SCORED = "feature", "crps", "coverage", "energy"  # columns of Forecaster.evaluate, beside the id


class Forecaster(Estimator):
    """Forecast tables, by samples of :meth:`vrnn_fast.VRNN.forecast`.

    Args:
        horizon: how many rows to forecast.
        quantiles: which, beside the mean.
        num_samples: drawn for each series.
        arguments: of :class:`Estimator`.

    Examples:
        >>> import pandas
        >>> from vrnn_fast.tables import Forecaster
        >>> table = pandas.DataFrame({"a": torch.randn(64).numpy()})
        >>> Forecaster(horizon=3, updates=1, window=16).fit(table).predict(table).columns.tolist()
        ['time', 'feature', 'mean', 'q0.1', 'q0.5', 'q0.9']
    """

    def __init__(
        self,
        *,
        horizon: int = 24,
        quantiles: Sequence[float] = (0.1, 0.5, 0.9),
        num_samples: int = 200,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.horizon = horizon
        self.quantiles = quantiles
        self.num_samples = num_samples

    def _require_arguments(self) -> None:
        super()._require_arguments()
        for name in ("horizon", "num_samples"):
            self._count(name)
        self._require_other_names()

    def _require_other_names(self) -> None:
        """Raise TableError where a column of a forecast would take the place of one that names its rows."""
        own = {"feature", "mean", *map(quantile_column, self._shares())} | (set() if self.time else {"time"})
        for name in (self.id, self.time):
            if name in own:
                raise TableError(f"a forecast has another column {name!r}: rename the one of the table")

    def predict(self, table: Table, future: Table | None = None) -> Table:
        """Forecast what comes after each series of a table.

        Args:
            table: what was seen.
            future: what is known of the rows to come, where the model knows covariates or steps differ: ids, times
                and covariates. Its first rows after each series are taken.

        Returns:
            a row for each id, time and feature: mean and quantiles.

        Raises:
            TableError: a column is missing, or holds what it must not, or is named as another one of the result.

        Examples:
            >>> from vrnn_fast.tables import Forecaster
            >>> len(Forecaster(horizon=3, updates=1, window=16).fit(table).predict(table))
            6
        """
        shares = self._shares()
        self._require_other_names()
        time, rows = self.time or "time", []
        for series, times, samples in self._drawn(table, future):
            stamps = times if self.time is None else in_zone_of(as_pandas(table)[self.time], times)
            found = np.stack([samples.mean(0), *np.quantile(samples, shares, axis=0)], -1)
            for i, feature in enumerate(self.reader_.features):
                named = {} if self.id is None else {self.id: [series.key] * len(times)}
                values = dict(zip(["mean", *map(quantile_column, shares)], found[:, i].T, strict=True))
                rows.append(pd.DataFrame({**named, time: stamps, "feature": [feature] * len(times), **values}))
        return like(table, pd.concat(rows, ignore_index=True), self._same())

    def sample(self, table: Table, future: Table | None = None) -> dict[Any, NDArray[np.float64]]:
        """Draw what comes after each series: by id, (samples, horizon, features).

        Examples:
            >>> from vrnn_fast.tables import Forecaster
            >>> Forecaster(horizon=3, updates=1, window=16).fit(table).sample(table)[None].shape
            (200, 3, 2)
        """
        return {series.key: samples for series, _, samples in self._drawn(table, future)}

    def evaluate(self, table: Table, truth: Table, future: Table | None = None) -> Table:
        """Hold a forecast against what came: proper scores of the samples, in the units of the table, lower is better.

        Args:
            table: what was seen.
            truth: the ``horizon`` rows that came after it, of each id, at the times of the forecast; NaN where nothing
                was observed.
            future: as for :meth:`predict`.

        Returns:
            a row for each id and feature: ``crps``, the continuous ranked probability score, averaged over steps;
            ``coverage``, the share of the truth between the lowest and the highest of ``quantiles``; and ``energy``,
            the energy score of all features together (Gneiting and Raftery 2007, "Strictly Proper Scoring Rules,
            Prediction, and Estimation"), averaged over steps that were observed whole. NaN where there is no such step.

        Raises:
            TableError: the truth has other rows, or the column of ids is named as one of the result.

        Examples:
            >>> from vrnn_fast.tables import Forecaster
            >>> forecaster = Forecaster(horizon=3, updates=1, window=16).fit(table[:-3])
            >>> forecaster.evaluate(table[:-3], table[-3:]).columns.tolist()
            ['feature', 'crps', 'coverage', 'energy']
        """
        if self.id in _SCORED:
            raise TableError(f"what a forecast scores has another column {self.id!r}: rename the one of the table")
        shares = self._shares()
        came = {series.key: series for series in self._series(truth)}
        rows = []
        for series, times, samples in self._drawn(table, future):
            if series.key not in came or not self.reader_.has_times(came[series.key], times):
                whose = "" if series.key is None else f" of {self.id} {series.key!r}"
                when = "" if self.reader_.step is None else f", from {said(times[0])} to {said(times[-1])}"
                raise TableError(f"truth must have the {self.horizon} rows{whose} that come after the table{when}")
            right = self.reader_.unscaled(came[series.key].values)
            whole = ~np.isnan(right).any(1)
            crps = scoringrules.crps_ensemble(right, samples, m_axis=0)
            energy = scoringrules.es_ensemble(right[whole], samples[:, whole], m_axis=0) if whole.any() else np.empty(0)
            low, high = np.quantile(samples, [min(shares, default=0), max(shares, default=1)], axis=0)
            inside = np.where(np.isnan(right), np.nan, (low <= right) & (right <= high))
            named = {} if self.id is None else {self.id: series.key}
            for i, feature in enumerate(self.reader_.features):
                found = feature, _average(crps[:, i]), _average(inside[:, i]), _average(energy)
                rows.append({**named, **dict(zip(_SCORED, found, strict=True))})
        return like(table, pd.DataFrame(rows), [] if self.id is None else [self.id])

    def _same(self) -> list[str]:
        """Return the columns of a forecast that are as in the table: ids, and stamps, but no numbers, which grow."""
        stamps = isinstance(self.reader_.step, np.timedelta64)
        return [name for name in (self.id, self.time if stamps else None) if name is not None]

    def _shares(self) -> list[float]:
        """Return the quantiles, each of which has a column."""
        shares = checks.shares("quantiles", self.quantiles)
        if len(set(map(quantile_column, shares))) < len(shares):
            raise ValueError(f"quantiles must differ in six digits, for each has a column, got {self.quantiles!r}")
        return shares

    @torch.no_grad()
    def _drawn(self, table: Table, future: Table | None) -> list[tuple[TimeSeries, NDArray[Any], NDArray[np.float64]]]:
        horizon, count = self._count("horizon"), self._count("num_samples")
        series = self._series(table)
        if future is not None and not self.reader_.cond_size:
            raise TableError("future holds covariates, and this model was fitted without any")
        known = None if future is None else self.reader_.read_future(as_pandas(future))
        found = {}
        for part, batch, generator in self._batches(series, count, horizon):
            ahead = [self.reader_.future(s, horizon, known) for s in part]
            told = np.stack([covariates for _, covariates in ahead], 1).astype(np.float32)
            samples = self.model_.forecast(
                batch.x,
                horizon,
                count,
                batch.lengths,
                mask=batch.mask,
                mask_inputs=True,
                cond=batch.cond,
                future_cond=torch.from_numpy(told).to(batch.x.device) if told.shape[2] else None,
                generator=generator,
            ).samples
            for b, (one, (times, _)) in enumerate(zip(part, ahead, strict=True)):
                found[one.rows[0]] = one, times, self.reader_.unscaled(samples[:, :, b].double().cpu().numpy())
        return [found[one.rows[0]] for one in series]


def quantile_column(share: float) -> str:
    """Return the name of the column of a quantile."""
    return f"q{share:g}"


def _average(values: NDArray[np.float64]) -> float:
    """Return the average of what is not NaN; of nothing NaN."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else np.nan
