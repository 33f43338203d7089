"""Anomalies by pyod's habits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyod", reason="pyod is not installed")
pytest.importorskip("pandas", reason="the extra `tables` is not installed")

from pyod.models.base import BaseDetector
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from vrnn_fast.adapters.pyod import VRNNDetector
from vrnn_fast.tables import Detector


def test_it_is_a_detector_of_pyod() -> None:
    hours, chance = np.arange(400), np.random.default_rng(0)
    X: Any = np.stack([np.sin(hours / 4), np.cos(hours / 4)], 1) + 0.1 * chance.normal(size=(400, 2))
    wrong = [100, 207, 333]
    X[wrong] *= -1
    X[50, 0] = np.nan
    inner = Detector(updates=200, window=48, hidden_size=16, latent_size=2)
    detector = VRNNDetector(contamination=0.02, detector=inner)
    assert isinstance(detector, BaseDetector)
    assert detector.fit(X) is detector
    assert set(np.argsort(detector.decision_scores_)[-3:]) <= {*wrong, *(w + 1 for w in wrong)}
    assert detector.labels_.sum() == 8
    np.testing.assert_array_equal(detector.decision_function(X), detector.decision_scores_)
    labels, confidence = detector.predict(X, return_confidence=True)
    np.testing.assert_array_equal(labels, detector.labels_)
    assert ((confidence >= 0) & (confidence <= 1)).all()
    assert detector.predict_proba(X).shape == (400, 2)
    again = clone(detector)
    assert again.get_params()["detector__updates"] == 200
    with pytest.raises(NotFittedError, match="call fit before"):
        again.decision_function(X)
    with pytest.raises(ValueError, match=r"X must be \(rows, features\), got shape \(400,\)"):
        again.fit(X[:, 0])
