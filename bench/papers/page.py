"""The results as a page."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import cast

from vrnn_fast.bounds import BoundKind

from .chorales import KINDS, Hyperparameters, Result

GOALS: dict[BoundKind, float] = {"elbo": -7.75, "iwae": -7.60, "fivo": -7.10}
STRETCH: dict[BoundKind, float] = {"fivo": -6.90}  # the published one, as recalled


def page(results: Sequence[Result]) -> str:
    """Write what all runs reached, against what was aimed for."""
    measures = results[0].setting.measures
    parts = [
        "# Three bounds on the Bach chorales",
        (
            "The model and data of Maddison et al. 2017, trained with each bound: `python -m bench.papers --data "
            "JSB_Chorales.mat`. Nats per time step, all nats of a part over all its steps; higher is better. A run has "
            f"reached the best of the three bounds of the test part, each measured with {measures} particles."
        ),
        table(("trained with", "goal", "median", "", "seeds"), _summary(results)),
        "## Every run",
        table(
            ("trained with", "seed", *(f"{part}: {kind.upper()}" for part in ("test", "validation") for kind in KINDS)),
            _measured(results),
        ),
        "## How they were trained",
        table(("trained with", "seed", *_TRIALS, "measuring, s"), _trained(results)),
        _settings(results[0].setting),
        *machines([r.machine for r in results]),
    ]
    return "\n\n".join(parts) + "\n"


_TRIALS = ("learning rate: validation FIVO", "kept", "epochs kept / run", "training, s")


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """Write a table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows))


def _summary(results: Sequence[Result]) -> Iterator[Sequence[str]]:
    for kind in KINDS:
        reached = [max(r.test.values()) for r in results if r.setting.kind == kind]
        if reached:
            median, goal = statistics.median(reached), f"{GOALS[kind]:.2f}"
            if kind in STRETCH:
                goal += f", stretch {STRETCH[kind]:.2f}"
            verdict = "reached" if median >= GOALS[kind] else f"missed by {GOALS[kind] - median:.3f}"
            yield kind.upper(), goal, f"**{median:.3f}**", verdict, ", ".join(f"{r:.3f}" for r in reached)


def _measured(results: Sequence[Result]) -> Iterator[Sequence[str]]:
    for r in results:
        nats = (f"{part[kind]:.3f}" for part in (r.test, r.valid) for kind in KINDS)
        yield r.setting.kind.upper(), str(r.setting.seed), *nats


def _trained(results: Sequence[Result]) -> Iterator[Sequence[str]]:
    for r in results:
        tried = ", ".join(f"{t.learning_rate:g}: {t.best[1]:.3f}" for t in r.trials)
        epochs = f"{r.kept.best[0]} / {r.kept.history[-1][0]}"
        seconds = sum(t.seconds for t in r.trials)
        settings = r.setting.kind.upper(), str(r.setting.seed)
        yield *settings, tried, f"{r.kept.learning_rate:g}", epochs, f"{seconds:.0f}", f"{r.seconds:.0f}"


def _settings(s: Hyperparameters) -> str:
    return (
        f"{s.particles} particles, batches of {s.batch_size} of similar length, Adam with a decoupled weight decay of "
        f"{s.weight_decay:g}, no schedule; at most {s.epochs} epochs, and no more than {s.patience} without a better "
        f"validation. What is validated (every {s.every} epochs, FIVO of {s.judges} particles), kept and measured is "
        f"the running mean of the parameters (factor {s.average:g} per optimiser step). The time of training is that "
        "of all learning rates together, validations included: wall-clock, whatever else the machine had to do."
    )


def machines(found: Sequence[dict[str, object]]) -> Iterator[str]:
    """Name what it ran on, and with what: each once."""

    def described(machine: dict[str, object]) -> str:
        versions = cast(dict[str, str], machine["versions"])
        packages = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch"))
        return (
            f"On {machine['processor']}, {machine['cores']} cores, threads of a run: {machine['threads']}; "
            f"`{machine['kernel_build']}` kernels; {packages}; commit {str(machine['commit'])[:10]}."
        )

    yield from dict.fromkeys(described(machine) for machine in found)
