"""What the estimators share: their arguments, and a model fitted to a table."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.distributions import constraints

from .. import checks, executors
from ..likelihoods import Likelihood, StudentT
from ..model import VRNN
from . import saved
from .fitting import Fitting, Windows, fit, stacked
from .frames import Table, as_pandas
from .reader import Columns, TableReader, TimeSeries

if TYPE_CHECKING:
    from typing_extensions import Self

Tails = Literal["gaussian", "student"]
_OF_THE_MODEL = ("features", "id", "time", "covariates", "likelihood", "hidden_size", "latent_size")
_COUNTS = {  # and the least that each may be
    "hidden_size": 1, "latent_size": 0, "updates": 1, "batch_size": 1, "window": 1, "patience": 0, "num_particles": 1,
    "seed": 0,
}  # fmt: skip
MOST = 1 << 23  # of T * B * particles * X in one launch, unless a single series has more


class Estimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A VRNN for tables, with the habits of scikit-learn: ``get_params``, ``clone``, pickled.

    A table is a ``DataFrame`` of pandas or polars with a row for each time, in any order. NaN, or null, says that
    nothing was observed. Every column is scaled to mean 0 and standard deviation 1 of the rows that the model is
    trained on, and left as wide as it is where it was constant there; answers are in the units of the table.

    Args:
        features: columns of x; None are all that are not named otherwise.
        id: the column that tells series apart; None is one series.
        time: the column of time stamps or numbers, by which rows are put in order; None takes them as they stand. Where
            steps differ, the model is told each.
        covariates: columns that are known at every time, the future's too: numbers, or words, which become one column
            for each.
        likelihood: ``"gaussian"``, or ``"student"`` for data with outliers of their own, or a likelihood object.
        hidden_size: width of the recurrent state.
        latent_size: width of z.
        updates: steps of the training, by AdamW with a cosine schedule.
        batch_size: sequences of each of them.
        learning_rate: AdamW's, at its highest.
        window: time steps of the sequences that are cut out of the series, from anywhere.
        validation: share of each series, its end, that is held back: the parameters by which it is most likely stay.
        patience: validations, one every 50 updates, without a better one after which training ends; 0 trains to the
            end.
        num_particles: samples of the latent variables in every answer.
        seed: of every random choice.
        verbose: whether to print each validation.
        device: of the model, which computes every answer there.
        backend: who runs the model: ``"auto"``, or a name that ``vrnn-fast info`` lists.

    Attributes:
        model_: the fitted model.
        reader_: how tables are read.
        history_: nats per step in each validation.

    Examples:
        >>> from vrnn_fast.tables import Detector
        >>> Detector(hidden_size=32).get_params()["hidden_size"]
        32
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Let the arguments of all estimators be seen among those of each: of a copy and of what is printed."""
        super().__init_subclass__(**arguments)
        own = inspect.signature(cls.__init__)
        shared = inspect.signature(Estimator.__init__, eval_str=True)
        every = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        every += [p for p in shared.parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
        cls.__init__.__signature__ = own.replace(parameters=every)  # type: ignore[attr-defined]

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
        verbose: bool = False,
        device: torch.device | str = "cpu",
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
        self.verbose = verbose
        self.device = device
        self.backend = backend

    def fit(self, table: Table, y: object = None) -> Self:
        """Learn from a table; ``y`` is there for pipelines alone.

        Raises:
            TableError: a column is missing, or holds what it must not. ValueError, TypeError: an argument out of its
                domain. RuntimeError: training diverged.

        Examples:
            >>> from vrnn_fast.tables import Imputer
            >>> len(Imputer(updates=1, window=16).fit(table).history_)
            1
        """
        learner = copy.copy(self)  # what was learnt before stays until all of it is learnt anew
        learner._learn(as_pandas(table))
        self.__dict__.update(learner.__dict__)
        return self

    def _learn(self, table: pd.DataFrame) -> None:
        """Learn all that is known after :meth:`fit`."""
        self._require_arguments()
        features = None if self.features is None else tuple(self.features)
        validation = checks.share("validation", self.validation)
        reader = TableReader.learn(table, Columns(features, self.id, self.time, tuple(self.covariates)), validation)
        self._require_rows(len(table))
        fitting = Fitting(
            self._count("updates"),
            self._count("batch_size"),
            self._count("window"),
            checks.positive("learning_rate", self.learning_rate),
            validation,
            self._count("patience"),
            self._count("seed"),
            self.verbose,
        )
        model = self._built(reader)
        self._learnt(model, reader, fit(model, reader.read(table), fitting), list(table.columns))

    def _require_arguments(self) -> None:
        """Raise ValueError or TypeError, naming it, where an argument is out of its domain."""
        for name in _COUNTS:
            self._count(name)
        checks.flag("verbose", self.verbose)
        for name in ("id", "time"):
            if not isinstance(given := getattr(self, name), Hashable):
                raise TypeError(f"{name} must be the name of a column, got {given!r}")
        for name in ("features", "covariates"):
            given = getattr(self, name)
            if isinstance(given, str):
                raise TypeError(f"{name} must be a sequence of columns, got {given!r}: [{given!r}]")
            if given is None and name == "features":
                continue
            if not isinstance(given, Iterable) or not all(isinstance(column, Hashable) for column in given):
                raise TypeError(f"{name} must be a sequence of columns, got {given!r}")
        checks.share("validation", self.validation)
        checks.positive("learning_rate", self.learning_rate)
        checks.one_of("backend", self.backend, executors.names())
        _device(self.device)
        if isinstance(self.likelihood, str):
            checks.one_of("likelihood", self.likelihood, get_args(Tails))
        elif not isinstance(self.likelihood, Likelihood):
            allowed = ", ".join(map(repr, get_args(Tails)))
            raise TypeError(f"likelihood must be one of {allowed}, or a likelihood object, got {self.likelihood!r}")
        elif self.likelihood.support is not constraints.real:
            raise ValueError(f"likelihood must take any number, for columns are scaled, and {self.likelihood} does not")

    def _require_rows(self, rows: int) -> None:
        """Raise ValueError where a table has too few rows to learn from."""

    def save(self, folder: str | PathLike[str]) -> None:
        """Write what was learnt into a folder, as a file of tensors and plain words: nothing in it is ever unpickled.

        Raises:
            TableError: the likelihood is a class of your own, or a category neither a word nor a number. ImportError:
                safetensors is not installed.

        Examples:
            >>> from vrnn_fast.tables import Forecaster
            >>> Forecaster(updates=1, window=16).fit(table).save(folder)
        """
        self._require_fitted()
        kind, columns = type(self).__name__, list(self.feature_names_in_)
        learnt = saved.Learnt(kind, self.model_, self.reader_, self.history_, columns, self._kept())
        saved.save(Path(folder), self.get_params(deep=False), learnt)

    @classmethod
    def load(cls, folder: str | PathLike[str], **arguments: Any) -> Self:
        """Return an estimator that knows what was saved in a folder by one of any of the three kinds, or left there by
        ``vrnn-fast train``.

        Args:
            arguments: instead of those of the one that was saved, which one of another kind has in common with it; none
                of what the model was built by.

        Raises:
            CheckpointError: the folder holds no such file, or it is damaged. ValueError, TypeError: of an argument.

        Examples:
            >>> from vrnn_fast.tables import Detector, Imputer
            >>> Detector(updates=1, window=16).fit(table).save(folder)
            >>> Imputer.load(folder, smoothed=True).transform(table).equals(table)
            True
        """
        for name in _OF_THE_MODEL:
            if name in arguments:
                raise ValueError(f"{name} must be that of the model in {folder}, which has learnt: leave it out")
        given, learnt = saved.load(Path(folder))
        kind = cls if learnt.kind == cls.__name__ else Estimator
        shared = {name: given[name] for name in kind._get_param_names()}
        made = cls(**{**shared, **arguments})
        made._require_arguments()
        learnt.model.backend = made.backend
        made._learnt(learnt.model.to(_device(made.device)), learnt.reader, learnt.history, learnt.columns)
        made._take(learnt.kept, str(folder))
        return made

    def _kept(self) -> dict[str, Tensor]:
        """Return what a kind of its own keeps beside the model."""
        return {}

    def _take(self, kept: Mapping[str, Tensor], place: str) -> None:
        """Take what a kind :meth:`_kept`."""

    def _learnt(self, model: VRNN, reader: TableReader, history: Sequence[float], columns: Sequence[Any]) -> None:
        self.model_, self.reader_, self.history_ = model, reader, list(history)
        self.feature_names_in_ = np.asarray(columns, dtype=object)
        self.n_features_in_ = len(columns)

    def _built(self, reader: TableReader) -> VRNN:
        # One with parameters is trained with the model
        likelihood = StudentT() if self.likelihood == "student" else copy.deepcopy(self.likelihood)
        device = _device(self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._count("seed"))
            return VRNN(
                len(reader.features),
                self._count("hidden_size"),
                self._count("latent_size"),
                likelihood=likelihood,
                cond_size=reader.cond_size,
                cond_networks=("encoder", "prior", "decoder", "cell"),
                backend=self.backend,
                dtype=torch.float32,
            ).to(device)

    def _count(self, name: str) -> int:
        """Return an argument that is a count; a search over arguments gives NumPy's integers, which will do."""
        given = getattr(self, name)
        count: int = int(given) if isinstance(given, np.integer) else given
        checks.integer(name, count, least=_COUNTS.get(name, 1), most=checks.MAX_SEED if name == "seed" else None)
        return count

    def _require_fitted(self) -> None:
        check_is_fitted(self, "model_", msg="call fit before: this %(name)s has learnt from no table yet")

    def _series(self, table: Table) -> list[TimeSeries]:
        self._require_fitted()
        return self.reader_.read(as_pandas(table))

    def _batches(
        self, series: Sequence[TimeSeries], particles: int, horizon: int = 0
    ) -> Iterator[tuple[list[TimeSeries], Windows, Any]]:
        """Yield series of like lengths together with their windows and the generator of their noise."""
        device = next(self.model_.parameters()).device
        generator = torch.Generator(device).manual_seed(self._count("seed"))
        waiting = sorted(series, key=lambda s: -len(s.values))
        while waiting:
            steps = max(len(waiting[0].values), horizon)
            count = max(1, MOST // (steps * particles * len(self.reader_.features)))
            part, waiting = waiting[:count], waiting[count:]
            yield part, stacked(part, device), generator


def _device(name: str | torch.device) -> torch.device:
    """Return a device that is there, and holds numbers.

    Raises:
        ValueError: there is none of this name.
    """
    cause = None
    try:
        device = torch.empty(0, device=name).device
        if device.type != "meta":
            return device
    except (RuntimeError, AssertionError, TypeError) as error:
        cause = error
    raise ValueError(f"device must be one that torch has here, such as 'cpu', got {name!r}") from cause
