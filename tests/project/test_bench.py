"""The benchmark refuses to time what is wrong, voids what was disturbed, and continues where it stopped."""

from __future__ import annotations

import json
import math
import platform
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import __main__ as bench
from bench import contest as contests
from bench import experiments, figures, functions, history, memory, peak, readme, record, scaling, table
from bench.contender import FORWARD, TRAINING, UPDATE, Contender, Entry, run_of
from bench.contest import Contest
from bench.inner_loop import TILES, disassembled, innermost
from bench.measure import Timed, disagreements, take_turns
from bench.peers import EagerVRNN
from bench.peers.torch_loops import prepare_eager
from bench.record import Measurement, Record
from bench.shapes import REAL_SHAPES, REFERENCE, SIX_SHAPES, Shape, forward_flops
from bench.table import BEGIN, END, in_full, markdown, problems, render, summary
from vrnn_fast import VRNN
from vrnn_fast.executors.cpu import operators
from vrnn_fast.ops import LIBRARY

SMALL = replace(REFERENCE, steps=3, batch=2)
MOTION = replace(next(shape for shape in REAL_SHAPES if shape.name == "motion"), steps=3, batch=2)
TRAJECTORIES = next(shape for shape in REAL_SHAPES if shape.name == "trajectories")
EAGER = experiments.EAGER


def prepare_wrong(shape: Shape, dtype: torch.dtype) -> Entry:
    run = prepare_eager(shape, dtype)
    assert run.results is not None
    right = run.results()
    return replace(run, results=lambda: {name: t + 1e-3 for name, t in right.items()})


def prepare_wrong_forward(shape: Shape, dtype: torch.dtype) -> Entry:
    """Right as long as gradients are wanted."""
    model, (x, eps) = EagerVRNN(**shape.model).to(dtype), shape.data(dtype)
    model.load_state_dict(shape.parameters(dtype))
    return run_of(model, lambda: model.loss(x, eps) + (0 if torch.is_grad_enabled() else 1e-3), 1)


def never(shape: Shape) -> str | None:
    return "not here"


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of a constant and enormous peak."""
    monkeypatch.setattr(peak, "measure", lambda cores: dict.fromkeys(cores, 1e9))


def test_flops_of_the_reference_shape() -> None:
    phi_x, phi_z, encoder, prior, decoder = 28 * 100 + 100 * 100, 16 * 100, 200 * 100 + 100 * 100, 100 * 100, 30_000
    heads, gru = 4 * 100 * 16 + 100 * 28, 300 * 200 + 300 * 100
    weights = phi_x + phi_z + encoder + prior + decoder + heads + gru
    assert forward_flops(VRNN(**REFERENCE.model), REFERENCE) == 2 * 28 * 128 * weights


def test_the_real_shapes_are_as_large_as_they_are_said_to_be() -> None:
    assert len({(shape.name, shape.batch) for shape in (*SIX_SHAPES, *REAL_SHAPES)}) == 14
    weights = {
        s.name: sum(p.numel() for p in VRNN(**s.model, device="meta").parameters()) for s in REAL_SHAPES if not s.lacks
    }
    assert weights["reference"] == 187_320 - 28 * 101  # the original has a head that Bernoulli outputs do not read
    assert weights["paper"] == pytest.approx(93.9e6, rel=0.01)
    wider = TRAJECTORIES.model | dict.fromkeys(("encoder", "prior", "decoder"), (250, 250))
    assert sum(p.numel() for p in VRNN(**wider, device="meta").parameters()) == 8_523_140


def test_wrong_results_disagree() -> None:
    exact = {"loss": torch.tensor(1.0, dtype=torch.float64), "gradient of w": torch.ones(3, dtype=torch.float64)}
    eager = {"loss": torch.tensor(1.0), "gradient of w": torch.ones(3) + 1e-5}
    assert disagreements(eager, eager, exact) == {}
    assert disagreements({"loss": eager["loss"]}, eager, exact) == {"gradient of w": "gradient of w is missing"}
    for wrong in (1 + 5e-5, float("nan"), float("inf")):
        found = disagreements({**eager, "gradient of w": torch.tensor([1, wrong, 1])}, eager, exact)
        assert list(found) == ["gradient of w"]
        assert found["gradient of w"].startswith("gradient of w is off by")
    assert disagreements({**eager, "gradient of w": torch.tensor([1, 1 + 5e-5, 1])}, eager, exact, times=8) == {}


@pytest.mark.parametrize(("unlucky", "agrees"), [((0, 1, 2, 3), True), ((0, 1, 2, 3, 4), False)])
def test_bad_luck_is_told_from_a_defect(unlucky: tuple[int, ...], agrees: bool) -> None:
    def prepare(shape: Shape, dtype: torch.dtype) -> Entry:
        return (prepare_wrong if shape.draw in unlucky else prepare_eager)(shape, dtype)

    lucky = Contender("lucky", prepare)
    runs, problems = Contest("training", SMALL, (FORWARD,), (lucky,), EAGER)._enter()
    assert (list(runs), list(problems)) == ((["lucky"], []) if agrees else ([], ["lucky"]))


def test_a_pass_without_gradients_is_checked_too() -> None:
    wrong = Contender("wrong", prepare_wrong_forward)
    problems = Contest("training", SMALL, (FORWARD,), (EAGER, wrong), EAGER)._enter()[1]
    assert list(problems) == ["wrong"]
    assert problems["wrong"].startswith("loss without gradients is off by")


def test_what_is_drawn_is_what_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right means are no proof of right samples."""
    generate = VRNN.generate

    def too_cold(self: VRNN, *sizes: int, **arguments: Any) -> object:
        return generate(self, *sizes, **{"temperature": 0.5, **arguments})

    contest = next(c for c in experiments.generation() if c.shape == REFERENCE)
    assert contest._enter()[1] == {}
    monkeypatch.setattr(VRNN, "generate", too_cold)
    problems = contest._enter()[1]
    assert list(problems) == ["vrnn_fast"]
    assert problems["vrnn_fast"].startswith("samples is off by")


