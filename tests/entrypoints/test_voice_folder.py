# SPDX-License-Identifier: Apache-2.0
"""`--voices FOLDER`: what is read of a folder, and what is wrong with one, by the file's name."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vllm.entrypoints.launchers.run_batch import make_arg_parser
from vllm.entrypoints.speech import voice_folder
from vllm.entrypoints.speech.encoding import encode_whole
from vllm.entrypoints.speech.voice_folder import read_voices
from vllm.unison.frontend.clip_encoder import KeptClip
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.spec import CodecSource, SpeechSpec, TaskPrompt
from vllm.unison.testing.random_checkpoint import stream_layout
from vllm.utils.argparse_utils import FlexibleArgumentParser

RATE, CONTEXT = 16000, 50
TASKS: dict[str, tuple[Any, ...]] = {
    "both": ((5, "reference_text"), "voice", 3, "text", 2),
    "text is needed": (5, "reference_text", "voice", 3, "text", 2),
    "recording alone": ("voice", 3, "text", 2),
    "no voice": (3, "text", 2),
}


CODEC = CodecSource("codec")


def spec_of(task: str = "both", codec: CodecSource | None = CODEC) -> SpeechSpec:
    return SpeechSpec(
        StreamLayout.from_dict(stream_layout(3)),
        tasks=(TaskPrompt("speak", TASKS[task]),),
        voices={"slt": (6,)} if task != "recording alone" else {},
        codec=codec,
        languages=("en",),
    )


@pytest.fixture(autouse=True)
def codec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 50 frames a second: the context is a second of audio."""
    made = SimpleNamespace(samples_per_frame=320, sample_rate=RATE)
    monkeypatch.setattr(voice_folder, "codec_of", lambda spec, device: made)


