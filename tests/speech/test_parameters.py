# SPDX-License-Identifier: Apache-2.0
"""Prompt and sampling parameters of a request: what it says wins, then what the files say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vllm.entrypoints.speech.media import Clip
from vllm.entrypoints.speech.parameters import (
    SpeechInput,
    make_params,
    plan_request,
    task_defaults,
)
from vllm.exceptions import VLLMValidationError
from vllm.multistream.layout import StreamLayout
from vllm.multistream.random_checkpoint import default_tasks, stream_layout
from vllm.multistream.refusal import RequestRefused
from vllm.multistream.spec import SpeechSpec, TaskPrompt
from vllm.sampling_params import RequestOutputKind

SPEECH, TEXT = "text_to_speech", "speech_to_text"


def spec_of(**defaults: dict[str, Any]) -> SpeechSpec:
    return SpeechSpec(
        StreamLayout.from_dict(stream_layout(3)),
        tasks=tuple(TaskPrompt(name, tuple(parts)) for name, parts in default_tasks().items()),
        voices={"slt": (6,)},
        generation_defaults=defaults,
    )


def defaults_of(
    monkeypatch: pytest.MonkeyPatch,
    spec: SpeechSpec,
    of_file: dict[str, Any] | None = None,
    of_server: dict[str, Any] | None = None,
    source: str = "auto",
) -> dict[str, dict[str, Any]]:
    monkeypatch.setattr("vllm.multistream.spec.multistream_spec", lambda config: spec)
    config: Any = SimpleNamespace(
        generation_config=source,
        override_generation_config=of_server or {},
        try_get_generation_config=lambda: of_file or {},
    )
    return task_defaults(config)


def test_without_files_audio_is_sampled_and_text_is_greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = defaults_of(monkeypatch, spec_of())
    assert defaults[SPEECH] == {"temperature": 1.0}
    assert defaults[TEXT] == {"temperature": 0.0}
    assert set(defaults) == set(default_tasks())


def test_the_task_s_own_defaults_come_before_the_file_s(monkeypatch: pytest.MonkeyPatch) -> None:
    of_file = {"temperature": 0.9, "top_k": 20, "guidance_scale": 2.5, "max_new_tokens": 70}
    spec = spec_of(text_to_speech={"temperature": 0.7, "max_tokens": 50})
    defaults = defaults_of(monkeypatch, spec, of_file | {"eos_token_id": 1})
    assert defaults[SPEECH] == {
        "temperature": 0.7, "top_k": 20, "guidance_scale": 2.5, "max_tokens": 50,
    }  # fmt: skip
    # A guidance scale of the file is for audio.
    assert defaults[TEXT] == {"temperature": 0.9, "top_k": 20, "max_tokens": 70}


def test_the_server_s_options_come_before_both(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(text_to_speech={"temperature": 0.7, "guidance_scale": 3.0})
    of_server = {"temperature": 0.5, "guidance_scale": 1.5}
    defaults = defaults_of(monkeypatch, spec, {"top_p": 0.8}, of_server)
    assert defaults[SPEECH] == {"temperature": 0.5, "guidance_scale": 1.5, "top_p": 0.8}
    neutral = defaults_of(monkeypatch, spec, {"top_p": 0.8}, {}, source="vllm")
    assert neutral[SPEECH] == {"temperature": 1.0}


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
    asked = SpeechInput(audio, text="hi", voice="slt", task="voice_prompted_speech", clip=clip)
    prompt, _ = plan_request(spec, defaults, asked)
    assert prompt["mm_processor_kwargs"] == {"task": "voice_prompted_speech", "voice": "slt"}
    # A model without a voice of that name has its default.
    prompt, _ = plan_request(spec, defaults, SpeechInput(audio, text="hi", voice="default"))
    assert "voice" not in prompt["mm_processor_kwargs"]
    with pytest.raises(RequestRefused, match="task must be one of"):
        plan_request(spec, defaults, SpeechInput(audio, text="hi", task="sing"))
    with pytest.raises(RequestRefused, match="none from text to text"):
        plan_request(spec, defaults, SpeechInput(text, text="hi"))
