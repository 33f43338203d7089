"""``python -m bench.papers anomalies``: faults planted in generated sensors, found by a VRNN and by others.

Five sensors follow two hidden oscillators whose speed wanders, through a nonlinear mixing, with noise. 4,000 rows
without faults to learn from, 4,000 with 40 faults of five kinds in turn to be measured on: a spike, a shifted sensor, a
sensor that lags, faster oscillators, a noisy sensor. A fault lasts 1 row (a spike) or 20.

Needs two packages that are no extra: ``pip install pyod`` (PCA), and ``pip install --no-deps TSB-AD`` (measures of that
benchmark, which need no more than scikit-learn; the detectors beside them ask for an old NumPy).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from torch import Tensor, nn

from vrnn_fast.tables import Detector
from vrnn_fast.tables.reader import Numbers

from .evidence import Elapsed, Study, StudyResult

ROWS, SENSORS, FAULTS, LASTS, WINDOW = 4000, 5, 40, 20, 32
SPEED = 0.25  # of the oscillators, radians a row
PERIOD = round(2 * np.pi / SPEED)  # rows; as far as TSB-AD looks around a fault

VRNN_SETTING: dict[str, Any] = {"hidden_size": 32, "latent_size": 4, "updates": 600, "window": 96, "batch_size": 32}
EPOCHS = 25  # of the auto-encoder


def sensors(chance: np.random.Generator, mixing: Numbers, speed: Numbers) -> Numbers:
    """Draw rows (T, 5) whose oscillators turn with a speed (T,)."""
    wander = np.cumsum(chance.normal(0, 0.004, len(speed)))
    angle = np.cumsum(speed * (1 + 0.1 * np.sin(wander)))
    hidden = np.stack([np.sin(angle), np.cos(angle), np.sin(0.37 * angle + 1), np.cos(0.37 * angle + 1)], 1)
    return np.tanh(hidden @ mixing) + 0.05 * chance.normal(size=(len(speed), SENSORS))


def tables(seed: int) -> tuple[Numbers, Numbers, NDArray[np.int64]]:
    """Draw what is learnt from, what is measured on, and where its faults are."""
    chance = np.random.default_rng(seed)
    mixing = chance.normal(0, 0.8, (4, SENSORS))
    train = sensors(chance, mixing, np.full(ROWS, SPEED))
    starts = 60 + np.arange(FAULTS) * ((ROWS - 100) // FAULTS) + chance.integers(0, 40, FAULTS)
    speed, labels = np.full(ROWS, SPEED), np.zeros(ROWS, dtype=np.int64)
    for start in starts[3::5]:
        speed[start : start + LASTS] = 0.45
    test = sensors(chance, mixing, speed)
    for number, start in enumerate(starts):
        sensor, rows = chance.integers(SENSORS), slice(start, start + (1 if number % 5 == 0 else LASTS))
        own = test[rows, sensor]
        if number % 5 == 0:
            own += chance.choice([-1, 1]) * 0.5
        elif number % 5 == 1:
            own += chance.choice([-1, 1]) * 0.25
        elif number % 5 == 2:
            own[:] = test[rows.start - 6 : rows.stop - 6, sensor]
        elif number % 5 == 4:
            own += 0.2 * chance.normal(size=LASTS)
        labels[rows] = 1
    return train, test, labels


def by_vrnn(train: Numbers, test: Numbers, seed: int) -> Numbers:
    """Score rows by -log p(x_t | x_<t)."""
    found: Numbers = Detector(seed=seed, **VRNN_SETTING).fit(pd.DataFrame(train)).decision_function(pd.DataFrame(test))
    return found


def by_pca(train: Numbers, test: Numbers, seed: int, window: int = 1) -> Numbers:
    """Score rows by pyod's PCA, of rows or of windows that end with them."""
    from pyod.models.pca import PCA

    detector = PCA(random_state=seed).fit(_windows(train, window).reshape(len(train) - window + 1, -1))
    found = detector.decision_function(_windows(test, window).reshape(len(test) - window + 1, -1))
    return np.concatenate([np.full(window - 1, found.min()), found])


class AutoEncoder(nn.Module):
    """An LSTM reads a window, and another one writes it from the last h of the first (Malhotra et al. 2016,
    "LSTM-based Encoder-Decoder for Multi-sensor Anomaly Detection")."""

    def __init__(self) -> None:
        super().__init__()
        self.reader, self.writer = nn.LSTM(SENSORS, 32, batch_first=True), nn.LSTM(32, 32, batch_first=True)
        self.out = nn.Linear(32, SENSORS)

    def forward(self, x: Tensor) -> Tensor:
        _, (h, _) = self.reader(x)
        written: Tensor = self.out(self.writer(h[0].unsqueeze(1).expand(-1, x.shape[1], -1))[0])
        return written


