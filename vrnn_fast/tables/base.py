"""What the estimators share: their arguments, and a model fitted to a table."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Self, get_args

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch.distributions import constraints

from .. import checks
from ..likelihoods import Likelihood, StudentT
from ..model import VRNN
from .fitting import Fitting, Windows, fit, stacked
from .reader import Columns, TableReader, TimeSeries

Tails = Literal["gaussian", "student"]
MOST = 1 << 23  # of T * B * particles * X in one launch, unless a single series has more


class Estimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A VRNN for tables, with the habits of scikit-learn: ``get_params``, ``clone``, pickled.

    A table is a ``pandas.DataFrame`` with a row for each time, in any order. NaN says that nothing was observed. Every
    column is scaled to mean 0 and standard deviation 1 of the table that the model is fitted on; answers are in the
    units of the table.

    Args:
        features: columns of x; None are all that are not named otherwise.
        id: the column that tells series apart; None is one series.
        time: the column of time stamps or numbers, by which rows are put in order; None takes them as they stand. Where
            steps differ, the model is told each.
        covariates: columns that are known at every time, the future's too: numbers, or words, which become one column
            for each.
        likelihood: ``"gaussian"``, or ``"student"`` for data with outliers of their own, or a likelihood object.
        hidden_size, latent_size: of the :class:`~vrnn_fast.VRNN`.
        updates, batch_size, learning_rate: of the training, by AdamW with a cosine schedule.
        window: time steps of the sequences that are cut out of the series, from anywhere.
        validation: share of each series, its end, that is held back: the parameters by which it is most likely stay.
        patience: validations, one every 50 updates, without a better one after which training ends; 0 trains to the
            end.
        num_particles: samples of the latent variables in every answer.
        seed: of every random choice.
        device, backend: where, and by whom, as for :class:`~vrnn_fast.VRNN`.

    Attributes:
        model_: the fitted model.
        reader_: how tables are read.
        history_: nats per step in each validation.

    Examples:
        >>> from vrnn_fast.tables import Detector
        >>> Detector(hidden_size=32).get_params()["hidden_size"]
        32
    """

    def __init__(
        self,
        *,
        features: Sequence[str] | None = None,
        id: str | None = None,
        time: str | None = None,
        covariates: Sequence[str] = (),
        likelihood: Tails | Likelihood = "gaussian",
        hidden_size: int = 64,
        latent_size: int = 8,
        updates: int = 1000,
        batch_size: int = 32,
        learning_rate: float = 3e-3,
        window: int = 128,
        validation: float = 0.1,
        patience: int = 5,
        num_particles: int = 32,
        seed: int = 0,
        device: str = "cpu",
        backend: str = "auto",
    ) -> None:
        self.features = features
        self.id = id
        self.time = time
        self.covariates = covariates
        self.likelihood = likelihood
        self.hidden_size = hidden_size
        self.latent_size = latent_size
        self.updates = updates
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.window = window
        self.validation = validation
        self.patience = patience
        self.num_particles = num_particles
        self.seed = seed
        self.device = device
        self.backend = backend

    def fit(self, table: pd.DataFrame, y: object = None) -> Self:
        """Learn from a table; ``y`` is there for pipelines alone.

        Raises:
            TableError: a column is missing, or holds what it must not. ValueError, TypeError: an argument out of its
                domain. RuntimeError: training diverged.

        Examples:
            >>> from vrnn_fast.tables import Imputer
            >>> len(Imputer(updates=1, window=16).fit(table).history_)
            1
        """
        for name in ("updates", "batch_size", "window", "num_particles"):
            checks.integer(name, getattr(self, name))
        for name in ("patience", "seed"):
            checks.integer(name, getattr(self, name), least=0)
        features = None if self.features is None else tuple(self.features)
        reader = TableReader.learn(table, Columns(features, self.id, self.time, tuple(self.covariates)))
        fitting = Fitting(
            self.updates,
            self.batch_size,
            self.window,
            checks.positive("learning_rate", self.learning_rate),
            checks.share("validation", self.validation),
            self.patience,
            self.seed,
        )
        model = self._built(reader)
        self.history_ = fit(model, reader.read(table), fitting)
        self.model_, self.reader_ = model, reader
        self.feature_names_in_ = np.asarray(table.columns, dtype=object)
        self.n_features_in_ = len(table.columns)
        return self

    def _built(self, reader: TableReader) -> VRNN:
        likelihood: str | Likelihood = self.likelihood
        if isinstance(likelihood, str):
            checks.one_of("likelihood", likelihood, get_args(Tails))
            likelihood = StudentT() if likelihood == "student" else likelihood
        elif isinstance(likelihood, Likelihood) and likelihood.support is not constraints.real:
            raise ValueError(f"likelihood must take any number, for columns are scaled, and {likelihood} does not")
        else:
            likelihood = copy.deepcopy(likelihood)  # one with parameters is trained with the model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return VRNN(
                len(reader.features),
                self.hidden_size,
                self.latent_size,
                likelihood=likelihood,
                cond_size=reader.cond_size,
                cond_networks=("encoder", "prior", "decoder", "cell"),
                backend=self.backend,
                dtype=torch.float32,
            ).to(self.device)

    def _require_fitted(self) -> None:
        check_is_fitted(self, "model_", msg="call fit before: this %(name)s has learnt from no table yet")

    def _series(self, table: pd.DataFrame) -> list[TimeSeries]:
        self._require_fitted()
        return self.reader_.read(table)

    def _batches(
        self, series: Sequence[TimeSeries], particles: int, horizon: int = 0
    ) -> Iterator[tuple[list[TimeSeries], Windows, Any]]:
        """Yield series of like lengths together with their windows and the generator of their noise."""
        device = next(self.model_.parameters()).device
        generator = torch.Generator(device).manual_seed(self.seed)
        waiting = sorted(series, key=lambda s: -len(s.values))
        while waiting:
            steps = max(len(waiting[0].values), horizon)
            count = max(1, MOST // (steps * particles * len(self.reader_.features)))
            part, waiting = waiting[:count], waiting[count:]
            yield part, stacked(part, device), generator
