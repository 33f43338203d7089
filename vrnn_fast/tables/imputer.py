"""Gaps: what a table does not say, drawn given what it does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import TransformerMixin

from .. import checks
from .base import Estimator
from .frames import Table, as_pandas, with_columns
from .reader import numbers_of


class Imputer(TransformerMixin, Estimator):  # type: ignore[misc]  # scikit-learn has no types
    """Fill the gaps of tables, by samples of :meth:`vrnn_fast.VRNN.impute`.

    Args:
        num_samples: whose average fills a gap; 1 draws a value that is as noisy as the data.
        smoothed: fill by all that was observed of a series, not only by what came before.
        arguments: of :class:`Estimator`.

    Examples:
        >>> import pandas
        >>> from vrnn_fast.tables import Imputer
        >>> table = pandas.DataFrame({"a": [0.0, 1.0, float("nan"), 3.0] * 8})
        >>> int(Imputer(updates=1, window=16).fit_transform(table).isna().sum().sum())
        0
    """

    def __init__(self, *, num_samples: int = 32, smoothed: bool = False, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.num_samples = num_samples
        self.smoothed = smoothed

    def _require_arguments(self) -> None:
        super()._require_arguments()
        self._count("num_samples")
        checks.flag("smoothed", self.smoothed)

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.object_]:
        """Return the columns of what :meth:`transform` returns: those of the table.

        Examples:
            >>> from vrnn_fast.tables import Imputer
            >>> Imputer(updates=1, window=16).fit(table).get_feature_names_out().tolist()
            ['a', 'b']
        """
        self._require_fitted()
        names: NDArray[np.object_] = self.feature_names_in_
        return names

    @torch.no_grad()
    def transform(self, table: Table) -> Table:
        """Return the table with its gaps filled, and all else as it was; a column with gaps whose dtype knows no
        fractions becomes float64.

        Examples:
            >>> from vrnn_fast.tables import Imputer
            >>> Imputer(updates=1, window=16).fit(table).transform(table).equals(table)
            True
        """
        samples, particles = self._count("num_samples"), self._count("num_particles")
        every = self._series(table)
        filled = np.full((len(table), len(self.reader_.features)), np.nan)
        for part, batch, generator in self._batches(every, max(particles, samples)):
            drawn = self.model_.impute(
                batch.x,
                batch.mask,
                samples,
                batch.lengths,
                num_particles=particles,
                smoothed=self.smoothed,
                mask_inputs=True,
                cond=batch.cond,
                generator=generator,
            ).mean(0)
            for b, series in enumerate(part):
                values = drawn[: len(series.rows), b].double().cpu().numpy()
                filled[series.rows] = self.reader_.unscaled(values)
        given, columns = as_pandas(table), {}
        for name, fill in zip(self.reader_.features, filled.T, strict=True):
            values = numbers_of(given[name])
            if np.isnan(values).any():
                columns[name] = np.where(np.isnan(values), fill, values)
        return with_columns(table, columns)
