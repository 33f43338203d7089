"""The command ``vrnn-fast``: train, pack, eval, sample, score, forecast, impute, export, convert, info, verify and
demo."""

from __future__ import annotations

import math
import os
import sys
import warnings
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

if find_spec("typer") is None or find_spec("rich") is None or find_spec("safetensors") is None:
    if sys.argv[1:] == ["info"]:
        from .training.info import report_plainly

        report_plainly()
        sys.exit(0)
    sys.exit("vrnn-fast takes a few more packages: pip install 'vrnn-fast[train]'")

import torch
import typer
from rich.console import Console
from rich.markup import escape

from . import checks, data
from .checkpoints.files import CheckpointError
from .data import DataError, Dataset, Source
from .data.reading import PARTS, Output, Part
from .data.stored import Series
from .layouts.structure import LayoutError
from .training.config import RunError
from .training.evaluation import evaluate
from .training.options import Options
from .training.ranks import Ranks
from .training.runs import NO_RESUMING, load_model, of_table, read_configs, run_data
from .training.trainer import Trainer

app = typer.Typer(
    help="Variational recurrent networks (Chung et al. 2015): train, evaluate, sample.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()
INTERRUPTED = 130

RunFolder = Annotated[Path, typer.Argument(help="The folder of a run, or one of its checkpoints.", metavar="RUN")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; all cores by default.", min=1)]
BackendName = Annotated[str, typer.Option(help="Auto, or a name that `vrnn-fast info` lists.")]
MaxGigabytes = Annotated[float, typer.Option(help="What a file of data may expand to in memory.", min=0)]
TableRun = Annotated[Path, typer.Argument(help="The folder of a run that train made of a table.", metavar="RUN")]
TableFile = Annotated[Path, typer.Argument(help="A table, .csv or .parquet, of the same columns.", metavar="TABLE")]
Out = Annotated[Path | None, typer.Option(help="File to write, .csv or .parquet; the picture lies beside it.")]
ParticleCount = Annotated[int | None, typer.Option(help="Samples of the latent variables; by default train's.", min=1)]
DeviceName = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
QUANTILES = 0.05, 0.25, 0.5, 0.75, 0.95
Seed = Annotated[int, typer.Option(help="Of every random choice.", min=0, max=checks.MAX_SEED)]
SampleSeed = Annotated[int | None, typer.Option(help="Of the samples; by default train's.", min=0, max=checks.MAX_SEED)]


def main() -> None:
    """Run the command line; what a user can put right ends in one line and exit status 1."""
    warnings.filterwarnings("ignore", "torch.distributed is disabled")  # of a checkpoint, which one process may write
    try:
        app()
    except (CheckpointError, DataError, LayoutError, RunError, OSError) as error:
        if getattr(error, "everywhere", False) and int(os.environ.get("RANK", 0)):
            sys.exit(1)  # the first rank says it
        Console(stderr=True).print(f"[red]error:[/] {escape(_one_line(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


def _one_line(error: Exception) -> str:
    """Return its message; names in a damaged file may hold any character."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(str(error).split()))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    help="Learn from sequences; train --help lists what a run may be told, of the model, the data and the training.",
)
def train(context: typer.Context) -> None:
    """Train as the options say (:mod:`vrnn_fast.training.options`), on all ranks that torchrun started.

    Ctrl-C, SIGTERM and SIGHUP save, and --resume goes on as if the run had never stopped. So does torchrun, without a
    word, where a rank died.
    """
    from .training.options import on_table, parse
    from .training.ranks import joined

    if on_table(context.args):
        return _train_on_table(context.args)
    options = parse(context.args)
    _set_threads(options.threads)
    with joined(options.train.device) as ranks:
        if not _train(options, ranks):
            raise typer.Exit(INTERRUPTED)


def _train_on_table(arguments: list[str]) -> None:
    tables = _tables()
    from .training.table_options import parse

    options = parse(arguments)
    _set_threads(options.threads)
    tables.train(options, console)


def _train(options: Options, ranks: Ranks) -> bool:
    """Begin or go on with a run, and end it with its picture; False where it was interrupted."""
    from .training.lock import alone
    from .training.report import curves
    from .training.watch import watch

    shown = console if ranks.first else Console(quiet=True)
    with ExitStack() as stack:
        failure: Exception | None = None
        try:
            run, resume = _place(options, ranks)
            if ranks.first:
                stack.enter_context(alone(run))
        except (CheckpointError, RunError) as error:
            failure = error
        ranks.together(failure)
        trainer = _trainer(options, run, resume, ranks, shown)
        if not watch(trainer, shown, options.loggers):
            return False
        if ranks.first:
            curves(trainer.history, run / "curves.png", baseline=trainer.data.baseline(), title=trainer.data.name)
    epoch, bound = trainer.best
    shown.print(f"best validation bound {bound:.3f} nats per step, after epoch {epoch + 1}; saved in {trainer.folder}")
    return True


def _place(options: Options, ranks: Ranks) -> tuple[Path, Path | None]:
    """Return the folder of the run, and what it goes on from, if it does."""
    from .training import checkpoint
    from .training.options import LOGGERS

    if options.resume is None:
        return options.run, options.run if ranks.start > 1 and checkpoint.exists(options.run) else None
    others = [name for name in options.given if name not in ("resume", "threads", *LOGGERS)]
    if others:
        raise RunError(f"--resume takes everything from the run: leave out {', '.join(others)}")
    if of_table(options.resume):
        raise RunError(NO_RESUMING)
    return checkpoint.run_of(options.resume), options.resume


def _trainer(options: Options, run: Path, resume: Path | None, ranks: Ranks, shown: Console) -> Trainer:
    from .training import checkpoint
    from .training.options import CONFIG

    if resume is not None:
        return Trainer.resume(resume, ranks=ranks)
    if checkpoint.exists(run) or of_table(run):
        going_on = "" if of_table(run) else f"go on with --resume {run}, or "
        words = f"{run} holds a run already: {going_on}name another --run"
        raise RunError(words, everywhere=True)
    failure: Exception | None = None
    try:
        with shown.status("reading the data"):
            dataset = data.load(options.source)
    except DataError as error:
        failure = error
    ranks.together(failure)
    trainer = Trainer(options.source, options.model, options.train, dataset, run, ranks)
    if ranks.first:
        (run / CONFIG).write_text(options.text)
    return trainer


@app.command()
def pack(
    source: Annotated[str, typer.Argument(help="What train takes: chorales, a file, or a folder of files.")],
    out: Annotated[Path, typer.Argument(help="The folder to make.")],
    likelihood: Annotated[Output | None, typer.Option(help="What a feature is, as in train.")] = None,
    frame: Annotated[int, typer.Option(help="Samples per time step, for sound.", min=1)] = Source.frame,
    rate: Annotated[int | None, typer.Option(help="Samples per second that all sound must have.", min=1)] = None,
    max_steps: Annotated[int, typer.Option(help="Cut longer sound after so many steps.", min=1)] = Source.max_steps,
    grid: Annotated[int, typer.Option(help="Time steps of a quarter note, for MIDI.", min=1)] = Source.grid,
    max_gigabytes: MaxGigabytes = Source.max_gigabytes,
) -> None:
    """Make a pack of data, of any size: train reads from it what it needs, when it needs it."""
    origin = Source(source, likelihood, frame, rate, max_steps, grid, max_gigabytes)
    made = data.make_pack(origin, out)
    lengths = {part: [len(x) for x in made.parts[part]] for part in PARTS}
    counts = ", ".join(f"{len(lengths[part])} {part} ({sum(lengths[part]):,} steps)" for part in PARTS)
    console.print(f"{out}: {counts}, {made.features} features, {made.likelihood}", highlight=False, soft_wrap=True)


@app.command("eval")
def evaluate_run(
    run: RunFolder,
    part: Annotated[Part, typer.Option(help="Which sequences.")] = "test",
    source: Annotated[
        str | None, typer.Option("--data", help="Other data than it was trained on; this part of it is enough.")
    ] = None,
    max_gigabytes: MaxGigabytes = Source.max_gigabytes,
    backend: BackendName = "auto",
    threads: Threads = None,
) -> None:
    """Print the bound of a run's best model, in nats per time step.

    Real features are standardised by what the run was trained on, in other data too.
    """
    _set_threads(threads)
    model, header = load_model(run, backend)
    baseline = None
    if source is None:
        dataset = run_data(run, header)
        sequences, baseline = dataset[part], dataset.baseline()
    else:
        sequences = _other_data(run, header, source, part, max_gigabytes)
    sums = evaluate(model, sequences)
    nll, kl = sums.nll / sums.time_steps, sums.kl / sums.time_steps
    console.print(
        f"{part}: [bold]{sums.bound:.4f}[/] nats per step = nll {nll:.4f} + kl {kl:.4f}, {sums.time_steps} steps"
    )
    if baseline is not None and part == "test":
        console.print(f"independent features: {baseline:.4f} nats per step")


@app.command()
def sample(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; by default the run's.")] = None,
    steps: Annotated[int, typer.Option(help="Time steps to generate.", min=1)] = 64,
    count: Annotated[int, typer.Option(help="How many sequences.", min=1)] = 4,
    prefix: Annotated[int, typer.Option(help="Steps of test sequences to continue from.", min=0)] = 0,
    temperature: Annotated[float, typer.Option(help="Scales the spread of prior and output.", min=0.01)] = 1.0,
    seed: Seed = 0,
    backend: BackendName = "auto",
    threads: Threads = None,
) -> None:
    """Draw sequences: samples.npz and a picture, and MIDI files or sound where the run learnt those."""
    import numpy as np

    from .data import chorales, sound
    from .training import report

    _set_threads(threads)
    model, header = load_model(run, backend)
    given = _prefix(run_data(run, header), prefix, count) if prefix else None
    if not math.isfinite(temperature):
        raise RunError(f"--temperature must be finite, got {temperature}")
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        samples, _ = model.generate(steps, batch_size=count, prefix=given, temperature=temperature, generator=noise)
    if given is not None:
        samples = torch.cat([given, samples])
    about = header["data"]
    samples = samples * torch.tensor(about["scale"]) + torch.tensor(about["mean"])
    if not samples.isfinite().all():
        raise RunError(f"samples overflow float32 at --temperature {temperature:g}: try a lower one")
    out = out or (run if run.is_dir() else run.parent)
    out.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {f"sample_{i + 1}": samples[:, i].numpy() for i in range(count)}
    np.savez(out / "samples.npz", **arrays)
    low, high = samples.min(), samples.max()
    panels = [
        report.Panel(f"sample {i + 1}", (samples[:, i] - low) / (high - low).clamp(min=1e-9), prefix=prefix)
        for i in range(count)
    ]
    pitched = header["source"]["path"] == chorales.NAME
    report.rolls(panels, out / "samples.png", lowest=chorales.LOWEST if pitched else None)
    written = ["samples.npz", "samples.png"]
    for i in range(count):
        if pitched:
            written.append(f"sample_{i + 1}.mid")
            report.midi(samples[:, i], out / written[-1], lowest=chorales.LOWEST)
        elif about["rate"]:
            written.append(f"sample_{i + 1}.wav")
            sound.write(out / written[-1], samples[:, i], about["rate"])
    console.print(f"{', '.join(written)} written to {out}")


@app.command()
def score(
    run: TableRun,
    table: TableFile,
    out: Out = None,
    contamination: Annotated[
        float | None, typer.Option(help="Share of the table it was trained on that is anomalous; by default train's.")
    ] = None,
    threshold: Annotated[
        str | None, typer.Option(help="Quantile, or peaks: those over a threshold; by default train's.")
    ] = None,
    particles: ParticleCount = None,
    device: DeviceName = "cpu",
    backend: BackendName = "auto",
    threads: Threads = None,
) -> None:
    """Score the rows of a table, find anomalies, and draw both: scores.csv and scores.png."""
    _set_threads(threads)
    tables = _tables()
    tables.score(
        run, table, tables.out_of(run, "scores", out), console, contamination=contamination, threshold=threshold,
        num_particles=particles, device=device, backend=backend,
    )  # fmt: skip


@app.command()
def forecast(
    run: TableRun,
    table: TableFile,
    out: Out = None,
    horizon: Annotated[int, typer.Option(help="How many rows to forecast.", min=1)] = 24,
    quantile: Annotated[
        list[float] | None, typer.Option(help="Which, beside the mean; may be repeated. By default 0.05 to 0.95.")
    ] = None,
    future: Annotated[
        Path | None, typer.Option(help="A table of what is known of the rows to come: covariates, uneven times.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Drawn for each series.", min=1)] = 200,
    seed: Annotated[
        int | None, typer.Option(help="Of the samples; by default train's.", min=0, max=checks.MAX_SEED)
    ] = None,
    device: DeviceName = "cpu",
    backend: BackendName = "auto",
    threads: Threads = None,
) -> None:
    """Forecast what comes after a table, and draw a fan chart: forecast.csv and forecast.png."""
    _set_threads(threads)
    tables = _tables()
    tables.forecast(
        run, table, tables.out_of(run, "forecast", out), future, console, horizon=horizon,
        quantiles=tuple(sorted(quantile or QUANTILES)), num_samples=samples, seed=seed, device=device, backend=backend,
    )  # fmt: skip


@app.command()
def impute(
    run: TableRun,
    table: TableFile,
    out: Out = None,
    smoothed: Annotated[bool, typer.Option(help="By all that was observed, not only by what came before.")] = False,
    samples: Annotated[int, typer.Option(help="Whose average fills a gap; 1 is as noisy as the data.", min=1)] = 32,
    particles: ParticleCount = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the samples; by default train's.", min=0, max=checks.MAX_SEED)
    ] = None,
    device: DeviceName = "cpu",
    backend: BackendName = "auto",
    threads: Threads = None,
) -> None:
    """Fill the gaps of a table, and draw those of some series: imputed.csv and imputed.png."""
    _set_threads(threads)
    tables = _tables()
    tables.impute(
        run, table, tables.out_of(run, "imputed", out), console, smoothed=smoothed, num_samples=samples,
        num_particles=particles, seed=seed, device=device, backend=backend,
    )  # fmt: skip


def _tables() -> ModuleType:
    """Return the commands of tables.

    Raises:
        RunError: the extra is not installed.
    """
    try:
        from .training import tables
    except ImportError as error:
        raise RunError(str(error)) from error
    return tables


@app.command()
def export(
    run: RunFolder,
    to: Annotated[Path, typer.Option(help="The package to write, .pt2.")],
    batch_size: Annotated[int, typer.Option(help="How many streams move on together.", min=1)] = 1,
    backend: BackendName = "auto",
    threads: Threads = None,
) -> None:
    """Compile a step of a run's best model, or of a table's, for programs without Python."""
    from .training.export import export as export_run

    _set_threads(threads)
    export_run(run, to, console, batch_size=batch_size, backend=backend)


@app.command()
def convert(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="A checkpoint of torch.save or numpy.savez.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The .safetensors file to write.")],
    layout: Annotated[str, typer.Option(help="The layout of OLD, where it cannot be told.")] = "auto",
    agent: Annotated[int | None, typer.Option(help="Which of its agents, counted from 0, if OLD has several.")] = None,
    likelihood: Annotated[Output | None, typer.Option(help="What its output means, where that cannot be told.")] = None,
) -> None:
    """Make a checkpoint of somebody's own VRNN one that load_checkpoint(NEW) reads."""
    from .checkpoints.convert import convert as translate

    model = translate(old, new, layout, {} if likelihood is None else {"likelihood": likelihood}, agent)
    console.print(f"{new}: {model}", highlight=False, soft_wrap=True)


@app.command()
def info() -> None:
    """Print versions, what this CPU can do, and which backends can run."""
    from .training.info import report_on

    report_on(console)


@app.command()
def verify(
    backend: Annotated[str | None, typer.Option(help="One backend; by default all that can run on the device.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda:N; by default the first GPU if there is one.")] = None,
    record: Annotated[Path, typer.Option(help="File for what was found.")] = Path("vrnn-fast-verified.json"),
) -> None:
    """Try backends on this device against the reference, and write a record that can be sent to us."""
    from .training.verify import verify as verify_all

    where = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    if not verify_all(backend, where, record, console):
        raise typer.Exit(1)


@app.command()
def demo(
    run: Annotated[Path, typer.Option(help="Folder for what it leaves behind.")] = Path("runs/chorales"),
    epochs: Annotated[int | None, typer.Option(help="Fewer than the full demonstration.", min=1)] = None,
    threads: Threads = None,
) -> None:
    """Train on the Bach chorales and show what came of it."""
    from .training import demo as demonstration
    from .training.lock import alone

    _set_threads(threads)
    with alone(run):
        if demonstration.run(run, console, epochs) is None:
            raise typer.Exit(INTERRUPTED)


def _set_threads(threads: int | None) -> None:
    if threads:
        torch.set_num_threads(threads)


def _other_data(run: Path, header: dict[str, Any], path: str, part: Part, max_gigabytes: float) -> tuple[Series, ...]:
    """Return a part of other data, read and standardised as what the run was trained on.

    Raises:
        DataError: it is not of the kind, size or rate that the run was trained on.
    """
    source, about = read_configs(run, header)[0], header["data"]
    kind = {"likelihood": about["likelihood"], "rate": about["rate"]}
    reading = data.read(replace(source, path=path, max_gigabytes=max_gigabytes, **kind))
    if reading.features != about["features"]:
        words = f"{reading.name} has {reading.features} features per step, the run's model {about['features']}"
        raise DataError(words)
    return reading.standardised(part, about["mean"], about["scale"])


def _prefix(dataset: Dataset, steps: int, count: int) -> torch.Tensor:
    """Return the first ``steps`` of ``count`` test sequences, (steps, count, X)."""
    long = [x[:steps] for x in dataset.test if len(x) >= steps]
    if not long:
        longest = max(len(x) for x in dataset.test)
        raise DataError(f"--prefix must be at most {longest}, the longest test sequence, got {steps}")
    return torch.stack([long[i % len(long)] for i in range(count)], 1)
