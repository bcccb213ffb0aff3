# SPDX-License-Identifier: Apache-2.0
"""`vllm speak` and `vllm transcribe`, with an engine of their own and with a server."""

from __future__ import annotations

import argparse
import gc
import io
import os
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.entrypoints.server import (
    API_KEY,
    MODEL_NAME,
    RECORDED,
    SAID,
    SAMPLES_PER_FRAME,
    Server,
    recording,
)
from vllm.entrypoints.speech.cli import commands as cli
from vllm.entrypoints.speech.cli.sinks import Player, playing
from vllm.entrypoints.speech.encoding import encode_whole

pytestmark = pytest.mark.slow

Run = Callable[..., None]


def run(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    for command in cli.cmd_init():
        command.subparser_init(subparsers).set_defaults(dispatch_function=command.cmd)
    args = parser.parse_args(arguments)
    args.dispatch_function(args)


@pytest.fixture(scope="module")
def local(served_model: Path) -> Iterator[list[str]]:
    """Options of an engine in this process, which is started once for all commands."""
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.entrypoints.speech.cli import local as module

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    engine = module.LocalEngine(str(served_model), "float32")
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "LocalEngine", lambda model, dtype: engine)
    yield ["--model", str(served_model)]
    patch.undo()
    engine.close()
    gc.collect()
    cleanup_dist_env_and_memory()


def engine_of(local: list[str]) -> Any:
    """Upstream's engine, which all commands share."""
    from vllm.entrypoints.speech.cli import local as module

    return module.LocalEngine(local[-1], "float32")._engine


@pytest.fixture
def remote(server: Server) -> list[str]:
    """Options of the server."""
    return ["--url", server.url, "--api-key", API_KEY]


def speak_to(path: Path, *options: str) -> bytes:
    run("speak", "hello there", "-o", str(path), "--seed", "1", "--max-tokens", "20", *options)
    return path.read_bytes()


