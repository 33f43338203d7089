"""The Triton executor without a GPU: its plan, its arithmetic, its source, what compilers make of it, and the parity
tests of tests/executors/test_scan_kernels.py in triton's interpreter."""

from __future__ import annotations

import ast
import importlib
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import absent_gpu
from tests.support.family import DEEP, FAMILY
from vrnn_fast import VRNN, backends
from vrnn_fast.cell.spec import CellSpec, Std
from vrnn_fast.cell.stages import Dense, Keep, Recur
from vrnn_fast.executors import select, triton
from vrnn_fast.executors.base import Want
from vrnn_fast.executors.triton import operators, phases, scan, tuning
from vrnn_fast.executors.triton.plan import BESIDE, LEAST, Plan, padded, pieces, plan
from vrnn_fast.executors.triton.tuning import CHIPS, Config

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
pytest.importorskip("triton", reason="triton is not installed")


def spec_of(member: str, kind: str = "gru") -> CellSpec:
    sizes = {"input_size": 5, "hidden_size": 19, "latent_size": 3, "cell": kind}
    return CellSpec(**{**sizes, **DEEP, **FAMILY[member]})


def test_all_of_it_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", str(HERE / "test_scan_kernels.py")]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, timeout=1800)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


# ---- being there or not


def test_importing_the_package_imports_no_triton() -> None:
    """torch itself may; but what of ours needs it stays unread, and all goes without it."""
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, vrnn_fast\n"
        "vrnn_fast.backends(), vrnn_fast.VRNN(3, 4, 2)(torch.rand(2, 2, 3)).loss.backward()\n"
        "ours = {'vrnn_fast.executors.triton.' + name for name in ('kernels', 'functions', 'versions')}\n"
        "assert not ours & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_reasons_to_be_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert triton.unavailable() == "there is no GPU (TRITON_INTERPRET=1 runs it in triton's interpreter, slowly)"
    monkeypatch.setattr(triton, "version", lambda _: "3.5.1")
    assert triton.unavailable() == "it needs triton 3.6 or later, and 3.5.1 is installed"

    monkeypatch.setattr(triton, "find_spec", lambda _: None)
    assert triton.unavailable() == 'triton is not installed (pip install "vrnn-fast[triton]")'
    monkeypatch.setattr(triton, "find_spec", lambda name: ModuleSpec(name, None))
    assert triton.unavailable() == 'triton is not installed (pip install "vrnn-fast[triton]")'


@pytest.mark.parametrize("name", ["pytorch-triton-rocm", "triton-rocm", None])
def test_triton_is_found_by_any_name(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its wheels for AMD GPUs have other names; one of an unknown name is asked itself."""

    def version(distribution: str) -> str:
        if distribution != name:
            raise PackageNotFoundError(distribution)
        return "3.5.0"

    monkeypatch.setattr(triton, "version", version)
    if name is None:
        monkeypatch.setattr(importlib.import_module("triton"), "__version__", "3.5.0")
    assert triton.unavailable() == "it needs triton 3.6 or later, and 3.5.0 is installed"


def test_the_user_is_told() -> None:
    backend = backends()["triton"]
    assert (
        backend.verified
        == "in triton's interpreter and, as compiled, in one of PTX; not yet on a GPU, where it tries itself first"
    )
    if backend.available:
        pytest.skip("there is a GPU")
    model = VRNN(3, 4, 2, backend="triton")
    with pytest.raises(RuntimeError, match="backend 'triton' cannot run: there is no GPU"):
        model(torch.rand(2, 2, 3))


def test_auto_never_takes_it_for_tensors_of_a_cpu() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert select("auto", CellSpec(3, 4, 2), torch.empty((1, 1, 3), dtype=dtype))[0] is not triton


def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, x = CellSpec(3, 4, 2), torch.rand(2, 2, 3)
    monkeypatch.setattr(triton, "_INTERPRETED", False)
    assert triton.refuses(spec, x) == "it runs on GPU tensors, and x is on cpu"
    monkeypatch.setattr(triton, "_INTERPRETED", True)
    assert triton.refuses(spec, x) is None
    assert triton.refuses(spec, x.double()) == "it takes float32, bfloat16 or float16, and x is torch.float64"
    assert triton.refuses(CellSpec(3, 4, 2, measure="log_weight"), x) is None
    assert triton.refuses(CellSpec(3, 4, 2, measure="particle_filter"), x) is None
    wide = CellSpec(3, 128, 16, encoder=(128, 128), phi_z=(128,))
    assert "would spill registers" in str(triton.refuses(wide, x))
    assert triton.refuses(wide, x.bfloat16()) is None
    torch.set_float32_matmul_precision("high")
    try:
        assert triton.refuses(wide, x) is None
    finally:
        torch.set_float32_matmul_precision("highest")
    reason = triton.refuses(CellSpec(3, 1024, 2), x)
    assert reason is not None
    assert "the scan of this cell has " in reason
    assert f"at most {tuning.MOST_PRODUCTS} and {tuning.MOST_IN_TF32} are compiled" in reason


@pytest.mark.parametrize("chip", CHIPS)
def test_a_cell_that_would_spill_is_refused(chip: str) -> None:
    wide = CellSpec(88, 256, 64, phi_z=(256,), encoder=(256, 256))
    reason, most = str(tuning.misfit(wide, 2, CHIPS[chip])), 150 if chip == "gfx942" else 255
    assert f"would want about 280 registers a thread; at most 100 and {most} are compiled" in reason
    reason = str(tuning.misfit(CellSpec(3, 200, 16), 4, CHIPS[chip], "tf32"))
    assert "registers a thread; at most 100 and 180 are compiled" in reason


def test_it_tells_where_the_weights_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_INTERPRETED", True)
    stay = "all weights stay on the chip"
    assert f"{stay} in 16 bits, {stay} in TF32, {stay} in float32" in triton.launches(CellSpec(5, 64, 16))
    large = triton.launches(CellSpec(5, 200, 16, phi_z=(200,)))
    assert " KB of weights are read from the L2 cache in every step in 16 bits, no configuration fits in TF32" in large
    assert "no configuration fits in 16 bits" in triton.launches(CellSpec(3, 1024, 2))


# ---- structure


@pytest.mark.parametrize("width", [0, 1, 3, 15, 16, 17, 33, 100, 129, 4000])
@pytest.mark.parametrize("widest", [16, 64, 128])
def test_pieces_fit_their_tiles(width: int, widest: int) -> None:
    found = pieces(width, widest)
    assert sum(found) == width
    for piece in found:
        assert piece <= padded(piece) <= widest
        assert padded(piece) >= LEAST
        assert padded(piece) & (padded(piece) - 1) == 0


def cut_of(member: str, kind: str, widest: int) -> Plan:
    return plan(spec_of(member, kind), widest)


@pytest.mark.parametrize("widest", [16, 128])
@pytest.mark.parametrize("kind", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("member", FAMILY)
def test_tiles_make_up_every_slice(member: str, kind: str, widest: int) -> None:
    cut = cut_of(member, kind, widest)
    widths = {b.name: b.width for b in cut.program.buffers}
    for buffer, tiles in cut.tiles.items():
        assert [t.start for t in tiles] == [0, *(t.start + t.width for t in tiles)][: len(tiles)]
        assert sum(t.width for t in tiles) == widths[buffer]
    for stage in cut.program.scan:
        if isinstance(stage, Dense):
            for part in (stage.source, stage.target):
                assert sum(t.width for t in cut.tiles_of(part)) == part.width
    ends = [0, *(m.end for m in cut.matrices)]
    assert [m.offset for m in cut.matrices] == ends[:-1]
    assert len(cut.states) == cut_states(cut)


@pytest.mark.parametrize("kind", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("member", FAMILY)
def test_a_filter_goes_back_without_what_weighs_its_particles(member: str, kind: str) -> None:
    spec = replace(spec_of(member, kind), measure="particle_filter")
    there, back = plan(spec, 16), plan(spec, 16, reverse=True)
    assert there.resamples
    assert back.resamples
    assert there.program.buffers == back.program.buffers
    assert {m.stage for m in there.matrices} >= {m.stage for m in back.matrices}
    assert there.likelihood in there.program.scan
    assert back.likelihood in back.program.after
    assert there.tiles_of(there.likelihood.source)


def cut_states(cut: Plan) -> int:
    return sum(1 + (s.c is not None) for s in cut.program.scan if isinstance(s, Recur))


@pytest.mark.parametrize("measure", ["kl", "particle_filter"])
@pytest.mark.parametrize("kind", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("member", FAMILY)
def test_source_is_pure_and_defines_every_name(member: str, kind: str, measure: Any) -> None:
    spec = replace(spec_of(member, kind), measure=measure)
    there, back, none, everything = plan(spec, 16), plan(spec, 16, reverse=True), frozenset[int](), frozenset(range(99))

    def sources() -> list[str]:
        stored, found = there.stored(Keep.STORED, Want(prior=True, raw=True)), []
        for loaded, ahead in ((none, False), (everything, True)):
            forward = scan.forward(there, loaded, stored, ahead=ahead, late=ahead)
            backward = scan.backward(back, loaded, on_z=True, on_eps=True, ahead=ahead, late=ahead)
            found.append(phases.source("both", (forward, backward)))
        return found

    assert sources() == sources()
    for source in sources():
        functions = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)]
        assert [f.name for f in functions] == [scan.FORWARD, scan.BACKWARD, "both"]
        for function in functions:
            names = [n for n in ast.walk(function) if isinstance(n, ast.Name)]
            known = {a.arg for a in function.args.args} | {n.id for n in names if isinstance(n.ctx, ast.Store)}
            assert {n.id for n in names} <= known | {"triton", "tl", "on", "range", *(f.name for f in functions)}


def test_a_spec_survives_as_text() -> None:
    std = Std("log_std", clamp=(-3.0, math.inf))
    for spec in (
        spec_of("other columns"),
        spec_of("no z"),
        spec_of("affine ends"),
        spec_of("heads of their own"),
        CellSpec(3, 4, 2, std=std, activations=(("phi_x", "elu"),)),
    ):
        assert operators.decode(operators.encode(spec)) == spec


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_only_thousands_of_features_leave_to_torch_what_is_around_the_scan(chip: tuning.Chip) -> None:
    for features, hidden, deep in ((28, 64, 0), (28, 100, 0), (28, 100, 4), (513, 128, 0), (88, 256, 0), (9000, 64, 0)):
        layers = dict.fromkeys(("phi_x", "phi_z", "encoder", "prior", "decoder"), (hidden,) * deep) if deep else {}
        spec = VRNN(features, hidden, 16, device="meta", backend="reference", **layers).spec
        for itemsize, precision in ((2, "ieee"), (4, "tf32"), (4, "ieee")):
            for config in tuning.candidates(spec, itemsize, chip, precision)[:1]:
                ways = (False, True)
                both = [tuning.around(spec, config, itemsize, precision, chip, reverse=reverse) for reverse in ways]
                wide = features > (150 if (itemsize, precision) == (4, "ieee") else 1000)
                assert (None in both) == wide, (features, hidden, deep, itemsize, precision)


def test_what_has_no_room_in_one_pass_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_INTERPRETED", True)
    specs = [VRNN(28, hidden, 16, device="meta", backend="reference").spec for hidden in (64, 100)]
    narrow, wide = map(triton.launches, specs)
    parts = "forward (before, scan, after), weights, backward (after backward, scan, before backward), weight gradients"
    five = f"a training step is, whatever T is, 5 launches: weights, {parts}"
    assert narrow.startswith(f"{five};")
    more = parts.replace("after backward", "after backward in 2 parts")
    most = more.replace("before, scan, after)", "before in 2 parts, scan, after in 2 parts)")
    most = most.replace("backward in 2 parts", "backward in 4 parts")
    rest = f"(in TF32 5 launches: weights, {most}) (in float32 5 launches: weights, {more})"
    assert wide.startswith(f"{five} {rest};")
    features = triton.launches(VRNN(9000, 64, 16, device="meta", backend="reference").spec)
    assert features.startswith("the scan is 1 launch forward and 1 backward, all else dense torch operations")


# ---- tuning


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_candidates_fit_the_chip(chip: tuning.Chip) -> None:
    for hidden in (3, 33, 64, 100, 128, 256, 512):
        spec = CellSpec(28, hidden, 16, encoder=(hidden,), phi_z=(hidden,))
        found = tuning.candidates(spec, 2, chip)
        for config in found:
            cut = config.plan(spec)
            loaded = tuning.resident(cut, config, 2)
            assert tuning.shared_bytes(cut, config.rows, 2, loaded) <= chip.shared
            most, products = tuning.most_registers(2, chip, config.widest), tuning.MOST_PRODUCTS
            if config.widest == tuning.NARROW:
                products = tuning.MOST_NARROW_PRODUCTS
            assert cut.products <= products
            assert tuning.registers(cut, replace(config, ahead=False), chip) <= most
            assert tuning.registers(cut, config, chip) <= (262 if config.ahead and not chip.amd else most)
        assert bool(found) == (hidden < 256)
        assert (tuning.misfit(spec, 2, chip) is None) == bool(found)


def test_where_threads_multiply_tiles_are_narrow_and_where_they_would_spill_low() -> None:
    chip = CHIPS["sm_90"]
    for hidden, rows in ((40, 16), (64, 16), (100, 8)):
        spec = CellSpec(28, hidden, 16, phi_z=(hidden,), encoder=(hidden, hidden))
        found = tuning.candidates(spec, 4, chip)
        assert {config.widest for config in found} == {tuning.NARROW}
        assert found[0].rows == rows
        for config in found:
            cut = plan(spec, tuning.NARROW)
            assert tuning.multiply_adds(cut, config, chip) <= tuning.MOST_MULTIPLY_ADDS
            assert tuning.registers(cut, config, chip) + tuning.operand_registers(config, chip) <= tuning.MOST_REGISTERS
        for itemsize, precision in ((4, "tf32"), (2, "ieee")):
            found = tuning.candidates(spec, itemsize, chip, precision)
            assert all(config.widest > tuning.NARROW and config.rows >= 16 for config in found)
    spec = CellSpec(28, 80, 16, phi_z=(80,), encoder=(80, 80))
    for itemsize, precision, narrow in ((4, "tf32", True), (2, "ieee", False)):
        found = tuning.candidates(spec, itemsize, chip, precision)
        assert all((config.widest == tuning.NARROW) == narrow and config.beside == BESIDE for config in found)


def test_the_default_model_runs_in_full_float32_but_on_amd() -> None:
    """Whose compiler spills 144 registers of the scan of 8 rows, and 137 in reverse."""
    spec = VRNN(28, 100, 16, device="meta", backend="reference").spec
    for chip in CHIPS.values():
        assert tuning.misfit(spec, 4, chip, "tf32") is None
        assert bool(tuning.misfit(spec, 4, chip)) == chip.amd


def test_of_full_float32_amds_threads_hold_tiles_of_16_rows() -> None:
    spec = VRNN(88, 64, 32, device="meta", backend="reference").spec
    assert {config.rows for config in tuning.candidates(spec, 4, CHIPS["gfx942"])} == {16}


def test_a_tile_holds_all_particles_of_a_sequence() -> None:
    spec, chip = CellSpec(28, 16, 16, measure="particle_filter"), CHIPS["sm_90"]
    for particles, sizes in ((1, {16, 32}), (16, {16, 32}), (17, {32, 64}), (100, {128})):
        found = tuning.candidates(spec, 2, chip, particles=particles)
        assert {c.rows for c in found} == sizes
        assert tuning.misfit(spec, 2, chip, particles=particles) is None
    assert tuning.candidates(spec, 2, chip, particles=129) == ()
    reason = "a tile holds all particles of a sequence, at most 128, and there are 129"
    assert tuning.misfit(spec, 2, chip, particles=129) == reason
    wide = replace(spec, hidden_size=128)
    assert tuning.misfit(wide, 2, chip) is None
    assert "a tile that holds 128 particles of this cell would spill" in str(
        tuning.misfit(wide, 2, chip, particles=128)
    )


def test_the_fastest_configuration_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "cache_directory", lambda: tmp_path)
    spec, device, measured = CellSpec(28, 40, 16), torch.device("cpu"), list[Config]()

    def seconds(config: Config) -> float:
        measured.append(config)
        return float(len(measured) != 3)

    said = list[str]()
    found = tuning.candidates(spec, 4, CHIPS["sm_90"])
    tuning._chosen.cache_clear()
    try:
        assert tuning.choose(spec, torch.float32, device) == found[0]
        assert tuning.tune(spec, torch.float32, device, seconds, say=said.append) == found[2]
        assert measured == list(found)
        assert said[0].startswith(f"way 1 of {len(found)} to write the kernels, 0 of at most 300 s: Config(rows=16")
        assert tuning.choose(spec, torch.float32, device) == found[2]
        assert tuning.choose(spec, torch.bfloat16, device) == tuning.candidates(spec, 2, CHIPS["sm_90"])[0]
        next(tmp_path.glob("tuned_*.json")).write_text(json.dumps({"of": "another version"}))
        tuning._chosen.cache_clear()
        assert tuning.choose(spec, torch.float32, device) == found[0]
    finally:
        tuning._chosen.cache_clear()


def test_a_search_ends_and_survives_what_there_is_no_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.errors import OutOfResources

    monkeypatch.setattr(tuning, "cache_directory", lambda: tmp_path)
    spec, clock, measured = CellSpec(28, 40, 16), [0.0], list[Config]()
    monkeypatch.setattr(tuning, "perf_counter", lambda: clock[0])
    found = tuning.candidates(spec, 2, CHIPS["sm_90"])

    def seconds(config: Config) -> float:
        measured.append(config)
        clock[0] += 60.0
        if len(measured) == 1:
            raise OutOfResources(300000, 232448, "shared memory")
        return 1.0 / len(measured)

    def tune() -> Config:
        place = spec, torch.bfloat16, torch.device("cpu")
        return tuning.tune(*place, seconds, at_most=150.0, say=lambda _: None)

    try:
        assert tune() == found[2]
        assert measured == list(found[:3])
        measured.clear()
        monkeypatch.setattr(tuning, "candidates", lambda *_: found[:1])
        with pytest.raises(RuntimeError, match="no room for any of 1 ways"):
            tune()
    finally:
        tuning._chosen.cache_clear()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_warm_start_compiles_nothing(tmp_path: Path) -> None:
    """Nor does the first call of another size, with lengths, states and slices of its own, in either process."""
    environment = os.environ | {"VRNN_FAST_CACHE": str(tmp_path / "ours"), "TRITON_CACHE_DIR": str(tmp_path / "triton")}
    found = []
    for way in ("tune", "run"):
        command = [sys.executable, "-m", "tests.support.absent_gpu", way]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, timeout=600)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    cold, warm = found
    bound = ["weights", "forward", "weights", "backward", "weight_gradients"]
    names = [*bound, *bound, "weights", "generate"]
    assert cold["wanted"] == [[name, False] for name in names]
    assert warm["wanted"] == [[name, True] for name in names]
    untuned = tuning.candidates(absent_gpu.SPEC, 4, CHIPS["sm_90"])[0]
    assert cold["config"] == warm["config"] != asdict(untuned)


# ---- compilers


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_all_that_kernels_do_compiles(kind: str) -> None:
    """Ragged batches, resets, gradients of z and eps, cells that run on their own, particles."""
    from bench import resources
    from vrnn_fast.executors.triton import kernels

    std = Std("log_variance", offset=0.5, min_std=0.1, clamp=(-2, 3))
    spec = CellSpec(5, 17, 3, cell=kind, cond_size=2, residual=True, encoder=(8,), activation="elu", std=std)
    config, dtype = Config(16, 4, 64, True, 0), torch.float16
    stored = plan(spec, 64).stored(Keep.ALWAYS, Want())
    for phase in (
        kernels.forward(spec, config, 2, stored),
        kernels.forward(spec, config, 2, ("x",), mean=False),
        kernels.backward(spec, config, 2, on_z=True, on_eps=True),
    ):
        kernel = kernels.kernel("alone", (phase,))
        assert resources.compiled(kernel, "sm_90", config, dtype, "ieee", ragged=True).registers > 0
    filtered = replace(spec, measure="particle_filter")
    for phase in (
        kernels.forward(filtered, config, 2, plan(filtered, 64).stored(Keep.ALWAYS, Want(prior=True, raw=True))),
        kernels.backward(filtered, config, 2, on_z=True, on_eps=True),
    ):
        kernel = kernels.kernel("alone", (phase,))
        assert resources.compiled(kernel, "sm_90", config, dtype, "ieee", particles=5, ragged=True).registers > 0