@pytest.mark.parametrize("shape", [SMALL, MOTION], ids=lambda shape: shape.name)
def test_drawn_sequences_agree(shape: Shape) -> None:
    assert replace(next(experiments.generation()), shape=shape)._enter()[1] == {}


@pytest.mark.usefixtures("quiet")
def test_no_speed_without_agreement() -> None:
    alone = replace(experiments.GRU_ALONE, remark="something else")
    contenders = (EAGER, Contender("wrong", prepare_wrong), Contender("absent", prepare_eager, never), alone)
    contest = Contest("training", SMALL, (FORWARD, TRAINING), contenders, EAGER)
    for rows in contest.measure(contest.passes, seconds=0):
        eager, wrong, absent, gru = rows
        assert eager.milliseconds
        assert eager.gflops
        assert eager.speedup == 1
        assert eager.peak == 1e9
        assert wrong.problem is not None
        assert wrong.problem.startswith("loss is off by")
        assert absent.problem == "not here"
        for row in (wrong, absent):
            assert row.milliseconds is row.quartiles is row.gflops is row.speedup is row.share is None
        assert gru.milliseconds
        assert gru.speedup is None
        assert "wrong at reference, 3 x 2: loss is off by" in problems(rows)[0]
        assert "no result" in in_full([wrong], record.Provenance.now())
        assert render(rows).row_count == 4


def test_what_cannot_be_expressed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    folded = Shape("folded", 3, 2, lacks="VRNN folds no time")
    monkeypatch.setattr(experiments, "REAL_SHAPES", (folded,))
    (contest,) = experiments.real()
    (rows,) = contest.measure((TRAINING,), seconds=0)
    assert [(row.contender, row.problem, row.milliseconds) for row in rows] == [("vrnn_fast", folded.lacks, None)]


def test_what_jax_is_not_written_for_is_refused() -> None:
    if experiments.JAX.refuses(SMALL) is None:
        for change in ({"num_layers": 2}, {"cond_size": 1}):
            shape = replace(SMALL, model=SMALL.model | change)
            assert "one recurrent layer and no conditioning" in str(experiments.JAX.refuses(shape))


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    threads = torch.get_num_threads()

    def call(name: str) -> Timed:
        return Timed(lambda: calls.append(f"{name}{torch.get_num_threads()}"), (1 if name == "b" else threads,))

    times = take_turns({name: call(name) for name in "ab"}, seconds=0, block=0)
    assert calls == [f"a{threads}"] * 2 + ["b1"] * 2 + 5 * [f"a{threads}", "b1"]
    assert torch.get_num_threads() == threads
    assert all(t.lower <= t.median <= t.upper for t in times.values())