def test_a_file_is_complete_and_the_same_from_both(
    local: list[str], remote: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = speak_to(tmp_path / "here.wav", *local)
    assert f"wrote {tmp_path / 'here.wav'}" in capsys.readouterr().out
    with wave.open(io.BytesIO(here)) as file:
        assert file.getnframes() == 20 * SAMPLES_PER_FRAME
    there = speak_to(tmp_path / "there.wav", *remote, "--model", MODEL_NAME)
    assert there[:44] == here[:44]
    samples = [np.frombuffer(data[44:], "<i2").astype(int) for data in (here, there)]
    assert np.abs(samples[0] - samples[1]).max() <= 1


def test_a_file_s_name_says_its_format(local: list[str], tmp_path: Path) -> None:
    for suffix, begin in ((".flac", b"fLaC"), (".ogg", b"OggS"), (".raw", b"")):
        data = speak_to(tmp_path / f"speech{suffix}", *local)
        assert data.startswith(begin)
        if suffix == ".flac":
            assert soundfile.info(tmp_path / "speech.flac").frames == 20 * SAMPLES_PER_FRAME
        if suffix == ".raw":
            assert len(data) == 2 * 20 * SAMPLES_PER_FRAME
    other = speak_to(tmp_path / "speech", *local, "--format", "flac", "--voice", "joe")
    assert other.startswith(b"fLaC")
    assert other != speak_to(tmp_path / "other", *local, "--format", "flac", "--voice", "kate")


def test_standard_output_holds_the_audio_alone(
    local: list[str], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    expected = speak_to(tmp_path / "speech.raw", *local)
    capfdbinary.readouterr()
    options = ["--seed", "1", "--max-tokens", "20", "--format", "pcm"]
    run("speak", "hello there", "-o", "-", *options, *local)
    assert capfdbinary.readouterr().out == expected


def test_standard_input_becomes_one_file_the_same_from_both(
    local: list[str], remote: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--seed", "1", "--max-tokens", "20", "--voice", "joe"]
    said = ["Hello there.", "What a day", "and a night"]
    files = []
    for name, place in (("here", local), ("there", remote)):
        (tmp_path / "text").write_text(f"{said[0]} {said[1]}\n\n{said[2]}")
        with (tmp_path / "text").open() as lines, monkeypatch.context() as once:
            once.setattr("sys.stdin", lines)
            run("speak", "--stdin", "-o", str(tmp_path / f"{name}.wav"), *options, *place)
        files.append((tmp_path / f"{name}.wav").read_bytes())
    expected = b""
    for text in said:
        run("speak", text, "-o", str(tmp_path / "one.pcm"), *options, *local)
        expected += (tmp_path / "one.pcm").read_bytes()
    assert files[0][:44] == files[1][:44] and files[0][44:] == expected
    samples = [np.frombuffer(data[44:], "<i2").astype(int) for data in files]
    assert np.abs(samples[0] - samples[1]).max() <= 1
    with pytest.raises(SystemExit, match="--stdin does not go with TEXT"):
        run("speak", "--stdin", "hi", *local)


def test_guidance_changes_the_speech_and_takes_two_lanes(
    local: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = engine_of(local).model_executor
    worker = executor.driver_worker.worker.model_runner.adapter.worker
    sample, lanes = worker.sample, []

    def watch(*arguments: Any) -> Any:
        if worker._guidance is not None:
            lanes.append([len(group.lane_ids) for group in worker._guidance.groups])
        return sample(*arguments)

    monkeypatch.setattr(worker, "sample", watch)
    spoken = []
    for scale, more in (("1", []), ("3", []), ("3.0", []), ("3", ["--negative-prompt", "bye"])):
        lanes.clear()
        spoken.append(speak_to(tmp_path / "a", *local, "--guidance-scale", scale, *more))
        # The last of 4 streams runs 3 steps behind.
        assert lanes == ([] if scale == "1" else [[2]] * 23)
    plain, guided, again, negative = spoken
    assert guided == again
    assert len({plain, guided, negative}) == 3


def test_same_seed_same_file(local: list[str], tmp_path: Path) -> None:
    first, same, other = (
        speak_to(tmp_path / "a", *local, "--seed", seed) for seed in ("3", "3", "4")
    )
    assert first == same != other


def test_a_recording_is_a_voice_prompt(local: list[str], tmp_path: Path) -> None:
    seconds = np.arange(12000) / 24000
    tone = 0.3 * np.sin(2 * np.pi * 220 * seconds)
    files = [tmp_path / "high.wav", tmp_path / "low.wav"]
    soundfile.write(files[0], np.stack([tone, tone / 2], axis=1), 24000, subtype="PCM_24")
    soundfile.write(files[1], tone[::2], 24000)
    spoken = [speak_to(tmp_path / "a", *local, "--audio", str(file)) for file in files]
    assert len({*spoken, speak_to(tmp_path / "a", *local)}) == 3
    for data in spoken:
        with wave.open(io.BytesIO(data)) as file:
            assert file.getnframes() == 20 * SAMPLES_PER_FRAME


def test_a_recording_is_a_voice(
    local: list[str], remote: list[str], voices: Path, tmp_path: Path
) -> None:
    (tmp_path / "zoe.wav").write_bytes(recording())
    given = ["--ref-audio", str(tmp_path / "zoe.wav"), "--ref-text", SAID, "--temperature", "0.5"]
    here = speak_to(tmp_path / "here.raw", *local, *given)
    folder = ["--voices", str(voices), "--voice", RECORDED]
    assert speak_to(tmp_path / "here.raw", *local, *folder) == here
    there = speak_to(tmp_path / "there.raw", *remote, *given)
    samples = [np.frombuffer(data, "<i2").astype(int) for data in (here, there)]
    assert np.abs(samples[0] - samples[1]).max() <= 1
    without = [speak_to(tmp_path / "a.raw", *local, *given[:2], *given[4:])]
    without.append(speak_to(tmp_path / "a.raw", *local, *given[4:]))
    assert len({here, *without}) == 3


def test_a_player_hears_the_audio(
    local: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = tmp_path / "heard.wav"
    players = (Player(("no-such-player",)), Player(("dd", "status=none", f"of={heard}")))
    monkeypatch.setattr(cli, "playing", lambda: playing(players))
    run("speak", "hello there", "--play", "--seed", "1", "--max-tokens", "20", *local)
    assert heard.read_bytes()[44:] == speak_to(tmp_path / "b.wav", *local)[44:]


@pytest.mark.parametrize("where", ["local", "remote"])
def test_transcription(
    where: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "clip.wav"
    noise = (np.random.default_rng(1).standard_normal(8000) / 10).astype(np.float32)
    path.write_bytes(encode_whole("wav", noise, 16000))
    run("transcribe", str(path), "--max-tokens", "15", *request.getfixturevalue(where))
    text = capfd.readouterr().out
    assert text.endswith("\n") and len(text) > 1
    assert all(c.isprintable() for c in text[:-1])


def test_errors_are_a_line(
    local: list[str], remote: list[str], tmp_path: Path, server: Server
) -> None:
    text = tmp_path / "clip.wav"
    text.write_text("no audio")
    out = str(tmp_path / "out.wav")
    Path(out).write_bytes(b"spoken before")
    for arguments, message in (
        (["speak", "hi", "-o", out, "--voice", "kal", *local], "voice must be one of"),
        (["speak", "hi", "-o", out, "--voice", "kal", *remote], "voice must be one of"),
        (["speak", "hi", "-o", out, "--task", "sing", *local], "task must be one of"),
        (["speak", "hi", "-o", out, "--url", server.url, "--api-key", "x"], "Unauthorized"),
        (["speak", "hi", "-o", out, "--url", "http://127.0.0.1:9"], "127.0.0.1:9/v1"),
        (["speak", "-o", out, *local], "give TEXT, --stdin, or a recording"),
        (["speak", "  ", "-o", out, *local], "text must"),
        (["speak", "-o", out, "--audio", str(text), *local], "must be a complete audio file"),
        (["speak", "hi", "-o", out, "--audio", "none.wav", *local], "No such file"),
        (["speak", "hi", "-o", out, "--audio", str(text), *remote], "--audio does not go with"),
        (["speak", "hi", "-o", out, "--ref-audio", "none.wav", *local], "No such file"),
        (["speak", "hi", "-o", out, "--ref-audio", str(text), *local], "must be a complete audio"),
        (["speak", "hi", "-o", out, "--ref-audio", str(text), *remote], "ref_audio must be a comp"),
        (["speak", "hi", "-o", out, "--ref-text", "hi", *local], "--ref-text must be given besid"),
        (
            ["speak", "hi", "-o", out, "--ref-audio", str(text), "--voice", "heart", *local],
            "--voice does not go with --ref-audio",
        ),
        (["speak", "hi", "-o", out, "--voices", "none", *local], "No such file"),
        (["speak", "hi", "-o", out, "--voices", str(text), *local], "Not a directory"),
        (
            ["speak", "hi", "-o", out, "--voices", str(tmp_path), *local],
            "--voices .*clip.wav must be a complete audio file",
        ),
        (["speak", "hi", "-o", out, "--voices", ".", *remote], "--voices does not go with --url"),
        (["speak", "hi", "-o", out, "--temperature", "nan", *local], "temperature must"),
        (["speak", "hi", "-o", out, "--max-tokens", "0", *local], "max_tokens must"),
        (["speak", "hi", "-o", out, "--guidance-scale", "-1", *local], "guidance_scale must"),
        (["speak", "hi", "-o", out, "--seed", str(2**63), *local], "seed must"),
        (["transcribe", str(text), *local], "must be a complete audio file"),
        (["transcribe", str(text), *remote], "must be a complete audio file"),
        (["transcribe", str(tmp_path / "none"), *local], "No such file"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(*arguments)
        assert Path(out).read_bytes() == b"spoken before"
    assert sorted(tmp_path.iterdir()) == [text, Path(out)]


def test_an_aborted_request_is_a_failure(
    local: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.engine.llm_engine import LLMEngine

    step, taken = LLMEngine.step, 0

    def aborted(engine: LLMEngine) -> list[Any]:
        nonlocal taken
        outputs: list[Any] = step(engine)
        taken += 1
        if taken == 5:
            for output in outputs:
                output.outputs[0].finish_reason = "abort"
        return outputs

    monkeypatch.setattr(LLMEngine, "step", aborted)
    with pytest.raises(SystemExit, match="aborted this request"):
        speak_to(tmp_path / "out.wav", *local)
    assert not list(tmp_path.iterdir())
    assert not engine_of(local).has_unfinished_requests()
    taken = 0
    (tmp_path / "clip.wav").write_bytes(encode_whole("wav", np.zeros(8000, np.float32), 16000))
    with pytest.raises(SystemExit, match="aborted this request"):
        run("transcribe", str(tmp_path / "clip.wav"), "--max-tokens", "9", *local)


def test_a_stream_gets_the_audio_as_it_is_made(local: list[str], tmp_path: Path) -> None:
    expected = speak_to(tmp_path / "out.raw", *local)
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stream:
        options = ["--seed", "1", "--max-tokens", "20", "--format", "pcm", *local]
        run("speak", "hello there", "-o", f"/dev/fd/{write}", *options)
        os.close(write)
        assert stream.read() == expected


def test_soundfile_reads_what_speak_wrote(local: list[str], tmp_path: Path) -> None:
    speak_to(tmp_path / "speech.wav", *local)
    samples, rate = soundfile.read(tmp_path / "speech.wav")
    assert (len(samples), rate) == (20 * SAMPLES_PER_FRAME, 16000)
