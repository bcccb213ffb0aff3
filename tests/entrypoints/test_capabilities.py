# SPDX-License-Identifier: Apache-2.0
"""What GET /v1/audio/capabilities says of models of several kinds, from their specifications."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.entrypoints.test_conversations import BAGPIPER
from tests.entrypoints.test_conversations import SPEC as OPUSLM
from vllm.entrypoints.speech.server import routes
from vllm.entrypoints.speech.server.endpoints import capabilities
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.spec import CodecSource, SpeechSpec, TaskPrompt, TextEncoderSpec
from vllm.unison.testing.random_checkpoint import (
    BEGIN_AUDIO,
    BEGIN_TEXT,
    SPEAKER,
    stream_layout,
)

LAYOUT = StreamLayout.from_dict(stream_layout(3))
SPEAK, WRITE = (BEGIN_TEXT, "text", BEGIN_AUDIO), (BEGIN_AUDIO, "audio", BEGIN_TEXT)
CODEC = CodecSource("codec")
SAID = ("text", "audio", "text+audio")


def found(spec: SpeechSpec, max_model_len: int = 1024, **defaults: Any) -> dict[str, Any]:
    return capabilities.capabilities(
        spec,
        {task.name: defaults for task in spec.tasks},
        model="speech",
        max_model_len=max_model_len,
        sample_rate=16000,
        channels=1,
    ).model_dump(mode="json")


def spec_of(*parts: tuple[Any, ...], **more: Any) -> SpeechSpec:
    tasks = tuple(TaskPrompt(f"task{index}", laid) for index, laid in enumerate(parts))
    return SpeechSpec(LAYOUT, codec=CODEC, tasks=tasks, **more)


def test_a_model_that_speaks_and_writes() -> None:
    spec = spec_of(SPEAK, WRITE, null_prompt=(BEGIN_TEXT, BEGIN_AUDIO), languages=("en",))
    assert found(spec, guidance_scale=1.5) == {
        "object": "audio.capabilities",
        "model": "speech",
        "sample_rate": 16000,
        "channels": 1,
        "speech": {"recording": "none", "reference_text": "none"},
        "generation": None,
        "transcription": True,
        "continuation": False,
        "chat": {
            "conversations": False,
            "answers": [
                {"inputs": ["text"], "output": "audio"},
                {"inputs": ["audio"], "output": "text"},
            ],
        },
        "guidance": {"default_scale": 1.5, "needs_negative_prompt": False},
        "languages": ["en"],
    }


def test_a_model_that_only_writes_has_nothing_to_guide() -> None:
    only = found(spec_of(WRITE))
    assert (only["speech"], only["generation"], only["guidance"]) == (None, None, None)
    assert only["transcription"]


@pytest.mark.parametrize(
    ("parts", "more", "expected"),
    [
        ((BEGIN_TEXT, "voice", "text", BEGIN_AUDIO), {"voices": {"slt": (6,)}}, ("none", "none")),
        ((BEGIN_TEXT, "voice", "text", BEGIN_AUDIO), {}, ("required", "none")),
        ((BEGIN_TEXT, (SPEAKER, "voice"), "text", BEGIN_AUDIO), {}, ("optional", "none")),
        (
            (BEGIN_TEXT, ("reference_text",), (SPEAKER, "voice"), "text", BEGIN_AUDIO),
            {},
            ("optional", "optional"),
        ),
        (
            (BEGIN_TEXT, "reference_text", "voice", "text", BEGIN_AUDIO),
            {},
            ("required", "required"),
        ),
    ],
)
def test_what_is_needed_of_a_recording(
    parts: tuple[Any, ...], more: dict[str, Any], expected: tuple[str, str]
) -> None:
    speech = found(spec_of(parts, **more))["speech"]
    assert (speech["recording"], speech["reference_text"]) == expected


def music_spec() -> SpeechSpec:
    return spec_of(
        ("encoder_text", BEGIN_AUDIO),
        ("encoder_text", BEGIN_AUDIO, "audio"),
        text_encoder=TextEncoderSpec(64, 50),
        frames_per_second=Fraction(50),
        null_prompt="same",
    )


@pytest.mark.parametrize(
    ("context", "max_tokens", "maximum", "default"),
    [(4096, 1500, 30.0, 30.0), (4096, 500, 30.0, 10.0), (103, 500, 2.0, 2.0)],
)
def test_audio_from_a_description_has_a_length_to_choose(
    context: int, max_tokens: int, maximum: float, default: float
) -> None:
    spec = music_spec()
    assert spec.layout.num_flush_steps == 2
    music = found(spec, context, max_tokens=max_tokens, guidance_scale=3.0)
    duration = {"minimum": 0.02, "maximum": maximum, "default": default}
    assert music["generation"] == {"duration": duration}
    assert (music["speech"], music["continuation"]) == (None, True)
    assert music["guidance"] == {"default_scale": 3.0, "needs_negative_prompt": False}


def test_a_model_without_a_null_prompt_is_guided_by_a_negative_prompt_alone() -> None:
    guidance = found(spec_of(SPEAK))["guidance"]
    assert guidance == {"default_scale": 1.0, "needs_negative_prompt": True}


def test_questions_about_a_recording_are_listed() -> None:
    question = (BEGIN_AUDIO, "audio", BEGIN_TEXT, "text", BEGIN_TEXT)
    answers = found(spec_of(WRITE, question))["chat"]["answers"]
    assert {"inputs": ["text", "audio"], "output": "text"} in answers


def test_the_route_answers_and_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(SPEAK)
    monkeypatch.setattr(routes, "multistream_spec", lambda config: spec)
    monkeypatch.setattr(capabilities, "task_defaults", lambda config: {"task0": {}})
    app = FastAPI()
    config: Any = SimpleNamespace(max_model_len=1024)
    routes.register_speech_routes(app, config)
    app.state.speech_service = SimpleNamespace(
        spec=spec,
        model_config=config,
        models=SimpleNamespace(base_model_paths=[SimpleNamespace(name="mine")]),
        sample_rate=0,
        num_channels=1,
    )
    client = TestClient(app)
    said = client.get("/v1/audio/capabilities").json()
    assert (said["model"], said["sample_rate"], said["channels"]) == ("mine", None, None)
    operation = client.get("/openapi.json").json()["paths"]["/v1/audio/capabilities"]["get"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema["$ref"].endswith("/Capabilities")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            BAGPIPER,
            {("text", "audio"), ("text", "text"), ("audio", "text"), ("text+audio", "text")},
        ),
        (OPUSLM, {(said, made) for said in SAID for made in ("text", "audio")}),
    ],
    ids=["Bagpiper", "OpusLM"],
)
def test_how_a_conversation_is_answered(spec: SpeechSpec, expected: set[tuple[str, str]]) -> None:
    chat = found(spec)["chat"]
    assert chat["conversations"]
    assert {("+".join(a["inputs"]), a["output"]) for a in chat["answers"]} == expected
