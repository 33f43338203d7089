"""Anomalies by pyod's habits: a ``BaseDetector`` of arrays whose rows follow each other in time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyod.models.base import BaseDetector
from sklearn.base import clone

from ..tables import Detector

if TYPE_CHECKING:
    from typing_extensions import Self


class VRNNDetector(BaseDetector):  # type: ignore[misc]  # pyod is untyped
    """Find anomalies in an array (rows, features), one series in the order of time; NaN where nothing was observed.

    Args:
        contamination: share of the rows that it is fitted on which shall be called anomalies.
        detector: a :class:`~vrnn_fast.tables.Detector` with other arguments than the default ones; a copy of it is
            fitted.
    """

    def __init__(self, contamination: float = 0.1, detector: Detector | None = None) -> None:
        super().__init__(contamination=contamination)
        self.detector = detector

    def fit(self, X: Any, y: object = None) -> Self:
        """Learn from an array, and find its own anomalies; ``y`` is ignored."""
        table = _table(X)
        self.detector_ = clone(self.detector or Detector()).fit(table)
        self._set_n_classes(None)
        self.n_features_in_ = table.shape[1]
        self.decision_scores_ = self.detector_.decision_scores_
        self._process_decision_scores()
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Score the rows of an array: -log p(row | the rows before it), nats."""
        if not hasattr(self, "detector_"):
            self.detector_ = clone(self.detector or Detector())  # which says that it is not fitted
        scores: NDArray[np.float64] = self.detector_.decision_function(_table(X))
        return scores


def _table(X: Any) -> pd.DataFrame:
    values = np.asarray(X, dtype=float)
    if values.ndim != 2:
        raise ValueError(f"X must be (rows, features), got shape {values.shape}")
    return pd.DataFrame(values, columns=[f"feature {i}" for i in range(values.shape[1])])
