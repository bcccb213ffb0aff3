# SPDX-License-Identifier: Apache-2.0
"""Requests that bring a recording of a voice, or name one of the operator's: what the engine is
asked for."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.entrypoints.test_generations import Service, engine
from vllm.entrypoints.speech.encoding import encode_whole
from vllm.entrypoints.speech.media import AudioLimits, Clip, MediaDecoder
from vllm.entrypoints.speech.parameters import (
    RecordedVoice,
    Recording,
    SpeechInput,
    plan_request,
    prompt_seconds,
)
from vllm.entrypoints.speech.server.endpoints.speech import create_speech
from vllm.entrypoints.speech.server.schemas import SpeechRequest
from vllm.entrypoints.speech.server.service import SpeechService
from vllm.unison.frontend.clip_encoder import KeptClip
from vllm.unison.frontend.errors import InvalidRequestError
from vllm.unison.frontend.tasks import FieldNames
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.spec import CodecSource, SpeechSpec, TaskPrompt
from vllm.unison.testing.random_checkpoint import stream_layout

RATE = 16000
AUDIO = (np.zeros((1, RATE // 2), np.float32), RATE)
REQUEST = SpeechInput(
    frozenset({"audio"}),
    text="hi",
    fields=FieldNames(text="input", voice="ref_audio", reference_text="ref_text"),
)
PLAIN: tuple[Any, ...] = (3, "text", 2)
OPTIONAL: tuple[Any, ...] = ((5, "reference_text"), (4, "voice"), 3, "text", 2)
ALONE: tuple[Any, ...] = ((4, "voice"), 3, "text", 2)
OF_NAMES: tuple[Any, ...] = ("voice", 3, "text", 2)
ADA = RecordedVoice(
    Recording(KeptClip(AUDIO), "good morning"), "Ada", "en", {"seed": 3, "temperature": 0.5}
)


def spec_of(*parts: Any) -> SpeechSpec:
    tasks = {f"task{index}": one for index, one in enumerate(parts)}
    return SpeechSpec(
        StreamLayout.from_dict(stream_layout(3)),
        tasks=tuple(TaskPrompt(name, one) for name, one in tasks.items()),
        voices={} if parts == (ALONE,) else {"slt": (6,)},
        codec=CodecSource("codec"),
        languages=("en", "de"),
    )


def plan(spec: SpeechSpec, request: SpeechInput) -> Any:
    defaults: dict[str, dict[str, Any]] = {
        task.name: {"temperature": 0.9, "top_k": 7} for task in spec.tasks
    }
    return plan_request(spec, defaults, request, {"nova": "ada"}, {"ada": ADA})


def test_a_recording_goes_to_the_task_with_a_place_for_it() -> None:
    spec = spec_of(PLAIN, OPTIONAL)
    prompt, _ = plan(spec, replace(REQUEST, recording=Recording(AUDIO, "good day")))
    assert prompt["mm_processor_kwargs"] == {"task": "task1", "reference_text": "good day"}
    assert prompt["multi_modal_data"] == {"voice": AUDIO}
    assert prompt_seconds(prompt) == 0.5
    prompt, _ = plan(spec, replace(REQUEST, recording=Recording(AUDIO)))
    assert prompt["mm_processor_kwargs"] == {"task": "task1"}
    prompt, _ = plan(spec, REQUEST)
    assert prompt["mm_processor_kwargs"] == {"task": "task0"} and "multi_modal_data" not in prompt
    assert prompt_seconds(prompt) == 0


@pytest.mark.parametrize("name", ["ada", "nova"])
def test_an_operator_s_voice_is_its_recording_with_its_text(name: str) -> None:
    request = replace(REQUEST, voice=name)
    prompt, params = plan(spec_of(OPTIONAL), request)
    assert prompt["mm_processor_kwargs"] == {"task": "task0", "reference_text": "good morning"}
    assert prompt["multi_modal_data"] == {"voice": ADA.recording.audio}
    assert prompt_seconds(prompt) == 0.5
    # Its defaults win over the task's, and what a request says over both.
    assert (params.seed, params.temperature, params.top_k) == (3, 0.5, 7)
    _, params = plan(spec_of(OPTIONAL), replace(request, sampling={"seed": 4}))
    assert (params.seed, params.temperature) == (4, 0.5)
    prompt, _ = plan(spec_of(ALONE), request)
    assert prompt["mm_processor_kwargs"] == {"task": "task0"}
    prompt, _ = plan(spec_of(OPTIONAL), replace(request, voice="slt"))
    assert prompt["mm_processor_kwargs"] == {"task": "task0", "voice": "slt"}
    assert "multi_modal_data" not in prompt


def test_an_operator_s_voice_speaks_its_language() -> None:
    french = replace(ADA, language="fr")
    request = replace(REQUEST, voice="ada")
    with pytest.raises(InvalidRequestError, match=r"language must be one of .*, not 'fr'"):
        plan_request(spec_of(OPTIONAL), {"task0": {}}, request, None, {"ada": french})
    request = replace(request, language="de")
    plan_request(spec_of(OPTIONAL), {"task0": {}}, request, None, {"ada": french})


@pytest.mark.parametrize(
    ("parts", "more", "message"),
    [
        (PLAIN, {}, "ref_audio must not be given: task 'task0' has no place for the rec"),
        (OF_NAMES, {}, "ref_audio must not be given: task 'task0' has no place for the recording"),
        (ALONE, {}, "ref_text must not be given: task 'task0' has no place for one"),
        (OPTIONAL, {"voice": "slt"}, "ref_audio must not be given beside the name of a voice"),
        (OPTIONAL, {"voice": "ada"}, "ref_audio must not be given beside the name of a voice"),
        (OPTIONAL, {"voice": "bob"}, "ref_audio must not be given beside the name of a voice"),
    ],
)
def test_refusals_name_the_field(parts: Any, more: dict[str, Any], message: str) -> None:
    request = replace(REQUEST, **({"recording": Recording(AUDIO, "good day")} | more))
    with pytest.raises(InvalidRequestError) as caught:
        plan(spec_of(parts), request)
    assert str(caught.value).startswith(message)
    assert caught.value.parameter == message.split()[0]


def test_default_names_no_voice_beside_a_recording() -> None:
    # OpenAI's clients must name a voice.
    recorded = replace(REQUEST, recording=Recording(AUDIO), voice="default")
    prompt, _ = plan(spec_of(OPTIONAL), recorded)
    assert set(prompt["multi_modal_data"]) == {"voice"}


class CloningService(Service):
    """What the route asks of the service, which decodes for real."""

    context_seconds = 1.0

    def __init__(self, *engines: Any) -> None:
        super().__init__(*engines)
        self.media = MediaDecoder(AudioLimits(100_000, 10, 10**6))

    async def clip(self, data: bytes | str, field: str) -> Clip:
        service: Any = self
        return await SpeechService.clip(service, data, field)


def speak(service: CloningService, **fields: Any) -> SpeechInput:
    request = SpeechRequest(input="hi", **fields)
    asyncio.run(create_speech(service, request, SimpleNamespace()))  # type: ignore[arg-type]
    return service.started[-1]


def test_a_file_is_the_same_recording_however_it_comes() -> None:
    tone = (0.3 * np.sin(np.arange(RATE // 2) / 20)).astype(np.float32)
    data = encode_whole("wav", tone, RATE)
    letters = base64.b64encode(data).decode()
    clips = []
    for sent in (data, letters, f"data:audio/wav;base64,{letters}"):
        started = speak(CloningService(engine(1)), ref_audio=sent, ref_text="good day")
        assert started.recording is not None and started.recording.text == "good day"
        assert (started.fields.voice, started.fields.reference_text) == ("ref_audio", "ref_text")
        audio: Any = started.recording.audio
        assert audio[0].shape == (1, RATE // 2) and audio[1] == RATE
        clips.append(audio[0].tobytes())
    assert len(set(clips)) == 1
    plain = speak(CloningService(engine(1)), voice="slt")
    assert (plain.recording, plain.voice, plain.fields.voice) == (None, "slt", "voice")


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ("no base64!", "ref_audio must be base64"),
        ("https://example.com/a.wav", "ref_audio must be base64"),
        ("data:audio/wav,AAAA", "ref_audio must begin with data:TYPE;base64, if it is a "),
        (b"no audio", "ref_audio must be "),
        (encode_whole("wav", np.zeros(0, np.float32), RATE), "ref_audio must have at least one "),
        (encode_whole("wav", np.zeros(RATE + 1, np.float32), RATE), "ref_audio must be at most 1 "),
        (b"x" * 100_001, "ref_audio must have at most 100000 bytes, not 100001"),
        (
            base64.b64encode(b"x" * 100_001).decode(),
            "ref_audio must have at most 100000 bytes",
        ),
    ],
)
def test_a_file_that_is_wrong_is_refused(sent: str | bytes, message: str) -> None:
    service = CloningService(engine(1))
    with pytest.raises(InvalidRequestError) as caught:
        speak(service, ref_audio=sent)
    assert str(caught.value).startswith(message)
    assert caught.value.parameter == "ref_audio" and not service.started
