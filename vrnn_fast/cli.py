"""The command ``vrnn-fast``: train, eval, sample, convert, info, verify, demo."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
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

from . import data
from .cell.spec import Activation, Cell
from .checkpoints.files import CheckpointError
from .data import DataError, Dataset, Source
from .data.dataset import Output, Part
from .layouts.structure import LayoutError
from .training.config import MAX_SEED, ModelConfig, RunError, Schedule, TrainConfig
from .training.trainer import Trainer, evaluate, load_model, read_configs, run_data

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
Backend = Annotated[str, typer.Option(help="Executor: auto, or a name that `vrnn-fast info` lists.")]
MaxGigabytes = Annotated[float, typer.Option(help="What a file of data may expand to in memory.", min=0)]
Seed = Annotated[int, typer.Option(help="Of every random choice.", min=0, max=MAX_SEED)]


def main() -> None:
    """Run the command line; what a user can put right ends in one line and exit status 1."""
    try:
        app()
    except (CheckpointError, DataError, LayoutError, RunError, OSError) as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(_one_line(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


def _one_line(error: Exception) -> str:
    """Its message; names in a damaged file may hold any character."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(str(error).split()))


@app.command()
def train(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="DATA", help="chorales, .npz, .npy, or a folder of .wav")
    ] = "chorales",
    run: Annotated[Path, typer.Option(help="Folder for checkpoints and pictures.")] = Path("runs/latest"),
    resume: Annotated[Path | None, typer.Option(help="Go on with this run, exactly as it was.", metavar="RUN")] = None,
    likelihood: Annotated[Output | None, typer.Option(help="By default gaussian for sound, else bernoulli.")] = None,
    frame: Annotated[int, typer.Option(help="Samples per time step, for sound.", min=1)] = Source.frame,
    rate: Annotated[int | None, typer.Option(help="Samples per second that all sound must have.", min=1)] = None,
    max_steps: Annotated[int, typer.Option(help="Longest sequence cut from sound.", min=1)] = Source.max_steps,
    max_gigabytes: MaxGigabytes = Source.max_gigabytes,
    cell: Annotated[Cell, typer.Option()] = ModelConfig.cell,
    activation: Annotated[Activation, typer.Option()] = ModelConfig.activation,
    hidden: Annotated[int, typer.Option(help="Size of the recurrent state.", min=1)] = ModelConfig.hidden_size,
    latent: Annotated[int, typer.Option(help="Size of z.", min=1)] = ModelConfig.latent_size,
    width: Annotated[int, typer.Option(help="Width of every hidden layer.", min=1)] = ModelConfig.width,
    epochs: Annotated[int, typer.Option()] = TrainConfig.epochs,
    batch_size: Annotated[int, typer.Option()] = TrainConfig.batch_size,
    learning_rate: Annotated[
        float, typer.Option("--lr", help="The highest learning rate.")
    ] = TrainConfig.learning_rate,
    schedule: Annotated[Schedule, typer.Option(help="How the learning rate falls.")] = TrainConfig.schedule,
    warmup: Annotated[int, typer.Option(help="Steps of rising learning rate.")] = TrainConfig.warmup,
    weight_decay: Annotated[float, typer.Option()] = TrainConfig.weight_decay,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = TrainConfig.clip,
    anneal: Annotated[float, typer.Option(help="Epochs of rising KL weight.")] = TrainConfig.anneal,
    free_nats: Annotated[
        float, typer.Option(help="KL per time step below which nothing is gained.")
    ] = TrainConfig.free_nats,
    patience: Annotated[int, typer.Option(help="Epochs to wait for a better bound; 0: all.")] = TrainConfig.patience,
    seed: Seed = TrainConfig.seed,
    backend: Backend = TrainConfig.backend,
    threads: Threads = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write logs into the run's folder.")] = False,
) -> None:
    """Learn from sequences: the chorales, arrays (T, X) or (N, T, X), or sound cut into frames.

    Arrays and files named train..., valid... (or val) and test... are those parts; if none is, a hash of the names
    decides. Ctrl-C, SIGTERM and SIGHUP save, and --resume goes on as if it had never stopped.
    """
    from .training.lock import alone
    from .training.report import curves
    from .training.trainer import LAST
    from .training.watch import watch

    _set_threads(threads)
    if resume is not None:
        _refuse_beside_resume(context)
        run = resume if os.path.isdir(resume) else resume.parent
        if not os.path.isdir(run):
            raise CheckpointError(f"no checkpoint at {resume}")
        begin = partial(Trainer.resume, resume)
    else:
        origin = Source(source, likelihood, frame, rate, max_steps, max_gigabytes)
        with console.status("reading the data"):
            dataset = data.load(origin)
        model = ModelConfig(dataset.features, dataset.likelihood, hidden, latent, width, cell, activation)
        config = TrainConfig(
            epochs, batch_size, learning_rate, schedule, warmup, weight_decay, clip, anneal, free_nats, patience, seed,
            backend,
        )  # fmt: skip
        begin = partial(Trainer, origin, model, config, dataset, run)
    with alone(run):
        if resume is None and (run / LAST).exists():
            raise RunError(f"{run} holds a run already: go on with --resume {run}, or name another --run")
        trainer = begin()
        if not watch(trainer, console, tensorboard=tensorboard):
            raise typer.Exit(INTERRUPTED)
    picture = trainer.folder / "curves.png"
    curves(trainer.history, picture, baseline=trainer.data.baseline(), title=trainer.data.name)
    epoch, bound = trainer.best
    console.print(
        f"best validation bound {bound:.3f} nats per step, after epoch {epoch + 1}; saved in {trainer.folder}"
    )


