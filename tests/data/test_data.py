"""Sequences: what is read is what is there, and what does not fit is named."""

from __future__ import annotations

import re
import warnings
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from vrnn_fast import data
from vrnn_fast.data import DataError, Dataset, Source, bucketed, chorales, pad
from vrnn_fast.data.reading import PARTS, divide

SCORE = """<score-partwise><part>
<measure><attributes><divisions>2</divisions><key><fifths>-2</fifths><mode>minor</mode></key></attributes>
  <note><grace/><pitch><step>A</step><octave>4</octave></pitch></note>
  <note><pitch><step>G</step><octave>4</octave></pitch><duration>1</duration></note>
  <note><pitch><step>A</step><octave>4</octave></pitch><duration>1</duration></note>
</measure>
<measure>
  <note><pitch><step>B</step><alter>-1</alter><octave>4</octave></pitch><duration>4</duration></note>
  <note><chord/><pitch><step>D</step><octave>5</octave></pitch><duration>4</duration></note>
  <backup><duration>4</duration></backup>
  <forward><duration>2</duration></forward>
  <note><pitch><step>G</step><octave>3</octave></pitch><duration>2</duration></note>
</measure></part></score-partwise>"""


def test_musicxml_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "score.xml"
    path.write_text(SCORE)
    score = chorales.read(path)
    half = Fraction(1, 2)
    assert score.tonic == 7  # two flats, minor: G
    assert score.notes == [(0, half, 67), (half, 1, 69), (1, 3, 70), (1, 3, 74), (2, 3, 55)]


def test_what_sounds_at_each_quarter() -> None:
    half = Fraction(1, 2)
    notes = [(Fraction(0), half, 67), (half, Fraction(1), 69), (half, Fraction(2), 70), (Fraction(1), Fraction(2), 55)]
    notes += [(Fraction(0), Fraction(2), pitch) for pitch in (50, 51)]
    roll = chorales.roll_of(chorales.Score(notes, tonic=7))
    assert roll is not None
    up = 5  # from G to C by the shorter way; an eighth between two quarters is not heard
    assert [set((np.flatnonzero(step) + 21 - up).tolist()) for step in roll] == [{67, 50, 51}, {70, 55, 50, 51}]


@pytest.mark.parametrize("tonic", range(12))
def test_transposition_ends_on_c_within_a_tritone(tonic: int) -> None:
    notes = [(Fraction(0), Fraction(1), 60 + tonic + 12 * octave) for octave in (-1, 0, 1)]
    roll = chorales.roll_of(chorales.Score(notes, tonic))
    assert roll is not None
    pitches = np.flatnonzero(roll[0]) + 21
    assert (pitches % 12 == 0).all()
    assert abs(pitches[1] - (60 + tonic)) <= 6


def test_thin_and_long_pieces_are_left_out() -> None:
    def piece(voices: int, quarters: int) -> chorales.Score:
        return chorales.Score([(Fraction(0), Fraction(quarters), 60 + v) for v in range(voices)], 0)

    assert chorales.roll_of(piece(2, 8)) is None
    assert chorales.roll_of(piece(6, 8)) is None
    assert chorales.roll_of(piece(4, 201)) is None
    assert chorales.roll_of(piece(4, 200)) is not None


@pytest.mark.parametrize("name", ["bwv1.6.mxl", "bwv67.4.xml", "bwv281.krn"])
def test_scores_are_read_as_music21_reads_them(name: str) -> None:
    from music21 import converter

    path = next(score for score in chorales.scores() if score.name == name)
    flat = converter.parse(path).flatten()
    expected = sorted(
        (Fraction(n.offset), Fraction(n.offset) + Fraction(n.quarterLength), p.midi)
        for n in flat.notes
        if n.quarterLength
        for p in n.pitches
    )
    assert sorted(chorales.read(path).notes) == expected


def test_the_corpus_is_whole() -> None:
    assert len(chorales.scores()) == 413


@pytest.fixture
def few_scores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder of its own, and a corpus of six pieces that fall into all three parts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = ("bwv253.mxl", "bwv254.mxl", "bwv255.mxl", "bwv256.mxl", "bwv257.mxl", "bwv258.mxl", "bwv260.mxl")
    few = [score for score in chorales.scores() if score.name in names]
    monkeypatch.setattr(chorales, "scores", lambda: few)
    return tmp_path


