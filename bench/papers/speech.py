"""``python -m bench.papers speech``: the five models of Chung et al. 2015 (section 4.1 and table 1) on raw audio.

x is a frame of 200 samples. RNN-Gauss and RNN-GMM have no z; VRNN-I-Gauss has the prior N(0, 1) whatever h is. All cost
as much as VRNN-Gauss: as many multiplications for a frame, to within what a width can say. They are trained by the
package's own trainer with segments of 40 frames, and the epoch that validates best is measured on held-out recordings.
"""

from __future__ import annotations

import argparse
import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from vrnn_fast import VRNN
from vrnn_fast.data import DataError, Dataset, Source, load, pad
from vrnn_fast.likelihoods import GaussianComponents
from vrnn_fast.training.config import TrainConfig
from vrnn_fast.training.evaluation import evaluate
from vrnn_fast.training.options import build
from vrnn_fast.training.threads import using
from vrnn_fast.training.trainer import Trainer

from ..record import RESULTS
from . import recordings, spectra
from .chorales import machine
from .speech_page import page
from .speech_result import KINDS, SpeechModel, SpeechResult, SpeechSetting, results_in

SEEDS = (0, 1, 2)
FRAME = 200
_TOLD = ("width", "latent", "components", "epochs", "particles")


def arguments(setting: SpeechSetting, width: int) -> dict[str, Any]:
    """Return the arguments of VRNN for a kind of model."""
    networks = ("phi_x", "phi_z", "encoder", "prior", "decoder") if _has_latent(setting.kind) else ("phi_x", "decoder")
    found: dict[str, Any] = {"hidden_size": width, "latent_size": setting.latent if _has_latent(setting.kind) else 0}
    found |= {"cell": "lstm", "activation": "relu", **{name: [width] for name in networks}}
    if setting.kind == "VRNN-I-Gauss":
        found["prior"] = "standard_normal"
    mixture = {"components": setting.components, "floor": 1e-3}
    gmm = {"class_path": "vrnn_fast.likelihoods.GaussianMixture", "init_args": mixture}
    return {**found, "likelihood": gmm if setting.kind.endswith("GMM") else "gaussian"}


def _has_latent(kind: SpeechModel) -> bool:
    return kind.startswith("VRNN")


def cost(model: VRNN) -> int:
    """Count the multiplications of its matrices for a frame."""
    return sum(p.numel() for p in model.parameters() if p.dim() == 2)


def width_of_equal_cost(setting: SpeechSetting) -> int:
    """Find the width, in steps of four, at which a model costs what VRNN-Gauss does."""

    def costs(kind: SpeechModel, width: int) -> int:
        asked = SpeechSetting(**{**asdict(setting), "kind": kind})
        return cost(build(arguments(asked, width), FRAME, "gaussian"))

    aim, widths = costs("VRNN-Gauss", setting.width), range(4, 4 * setting.width, 4)
    above = bisect_left(widths, aim, key=lambda width: costs(setting.kind, width))
    return min(widths[max(0, above - 1) : above + 1], key=lambda width: abs(costs(setting.kind, width) - aim))


def run(setting: SpeechSetting, source: Source, data: Dataset, machine: dict[str, object], out: Path) -> SpeechResult:
    """Train, measure, and leave spectra and sound in ``out``."""
    width = width_of_equal_cost(setting)
    config = TrainConfig(
        epochs=setting.epochs, batch_size=setting.batch_size, segment=setting.segment, seed=setting.seed, anneal=0.0,
        learning_rate=setting.learning_rate, weight_decay=1e-2, patience=0,
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        trainer = Trainer(source, arguments(setting, width), config, data, Path(folder))
        begun = process_time()
        for _ in trainer.steps():
            pass
        trained = process_time() - begun
        model = trainer.load_best()
    sums = evaluate(model, data.test)
    seconds = sums.time_steps * FRAME / (data.rate or 1)
    tighter = _tighter(model, data, setting.particles) if setting.latent and _has_latent(setting.kind) else None
    x, name = data.test[_longest(data)][:400], f"{setting.kind}-{setting.seed}"
    distances = spectra.leave(name, x, *_played(model, x, setting.seed), data.scale[0], data.rate or 1, out)
    return SpeechResult(
        setting, machine, data.name, width, cost(model), sum(p.numel() for p in model.parameters()),
        -(sums.nll + sums.kl) / len(data.test), tighter, len(data.test), seconds, round(trained, 1),
        [-epoch.valid.bound for epoch in trainer.history], distances,
    )  # fmt: skip


def _longest(data: Dataset) -> int:
    return max(range(len(data.test)), key=lambda i: len(data.test[i]))


def _tighter(model: VRNN, data: Dataset, particles: int) -> float:
    """Compute the importance-weighted bound of a recording, always with the same noise."""
    noise, total = torch.Generator().manual_seed(1), 0.0
    with torch.no_grad():
        for one in data.test:
            x, lengths = pad([one])
            given: dict[str, Any] = {"objective": "iwae", "num_particles": particles, "generator": noise}
            total += model.bound(x, lengths, **given).sum().item()
    return total / len(data.test)


def _played(model: VRNN, x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return the mean of p(x_t | z_<=t, x_<t), and a sample of as many frames, (T, X) each."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        prediction = model(x.unsqueeze(1), generator=noise, outputs=("prediction",)).prediction
        if isinstance(prediction, GaussianComponents):
            mean = (prediction.log_weight.exp().unsqueeze(-1) * prediction.mean).sum(-2)
        else:
            mean = prediction.mean
        samples, _ = model.generate(len(x), generator=noise)
    return mean[:, 0], samples[:, 0]


def main(given: Sequence[str]) -> None:
    """Run what was asked for, and write the page of all that there is."""
    parser = argparse.ArgumentParser(prog="python -m bench.papers speech", description=__doc__)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--data", type=Path, help="a folder of sound (default: fetch a package of Debian's through apt)")
    where.add_argument("--generated", action="store_true", help="a few voices that are computed, for want of data")
    parser.add_argument("--kind", choices=KINDS, action="append", help="(may be repeated; default: all)")
    parser.add_argument("--seed", type=int, action="append", help="(may be repeated; default: 0, 1 and 2)")
    for name in _TOLD:
        default = getattr(SpeechSetting, name)
        parser.add_argument(f"--{name}", type=int, default=default, help=f"(default: {default})")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the page (default: bench/results)")
    parser.add_argument("--out", type=Path, default=Path("runs/speech"), help="folder of the pictures and the sound")
    options = parser.parse_args(given)
    console = Console(soft_wrap=True)
    kept = {name: getattr(options, name) for name in _TOLD}
    with using(options.threads), TemporaryDirectory() as place:
        try:
            folder = options.data
            if folder is None:
                folder = recordings.generated(Path(place, "voices")) if options.generated else recordings.fetched()
            source = Source(str(folder), frame=FRAME, max_steps=1 << 30)
            data = load(source)
        except DataError as error:
            parser.error(str(error))
        described, records = machine(), options.results / "speech"
        records.mkdir(parents=True, exist_ok=True)
        for seed in options.seed or SEEDS:
            for kind in options.kind or KINDS:
                result = run(SpeechSetting(kind, seed, **kept), source, data, described, options.out)
                name = f"{kind.lower()}-{seed}"
                (records / f"{name}.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
                words = f"{name}: width {result.width}, {result.trained:.0f} s, {result.bound:,.0f} nats per recording"
                console.print(words)
                (options.results / "speech.md").write_text(page(results_in(records)))
        spectra.picture(options.out)
