"""Anomalies that were planted, forecasts of what is known, gaps whose truth is known; and scikit-learn's habits."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pandas", reason="the extra `tables` is not installed")
pytest.importorskip("sklearn", reason="the extra `tables` is not installed")

import pandas as pd
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from vrnn_fast import Likelihood, Poisson
from vrnn_fast.tables import Detector, Forecaster, Imputer, TableError, base

SMALL: dict[str, Any] = {
    "hidden_size": 24, "latent_size": 2, "updates": 300, "batch_size": 16, "window": 48, "id": "unit", "time": "hour"
}  # fmt: skip


def waves(rows: int = 480, seed: int = 0) -> Any:
    """Two units: a wave of 24 hours, its lagging echo, and a little noise."""
    chance, hours, parts = np.random.default_rng(seed), np.arange(rows), []
    for unit, phase in (("a", 0.0), ("b", 2.0)):
        wave = np.sin(2 * np.pi * hours / 24 + phase)
        echo = np.roll(wave, 3)
        noise = 0.1 * chance.normal(size=(2, rows))
        parts.append(
            pd.DataFrame({"unit": unit, "hour": hours, "wave": 10 + 2 * (wave + noise[0]), "echo": echo + noise[1]})
        )
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(contamination=0.02, **SMALL).fit(waves())


def test_planted_anomalies_have_the_highest_scores(detector: Detector) -> None:
    given = waves(seed=1)
    wrong = [50, 200, 333, 700, 801]
    given.loc[wrong, "echo"] += 2.0
    scores = detector.decision_function(given)
    assert scores.shape == (960,)
    assert set(np.argsort(scores)[-5:]) == set(wrong)
    labels = detector.predict(given)
    assert (labels[wrong] == 1).all()
    assert labels.mean() < 0.08
    which = detector.explain(given)
    assert (which.loc[wrong, "echo"] > which.loc[wrong, "wave"]).all()
    assert list(which.columns) == ["wave", "echo"]


def test_the_largest_float_is_an_anomaly_and_spoils_no_other_row(detector: Detector) -> None:
    given = waves(96)
    usual = detector.decision_function(given)
    given.loc[30, "wave"] = np.finfo(np.float32).max
    scores, labels = detector.decision_function(given), detector.predict(given)
    assert scores[30] > 1e30
    assert labels[30] == 1
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(scores[:30], usual[:30])
    given.loc[40:44, "echo"] = np.nan
    assert Imputer(**SMALL | {"updates": 1}).fit(waves(96)).transform(given).notna().all(axis=None)


def test_times_keep_their_unit_on_disk(tmp_path: Path) -> None:
    table = waves(48)
    table["hour"] = (pd.Timestamp("2026-01-01") + pd.to_timedelta(table["hour"], unit="h")).dt.as_unit("s")
    made = Forecaster(**SMALL | {"updates": 1}, horizon=2).fit(table)
    made.save(tmp_path)
    pd.testing.assert_frame_equal(Forecaster.load(tmp_path).predict(table), made.predict(table))


def test_counts_may_be_those_of_numpy(tmp_path: Path) -> None:
    counts = {name: np.int64(4) for name in ("hidden_size", "latent_size", "updates", "batch_size", "window", "seed")}
    made = Forecaster(**SMALL | counts, horizon=np.int64(2), num_samples=np.int16(8), quantiles=np.array([0.1, 0.9]))
    found = made.fit(waves(48)).predict(waves(48))
    made.save(tmp_path)
    pd.testing.assert_frame_equal(Forecaster.load(tmp_path).predict(waves(48)), found)
    with pytest.raises(ValueError, match=r"updates must be a positive int, got np.float64\(2\.0\)"):
        Forecaster(updates=np.float64(2.0)).fit(waves(48))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("quantiles", "said"),
    [
        (0.5, "quantiles must be numbers from 0 to 1, got 0.5"),
        ((0.5, 0.50000001), "quantiles must differ in six digits"),
    ],
)
def test_each_quantile_has_a_column(quantiles: Any, said: str) -> None:
    forecaster = Forecaster(**SMALL | {"updates": 1}, horizon=2).fit(waves(48)).set_params(quantiles=quantiles)
    for answer in (forecaster.fit, forecaster.predict, lambda given: forecaster.evaluate(given, given)):
        with pytest.raises((TypeError, ValueError), match=said):
            answer(waves(48))


@pytest.mark.parametrize("name", ["features", "covariates"])
def test_one_column_is_a_sequence_too(name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name} must be a sequence of columns, got 'wave': \['wave'\]"):
        Detector(**SMALL, **{name: "wave"}).fit(waves(48))


def test_labels_are_those_of_the_threshold(detector: Detector) -> None:
    assert detector.labels_.mean() == pytest.approx(0.02, abs=0.002)
    np.testing.assert_array_equal(detector.labels_, detector.decision_scores_ > detector.threshold_)
    assert detector.history_[-1] < detector.history_[0]


def test_the_order_of_rows_changes_nothing(detector: Detector) -> None:
    given = waves(96)
    mixed = given.sample(frac=1, random_state=3)
    found = pd.Series(detector.decision_function(mixed), index=mixed.index)
    np.testing.assert_array_equal(found.sort_index().to_numpy(), detector.decision_function(given))


def test_what_was_not_observed_counts_as_typical(detector: Detector) -> None:
    given = waves(96)
    given.loc[40, ["wave", "echo"]] = np.nan
    given.loc[41, "wave"] = np.nan
    scores, each = detector.decision_function(given), detector.explain(given)
    assert scores[40] == pytest.approx(detector.typical_.sum(), abs=1e-5)
    assert scores[41] == pytest.approx(each.loc[41, "echo"] + detector.typical_[0], abs=1e-4)
    assert np.isfinite(scores).all()
    pd.testing.assert_frame_equal(each.isna(), given[["wave", "echo"]].isna())


def test_gaps_are_no_anomalies() -> None:
    """Of data so regular that its density is far above 1: a score of 0 would be among the highest."""
    given, wrong = waves(seed=1), [62, 222, 702]
    gaps = np.arange(10, 960, 40)
    given.loc[gaps, ["wave", "echo"]] = np.nan
    given.loc[gaps + 5, "wave"] = np.nan
    given.loc[wrong, "echo"] += 2.0
    detector = Detector(contamination=0.01, **SMALL).fit(given)
    assert np.median(detector.decision_scores_) < -1
    assert (detector.labels_[wrong] == 1).all()
    assert (detector.labels_[gaps] == 0).all()
    assert detector.labels_[gaps + 5].mean() < 0.1


def test_peaks_over_the_threshold(detector: Detector) -> None:
    peaks = clone(detector).set_params(threshold="peaks", contamination=1e-4, updates=20).fit(waves())
    assert peaks.threshold_ > np.quantile(peaks.decision_scores_, 0.99)
    with pytest.raises(ValueError, match="threshold='peaks' needs 10 scores above"):
        clone(peaks).set_params(updates=1).fit(waves(48))


def test_a_forecast_is_better_than_the_past_average() -> None:
    given, later = waves(504), waves(504).query("hour >= 480")
    past = given.query("hour < 480")
    forecaster = Forecaster(horizon=24, quantiles=(0.05, 0.95), **SMALL).fit(past)
    table = forecaster.predict(past)
    assert list(table.columns) == ["unit", "hour", "feature", "mean", "q0.05", "q0.95"]
    assert len(table) == 2 * 24 * 2
    truth = later.melt(["unit", "hour"], var_name="feature", value_name="truth")
    both = table.merge(truth, on=["unit", "hour", "feature"])
    assert len(both) == len(table)
    inside = ((both["q0.05"] <= both["truth"]) & (both["truth"] <= both["q0.95"])).mean()
    assert 0.7 < inside <= 1.0
    found = forecaster.evaluate(past, later)
    assert list(found.columns) == ["unit", "feature", "crps", "coverage", "energy"]
    spread = past.groupby("unit")[["wave", "echo"]].std()
    spread = np.array([spread.loc[unit, feature] for unit, feature in found[["unit", "feature"]].to_numpy()])
    assert (found["crps"] < 0.28 * spread).all()  # a Gaussian that knows no time has 0.56 on average
    assert found["coverage"].mean() == pytest.approx(inside)
    with pytest.raises(TableError, match="truth must have the 24 rows of unit 'a'"):
        forecaster.evaluate(past, later.query("hour < 500"))
    with pytest.raises(TableError, match="rows of unit 'a' that come after the table, from 480 to 503"):
        forecaster.evaluate(past, later.assign(hour=later["hour"] + 1))


def test_scores_are_those_written_out() -> None:
    """The continuous ranked probability score and the energy score, from their definitions."""
    given = waves(96)
    past, later = given.query("hour < 90").copy(), given.query("hour >= 90").copy()
    later.loc[later.index[2], "wave"] = np.nan
    forecaster = Forecaster(horizon=6, num_samples=40, **SMALL | {"updates": 20}).fit(past)
    found, samples = forecaster.evaluate(past, later).set_index(["unit", "feature"]), forecaster.sample(past)
    for unit in "ab":
        right, drawn = later.query("unit == @unit")[["wave", "echo"]].to_numpy(), samples[unit]
        between = np.abs(drawn[:, None] - drawn[None]).mean((0, 1))
        crps = np.nanmean(np.abs(drawn - right).mean(0) - 0.5 * between, 0)
        np.testing.assert_allclose(found.loc[unit]["crps"], crps, rtol=1e-6)
        far = np.sqrt(np.square(drawn - right).sum(-1)).mean(0)
        apart = np.sqrt(np.square(drawn[:, None] - drawn[None]).sum(-1)).mean((0, 1))
        np.testing.assert_allclose(found.loc[unit]["energy"], np.nanmean(far - 0.5 * apart), rtol=1e-6)


def test_gaps_are_filled_better_than_by_the_average() -> None:
    whole, chance = waves(), np.random.default_rng(5)
    hidden = chance.random((len(whole), 2)) < 0.2
    given = whole.copy()
    given[["wave", "echo"]] = whole[["wave", "echo"]].mask(hidden)
    imputer = Imputer(num_particles=64, smoothed=True, **SMALL).fit(given)
    filled = imputer.transform(given)
    assert list(filled.columns) == list(given.columns)
    pd.testing.assert_frame_equal(filled.where(given.notna()), given)
    assert filled.notna().all().all()
    error = (filled[["wave", "echo"]] - whole[["wave", "echo"]]).to_numpy()[hidden]
    average = (given[["wave", "echo"]].mean() - whole[["wave", "echo"]]).to_numpy()[hidden]
    assert np.square(error).mean() < 0.25 * np.square(average).mean()


def test_what_is_filled_keeps_its_dtype_if_that_has_fractions() -> None:
    given = waves(96).drop(columns="echo")
    given["load"], given["count"] = given["wave"].astype("Float64"), np.arange(192)
    given["wave"], given["few"] = given["wave"].astype("float32"), given["count"].astype("Int64")
    given["on"] = (given["count"] % 2 == 0).astype("boolean")
    given["off"] = (~given["on"]).astype("bool[pyarrow]")
    given.loc[7, ["wave", "load", "few", "on", "off"]] = None
    given["read"] = given["on"].astype(object).where(given["on"].notna(), None)  # as from a file
    given.index = [0] * 192
    filled = Imputer(**SMALL | {"updates": 1}).fit_transform(given)
    kept = ["unit", "hour", "wave", "load", "count"]
    pd.testing.assert_series_equal(filled[kept].dtypes, given[kept].dtypes)
    assert [filled[name].dtype.name for name in ("few", "on", "off", "read")] == ["float64"] * 4
    assert filled.notna().all().all()
    seen = np.arange(192) != 7
    for name in given.columns:
        assert (filled[name].to_numpy()[seen] == given[name].to_numpy()[seen]).all()


class Learnt(Likelihood, torch.nn.Module):
    """Laplace's, of a scale that is a parameter."""

    independent = 1

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = torch.nn.Parameter(torch.zeros(()))

    def log_prob(self, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return -((x - raw).abs() / self.log_scale.exp() + self.log_scale + np.log(2)).sum(-1)


def test_fitting_leaves_the_arguments_alone_and_may_be_repeated() -> None:
    likelihood = Learnt()
    detector = Detector(likelihood=likelihood, **SMALL | {"updates": 20})
    scores = detector.fit(waves(96)).decision_scores_
    assert likelihood.log_scale.item() == 0
    assert detector.model_.likelihood.log_scale.item() != 0
    np.testing.assert_array_equal(detector.fit(waves(96)).decision_scores_, scores)


def test_torchs_default_dtype_is_no_affair_of_a_table() -> None:
    given, small = waves(48), SMALL | {"updates": 1}
    right = Detector(**small).fit(given).decision_scores_
    torch.set_default_dtype(torch.float64)
    try:
        found = Detector(**small).fit(given).decision_scores_
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(found, right)


def test_a_series_of_one_row_is_trained_on() -> None:
    given = pd.DataFrame({"unit": range(8), "a": np.arange(8.0)})
    assert len(Detector(id="unit", updates=1, window=4, validation=0.6).fit(given).history_) == 1


def test_habits() -> None:
    made = Detector(contamination=0.05, hidden_size=12, covariates=["day"])
    assert made.get_params()["hidden_size"] == 12
    again = clone(made)
    assert again.get_params() == made.get_params()
    assert again.set_params(threshold="peaks").threshold == "peaks"
    assert "contamination=0.05" in repr(made)
    with pytest.raises(NotFittedError, match="call fit before: this Forecaster has learnt from no table yet"):
        Forecaster().predict(waves())
    for kind in (Detector, Forecaster, Imputer):
        assert clone(kind(updates=2)).updates == 2


def test_it_stands_in_a_pipeline() -> None:
    given, small = waves(48), SMALL | {"updates": 1}
    given.loc[7, "wave"] = np.nan
    pipeline = make_pipeline(Imputer(**small), Detector(**small)).set_output(transform="pandas")
    again = clone(pipeline).fit(given)
    np.testing.assert_array_equal(again.decision_function(given), pipeline.fit(given).decision_function(given))
    assert again[0].get_feature_names_out().tolist() == list(given.columns)
    assert again.n_features_in_ == 4
    assert "Imputer" in again._repr_html_()


def test_a_fit_that_fails_leaves_the_last_one() -> None:
    detector = Detector(**SMALL | {"updates": 20}).fit(waves(48))
    before = detector.decision_function(waves(48))
    with pytest.raises(RuntimeError, match="training diverged"):
        detector.set_params(learning_rate=1e30).fit(waves(96).drop(columns="echo"))
    np.testing.assert_array_equal(detector.decision_function(waves(48)), before)


def test_a_threshold_that_fails_leaves_the_last_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where scores are alike fewer of them are peaks than there are rows for, which only training tells."""
    detector = Detector(**SMALL | {"updates": 1}).fit(waves(48))
    before = dict(vars(detector))
    monkeypatch.setattr(Detector, "decision_function", lambda _, table: np.zeros(len(table)))
    with pytest.raises(ValueError, match="needs 10 scores above their 98th percentile, got 0 of 600 rows"):
        detector.set_params(threshold="peaks").fit(waves(300))
    assert vars(detector) == {**before, "threshold": "peaks"}


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        (
            Detector,
            {"threshold": "peaks", "contamination": 0.05},
            r"contamination must be at most 0\.02 with threshold=",
        ),
        (
            Detector,
            {"threshold": "peaks"},
            r"needs 10 scores above their 98th percentile, got 2 of 96 rows: fit on more",
        ),
        (Detector, {"contamination": 3.0}, "contamination must be a number from 0 to 1"),
        (Forecaster, {"horizon": 0}, "horizon must be a positive int, got 0"),
        (Forecaster, {"num_samples": 0}, "num_samples must be a positive int, got 0"),
        (Forecaster, {"quantiles": (7,)}, "quantiles must be a number from 0 to 1, got 7"),
        (Imputer, {"num_samples": 0}, "num_samples must be a positive int, got 0"),
        (Imputer, {"smoothed": "x"}, "smoothed must be True or False, got 'x'"),
        (
            Imputer,
            {"likelihood": None},
            "likelihood must be one of 'gaussian', 'student', or a likelihood object, got None",
        ),
        (Imputer, {"covariates": None}, r"covariates must be a sequence of columns, got None"),
        (Imputer, {"features": [["wave"]]}, r"features must be a sequence of columns, got \[\['wave'\]\]"),
        (Imputer, {"id": ["unit"]}, r"id must be the name of a column, got \['unit'\]"),
        (Imputer, {"features": 5}, r"features must be a sequence of columns, got 5"),
        (Imputer, {"seed": 2**70}, r"seed must be an int from 0 to 9223372036854775807, got 1180591620717411303424"),
        (Imputer, {"hidden_size": 0}, "hidden_size must be a positive int, got 0"),
        (Imputer, {"device": "meta"}, "device must be one that torch has here, such as 'cpu', got 'meta'"),
        (Imputer, {"backend": "none"}, "backend must be one of auto"),
    ],
)
def test_what_is_wrong_is_said_before_training(
    kind: Any, arguments: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Detector(**SMALL | {"updates": 1}).fit(waves(48)).save(tmp_path)
    monkeypatch.setattr(base, "fit", lambda *_: pytest.fail("it trains"))
    with pytest.raises((ValueError, TypeError), match=said):
        kind(**SMALL | arguments).fit(waves(48))
    if not {"likelihood", "covariates", "features", "id", "hidden_size"} & set(arguments):
        with pytest.raises((ValueError, TypeError), match=said.partition(", got 2 of")[0]):
            kind.load(tmp_path, **arguments)


def test_a_feature_is_named_as_the_table_names_it() -> None:
    values, small = np.random.default_rng(0).normal(size=(48, 2)), {"updates": 1, "window": 16, "horizon": 2}
    for names in (["a", "b"], [0, 1], pd.MultiIndex.from_product([["heat"], ["in", "out"]])):
        given = pd.DataFrame(values, columns=names)
        found = Forecaster(**small).fit(given).predict(given)
        assert found["feature"].tolist() == [name for name in names for _ in range(2)]


@pytest.mark.parametrize("name", ["q0.5", "mean", "feature"])
@pytest.mark.parametrize("role", ["id", "time"])
def test_no_column_of_a_forecast_takes_the_place_of_another(
    name: str, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, own = waves(48), SMALL | {"updates": 1, role: name}
    table = table.rename(columns={{"id": "unit", "time": "hour"}[role]: name})
    forecaster = Forecaster(**own | {"quantiles": (0.1,)} if name == "q0.5" else own)
    said = f"a forecast has another column '{name}': rename the one of the table"
    if name == "q0.5":
        forecaster.fit(table).set_params(quantiles=(0.5,))
        with pytest.raises(TableError, match=said):
            forecaster.predict(table)
    monkeypatch.setattr(base, "fit", lambda *_: pytest.fail("it trains"))
    with pytest.raises(TableError, match=said):
        forecaster.fit(table)


@pytest.mark.parametrize("name", ["crps", "coverage", "energy"])
def test_no_column_of_an_evaluation_takes_the_place_of_another(name: str) -> None:
    table = waves(48).rename(columns={"unit": name})
    forecaster = Forecaster(**SMALL | {"updates": 1, "id": name}, horizon=2).fit(table)
    with pytest.raises(TableError, match=f"what a forecast scores has another column '{name}': rename"):
        forecaster.evaluate(table, table)


@pytest.mark.filterwarnings("error")
def test_what_never_came_has_no_score() -> None:
    past, later = waves(48).query("hour < 46"), waves(48).query("hour >= 46").assign(wave=np.nan)
    found = Forecaster(**SMALL | {"updates": 1}, horizon=2).fit(past).evaluate(past, later).set_index("feature")
    assert found.loc["wave", ["crps", "coverage"]].isna().all(axis=None)
    assert found.loc["echo", ["crps", "coverage"]].notna().all(axis=None)
    assert found["energy"].isna().all()


def test_what_is_loaded_has_the_arguments_of_what_was_saved(tmp_path: Path) -> None:
    for covariates, device in (((), "cpu"), ([], torch.device("cpu"))):
        made = Forecaster(updates=1, window=16, covariates=covariates, device=device, quantiles=(0.5,), horizon=2)
        made.fit(waves(48)[["wave"]]).save(tmp_path)
        again = Forecaster.load(tmp_path)
        assert again.get_params() == {**made.get_params(), "device": "cpu"}
        assert (repr(again) == repr(made)) is (device == "cpu")
        assert again.device == "cpu"


def test_ids_are_of_the_dtype_that_they_have_in_the_table() -> None:
    table = waves(48)
    for dtype in ("category", "string", pd.CategoricalDtype(["b", "none", "a"])):
        given = table.astype({"unit": dtype})
        forecaster = Forecaster(**SMALL | {"updates": 1}, horizon=2).fit(given)
        assert forecaster.predict(given)["unit"].dtype == given["unit"].dtype
        past = forecaster.fit(given.query("hour < 46"))
        assert past.evaluate(given.query("hour < 46"), given.query("hour >= 46"))["unit"].dtype == given["unit"].dtype


def test_a_launch_has_a_limit_whatever_the_horizon(monkeypatch: pytest.MonkeyPatch) -> None:
    forecaster = Forecaster(horizon=100, num_samples=5, **SMALL | {"updates": 1}).fit(waves(10))
    launches, forecast = [], forecaster.model_.forecast
    monkeypatch.setattr(base, "MOST", 100 * 5 * 2)
    monkeypatch.setattr(
        forecaster.model_, "forecast", lambda x, *rest, **k: launches.append(x) or forecast(x, *rest, **k)
    )
    assert len(forecaster.predict(waves(10))) == 2 * 100 * 2
    assert [x.shape[1] for x in launches] == [1, 1]


def test_a_seed_repeats_it_and_pickles_answer_the_same(detector: Detector) -> None:
    given = waves(96)
    before = detector.decision_function(given)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(detector)).decision_function(given), before)
    twice = [Detector(**SMALL | {"updates": 60}).fit(waves(96)).decision_scores_ for _ in range(2)]
    np.testing.assert_array_equal(*twice)


def test_covariates_and_uneven_steps_reach_the_model() -> None:
    chance = np.random.default_rng(0)
    on = chance.random(400) < 0.5
    given = pd.DataFrame({"day": np.where(on, "work", "rest"), "x": 4.0 * on + 0.1 * chance.normal(size=400)})
    forecaster = Forecaster(
        horizon=2, covariates=["day"], updates=300, window=40, hidden_size=16, latent_size=1, quantiles=()
    ).fit(given)
    found = forecaster.predict(given, pd.DataFrame({"day": ["work", "rest"]}))
    np.testing.assert_allclose(found["mean"], [4, 0], atol=0.6)
    with pytest.raises(TableError, match="future must be given"):
        forecaster.predict(given)


def test_arguments() -> None:
    for wrong, match in (
        ({"updates": 0}, "updates must be a positive int, got 0"),
        ({"likelihood": Poisson()}, r"likelihood must take any number, for columns are scaled, and Poisson\(min_mean"),
        ({"likelihood": "normal"}, "likelihood must be one of gaussian, student, got 'normal'"),
        ({"validation": 2.0}, "validation must be a number from 0 to 1"),
        ({"learning_rate": 0.0}, "learning_rate must be a number > 0"),
    ):
        with pytest.raises(ValueError, match=match):
            Forecaster(**SMALL | wrong).fit(waves(48))
    with pytest.raises(ValueError, match="contamination must be a number from 0 to 1"):
        Detector(contamination=3.0, **SMALL).fit(waves(48))
    with pytest.raises(ValueError, match=r"contamination must be at most 0\.02 with threshold='peaks'"):
        Detector(contamination=0.05, threshold="peaks", **SMALL | {"updates": 1}).fit(waves(48))
    with pytest.raises(TypeError, match="table must be a DataFrame of pandas or polars, got int"):
        Detector(**SMALL | {"updates": 1}).fit(waves(48)).predict(5)  # type: ignore[arg-type]
    for name in ("time", "feature", "mean"):
        named = waves(48).rename(columns={"unit": name}).drop(columns="hour")
        with pytest.raises(TableError, match=f"a forecast has another column '{name}': rename the one of the table"):
            Forecaster(id=name, updates=1, window=16).fit(named).predict(named)
    for ask in (Detector().explain, Detector().decision_function, Imputer().transform):
        with pytest.raises(NotFittedError, match="call fit before"):
            ask(waves(48))
    with pytest.raises(TableError, match="future holds covariates, and this model was fitted without any"):
        Forecaster(**SMALL | {"updates": 1}).fit(waves(48)).predict(waves(48), waves(48))


def test_what_was_not_changed_is_not_printed() -> None:
    assert repr(Forecaster(horizon=3, updates=5)) == "Forecaster(horizon=3, updates=5)"
    assert repr(Imputer()) == "Imputer()"
    assert "verbose" in Detector().get_params()


def test_forecasts_are_in_the_zone_of_the_table() -> None:
    hours = pd.date_range("2026-10-24", periods=48, freq="h", tz="Europe/Berlin")
    given = pd.DataFrame({"stamp": hours, "a": np.arange(48.0)})
    found = Forecaster(horizon=2, time="stamp", updates=1, window=16).fit(given).predict(given)
    assert list(found["stamp"]) == list(pd.date_range(hours[-1], periods=3, freq="h")[1:])