def test_chorales_are_cached(few_scores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = data.load(Source())
    assert first.features == 88
    assert [p.name for p in (few_scores / "vrnn_fast").iterdir()] == [chorales.cache_path().name]
    (few_scores / "new").touch()
    assert chorales.cache_path().stat().st_mode == (few_scores / "new").stat().st_mode

    def not_again(path: Path) -> chorales.Score:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(chorales, "read", not_again)
    assert data.load(Source()).fingerprint() == first.fingerprint()


@pytest.mark.parametrize("damage", [b"", b"nonsense", "truncated", "flipped", "foreign"])
def test_a_damaged_cache_is_rebuilt(few_scores: Path, damage: bytes | str) -> None:
    first = data.load(Source())
    path = chorales.cache_path()
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    elif damage == "foreign":
        np.savez(path, other=np.zeros(3))
    else:
        assert isinstance(damage, bytes)
        path.write_bytes(damage)
    with pytest.warns(UserWarning, match="is damaged .* reading the scores again"):
        assert data.load(Source()).fingerprint() == first.fingerprint()
    assert data.load(Source()).fingerprint() == first.fingerprint()


def test_an_unwritable_cache_is_no_obstacle(few_scores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (few_scores / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(few_scores / "file"))
    with pytest.warns(UserWarning, match="could not be kept for the next time"):
        assert data.load(Source()).features == 88


def test_chorales_are_not_gaussian() -> None:
    with pytest.raises(DataError, match="likelihood must be 'bernoulli', got 'gaussian'"):
        data.load(Source(likelihood="gaussian"))


def test_a_damaged_score_is_named(tmp_path: Path) -> None:
    for name in ("bwv1.mxl", "bwv2.xml"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(DataError, match=f"{name} is not a readable score"):
            chorales.read(tmp_path / name)


def _binary(*shape: int) -> Any:
    return (np.random.default_rng(0).random(shape) < 0.3).astype(np.uint8)


def test_npz_with_named_parts(tmp_path: Path) -> None:
    arrays = {"train_a": _binary(5, 3), "train_b": _binary(7, 3), "valid": _binary(2, 4, 3), "test": _binary(6, 3)}
    np.savez(tmp_path / "notes.npz", **arrays)
    found = data.load(Source(str(tmp_path / "notes.npz")))
    assert [len(x) for x in found.train] == [5, 7]
    assert [len(x) for x in found.valid] == [4, 4]
    assert torch.equal(found.test[0], torch.from_numpy(arrays["test"]).float())
    assert (found.likelihood, found.features, found.steps("train")) == ("bernoulli", 3, 12)


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training 1", "VAL_1", "Test"), ("train", "val2", "test")]
)
def test_validation_has_a_short_name_too(tmp_path: Path, names: tuple[str, str, str]) -> None:
    np.savez(tmp_path / "notes.npz", **{name: _binary(4 + i, 3) for i, name in enumerate(names)})
    found = data.load(Source(str(tmp_path / "notes.npz")))
    assert [[len(x) for x in found[part]] for part in PARTS] == [[4], [5], [6]]


def test_one_name_of_no_part_is_refused(tmp_path: Path) -> None:
    """What is named test... would be trained on, if the names' hashes decided."""
    parts = {name: _binary(4, 3) for name in ("train_a", "train_b", "valid", "test")}
    np.savez(tmp_path / "notes.npz", **parts, valse=_binary(4, 3), walk=_binary(4, 3))
    with pytest.raises(DataError, match=r"valid \(or val\) or test all must, got 'valse', 'walk'$"):
        data.load(Source(str(tmp_path / "notes.npz")))
    np.savez(tmp_path / "notes.npz", **parts, others=_binary(9, 4, 3))
    with pytest.raises(DataError, match=r"got 'others\[0\]', .* 'others\[4\]' and 4 more$"):
        data.load(Source(str(tmp_path / "notes.npz")))


def test_npy_is_divided_by_name(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(20, 4, 3)) * (1, 10, 0.1) + (0, 5, -3)
    np.save(tmp_path / "walk.npy", values)
    found = data.load(Source(str(tmp_path / "walk.npy"), likelihood="gaussian"))
    assert [len(found[part]) for part in PARTS] == [16, 2, 2]
    train = torch.cat(found.train)
    assert torch.allclose(train.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(train.std(0, correction=0), torch.ones(3))
    everything = torch.cat([torch.stack(found[part]) for part in PARTS])
    everything = everything * torch.tensor(found.scale) + torch.tensor(found.mean)
    expected = torch.from_numpy(values).float()
    assert torch.allclose(everything.flatten().sort().values, expected.flatten().sort().values, atol=1e-5)
    assert data.load(Source(str(tmp_path / "walk.npy"), likelihood="gaussian")).fingerprint() == found.fingerprint()


@pytest.mark.parametrize("value", [7, 0.1])
def test_a_constant_feature_is_only_moved(tmp_path: Path, value: float) -> None:
    values = np.random.default_rng(0).normal(size=(5, 41, 2))
    values[..., 1] = value
    np.save(tmp_path / "walk.npy", values)
    found = data.load(Source(str(tmp_path / "walk.npy"), likelihood="gaussian"))
    assert (found.mean[1], found.scale[1]) == (np.float32(value), 1)
    assert (torch.cat(found.train)[:, 1] == 0).all()


def test_a_folder_of_npy(tmp_path: Path) -> None:
    for i in range(5):
        np.save(tmp_path / f"piece{i}.npy", _binary(4 + i, 2))
    assert [len(data.load(Source(str(tmp_path)))[part]) for part in PARTS] == [3, 1, 1]


def test_dividing_ignores_the_order() -> None:
    names = [(f"piece {i}", i) for i in range(30)]
    assert divide(names) == divide(names[::-1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros(3)}, r"'a' must be numbers of shape \(T, X\) or \(N, T, X\).*got float64 of shape \(3,\)"),
        ({"a": np.zeros((0, 3))}, r"all at least 1, got float64 of shape \(0, 3\)"),
        ({"a": np.array([["x"]])}, "must be numbers of shape"),
        ({"a": np.zeros((4, 5, 3)), "b": np.zeros((5, 2))}, r"same feature size, got 3 in 'a\[3\]', 2 in 'b'"),
        ({"a": np.zeros((2, 5, 3))}, "3 sequences are the least that can be split"),
        ({"a": np.full((3, 5, 3), 0.5)}, r"'a\[0\]' must be 0 or 1 for a bernoulli likelihood, got 0.5 at step 0"),
        ({"train": np.zeros((3, 5, 3)), "test": np.zeros((5, 3))}, "the valid part holds no sequence"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=message):
        data.load(Source(str(tmp_path / "bad.npz")))


def test_numbers_that_are_none(tmp_path: Path) -> None:
    values = np.zeros((3, 5, 2))
    for value in ("nan", "1e+39"):
        values[1, 4, 1] = float(value)
        np.save(tmp_path / "bad.npy", values)
        words = rf"'bad\[1\]' must be finite in float32, got {re.escape(value)} at step 4, feature 1"
        with pytest.raises(DataError, match=words):
            data.load(Source(str(tmp_path / "bad.npy"), likelihood="gaussian"))


@pytest.mark.parametrize(("scale", "value"), [(1e-30, 1e20), (3e38, 3e38)])
def test_what_overflows_when_standardised(tmp_path: Path, scale: float, value: float) -> None:
    parts = {"train": np.random.default_rng(0).choice((-scale, scale), (50, 2)), "valid": np.zeros((3, 2))}
    np.savez(tmp_path / "far.npz", **parts, test=np.array([[0, 0], [0, value]]))
    if scale < 1:
        words = (
            r"far\.npz: standardised by the training part, 1e\+20 is not finite .* step 1, feature 1 of test sequence 0"
        )
        with pytest.raises(DataError, match=words):
            data.load(Source(str(tmp_path / "far.npz"), likelihood="gaussian"))
    else:
        found = data.load(Source(str(tmp_path / "far.npz"), likelihood="gaussian"))
        assert torch.cat(found.train).std(0, correction=0).tolist() == pytest.approx([1, 1])


def _encrypted(path: Path) -> bytes:
    """An .npz file that says that its array is encrypted."""
    np.savez(path, a=np.zeros((3, 4, 2)))
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.find(signature) + flags] |= 1
    return bytes(content)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such data: nowhere"):
        data.load(Source("nowhere"))
    with pytest.raises(DataError, match=r"holds no file of \.wav, .*, \.npy, \.npz, \.csv"):
        data.load(Source(str(tmp_path)))
    (tmp_path / "bad.npz").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"bad\.npz is not a readable \.npz or \.npy file"):
        data.load(Source(str(tmp_path / "bad.npz")))
    (tmp_path / "bad.npz").write_bytes(_encrypted(tmp_path / "bad.npz"))
    with pytest.raises(DataError, match=r"bad\.npz is not a readable .* 'a\.npy' is encrypted"):
        data.load(Source(str(tmp_path / "bad.npz")))
    np.savez(tmp_path / "text.npz", a=np.zeros((3, 4, 2)))
    with zipfile.ZipFile(tmp_path / "text.npz", "a") as archive:
        archive.writestr("readme.txt", "text")
    with pytest.raises(DataError, match=r"text\.npz holds 'readme\.txt', which is no array"):
        data.load(Source(str(tmp_path / "text.npz")))
    np.save(tmp_path / "ragged.npy", np.array([np.zeros((2, 3)), np.zeros((4, 3))], dtype=object))
    with pytest.raises(DataError, match=r"save sequences of unequal length as one array each in an \.npz file"):
        data.load(Source(str(tmp_path / "ragged.npy")))


def _npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    """NumPy makes code of a header, and raises whatever its tokenizer or compiler does."""
    np.save(tmp_path / "whole.npy", _binary(30, 4, 3))
    np.savez_compressed(tmp_path / "whole.npz", a=_binary(30, 4, 3))
    _wav(tmp_path / "whole.wav", 500)
    chance = np.random.default_rng(0)
    spoilt = [
        ("a.npy", _npy(b"{'descr': __import" + b"x" * 100)),
        ("b.npy", _npy(b"{'descr': '<f4', 'shape': " + b"(" * 300)),
    ]
    for name, header in (("whole.npy", 128), ("whole.npz", 200), ("whole.wav", 60)):
        content = (tmp_path / name).read_bytes()
        for bit in chance.integers(8 * header, size=150).tolist():
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            spoilt.append((f"flipped{Path(name).suffix}", bytes(flipped)))
    told = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's, of what it is given
        for name, content in spoilt:
            folder = tmp_path / Path(name).suffix
            folder.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
            try:
                data.load(Source(str(folder if name.endswith("wav") else folder / name), frame=10))
            except DataError as error:
                told.append((name, str(error)))
    assert len(told) > 150
    assert [words for name, words in told if "\n" in words or not re.search(rf"{name}|\.wav", words)] == []


def test_what_expands_beyond_the_limit(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "notes.npz", **{p: np.zeros((3, 1000, 50), np.uint8) for p in PARTS})
    path = tmp_path / "notes.npz"
    assert path.stat().st_size < 10_000
    words = r"notes.npz expands to 0.00045 GB, and max_gigabytes is 0.0004: raise that \(--max-gigabytes on the command"
    with pytest.raises(DataError, match=words):
        data.load(Source(str(path), max_gigabytes=0.0004))
    assert data.load(Source(str(path), max_gigabytes=0.002)).features == 50
    np.savez(path, **{p: _binary(9, 10, 5) for p in PARTS})
    assert data.load(Source(str(path), max_gigabytes=0)).features == 5, "it is as large on the disk"
    sound = tmp_path / "sound"
    sound.mkdir()
    soundfile.write(sound / "a.wav", np.zeros(500_000), 8000, format="FLAC")
    with pytest.raises(DataError, match=r"a\.wav expands to 0.002 GB, and max_gigabytes is 0.001"):
        data.load(Source(str(sound), max_gigabytes=0.001))


def test_a_name_that_is_too_long() -> None:
    with pytest.raises(DataError, match=r"no such data: a{5000} "):
        data.load(Source("a" * 5000))


def _wav(path: Path, samples: int, rate: int = 8000, channels: int = 1) -> Any:
    values = np.random.default_rng(samples).normal(scale=0.1, size=(samples, channels)).astype(np.float32)
    soundfile.write(path, values, rate, subtype="FLOAT")
    return values


def test_sound_is_cut_into_frames(tmp_path: Path) -> None:
    first = _wav(tmp_path / "a.wav", 1050, channels=2).mean(1)
    for name in "bcd":
        _wav(tmp_path / f"{name}.wav", 400)
    found = data.load(Source(str(tmp_path), frame=100, max_steps=4))
    assert (found.likelihood, found.features, found.rate) == ("gaussian", 100, 8000)
    part = next(part for part in PARTS if found.steps(part) >= 10)
    lengths = [len(x) for x in found[part]]
    assert sorted(lengths) == sorted([4, 4, 2] + [4] * (len(lengths) - 3))
    ours = torch.cat([x.flatten() for x in found[part]]) * found.scale[0]
    assert torch.isclose(ours, torch.from_numpy(first)[0], rtol=1e-5).any()
    assert torch.cat(found.train).std(correction=0).item() == pytest.approx(1, rel=1e-5)


def test_files_of_sound_are_named_after_parts_too(tmp_path: Path) -> None:
    for i, name in enumerate(("train_a.wav", "train_b.WAV", "val.Wav", "test.wav")):
        _wav(tmp_path / name, 100 * (i + 1))
    found = data.load(Source(str(tmp_path), frame=100))
    assert [[len(x) for x in found[part]] for part in PARTS] == [[1, 2], [3], [4]]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_sound_that_is_no_number(tmp_path: Path, value: float) -> None:
    _wav(tmp_path / "a.wav", 500)
    soundfile.write(tmp_path / "b.wav", np.where(np.arange(500) == 33, value, 0.1), 8000, subtype="DOUBLE")
    with pytest.raises(DataError, match=r"b\.wav must be finite in float32, got (nan|inf) at sample 33"):
        data.load(Source(str(tmp_path), frame=10))


def test_one_file_of_sound_is_enough(tmp_path: Path) -> None:
    _wav(tmp_path / "a.wav", 1000)
    found = data.load(Source(str(tmp_path), frame=10, max_steps=20))
    assert [len(found[part]) for part in PARTS] == [3, 1, 1]


def test_sound_that_does_not_fit(tmp_path: Path) -> None:
    _wav(tmp_path / "a.wav", 500)
    _wav(tmp_path / "b.wav", 500, rate=16000)
    with pytest.raises(DataError, match=r"b\.wav has 16000 samples per second, expected 8000"):
        data.load(Source(str(tmp_path), frame=100))
    with pytest.raises(DataError, match=r"a\.wav has 8000 samples per second, expected 16000"):
        data.load(Source(str(tmp_path), frame=100, rate=16000))
    with pytest.raises(DataError, match=r"a\.wav has 500 samples, fewer than one frame of 501"):
        data.load(Source(str(tmp_path), frame=501))
    with pytest.raises(DataError, match="likelihood must be 'gaussian', got 'bernoulli'"):
        data.load(Source(str(tmp_path), likelihood="bernoulli"))
    (tmp_path / "a.wav").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"a\.wav is not readable sound"):
        data.load(Source(str(tmp_path)))


