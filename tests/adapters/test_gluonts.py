"""Forecasts by GluonTS's habits, by its own evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gluonts", reason="gluonts is not installed")
pd = pytest.importorskip("pandas", reason="the extra `tables` is not installed")

from gluonts.dataset.common import ListDataset  # noqa: E402
from gluonts.evaluation import make_evaluation_predictions  # noqa: E402
from gluonts.model.forecast import SampleForecast  # noqa: E402
from gluonts.model.predictor import Predictor  # noqa: E402

from vrnn_fast.adapters.gluonts import VRNNEstimator, table_of  # noqa: E402
from vrnn_fast.tables import TableError  # noqa: E402

SMALL: dict[str, Any] = {"hidden_size": 16, "latent_size": 2, "window": 48, "batch_size": 16}
HORIZON = 12


def waves(count: int = 3, rows: int = 240, **more: Any) -> list[dict[str, Any]]:
    """Waves of 24 hours, and a little noise, at different heights."""
    chance, hours = np.random.default_rng(0), np.arange(rows)
    return [
        {
            "item_id": f"item {i}",
            "start": "2026-01-01 00:00",
            "target": 10 + np.sin(2 * np.pi * (hours + 5 * i) / 24) + 0.1 * chance.normal(size=rows),
            **more,
        }
        for i in range(count)
    ]


def test_forecasts_are_evaluated_by_gluonts() -> None:
    data = ListDataset(waves(), freq="h")
    predictor = VRNNEstimator(HORIZON, updates=300, **SMALL).train(data)
    forecasts, truths = make_evaluation_predictions(data, predictor, num_samples=50)
    found, right = list(forecasts), list(truths)
    assert [f.item_id for f in found] == ["item 0", "item 1", "item 2"]
    for forecast, truth in zip(found, right, strict=True):
        assert isinstance(forecast, SampleForecast)
        assert forecast.samples.shape == (50, HORIZON)
        assert forecast.start_date == truth.index[-HORIZON]
        error = forecast.quantile(0.5) - truth[-HORIZON:].to_numpy()[:, 0]
        assert np.abs(error).mean() < 0.3


def test_targets_of_several_dimensions_with_known_features_and_gaps(tmp_path: Path) -> None:
    rows, chance = 60, np.random.default_rng(0)
    target = chance.normal(size=(2, rows))
    target[0, 5:9] = np.nan
    entry = {"start": "2026-01-01", "target": target, "feat_dynamic_real": chance.normal(size=(1, rows + HORIZON))}
    data = ListDataset([entry], freq="D", one_dim_target=False)
    predictor = VRNNEstimator(HORIZON, updates=2, num_samples=7, **SMALL).train(data)
    (forecast,) = predictor.predict(data)
    assert forecast.samples.shape == (7, HORIZON, 2)
    assert forecast.item_id is None
    assert forecast.start_date == pd.Period("2026-03-02", freq="D")
    predictor.serialize(tmp_path)
    (again,) = Predictor.deserialize(tmp_path).predict(data)
    np.testing.assert_array_equal(again.samples, forecast.samples)
    with pytest.raises(TableError, match="feat_dynamic_real of entry 0 must have 72 steps, the future's too, got 60"):
        list(predictor.predict([{**next(iter(data)), "feat_dynamic_real": np.zeros((1, rows))}]))
    with pytest.raises(TableError, match="entry 1 has"):
        table_of([next(iter(data)), {**next(iter(data)), "target": target[:1]}], HORIZON)
    with pytest.raises(TableError, match="the data set has no entry"):
        VRNNEstimator(HORIZON, **SMALL).train([])
    with pytest.raises(ValueError, match="validation_data is not taken"):
        VRNNEstimator(HORIZON, **SMALL).train(data, data)
