"""What a run of a study found, and the page of all of them beside what was published."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any, cast

from rich.console import Console

from vrnn_fast.training.threads import using

from ..record import RESULTS
from .chorales import SEEDS, machine
from .page import machines, table


@dataclass(frozen=True)
class StudyResult:
    """What one model came to, from one seed.

    Attributes:
        numbers: by the column of the page.
        setting: what it was trained with.
        seconds: of training and measuring together, wall-clock.
    """

    model: str
    seed: int
    numbers: dict[str, float]
    setting: dict[str, Any]
    seconds: float
    machine: dict[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """That of the file that holds it."""
        return "-".join("".join(c if c.isalnum() else " " for c in f"{self.model} {self.seed}".lower()).split())


@dataclass(frozen=True)
class Study:
    """A question, and how it is asked.

    Attributes:
        name: on the command line, and of its folder and page.
        words: what the page begins with.
        columns: of the page: the name of a number, and whether less or more of it is better.
        run: yields what each model came to from a seed.
        published: models of others with their numbers, as they stand in print.
        remarks: what a reader must know to compare them.
        packages: of others, whose versions matter, in the words in which pip is asked for them.
    """

    name: str
    title: str
    words: str
    columns: Mapping[str, str]
    run: Callable[[int], Iterator[StudyResult]]
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    packages: Sequence[str] = ()


class Elapsed:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._begun = perf_counter()

    @property
    def seconds(self) -> float:
        """So far, to a tenth."""
        return round(perf_counter() - self._begun, 1)


def findings_in(folder: Path) -> list[StudyResult]:
    """Read what runs left there, in the order in which models were recorded, and of seeds."""
    found = [StudyResult(**json.loads(path.read_text())) for path in folder.glob("*.json")]
    found.sort(key=lambda f: str(f.machine.get("date")))
    models = list(dict.fromkeys(f.model for f in sorted(found, key=lambda f: f.setting.get("order", 0))))
    return sorted(found, key=lambda f: (models.index(f.model), f.seed))


def page(study: Study, findings: Sequence[StudyResult]) -> str:
    """Write what all runs came to."""
    columns = list(study.columns)
    head = ("model", *(f"{name} ({better})" for name, better in study.columns.items()), "seeds")
    parts = [
        f"# {study.title}",
        f"{study.words} `python -m bench.papers {study.name}`. Medians of seeds, the least and the most in brackets.",
        table(head, _summary(study, findings)),
        *study.remarks,
        "## Every run",
        table(("model", "seed", *columns, "seconds"), _runs(columns, findings)),
        "## How they were trained",
        table(("model", "setting"), _settings(findings)),
        *machines([f.machine for f in findings]),
        *dict.fromkeys(_measured(study, f) for f in findings),
    ]
    return "\n\n".join(parts) + "\n"


def _measured(study: Study, found: StudyResult) -> str:
    versions = cast(dict[str, str], found.machine["versions"])
    others = [f"{name} {versions[name]}" for name in map(_name, study.packages)]
    return f"Measured on {str(found.machine['date'])[:10]}{', with ' if others else ''}{', '.join(others)}."


def _summary(study: Study, findings: Sequence[StudyResult]) -> Iterator[Sequence[str]]:
    for model, numbers in study.published.items():
        yield model, *(_number(numbers[name]) if name in numbers else "" for name in study.columns), "published"
    for model in dict.fromkeys(f.model for f in findings):
        own = [f for f in findings if f.model == model]
        cells = []
        for name in study.columns:
            values = sorted(f.numbers[name] for f in own if name in f.numbers)
            spread = f" ({_number(values[0])} to {_number(values[-1])})" if len(values) > 1 else ""
            cells.append(f"**{_number(statistics.median(values))}**{spread}" if values else "")
        yield model, *cells, str(len(own))


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


def _runs(columns: Sequence[str], findings: Sequence[StudyResult]) -> Iterator[Sequence[str]]:
    for f in findings:
        cells = (_number(f.numbers[name]) if name in f.numbers else "" for name in columns)
        yield f.model, str(f.seed), *cells, f"{f.seconds:.0f}"


def _settings(findings: Sequence[StudyResult]) -> Iterator[Sequence[str]]:
    for model in dict.fromkeys(f.model for f in findings):
        setting = next(f.setting for f in findings if f.model == model)
        yield model, ", ".join(f"{name} {value}" for name, value in setting.items() if name != "order")


def _versions(packages: Sequence[str]) -> dict[str, str]:
    """Return their versions.

    Raises:
        SystemExit: one is not installed.
    """
    asked = {_name(words): words for words in packages}
    try:
        return {name: version(name) for name in asked}
    except PackageNotFoundError as error:
        sys.exit(f"this study needs {error.name}: pip install {asked[str(error.name)]}")


def _name(words: str) -> str:
    return words.rpartition(" ")[2]


def main(study: Study, given: Sequence[str]) -> None:
    """Run what was asked for, and write the page of all that there is."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.papers {study.name}", description=study.title)
    parser.add_argument("--seed", type=int, action="append", help="(may be repeated; default: 0, 1 and 2)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s; models are small)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the page (default: bench/results)")
    options = parser.parse_args(given)
    console, folder = Console(soft_wrap=True), options.results / study.name
    folder.mkdir(parents=True, exist_ok=True)
    with using(options.threads):
        described = machine()
        described["versions"] = {**cast(dict[str, str], described["versions"]), **_versions(study.packages)}
        for seed in options.seed or SEEDS:
            for found in study.run(seed):
                kept = StudyResult(**{**asdict(found), "machine": described})
                (folder / f"{kept.name}.json").write_text(json.dumps(asdict(kept), indent=1) + "\n")
                words = ", ".join(f"{name} {_number(value)}" for name, value in kept.numbers.items())
                console.print(f"{kept.model}, seed {seed}: {words} ({kept.seconds:.0f} s)", highlight=False)
                (options.results / f"{study.name}.md").write_text(page(study, findings_in(folder)))
