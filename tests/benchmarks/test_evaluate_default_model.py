# SPDX-License-Identifier: Apache-2.0
"""The rules by which the default model is measured, without a model and without judges."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import jiwer
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import default_model_report as reports
from benchmarks import judging, speech_scores
from tests.benchmarks import default_model_samples as samples
from tests.default_model.training_modules import training_modules

training_modules("corpus")
ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "examples" / "train_default_model"))

from benchmarks import evaluate_default_model as evaluation  # noqa: E402

RATE = evaluation.SAMPLE_RATE
WORDS = st.lists(st.sampled_from(["a", "red", "train", "leaves"]), max_size=6)


@given(WORDS.filter(len), WORDS)
def test_word_errors_are_jiwers(said, heard):
    text, other = " ".join(said), " ".join(heard)
    assert speech_scores.error_rate([text], [other]) == pytest.approx(jiwer.wer(text, other))


def test_words_are_compared_as_they_are_said():
    assert speech_scores.word_errors("It's 9:30, Mr. Lee.", "it's nine thirty mister lee") == 0
    assert speech_scores.word_errors("semi-dry", "Semi dry!") == 0
    assert speech_scores.word_errors("forty two pounds", "£42") == 0


def clip(seconds: float) -> Any:
    return np.zeros(round(seconds * RATE), np.float32)


def original(text: str, voice: str, seconds: float = 2.0) -> evaluation.Original:
    return evaluation.Original(text, voice, clip(seconds))


def test_each_way_to_end_wrongly_counts_once():
    spoken = [original("x", "heart") for _ in range(5)]
    said = [
        evaluation.Said(clip(seconds), stopped)
        for seconds, stopped in ((2, True), (1.4, True), (2.6, True), (20, False), (1.51, True))
    ]
    assert evaluation.ends(spoken, said) == pytest.approx(
        {"duration_ratio": 2.751, "early": 0.2, "late": 0.4, "endless": 0.2, "wrong": 0.6}
    )


def score(heard: str, voice: Sequence[float] | None) -> judging.Score:
    return judging.Score(2.0, heard, 4.0, None, voice)


def test_a_voice_is_compared_with_its_own_other_sentences():
    spoken = [original("one", "heart"), original("two", "heart"), original("three", "joe")]
    references = [score("", [1.0, 0.0]), score("", [0.6, 0.8]), score("", [0.0, 1.0])]
    said = [score("one", [1.0, 0.0]), score("to", [0.0, 1.0]), score("three", None)]
    found = evaluation.summary(spoken, said, references)
    # joe has no other sentence; heart's are compared with each other's.
    assert found["speaker_similarity"] == pytest.approx((0.6 + 0.0) / 2)
    assert found["word_error_rate"] == pytest.approx(1 / 3)
    assert found["word_error_rate_by_voice"] == {"heart": 0.5, "joe": 0.0}
    assert (found["distillmos"], found["dnsmos"]) == (4.0, None)


class Parrot:
    """A model that says silence of the right length, and hears what it was told to say."""

    defaults: ClassVar[dict[str, float]] = {"temperature": 0.0}

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)

    def speak(self, wanted: Sequence[tuple[str, str]], scale: float) -> list[evaluation.Said]:
        return [evaluation.Said(clip(2 * scale), True) for _ in wanted]

    def transcribe(self, clips: Sequence[Any]) -> list[str]:
        return self.texts[: len(clips)]

    def transcribe_beside_speech(self, clips, wanted, scale: float) -> list[str]:
        assert {len(samples) for samples in clips} == {round(2 * scale * RATE)}
        return ["nothing", *self.texts[1:]]

    def through_codec(self, samples: Any) -> Any:
        return samples


def test_the_best_scale_is_heard_again(tmp_path, monkeypatch):
    spoken = [original("one", "heart"), original("two", "joe")]
    folders: list[Path] = []

    def judge(wanted: Sequence[Path], threads: int) -> list[dict[str, judging.Score]]:
        folders.extend(wanted)
        bad = {"scale_1": "wrong"}
        return [
            {
                file.name: score(bad.get(folder.name, o.text), [1.0, 0.0])
                for file, o in zip(sorted(folder.glob("*.wav")), spoken, strict=False)
            }
            for folder in wanted
        ]

    monkeypatch.setattr(evaluation, "judge", judge)
    monkeypatch.setattr(evaluation, "flite", lambda texts: [])
    found = evaluation.evaluate(
        Parrot(["one", "two"]),  # type: ignore[arg-type]
        spoken,
        {"michael": spoken},
        [1.0, 1.25],
        evaluation.Clips(tmp_path),
    )
    assert [row["word_error_rate"] for row in found["speech"]] == [1.0, 0.0]
    assert found["round_trip"] == {"guidance_scale": 1.25, "word_error_rate": 0.5, "exact": 0.5}
    assert found["recognition"] == {"known_voices": 0.0, "strangers": {"michael": 0.0}}
    assert "flite" not in found
    assert [folder.name for folder in folders] == [
        *("originals", "codec", "flite", "scale_1", "scale_1.25")
    ]
    json.dumps(found)
    assert "| speech, scale 1.25 | 0.0 %" in reports.score_table(found)


def test_clips_of_an_earlier_run_go(tmp_path):
    clips = evaluation.Clips(tmp_path)
    clips.write("one", [clip(1), clip(1)])
    folder = clips.write("one", {"000": clip(0.5)})
    (file,) = folder.glob("*")
    assert file.name == "000.wav" and soundfile.info(file).frames == RATE // 2


def test_all_targets_met_and_missed():
    report = samples.report()
    assert reports.missed(report) == []
    worse = copy.deepcopy(report)
    worse["codec"]["word_error_rate"] = 0.09
    # No guidance is the best.
    bad = {"word_error_rate": 0.145, "wrong": 0.02, "distillmos": 3.5, "speaker_similarity": 0.8}
    worse["speech"] = [samples.row(1.0, 0.145) | bad, samples.row(1.5, 0.2)]
    worse["recognition"] = {"known_voices": 0.13, "strangers": {}}
    worse["round_trip"]["word_error_rate"] = 0.2
    assert len(reports.missed(worse)) == len(reports.TARGETS)
    assert reports.target_table(worse).count("**missed**") == len(reports.TARGETS) - 1


def test_plots_are_drawn(tmp_path):
    report = samples.report()
    later = copy.deepcopy(report)
    later["model"]["step"] = 2000
    reports.plot_guidance(report, tmp_path / "guidance.png")
    reports.plot_learning([later, report], tmp_path / "learning.png")
    reports.plot_spectrograms(tmp_path / "spectrograms.png", "x", {"one": clip(1)}, RATE)
    assert all(file.stat().st_size > 1000 for file in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 3


@pytest.fixture
def score_module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """judges/score.py, whose judges are not asked."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "judges"))
    import score

    class Judges:
        asked: ClassVar[list[str]] = []

        def __init__(self, threads: int) -> None:
            pass

        def score(self, file: Path) -> dict[str, Any]:
            self.asked.append(file.name)
            row = {"name": file.name, "sha256": score.digest(file), "seconds": 1.0}
            return row | {"heard": "x", "distillmos": None, "dnsmos": None, "voice": None}

    monkeypatch.setattr(score, "Judges", Judges)
    yield score
    sys.modules.pop("score"), sys.modules.pop("judges")


def test_only_new_and_changed_clips_are_judged(tmp_path, score_module):
    clips = evaluation.Clips(tmp_path)
    folder = clips.write("one", [clip(1), clip(1)])
    score_module.score_folders([folder], 1)
    folder = clips.write("one", [clip(1), clip(2), clip(1)])
    score_module.score_folders([folder, clips.write("none", [])], 1)
    assert score_module.Judges.asked == ["000.wav", "001.wav", "001.wav", "002.wav"]
    assert list(judging._scores(folder)) == ["000.wav", "001.wav", "002.wav"]
    assert judging._scores(tmp_path / "none") == {}
