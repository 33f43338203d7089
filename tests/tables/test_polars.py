"""Tables of polars: the answers to those of pandas, as tables of polars."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pd = pytest.importorskip("pandas", reason="the extra `tables` is not installed")
pytest.importorskip("sklearn", reason="the extra `tables` is not installed")
polars = pytest.importorskip("polars", reason="polars is not installed")

from vrnn_fast.tables import Detector, Forecaster, Imputer, TableError  # noqa: E402

SMALL: dict[str, Any] = {
    "hidden_size": 8, "latent_size": 2, "updates": 3, "window": 24, "id": "unit", "time": "stamp", "covariates": ["day"]
}  # fmt: skip


def sensors() -> Any:
    chance, rows = np.random.default_rng(0), 48
    hours = polars.datetime_range(
        polars.datetime(2026, 1, 1), polars.datetime(2026, 1, 2, 23), "1h", eager=True, time_zone="UTC"
    )
    parts = [
        polars.DataFrame(
            {
                "unit": [unit] * rows,
                "stamp": hours,
                "day": polars.Series(np.where(hours.dt.weekday() == 4, "work", "rest"), dtype=polars.Categorical),
                "heat": polars.Series(chance.normal(size=rows), dtype=polars.Float32),
                "count": [None if row == 7 else row for row in range(rows)],
            }
        )
        for unit in "ab"
    ]
    return polars.concat(parts)


def test_answers_are_those_to_pandas() -> None:
    given = sensors()
    same = given.to_pandas()
    detector, other = Detector(**SMALL).fit(given), Detector(**SMALL).fit(same)
    np.testing.assert_array_equal(detector.decision_function(given), other.decision_scores_)
    np.testing.assert_array_equal(detector.predict(given), other.labels_)
    explained = detector.explain(given)
    assert isinstance(explained, polars.DataFrame)
    assert explained["count"].null_count() == 2
    pd.testing.assert_frame_equal(explained.to_pandas(), other.explain(same))

    future = given.filter(polars.col("stamp") >= polars.col("stamp").max().dt.offset_by("-5h"))
    past = given.filter(polars.col("stamp") < future["stamp"].min())
    forecaster = Forecaster(horizon=6, num_samples=20, **SMALL).fit(past)
    found = forecaster.predict(past, future)
    assert isinstance(found, polars.DataFrame)
    assert found.schema["stamp"] == given.schema["stamp"]
    expected = forecaster.predict(past.to_pandas(), future.to_pandas())
    np.testing.assert_array_equal(found["mean"], expected["mean"])
    assert isinstance(forecaster.evaluate(past, future, future), polars.DataFrame)
    assert forecaster.sample(past, future)["a"].shape == (20, 6, 2)


def test_what_is_filled_is_all_that_changes() -> None:
    given = sensors()
    filled = Imputer(**SMALL).fit_transform(given)
    assert isinstance(filled, polars.DataFrame)
    assert filled.drop("count").equals(given.drop("count"))
    assert filled.schema == {**given.schema, "count": polars.Float64}
    assert filled["count"].null_count() == 0
    seen = given["count"].is_not_null()
    assert (filled.filter(seen)["count"] == given.filter(seen)["count"]).all()


def test_what_is_wrong_is_said_as_of_pandas(tmp_path: Path) -> None:
    given = sensors()
    with pytest.raises(TypeError, match="got LazyFrame: collect it first"):
        Detector(**SMALL).fit(given.lazy())
    with pytest.raises(TableError, match="the table has no column 'unit'"):
        Detector(**SMALL).fit(given.drop("unit"))
    with pytest.raises(TableError, match="column 'heat' holds "):
        Detector(**SMALL).fit(given.with_columns(heat=polars.lit("much")))
    with pytest.raises(TypeError, match="table must be a DataFrame of pandas or polars, got Series"):
        Detector(**SMALL).fit(given["heat"])
    Imputer(**SMALL).fit(given).save(tmp_path)
    assert Imputer.load(tmp_path).feature_names_in_.tolist() == given.columns


def test_booleans_with_nulls_and_decimals_are_numbers() -> None:
    given = sensors().with_columns(
        on=polars.Series([None if row == 3 else row % 2 == 0 for row in range(96)]),
        price=polars.Series(np.arange(96) / 4, dtype=polars.Float64).cast(polars.Decimal(10, 2)),
    )
    same = given.to_pandas().astype({"on": "boolean", "price": float})
    imputer, other = Imputer(**SMALL).fit(given), Imputer(**SMALL).fit(same)
    assert imputer.reader_.features == ("heat", "count", "on", "price")
    filled, expected = imputer.transform(given), other.transform(same)
    assert filled.schema["price"] == given.schema["price"]  # it has no gap
    np.testing.assert_array_equal(filled["on"], expected["on"])
    np.testing.assert_array_equal(
        Detector(**SMALL).fit(given).decision_scores_, Detector(**SMALL).fit(same).decision_scores_
    )


def test_ids_and_days_come_back_as_they_came() -> None:
    days = polars.date_range(polars.date(2026, 1, 1), polars.date(2026, 2, 17), "1d", eager=True)
    ids = polars.Series(["a"] * 48 + ["b"] * 48)
    for unit in (
        polars.Series([3] * 48 + [5] * 48, dtype=polars.Int8),
        ids.cast(polars.Categorical),
        ids.cast(polars.Enum(["b", "none", "a"])),
        ids,
    ):
        given = sensors().with_columns(stamp=polars.concat([days, days]), unit=unit)
        forecaster = Forecaster(**SMALL | {"covariates": ()}, horizon=2, num_samples=4, features=["heat"]).fit(given)
        found = forecaster.predict(given)
        assert found.schema["unit"] == given.schema["unit"]
        assert set(found["unit"]) == set(unit)
        assert found.schema["stamp"] == polars.Date
        assert found["stamp"].unique().sort().to_list() == [days[-1] + dt.timedelta(1), days[-1] + dt.timedelta(2)]
        past = given.filter(polars.col("stamp") <= days[-3])
        truth = given.filter(polars.col("stamp") > days[-3])
        assert forecaster.evaluate(past, truth).schema["unit"] == given.schema["unit"]
