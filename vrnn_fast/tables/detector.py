"""Anomalies: rows that are unlikely after those before them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import checks
from ..checkpoints.files import CheckpointError
from .base import Estimator
from .frames import Table, as_pandas, like

Threshold = Literal["quantile", "peaks"]
TAIL = 0.98  # beyond this quantile of the scores lie the peaks
PEAKS = 10  # by fewer of them no tail is known


class Detector(Estimator):
    """Find anomalies in tables: the habits of scikit-learn and pyod, 1 being an anomaly.

    A row's score is -log p(x_t | x_<t) in nats, of the scaled columns, by :meth:`vrnn_fast.VRNN.score`. What was not
    observed counts as what is typical of its feature, so that a gap is no anomaly and hides none.

    Args:
        contamination: share of the rows of the table that it is fitted on which shall be called anomalies.
        threshold: ``"quantile"``, that of the scores; or ``"peaks"``, which fits a generalised Pareto distribution to
            the scores above their 98th percentile and takes its quantile (Siffer et al. 2017, "Anomaly Detection in
            Streams with Extreme Value Theory"), better where ``contamination``, at most 0.02, is less than a few rows.
        arguments: of :class:`Estimator`.

    Attributes:
        decision_scores_, labels_: (rows,) scores, and 0 or 1, of the table that it was fitted on.
        threshold_: the score above which a row is an anomaly.
        typical_: (features,) median score of each on its own, in that table.

    Examples:
        >>> import pandas
        >>> from vrnn_fast.tables import Detector
        >>> table = pandas.DataFrame({"a": torch.randn(64).numpy(), "b": torch.randn(64).numpy()})
        >>> Detector(updates=1, window=16).fit(table).labels_.shape
        (64,)
    """

    def __init__(self, *, contamination: float = 0.01, threshold: Threshold = "quantile", **arguments: Any) -> None:
        super().__init__(**arguments)
        self.contamination = contamination
        self.threshold = threshold

    def _learn(self, table: pd.DataFrame) -> None:
        super()._learn(table)
        self.typical_ = np.nanmedian(self._explained(table).to_numpy(), axis=0)
        self.decision_scores_ = self.decision_function(table)
        self._decide()

    def _require_arguments(self) -> None:
        super()._require_arguments()
        share = checks.share("contamination", self.contamination)
        checks.one_of("threshold", self.threshold, get_args(Threshold))
        if self.threshold == "peaks" and share > 1 - TAIL:
            raise ValueError(
                f"contamination must be at most {1 - TAIL:g} with threshold='peaks', which knows no scores below the "
                f"98th percentile, got {share}: take threshold='quantile'"
            )

    def _require_rows(self, rows: int) -> None:
        if self.threshold == "peaks":
            _above(np.arange(float(rows)))

    def _decide(self) -> None:
        of_scores = _quantile if self.threshold == "quantile" else _peaks
        self.threshold_ = of_scores(self.decision_scores_, float(self.contamination))
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(int)

    def _kept(self) -> dict[str, Tensor]:
        return {"typical": torch.tensor(self.typical_), "scores": torch.tensor(self.decision_scores_)}

    def _take(self, kept: Mapping[str, Tensor], place: str) -> None:
        if "scores" not in kept:
            raise CheckpointError(f"{place} was saved by an estimator that keeps no scores: fit and save a Detector")
        self.typical_, self.decision_scores_ = kept["typical"].numpy(), kept["scores"].numpy()
        self._decide()

    def decision_function(self, table: Table) -> NDArray[np.float64]:
        """Score each row of a table, in its order: (rows,) nats.

        Examples:
            >>> from vrnn_fast.tables import Detector
            >>> Detector(updates=1, window=16).fit(table).decision_function(table[:9]).shape
            (9,)
        """
        scores = self._scores(table, per_feature=False)[:, 0]
        missing = as_pandas(table)[list(self.reader_.features)].isna().to_numpy()
        found: NDArray[np.float64] = scores + np.where(missing, self.typical_, 0.0).sum(1)
        return found

    def explain(self, table: Table) -> Table:
        """Score each feature of each row on its own: a table of nats, its rows and features those of the given one; NaN
        where nothing was observed.

        Examples:
            >>> from vrnn_fast.tables import Detector
            >>> Detector(updates=1, window=16).fit(table).explain(table[:9]).columns.tolist()
            ['a', 'b']
        """
        self._require_fitted()
        return like(table, self._explained(as_pandas(table)))

    def _explained(self, table: pd.DataFrame) -> pd.DataFrame:
        scores = self._scores(table, per_feature=True)
        features = list(self.reader_.features)
        return pd.DataFrame(scores, index=table.index, columns=features).where(table[features].notna())

    def predict(self, table: Table) -> NDArray[np.int64]:
        """Tell which rows are anomalies: (rows,) 0 or 1.

        Examples:
            >>> from vrnn_fast.tables import Detector
            >>> Detector(updates=1, window=16).fit(table).predict(table[:9]).shape
            (9,)
        """
        return (self.decision_function(table) > self.threshold_).astype(np.int64)

    def fit_predict(self, table: Table, y: object = None) -> NDArray[np.int64]:
        """Learn from a table, and tell which of its rows are anomalies.

        Examples:
            >>> from vrnn_fast.tables import Detector
            >>> Detector(updates=1, window=16).fit_predict(table).shape
            (64,)
        """
        return self.fit(table).labels_

    @torch.no_grad()
    def _scores(self, table: Table, *, per_feature: bool) -> NDArray[np.float64]:
        every, particles = self._series(table), self._count("num_particles")
        found = np.zeros((len(table), len(self.reader_.features) if per_feature else 1))
        for part, batch, generator in self._batches(every, particles):
            scores = self.model_.score(
                batch.x,
                batch.lengths,
                num_particles=particles,
                per_feature=per_feature,
                mask=batch.mask,
                mask_inputs=True,
                cond=batch.cond,
                generator=generator,
            )
            scores = scores if per_feature else scores.unsqueeze(-1)
            for b, series in enumerate(part):
                found[series.rows] = scores[: len(series.rows), b].cpu().numpy()
        return found


def _quantile(scores: NDArray[np.float64], share: float) -> float:
    return float(np.quantile(scores, 1 - share))


def _peaks(scores: NDArray[np.float64], share: float) -> float:
    """Return the score that a share of rows exceeds, by the tail's distribution."""
    from scipy.stats import genpareto

    start, above = _above(scores)
    shape, _, scale = genpareto.fit(above, floc=0)
    return start + float(genpareto.isf(min(1.0, share * len(scores) / len(above)), shape, scale=scale))


def _above(scores: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Return where the tail of scores begins, and by how much those in it are above that.

    Raises:
        ValueError: they are too few.
    """
    start = float(np.quantile(scores, TAIL))
    above: NDArray[np.float64] = scores[scores > start] - start
    if len(above) < PEAKS:
        raise ValueError(
            f"threshold='peaks' needs {PEAKS} scores above their 98th percentile, got {len(above)} of {len(scores)} "
            "rows: fit on more rows, or take threshold='quantile'"
        )
    return start, above
