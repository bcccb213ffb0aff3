# SPDX-License-Identifier: Apache-2.0
"""POST /v1/audio/generations, whose engine is made up: which requests it starts, and what it
answers with."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import wave
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.entrypoints.test_generation import Engine, begun, failed, output
from vllm.entrypoints.speech.encoding import make_encoder, pcm16
from vllm.entrypoints.speech.parameters import SpeechInput, plan_request
from vllm.entrypoints.speech.server.endpoints.generations import create_generation
from vllm.entrypoints.speech.server.endpoints.speech import create_speech
from vllm.entrypoints.speech.server.schemas import GenerationRequest, SpeechRequest
from vllm.entrypoints.speech.server.service import Generation, SpeechService
from vllm.exceptions import GenerationError
from vllm.unison.formats.musicgen_spec import spec_of_format
from vllm.unison.frontend.errors import InvalidRequestError
from vllm.unison.messages.streams import AudioOutput
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.spec import SpeechSpec, TaskPrompt
from vllm.unison.testing.random_checkpoint import default_tasks, stream_layout

RATE = 32000


def music(seed: int, num_pieces: int = 2) -> list[np.ndarray]:
    """Pieces of stereo."""
    source = np.random.default_rng(seed)
    return [source.uniform(-1, 1, (640, 2)).astype(np.float32) for _ in range(num_pieces)]


def engine(seed: int) -> Engine:
    """A request that makes `music`."""
    outputs = []
    for piece in music(seed):
        made = output(tokens=[3])
        made.outputs[0].audio = AudioOutput(piece, RATE, np.zeros((1, 8), np.int32))
        outputs.append(made)
    return Engine(*outputs, output(finish_reason="length"))


class Service:
    """What the route asks of the server's service; starts made-up requests."""

    sample_rate, num_channels = RATE, 2

    def __init__(self, *engines: Engine) -> None:
        self.engines = list(engines)
        self.started: list[SpeechInput] = []
        self.checked: list[str | None] = []

    def check(self, model: str | None) -> str:
        self.checked.append(model)
        return "music"

    def encoder(self, audio_format: str, is_whole: bool = False) -> Any:
        return make_encoder(audio_format, self.sample_rate, is_whole, self.num_channels)

    async def start(self, raw_request: Any, prefix: str, request: SpeechInput) -> Generation:
        self.started.append(request)
        return await begun(self.engines.pop(0))

    async def start_all(
        self, raw_request: Any, prefix: str, requests: Sequence[SpeechInput]
    ) -> list[Generation]:
        return [await self.start(raw_request, prefix, request) for request in requests]


def answer(service: Service, **fields: Any) -> Any:
    """The response, and its body."""
    request = GenerationRequest(prompt="lo-fi beat", **fields)

    async def run() -> Any:
        made: Any = await create_generation(service, request, SimpleNamespace())  # type: ignore[arg-type]
        if not hasattr(made, "body_iterator"):
            return made, made.body
        pieces = [piece async for piece in made.body_iterator]
        return made, b"".join(p if isinstance(p, bytes) else p.encode() for p in pieces)

    return asyncio.run(run())


def read_wav(data: bytes) -> tuple[int, int, int, bytes]:
    with wave.open(io.BytesIO(data)) as file:
        shape = file.getnchannels(), file.getframerate(), file.getnframes()
        return *shape, file.readframes(file.getnframes())


def test_one_clip_is_streamed_as_speech_is() -> None:
    service = Service(engine(1))
    response, body = answer(service, response_format="pcm", model="music")
    assert response.media_type == "audio/pcm; rate=32000; channels=2"
    assert body == b"".join(pcm16(piece) for piece in music(1))
    assert service.checked == ["music"]
    (request,) = service.started
    assert (request.text, request.modalities) == ("lo-fi beat", frozenset({"audio"}))
    assert (request.duration, request.voice, dict(request.sampling)) == (None, None, {})
    _, events = answer(Service(engine(1)), response_format="pcm", stream_format="sse")
    assert events.count(b"speech.audio.delta") == 2 and b"speech.audio.done" in events


def test_one_clip_as_a_whole_file() -> None:
    response, body = answer(Service(engine(2)), stream=False)
    assert response.media_type == "audio/wav"
    assert read_wav(body) == (2, RATE, 1280, pcm16(np.concatenate(music(2))))


