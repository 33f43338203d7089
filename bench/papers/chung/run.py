"""Train, measure, record, show: what the command line of both tasks does."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from vrnn_fast import VRNN
from vrnn_fast.data import DataError, Dataset, Source, pad
from vrnn_fast.likelihoods import GaussianComponents
from vrnn_fast.likelihoods.handwriting import StrokeComponents
from vrnn_fast.training.config import TrainConfig
from vrnn_fast.training.evaluation import evaluate
from vrnn_fast.training.threads import using
from vrnn_fast.training.trainer import Trainer

from ...record import RESULTS
from ..chorales import SEEDS, machine
from .models import KINDS, PaperSetting, PaperTask, cost, has_latent
from .page import page
from .result import PaperResult, results_in

_TOLD = ("width", "latent", "components", "epochs", "segment", "particles")


@dataclass(frozen=True)
class PaperStudy:
    """A task and its data.

    Attributes:
        extent: how long the held-out sequences are together, in the task's unit.
        show: leaves in a folder what a model (of a name and a seed) reconstructs and draws, and says how like the data
            that is.
    """

    task: PaperTask
    source: Source
    data: Dataset
    extent: float
    show: Callable[[str, VRNN, int, Path], dict[str, float]]

    def run(self, setting: PaperSetting, machine: dict[str, object], out: Path) -> PaperResult:
        """Train, measure, and leave in ``out`` what there is to see."""
        width, data = self.task.width_of_equal_cost(setting), self.data
        config = TrainConfig(
            epochs=setting.epochs, batch_size=setting.batch_size, segment=setting.segment, seed=setting.seed,
            anneal=0.0, learning_rate=setting.learning_rate, weight_decay=1e-2, patience=0,
        )  # fmt: skip
        with TemporaryDirectory() as folder:
            trainer = Trainer(self.source, self.task.arguments(setting, width), config, data, Path(folder))
            begun = process_time()
            for _ in trainer.steps():
                pass
            trained = process_time() - begun
            model = trainer.load_best()
        sums = evaluate(model, data.test)
        tighter = _tighter(model, data, setting.particles) if has_latent(setting.kind) else None
        return PaperResult(
            setting, machine, data.name, width, cost(model), sum(p.numel() for p in model.parameters()),
            -(sums.nll + sums.kl) / len(data.test), tighter, len(data.test), self.extent, round(trained, 1),
            [-epoch.valid.bound for epoch in trainer.history],
            self.show(f"{setting.kind}-{setting.seed}", model, setting.seed, out),
        )  # fmt: skip


def _tighter(model: VRNN, data: Dataset, particles: int) -> float:
    """Compute the importance-weighted bound of a sequence, always with the same noise."""
    noise, total = torch.Generator().manual_seed(1), 0.0
    with torch.no_grad():
        for one in data.test:
            x, lengths = pad([one])
            given: dict[str, Any] = {"objective": "iwae", "num_particles": particles, "generator": noise}
            total += model.bound(x, lengths, **given).sum().item()
    return total / len(data.test)


def reconstructed(model: VRNN, x: Tensor, generator: torch.Generator) -> Tensor:
    """Return the mean of p(x_t | z_<=t, x_<t) of a sequence (T, X), with z drawn from its posterior."""
    with torch.no_grad():
        prediction = model(x.unsqueeze(1), generator=generator, outputs=("prediction",)).prediction
    mean: Tensor = prediction.mean
    if isinstance(prediction, GaussianComponents | StrokeComponents):
        mean = (prediction.log_weight.exp().unsqueeze(-1) * mean).sum(-2)
    if isinstance(prediction, StrokeComponents):
        mean = torch.cat([mean, prediction.pen.unsqueeze(-1)], -1)
    return mean[:, 0]


def command(
    task: PaperTask,
    given: Sequence[str],
    study: Callable[[argparse.Namespace, Path], PaperStudy],
    picture: Callable[[Path], None],
    sources: tuple[str, str],
    **defaults: int,
) -> None:
    """Run what was asked for, and write the page of all that there is.

    Args:
        study: finds the data, with a folder to lay it down in.
        picture: draws what the runs left in a folder.
        sources: help for ``--data`` and ``--generated``.
        defaults: of the setting, where they are others.
    """
    name = task.name
    parser = argparse.ArgumentParser(prog=f"python -m bench.papers {name}", description=task.title)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--data", type=Path, help=sources[0])
    where.add_argument("--generated", action="store_true", help=sources[1])
    parser.add_argument("--kind", choices=KINDS, action="append", help="(may be repeated; default: all)")
    parser.add_argument("--seed", type=int, action="append", help="(may be repeated; default: 0, 1 and 2)")
    for key in _TOLD:
        default = defaults.get(key, getattr(PaperSetting, key))
        parser.add_argument(f"--{key}", type=int, default=default, help=f"(default: {default})")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the page (default: bench/results)")
    parser.add_argument("--out", type=Path, default=Path("runs", name), help="folder of what there is to see and hear")
    options = parser.parse_args(given)
    console = Console(soft_wrap=True)
    told = {key: getattr(options, key) for key in _TOLD}
    with using(options.threads), TemporaryDirectory() as place:
        try:
            found = study(options, Path(place))
        except DataError as error:
            parser.error(str(error))
        described, records = machine(), options.results / name
        records.mkdir(parents=True, exist_ok=True)
        options.out.mkdir(parents=True, exist_ok=True)
        for seed in options.seed or SEEDS:
            for kind in options.kind or KINDS:
                result = found.run(PaperSetting(kind, seed, **told), described, options.out)
                run = f"{kind.lower()}-{seed}"
                (records / f"{run}.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
                reached = f"{result.bound:,.0f} nats per {task.sequence}"
                console.print(f"{run}: width {result.width}, {result.trained:.0f} s, {reached}")
                (options.results / f"{name}.md").write_text(page(task, results_in(records)))
        picture(options.out)
