# SPDX-License-Identifier: Apache-2.0
"""Conversations over chat: which task answers them, what is passed on, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.support import bagpiper
from tests.support import opuslm as model
from vllm.entrypoints.speech.media import Clip
from vllm.entrypoints.speech.parameters import plan_request, prompt_seconds
from vllm.entrypoints.speech.server.endpoints import chat
from vllm.entrypoints.speech.server.schemas import ChatRequest
from vllm.transformers_utils.configs.bagpiper import BagpiperConfig
from vllm.transformers_utils.configs.opuslm import OpusLMConfig
from vllm.unison.formats.opuslm_spec import opuslm_spec
from vllm.unison.frontend.errors import InvalidRequestError
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.spec import SpeechSpec
from vllm.unison.testing.random_checkpoint import stream_layout


def wav(num_samples: int) -> str:
    file = io.BytesIO()
    soundfile.write(file, np.full(num_samples, 0.1, np.float32), 16000, format="wav")
    return base64.b64encode(file.getvalue()).decode()


SPEC = opuslm_spec(
    OpusLMConfig(special_tokens={name: index for index, name in model._SPECIAL.items()}), ""
)
DEFAULTS: dict[str, Any] = {task.name: {} for task in SPEC.tasks}
PLAIN = SpeechSpec(StreamLayout.from_dict(stream_layout(3)))
BAGPIPER = BagpiperConfig(
    backbone_config={"vocab_size": bagpiper.VOCABULARY},
    id_ranges={
        "text": [bagpiper.FIRST_TEXT, bagpiper.FIRST_CODE],
        "discrete_audio": [bagpiper.FIRST_CODE, bagpiper.VOCABULARY],
    },
    codebook_size=bagpiper.CODEBOOK_SIZE,
    decoding=bagpiper.DECODING,
    audio_encoder_config={"n_window": 50},
).speech_spec("")
USER, BEFORE = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "what"}


SYSTEM = {"role": "system", "content": "think first"}
HEARD = {"type": "input_audio", "input_audio": {"data": wav(800), "format": "wav"}}
ASKED = {"type": "text", "text": "what is it?"}


def chat_request(*messages: dict[str, Any], **fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": list(messages)} | fields)


@pytest.mark.parametrize(
    ("spec", "messages", "fields", "message"),
    [
        (PLAIN, [BEFORE, USER], {}, r"messages\[0\].role must be 'user', not 'assistant'"),
        (PLAIN, [USER, USER], {}, "messages must hold one message, not 2: the model has no task"),
        (SPEC, [USER, BEFORE], {}, r"messages\[1\].role must be 'user', not 'assistant': the last"),
        (
            SPEC,
            [BEFORE, USER],
            {"task": "text_to_speech"},
            r"messages\[0\].role must be 'user', .*: task 'text_to_speech' is none of",
        ),
    ],
)
def test_messages_that_are_refused(
    spec: SpeechSpec, messages: list[Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        chat.check_messages(spec, chat_request(*messages, **fields))


def test_conversations_that_are_accepted() -> None:
    chat.check_messages(PLAIN, chat_request(USER))
    chat.check_messages(SPEC, chat_request(USER, BEFORE, USER))
    chat.check_messages(SPEC, chat_request(USER, task="text_to_speech"))


async def read_clip(data: str, field: str) -> Clip:
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="float32")
    return Clip(samples[None], rate)


@pytest.mark.parametrize(
    ("modalities", "task"), [(["text"], "text_dialogue"), (["text", "audio"], "audio_dialogue")]
)
def test_all_messages_are_turns(modalities: list[str], task: str) -> None:
    service: Any = SimpleNamespace(clip=read_clip, spec=SPEC)
    request = chat_request(
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": " "}, HEARD]},
        BEFORE,
        USER,
        modalities=modalities,
        temperature=0.5,
    )
    inputs = asyncio.run(chat._conversation(service, request, set(modalities)))
    prompt, params = plan_request(SPEC, DEFAULTS, inputs)
    options = prompt["mm_processor_kwargs"]
    assert (prompt["prompt"], options["task"], params.temperature) == ("", task, 0.5)
    turns = options["messages"]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    assert turns[0]["content"] == [{"type": "text", "text": "be kind"}]
    (said,) = turns[1]["content"]
    assert prompt_seconds(prompt) == 0.05
    samples, rate = said["audio"]
    assert said["type"] == "audio" and samples.shape == (1, 800) and rate == 16000


def test_a_task_that_does_not_make_what_is_wanted() -> None:
    service: Any = SimpleNamespace(clip=read_clip, spec=SPEC)
    request = chat_request(USER, task="text_dialogue", modalities=["audio"])
    inputs = asyncio.run(chat._conversation(service, request, {"audio"}))
    with pytest.raises(InvalidRequestError, match="modalities: no conversation is answered with"):
        plan_request(SPEC, DEFAULTS, inputs)
    blank = chat_request({"role": "user", "content": [{"type": "text", "text": " "}]})
    with pytest.raises(InvalidRequestError, match=r"messages\[0\].content must hold text or"):
        asyncio.run(chat._conversation(service, blank, {"text"}))
    voiced = chat_request(USER, modalities=["audio"], audio={"voice": "default"})
    inputs = asyncio.run(chat._conversation(service, voiced, {"audio"}))
    assert plan_request(SPEC, DEFAULTS, inputs)[0]["mm_processor_kwargs"]["task"] == (
        "audio_dialogue"
    )


@pytest.mark.parametrize(
    ("messages", "fields", "task"),
    [
        ([USER], {}, "text_to_text"),
        ([SYSTEM, USER], {}, "text_to_text"),
        ([SYSTEM, USER], {"modalities": ["text", "audio"]}, "text_to_audio"),
        ([USER], {"modalities": ["audio"], "task": "caption_to_audio"}, "caption_to_audio"),
        ([SYSTEM, {"role": "user", "content": [HEARD]}], {}, "audio_to_text"),
        ([SYSTEM, {"role": "user", "content": [HEARD]}, USER], {}, "audio_and_text_to_text"),
        ([{"role": "user", "content": [ASKED, HEARD]}], {}, "audio_and_text_to_text"),
    ],
)
def test_what_bagpiper_hears_decides_its_task(
    messages: list[Any], fields: dict[str, Any], task: str
) -> None:
    prompt, params = plan_chat(messages, fields)
    options = prompt["mm_processor_kwargs"]
    assert options["task"] == task
    assert [turn["role"] for turn in options["messages"]] == [m["role"] for m in messages]
    assert params.temperature == BAGPIPER.generation_defaults[task]["temperature"]


@pytest.mark.parametrize(
    ("messages", "fields", "message"),
    [
        ([USER, BEFORE, USER], {}, r"^messages\[1\].role must be one of \['system', 'user'\]"),
        (
            [{"role": "user", "content": [HEARD]}],
            {"modalities": ["audio"]},
            "^modalities: no conversation is answered with audio; the model has {'audio_to_text'",
        ),
        ([USER], {"modalities": ["audio"], "task": "text_to_text"}, "^modalities: no conversation"),
        ([USER], {"task": "audio_to_text"}, "^task must be one of .* what the messages hold"),
    ],
)
def test_what_bagpiper_refuses(messages: list[Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        plan_chat(messages, fields)


def plan_chat(messages: list[Any], fields: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    service: Any = SimpleNamespace(clip=read_clip, spec=BAGPIPER)
    request = chat_request(*messages, **fields)
    chat.check_messages(BAGPIPER, request)
    modalities = set(request.modalities or ["text"])
    inputs = asyncio.run(chat._conversation(service, request, modalities))
    return plan_request(BAGPIPER, BAGPIPER.generation_defaults, inputs)
