# SPDX-License-Identifier: Apache-2.0
"""What guidance a request may have in an engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.random_layouts import example
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.transformers_utils.configs.speech_lm import SpeechLMConfig
from vllm.unison.frontend.admission.guidance import admit_guidance
from vllm.unison.messages.guidance_inputs import GuidanceInputs


def speech_config(**guidance: Any) -> SpeechLMConfig:
    return SpeechLMConfig(stream_layout=example(), guidance=guidance or None)


def engine(hf_config: Any = None, **changes: Any) -> Any:
    """The parts of a VllmConfig that are asked for, changed by dotted name."""
    config = SimpleNamespace(
        kv_transfer_config=None,
        speculative_config=None,
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=1, enable_batch_sharded_sampling=False
        ),
        model_config=SimpleNamespace(
            hf_config=hf_config or SimpleNamespace(model_type="llama"),
            model="m",
            max_model_len=64,
            get_vocab_size=lambda: 40,
        ),
        scheduler_config=SimpleNamespace(
            max_num_seqs=4,
            max_num_active_seqs=None,
            max_num_batched_tokens=32,
            max_num_scheduled_tokens=None,
        ),
        cache_config=SimpleNamespace(num_gpu_blocks=20, block_size=16),
    )
    for name, value in changes.items():
        *path, last = name.split("__")
        owner = config
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, last, value)
    return config


def admit(
    config: Any, prompt_length: int = 4, tokenizer: Any = None, **fields: Any
) -> GuidanceInputs | None:
    return admit_params(
        config, SamplingParams(**({"max_tokens": 8} | fields)), prompt_length, tokenizer
    )


def admit_params(
    config: Any, params: SamplingParams, prompt_length: int = 4, tokenizer: Any = None
) -> GuidanceInputs | None:
    renderer = SimpleNamespace(tokenizer=tokenizer, model_config=config.model_config)
    engine_input = {"prompt_token_ids": [1] * prompt_length}
    return admit_guidance(params, engine_input, config, renderer)


def test_requests_without_guidance_have_none() -> None:
    refusing = engine(kv_transfer_config=object(), speculative_config=object())
    assert admit(refusing) is None
    assert admit(refusing, guidance_scale=1.0) is None
    assert admit_guidance(None, {"prompt_token_ids": [1]}, refusing, None) is None


def test_a_scale_becomes_two_weights() -> None:
    inputs = admit(
        engine(), guidance_scale=3, negative_prompt_token_ids=[5, 6], guidance_interval=(2, 9)
    )
    assert inputs is not None
    assert (inputs.weight, inputs.first, inputs.last) == (3.0, 2, 9)
    assert [(lane.weight, lane.prompt_token_ids) for lane in inputs.lanes] == [(-2.0, [5, 6])]
    assert not inputs.audio_only and inputs.pad_token_ids == []


def test_lanes_are_taken_as_they_are() -> None:
    lanes: list[dict[str, Any]] = [
        {"weight": 2.0},
        {"weight": -0.5, "prompt_token_ids": [5]},
        {"weight": -0.5, "prompt": "six"},
    ]
    tokenizer = SimpleNamespace(encode=lambda text: [len(text), 7])
    inputs = admit(engine(), tokenizer=tokenizer, guidance_lanes=lanes)
    assert inputs is not None and inputs.weight == 2.0 and inputs.last is None
    assert [lane.prompt_token_ids for lane in inputs.lanes] == [[5], [3, 7]]


@pytest.mark.parametrize("audio_only", [False, True])
def test_the_null_prompt_is_the_default(audio_only: bool) -> None:
    config = engine(speech_config(null_prompt=[1, 10], audio_only=audio_only))
    inputs = admit(config, guidance_scale=2.0)
    assert inputs is not None and inputs.audio_only is audio_only
    assert inputs.pad_token_ids == [0, 0, 0]
    (lane,) = inputs.lanes
    assert lane.prompt_token_ids == [1, 10]
    assert lane.auxiliary_ids is not None and lane.auxiliary_ids.shape == (2, 2)


def test_pads_have_no_prompt() -> None:
    inputs = admit(engine(speech_config(null_prompt="pads")), guidance_scale=2.0)
    assert inputs is not None
    assert inputs.lanes[0].prompt_token_ids is None and inputs.lanes[0].auxiliary_ids is None


NEGATIVE: dict[str, Any] = {"guidance_scale": 2.0, "negative_prompt_token_ids": [5]}
THREE: dict[str, Any] = {
    "guidance_lanes": [
        {"weight": 1.0},
        {"weight": 0.5, "prompt_token_ids": [5]},
        {"weight": -0.5, "prompt_token_ids": [5]},
    ]
}


@pytest.mark.parametrize(
    ("changes", "fields", "message"),
    [
        ({"kv_transfer_config": object()}, NEGATIVE, "kv_transfer_config"),
        ({"speculative_config": object()}, NEGATIVE, "speculative_config"),
        ({"parallel_config__pipeline_parallel_size": 2}, NEGATIVE, "pipeline_parallel_size > 1"),
        (
            {"parallel_config__enable_batch_sharded_sampling": True},
            NEGATIVE,
            "enable_batch_sharded_sampling",
        ),
        ({}, NEGATIVE | {"prompt_logprobs": 1}, "prompt_logprobs"),
        (
            {},
            NEGATIVE | {"structured_outputs": StructuredOutputsParams(regex="a")},
            "structured_outputs",
        ),
        ({}, {"guidance_scale": 2.0}, "negative_prompt must be given"),
        (
            {},
            {"guidance_lanes": [{"weight": 2.0}, {"weight": -1.0}]},
            r"guidance_lanes\[1\] must be given",
        ),
        ({}, {"guidance_scale": 2.0, "negative_prompt": "a"}, "needs a tokenizer"),
        ({}, NEGATIVE | {"negative_prompt_token_ids": []}, "at least one token"),
        ({}, NEGATIVE | {"negative_prompt_token_ids": [40]}, r"must be in \[0, 40\), not 40"),
        ({}, NEGATIVE | {"negative_prompt_token_ids": [99]}, r"must be in \[0, 40\), not 99"),
        ({}, NEGATIVE | {"negative_prompt_token_ids": [-1]}, r"must be in \[0, 40\), not -1"),
        ({}, NEGATIVE | {"negative_prompt_token_ids": [1.5]}, r"must be in \[0, 40\), not 1.5"),
        ({"scheduler_config__max_num_seqs": 2}, THREE, "3 lanes, but max_num_seqs = 2"),
        ({"scheduler_config__max_num_active_seqs": 2}, THREE, "max_num_active_seqs = 2"),
        ({"scheduler_config__max_num_batched_tokens": 2}, THREE, "max_num_batched_tokens = 2"),
        ({"scheduler_config__max_num_scheduled_tokens": 2}, THREE, "max_num_scheduled_tokens = 2"),
        (
            {},
            NEGATIVE | {"negative_prompt_token_ids": [5] * 57},
            "negative_prompt_token_ids has 57 tokens; with up to 8 generated ones it must fit ",
        ),
        # 4 + 8 tokens are 1 block per lane; one block is the null block.
        (
            {"cache_config__num_gpu_blocks": 2},
            NEGATIVE,
            "blocks of 16 tokens, but the cache has 1;",
        ),
        ({"cache_config__num_gpu_blocks": 2}, NEGATIVE, "2 lanes may need 2 KV cache blocks of 16"),
        ({"cache_config__num_gpu_blocks": 3}, THREE, "3 lanes may need 3 KV cache blocks of 16"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    changes: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        admit(engine(**changes), **fields)


def test_the_largest_that_fits_is_taken() -> None:
    longest: dict[str, Any] = NEGATIVE | {"negative_prompt_token_ids": [5] * 56}
    assert admit(engine(), **longest) is not None
    assert admit(engine(scheduler_config__max_num_seqs=3), **THREE) is not None
    assert admit(engine(scheduler_config__max_num_scheduled_tokens=3), **THREE) is not None
    assert admit(engine(cache_config__num_gpu_blocks=4), **THREE) is not None
    # Before the cache is sized nothing is known of it.
    assert admit(engine(cache_config__num_gpu_blocks=None), **THREE) is not None


@pytest.mark.parametrize(
    ("fields", "num_blocks", "expected"),
    [
        # The context of 64 has room for the longest prompt and what is generated.
        (NEGATIVE, 20, 60),
        (NEGATIVE | {"negative_prompt_token_ids": [5] * 57}, 20, 7),
        (NEGATIVE | {"negative_prompt_token_ids": [5] * 63}, 20, 1),
        # 4 usable blocks of 16: 4 + 28 tokens take 2 of them, and 1 + 28 the others.
        (NEGATIVE, 5, 28),
        (NEGATIVE, 6, 31),
        (THREE, 4, 12),
    ],
)
def test_a_default_of_max_tokens_is_lowered_to_what_all_lanes_have_room_for(
    fields: dict[str, Any], num_blocks: int, expected: int
) -> None:
    params = SamplingParams(max_tokens=60, **fields)
    params.max_tokens_is_default = True
    config = engine(cache_config__num_gpu_blocks=num_blocks)
    assert admit_params(config, params) is not None
    assert params.max_tokens == expected
    # One more is refused if it is asked for.
    if expected < 60:
        with pytest.raises(ValueError, match=r"max_model_len = 64|KV cache blocks"):
            admit_params(config, SamplingParams(max_tokens=expected + 1, **fields))


def test_a_default_is_not_lowered_below_min_tokens() -> None:
    fields = NEGATIVE | {"negative_prompt_token_ids": [5] * 57}
    params = SamplingParams(max_tokens=60, min_tokens=9, **fields)
    params.max_tokens_is_default = True
    with pytest.raises(ValueError, match="negative_prompt_token_ids has 57 tokens; with up to 9"):
        admit_params(engine(), params)
