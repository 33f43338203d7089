"""Runs of several processes, on the CPU: the same curve on any number of ranks, and what may go wrong on one of them.

One launch of two workers and one of four, whose findings the tests look at; then torchrun as a user starts it.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from vrnn_fast.data import Dataset, Source, load, make_pack
from vrnn_fast.training.checkpoint import FOLDER, latest
from vrnn_fast.training.config import RunError, TrainConfig
from vrnn_fast.training.ranks import Ranks, joined
from vrnn_fast.training.trainer import BEST, Trainer, load_model

MODEL: dict[str, Any] = {"hidden_size": 6, "latent_size": 2, "activation": "tanh"}
TRAIN = TrainConfig(epochs=2, batch_size=4, warmup=2, anneal=1.5, free_nats=0.01)
WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "in parts": {"accumulate": 3, "segment": 2, "save_every": 3},
    "sharded": {"shard": True, "accumulate": 2, "segment": 3},
    "bfloat16": {"precision": "bfloat16", "epochs": 1},
    "by the reference": {"backend": "reference", "segment": 2, "epochs": 1},
}
RESUMED = ("in parts", "sharded")
MIXTURE = {"class_path": "vrnn_fast.likelihoods.GaussianMixture", "init_args": {"components": 2}}
Findings = dict[str, Any]

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo"
)


def stretches(count: int = 9) -> Dataset:
    """Each feature is on or off for a stretch of time. Nine sequences leave ranks without one in the last batch."""
    generator = torch.Generator().manual_seed(0)

    def sequence(steps: int) -> torch.Tensor:
        return ((torch.rand(steps, 5, generator=generator) < 0.15).cumsum(0) % 2).float()

    train, valid, test = (tuple(sequence(1 + i % 7) for i in range(n)) for n in (count, 5, 3))
    return Dataset("stretches", "bernoulli", train, valid, test)


def run(folder: Path, ranks: Ranks | None, **changes: Any) -> Trainer:
    return Trainer(Source(), MODEL, replace(TRAIN, **changes), stretches(), folder, ranks)


def curve(trainer: Trainer) -> list[float]:
    """What a run came to: every step's loss and norm, and the validation of every epoch."""
    found = [value for step in trainer.steps() for value in (step.loss, step.gradient_norm)]
    return found + [epoch.valid.bound for epoch in trainer.history]


def message_of(call: Callable[[], object]) -> str:
    try:
        call()
    except RunError as error:
        return f"{'everywhere: ' if error.everywhere else ''}{error}"
    return "nothing was raised"


def work(rank: int, size: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost"}
    os.environ |= {"LOCAL_WORLD_SIZE": str(size), "MASTER_PORT": str(port)}
    at = Path(folder, str(size))
    with joined("cpu") as ranks:
        found = findings(ranks, at)
        torch.save(ranks.gather(found), at / "findings.pt")
        ranks.told(None)


def findings(ranks: Ranks, at: Path) -> Findings:
    found: Findings = {way: curve(run(at / way, ranks, **WAYS[way])) for way in (WAYS if ranks.size == 2 else RESUMED)}
    for way in RESUMED:
        stopped = run(at / f"{way}, stopped", ranks, **WAYS[way])
        before = [v for step in islice(stopped.steps(), 4) for v in (step.loss, step.gradient_norm)]
        stopped.save()
        found[f"{way}, resumed"] = before + curve(Trainer.resume(at / f"{way}, stopped", stretches(), ranks))
    if ranks.size > 2:
        return found
    for way in RESUMED:  # for one rank alone to go on with
        stopped = run(at / f"{way}, left", ranks, **WAYS[way])
        list(islice(stopped.steps(), 4))
        stopped.save()
    found["other data"] = message_of(
        lambda: Trainer(Source(), MODEL, TRAIN, stretches(9 + ranks.rank), at / "other", ranks)
    )
    found["stopping"] = stopping(run(at / "stopping", ranks), ranks)
    far = stretches()
    far.train[6].fill_(1e30)
    spoilt, mixture = replace(far, likelihood="gaussian"), {**MODEL, "likelihood": MIXTURE}
    found["no number"] = message_of(lambda: curve(Trainer(Source(), mixture, TRAIN, spoilt, at / "far", ranks)))
    found["unread"] = message_of(lambda: curve(spoilt_meanwhile(at, ranks)))
    found["one rank"] = message_of(lambda: ranks.together(OSError("no disk") if ranks.rank else None))
    (at / "file").touch()
    found["no folder"] = message_of(lambda: run(at / "file" / "run", ranks))
    return found


def spoilt_meanwhile(at: Path, ranks: Ranks) -> Trainer:
    """A run whose data somebody changes after all ranks have opened it."""
    if ranks.first:
        np.save(at / "walks.npy", np.random.default_rng(0).normal(size=(20, 50, 30)))
        make_pack(Source(str(at / "walks.npy"), "gaussian"), at / "pack")
    ranks.told(None)
    source = Source(str(at / "pack"))
    trainer = Trainer(source, MODEL, replace(TRAIN, shard=True), load(source), at / "unread", ranks)
    if ranks.first:
        with (at / "pack" / "values.npy").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"x")
    ranks.told(None)
    return trainer


