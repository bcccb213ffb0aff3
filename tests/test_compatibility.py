# SPDX-License-Identifier: Apache-2.0
"""What a multi-stream model cannot be combined with."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.random_layouts import example
from vllm.transformers_utils.configs.speech_lm import SpeechLMConfig
from vllm.unison.compatibility import (
    ASYNC_ON_CPU,
    async_scheduling_on_cpu,
    check_multistream_support,
)


def engine(speech: bool = True) -> Any:
    """The parts of a VllmConfig that are asked for, all at what is supported."""
    config = (
        SpeechLMConfig(stream_layout=example()) if speech else SimpleNamespace(model_type="llama")
    )
    return SimpleNamespace(
        model_config=SimpleNamespace(
            hf_config=config,
            model="folder",
            enable_prompt_embeds=False,
            logits_processors=None,
            runner_type="generate",
            quantization=None,
        ),
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=1,
            decode_context_parallel_size=1,
            prefill_context_parallel_size=1,
            use_ubatching=False,
        ),
        speculative_config=None,
        lora_config=None,
        kv_transfer_config=None,
        ec_transfer_config=None,
        aux_output_config=SimpleNamespace(enabled=False),
        additional_config={},
    )


def setting(place: str, value: Any) -> Callable[[Any], None]:
    def change(config: Any) -> None:
        *path, name = place.split(".")
        for part in path:
            config = getattr(config, part)
        assert hasattr(config, name)
        setattr(config, name, value)

    return change


REFUSED = {
    "speculative_config": setting("speculative_config", object()),
    "pipeline_parallel_size > 1": setting("parallel_config.pipeline_parallel_size", 2),
    "decode_context_parallel_size > 1": setting("parallel_config.decode_context_parallel_size", 2),
    "prefill_context_parallel_size > 1": setting(
        "parallel_config.prefill_context_parallel_size", 2
    ),
    "enable_dbo": setting("parallel_config.use_ubatching", True),
    "lora_config": setting("lora_config", object()),
    "kv_transfer_config": setting("kv_transfer_config", object()),
    "ec_transfer_config": setting("ec_transfer_config", object()),
    "enable_prompt_embeds": setting("model_config.enable_prompt_embeds", True),
    "enable_return_routed_experts": setting("aux_output_config.enabled", True),
    "logits_processors": setting("model_config.logits_processors", [object()]),
    "runner='pooling'": setting("model_config.runner_type", "pooling"),
    "quantization": setting("model_config.quantization", "fp8"),
}


def test_a_plain_configuration_is_supported() -> None:
    check_multistream_support(engine())


def test_chunk_sizes_are_checked_with_the_configuration() -> None:
    config = engine()
    config.additional_config = {"acoustic_decoding": {"first_chunk_frames": 0}, "other": 1}
    with pytest.raises(ValueError, match=r"acoustic_decoding\.first_chunk_frames must be"):
        check_multistream_support(config)
    config.additional_config = {"acoustic_decoding": {"first_chunk_frames": 1}, "other": 1}
    check_multistream_support(config)


@pytest.mark.parametrize("option", REFUSED)
def test_a_refusal_names_the_option(option: str) -> None:
    config = engine()
    REFUSED[option](config)
    with pytest.raises(ValueError) as refused:
        check_multistream_support(config)
    assert str(refused.value) == f"{option} is not supported for multi-stream models"


@pytest.mark.parametrize("option", REFUSED)
def test_text_models_are_not_asked(option: str) -> None:
    config = engine(speech=False)
    REFUSED[option](config)
    check_multistream_support(config)


@pytest.mark.parametrize(
    ("speech", "value", "expected"),
    [(True, "1", True), (True, "0", False), (True, None, False), (False, "1", False)],
)
def test_async_scheduling_on_cpu_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, speech: bool, value: str | None, expected: bool
) -> None:
    monkeypatch.delenv(ASYNC_ON_CPU, raising=False)
    if value is not None:
        monkeypatch.setenv(ASYNC_ON_CPU, value)
    assert async_scheduling_on_cpu(engine(speech)) is expected
