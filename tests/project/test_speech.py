"""The paper's models on raw audio, at a size that a test has time for, on voices that are computed."""

from __future__ import annotations

import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from bench.papers import __main__ as papers
from bench.papers import recordings, spectra, speech, speech_result
from bench.papers.speech import FRAME, arguments, cost, width_of_equal_cost
from bench.papers.speech_page import page
from bench.papers.speech_result import KINDS, SpeechResult, SpeechSetting
from vrnn_fast.training.options import build

SMALL = SpeechSetting("VRNN-Gauss", 0, width=24, latent=8, components=2)


@pytest.mark.parametrize("kind", KINDS)
def test_all_models_cost_as_much(kind: speech.SpeechModel) -> None:
    setting = replace(SMALL, kind=kind)
    model = build(arguments(setting, width_of_equal_cost(setting)), FRAME, "gaussian")
    whole = build(arguments(SMALL, 24), FRAME, "gaussian")
    assert cost(model) == pytest.approx(cost(whole), rel=0.15)
    assert (model.latent_size == 0) == kind.startswith("RNN")
    assert ("prior" in {name.partition(".")[0] for name, _ in model.named_parameters()}) == (kind in KINDS[3:])
    assert (model.spec.likelihood == "gaussian") == kind.endswith("Gauss")


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
    found = speech_result.results_in(tmp_path / "speech")
    assert [(r.setting.kind, r.setting.seed) for r in found] == [("RNN-GMM", 3), ("VRNN-Gauss", 3)]
    for r in found:
        assert math.isfinite(r.bound)
        assert r.per_second == pytest.approx(r.bound / 0.3)
        assert (r.tighter is None) == (r.setting.kind == "RNN-GMM")
        written = (tmp_path / "speech" / f"{r.setting.kind.lower()}-3.json").read_text()
        assert SpeechResult.of_json(written) == r
        assert json.loads(written)["machine"]["threads"] == 1
    assert found[1].tighter is not None
    assert found[1].tighter > found[1].bound - 5
    assert (tmp_path / "speech.md").read_text() == page(found)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"data.wav", "spectrograms.png", "RNN-GMM-3-sample.wav", "VRNN-Gauss-3-reconstruction.wav"} <= names


def test_spectra_that_are_the_same_have_no_distance(tmp_path: Path) -> None:
    tone = torch.sin(torch.arange(4000.0) * 0.8).view(20, 200)
    found = spectra.leave("a", tone, tone, 10 * tone, 0.1, 8000, tmp_path)
    assert found["reconstruction"] == 0
    assert 1 < found["sample"] <= 20.01
    peak = spectra.decibels(tone).mean(1).argmax().item()
    assert peak == pytest.approx(0.8 / (2 * math.pi) * 256, abs=1)


def test_where_nothing_can_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def refuse(command: list[str], **_: Any) -> None:
        raise subprocess.CalledProcessError(100, command, stderr="E: Unable to locate\npackage")

    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(SystemExit):
        papers.main(["speech", "--results", str(tmp_path)])
    assert "cannot be fetched here (E: Unable to locate package): name a folder with --data" in capsys.readouterr().err
    (tmp_path / "vrnn_fast" / "speech").mkdir(parents=True)
    assert recordings.fetched() == tmp_path / "vrnn_fast" / "speech"


def test_the_page_says_whether_the_paper_was_right() -> None:
    machine: dict[str, object] = {"processor": "P", "cores": 2, "threads": 1, "kernel_build": "avx2"}
    machine |= {"versions": {"python": "3", "torch": "2"}, "commit": "c"}

    def result(kind: speech.SpeechModel, bound: float) -> SpeechResult:
        own, distances = replace(SMALL, kind=kind), {"reconstruction": 3.0, "sample": 4.0}
        return SpeechResult(own, machine, "d", 4, 9, 8, bound, None, 5, 10.0, 1.0, [1.0], distances)

    bounds = (100.0, 300.0, 400.0, 450.0, 460.0)
    text = page([result(kind, bound) for kind, bound in zip(KINDS, bounds, strict=True)])
    assert "Every VRNN above every RNN: **holds** here (VRNN-I-Gauss 400, RNN-GMM 300)" in text
    assert "The mixture helps the RNN most: **holds** here (+200 for the RNN, +10 for the VRNN)" in text
    assert "| VRNN-GMM | 4 | 9 | **460** (460 to 460) |  | 230 | 1 |" in text
    text = page([result(kind, -bound) for kind, bound in zip(KINDS, bounds, strict=True)])
    assert text.count("**does not hold** here") == 2
