# SPDX-License-Identifier: Apache-2.0
"""Contract 7: a model of one stream is served as if streams did not exist."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.engine.streams.conftest import open_engine
from tests.engine.streams.text_model import write_text_model
from tests.support import interpreted_triton
from vllm import LLM, SamplingParams
from vllm.v1.worker.cpu.model_runner import CPUModelRunner as V2ModelRunner
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

PROMPTS = ["hello", "a text-only model", "x", "one two three four five six seven eight nine ten"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("text_only"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with open_engine(folder, max_num_batched_tokens=64) as llm:
        yield llm


def test_greedy_tokens_equal_transformers(llm: LLM, folder: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for output in outputs:
        ids = list(output.prompt_token_ids or ())
        with torch.inference_mode():
            for _ in range(40):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        completion = output.outputs[0]
        assert list(completion.token_ids) == ids[-40:]
        assert completion.audio is None
        assert completion.finish_reason == "length"


def test_the_runners_class_is_upstreams_own(llm: LLM) -> None:
    core: Any = llm.llm_engine.engine_core
    runner = core.engine_core.model_executor.driver_worker.worker.model_runner
    upstreams = V2ModelRunner if interpreted_triton.wants_v2() else CPUModelRunner
    assert type(runner) is upstreams


def test_seeded_tokens_do_not_depend_on_the_batch(llm: LLM) -> None:
    params = [SamplingParams(temperature=1.0, max_tokens=20, seed=seed) for seed in range(4)]
    crowd = llm.generate(PROMPTS, params, use_tqdm=False)
    for prompt, one, output in zip(PROMPTS, params, crowd, strict=True):
        alone = llm.generate(prompt, one, use_tqdm=False)[0]
        assert alone.outputs[0].token_ids == output.outputs[0].token_ids


def test_what_multi_stream_models_refuse_is_still_accepted(llm: LLM) -> None:
    params = SamplingParams(
        temperature=0, max_tokens=5, logprobs=2, presence_penalty=0.5, stop_token_ids=[7]
    )
    completion = llm.generate("hello", params, use_tqdm=False)[0].outputs[0]
    assert completion.logprobs is not None
    assert len(completion.logprobs) == len(completion.token_ids) == 5


@pytest.mark.parametrize("field", ["stream_temperature", "stream_top_k", "stream_top_p"])
@pytest.mark.parametrize("value", [1, [1, 1]])
def test_stream_fields_are_refused(llm: LLM, field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} is for multi-stream models"):
        llm.generate("hello", SamplingParams(**{field: value}), use_tqdm=False)
    output = llm.generate("hello", SamplingParams(max_tokens=2), use_tqdm=False)[0]
    assert len(output.outputs[0].token_ids) == 2


def test_audio_is_refused(llm: LLM) -> None:
    audio = (torch.zeros(320).numpy(), 16000)
    prompt: Any = {"prompt": "hello", "multi_modal_data": {"audio": audio}}
    with pytest.raises(ValueError, match="Multi-modal"):
        llm.generate(prompt, use_tqdm=False)