def tone(seconds: float = 0.5) -> np.ndarray:
    return (0.3 * np.sin(np.arange(int(seconds * RATE)) / 20)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A voice with nothing wrong."""
    (tmp_path / "ada.wav").write_bytes(encode_whole("wav", tone(), RATE))
    (tmp_path / "ada.txt").write_text("\ufeffgood morning\n", "utf-8")
    return tmp_path


def read(folder: Path, task: str = "both") -> Any:
    return read_voices(folder, spec_of(task), CONTEXT)


def test_a_voice_is_its_recording_its_text_and_its_settings(folder: Path) -> None:
    (folder / "Bob Ü.FLAC").write_bytes(encode_whole("flac", tone(0.25), RATE))
    settings = {"name": "Bob the Builder", "language": "EN", "seed": 3, "temperature": 0.5}
    (folder / "Bob Ü.json").write_text(json.dumps(settings))
    (folder / ".DS_Store").write_bytes(b"\0")
    voices = read(folder)
    assert list(voices) == ["Bob Ü", "ada"]
    ada, bob = voices["ada"], voices["Bob Ü"]
    assert (ada.display_name, ada.language, ada.sampling) == ("ada", None, {})
    assert ada.recording.text == "good morning" and bob.recording.text is None
    assert isinstance(ada.recording.audio, KeptClip)
    samples, rate = ada.recording.audio.audio
    assert (samples.shape, rate) == ((1, RATE // 2), RATE)
    np.testing.assert_allclose(samples[0], tone(), atol=2**-15)
    assert (bob.display_name, bob.language) == ("Bob the Builder", "EN")
    assert bob.sampling == {"seed": 3, "temperature": 0.5}


def add(name: str, content: bytes | str = b"") -> Callable[[Path], None]:
    data = content if isinstance(content, bytes) else content.encode()

    def write(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return write


def wav(seconds: float) -> bytes:
    return encode_whole("wav", tone(seconds), RATE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add("ada.wav", b"RIFF"), "ada.wav must be a complete audio file"),
        (add("ada.wav", wav(1)[:-2000]), "ada.wav"),
        (add("ada.wav", wav(1.01)), "ada.wav must be at most 1 seconds long"),
        (add("ada.txt", " \n"), "ada.txt must hold 1 to 4096 characters, not 0"),
        (add("ada.txt", "x" * 4097), "ada.txt must hold 1 to 4096 characters, not 4097"),
        (add("ada.txt", b"\xff"), "ada.txt must be UTF-8"),
        (add("ada.txt", "x" * 70000), "ada.txt must have at most 65536 bytes"),
        (add("ada.json", "{"), "ada.json must be JSON"),
        (add("ada.json", "[]"), "ada.json must be a JSON object"),
        (add("ada.json", '{"mood": 1}'), "ada.json mood must be one of ['name', 'language', 'tem"),
        (add("ada.json", '{"seed": 1.5}'), "ada.json seed must be an integer in"),
        (add("ada.json", '{"guidance_scale": 101}'), "guidance_scale must be a number in [0, 100]"),
        (
            add("ada.json", '{"language": "de"}'),
            "ada.json language must be one of ['en'], not 'de'",
        ),
        (add("ada.json", '{"language": 5}'), "ada.json language must be text, not 5"),
        (add("ada.json", '{"name": " "}'), "ada.json name must be printable text"),
        (add("ada.mp3", wav(0.5)), "ada.wav must not lie beside ada.mp3"),
        (add("slt.wav", wav(0.5)), "slt.wav has a name that is taken: 'slt'"),
        (add("default.wav", wav(0.5)), "default.wav has a name that is taken: 'default'"),
        (add("bob.txt", "hi"), "bob.txt has no recording beside it, as bob.wav"),
        (add("README.md", "hi"), "README.md must be a file of a voice, of .wav, .flac"),
        (lambda folder: (folder / "more.wav").mkdir(), "more.wav must be a file of a voice"),
        (lambda folder: (folder / "ada.wav").unlink(), "ada.txt has no recording beside it"),
        (
            lambda folder: [path.unlink() for path in folder.iterdir()],
            "holds no voices; one is NAME.wav with NAME.txt",
        ),
    ],
)
def test_what_is_wrong_is_refused_by_the_file_s_name(
    folder: Path, change: Callable[[Path], Any], message: str
) -> None:
    change(folder)
    with pytest.raises(ValueError, match=r"^--voices ") as caught:
        read(folder)
    assert message in str(caught.value) and str(folder) in str(caught.value)


def test_a_folder_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--voices must be a folder, not .*nowhere"):
        read(tmp_path / "nowhere")


def test_the_model_must_have_a_place_for_recordings(folder: Path) -> None:
    for spec in (spec_of("no voice"), spec_of(codec=None)):
        with pytest.raises(ValueError, match=r"^--voices must not be given: the model has no task"):
            read_voices(folder, spec, CONTEXT)


def test_a_text_is_there_where_the_model_needs_it(folder: Path) -> None:
    assert set(read(folder, "text is needed")) == {"ada"}
    (folder / "ada.txt").unlink()
    assert set(read(folder, "both")) == {"ada"}
    with pytest.raises(ValueError, match=r"ada.wav needs what is said in it, in ada.txt beside it"):
        read(folder, "text is needed")


def test_a_text_that_is_not_used_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    with caplog.at_level(logging.INFO):
        read(folder, "both")
        assert not caplog.records
        assert set(read(folder, "recording alone")) == {"ada"}
    assert "ada.txt is not used: the model speaks with recordings alone" in caplog.text


def test_batches_take_the_flags_of_a_server() -> None:
    parser = make_arg_parser(FlexibleArgumentParser())
    files = ["-i", "in", "-o", "out", "--model", "m"]
    args = parser.parse_args([*files, "--voices", "folder", "--voice-alias", "alloy=slt"])
    assert (args.voices, args.voice_alias) == (Path("folder"), ["alloy=slt"])
    assert parser.parse_args(files).voices is None
