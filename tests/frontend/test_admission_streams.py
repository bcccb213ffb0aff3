# SPDX-License-Identifier: Apache-2.0
"""What a request must be before a multi-stream model takes it."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.random_layouts import example
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.transformers_utils.configs.speech_lm import SpeechLMConfig
from vllm.unison.frontend.admission.streams import admit_streams, refuse_unsupported_sampling

LAYOUT = example()
SPEECH_ONLY = example(
    phases=[{"name": "audio", "kind": "audio", "transitions": [{"token": 2, "to": "end"}]}]
)
TEXT_ONLY = example(phases=[{"name": "text", "kind": "text"}])


def speech(layout: dict[str, Any] = LAYOUT, max_model_len: int = 20) -> Any:
    """The parts of a ModelConfig that are asked for."""
    config = SpeechLMConfig(stream_layout=layout)
    return SimpleNamespace(hf_config=config, model="m", max_model_len=max_model_len)


def text_model() -> Any:
    return SimpleNamespace(hf_config=SimpleNamespace(model_type="llama"), model="m")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("presence_penalty", 0.5),
        ("frequency_penalty", -0.5),
        ("repetition_penalty", 1.1),
        ("min_p", 0.1),
        ("logprobs", 0),
        ("logprobs", 2),
        ("prompt_logprobs", 1),
        ("stop_token_ids", [3]),
        ("logit_bias", {3: 1.0}),
        ("allowed_token_ids", [3]),
        ("bad_words", ["no"]),
        ("structured_outputs", StructuredOutputsParams(regex="a")),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(name: str, value: Any) -> None:
    fields: dict[str, Any] = {name: value}
    params = SamplingParams(**fields)
    with pytest.raises(ValueError, match=f"^{name} is not supported for multi-stream models"):
        refuse_unsupported_sampling(params, speech())
    refuse_unsupported_sampling(params, text_model())


def test_what_is_honoured_is_taken() -> None:
    params = SamplingParams(
        n=3, temperature=0.5, top_k=4, top_p=0.5, seed=-(2**63), max_tokens=5, min_tokens=2,
        ignore_eos=True, stream_temperature=[0.1, 0.2, 0.3], stream_top_k=3, stream_top_p=0.5,
    )  # fmt: skip
    refuse_unsupported_sampling(params, speech())
    refuse_unsupported_sampling(SamplingParams(seed=2**63 - 3, n=2), speech())


@pytest.mark.parametrize("name", ["stream_temperature", "stream_top_k", "stream_top_p"])
def test_stream_fields_fit_the_model(name: str) -> None:
    fields: dict[str, Any] = {name: [1, 1]}
    with pytest.raises(ValueError, match=f"{name} must be a number or a list of 3, .* not 2"):
        refuse_unsupported_sampling(SamplingParams(**fields), speech())
    with pytest.raises(ValueError, match=f"{name} is for multi-stream models"):
        refuse_unsupported_sampling(SamplingParams(**fields), text_model())


def test_windows_of_repetitions_are_for_streams() -> None:
    refuse_unsupported_sampling(SamplingParams(ras_win_len=7), speech())
    with pytest.raises(ValueError, match="ras_win_len is for multi-stream models"):
        refuse_unsupported_sampling(SamplingParams(ras_win_len=7), text_model())


@pytest.mark.parametrize(("seed", "n"), [(2**63, 1), (-(2**63) - 1, 1), (2**63 - 2, 2)])
def test_seeds_fit_64_bits(seed: int, n: int) -> None:
    params = SamplingParams(n=n)
    params.seed = seed
    with pytest.raises(ValueError, match=r"seed must be in \[-2\*\*63, 2\*\*63 - n\)"):
        refuse_unsupported_sampling(params, speech())


def test_stop_strings_must_not_drop_audio() -> None:
    params = SamplingParams(stop=["x"])
    with pytest.raises(ValueError, match="stop is not supported for models in which text can"):
        refuse_unsupported_sampling(params, speech())
    refuse_unsupported_sampling(params, speech(SPEECH_ONLY))


def prompt(length: int) -> dict[str, Any]:
    return {
        "prompt_token_ids": [1] * length,
        "auxiliary_token_ids": np.zeros((length + 2, 2), np.int32),
    }


def test_a_request_is_completed() -> None:
    params = SamplingParams()
    given = prompt(3)
    inputs = admit_streams(params, given, speech())
    assert inputs is not None
    assert inputs.auxiliary_ids is given["auxiliary_token_ids"]
    assert inputs.text_slice == (10, 20)
    assert inputs.num_flush_steps == 2
    assert params.seed is not None and 0 <= params.seed < 2**62
    other = SamplingParams()
    admit_streams(other, prompt(3), speech())
    assert other.seed != params.seed
    seeded = SamplingParams(seed=5)
    admit_streams(seeded, prompt(3), speech())
    assert seeded.seed == 5


def test_text_models_have_no_streams() -> None:
    params = SamplingParams()
    assert admit_streams(params, {"prompt_token_ids": [1]}, text_model()) is None
    assert params.seed is None


def test_pooling_and_foreign_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="pooling_params are not supported"):
        admit_streams(None, prompt(3), speech())
    with pytest.raises(ValueError, match="must come from its renderer"):
        admit_streams(SamplingParams(), {"prompt_token_ids": [1]}, speech())


@pytest.mark.parametrize(("layout", "longest"), [(LAYOUT, 17), (TEXT_ONLY, 19)])
def test_a_prompt_must_leave_room_for_a_token_and_the_flush(
    layout: dict[str, Any], longest: int
) -> None:
    model = speech(layout)
    admit_streams(SamplingParams(), prompt(longest), model)
    with pytest.raises(ValueError, match=rf"prompt has {longest + 1} tokens.*max_model_len = 20"):
        admit_streams(SamplingParams(), prompt(longest + 1), model)


def test_seeds_are_drawn_from_the_system_and_use_all_their_bits() -> None:
    """Not from a generator that a program may have seeded, nor from so few that they repeat."""
    seeds = []
    for _ in range(64):
        random.seed(0)
        params = SamplingParams()
        admit_streams(params, prompt(3), speech())
        assert params.seed is not None
        seeds.append(params.seed)
    assert len(set(seeds)) == 64
    assert all(0 <= seed < 2**62 for seed in seeds) and max(seeds) >= 2**61
    assert len({seed % 2**8 for seed in seeds}) > 16