@app.command("eval")
def evaluate_run(
    run: RunFolder,
    part: Annotated[Part, typer.Option(help="Which sequences.")] = "test",
    source: Annotated[
        str | None, typer.Option("--data", help="Other data than it was trained on; this part of it is enough.")
    ] = None,
    max_gigabytes: MaxGigabytes = Source.max_gigabytes,
    backend: Backend = "auto",
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
    backend: Backend = "auto",
    threads: Threads = None,
) -> None:
    """Generate sequences: samples.npz and a picture, and MIDI files or sound where the run learnt those."""
    import numpy as np

    from .data import chorales, files
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
            files.write_sound(out / written[-1], samples[:, i], about["rate"])
    console.print(f"{', '.join(written)} written to {out}")


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
    """Learn the Bach chorales and show what came of it."""
    from .training import demo as demonstration
    from .training.lock import alone

    _set_threads(threads)
    with alone(run):
        if demonstration.run(run, console, epochs) is None:
            raise typer.Exit(INTERRUPTED)


def _set_threads(threads: int | None) -> None:
    if threads:
        torch.set_num_threads(threads)


def _refuse_beside_resume(context: typer.Context) -> None:
    """A resumed run is what it was: whatever would change it is refused by name."""
    given = [
        name
        for name in context.params
        if name not in ("resume", "threads", "tensorboard")
        and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise RunError(f"--resume takes everything from the run: leave out {', '.join(given)}")


def _other_data(
    run: Path, header: dict[str, Any], path: str, part: Part, max_gigabytes: float
) -> tuple[torch.Tensor, ...]:
    """A part of other data, read and standardised as what the run was trained on.

    Raises:
        DataError: it is not of the kind, size or rate that the run was trained on.
    """
    (source, model, _), about = read_configs(run, header), header["data"]
    source = replace(source, path=path, likelihood=model.likelihood, rate=about["rate"], max_gigabytes=max_gigabytes)
    reading = data.read(source)
    if reading.features != model.input_size:
        raise DataError(f"{reading.name} has {reading.features} features per step, the run's model {model.input_size}")
    return reading.standardised(part, about["mean"], about["scale"])


def _prefix(dataset: Dataset, steps: int, count: int) -> torch.Tensor:
    """The first ``steps`` of ``count`` test sequences, (steps, count, X)."""
    long = [x[:steps] for x in dataset.test if len(x) >= steps]
    if not long:
        longest = max(len(x) for x in dataset.test)
        raise DataError(f"--prefix must be at most {longest}, the longest test sequence, got {steps}")
    return torch.stack([long[i % len(long)] for i in range(count)], 1)
