# SPDX-License-Identifier: Apache-2.0
"""A folder of voices that the operator adds to those of a model (`--voices`).

NAME.wav, or a recording of another kind, is a voice; NAME.txt is what is said in it, and NAME.json,
which may be left out, has the voice's display name and its defaults. All of it is read at start: a
file that is wrong ends the server before it has begun, with the file's name.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm.entrypoints.speech.media import AudioLimits, decode_file
from vllm.entrypoints.speech.parameters import (
    DEFAULT_VOICE,
    RecordedVoice,
    Recording,
    check_language,
)
from vllm.logger import init_logger
from vllm.unison.codecs.of_model import codec_of
from vllm.unison.frontend.clip_encoder import KeptClip
from vllm.unison.frontend.tasks import takes_recording
from vllm.unison.messages.sampling_fields import RANGES, verify_range
from vllm.unison.model.spec import REFERENCE_TEXT, SpeechSpec

logger = init_logger(__name__)

FLAG = "--voices"
RECORDINGS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac")
TEXT, SETTINGS = ".txt", ".json"
MAX_TEXT = 4096
"""Characters of a transcript, as of the text of a request."""
MAX_NAME = 256
_MAX_TEXT_BYTES = 2**16


@dataclass(frozen=True)
class _Files:
    """The files of one voice."""

    recording: Path
    text: Path | None = None
    settings: Path | None = None


def read_voices(folder: Path, spec: SpeechSpec, max_model_len: int) -> dict[str, RecordedVoice]:
    """The voices of a folder, by name.

    Args:
        folder: see above; hidden files in it are left alone.
        spec: the specification of the model that is to speak with them.
        max_model_len: steps of its context, which a recording has to fit into.

    Raises:
        ValueError: naming the file, and what is accepted.
    """
    tasks = [task for task in spec.tasks if takes_recording(spec, task)]
    if not tasks:
        raise ValueError(
            f"{FLAG} must not be given: the model has no task with a place for the recording of a "
            "voice"
        )
    takes_text = any(task.takes_reference_text for task in tasks)
    needs_text = all(REFERENCE_TEXT in task.parts for task in tasks)
    codec = codec_of(spec, "cpu")
    limits = AudioLimits.from_environment(
        max_model_len * codec.samples_per_frame / codec.sample_rate
    )
    voices: dict[str, RecordedVoice] = {}
    for name, files in _files(folder).items():
        if name in spec.voices or name == DEFAULT_VOICE:
            raise _error(files.recording, f"has a name that is taken: {name!r}")
        if files.text is None and needs_text:
            raise _error(files.recording, f"needs what is said in it, in {name}{TEXT} beside it")
        text = None if files.text is None else _text(files.text)
        voices[name] = _voice(name, files, text, spec, limits)
        if text is not None and not takes_text:
            logger.info("%s is not used: the model speaks with recordings alone", files.text)
    return voices


def _voice(
    name: str, files: _Files, text: str | None, spec: SpeechSpec, limits: AudioLimits
) -> RecordedVoice:
    clip = decode_file(files.recording.read_bytes(), limits, f"{FLAG} {files.recording}")
    settings = {} if files.settings is None else _settings(files.settings, spec)
    display_name, language = settings.pop("name", name), settings.pop("language", None)
    audio = KeptClip((clip.samples, clip.sample_rate))
    return RecordedVoice(Recording(audio, text), display_name, language, settings)


def _files(folder: Path) -> dict[str, _Files]:
    """The files of each voice, by name."""
    if not folder.is_dir():
        raise ValueError(f"{FLAG} must be a folder, not {folder}")
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        suffix = path.suffix.lower()
        kind = "recording" if suffix in RECORDINGS else suffix
        if kind not in ("recording", TEXT, SETTINGS) or not path.is_file():
            accepted = ", ".join((*RECORDINGS, TEXT, SETTINGS))
            raise _error(path, f"must be a file of a voice, of {accepted}")
        # Some systems write the same letter as others do, but in other code points.
        name = unicodedata.normalize("NFC", path.stem)
        if not name.isprintable() or len(name) > MAX_NAME:
            raise _error(path, f"must have a printable name of at most {MAX_NAME} characters")
        known = found.setdefault(name, {})
        if kind in known:
            raise _error(path, f"must not lie beside {known[kind].name}: a voice has one of them")
        known[kind] = path
    for name, known in found.items():
        if "recording" not in known:
            raise _error(next(iter(known.values())), f"has no recording beside it, as {name}.wav")
    if not found:
        raise ValueError(f"{FLAG} {folder} holds no voices; one is NAME.wav with NAME{TEXT}")
    return {
        name: _Files(known["recording"], known.get(TEXT), known.get(SETTINGS))
        for name, known in found.items()
    }


def _text(path: Path) -> str:
    text = _read(path).strip()
    if not 0 < len(text) <= MAX_TEXT:
        raise _error(path, f"must hold 1 to {MAX_TEXT} characters, not {len(text)}")
    return text


def _read(path: Path) -> str:
    if path.stat().st_size > _MAX_TEXT_BYTES:
        raise _error(path, f"must have at most {_MAX_TEXT_BYTES} bytes")
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _error(path, "must be UTF-8") from error


def _settings(path: Path, spec: SpeechSpec) -> dict[str, Any]:
    """What NAME.json says: `name`, `language`, and sampling fields with their ranges."""
    try:
        values = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise _error(path, f"must be JSON: {error}") from error
    if not isinstance(values, Mapping):
        raise _error(path, "must be a JSON object")
    for name, value in values.items():
        try:
            _check(name, value, spec)
        except ValueError as error:
            raise _error(path, str(error)) from error
    return dict(values)


def _check(name: str, value: Any, spec: SpeechSpec) -> None:
    if name == "name":
        is_name = isinstance(value, str) and value.strip() and value.isprintable()
        if not is_name or len(value) > MAX_NAME:
            raise ValueError(f"name must be printable text of 1 to {MAX_NAME} characters")
    elif name == "language":
        if not isinstance(value, str):
            raise ValueError(f"language must be text, not {value!r}")
        check_language(spec, value)
    elif name in RANGES:
        verify_range(name, value)
    else:
        known = ["name", "language", *RANGES]
        raise ValueError(f"{name} must be one of {known}")


def _error(path: Path, words: str) -> ValueError:
    return ValueError(f"{FLAG} {path} {words}")
