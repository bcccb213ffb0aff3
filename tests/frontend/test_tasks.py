# SPDX-License-Identifier: Apache-2.0
"""Which task serves a request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.support.random_layouts import example
from vllm.unison.frontend.errors import InvalidRequestError, reports_invalid_request
from vllm.unison.frontend.tasks import FieldNames, choose_task, emits, emits_first
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.spec import CodecSource, SpeechSpec, TaskPrompt
from vllm.unison.testing.random_checkpoint import (
    BEGIN_AUDIO,
    BEGIN_TEXT,
    SPEAKER,
    default_tasks,
    stream_layout,
)


def spec_of(text_then_audio: bool = False, **more: tuple[Any, ...]) -> SpeechSpec:
    layout = StreamLayout.from_dict(stream_layout(3, text_then_audio=text_then_audio))
    tasks = {name: tuple(parts) for name, parts in default_tasks().items()} | more
    return SpeechSpec(layout, tasks=tuple(TaskPrompt(name, parts) for name, parts in tasks.items()))


def test_what_a_task_emits_follows_from_its_last_begin_token_and_the_phases() -> None:
    spec = spec_of()
    by_name = {task.name: task for task in spec.tasks}
    assert emits(spec.layout, by_name["text_to_speech"]) == {"audio"}
    assert emits(spec.layout, by_name["speech_to_text"]) == {"text"}
    assert emits_first(spec.layout, by_name["text_to_speech"]) == "audio"
    assert emits_first(spec.layout, by_name["speech_to_text"]) == "text"
    spec = spec_of(text_then_audio=True)
    assert emits(spec.layout, spec.tasks[1]) == {"text", "audio"}


@pytest.mark.parametrize(
    ("inputs", "modalities", "name"),
    [
        (["text"], ["audio"], "text_to_speech"),
        (["audio"], ["text"], "speech_to_text"),
        (["text", "audio"], ["audio"], "voice_prompted_speech"),
    ],
)
def test_the_task_that_fits_is_chosen(inputs: list[str], modalities: list[str], name: str) -> None:
    assert choose_task(spec_of(), inputs, modalities).name == name


def test_a_task_that_emits_only_what_is_wanted_comes_first() -> None:
    spec = spec_of(True, answer=(BEGIN_TEXT, "text"))
    assert choose_task(spec, ["text"], ["audio"]).name == "text_to_speech"
    assert choose_task(spec, ["text"], ["text", "audio"]).name == "answer"
    assert choose_task(spec, ["audio"], ["audio"]).name == "speech_to_text"


def test_audio_that_is_not_wanted_is_not_made() -> None:
    with pytest.raises(
        InvalidRequestError, match="audio: the model has no task from audio to text; it"
    ):
        choose_task(spec_of(True), ["audio"], ["text"])
    with pytest.raises(
        InvalidRequestError, match="prompt: the model has no task from text to text"
    ):
        choose_task(spec_of(), ["text"], ["text"])


@pytest.mark.parametrize(
    ("name", "inputs", "modalities", "message"),
    [
        ("text_to_speech", ["text"], ["text"], "makes audio, but the request wants text"),
        ("text_to_speech", ["audio"], ["audio"], "needs text, but the request gives audio"),
        ("text_to_speech", [], None, "needs text, but the request gives nothing"),
        ("speech_to_text", ["audio"], ["audio"], "makes text, but the request wants audio"),
        ("speech_to_text", ["audio"], ["text", "audio"], "makes text, but .* text and audio"),
        ("voice_prompted_speech", ["text"], ["audio"], "needs text and audio, but .* gives text"),
        ("sing", ["text"], ["audio"], "^task must be one of .*, not 'sing'"),
    ],
)
def test_a_named_task_must_fit_what_is_given_and_wanted(
    name: str, inputs: list[str], modalities: list[str] | None, message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        choose_task(spec_of(), inputs, modalities, name=name)
    assert caught.value.parameter == "task"


def test_a_named_task_may_write_text_on_its_way_to_audio() -> None:
    spec = spec_of(True)
    assert choose_task(spec, ["audio"], ["audio"], name="speech_to_text").name == "speech_to_text"
    with pytest.raises(
        InvalidRequestError, match="makes text and audio, but the request wants text"
    ):
        choose_task(spec, ["audio"], ["text"], name="speech_to_text")


def test_the_field_to_change_is_blamed_when_no_task_fits() -> None:
    fields = FieldNames("messages[0].content", "messages[0].content[1]", "modalities")
    for inputs, modalities, field in (
        (["text"], ["text"], "modalities"),
        (["audio"], ["audio"], "modalities"),
        (["text", "audio"], ["text"], "modalities"),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            choose_task(spec_of(), inputs, modalities, fields=fields)
        assert caught.value.parameter == field
    one_task = SpeechSpec(spec_of().layout, tasks=spec_of().tasks[:1])
    with pytest.raises(InvalidRequestError) as caught:
        choose_task(one_task, ["text", "audio"], ["audio"], fields=fields)
    assert caught.value.parameter == "messages[0].content[1]"


def test_an_engine_s_error_is_told_in_the_request_s_words() -> None:
    fields = FieldNames(text="input", voice="audio.voice")
    for message, told, field in (
        ("prompt has 9 tokens", "input has 9 tokens", "input"),
        ("voice must be one", "audio.voice must be one", "audio.voice"),
        ("prompts are", "prompts are", "prompts"),
        ("negative_prompt must", "negative_prompt must", "negative_prompt"),
        ("Prompt is", "Prompt is", None),
    ):
        renamed = fields.rename(InvalidRequestError(message))
        assert (str(renamed), renamed.parameter) == (told, field)


def test_a_voice_prefers_a_task_that_takes_one() -> None:
    spec = spec_of(voiced=(BEGIN_TEXT, SPEAKER, "voice", "text", BEGIN_AUDIO))
    assert choose_task(spec, ["text"], ["audio"]).name == "text_to_speech"
    assert choose_task(spec, ["text"], ["audio"], voice=True).name == "voiced"


def test_a_prompt_without_begin_tokens_starts_in_the_first_phase() -> None:
    layout = StreamLayout.from_dict(example())
    first = layout.phases[0].kind.name.lower()
    assert emits_first(layout, TaskPrompt("plain", ("text",))) == first


def test_a_refusal_is_a_value_error_that_names_its_field() -> None:
    @reports_invalid_request
    def refuse(message: str) -> None:
        raise ValueError(message)

    for message, field in (
        ("top_k must be 1", "top_k"),
        ("seed: no", "seed"),
        ("Prompt must", None),
        ("guidance_lanes[1] must", "guidance_lanes[1]"),
        (
            "messages[0].content[12].input_audio.data must",
            "messages[0].content[12].input_audio.data",
        ),
        ("include[] must", "include[]"),
    ):
        with pytest.raises(ValueError) as caught:
            refuse(message)
        assert isinstance(caught.value, InvalidRequestError)
        assert (str(caught.value), caught.value.parameter) == (message, field)
    with pytest.raises(InvalidRequestError) as inner:
        reports_invalid_request(lambda: refuse("a must"))()
    assert inner.value.parameter == "a"


def test_a_recording_s_voice_decides_between_tasks() -> None:
    spec = spec_of(like=(SPEAKER, "voice", BEGIN_TEXT, "text", BEGIN_AUDIO))
    assert choose_task(spec, ["text"], ["audio"]).name == "text_to_speech"
    assert choose_task(spec, ["text"], ["audio"], voice=True).name == "like"
    with pytest.raises(InvalidRequestError, match=r"^sound must be given: task 'like' speaks with"):
        choose_task(spec, ["text"], None, name="like", fields=FieldNames(voice="sound"))
    with pytest.raises(InvalidRequestError, match=r"^words must not be given: task 'like' has no"):
        choose_task(
            spec,
            ["text"],
            None,
            voice=True,
            reference_text=True,
            fields=FieldNames(reference_text="words"),
        )


def test_a_place_for_names_is_none_for_recordings() -> None:
    named = TaskPrompt("named", ("voice", BEGIN_TEXT, "text", BEGIN_AUDIO))
    both = TaskPrompt("both", ((SPEAKER, "reference_text"), *named.parts))
    spec = replace(spec_of(), codec=CodecSource("codec"), tasks=(named, both))
    assert choose_task(spec, ["text"], None, voice=True, recording=True).name == "named"
    spec = replace(spec, voices={"slt": (6,)})
    assert choose_task(spec, ["text"], None, voice=True).name == "named"
    assert choose_task(spec, ["text"], None, voice=True, recording=True).name == "both"
    for other in (replace(spec, tasks=(named,)), replace(spec, codec=None)):
        with pytest.raises(
            InvalidRequestError, match=r"^voice must not be given: task 'named' has no place for "
        ):
            choose_task(other, ["text"], None, voice=True, recording=True)


def test_what_may_be_given_need_not_be() -> None:
    spec = spec_of(both=(SPEAKER, ("audio", BEGIN_TEXT), "text", "flush", BEGIN_AUDIO))
    for inputs in (["text"], ["text", "audio"]):
        assert choose_task(spec, inputs, ["audio"], name="both").name == "both"
    with pytest.raises(InvalidRequestError, match=r"task 'both' needs text, but the request"):
        choose_task(spec, ["audio"], ["audio"], name="both")
