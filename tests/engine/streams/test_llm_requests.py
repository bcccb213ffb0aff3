# SPDX-License-Identifier: Apache-2.0
"""`LLM` with a multi-stream model: what requests leave out, and errors that name what was given."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.streams.conftest import open_engine
from tests.engine.streams.text_model import write_text_model
from tests.entrypoints.server import DEFAULT_TOKENS, GUIDANCE_SCALE, SAMPLE_RATE, write_model
from vllm import LLM, AsyncEngineArgs, SamplingParams
from vllm.sampling_params import BeamSearchParams, RequestOutputKind
from vllm.unison.frontend.errors import InvalidRequestError
from vllm.v1.engine.async_llm import AsyncLLM

FLUSH = 3
"""Steps in which the delayed streams of speech catch up."""
CLIP: dict[str, Any] = {
    "prompt": "",
    "multi_modal_data": {"audio": (np.zeros(SAMPLE_RATE // 10, np.float32), SAMPLE_RATE)},
}

BOTH: Any = ["hello", CLIP]
MESSAGES: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("defaults") / "model")


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with open_engine(folder) as llm:
        yield llm


def generate(llm: LLM, prompt: Any, params: SamplingParams | None = None) -> Any:
    return llm.generate(prompt, params, use_tqdm=False)[0].outputs[0]


def test_without_parameters_a_request_has_its_task_s(llm: LLM) -> None:
    speech, text = (output.outputs[0] for output in llm.generate(BOTH, use_tqdm=False))
    assert len(speech.token_ids) == DEFAULT_TOKENS + FLUSH and speech.audio is not None
    assert len(speech.audio.codes) > 0
    assert len(text.token_ids) == DEFAULT_TOKENS
    given = llm.get_default_sampling_params()
    given.seed = 5
    same = SamplingParams(seed=5, guidance_scale=GUIDANCE_SCALE, max_tokens=DEFAULT_TOKENS)
    defaults = generate(llm, "hello", given)
    assert defaults.token_ids == generate(llm, "hello", same).token_ids
    unguided = SamplingParams(seed=5, max_tokens=DEFAULT_TOKENS)
    assert defaults.token_ids != generate(llm, "hello", unguided).token_ids


@pytest.mark.parametrize(
    ("params", "count"),
    [
        (SamplingParams(temperature=0), DEFAULT_TOKENS),
        (SamplingParams(temperature=0, max_tokens=16), 16),
        (SamplingParams.from_optional(temperature=0), DEFAULT_TOKENS),
        (SamplingParams(seed=1, n=2), DEFAULT_TOKENS),
    ],
)
def test_max_tokens_is_the_task_s_if_it_is_left_out(
    llm: LLM, params: SamplingParams, count: int
) -> None:
    (output,) = llm.generate("hello", params, use_tqdm=False)
    assert [len(made.token_ids) for made in output.outputs] == [count + FLUSH] * params.n


def test_a_prompt_of_ids_goes_on_to_the_end_of_the_context(llm: LLM) -> None:
    context = llm.model_config.max_model_len
    output = generate(llm, {"prompt_token_ids": [3, 20, 2]}, SamplingParams(temperature=0))
    assert 3 + len(output.token_ids) == context


@pytest.mark.parametrize(
    ("prompt", "field", "words"),
    [
        ("", "prompt", "must hold text"),
        ({"prompt": "", "multi_modal_data": {"audio": None}}, "prompt", "must hold text"),
        ({"prompt_embeds": torch.zeros(3, 64)}, "prompt_embeds", "is not supported"),
        ({"prompt": "a", "multi_modal_data": {"image": 1}}, "multi_modal_data", "only 'audio'"),
        (
            {"prompt": "a", "mm_processor_kwargs": {"task": "speech_to_text"}},
            "task",
            "needs audio, but the request gives text",
        ),
        (
            CLIP | {"mm_processor_kwargs": {"task": "voice_prompted_speech"}},
            "task",
            "needs text and audio, but the request gives audio",
        ),
        (CLIP | {"mm_processor_kwargs": {"voice": "joe"}}, "voice", "has no place for one"),
        ({"prompt": "a", "mm_processor_kwargs": {"task": ""}}, "task", "must be one of"),
    ],
)
def test_prompts_are_refused_by_the_field_that_was_given(
    llm: LLM, prompt: Any, field: str, words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        generate(llm, prompt, SamplingParams(max_tokens=2))
    assert caught.value.parameter == field


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"guidance_scale": 2.0, "negative_prompt": ""}, "negative_prompt"),
        ({"guidance_scale": 2.0, "negative_prompt": "a" * 600}, "negative_prompt"),
        ({"guidance_scale": 2.0, "negative_prompt_token_ids": []}, "negative_prompt_token_ids"),
        ({"guidance_scale": 2.0, "negative_prompt_token_ids": [9] * 600}, "negative_prompt_token_"),
        (
            {"guidance_lanes": [{"weight": 2}, {"weight": -1, "prompt": ""}]},
            "guidance_lanes[1]",
        ),
        (
            {"guidance_lanes": [{"weight": 2}, {"weight": -1, "prompt": "a" * 600}]},
            "guidance_lanes[1]",
        ),
        ({"top_k": 2**31}, "top_k"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"min_tokens": DEFAULT_TOKENS + 1}, "min_tokens"),
    ],
)
def test_parameters_are_refused_by_the_field_that_was_given(
    llm: LLM, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        generate(llm, "hello", SamplingParams(**options))
    assert str(caught.value).startswith(field) and "must" in str(caught.value)


CALLS: dict[str, Callable[[LLM], Any]] = {
    "LLM.chat": lambda llm: llm.chat(MESSAGES),
    "LLM.enqueue_chat": lambda llm: llm.enqueue_chat(MESSAGES),
    "LLM.beam_search": lambda llm: llm.beam_search(
        [{"prompt": "a"}], BeamSearchParams(beam_width=2, max_tokens=3)
    ),
    "LLM.encode": lambda llm: llm.encode("a"),
    "LLM.embed": lambda llm: llm.embed("a"),
    "LLM.classify": lambda llm: llm.classify("a"),
    "LLM.score": lambda llm: llm.score("a", "b"),
}


@pytest.mark.parametrize("name", list(CALLS))
def test_methods_that_cannot_serve_the_model_say_so(name: str, llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{name} is not supported .* use LLM.generate"):
        CALLS[name](llm)


def test_on_the_cpu_sleep_only_pauses(llm: LLM) -> None:
    for level in (1, 2):
        with pytest.raises(InvalidRequestError, match=r"level must be 0 .* on the CPU") as caught:
            llm.sleep(level=level)
        assert caught.value.parameter == "level"
    with pytest.raises(InvalidRequestError):
        llm.sleep()
    llm.sleep(level=0)
    assert llm.wake_up(tags=["scheduling"])
    assert len(generate(llm, "hello").token_ids) == DEFAULT_TOKENS + FLUSH


# Engines of their own end what engines in this process share, so these tests come last.


def test_the_file_s_max_new_tokens_count(folder: Path, tmp_path: Path) -> None:
    copied = write_model(tmp_path / "model")
    config = json.loads((copied / "config.json").read_text())
    del config["generation_defaults"]
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "generation_config.json").write_text(json.dumps({"max_new_tokens": 21}))
    with open_engine(copied) as llm:
        assert len(generate(llm, "hello").token_ids) == 21 + FLUSH
        assert len(generate(llm, CLIP, SamplingParams(temperature=0)).token_ids) == 21


@pytest.mark.processes
def test_the_asynchronous_engine_has_the_same_defaults(folder: Path) -> None:
    async def run() -> int:
        args = AsyncEngineArgs(
            str(folder), dtype="float32", enforce_eager=True, max_model_len=512, block_size=32
        )
        engine = AsyncLLM.from_engine_args(args)
        count = 0
        params = SamplingParams(temperature=0, output_kind=RequestOutputKind.DELTA)
        async for output in engine.generate("hello", params, "one"):
            count += len(output.outputs[0].token_ids)
        engine.shutdown()
        return count

    assert asyncio.run(run()) == DEFAULT_TOKENS + FLUSH


def test_a_text_only_model_is_upstream_s(tmp_path: Path) -> None:
    with open_engine(write_text_model(tmp_path / "text"), max_model_len=128) as llm:
        params = SamplingParams(temperature=0, ignore_eos=True)
        assert len(generate(llm, "hello", params).token_ids) == 16
        assert type(llm.get_default_sampling_params()) is SamplingParams
        for name in ("chat", "beam_search", "encode", "sleep", "get_default_sampling_params"):
            assert name not in vars(llm)
