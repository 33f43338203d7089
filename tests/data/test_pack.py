"""Data that stays in its files: a pack of any source is that source, takes no memory, and is held to its checksums."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.lib.format import open_memmap

from vrnn_fast import data
from vrnn_fast.data import DataError, Dataset, Source, pack
from vrnn_fast.data.loader import Pieces, loaded
from vrnn_fast.data.order import Piece
from vrnn_fast.data.reading import PARTS
from vrnn_fast.data.stored import BLOCK, Stored, in_pieces

Make = Callable[[Path], Source]


def _notes(folder: Path) -> Source:
    chance = np.random.default_rng(0)
    np.savez(folder / "notes.npz", **{f"piece{i}": chance.random((3 + i, 5)) < 0.3 for i in range(12)})
    return Source(str(folder / "notes.npz"))


def _walks(folder: Path) -> Source:
    np.save(folder / "walks.npy", np.random.default_rng(0).normal(3, 5, (10, 7, 4)))
    return Source(str(folder / "walks.npy"), "gaussian")


def _archives(folder: Path) -> Source:
    for name in ("one", "two"):
        np.savez(folder / f"{name}.npz", a=np.eye(4, 3), b=np.eye(5, 3))
    return Source(str(folder))


def _sound(folder: Path, suffix: str = ".flac") -> Source:
    for i in range(6):
        values = np.random.default_rng(i).normal(scale=0.1, size=700 + 90 * i)
        soundfile.write(folder / f"{i}{suffix}", values, 8000)
    return Source(str(folder), frame=20, max_steps=12)


def _midi(folder: Path) -> Source:
    mido = pytest.importorskip("mido", reason="MIDI takes the mido package")
    for i in range(4):
        file = mido.MidiFile(ticks_per_beat=480)
        file.tracks.append(track := mido.MidiTrack())
        for pitch in (60 + i, 64, 67):
            track.append(mido.Message("note_on", note=pitch, velocity=64, time=0))
        track.append(mido.Message("note_on", note=64, velocity=0, time=480))
        track.append(mido.Message("note_on", note=35, velocity=64, time=0, channel=9))
        track.append(mido.Message("note_off", note=60 + i, time=480))
        track.append(mido.Message("note_off", note=67, time=120))
        file.save(folder / f"{i}.mid")
    return Source(str(folder), grid=2)


def _tables(folder: Path) -> Source:
    for i in range(5):
        lines = [f"{t / 7},{(-1) ** t * i}" for t in range(3 + i)]
        (folder / f"{i}.csv").write_text("\n".join((["when,what"] if i % 2 else []) + lines))
    return Source(str(folder), "gaussian")


SOURCES: dict[str, Make] = {
    "npz": _notes, "npy": _walks, "folder of npz": _archives, "flac": _sound, "midi": _midi, "csv": _tables,
}  # fmt: skip


def assert_same(ours: Dataset, theirs: Dataset) -> None:
    assert (ours.likelihood, ours.mean, ours.scale, ours.rate) == (
        theirs.likelihood,
        theirs.mean,
        theirs.scale,
        theirs.rate,
    )
    for part in PARTS:
        assert [len(x) for x in ours[part]] == [len(x) for x in theirs[part]]
        assert all(torch.equal(a[:], b[:]) for a, b in zip(ours[part], theirs[part], strict=True))
    for mine, own in zip(ours.moments(), theirs.moments(), strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-5, atol=1e-5)
    assert ours.baseline() == pytest.approx(theirs.baseline(), rel=1e-5)


@pytest.fixture
def source(tmp_path: Path, request: pytest.FixtureRequest) -> Source:
    (tmp_path / "source").mkdir()
    return SOURCES[request.param](tmp_path / "source")


@pytest.mark.parametrize("source", SOURCES, indirect=True)
def test_a_pack_is_what_it_was_made_of(source: Source, tmp_path: Path) -> None:
    data.make_pack(source, tmp_path / "pack")
    ours, theirs = (data.load(s) for s in (Source(str(tmp_path / "pack")), source))
    assert all(isinstance(x, Stored) for part in PARTS for x in ours[part])
    assert_same(ours, theirs)
    values = np.load(tmp_path / "pack" / pack.VALUES)
    assert values.dtype == (np.uint8 if ours.likelihood == "bernoulli" else np.float32)
    assert {p.name for p in (tmp_path / "pack").iterdir()} == {pack.INDEX, pack.VALUES}


def test_the_chorales_are_packed_too(tmp_path: Path) -> None:
    data.make_pack(Source(), tmp_path / "pack")
    assert_same(data.load(Source(str(tmp_path / "pack"))), data.load(Source()))


def test_large_arrays_stay_where_they_are(tmp_path: Path) -> None:
    for i in range(5):
        np.save(tmp_path / f"{i}.npy", np.random.default_rng(i).normal(size=(9, 7, 4)))
    source = Source(str(tmp_path), "gaussian")
    ours, theirs = data.load(replace(source, max_gigabytes=0)), data.load(source)
    assert isinstance(ours.train[0], Stored)
    assert isinstance(theirs.train[0], torch.Tensor)
    assert_same(ours, theirs)
    whole = np.load(tmp_path / "3.npy")
    whole[8, 6, 3] += 1
    np.save(tmp_path / "3.npy", whole)
    assert data.load(replace(source, max_gigabytes=0)).fingerprint() != ours.fingerprint()
    whole[8, 6, 3] = np.nan
    np.save(tmp_path / "3.npy", whole)
    with pytest.raises(DataError, match=r"'3\[8\]' must be finite in float32, got nan at step 6, feature 3"):
        data.load(replace(source, max_gigabytes=0))
    np.save(tmp_path / "3.npy", np.asfortranarray(whole[0]))
    with pytest.raises(DataError, match=r"3\.npy is stored by columns .*: save np\.ascontiguousarray of it"):
        data.load(replace(source, max_gigabytes=0))


def test_notes_by_hand(tmp_path: Path) -> None:
    x = data.make_pack(_midi(tmp_path), tmp_path / "pack").parts["train"][0][:]
    assert x.shape == (5, 128)  # two and a quarter quarters, two steps each, the last one begun
    sounding = [set(step.nonzero().flatten().tolist()) for step in x]
    own = (sounding[0] - {64, 67}).pop()
    assert sounding == [{own, 64, 67}] * 2 + [{own, 67}] * 2 + [{67}]
    assert 60 <= own <= 63


def test_a_library_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _midi(tmp_path)
    monkeypatch.setitem(sys.modules, "mido", None)
    with pytest.raises(DataError, match=r"takes the mido package: pip install 'vrnn-fast\[midi\]'"):
        data.load(source)
    (tmp_path / "sound").mkdir()
    source = _sound(tmp_path / "sound")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(DataError, match=r"takes the soundfile package: pip install 'vrnn-fast\[train\]'"):
        data.load(source)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.mid", b"nonsense", r"a\.mid is not readable MIDI"),
        ("a.csv", b"1,2\n3,x\n", r"a\.csv must hold 2 numbers in every line, got 'x' in number 2"),
        ("a.csv", b"1,2\n3\n", r"a\.csv must hold 2 numbers in every line, got 1 columns in number 2"),
        ("a.csv", b"when,what\n", r"a\.csv holds no line of numbers"),
        ("a.csv", b"", r"a\.csv holds no line of numbers"),
        ("a.csv", b"\xff\xfe", r"a\.csv is not a readable table"),
        ("a.flac", b"nonsense", r"a\.flac is not readable sound"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    if name.endswith("mid"):
        pytest.importorskip("mido", reason="MIDI takes the mido package")
    (tmp_path / name).write_bytes(content)
    source = Source(str(tmp_path))
    for call in (lambda: data.load(source), lambda: data.make_pack(source, tmp_path / "p")):
        with pytest.raises(DataError, match=message):
            call()
    assert not pack.exists(tmp_path / "p")


def test_what_is_asked_of_a_pack(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    source, made = _sound(tmp_path / "source"), tmp_path / "pack"
    data.make_pack(source, made)
    with pytest.raises(DataError, match="pack was packed with rate 8000, got 16000"):
        data.load(Source(str(made), rate=16000))
    with pytest.raises(DataError, match="pack was packed with likelihood 'gaussian', got 'bernoulli'"):
        data.load(Source(str(made), "bernoulli"))
    with pytest.raises(DataError, match="pack is a pack already: remove it, or name another folder"):
        data.make_pack(source, made)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/pack cannot be written: Not a directory"):
        data.make_pack(source, tmp_path / "file" / "pack")


def _packed(folder: Path, steps: int = 900) -> Path:
    """A pack whose values have several blocks."""
    np.save(folder / "walks.npy", np.random.default_rng(0).normal(size=(10, steps, 20)))
    data.make_pack(Source(str(folder / "walks.npy"), "gaussian"), folder / "pack")
    return folder / "pack"


def test_any_steps_are_read(tmp_path: Path) -> None:
    made = data.load(Source(str(_packed(tmp_path))))
    own = [made, pickle.loads(pickle.dumps(made))]
    whole = [x[:] for x in made.train]
    assert sum(x.numel() for x in whole) * 4 > 2 * BLOCK
    for start, stop in ((0, 900), (0, 0), (17, 18), (800, 2000), (899, 900), (-3, None), (5, 3)):
        for dataset in own:
            found = [x[start:stop] for x in dataset.train]
            assert all(torch.equal(a, b[start:stop]) for a, b in zip(found, whole, strict=True))
    assert torch.equal(torch.cat(list(in_pieces(made.train[0]))), whole[0])
    with pytest.raises(ValueError, match="a stride of 2"):
        made.train[0][::2]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_was_changed_is_named_when_it_is_read(tmp_path: Path, workers: int) -> None:
    path = _packed(tmp_path) / pack.VALUES
    dataset = data.load(Source(str(path.parent)))
    with path.open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"x")
    last = max(dataset.train + dataset.valid + dataset.test, key=lambda x: x.first)
    first = min(dataset.train, key=lambda x: x.first)
    pieces, wanted = Pieces((first, last), 2, ("noise",)), [[Piece(0, 0, 5)], [Piece(0, 0, 5), Piece(1, 880, 900)]]
    whole, spoilt = loaded(pieces, wanted, workers=workers)
    assert whole.failure is None
    assert spoilt.x.shape == (1, 2, 20)
    assert spoilt.lengths.tolist() == [0, 0]
    words = rf"{path} is damaged or was changed: rows \d+ to 9000 are not what they were"
    with pytest.raises(DataError, match=words):
        raise spoilt.failure or AssertionError("nothing was found")


def message_of(call: Callable[[], object]) -> str:
    try:
        call()
    except DataError as error:
        return str(error)
    return ""


def test_damage_is_named(tmp_path: Path) -> None:
    made = _packed(tmp_path)
    index, values = made / pack.INDEX, made / pack.VALUES
    whole, numbers = index.read_bytes(), values.read_bytes()
    chance, told = np.random.default_rng(0), list[str]()
    for bit in chance.integers(8 * len(whole), size=200).tolist():
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        index.write_bytes(flipped)
        told += [message_of(lambda: data.load(Source(str(made))))]  # what a zip archive says twice may be wrong once
    assert len([words for words in told if words]) > 150
    assert all("\n" not in words and (str(made) in words or not words) for words in told)
    index.write_bytes(whole)
    for content, words in (
        (numbers[:-1], rf"{values} is damaged: it has [\d,]+ bytes, where [\d,]+ were written"),
        (numbers[:40], rf"{values} is not a readable \.npy file"),
    ):
        values.write_bytes(content)
        with pytest.raises(DataError, match=words):
            data.load(Source(str(made)))
    values.unlink()
    with pytest.raises(DataError, match=rf"{values} is not a readable \.npy file: .*No such file"):
        data.load(Source(str(made)))


def test_numbers_beyond_float32_are_named_when_they_are_read(tmp_path: Path) -> None:
    parts = {"train": np.random.default_rng(0).choice((-1e-30, 1e-30), (50, 2)), "valid": np.zeros((3, 2))}
    np.savez(tmp_path / "far.npz", **parts, test=np.array([[0, 0], [0, 1e20]]))
    data.make_pack(Source(str(tmp_path / "far.npz"), "gaussian"), tmp_path / "pack")
    dataset = data.load(Source(str(tmp_path / "pack")))
    with pytest.raises(
        DataError, match=r"values\.npy: standardised by the training part, 1e\+20 is not finite .* row 54"
    ):
        dataset.test[0][:]


MEGABYTES = 96
TRAINS = """
import sys
from pathlib import Path
from vrnn_fast.data import Source, load
from vrnn_fast.training.config import TrainConfig
from vrnn_fast.training.trainer import Trainer