def test_several_clips_come_as_json() -> None:
    service = Service(*map(engine, (1, 2, 3)))
    fields = {"n": 3, "seed": 7, "guidance_scale": 2.0, "negative_prompt": "noise", "duration": 1.5}
    response, _ = answer(service, **fields)
    body = json.loads(response.body)
    assert (body["output_format"], body["sample_rate"], body["channels"]) == ("wav", RATE, 2)
    assert body["created"] > 0 and len(body["data"]) == 3
    for seed, clip in enumerate(body["data"], 1):
        data = base64.b64decode(clip["b64_json"])
        assert read_wav(data) == (2, RATE, 1280, pcm16(np.concatenate(music(seed))))
    assert body["usage"]["input_tokens"] == 3 * 7
    details = body["usage"]["output_token_details"]
    assert (details["audio_tokens"], details["audio_seconds"]) == (6, pytest.approx(3 * 0.04))
    for index, request in enumerate(service.started):
        assert request.duration == 1.5
        assert dict(request.sampling) == {
            "seed": 7 + index, "guidance_scale": 2.0, "negative_prompt": "noise",
        }  # fmt: skip
    service = Service(*map(engine, (1, 2)))
    answer(service, n=2)
    assert [dict(request.sampling) for request in service.started] == [{}, {}]


def test_a_clip_that_fails_ends_the_others() -> None:
    left: set[Engine] = set()

    class Endless(Engine):
        async def generate(self) -> AsyncGenerator[Any, None]:
            try:
                while True:
                    await asyncio.sleep(0)
                    yield output(tokens=[3])
            except (asyncio.CancelledError, GeneratorExit):
                left.add(self)
                raise

    first, last = Endless(), Endless()
    broken = Engine(output(tokens=[3]), output(tokens=[3]), failed("error"))
    with pytest.raises(GenerationError):
        answer(Service(first, broken, last), n=3)
    assert left == {first, last}


def test_speech_takes_a_duration_too() -> None:
    service = Service(engine(1))
    request = SpeechRequest(input="lo-fi beat", duration=2.5)
    asyncio.run(create_speech(service, request, SimpleNamespace()))  # type: ignore[arg-type]
    assert [(one.text, one.duration) for one in service.started] == [("lo-fi beat", 2.5)]


def spec_of_music() -> SpeechSpec:
    from tests.support.musicgen import tiny_config
    from vllm.unison.formats.musicgen import musicgen_format

    return spec_of_format(musicgen_format(tiny_config().to_dict()))


def test_a_duration_goes_to_models_that_take_one() -> None:
    spec = spec_of_music()
    assert spec.frames_per_second == Fraction(50)
    defaults: dict[str, dict[str, Any]] = {task.name: {} for task in spec.tasks}
    wanted = SpeechInput(frozenset({"audio"}), text="lo-fi beat", duration=2.5)
    prompt, params = plan_request(spec, defaults, wanted)
    assert prompt["prompt"] == "lo-fi beat"
    assert prompt["mm_processor_kwargs"] == {"task": "generate", "duration": 2.5}
    assert params.max_tokens_is_default
    with pytest.raises(InvalidRequestError, match=r"^duration must not be given beside max_tokens"):
        plan_request(spec, defaults, replace(wanted, sampling={"max_tokens": 5}))
    speech = SpeechSpec(
        StreamLayout.from_dict(stream_layout(3)),
        tasks=tuple(TaskPrompt(name, tuple(parts)) for name, parts in default_tasks().items()),
    )
    with pytest.raises(InvalidRequestError, match=r"^duration must not be given: the model ends"):
        plan_request(speech, {"text_to_speech": {}}, wanted)


@pytest.mark.parametrize(("voice", "is_accepted"), [(None, True), ("default", True), ("a", False)])
def test_a_model_without_voices_has_its_default_only(voice: str | None, is_accepted: bool) -> None:
    spec = spec_of_music()
    defaults: dict[str, dict[str, Any]] = {task.name: {} for task in spec.tasks}
    wanted = SpeechInput(frozenset({"audio"}), text="lo-fi beat", voice=voice)
    if is_accepted:
        prompt, _ = plan_request(spec, defaults, wanted)
        assert prompt["mm_processor_kwargs"] == {"task": "generate"}
    else:
        with pytest.raises(InvalidRequestError, match=r"^voice must be one of \['default'\], not"):
            plan_request(spec, defaults, wanted)


def test_a_text_that_is_attended_to_counts_as_input() -> None:
    service: Any = SimpleNamespace(spec=spec_of_music())
    usage = SpeechService._prompt_usage(service, [16], [5, 6, 1], 0.0)
    assert (usage.prompt_tokens, usage.prompt_text_tokens, usage.prompt_frames) == (4, 3, 0)
