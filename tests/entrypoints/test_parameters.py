# SPDX-License-Identifier: Apache-2.0
"""Prompt and sampling parameters of a request: what it says wins, then what the files say."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vllm.entrypoints.speech.media import Clip
from vllm.entrypoints.speech.parameters import (
    SpeechInput,
    make_params,
    plan_request,
)
from vllm.entrypoints.speech.server.voices import add_voice_arguments, voice_aliases
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind
from vllm.unison.frontend.errors import InvalidRequestError
from vllm.unison.frontend.tasks import FieldNames
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.spec import SpeechSpec, TaskPrompt
from vllm.unison.testing.random_checkpoint import default_tasks, stream_layout

SPEECH, TEXT = "text_to_speech", "speech_to_text"


def spec_of(**defaults: dict[str, Any]) -> SpeechSpec:
    return SpeechSpec(
        StreamLayout.from_dict(stream_layout(3)),
        tasks=tuple(TaskPrompt(name, tuple(parts)) for name, parts in default_tasks().items()),
        voices={"slt": (6,)},
        generation_defaults=defaults,
    )


def test_what_a_request_says_wins() -> None:
    defaults = {"temperature": 0.7, "guidance_scale": 3.0, "stream_temperature": [0.5, 1.0, 1.0]}
    params = make_params(defaults, {})
    assert params.output_kind is RequestOutputKind.DELTA
    assert (params.temperature, params.guidance_scale) == (0.7, 3.0)
    assert params.stream_temperature == [0.5, 1.0, 1.0]
    params = make_params(defaults, {"temperature": 0.2, "guidance_scale": 1.0})
    assert (params.temperature, params.guidance_scale) == (0.2, 1.0)
    assert params.stream_temperature is None


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"top_p": 0.0}, "top_p"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"negative_prompt": "no"}, "negative_prompt"),
        ({"negative_prompt": "no", "guidance_scale": 1.0}, "negative_prompt"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_refusals_name_the_field(given: dict[str, Any], field: str) -> None:
    with pytest.raises(VLLMValidationError, match=field) as caught:
        make_params({}, given)
    assert caught.value.parameter == field


def test_a_plan_is_a_prompt_for_the_task_that_fits() -> None:
    spec = spec_of()
    defaults: dict[str, dict[str, Any]] = {name: {} for name in default_tasks()}
    audio, text = frozenset({"audio"}), frozenset({"text"})
    prompt, _ = plan_request(spec, defaults, SpeechInput(audio, text="hi"))
    assert prompt == {"prompt": "hi", "mm_processor_kwargs": {"task": SPEECH}}
    clip = Clip(np.zeros((1, 4), np.float32), 16000)
    prompt, _ = plan_request(spec, defaults, SpeechInput(text, clip=clip))
    assert prompt["mm_processor_kwargs"] == {"task": TEXT} and prompt["prompt"] == ""
    assert prompt["multi_modal_data"]["audio"] == (clip.samples, 16000)
    request = SpeechInput(audio, text="hi", task="voice_prompted_speech", clip=clip)
    prompt, _ = plan_request(spec, defaults, request)
    assert prompt["mm_processor_kwargs"] == {"task": "voice_prompted_speech"}
    with pytest.raises(
        InvalidRequestError, match="voice must not be given: task 'voice_prompted_spe"
    ):
        plan_request(spec, defaults, replace(request, voice="slt"))
    # A model without a voice of that name has its default.
    prompt, _ = plan_request(spec, defaults, SpeechInput(audio, text="hi", voice="default"))
    assert "voice" not in prompt["mm_processor_kwargs"]
    with pytest.raises(InvalidRequestError, match="task must be one of"):
        plan_request(spec, defaults, SpeechInput(audio, text="hi", task="sing"))
    with pytest.raises(InvalidRequestError, match="no task from text to text"):
        plan_request(spec, defaults, SpeechInput(text, text="hi"))


def voiced_spec(**more: Any) -> SpeechSpec:
    task = TaskPrompt(SPEECH, (3, "voice", "text", 2))
    return replace(spec_of(), tasks=(task,), voices={"slt": (6,), "rms": (7,)}, **more)


def test_a_voice_has_the_names_that_the_server_gives_it() -> None:
    request = SpeechInput(frozenset({"audio"}), text="hi")
    aliases = {"alloy": "slt"}

    def voice(name: str, aliases: dict[str, str] = aliases) -> str | None:
        given = replace(request, voice=name)
        options = plan_request(voiced_spec(), {SPEECH: {}}, given, aliases)[0]
        return options["mm_processor_kwargs"].get("voice")

    assert (voice("alloy"), voice("rms"), voice("default")) == ("slt", "rms", None)
    assert voice("default", {"default": "rms"}) == "rms"
    with pytest.raises(
        InvalidRequestError, match=r"voice must be one of \['alloy', 'default', 'rms', "
    ):
        voice("nova")
    chat = replace(request, voice="nova", fields=FieldNames(voice="audio.voice"))
    with pytest.raises(InvalidRequestError) as caught:
        plan_request(voiced_spec(), {SPEECH: {}}, chat)
    assert caught.value.parameter == "audio.voice"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["alloy"], "--voice-alias must be NAME=VOICE, not 'alloy'"),
        (["=slt"], "--voice-alias must be NAME=VOICE, not '=slt'"),
        (["alloy=kal"], r"--voice-alias alloy=kal must name one of .*\['rms', 'slt'\]"),
        (["rms=slt"], "--voice-alias rms=slt gives a name that is taken: 'rms'"),
        (["alloy=slt", "alloy=rms"], "alloy=rms gives a name that is taken: 'alloy'"),
    ],
)
def test_an_alias_must_name_a_voice(
    monkeypatch: pytest.MonkeyPatch, given: list[str], message: str
) -> None:
    monkeypatch.setattr("vllm.unison.model.spec.multistream_spec", lambda config: voiced_spec())
    config: Any = object()
    with pytest.raises(ValueError, match=message):
        voice_aliases(parsed(*given), config)
    assert voice_aliases(parsed("alloy=slt", "nova=slt"), config) == {"alloy": "slt", "nova": "slt"}
    assert voice_aliases(parsed(), config) == voice_aliases(Namespace(), config) == {}


def parsed(*aliases: str) -> Namespace:
    parser = ArgumentParser()
    add_voice_arguments(parser)
    return parser.parse_args([f"--voice-alias={alias}" for alias in aliases])


def test_languages_are_those_of_the_model() -> None:
    request = SpeechInput(frozenset({"audio"}), text="hi")
    spec = voiced_spec(languages=("en", "de"))
    for language in ("en", "EN", "de"):
        plan_request(spec, {SPEECH: {}}, replace(request, language=language))
    with pytest.raises(
        InvalidRequestError, match=r"language must be one of \['en', 'de'\], not 'fr'"
    ):
        plan_request(spec, {SPEECH: {}}, replace(request, language="fr"))
    with pytest.raises(InvalidRequestError, match=r"language must not be given: .* names none"):
        plan_request(voiced_spec(), {SPEECH: {}}, replace(request, language="en"))


def test_without_a_default_the_context_limits_the_tokens() -> None:
    assert make_params({}, {}).max_tokens is None
    assert make_params({"max_tokens": 9}, {}).max_tokens == 9
    assert make_params({"max_tokens": 9}, {"max_tokens": 16}).max_tokens == 16