def stopping(trainer: Trainer, ranks: Ranks) -> list[bool]:
    """Only the last rank is asked to stop."""
    told = []
    for step in trainer.steps():
        told.append(step.stopping)
        if step.number == 2 and ranks.rank == ranks.size - 1:
            trainer.ask_to_stop()
        if step.stopping:
            break
    return told


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, list[float]]:
    """The curves of one process."""
    return {way: curve(run(folder / "1" / way, None, **changes)) for way, changes in WAYS.items()}


def launched(folder: Path, size: int) -> list[Findings]:
    (folder / str(size)).mkdir(exist_ok=True)
    multiprocessing.set_forkserver_preload(["torch", "vrnn_fast.training.trainer"])  # imported once, by their parent
    mp.start_processes(work, (size, str(folder), free_port()), nprocs=size, start_method="forkserver")
    found: list[Findings] = torch.load(folder / str(size) / "findings.pt")
    return found


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def two(folder: Path) -> list[Findings]:
    return launched(folder, 2)


@pytest.fixture(scope="module")
def four(folder: Path) -> list[Findings]:
    return launched(folder, 4)


def assert_same_curve(ours: list[float], right: list[float], way: str) -> None:
    """To rounding: sums are added in another order, and in bfloat16 gradients are rounded before."""
    tolerance = 2e-2 if way == "bfloat16" else 2e-4
    assert ours == pytest.approx(right, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_follow_the_curve_of_one(two: list[Findings], alone: dict[str, list[float]], way: str) -> None:
    assert two[0][way] == two[1][way]
    assert_same_curve(two[0][way], alone[way], way)
    assert two[0][way] != alone[way] or way == "sharded", "they were one process after all"


@pytest.mark.parametrize("way", RESUMED)
def test_four_ranks_follow_the_curve_of_one(four: list[Findings], alone: dict[str, list[float]], way: str) -> None:
    assert all(found[way] == four[0][way] for found in four)
    assert_same_curve(four[0][way], alone[way], way)


@pytest.mark.parametrize("way", RESUMED)
def test_resuming_on_as_many_ranks_is_exact(two: list[Findings], four: list[Findings], way: str) -> None:
    for found in (two[0], four[0]):
        assert found[f"{way}, resumed"] == found[way]


def test_accumulating_and_sharding_change_no_number(folder: Path, alone: dict[str, list[float]]) -> None:
    for changes in ({"accumulate": 3}, {"shard": True}):
        name = next(iter(changes))
        assert_same_curve(curve(run(folder / "1" / name, None, **changes)), alone["whole"], "whole")
    assert alone["sharded"] != pytest.approx(alone["whole"]), "segments are other optimiser steps"
    rounded = np.array(alone["bfloat16"])
    assert 0 < np.abs(rounded[:-1] - np.array(alone["whole"])[: len(rounded) - 1]).max() < 0.1


def test_a_compiled_run_follows_the_curve(folder: Path) -> None:
    plain, compiled = (curve(run(folder / "1" / f"{c}", None, compile=c, epochs=1)) for c in (False, True))
    assert compiled == pytest.approx(plain, rel=2e-4)


@pytest.mark.parametrize("way", RESUMED)
def test_a_run_goes_on_with_another_number_of_ranks(
    two: list[Findings], folder: Path, alone: dict[str, list[float]], way: str
) -> None:
    """In the same epoch, in the middle of its sequences."""
    path, header = latest(folder / "2" / f"{way}, left")
    assert header["ranks"] == 2
    found = curve(Trainer.resume(path, stretches()))
    assert_same_curve(found, alone[way][2 * 4 :], way)


def test_the_best_model_is_whole_on_any_number_of_ranks(two: list[Findings], folder: Path) -> None:
    for way in ("whole", "sharded"):
        model, other = (load_model(folder / size / way)[0] for size in ("1", "2"))
        for name, p in model.named_parameters():
            torch.testing.assert_close(other.get_parameter(name), p, rtol=1e-3, atol=1e-4)
    assert {p.name for p in (folder / "2" / "sharded").iterdir()} == {BEST, FOLDER}


def test_all_ranks_stop_behind_the_same_step(two: list[Findings]) -> None:
    assert two[0]["stopping"] == two[1]["stopping"] == [False, False, True]


def test_what_goes_wrong_on_one_rank_is_told_by_all(two: list[Findings]) -> None:
    for found in two:
        assert found["one rank"] == "everywhere: rank 1: no disk"
        assert re.match(r"everywhere: rank 0: the run folder .*file/run cannot be written", found["no folder"])
        assert re.match(
            r"everywhere: the data is not the same on all ranks: \w+ on rank 0, \w+ on rank 1", found["other data"]
        )
        assert re.match(
            r"everywhere: the loss is (inf|nan) at step \d, in epoch 1 \(batch \d, training sequence 6, on rank [01]\)",
            found["no number"],
        )
        assert re.match(
            r"everywhere: rank [01]: .*values\.npy is damaged or was changed: rows \d+ to 1000 are not what they were",
            found["unread"],
        )
    assert two[0]["no number"] == two[1]["no number"]


# -- -- as a user starts it


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    path = tmp_path / "notes.npz"
    np.savez(path, **{f"piece{i}": generator.random((4 + i % 7, 5)) < 0.4 for i in range(40)})
    return path


ALONE = ("--standalone", "--nproc-per-node", "2")


def torchrun(*arguments: object, restarts: int = 0, nodes: Sequence[str] = ALONE) -> subprocess.Popen[str]:
    """``torchrun -m vrnn_fast train``, two ranks on one node if nothing else is said, in a process group of its own."""
    launcher = ["-m", "torch.distributed.run", *nodes, f"--max-restarts={restarts}"]
    command = [sys.executable, *launcher, "-m", "vrnn_fast", "train", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "500"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


KILLS = int(os.environ.get("VRNN_FAST_KILLS", 1))  # more of them take minutes
SMALL = ("--model.hidden_size", 6, "--model.latent_size", 2, "--batch_size", 4)


def workers(parent: int) -> Iterator[int]:
    """The ranks that a torchrun started."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                yield int(path.name)
        except OSError:
            continue


def newest(run: Path) -> int:
    """The step of a run's last checkpoint; -1 if there is none."""
    return max((int(p.name.removeprefix("step-")) for p in run.glob(f"{FOLDER}/step-*[0-9]")), default=-1)


def history(run: Path) -> list[tuple[float, float]]:
    return [(e["train"]["nll"], e["valid"]["nll"]) for e in latest(run)[1]["history"]]


def test_a_rank_that_is_killed_costs_nothing_but_time(notes: Path, tmp_path: Path) -> None:
    """Whenever and whichever: torchrun starts all of them anew, and the curve is that of a run that was left alone."""
    asked = (notes, "--epochs", 15 + 15 * KILLS, "--patience", 0, *SMALL)
    whole = torchrun(*asked, "--run_folder", tmp_path / "whole")
    output, _ = whole.communicate(timeout=200 * KILLS)
    assert whole.returncode == 0, output
    generator, kills = np.random.default_rng(int(os.environ.get("VRNN_FAST_SEED", 0))), KILLS
    options = ("--run_folder", tmp_path / "stopped", "--save_every", 7)
    stopped = torchrun(*asked, *options, restarts=4 * kills)  # who dies while ranks join costs more than one
    killed = 0
    while killed < kills and stopped.poll() is None:
        before, deadline = newest(tmp_path / "stopped"), time.monotonic() + 100
        while time.monotonic() < deadline and stopped.poll() is None and newest(tmp_path / "stopped") <= before:
            time.sleep(0.01)
        time.sleep(float(generator.uniform(0, 1)))
        ranks = sorted(workers(stopped.pid))
        if stopped.poll() is None and len(ranks) == 2:
            os.kill(ranks[int(generator.integers(2))], signal.SIGKILL)
            killed += 1
    output, _ = stopped.communicate(timeout=200 * KILLS)
    assert stopped.returncode == 0, output
    assert killed == kills, "the run was over before"
    assert history(tmp_path / "stopped") == history(tmp_path / "whole")
    assert not list((tmp_path / "stopped" / FOLDER).glob("*.part"))


def test_a_rank_of_another_node_that_is_killed_costs_nothing_but_time(notes: Path, tmp_path: Path) -> None:
    """Two nodes that find each other through an address, each of which counts its own restarts."""
    asked = (notes, "--epochs", 30, "--patience", 0, *SMALL)
    whole = torchrun(*asked, "--run_folder", tmp_path / "whole")
    output, _ = whole.communicate(timeout=200)
    assert whole.returncode == 0, output
    with socket.create_server(("127.0.0.1", 0)) as found:
        address = f"127.0.0.1:{found.getsockname()[1]}"
    meeting = ("--rdzv-backend", "c10d", "--rdzv-endpoint", address, "--local-addr", "127.0.0.1")
    nodes = ("--nnodes", "2", "--nproc-per-node", "1", *meeting)
    options = ("--run_folder", tmp_path / "stopped", "--save_every", 7)
    both = [torchrun(*asked, *options, restarts=3, nodes=nodes) for _ in range(2)]
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and newest(tmp_path / "stopped") < 0:
        time.sleep(0.01)
    (victim,) = workers(both[1].pid)
    os.kill(victim, signal.SIGKILL)
    outputs = [node.communicate(timeout=300)[0] for node in both]
    assert [node.returncode for node in both] == [0, 0], "\n\n".join(outputs)
    assert "exitcode: -9" in outputs[1]
    assert history(tmp_path / "stopped") == history(tmp_path / "whole")


def test_a_scheduler_that_ends_a_run_finds_it_saved(notes: Path, tmp_path: Path) -> None:
    """torchrun passes SIGTERM on; both ranks stop behind one step, and one of them says where it was saved."""
    asked = torchrun(notes, "--epochs", 5000, "--patience", 0, "--run_folder", tmp_path / "run", *SMALL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list((tmp_path / "run").glob(f"{FOLDER}/step-*[0-9]")):
        time.sleep(0.05)
    sent = time.monotonic()
    asked.send_signal(signal.SIGTERM)
    output, _ = asked.communicate(timeout=60)
    assert time.monotonic() - sent < 30
    path, header = latest(tmp_path / "run")
    assert output.count(f"saved to {path}") == 1, output
    assert header["step"] == int(path.name.removeprefix("step-"))
    assert math.isfinite(history(tmp_path / "run")[-1][0])


def test_a_rank_that_waits_in_vain_leaves(tmp_path: Path) -> None:
    """gloo may wait for ever for one that died."""
    code = (
        "import datetime, sys, time; from vrnn_fast.training import ranks\n"
        "ranks.rendezvous = lambda *_, **__: iter([(None, 1, 2)])\n"
        "ranks._start = lambda *_: time.sleep(60)\n"
        "ranks._JOINING = datetime.timedelta(seconds=1)\n"
        "with ranks.joined('cpu'): pass"
    )
    environment = os.environ | {"RANK": "1", "WORLD_SIZE": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "rank 1: the other ranks did not come within 1 s\n"


def test_a_mistake_is_said_once(tmp_path: Path) -> None:
    asked = torchrun(tmp_path / "nowhere", "--run_folder", tmp_path / "run", *SMALL)
    output, _ = asked.communicate(timeout=60)
    assert asked.returncode == 1
    assert output.count("error: ") == 1, output
    assert "no such data" in output
    assert json.dumps(str(tmp_path / "run")) not in output