model = {"hidden_size": 8, "latent_size": 2, **dict.fromkeys(("phi_x", "phi_z", "encoder", "prior", "decoder"), ())}
config = TrainConfig(epochs=1, batch_size=32, anneal=0.0)
for path in sys.argv[2:]:
    source = Source(path, "gaussian", max_gigabytes=0)
    trainer = Trainer(source, model, config, load(source), Path(sys.argv[1], Path(path).name))
    steps = sum(step.sums.time_steps for step in trainer.steps())
    print(steps, *(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_data_takes_no_memory(tmp_path: Path) -> None:
    """A pack, and large arrays where they are, for an epoch: less than half of it does, and libraries."""
    for name, count in (("small", 48), ("large", MEGABYTES * 5)):
        shape = (count, 250, 200)  # 0.2 MB a sequence
        open_memmap(tmp_path / f"{name}.npy", "w+", np.float32, shape).flush()  # zeros, no space on the disk
        data.make_pack(Source(str(tmp_path / f"{name}.npy"), "gaussian"), tmp_path / name)
    paths = [tmp_path / name for name in ("small", "large", "large.npy")]
    command = [sys.executable, "-c", TRAINS, str(tmp_path / "runs"), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (few, before), (many, packed), (same, in_place) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert many == same > 9 * few
    assert max(packed, in_place) - before < 1024 * MEGABYTES / 2
