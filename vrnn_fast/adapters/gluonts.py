"""Forecasts by GluonTS's habits: an ``Estimator`` that trains a ``Predictor`` that yields ``SampleForecast``."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from gluonts.dataset.field_names import FieldName
from gluonts.dataset.util import forecast_start
from gluonts.model.estimator import Estimator as GluonEstimator
from gluonts.model.forecast import SampleForecast
from gluonts.model.predictor import Predictor

from ..tables import Forecaster, TableError

_AT_ONCE = 256  # entries of a data set
_ITEM = "item"
DataEntry = dict[str, Any]


class VRNNPredictor(Predictor):  # type: ignore[misc]  # GluonTS is untyped
    """Forecast the entries of a data set with a fitted :class:`~vrnn_fast.tables.Forecaster`.

    Args:
        forecaster: fitted by :class:`VRNNEstimator`.
    """

    def __init__(self, forecaster: Forecaster) -> None:
        super().__init__(prediction_length=forecaster.horizon)
        self.forecaster = forecaster

    def predict(self, dataset: Iterable[DataEntry], num_samples: int | None = None) -> Iterator[SampleForecast]:
        """Yield a forecast for each entry: samples (num_samples, horizon), or with another dimension for a target of
        several.

        Raises:
            TableError: an entry is not like those that were trained on.
        """
        forecaster, entries = self.forecaster, iter(dataset)
        if num_samples is not None:
            forecaster = copy.copy(forecaster)
            forecaster.num_samples = num_samples
        while part := list(islice(entries, _AT_ONCE)):
            table, future = table_of(part, self.prediction_length)
            drawn = forecaster.sample(table, future if forecaster.covariates else None)
            for i, entry in enumerate(part):
                samples = drawn[i] if np.ndim(entry[FieldName.TARGET]) == 2 else drawn[i][..., 0]
                yield SampleForecast(samples, forecast_start(entry), entry.get(FieldName.ITEM_ID))

    def serialize(self, path: Path) -> None:
        """Write the predictor into a folder."""
        super().serialize(path)
        self.forecaster.save(path)

    @classmethod
    def deserialize(cls, path: Path, **arguments: Any) -> VRNNPredictor:
        """Return the predictor that was written into a folder."""
        return cls(Forecaster.load(path, **arguments))


class VRNNEstimator(GluonEstimator):  # type: ignore[misc]
    """Train a :class:`~vrnn_fast.VRNN` on a data set of GluonTS: targets of one dimension or several, NaN where nothing
    was observed, and ``feat_dynamic_real``.

    Args:
        prediction_length: how many steps to forecast.
        arguments: of :class:`~vrnn_fast.tables.Forecaster`.
    """

    def __init__(self, prediction_length: int, **arguments: Any) -> None:
        super().__init__()
        self.prediction_length = prediction_length
        self.arguments = arguments

    def train(
        self, training_data: Iterable[DataEntry], validation_data: Iterable[DataEntry] | None = None
    ) -> VRNNPredictor:
        """Train a model; the end of each entry validates, as ``validation`` says.

        Raises:
            TableError: entries are not alike. ValueError: validation_data, which is not used, or a wrong argument.
        """
        if validation_data is not None:
            raise ValueError("validation_data is not taken: the end of each entry validates, see validation=")
        table, _ = table_of(list(training_data), 0)
        covariates = [name for name in table.columns if name.startswith("known")]
        given: dict[str, Any] = {"horizon": self.prediction_length, "id": _ITEM, "covariates": covariates}
        return VRNNPredictor(Forecaster(**given, **self.arguments).fit(table))


def table_of(entries: Sequence[DataEntry], horizon: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return entries as a table, a row for each step, and what is known of the steps to come.

    Raises:
        TableError: there are none, or their targets or known features differ in number or are too short.
    """
    past, later = [], []
    for i, entry in enumerate(entries):
        target = np.atleast_2d(np.asarray(entry[FieldName.TARGET], dtype=float))
        known = np.atleast_2d(np.asarray(entry.get(FieldName.FEAT_DYNAMIC_REAL, np.empty((0, 0))), dtype=float))
        steps = target.shape[1]
        if known.size and known.shape[1] < steps + horizon:
            raise TableError(
                f"feat_dynamic_real of entry {i} must have {steps + horizon} steps, the future's too, got "
                f"{known.shape[1]}"
            )
        known = known if known.size else np.empty((0, steps + horizon))
        told = pd.DataFrame({f"known {c}": row for c, row in enumerate(known)}, range(known.shape[1]))
        values = {f"target {x}": row for x, row in enumerate(target)}
        past.append(pd.DataFrame({_ITEM: i, **values}).join(told[:steps]))
        later.append(told[steps : steps + horizon].assign(**{_ITEM: i}))
    if not past:
        raise TableError("the data set has no entry")
    for i, table in enumerate(past):
        if list(table.columns) != list(past[0].columns):
            raise TableError(f"entry {i} has {list(table.columns)[1:]}, and the first one {list(past[0].columns)[1:]}")
    return pd.concat(past, ignore_index=True), pd.concat(later, ignore_index=True)