def test_the_faster_number_of_threads_is_kept() -> None:
    def slow_on_two() -> None:
        if torch.get_num_threads() == 2:
            torch.ones(1 << 21).exp()

    assert take_turns({"a": Timed(slow_on_two, (2, 1))}, seconds=0, block=0)["a"].threads == 1


def test_a_run_is_void_if_the_peak_fell_or_was_beaten() -> None:
    assert peak.void({1: 100, 2: 200}, {1: 93, 2: 230}, [0.5, 0.97]) is None
    assert "fell from 200 to 183" in str(peak.void({1: 100, 2: 200}, {1: 100, 2: 183}, []))
    assert peak.void({1: 100}, {1: 100}, [0.5, 0.98]) == "98% of the peak were measured"
    assert peak.void({}, {}, []) is None


@pytest.mark.parametrize("disturbed", [1, 2, 3])
def test_a_void_run_is_repeated_and_then_admitted(disturbed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([100.0, 50.0] * disturbed + [100.0, 100.0] * 3)
    timed: list[object] = []
    turns = contests.take_turns
    monkeypatch.setattr(peak, "measure", lambda cores: dict.fromkeys(cores, 1e4 * next(peaks)))
    monkeypatch.setattr(contests, "take_turns", lambda *a: timed.append(a) or turns(*a))
    ((row,),) = Contest("training", SMALL, (FORWARD,), (EAGER,), EAGER).measure((FORWARD,), seconds=0)
    assert len(timed) == min(disturbed + 1, peak.TRIES)
    if disturbed < peak.TRIES:
        assert row.milliseconds
        assert row.peak == 1e6
    else:
        assert row.milliseconds is row.gflops is row.speedup is None
        assert str(row.problem).startswith("void 3 times: the peak on")


def test_the_peak_is_measured_on_all_threads_at_once() -> None:
    pytest.importorskip("vrnn_fast._native", reason="the native module is optional and not built here")
    found = peak.measure({2, 1}, seconds=0.01)
    assert list(found) == [1, 2]
    assert all(p > 0 for p in found.values())


def test_a_batch_of_one_has_one_core() -> None:
    assert Contest("", replace(SMALL, batch=1), (), (), EAGER)._cores(2) == 1
    assert Contest("", SMALL, (), (), EAGER)._cores(2) == 2


MIB = 1 << 20


def prepare_known(shape: Shape, dtype: torch.dtype) -> Entry:
    """24 MiB by torch, then 40 by NumPy, still there while 8 of gradients come, as many as there were before."""
    gradients: list[torch.Tensor] = []

    def train() -> None:
        gradients.clear()
        torch.ones(6 * MIB).sum()
        work = np.ones(10 * MIB, np.float32)
        gradients.append(torch.ones(2 * MIB))
        del work

    return Entry({TRAINING: train}, None)


def prepare_nothing(shape: Shape, dtype: torch.dtype) -> Entry:
    return Entry({TRAINING: lambda: None}, None)


@pytest.mark.skipif(not memory.measurable(), reason="memory is read from Linux and returned by glibc")
def test_activations_of_known_size() -> None:
    with memory.Scales() as scales:
        known, nothing, ours, recompute, eager = (
            scales.weigh(c, replace(SMALL, steps=40, batch=64), 1) or 0
            for c in (
                Contender("", prepare_known),
                Contender("", prepare_nothing),
                experiments.OURS,
                experiments.RECOMPUTE,
                EAGER,
            )
        )
    assert known == pytest.approx(40 * MIB, abs=MIB)
    assert nothing < MIB / 2
    kept = 40 * 64 * 4 * (3 * 100 + 6 * 100)  # bytes: the inputs of three products and the gates, at the least
    assert eager > kept
    assert 0 < recompute < ours < eager


@pytest.mark.usefixtures("quiet")
def test_an_interrupted_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[str, ...]] = []
    measure = Contest.measure

    def counted(self: Contest, passes: tuple[str, ...], seconds: float) -> object:
        measured.append(passes)
        return measure(self, passes, seconds)

    monkeypatch.setattr(Contest, "measure", counted)
    contest = Contest("training", SMALL, (FORWARD, TRAINING), (EAGER, Contender("absent", prepare_eager, never)), EAGER)
    monkeypatch.setattr(experiments, "full", lambda: [contest])
    arguments = ["--all", "--seconds", "0", "--results", str(tmp_path)]
    bench.main(arguments)
    (path,) = tmp_path.glob("*.json")
    whole = Record.load(path)
    assert len(whole.rows) == 4
    bench.main(arguments)
    assert measured == [(FORWARD, TRAINING)]

    replace(whole, rows=whole.rows[:3]).save(tmp_path)  # stopped within the second pass
    bench.main(arguments)
    assert measured[1:] == [(TRAINING,)]
    assert {row.key for row in Record.load(path).rows} == {row.key for row in whole.rows}

    void = replace(whole.rows[0], milliseconds=None, problem="void 3 times: ...")
    replace(whole, rows=[void, *whole.rows[1:]]).save(tmp_path)
    bench.main(arguments)
    assert measured[2:] == [(FORWARD,)]

    bench.main([*arguments, "--again"])
    assert measured[3:] == [(FORWARD, TRAINING)]
    of_others(whole, "source").save(tmp_path)
    bench.main(arguments)
    assert measured[4:] == [(FORWARD, TRAINING)]


