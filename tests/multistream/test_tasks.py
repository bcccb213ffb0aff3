# SPDX-License-Identifier: Apache-2.0
"""Which task serves a request."""

from __future__ import annotations

import pytest

from tests.multistream.random_layouts import example
from vllm.multistream.layout import StreamLayout
from vllm.multistream.random_checkpoint import (
    BEGIN_AUDIO,
    BEGIN_TEXT,
    SPEAKER,
    default_tasks,
    stream_layout,
)
from vllm.multistream.refusal import RequestRefused, refuses
from vllm.multistream.spec import SpeechSpec, TaskPrompt
from vllm.multistream.tasks import choose_task, emits, emits_first


def spec_of(text_then_audio: bool = False, **more: tuple[int | str, ...]) -> SpeechSpec:
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
    ("given", "wanted", "name"),
    [
        (["text"], ["audio"], "text_to_speech"),
        (["audio"], ["text"], "speech_to_text"),
        (["text", "audio"], ["audio"], "voice_prompted_speech"),
    ],
)
def test_the_task_that_fits_is_chosen(given: list[str], wanted: list[str], name: str) -> None:
    assert choose_task(spec_of(), given, wanted) == name


def test_a_task_that_emits_only_what_is_wanted_comes_first() -> None:
    spec = spec_of(True, answer=(BEGIN_TEXT, "text"))
    assert choose_task(spec, ["text"], ["audio"]) == "text_to_speech"
    assert choose_task(spec, ["text"], ["text", "audio"]) == "answer"
    assert choose_task(spec, ["audio"], ["audio"]) == "speech_to_text"


def test_audio_that_is_not_wanted_is_not_made() -> None:
    with pytest.raises(RequestRefused, match="task: the model has none from audio to text; it has"):
        choose_task(spec_of(True), ["audio"], ["text"])
    with pytest.raises(RequestRefused, match="none from text to text"):
        choose_task(spec_of(), ["text"], ["text"])


def test_a_voice_prefers_a_task_that_takes_one() -> None:
    spec = spec_of(voiced=(BEGIN_TEXT, SPEAKER, "voice", "text", BEGIN_AUDIO))
    assert choose_task(spec, ["text"], ["audio"]) == "text_to_speech"
    assert choose_task(spec, ["text"], ["audio"], voice=True) == "voiced"


def test_a_prompt_without_begin_tokens_starts_in_the_first_phase() -> None:
    layout = StreamLayout.from_dict(example())
    first = layout.phases[0].kind.name.lower()
    assert emits_first(layout, TaskPrompt("plain", ("text",))) == first


def test_a_refusal_is_a_value_error_that_names_its_field() -> None:
    @refuses
    def refuse(message: str) -> None:
        raise ValueError(message)

    for message, field in (
        ("top_k must be 1", "top_k"),
        ("seed: no", "seed"),
        ("Prompt must", None),
        ("guidance_lanes[1] must", "guidance_lanes"),
    ):
        with pytest.raises(ValueError) as caught:
            refuse(message)
        assert isinstance(caught.value, RequestRefused)
        assert (str(caught.value), caught.value.parameter) == (message, field)
    with pytest.raises(RequestRefused) as inner:
        refuses(lambda: refuse("a must"))()
    assert inner.value.parameter == "a"
