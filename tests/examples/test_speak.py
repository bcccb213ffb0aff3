# SPDX-License-Identifier: Apache-2.0
"""The command examples/speak.py, with its own random model."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from examples import speak

RATE, SAMPLES_PER_FRAME = 16000, 320


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One engine for all tests, with the demo model made in an empty cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
        patch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
        speak.prepare_process()
        yield speak.start_engine(speak.demo_model())


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    """Half a second of sound at another rate, in stereo, with 24 bits."""
    time = np.arange(12000) / 24000
    tone = 0.3 * np.sin(2 * np.pi * 220 * time) * (1 + np.sin(2 * np.pi * 3 * time)) / 2
    path = tmp_path / "voice.wav"
    soundfile.write(path, np.stack([tone, 0.5 * tone], axis=1), 24000, subtype="PCM_24")
    return path


def run(arguments: list[str], engine: Any) -> int:
    """The command, with the model that the engine runs."""
    return speak.main([*arguments, "--model", speak.RANDOM_MODEL], engine)


def samples_of(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def test_the_wav_is_as_long_as_its_frames_say(engine, tmp_path, capsys):
    path = tmp_path / "out.wav"
    assert run(["a short sentence", "--output", str(path), "--max-tokens", "20"], engine) == 0
    samples = samples_of(path)
    assert len(samples) == 20 * SAMPLES_PER_FRAME
    assert np.abs(samples.astype(int)).max() > 100, "the file is silent"
    printed = capsys.readouterr().out
    assert "random weights" in printed
    assert "20 frames of 8 codes, 0.40 s of audio at 16000 Hz" in printed
    # The last of 8 streams runs 7 steps behind.
    assert "27 steps" in printed and "steps/s" in printed and "real-time factor" in printed
    assert f"wrote {path}" in printed


def test_same_seed_same_file(engine, tmp_path):
    files = []
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        path = tmp_path / f"{name}.wav"
        arguments = ["hello", "--seed", seed, "--max-tokens", "12", "--output", str(path)]
        assert run(arguments, engine) == 0
        files.append(path.read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_a_voice_prompt_changes_the_speech(engine, tmp_path, voice):
    files: list[Path] = []
    for extra in ([], ["--audio", str(voice)]):
        path = tmp_path / f"{len(files)}.wav"
        arguments = ["hello", "--max-tokens", "12", "--output", str(path), *extra]
        assert run(arguments, engine) == 0
        files.append(path)
    assert len(samples_of(files[0])) == len(samples_of(files[1])) == 12 * SAMPLES_PER_FRAME
    assert files[0].read_bytes() != files[1].read_bytes()


@pytest.fixture
def guidance_lanes(engine, monkeypatch) -> list[list[int]]:
    """Per guided step of the engine the number of lanes of each group."""
    runner = engine.llm_engine.model_executor.driver_worker.worker.model_runner
    worker, steps = runner.adapter.worker, []
    sample = worker.sample

    def watch(*arguments: Any) -> Any:
        if worker._guided:
            steps.append([len(group.lane_ids) for group in worker._guided])
        return sample(*arguments)

    monkeypatch.setattr(worker, "sample", watch)
    return steps


def test_guidance_changes_the_speech_and_takes_two_lanes(engine, tmp_path, guidance_lanes):
    options = {
        "none": [],
        "one": ["--guidance-scale", "1"],
        "three": ["--guidance-scale", "3"],
        "again": ["--guidance-scale", "3.0"],
        "negative": ["--guidance-scale", "3", "--negative-prompt", "goodbye"],
    }
    files, steps = {}, {}
    for name, extra in options.items():
        path = tmp_path / f"{name}.wav"
        guidance_lanes.clear()
        arguments = ["hello", "--max-tokens", "12", "--output", str(path), *extra]
        assert run(arguments, engine) == 0
        assert len(samples_of(path)) == 12 * SAMPLES_PER_FRAME
        files[name], steps[name] = path.read_bytes(), guidance_lanes.copy()
    # The last of 8 streams runs 7 steps behind.
    assert steps["none"] == steps["one"] == []
    assert steps["three"] == steps["again"] == steps["negative"] == [[2]] * 19
    assert files["none"] == files["one"]
    assert files["three"] == files["again"]
    assert len({files["none"], files["three"], files["negative"]}) == 3


def test_transcribing_prints_text(engine, voice, capsys):
    assert run(["--transcribe", str(voice), "--max-tokens", "15"], engine) == 0
    printed = capsys.readouterr().out
    assert "15 steps" in printed
    text = printed.split("text: ")[1].rstrip("\n")
    assert text and text.isprintable()


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT"])
def test_reading_gives_the_samples_that_were_written(tmp_path, subtype):
    samples = np.random.default_rng(7).uniform(-1, 1, (500, 2)).astype(np.float32)
    soundfile.write(tmp_path / "in.wav", samples, 8000, subtype=subtype)
    read, rate = speak.read_wav(tmp_path / "in.wav")
    assert rate == 8000 and read.shape == (2, 500) and read.dtype == np.float32
    expected, _ = soundfile.read(tmp_path / "in.wav", dtype="float32")
    np.testing.assert_array_equal(read, expected.T)


def test_writing_clips_and_rounds(tmp_path):
    path = tmp_path / "out.wav"
    speak.write_wav(path, np.array([0, 1, -1, 2, -2, 0.5], np.float32), RATE)
    assert samples_of(path).tolist() == [0, 32767, -32767, 32767, -32767, 16384]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "TEXT"),
        (["hello", "--transcribe", "{voice}"], "TEXT"),
        (["  "], "TEXT"),
        (["hello", "--audio", "{folder}/none.wav"], "--audio"),
        (["hello", "--audio", "{folder}/text.wav"], "--audio"),
        (["hello", "--audio", "{folder}/empty.wav"], "--audio"),
        (["--transcribe", "{folder}/text.wav"], "--transcribe"),
        (["--transcribe", "{voice}", "--output", "x.wav"], "--output"),
        (["hello", "--output", "{folder}/none/x.wav"], "--output"),
        (["hello", "--output", "{folder}"], "--output"),
        (["hello", "--temperature", "-1"], "--temperature"),
        (["hello", "--temperature", "nan"], "--temperature"),
        (["hello", "--top-k", "-1"], "--top-k"),
        (["hello", "--max-tokens", "0"], "--max-tokens"),
        (["hello", "--seed", "x"], "--seed"),
        (["hello", "--guidance-scale", "much"], "--guidance-scale"),
        (["--transcribe", "{voice}", "--voice", "slt"], "--voice"),
        (["--transcribe", "{voice}", "--guidance-scale", "3"], "--guidance-scale"),
        (["--transcribe", "{voice}", "--negative-prompt", "no"], "--negative-prompt"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, named, tmp_path, voice, capsys):
    (tmp_path / "text.wav").write_text("not audio")
    speak.write_wav(tmp_path / "empty.wav", np.empty(0, np.float32), RATE)
    with pytest.raises(SystemExit) as exit_info:
        speak.main([a.format(voice=voice, folder=tmp_path) for a in arguments])
    assert exit_info.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--voice", "slt"], "voice must be one of []"),
        (["--seed", str(2**63)], "seed must be in"),
        (["--guidance-scale", "-1"], "guidance_scale must be a finite number >= 0, not -1.0"),
        (["--guidance-scale", "nan"], "guidance_scale must be a finite number >= 0, not nan"),
        (["--guidance-scale", "inf"], "guidance_scale must be a finite number >= 0, not inf"),
        (["--negative-prompt", "no"], "negative_prompt needs guidance_scale"),
        (["--guidance-scale", "3", "--negative-prompt", "no" * 2000], "negative_prompt"),
    ],
)
def test_what_the_engine_refuses_is_told(engine, arguments, told, tmp_path, capsys):
    path = tmp_path / "out.wav"
    assert speak.main(["hello", "--output", str(path), *arguments], engine) == 2
    assert told in capsys.readouterr().err
    assert not path.exists()
