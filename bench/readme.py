"""``python -m bench.readme``: the records as tables, in short in README.md; in full, with pictures, beside each one.

README.md and the first page of the documentation also get the table of backends and of what they were verified on.
"""

from __future__ import annotations

from collections.abc import Sequence

from vrnn_fast import backends

from . import figures
from .record import RESULTS, ROOT, Record
from .scaling import curves
from .table import in_full, of_curve, places, problems, put, remarks, summary

SUPPORT = "<!-- support -->", "<!-- /support -->"
ABOUT = {  # an executor: what it is, and what it runs on
    "cpu": (
        "fused: one operator call each way",
        "CPU, float32, float64, and bfloat16 widened to float32",
    ),
    "reference": (
        "the equations in plain torch, a loop over time",
        "any device and floating dtype of torch",
    ),
    "triton": (
        "generated: the scan and all around it in one launch each way, weights in three more",
        "GPUs, float32, TF32, bfloat16, float16",
    ),
    "cuda": (
        "the same by kernels written by hand, a training step in one launch each way",
        "NVIDIA GPUs from sm_80 on, and an emulator on the CPU, float32, TF32, bfloat16, float16",
    ),
}
EXPERIMENTS = {
    "training": "Whole sequences",
    "real": "Shapes of known models",
    "update": "Training steps, with Adam",
    "full size": "The paper's own size, a training step with Adam",
    "scale": "One process and two, of a thread each",
    "generation": "Sequences drawn from the model",
    "one graph": "Few steps, so that a whole loop can be compiled",
    "overhead": "Little to compute: frames of a stream, and training calls of one step",
    "functions": "Elementary functions on 16384 floats, one thread, with `out=`",
}


def heading(record: Record) -> str:
    """Say what was measured on, and with what; rows of another state than this one say so."""
    versions = ", ".join(f"{name} {v}" for name, v in record.state.versions.items() if name != "vrnn-fast")
    return (
        f"**{record.processor}**, {record.threads} threads, `{record.kernel_build}` kernels, float32; {versions}; "
        f"{record.state}"
    )


def support() -> str:
    """List the backends, a line for each."""
    lines = [f"| `{name}` | {' | '.join(ABOUT[name])} | {known.verified} |" for name, known in backends().items()]
    return "\n".join(["| backend | what it is | runs on | verified on |", "| --- | --- | --- | --- |", *lines])


def gains(record: Record) -> str:
    """Say in one line how much faster than the eager loop one machine was, and where all of it stands."""
    name = record.file_name.removesuffix(".json")
    ours = [rows[figures.US].speedup for rows in places(record.rows).values() if figures.US in rows]
    known = [gain for gain in ours if gain is not None]
    claim = f"{min(known):.1f} to {max(known):.1f} times as fast as the eager loop: " if known else ""
    return f"{claim}[all of it]({RESULTS.relative_to(ROOT).as_posix()}/{name}.md)"


def sections(records: Sequence[Record]) -> list[str]:
    """Write README.md's part: the table of the machine that was measured last, and of every other one its gains."""
    if not records:
        return []
    latest, *others = sorted(records, key=lambda record: record.state.date, reverse=True)
    lines = [f"- {record.processor}, `{record.kernel_build}`: {gains(record)}" for record in others]
    elsewhere = ["On other machines:", "\n".join(lines)] if lines else []
    return [heading(latest), gains(latest), summary(latest.rows, latest.state), *elsewhere]


def page(record: Record, pictures: Sequence[str]) -> str:
    """Write everything that was measured on one machine."""
    name = record.file_name.removesuffix(".json")
    parts = [f"# {record.processor}, {record.threads} threads", heading(record)]
    for experiment, title in EXPERIMENTS.items():
        if rows := [row for row in record.rows if row.experiment == experiment]:
            images = [f"![{p}]({name}/{p}.svg)" for p in pictures if p.startswith(experiment)]
            notes = [f"- {text}" for text in (*remarks(rows), *problems(rows))]
            parts += [f"## {title}", *images, in_full(rows, record.state), *(["\n".join(notes)] if notes else [])]
    parts += [f"![{p}]({name}/{p}.svg)" for p in pictures if p == "scaling"]
    for curve in curves(record.rows):
        parts += [f"## Forward and backward against {curve.varied} ({curve.fixed})", of_curve(curve, record.state)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Draw every record, write its page, and replace what stands between README's two markers."""
    records = []
    for path in sorted(RESULTS.glob("*.json")):
        record = Record.load(path)
        pictures = figures.draw(record, path.with_suffix(""))
        path.with_suffix(".md").write_text(page(record, pictures))
        if places(record.rows):
            records.append(record)
    put(ROOT / "README.md", sections(records))
    for path in (ROOT / "README.md", ROOT / "docs" / "pages" / "index.md"):
        put(path, [support()], *SUPPORT)


if __name__ == "__main__":
    main()