def test_silence_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(1000), 8000)
    with pytest.raises(DataError, match="the training part is silent"):
        data.load(Source(str(tmp_path), frame=10, max_steps=10))


def test_padding() -> None:
    x, lengths = batch = pad([torch.ones(2, 3), torch.ones(4, 3), torch.ones(1, 3)])
    assert (x.shape, lengths.tolist(), batch.steps) == ((4, 3, 3), [2, 4, 1], 7)
    assert x.sum((0, 2)).tolist() == [6, 12, 3]


def test_buckets_hold_everything_once_and_like_with_like() -> None:
    lengths = [(37 * i) % 100 + 1 for i in range(50)]
    batches = bucketed(lengths, 8, torch.Generator().manual_seed(0))
    assert sorted(i for batch in batches for i in batch) == list(range(50))
    assert [len(batch) for batch in batches].count(8) == 6
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    assert padded < 1.4 * sum(lengths)
    assert batches == bucketed(lengths, 8, torch.Generator().manual_seed(0))
    assert batches != bucketed(lengths, 8, torch.Generator().manual_seed(1))


def test_baseline() -> None:
    train, test = torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[1.0, 1]])
    binary = Dataset("two", "bernoulli", (train,), (test,), (test,))
    assert binary.baseline() == pytest.approx(-np.log(3 / 4) - np.log(1 / 4))
    values = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    normal = Dataset("normal", "gaussian", (values,), (values,), (values,))
    assert normal.baseline() == pytest.approx(1 + np.log(2 * np.pi), abs=0.1)


def test_fingerprint_sees_every_number() -> None:
    x, y = torch.zeros(3, 2), torch.zeros(3, 2)
    y[2, 1] = 1
    parts = [(x, x, x), (y, x, x), (x, y, x), (x, x, y), (x.T, x, x)]
    prints = {Dataset("d", "bernoulli", (a,), (b,), (c,)).fingerprint() for a, b, c in parts}
    assert len(prints) == len(parts)