def of_others(whole: Record, what: str) -> Record:
    """The same rows, measured with other sources or other versions."""
    others = {"commit": "0123456789abcdef", "uncommitted_changes": False, "date": "2020-02-02T00:00:00+00:00"}
    state = replace(whole.state, **others)
    state = replace(state, **{"source": {"source": "another"}, "versions": {"versions": {"torch": "2.10.0"}}}[what])
    return replace(whole, state=state, rows=[replace(row, state=state) for row in whole.rows])


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("changed", ["source", "versions"])
def test_measuring_some_leaves_the_others_and_their_dates(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (Contest(name, SMALL, (FORWARD,), (EAGER,), EAGER) for name in ("training", "generation"))
    gone = replace(other, shape=replace(SMALL, name="gone"))
    arguments = ["--seconds", "0", "--results", str(tmp_path)]
    monkeypatch.setattr(experiments, "full", lambda: [one, other, gone])
    bench.main(["--all", *arguments])
    (path,) = tmp_path.glob("*.json")
    before = of_others(Record.load(path), changed)
    before.save(tmp_path)
    assert Record.load(path) == before

    for partial_run in (["--only", "training"], []):
        monkeypatch.setattr(experiments, "short", lambda: [one])
        before.save(tmp_path)
        bench.main([*partial_run, *arguments])
        after = Record.load(path)
        assert [row.key for row in after.rows] == [row.key for row in before.rows]
        assert after.rows[0].state == after.state == replace(record.Provenance.now(), date=after.state.date)
        assert after.rows[1:] == before.rows[1:]
        new, *old = in_full(after.rows, after.state).splitlines()[2:]
        ending = "| 2020-02-02, commit 0123456789" + (", torch 2.10.0 |" if changed == "versions" else " |")
        assert "commit" not in new
        assert all(line.endswith(ending) for line in old)
        assert str(after.state) in readme.heading(after)

    monkeypatch.setattr(experiments, "full", lambda: [one, other])  # whole experiments forget what is not in them now
    bench.main(["--only", "training", *arguments])
    assert len(Record.load(path).rows) == 3
    bench.main(["--only", "generation", "--shape", other.shape.name, *arguments])
    assert len(Record.load(path).rows) == 3
    bench.main(["--only", "generation", *arguments])
    assert len(Record.load(path).rows) == 2
    bench.main(["--all", *arguments])
    whole = Record.load(path)
    bench.main(["--all", *arguments])  # where nothing is left to measure, nothing becomes older
    assert Record.load(path) == whole
    assert [row.experiment for row in whole.rows] == ["training", "generation"]
    assert in_full(whole.rows, whole.state).splitlines()[0].endswith("| speed-up |")


def test_a_measured_row_stays_in_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Contender("absent", prepare_eager, never)
    contest = Contest("training", SMALL, (TRAINING,), (EAGER, absent), EAGER)
    monkeypatch.setattr(experiments, "full", lambda: [contest])
    times = iter((2.0, 1.0))

    def measure(self: Contest, passes: tuple[str, ...], seconds: float) -> object:
        yield [
            replace(self.blank(TRAINING, EAGER), milliseconds=next(times)),
            replace(self.blank(TRAINING, absent), problem="not here"),
        ]

    monkeypatch.setattr(Contest, "measure", measure)
    measured = []
    for _ in range(2):
        bench.main(["--all", "--again", "--results", str(tmp_path)])
        (path,) = tmp_path.glob("*.json")
        measured += Record.load(path).rows
    found = history.read(path.with_suffix(".jsonl"))
    assert found == measured
    assert [(row.milliseconds, row.problem) for row in found] == [
        (2.0, None),
        (None, "not here"),
        (1.0, None),
        (None, "not here"),
    ]
    assert len(Record.load(path).rows) == 2


def test_every_row_of_the_records_is_in_the_histories() -> None:
    paths = sorted(record.RESULTS.glob("*.json"))
    assert paths
    for path in paths:
        assert set(Record.load(path).rows) <= set(history.read(path.with_suffix(".jsonl"))), path.name


def test_a_course_is_printed_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun = Record.begin()
    row = Measurement("reference", 28, 8, TRAINING, "vrnn_fast", 2, None, 10.0, (9.0, 12.0), 30.0, 4.0)
    courses = [  # neither the shapes nor the states come in order
        ("2026-03-03", "c", replace(row, milliseconds=6.0)),
        ("2026-02-02", "b", replace(row, milliseconds=None, quartiles=None, gflops=None, speedup=None, problem="off")),
        ("2026-01-01", "a", row),
        ("2026-01-01", "a", replace(row, contender="eager loop", milliseconds=77.0)),
        ("2026-01-01", "a", replace(row, shape="motion", milliseconds=88.0)),
    ]
    versions = {"a": {"torch": "2.10.0"}, "b": {"torch": "2.10.0"}, "c": {"torch": "2.13.0"}}
    for date, commit, measured in courses:
        state = record.Provenance(versions[commit], commit * 40, False, f"{date}T00:00:00+00:00", commit)
        path = replace(begun, state=state).append([measured], tmp_path)

    picture = tmp_path / "pictures" / "course.svg"
    arguments = ["--results", str(tmp_path), "--shape", "reference"]
    history.main([*arguments, "--picture", str(picture)])
    printed = capsys.readouterr().out
    assert path.stem in printed
    lines = [line.split() for line in printed.splitlines() if "commit" in line]
    assert [line[2] for line in lines] == ["aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc,"]
    assert lines[0][3:6] == ["10.00", "ms", "9.00"]
    assert lines[1][3:] == ["no", "result"]
    assert lines[2][3:7] == ["torch", "2.13.0", "6.00", "ms"]
    assert lines[2][-2:] == ["-40", "%"]
    assert "77.00" not in printed
    assert "88.00" not in printed
    first = picture.read_bytes()
    history.main([*arguments, "--picture", str(picture)])
    assert picture.read_bytes() == first

    for wrong, message in ((["--shape", "nowhere"], "has such a row"), (["--picture", "course.gif"], "must end in")):
        with pytest.raises(SystemExit):
            history.main([*arguments[:2], *wrong])
        assert message in capsys.readouterr().err


def test_tables_tell_whose_times_are_older() -> None:
    begun = Record.begin()
    eager = Measurement("reference", 28, 8, TRAINING, "eager loop", 2, milliseconds=2.0, sizes=(28, 100, 16))
    begun.put([eager, replace(eager, contender="vrnn_fast", milliseconds=1.0), *scaling_rows()])
    assert "measured" not in summary(begun.rows, begun.state)
    assert "measured" not in table.of_curve(scaling.curves(begun.rows)[0], begun.state)
    old = of_others(begun, "source")
    rows = [old.rows[0], *begun.rows[1:4], *old.rows[4:]]
    assert summary(rows, begun.state).endswith("| 2020-02-02, commit 0123456789: eager loop |")
    assert summary(old.rows, begun.state).endswith("| 2020-02-02, commit 0123456789 |")
    lines = table.of_curve(scaling.curves(rows)[0], begun.state).splitlines()
    assert lines[0].endswith("| faster | measured |")
    assert lines[3].endswith("| 2020-02-02, commit 0123456789: 2 threads |")
    changed = replace(begun.state, uncommitted_changes=True, date="2020-02-02T00:00:00", commit="0123456789abcdef")
    assert str(changed) == "2020-02-02, commit 0123456789 and changes"


def test_rows_replace_those_of_the_same_key() -> None:
    begun = Record.begin()
    old = Measurement("reference", 28, 8, TRAINING, "eager loop", 2, milliseconds=1.0)
    begun.put([old, replace(old, contender="vrnn_fast")])
    begun.put([replace(old, threads=1, milliseconds=2.0)])
    assert [(row.contender, row.milliseconds) for row in begun.rows] == [("eager loop", 2.0), ("vrnn_fast", 1.0)]


def test_exponents_are_fitted() -> None:
    sizes = [1, 3, 10, 50]
    assert scaling.exponent(sizes, [0.2 * s**1.5 for s in sizes]) == pytest.approx(1.5)
    assert math.isnan(scaling.exponent([1], [1]))


def scaling_rows() -> list[Measurement]:
    row = Measurement("T", 0, 16, TRAINING, "", 1, experiment="scaling", sizes=(28, 100, 16))
    one = [replace(row, steps=t, milliseconds=2.0 * t, contender="1 thread") for t in (8, 4, 16)]
    two = [
        replace(r, threads=2, milliseconds=(r.milliseconds or 0) ** 2 / 20, contender="2 threads")
        for r in reversed(one)
    ]
    return [*one, *two]


def test_curves_say_which_number_of_threads_won() -> None:
    (curve,) = scaling.curves(scaling_rows())
    assert (curve.varied, curve.fixed, curve.sizes) == ("T", "B = 16, h = 100", [4, 8, 16])
    assert [curve.fastest(size) for size in curve.sizes] == [2, 2, 1]  # 2 T against T² / 5
    assert curve.exponent(1) == pytest.approx(1)
    assert curve.exponent(2) == pytest.approx(2)


def test_sums_over_gpus_by_hand() -> None:
    """Seven eighths of the bytes go round twice; 63 of 64 parts of an eighth then along a tree of six floors."""
    assert scaling.all_reduce_seconds(450_000_000, 8) == pytest.approx(2 * 7 / 8 * 1e-3 + 14 * 2e-6)
    inside, between = scaling.all_reduce_seconds(400_000_000, 8), 2 * 63 / 64 * 1e-3 + 12 * 5e-6
    assert scaling.all_reduce_seconds(400_000_000, 512) == pytest.approx(inside + between)
    for gpus in (8, 512):
        assert scaling.efficiency(9 * scaling.all_reduce_seconds(10**6, gpus), 10**6, gpus) == pytest.approx(0.9)


def test_gains_of_cores_by_hand() -> None:
    """Each of 16 cores takes one of 16 rows and adds up gradients; of 64 cores, 48 have nothing to do."""
    row = Measurement("B", 28, 1, TRAINING, "1 thread", 1, experiment="scaling", sizes=(28, 100, 16), milliseconds=2.0)
    (curve,) = scaling.curves([replace(row, batch=b, milliseconds=ms) for b, ms in ((1, 2.0), (8, 5.0), (16, 9.0))])
    size = round(scaling.ADDED * 1e-3)  # a millisecond's
    assert [scaling.on_cores(curve, 16, n, size) for n in (1, 2, 16, 64)] == pytest.approx([9.0, 6.0, 3.0, 3.0])


def test_the_page_of_scale_has_what_was_computed_and_measured() -> None:
    page = (record.ROOT / "docs" / "pages" / "scale.md").read_text()
    held = Record.load(record.RESULTS / "amd-epyc-zen-4-avx512-2-threads.json")
    measured = list(scaling.processes(held.rows))
    assert len(measured) > 1
    held = Record.load(record.RESULTS / "intel-r-xeon-r-processor-avx512-2-threads.json")
    computed = list(scaling.by_cores(held.rows))
    assert len(computed) > 1
    for cells in (*measured, *computed, *scaling.at_scale()):
        assert f"| {' | '.join(cells)} |" in page


STACKED = replace(MOTION, name="stacked", model=MOTION.model | {"num_layers": 2, "cond_size": 3})
PEERS: list[tuple[Contender, Shape, Contender]] = [
    *((c, SMALL, EAGER) for c in experiments.EVERYBODY if c.remark is None),
    *((c, MOTION, EAGER) for c in (experiments.JAX, experiments.OURS)),
    *((c, replace(TRAJECTORIES, steps=3, batch=2), EAGER) for c in experiments.EVERYBODY if c.remark is None),
    *((c, SMALL, EAGER) for c in next(experiments.scale()).contenders[1:]),
    (experiments.COMPILED_CELL, STACKED, EAGER),
    (experiments.COMPILED_LOOP, SMALL, EAGER),
    *(
        (c, contest.shape, contest.oracle)
        for contest in (*experiments.overhead(), *experiments.generation(), *experiments.elementary())
        for c in contest.contenders
    ),
]


@pytest.mark.parametrize(
    ("contender", "shape", "oracle"),
    PEERS,
    ids=lambda value: value.name if isinstance(value, (Contender, Shape)) else "",
)
def test_peers_compute_the_same(
    contender: Contender, shape: Shape, oracle: Contender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # the graph, but no C++ of it
    if (reason := contender.refuses(shape)) is not None:
        pytest.skip(reason)
    assert Contest("", shape, (), (contender,), oracle)._enter()[1] == {}


@pytest.mark.parametrize("contender", [experiments.GRU_ALONE, experiments.LSTM_ALONE, EAGER, experiments.OURS])
@pytest.mark.parametrize("shape", [SMALL, STACKED], ids=lambda shape: shape.name)
def test_passes_run(contender: Contender, shape: Shape) -> None:
    run = contender.prepare(shape, torch.float32)
    assert run.flops
    for name in (FORWARD, TRAINING, UPDATE):
        run.passes[name]()


def test_every_contest_has_its_passes() -> None:
    offered: dict[object, set[str]] = {}
    for contest in experiments.full():
        for contender in contest.contenders:
            if contest.refusal(contender) is None:
                small = replace(SMALL, batch=contest.shape.batch if contest.experiment == "functions" else 2)
                if contender.prepare not in offered:
                    offered[contender.prepare] = set(contender.prepare(small, torch.float32).passes)
                assert set(contest.passes) <= offered[contender.prepare]


def test_records_and_pictures_reach_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "results"
    for module in (record, readme):
        monkeypatch.setattr(module, "RESULTS", folder)
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    begun = Record.begin()
    eager = Measurement("reference", 28, 8, TRAINING, "eager loop", 2, None, 12.5, (12.0, 13.0), 30.0, 1.0)
    eager = replace(eager, sizes=(28, 100, 16), peak=200.0, activation_bytes=40 * MIB)
    ours = replace(eager, contender="vrnn_fast", milliseconds=2.5, gflops=150.0, speedup=5.0, activation_bytes=10 * MIB)
    alone = replace(eager, contender="nn.GRU alone", remark="computes something else", speedup=None)
    begun.put([eager, ours, alone, *scaling_rows()])
    path = begun.save(folder)
    assert Record.load(path) == begun
    earlier = replace(begun, processor="Other", rows=[], state=replace(begun.state, date="2020-01-01T00:00:00+00:00"))
    earlier.put([eager, replace(ours, speedup=3.0)])
    other = earlier.save(folder)

    page = tmp_path / "README.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    first = tmp_path / "docs" / "pages" / "index.md"
    first.parent.mkdir(parents=True)
    first.write_text(f"{readme.SUPPORT[0]}\nold\n{readme.SUPPORT[1]}\n")
    readme.main()
    assert readme.support() in first.read_text()
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert begun.processor in text
    assert "| 12.50 | 2.50 |" in text
    assert "| 150 | 75 | 5.00 | 0.25 |" in text
    assert f"5.0 to 5.0 times as fast as the eager loop: [all of it](results/{path.stem}.md)" in text
    assert f"- Other, `{begun.kernel_build}`: 3.0 to 3.0 times as fast" in text
    assert text.count("| 12.50 | 2.50 |") == 1, "the table is that of the latest"
    assert f"(results/{other.stem}.md)" in text
    full = path.with_suffix(".md").read_text()
    for name in ("training-share", "training-comparison", "scaling"):
        assert f"({path.stem}/{name}.svg)" in full
        assert (folder / path.stem / f"{name}.svg").stat().st_size > 0
    assert "- nn.GRU alone computes something else" in full
    assert "| exponent | 1.00 | 2.00 |" in full


@pytest.mark.parametrize(
    ("family", "flags", "generation"),
    [("25", "avx2", "Zen 3"), ("25", "avx2 avx512f", "Zen 4"), ("26", "avx512f", "Zen 5")],
)
def test_a_virtual_machine_is_named_with_its_generation(family: str, flags: str, generation: str) -> None:
    processor = {"model name": "AMD EPYC", "cpu family": family, "flags": flags}
    assert record._name(processor) == f"AMD EPYC, {generation}"
    assert record._name(processor | {"cpu family": "31"}) == "AMD EPYC"
    assert record._name(processor | {"model name": "AMD EPYC 7763"}) == "AMD EPYC 7763"


def test_records_of_earlier_forms_are_read(tmp_path: Path) -> None:
    fields = json.loads(Record.begin().save(tmp_path).read_text())
    del fields["source"]
    row = {"shape": "motion", "steps": 50, "batch": 128, "run": TRAINING, "contender": "vrnn_fast", "threads": 2}
    path = tmp_path / "old.json"
    path.write_text(json.dumps({**fields, "rows": [{**row, "milliseconds": 33.42, "quartiles": [32.9, 34.9]}]}))
    old = Record.load(path)
    assert (old.state.date, old.state.source) == (fields["date"], "")
    assert [row.state for row in old.rows] == [old.state]
    assert "| 33.42 |" in summary(old.rows, old.state)
    assert figures.draw(old, tmp_path) == []


def test_empty_columns_are_left_out() -> None:
    assert markdown(["shape", "a", "b"], [["s", "", "1"]]) == "| shape | b |\n| --- | --: |\n| s | 1 |"


# ---- the inner loop


LISTING = """
0000000000000010 <void f(int)>:
  10:	mov    %rsp,%rbp
  13:	vmovups (%rdi),%zmm1
  19:	prefetcht0 (%rsi)
  1c:	vfmadd231ps (%rdx){1to16},%zmm1,%zmm2
  22:	vfmadd231ps -0x40(%rsp),%zmm1,%zmm3
  2a:	add    $0x40,%rdi
  2e:	jne    13 <void f(int)+0x3>
  30:	vmovups %zmm2,(%rcx)
  36:	dec    %rax
  38:	jne    10 <void f(int)>
  3a:	ret
"""


def test_the_inner_loop_is_found_and_counted() -> None:
    loop = innermost(LISTING.splitlines())
    assert len(loop.instructions) == 6
    assert (loop.products, loop.loads, loop.spills, loop.cycles) == (2, 3, 1, 1.5)
    with pytest.raises(ValueError, match="no loop"):
        innermost(["  10:\tret"])


@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump (binutils)")
@pytest.mark.skipif(operators.load() is not None, reason=str(operators.load()))
@pytest.mark.parametrize("isa", TILES)
def test_every_build_keeps_its_sums_in_registers(isa: str) -> None:
    """A step of a tile loads its vectors of B and its elements of A, and nothing of the stack."""
    if platform.machine() != "x86_64":
        pytest.skip("other processors get the baseline build alone, in their own instructions")
    rows, vectors = TILES[isa]
    loop = innermost(disassembled(LIBRARY, isa, rows, vectors))
    assert (loop.products, loop.loads, loop.spills) == (rows * vectors, rows + vectors, 0)


def test_errors_of_functions_reach_their_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VRNN_FAST_ISA", "")
    page = tmp_path / "functions.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    functions.main(["--every", "1000003"], page)
    text = page.read_text()
    assert "old" not in text
    assert "| `tanh` | 3 | " in text
    assert text.count("\n| `") == len(functions.FUNCTIONS)


def test_the_page_of_functions_holds_what_is_allowed() -> None:
    lines = [line.strip("| ").split(" | ") for line in functions.PAGE.read_text().splitlines() if line[:3] == "| `"]
    assert {line[0].strip("`"): float(line[1]) for line in lines} == {
        name: function.bound for name, function in functions.FUNCTIONS.items()
    }
    for _, allowed, *measured in lines:
        assert 0 < max(map(float, measured[::2])) <= float(allowed)
