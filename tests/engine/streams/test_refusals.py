# SPDX-License-Identifier: Apache-2.0
"""Contract 8: what cannot be honoured is refused with an error that names the field."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.streams.cases import MAX_MODEL_LEN, Case, assert_equals, noise_clip
from tests.engine.streams.conftest import open_engine
from tests.engine.streams.reference import Reference
from vllm import LLM, SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RepetitionDetectionParams, StructuredOutputsParams
from vllm.unison.testing.random_checkpoint import BEGIN_AUDIO, BEGIN_TEXT, FIRST_TEXT

NAME = "llama"

ENGINE_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "speculative decoding": (
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
        "speculative_config",
    ),
    "LoRA": ({"enable_lora": True}, "lora_config"),
    "KV transfer": (
        {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
        "kv_transfer_config",
    ),
    "prompt embeddings": ({"enable_prompt_embeds": True}, "enable_prompt_embeds"),
    "logits processors": (
        {"logits_processors": ["vllm.v1.sample.logits_processor:LogitsProcessor"]},
        "logits_processors",
    ),
    "pooling": ({"runner": "pooling"}, "pooling"),
    "quantization": ({"quantization": "fp8", "dtype": "bfloat16"}, "quantization"),
}


@pytest.mark.parametrize("what", list(ENGINE_OPTIONS))
def test_engine_options_are_refused_by_name(what: str, checkpoint: Callable[[str], Path]) -> None:
    options, field = ENGINE_OPTIONS[what]
    arguments = EngineArgs(**{"model": str(checkpoint(NAME)), "dtype": "float32"} | options)
    with pytest.raises(ValueError, match=f"{field}.* is not supported for multi-stream models"):
        arguments.create_engine_config()


def test_pipeline_parallelism_is_refused_by_upstream(checkpoint: Callable[[str], Path]) -> None:
    arguments = EngineArgs(str(checkpoint(NAME)), dtype="float32", pipeline_parallel_size=2)
    with pytest.raises(NotImplementedError, match="Pipeline parallelism is not supported"):
        arguments.create_engine_config()


@pytest.fixture(scope="module")
def llm(checkpoint: Callable[[str], Path]) -> Iterator[LLM]:
    with open_engine(checkpoint(NAME)) as llm:
        yield llm


@pytest.fixture(autouse=True)
def _serves_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "llm" not in request.fixturenames:
        return
    llm: LLM = request.getfixturevalue("llm")
    reference: Callable[[str], Reference] = request.getfixturevalue("reference")
    assert not llm.llm_engine.has_unfinished_requests()
    case = Case(text="after", options={"max_tokens": 5})
    output = llm.generate(case.prompt, case.params, use_tqdm=False)[0]
    assert_equals(output, case.expected(reference(NAME)))


SAMPLING: list[tuple[dict[str, Any], str]] = [
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"frequency_penalty": -0.5}, "frequency_penalty"),
    ({"repetition_penalty": 1.1}, "repetition_penalty"),
    ({"min_p": 0.1}, "min_p"),
    ({"logprobs": 1}, "logprobs"),
    ({"prompt_logprobs": 1}, "prompt_logprobs"),
    ({"stop_token_ids": [7]}, "stop_token_ids"),
    ({"structured_outputs": StructuredOutputsParams(regex="a+")}, "structured_outputs"),
    ({"logit_bias": {20: 1.0}}, "logit_bias"),
    ({"allowed_token_ids": [20]}, "allowed_token_ids"),
    ({"bad_words": ["no"]}, "bad_words"),
    (
        {
            "repetition_detection": RepetitionDetectionParams(
                max_pattern_size=2, min_pattern_size=1, min_count=3
            )
        },
        "repetition_detection",
    ),
    ({"watermarking": True}, "watermarking"),
    ({"stream_temperature": [1.0]}, "stream_temperature"),
    ({"stream_top_k": [5, 5, 5, 5, 5]}, "stream_top_k"),
    ({"stream_top_p": [0.5] * 3}, "stream_top_p"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 2**63 - 2, "n": 3, "temperature": 1.0}, "seed"),
]


@pytest.mark.parametrize(("options", "field"), SAMPLING, ids=lambda value: str(value)[:30])
def test_sampling_parameters_are_refused_by_name(
    llm: LLM, options: dict[str, Any], field: str, reference: Callable[[str], Reference]
) -> None:
    with pytest.raises(ValueError, match=field):
        llm.generate("hello", SamplingParams(**options), use_tqdm=False)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"stream_temperature": -0.1}, "stream_temperature"),
        ({"stream_temperature": float("nan")}, "stream_temperature"),
        ({"stream_temperature": [1.0, float("inf"), 1.0, 1.0]}, r"stream_temperature\[1\]"),
        ({"stream_temperature": "hot"}, "stream_temperature"),
        ({"stream_top_k": -2}, "stream_top_k"),
        ({"stream_top_k": [1, 2.5, 3, 4]}, r"stream_top_k\[1\]"),
        ({"stream_top_k": []}, "stream_top_k"),
        ({"stream_top_p": 0.0}, "stream_top_p"),
        ({"stream_top_p": 1.5}, "stream_top_p"),
    ],
)
def test_values_no_model_accepts_are_refused_when_they_are_set(
    options: dict[str, Any], field: str
) -> None:
    with pytest.raises(ValueError, match=field):
        SamplingParams(**options)


_LONG = (*[FIRST_TEXT] * (MAX_MODEL_LEN - 2), BEGIN_AUDIO)
_STREAMS = [BEGIN_TEXT, FIRST_TEXT, BEGIN_AUDIO]


def _audio(audio: Any) -> Any:
    return {"prompt": "", "multi_modal_data": {"audio": audio}}


def _streams(ids: Any) -> dict[str, Any]:
    return {"prompt_token_ids": _STREAMS, "mm_processor_kwargs": {"auxiliary_token_ids": ids}}


PROMPTS: dict[str, tuple[Any, str]] = {
    "NaN": (_audio((np.full(640, np.nan, np.float32), 16000)), "audio|samples"),
    "infinite": (_audio((np.full(640, np.inf, np.float32), 16000)), "audio|samples"),
    "empty clip": (_audio((np.zeros(0, np.float32), 16000)), "audio"),
    "two clips": (_audio([(noise_clip(2, 1), 16000), (noise_clip(2, 2), 16000)]), "audio"),
    "no samples at all": (_audio("a path"), "audio"),
    "an object": (_audio({"samples": 1}), "audio"),
    "rate of zero": (_audio((noise_clip(2, 1), 0)), "rate"),
    "negative rate": (_audio((noise_clip(2, 1), -16000)), "rate"),
    "rate that is not a number": (_audio((noise_clip(2, 1), float("nan"))), "rate"),
    "rate that is a word": (_audio((noise_clip(2, 1), "16k")), "rate"),
    "an image": ({"prompt": "a", "multi_modal_data": {"image": np.zeros(4)}}, "multi_modal_data"),
    "unknown task": ({"prompt": "a", "mm_processor_kwargs": {"task": "sing"}}, "task"),
    "unfit task": ({"prompt": "a", "mm_processor_kwargs": {"task": "speech_to_text"}}, "task"),
    "unknown option": ({"prompt": "a", "mm_processor_kwargs": {"tsk": 1}}, "mm_processor_kwargs"),
    "token too large": ({"prompt_token_ids": [528]}, "prompt_token_ids|vocabulary"),
    "token below zero": ({"prompt_token_ids": [-1]}, "prompt_token_ids|vocabulary"),
    "no tokens": ({"prompt_token_ids": []}, "prompt"),
    "long tokens": (
        {"prompt_token_ids": list(_LONG) * 2},
        "max_model_len|maximum (context|model) length",
    ),
    "no room for the delayed streams": ({"prompt_token_ids": list(_LONG)}, "max_model_len"),
    "long text": ({"prompt": "a" * 300}, "max_model_len|maximum (context|model) length"),
    "long clip": (
        _audio((noise_clip(300, 1), 16000)),
        "max_model_len|maximum (context|model) length",
    ),
    "streams too short": (_streams(np.zeros((2, 3), np.int32)), "auxiliary_token_ids"),
    "streams too long": (_streams(np.zeros((30, 3), np.int32)), "auxiliary_token_ids"),
    "streams too few": (_streams(np.zeros((3, 2), np.int32)), "auxiliary_token_ids"),
    "streams of floats": (_streams(np.zeros((3, 3))), "auxiliary_token_ids"),
    "a ragged clip": (_audio(([[0.0], [0.0, 1.0]], 16000)), "audio"),
    "ragged streams": (_streams([[0], [0, 0, 0], [0]]), "auxiliary_token_ids"),
    "another stream's code": (
        _streams(np.full((3, 3), FIRST_TEXT + 256, np.int32)),
        "auxiliary_token_ids",
    ),
    "streams and a task": (
        {
            "prompt_token_ids": _STREAMS,
            "mm_processor_kwargs": {"auxiliary_token_ids": np.zeros((3, 3), int), "task": "x"},
        },
        "auxiliary_token_ids",
    ),
}


@pytest.mark.parametrize("what", list(PROMPTS))
def test_prompts_are_refused_by_name(
    llm: LLM, what: str, reference: Callable[[str], Reference]
) -> None:
    prompt, field = PROMPTS[what]
    good = Case(text="good", options={"max_tokens": 3})
    with pytest.raises((ValueError, VLLMValidationError), match=field):
        # One bad prompt among good ones; nothing of the call stays in the engine.
        llm.generate([good.prompt, prompt], good.params, use_tqdm=False)


def test_stop_strings_are_refused_only_where_they_would_drop_audio(
    checkpoint: Callable[[str], Path], llm: LLM, reference: Callable[[str], Reference]
) -> None:
    case = Case(token_ids=(BEGIN_TEXT, FIRST_TEXT + 50), options={"max_tokens": 40})
    plain = llm.generate(case.prompt, case.params, use_tqdm=False)[0].outputs[0]
    letter = next(c for c in plain.text[3:] if c.isascii())
    stopped = llm.generate(case.prompt, case.with_options(stop=[letter]).params, use_tqdm=False)
    assert stopped[0].outputs[0].text == plain.text[: plain.text.index(letter)]
    assert stopped[0].outputs[0].finish_reason == "stop"


def test_audio_is_refused_where_the_codec_does_not_cover_all_streams(
    checkpoint: Callable[[str], Path],
) -> None:
    with open_engine(checkpoint("switching")) as llm:
        with pytest.raises(ValueError, match=r"audio: .* no ids for streams \[0\]"):
            llm.generate(_audio((noise_clip(2, 1), 16000)), use_tqdm=False)
        with pytest.raises(ValueError, match="stop is not supported"):
            llm.generate("hello", SamplingParams(stop=["x"]), use_tqdm=False)
        assert llm.generate("hello", SamplingParams(max_tokens=2), use_tqdm=False)[0].finished
