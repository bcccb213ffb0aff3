# SPDX-License-Identifier: Apache-2.0
"""What a request leaves out: what the model's files say, and how that is told from what it says."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from vllm.sampling_params import SamplingParams
from vllm.unison.frontend import defaults as module
from vllm.unison.frontend.defaults import (
    DefaultSamplingParams,
    complete_sampling_params,
    read_task_defaults,
)
from vllm.unison.frontend.errors import InvalidRequestError
from vllm.unison.messages.sampling_fields import UNSET_MAX_TOKENS
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


def defaults_of(
    monkeypatch: pytest.MonkeyPatch,
    spec: SpeechSpec,
    of_file: dict[str, Any] | None = None,
    of_server: dict[str, Any] | None = None,
    source: str = "auto",
) -> dict[str, dict[str, Any]]:
    monkeypatch.setattr("vllm.unison.frontend.defaults.multistream_spec", lambda config: spec)
    config: Any = SimpleNamespace(
        generation_config=source,
        override_generation_config=of_server or {},
        try_get_generation_config=lambda: of_file or {},
    )
    return read_task_defaults(config)


def test_without_files_audio_is_sampled_and_text_is_greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = defaults_of(monkeypatch, spec_of())
    assert defaults[SPEECH] == {"temperature": 1.0}
    assert defaults[TEXT] == {"temperature": 0.0}
    assert set(defaults) == {"", *default_tasks()}


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


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Completes the parameters of a request for a task; the model's defaults are these."""
    defaults: dict[str, Any] = {
        "": {"top_k": 5},
        SPEECH: {"temperature": 0.5, "max_tokens": 70, "guidance_scale": 3.0},
        TEXT: {"temperature": 0.0},
        "voice_prompted_speech": {"max_tokens": 5},
    }
    monkeypatch.setattr(module, "multistream_spec", lambda config: spec_of())
    monkeypatch.setattr(module, "refuse_unsupported_sampling", lambda params, config: None)
    monkeypatch.setattr(module, "task_defaults", lambda config: defaults)

    def run(params: SamplingParams, task: str | None = SPEECH) -> SamplingParams:
        made = params.clone()
        config: Any = object()
        complete_sampling_params(made, {} if task is None else {"task": task}, config)
        return made

    return run


def test_max_tokens_is_the_task_s_unless_it_is_given(complete: Any) -> None:
    assert complete(SamplingParams(temperature=0)).max_tokens == 70
    assert complete(SamplingParams.from_optional(temperature=0)).max_tokens == 70
    assert complete(SamplingParams(max_tokens=16)).max_tokens == 16
    assert complete(SamplingParams.from_optional(max_tokens=16)).max_tokens == 16
    # None: as many as the context has room for.
    assert complete(SamplingParams(max_tokens=None)).max_tokens is None
    assert complete(SamplingParams(), TEXT).max_tokens is None
    assert complete(SamplingParams(), None).max_tokens is None


def test_other_fields_stay_as_they_are_given(complete: Any) -> None:
    params = complete(SamplingParams(seed=1))
    assert (params.temperature, params.guidance_scale, params.seed) == (1.0, None, 1)


def test_without_parameters_all_are_the_task_s_but_for_changed_ones(complete: Any) -> None:
    params = complete(DefaultSamplingParams())
    assert (params.temperature, params.max_tokens, params.guidance_scale) == (0.5, 70, 3.0)
    changed = DefaultSamplingParams()
    changed.temperature, changed.max_tokens, changed.seed = 0.2, 9, 4
    params = complete(changed)
    assert (params.temperature, params.max_tokens, params.seed) == (0.2, 9, 4)
    assert params.guidance_scale == 3.0
    assert complete(DefaultSamplingParams(), TEXT).temperature == 0.0
    assert complete(DefaultSamplingParams(), None).top_k == 5
    # Greedy sampling has no use for these, as upstream says of any request.
    changed.temperature, changed.top_k = 0.0, 9
    changed.temperature = 0.0
    assert complete(DefaultSamplingParams(top_k=9), TEXT).top_k == 0


def test_min_tokens_must_fit_the_default(complete: Any) -> None:
    assert complete(SamplingParams(min_tokens=6)).min_tokens == 6
    with pytest.raises(
        InvalidRequestError, match=r"min_tokens must be at most .* max_tokens, 5, not 6"
    ):
        complete(SamplingParams(min_tokens=6), "voice_prompted_speech")


def test_single_stream_models_keep_upstream_s_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "multistream_spec", lambda config: None)
    params = SamplingParams()
    config: Any = object()
    complete_sampling_params(params, {}, config)
    assert params.max_tokens == 16 and params == SamplingParams(max_tokens=16)


def test_an_unset_max_tokens_survives_every_way_of_copying() -> None:
    params = SamplingParams()
    copies = [copy.copy(params), copy.deepcopy(params), pickle.loads(pickle.dumps(params))]
    sent = msgspec.msgpack.encode(params)
    assert b"max_tokens" not in sent
    copies.append(msgspec.msgpack.decode(sent, type=SamplingParams))
    for made in copies:
        assert made.max_tokens is UNSET_MAX_TOKENS
    given = msgspec.msgpack.encode(SamplingParams(max_tokens=16))
    assert msgspec.msgpack.decode(given, type=SamplingParams).max_tokens is not UNSET_MAX_TOKENS
    assert str(params.max_tokens) == "16" and params.max_tokens in range(16, 17)
