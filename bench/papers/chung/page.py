"""The results of the five models as a page."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from ..page import machines, table
from .models import PaperModel, PaperTask
from .result import PaperResult


def page(task: PaperTask, results: Sequence[PaperResult]) -> str:
    """Write what all runs reached, beside the paper's own, and whether what the paper found holds."""
    first, names = results[0], (f"a {task.sequence}", f"a {task.unit}")
    likeness = list(first.likeness)
    parts = [
        f"# {task.title}",
        (
            f"`python -m bench.papers {task.name}`. {task.about} {first.sequences} held-out {task.sequence}s of "
            f"{first.extent:,.0f} {task.unit}s together, of {first.data!r}. Nats of log p(x), of an RNN itself, of a "
            "VRNN its evidence lower bound; higher is better. Medians of seeds, in brackets from the lowest to the "
            f"highest; '≈' is the importance-weighted bound of {first.setting.particles} samples. One learning rate "
            "for all models, nothing tuned, and nobody says that they have converged."
        ),
        table(
            ("model", "width", f"multiplications a {task.step}", names[0], "≈", names[1], "seeds", "published"),
            _summary(task, results),
        ),
        (
            "The last column is table 1 of the paper, as recalled: models 2000 to 4000 wide, on "
            f"{task.published_on}, which cannot be had here. Only the order of its rows can be compared, not its "
            "numbers."
        ),
        "## What the paper found",
        *_verdicts(results),
        "## How like the data",
        f"{task.likeness} Medians of seeds.",
        table(("model", *likeness), _likeness(likeness, results)),
        "## Every run",
        table(("model", "seed", *names, f"validation, nats a {task.step}", "processor time"), _runs(results)),
        "## How they were trained",
        _settings(task, first),
        *machines([r.machine for r in results]),
    ]
    return "\n\n".join(parts) + "\n"


def medians(results: Sequence[PaperResult]) -> Mapping[PaperModel, float]:
    """Compute the median bound of a sequence by kind of model."""
    kinds = dict.fromkeys(r.setting.kind for r in results)
    return {kind: statistics.median(r.bound for r in results if r.setting.kind == kind) for kind in kinds}


def _summary(task: PaperTask, results: Sequence[PaperResult]) -> Iterator[Sequence[str]]:
    for kind, median in medians(results).items():
        own = [r for r in results if r.setting.kind == kind]
        reached = " to ".join(_nats(f(r.bound for r in own)) for f in (min, max))
        tighter = [r.tighter for r in own if r.tighter is not None]
        unit = statistics.median(r.per_unit for r in own)
        yield (
            kind, str(own[0].width), f"{own[0].cost:,}", f"**{_nats(median)}** ({reached})",
            _nats(statistics.median(tighter)) if tighter else "", _nats(unit), str(len(own)),
            task.published[kind],
        )  # fmt: skip


def _nats(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _verdicts(results: Sequence[PaperResult]) -> Iterator[str]:
    found = medians(results)
    latent = {kind: value for kind, value in found.items() if kind.startswith("VRNN")}
    plain = {kind: value for kind, value in found.items() if not kind.startswith("VRNN")}
    if latent and plain:
        worst, best = min(latent, key=latent.__getitem__), max(plain, key=plain.__getitem__)
        says = "holds" if latent[worst] > plain[best] else "does not hold"
        reached = f"{worst} {_nats(latent[worst])}, {best} {_nats(plain[best])}"
        yield f"Every VRNN above every RNN: **{says}** here ({reached})."
    if {"RNN-Gauss", "RNN-GMM", "VRNN-Gauss", "VRNN-GMM"} <= found.keys():
        rnn, vrnn = found["RNN-GMM"] - found["RNN-Gauss"], found["VRNN-GMM"] - found["VRNN-Gauss"]
        says = "holds" if rnn > max(vrnn, 0) else "does not hold"
        yield f"The mixture helps the RNN most: **{says}** here ({rnn:+,.0f} for the RNN, {vrnn:+,.0f} for the VRNN)."


def _likeness(names: Sequence[str], results: Sequence[PaperResult]) -> Iterator[Sequence[str]]:
    for kind in medians(results):
        own = [r.likeness for r in results if r.setting.kind == kind]
        yield kind, *(f"{statistics.median(d[name] for d in own):.3g}" for name in names)


def _runs(results: Sequence[PaperResult]) -> Iterator[Sequence[str]]:
    for r in results:
        curve = f"{_nats(r.curve[0])} to {_nats(max(r.curve))}"
        seconds = f"{r.trained:.0f} s"
        yield r.setting.kind, str(r.setting.seed), _nats(r.bound), _nats(r.per_unit), curve, seconds


def _settings(task: PaperTask, result: PaperResult) -> str:
    s = result.setting
    return (
        f"LSTM, one hidden layer in every network, all as wide as the table says; z of {s.latent}; mixtures of "
        f"{s.components} (the paper has 20, and a width of 2000 to 4000). {s.epochs} epochs in batches of "
        f"{s.batch_size} {task.sequence}s, segments of {s.segment} {task.step}s, AdamW at {s.learning_rate:g} falling "
        "to zero, gradients clipped at 1; the epoch that validates best. The time is the processor's."
    )