def by_auto_encoder(train: Numbers, test: Numbers, seed: int) -> Numbers:
    """Score rows by the squared error of their reconstruction, averaged over the windows that hold them."""
    torch.manual_seed(seed)
    mean, std = train.mean(0), train.std(0)
    seen, asked = (torch.from_numpy(_windows((x - mean) / std, WINDOW)).float() for x in (train, test))
    model = AutoEncoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(seen)).split(64):
            optimizer.zero_grad()
            (model(seen[rows]) - seen[rows]).square().mean().backward()
            optimizer.step()
        falling.step()
    with torch.no_grad():
        errors = (model(asked) - asked).square().mean(2).double().numpy()
    total, count = np.zeros(len(test)), np.zeros(len(test))
    for begin, each in enumerate(errors):
        total[begin : begin + WINDOW] += each
        count[begin : begin + WINDOW] += 1
    return total / count


def measured(scores: Numbers, labels: NDArray[np.int64]) -> dict[str, float]:
    """Compute what scores are worth, row by row and fault by fault."""
    precision, recall, _ = precision_recall_curve(labels, scores)
    alarm = scores > np.quantile(scores[labels == 0], 0.99)
    faults = np.split(alarm[labels == 1], np.flatnonzero(np.diff(np.flatnonzero(labels)) > 1) + 1)
    return {
        "AUC-PR": float(average_precision_score(labels, scores)),
        "AUC-ROC": float(roc_auc_score(labels, scores)),
        "best F1": float((2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()),
        "faults found": float(np.mean([fault.any() for fault in faults])),
    }


def measured_around(scores: Numbers, labels: NDArray[np.int64]) -> dict[str, float]:
    """Compute what scores are worth where one beside a fault counts as well, by the code of TSB-AD: volumes under the
    surface (Paparrizos et al. 2022), and the F1 of affiliation (Huet et al. 2022) at the best of 100 thresholds."""
    from TSB_AD.evaluation.basic_metrics import basic_metricor

    judge = basic_metricor()
    *_, volume, volume_of_precision = judge.RangeAUC_volume_opt(labels, scores, PERIOD)
    return {
        "VUS-PR": float(volume_of_precision),
        "VUS-ROC": float(volume),
        "affiliation F1": float(judge.metric_Affiliation(labels, scores)),
    }


Scorer = Callable[[Numbers, Numbers, int], Numbers]
SCORERS: dict[str, tuple[Scorer, dict[str, Any]]] = {
    "VRNN, Detector": (by_vrnn, VRNN_SETTING),
    "PCA of rows (pyod)": (by_pca, {}),
    "PCA of windows (pyod)": (lambda train, test, seed: by_pca(train, test, seed, WINDOW), {"window": WINDOW}),
    "LSTM auto-encoder": (by_auto_encoder, {"h": 32, "window": WINDOW, "epochs": EPOCHS, "batch": 64}),
}


def run(seed: int) -> Iterator[StudyResult]:
    """Score with each."""
    train, test, labels = tables(seed)
    for order, (name, (score, setting)) in enumerate(SCORERS.items()):
        clock = Elapsed()
        scores = score(train, test, seed)
        seconds = clock.seconds
        numbers = measured(scores, labels) | measured_around(scores, labels)
        yield StudyResult(name, seed, numbers, {"order": order, **setting}, seconds)


def _windows(x: Numbers, window: int) -> Numbers:
    """Return (T - window + 1, window, X)."""
    found: Numbers = np.lib.stride_tricks.sliding_window_view(x, window, 0).swapaxes(1, 2).copy()
    return found


STUDY = Study(
    "anomalies",
    "Anomalies in generated sensors",
    (
        "Faults of five kinds that are planted in five sensors, and rows ranked by four scores. By the code of TSB-AD, "
        "where a score beside a fault counts as well: volumes under the surfaces of precision and recall (VUS-PR, by "
        "which that benchmark ranks) and of true and false alarms (VUS-ROC), and affiliation's F1. By scikit-learn, "
        "row by row: the areas under the same curves, and the F1 of the best threshold. And the share of the 40 faults "
        "that have an alarm where 1 % of the rows without a fault have one."
    ),
    dict.fromkeys(("VUS-PR", "VUS-ROC", "affiliation F1", "AUC-PR", "AUC-ROC", "best F1", "faults found"), "higher"),
    run,
    remarks=[
        (
            "Generated data are what their author thinks of: they show that each method works, and not which is best "
            "on yours. No published number is of these data. All learn from the rows without faults alone; nothing was "
            "tuned for any of them."
        ),
        "Affiliation's threshold is the best of 100 even steps from the least score to the highest, as in TSB-AD.",
    ],
    packages=("pyod", "scikit-learn", "--no-deps TSB-AD"),
)
