"""The results on speech as a page."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from .page import machines, table
from .recordings import DITHER
from .speech_result import SpeechResult

_SUMMARY = ("model", "width", "multiplications a frame", "a recording", "≈", "a second", "seeds")
_RUNS = ("model", "seed", "a recording", "a second", "validation, nats a frame", "processor time")


def page(results: Sequence[SpeechResult]) -> str:
    """Write what all runs reached, and whether what the paper found holds."""
    first = results[0]
    parts = [
        "# Five models of raw speech",
        (
            "`python -m bench.papers speech`, after section 4.1 and table 1 of Chung et al. 2015, at a small size. "
            f"Frames of 200 samples of {first.data!r}, standardised by one deviation of the training part; "
            f"{first.recordings} held-out recordings of {first.seconds:.0f} s together. Nats of log p(x), of an RNN "
            "itself, of a VRNN its evidence lower bound; higher is better. Medians of seeds, in brackets from the "
            f"lowest to the highest; '≈' is the importance-weighted bound of {first.setting.particles} samples."
        ),
        (
            f"Recordings that were fetched have noise of {DITHER:.0%} of their deviation added: one frame in ten is "
            "all but digital silence, whose density has no bound: all nats depend on it. One learning rate for all "
            "models, nothing tuned, and nobody says that they have converged."
        ),
        table(
            ("model", "width", "multiplications a frame", "a recording", "≈", "a second", "seeds"), _summary(results)
        ),
        "## What the paper found",
        *_verdicts(results),
        "## By their spectra",
        (
            "Of the longest held-out recording: the distance of the spectra in dB at each moment between it and the "
            "mean that the model gives each frame (an RNN, which has not seen the frame, predicts it; a VRNN's z "
            "has), and between the spectra averaged over time of the recording and of a sample of the same length. "
            "Medians of seeds. The sound and a page of spectrograms are left in `--out`."
        ),
        table(("model", "reconstruction, dB", "sample, dB"), _spectra(results)),
        "## Every run",
        table(
            ("model", "seed", "a recording", "a second", "validation, nats a frame", "processor time"), _runs(results)
        ),
        "## How they were trained",
        _settings(first),
        *machines([r.machine for r in results]),
    ]
    return "\n\n".join(parts) + "\n"


def medians(results: Sequence[SpeechResult]) -> dict[str, float]:
    """Compute the median bound of a recording by kind of model."""
    kinds = dict.fromkeys(r.setting.kind for r in results)
    return {kind: statistics.median(r.bound for r in results if r.setting.kind == kind) for kind in kinds}


def _summary(results: Sequence[SpeechResult]) -> Iterator[Sequence[str]]:
    for kind, median in medians(results).items():
        own = [r for r in results if r.setting.kind == kind]
        reached = sorted(r.bound for r in own)
        tighter = [r.tighter for r in own if r.tighter is not None]
        second = statistics.median(r.per_second for r in own)
        yield (
            kind, str(own[0].width), f"{own[0].cost:,}", f"**{median:,.0f}** ({reached[0]:,.0f} to {reached[-1]:,.0f})",
            f"{statistics.median(tighter):,.0f}" if tighter else "", f"{second:,.0f}", str(len(own)),
        )  # fmt: skip


def _verdicts(results: Sequence[SpeechResult]) -> Iterator[str]:
    found = medians(results)
    latent = {kind: value for kind, value in found.items() if kind.startswith("VRNN")}
    plain = {kind: value for kind, value in found.items() if not kind.startswith("VRNN")}
    if latent and plain:
        worst, best = min(latent, key=latent.__getitem__), max(plain, key=plain.__getitem__)
        says = "holds" if latent[worst] > plain[best] else "does not hold"
        yield f"Every VRNN above every RNN: **{says}** here ({worst} {latent[worst]:,.0f}, {best} {plain[best]:,.0f})."
    if {"RNN-Gauss", "RNN-GMM", "VRNN-Gauss", "VRNN-GMM"} <= found.keys():
        rnn, vrnn = found["RNN-GMM"] - found["RNN-Gauss"], found["VRNN-GMM"] - found["VRNN-Gauss"]
        says = "holds" if rnn > max(vrnn, 0) else "does not hold"
        yield f"The mixture helps the RNN most: **{says}** here ({rnn:+,.0f} for the RNN, {vrnn:+,.0f} for the VRNN)."


def _spectra(results: Sequence[SpeechResult]) -> Iterator[Sequence[str]]:
    for kind in medians(results):
        own = [r.distances for r in results if r.setting.kind == kind]
        yield kind, *(f"{statistics.median(d[name] for d in own):.1f}" for name in ("reconstruction", "sample"))


def _runs(results: Sequence[SpeechResult]) -> Iterator[Sequence[str]]:
    for r in results:
        curve = f"{r.curve[0]:,.0f} to {max(r.curve):,.0f}"
        yield (
            r.setting.kind,
            str(r.setting.seed),
            f"{r.bound:,.0f}",
            f"{r.per_second:,.0f}",
            curve,
            f"{r.trained:.0f} s",
        )


def _settings(result: SpeechResult) -> str:
    s = result.setting
    return (
        f"LSTM, one hidden layer in every network, all as wide as the table says; z of {s.latent}; mixtures of "
        f"{s.components} (the paper has 20, and a width of 2000 to 4000). {s.epochs} epochs in batches of "
        f"{s.batch_size} recordings, segments of {s.segment} frames, AdamW at {s.learning_rate:g} falling to zero, "
        "gradients clipped at 1; the epoch that validates best. One learning rate for all: nothing was tuned. The time "
        "is the processor's."
    )
