"""What is measured, in which order: the short list of ``make bench``, and the long one of ``python -m bench --all``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from .contender import ALL, FORWARD, TRAINING, UPDATE, Contender
from .contest import Contest
from .peers import functions, jax_scan, ours, playing, processes, torch_loops
from .shapes import REAL_SHAPES, REFERENCE, SINGLE, SIX_SHAPES, Shape, uniform

EITHER = (ALL, 1)  # small operations may be faster on one thread
OTHERS = 8.0  # times the eager loop's error
ALONE = "computes something else: the recurrent layer alone, fed as in the VRNN; GFLOP/s are of its own products"

EAGER = Contender("eager loop", torch_loops.prepare_eager, threads=EITHER)
COMPILED_CELL = Contender("compiled cell", torch_loops.prepare_compiled_cell, errors=OTHERS)
COMPILED_TWICE = replace(COMPILED_CELL, threads=EITHER)  # another number of threads is another compilation
COMPILED_LOOP = Contender(
    "compiled loop", torch_loops.prepare_compiled_loop, torch_loops.too_long_to_unroll, errors=OTHERS
)
COMPILED_SCAN = Contender("compiled scan", torch_loops.prepare_compiled_scan, errors=OTHERS, threads=EITHER)
GRAPHED_LOOP = Contender("CUDA-graphed loop", torch_loops.prepare_graphed_loop, torch_loops.no_gpu, errors=OTHERS)
GRU_ALONE = Contender("nn.GRU alone", torch_loops.prepare_gru_alone, threads=EITHER, remark=ALONE)
LSTM_ALONE = Contender("nn.LSTM alone", torch_loops.prepare_lstm_alone, threads=EITHER, remark=ALONE)
JAX = Contender("JAX scan", jax_scan.prepare, jax_scan.refuses, errors=OTHERS)
OURS = Contender("vrnn_fast", ours.prepare, ours.not_built)
RECOMPUTE = Contender("vrnn_fast, recompute", ours.prepare_recompute, ours.not_built)

TORCH_AND_OURS = (EAGER, COMPILED_CELL, GRU_ALONE, LSTM_ALONE, OURS, RECOMPUTE)
EVERYBODY = (EAGER, COMPILED_TWICE, COMPILED_SCAN, JAX, GRU_ALONE, LSTM_ALONE, OURS, RECOMPUTE)

FEW_STEPS = replace(REFERENCE, name="few steps", steps=torch_loops.MOST_UNROLLED)
FEW_SAMPLES = replace(REFERENCE, name="few samples", batch=8)
STREAM = Shape("stream", 64, 1, REFERENCE.model)
FLOATS = Shape("floats", 1, 16384)


def training(contenders: tuple[Contender, ...]) -> Iterator[Contest]:
    for shape in SIX_SHAPES:
        yield Contest("training", shape, (FORWARD, TRAINING), contenders, EAGER, memory=True)


def real() -> Iterator[Contest]:
    """Compare the same at the shapes of known models."""
    for shape in REAL_SHAPES:
        invited = (OURS,) if shape.lacks else EVERYBODY
        yield Contest("real", shape, (FORWARD, TRAINING), invited, EAGER, memory=True)


def overhead() -> Iterator[Contest]:
    """Compare where there is little to compute: single frames, and training calls of a single step."""
    eager = Contender("eager loop", playing.prepare_eager_frames, threads=EITHER)
    step = Contender("vrnn_fast, model.step", playing.prepare_steps, ours.not_built)
    stream = Contender("vrnn_fast, Stream.push", playing.prepare_stream, functions.no_native_module)
    yield Contest("overhead", STREAM, (playing.FRAME,), (eager, step, stream), eager)
    for batch in (1, 8):
        shape = Shape("one step", 1, batch, REFERENCE.model)
        yield Contest("overhead", shape, (TRAINING,), (EAGER, OURS), EAGER)


def elementary() -> Iterator[Contest]:
    theirs = Contender("torch", functions.prepare_torch, threads=(1,))
    own = Contender("vrnn_fast", functions.prepare_ours, functions.no_native_module, (1,))
    yield Contest("functions", FLOATS, tuple(functions.FUNCTIONS), (theirs, own), theirs)


def updates() -> Iterator[Contest]:
    """Compare a whole training step, the optimiser's included."""
    for shape in (REFERENCE, SIX_SHAPES[3]):
        yield Contest("update", shape, (UPDATE,), (EAGER, COMPILED_CELL, OURS, RECOMPUTE), EAGER)


def one_graph() -> Iterator[Contest]:
    """Take few enough steps for the whole loop to be compiled."""
    contenders = (EAGER, COMPILED_CELL, COMPILED_LOOP, COMPILED_SCAN, GRAPHED_LOOP, JAX, OURS)
    yield Contest("one graph", FEW_STEPS, (FORWARD, TRAINING), contenders, EAGER)


def generation() -> Iterator[Contest]:
    eager = Contender("eager loop", playing.prepare_eager_generation, threads=EITHER)
    own = Contender("vrnn_fast", playing.prepare_generation, ours.not_built, EITHER)
    for shape in (REFERENCE, FEW_SAMPLES, SINGLE):
        yield Contest("generation", shape, (playing.GENERATION,), (eager, own), eager)


def scaling() -> Iterator[Contest]:
    """Compare training time against T, B and h, one at a time, on each number of threads."""
    counts = tuple(range(1, torch.get_num_threads() + 1))
    contenders = tuple(replace(OURS, name=f"{n} thread{'s' * (n > 1)}", threads=(n,)) for n in counts)
    steps = (Shape("T", t, 16, uniform(28, 100, 16)) for t in (32, 64, 128, 256, 512, 1024))
    batches = (Shape("B", 28, b, uniform(28, 100, 16)) for b in (1, 2, 4, 8, 16, 32, 64, 128, 256))
    widths = (Shape("h", 28, 32, uniform(28, h, 16)) for h in (16, 32, 64, 128, 256, 512))
    for shape in (*steps, *batches, *widths):
        yield Contest("scaling", shape, (TRAINING,), contenders, EAGER)


def full_size() -> Iterator[Contest]:
    """Take one step of the paper's own model, with the optimiser's update."""
    yield Contest("full size", REAL_SHAPES[-1], (UPDATE,), (EAGER, OURS), EAGER, memory=True)


def scale() -> Iterator[Contest]:
    """Compare one process with two, of a thread each, at a batch and at half of it: what a batch gains, and what is
    lost where each process keeps its own."""
    one = Contender("1 process", processes.prepare_one, ours.not_built, (1,))
    two = Contender("2 processes", processes.prepare_two, ours.not_built, (2,))
    threads = replace(OURS, name="1 process, 2 threads", threads=(2,))
    for shape in (REFERENCE, SIX_SHAPES[3]):
        for batch in (shape.batch // 2, shape.batch):
            yield Contest("scale", replace(shape, batch=batch), (TRAINING,), (EAGER, one, two, threads), EAGER)


def short() -> list[Contest]:
    return [*training(TORCH_AND_OURS), *overhead(), *elementary()]


def full() -> list[Contest]:
    return [
        *training(EVERYBODY),
        *overhead(),
        *elementary(),
        *updates(),
        *generation(),
        *one_graph(),
        *scaling(),
        *scale(),
        *real(),
        *full_size(),
    ]
