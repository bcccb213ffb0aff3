# SPDX-License-Identifier: Apache-2.0
"""Guidance on a model of one stream: ordinary classifier-free guidance of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.engine.guidance.conftest import LANE, Watch, assert_nothing_left
from tests.engine.streams.conftest import open_engine
from tests.engine.streams.text_model import END, write_text_model
from vllm import LLM, RequestOutput, SamplingParams
from vllm.unison.testing.random_checkpoint import FIRST_TEXT

Lanes = Sequence[tuple[float, Sequence[int]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("text_only"), end_weight=1.6)


@pytest.fixture(scope="module")
def loop(folder: Path) -> Callable[..., list[int]]:
    """Greedy guided generation in a plain loop over whole sequences."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def generate(
        prompt: Sequence[int], lanes: Lanes, options: dict[str, Any], weight: float
    ) -> list[int]:
        first, last = options.get("guidance_interval") or (0, None)
        emitted: list[int] = []
        while len(emitted) < options["max_tokens"]:
            merged = model(torch.tensor([[*prompt, *emitted]])).logits[0, -1]
            step = len(emitted)
            if lanes and first <= step and (last is None or step <= last):
                merged = weight * merged
                for lane_weight, ids in lanes:
                    logits = model(torch.tensor([[*ids, *emitted]])).logits[0, -1]
                    merged = merged + lane_weight * logits
            emitted.append(int(merged.argmax()))
            if emitted[-1] == END and not options.get("ignore_eos"):
                break
        return emitted

    return generate


def _ids(text: str) -> list[int]:
    return [FIRST_TEXT + ord(letter) for letter in text]


LONG = _ids("a negative prompt that is longer than two blocks of the cache, of 32 tokens each")
SHORT = _ids("n")
PLAIN: dict[str, Any] = {"max_tokens": 30, "ignore_eos": True}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("hello", PLAIN),
    ("hello", PLAIN | {"guidance_scale": 1.0}),
    ("hello", PLAIN | {"guidance_scale": 1.5, "negative_prompt_token_ids": SHORT}),
    ("hello", PLAIN | {"guidance_scale": 3.0, "negative_prompt_token_ids": LONG}),
    ("a text-only model", PLAIN | {"guidance_scale": 7.0, "negative_prompt_token_ids": LONG}),
    ("x", PLAIN | {"guidance_scale": 0.0, "negative_prompt_token_ids": LONG}),
    (
        "an interval",
        PLAIN
        | {
            "guidance_scale": 3.0,
            "negative_prompt_token_ids": LONG,
            "guidance_interval": (3, 11),
        },
    ),
    (
        "three lanes",
        PLAIN
        | {
            "guidance_lanes": [
                {"weight": 2.5},
                {"weight": -1.0, "prompt_token_ids": LONG},
                {"weight": -0.5, "prompt_token_ids": SHORT},
            ]
        },
    ),
    *(
        (text, {"max_tokens": 60, "guidance_scale": 1.5, "negative_prompt_token_ids": SHORT})
        for text in ("ends", "by", "itself", "one of", "these does")
    ),
]


def _lanes(options: dict[str, Any]) -> tuple[float, Lanes]:
    """Weight of the conditional lane, and the guidance lanes."""
    if "guidance_lanes" in options:
        main, *others = options["guidance_lanes"]
        return main["weight"], [(lane["weight"], lane["prompt_token_ids"]) for lane in others]
    scale = options.get("guidance_scale", 1.0)
    if scale == 1.0:
        return 1.0, []
    return scale, [(1 - scale, options["negative_prompt_token_ids"])]


def _run(llm: LLM) -> list[RequestOutput]:
    params = [SamplingParams(temperature=0, **options) for _, options in CASES]
    return llm.generate([text for text, _ in CASES], params, use_tqdm=False)


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {"enable_prefix_caching": False},
    "tokens 16, prefix cache": {"max_num_batched_tokens": 16, "enable_prefix_caching": True},
    "preemption": {"num_gpu_blocks_override": 14, "max_num_batched_tokens": 64},
}


@pytest.mark.parametrize("configuration", list(CONFIGURATIONS))
def test_greedy_tokens_equal_a_loop_over_transformers(
    configuration: str,
    folder: Path,
    loop: Callable[..., list[int]],
    watch: Watch,
) -> None:
    options = CONFIGURATIONS[configuration]
    with open_engine(folder, **options) as llm:
        outputs = _run(llm)
        assert_nothing_left(llm)
    reasons = set()
    for (text, given), output in zip(CASES, outputs, strict=True):
        weight, lanes = _lanes(given)
        completion = output.outputs[0]
        expected = loop(output.prompt_token_ids, lanes, given, weight)
        assert list(completion.token_ids) == expected, (text, given)
        ends = expected[-1] == END and not given.get("ignore_eos")
        assert completion.finish_reason == ("stop" if ends else "length")
        reasons.add(completion.finish_reason)
    assert reasons == {"stop", "length"}
    assert any(step.merged for step in watch.steps)
    if "num_gpu_blocks_override" in options:
        assert watch.guided_mid_generation


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with open_engine(folder, max_num_batched_tokens=64) as llm:
        yield llm


def test_seeded_tokens_are_the_same_in_a_crowd_and_alone(llm: LLM) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "max_tokens": 20, "guidance_scale": 2.0}
    params = [
        SamplingParams(seed=seed, negative_prompt=text, **options)
        for seed, text in enumerate(("a", "one that is longer", "c"))
    ]
    params.append(SamplingParams(seed=9, temperature=1.0, max_tokens=20))
    crowd = llm.generate(["a prompt"] * 4, params, use_tqdm=False)
    for one, output in zip(params, crowd, strict=True):
        alone = llm.generate("a prompt", one, use_tqdm=False)[0]
        assert alone.outputs[0].token_ids == output.outputs[0].token_ids
    assert_nothing_left(llm)


def test_logprobs_are_of_what_was_sampled(llm: LLM, watch: Watch) -> None:
    params = SamplingParams(
        temperature=0, max_tokens=8, logprobs=2, guidance_scale=3.0, negative_prompt="n"
    )
    plain = SamplingParams(temperature=0, max_tokens=8, logprobs=2)
    outputs = llm.generate(["hello", "hello", "other"], [params, plain, params], use_tqdm=False)
    for output in outputs:
        completion = output.outputs[0]
        assert completion.logprobs is not None
        for token, step in zip(completion.token_ids, completion.logprobs, strict=True):
            # The best of the merged logits, not of the conditional lane's.
            assert step is not None and step[token].rank == 1
    assert any(LANE in row for step in watch.steps for rows in step.merged for row in rows)
    assert_nothing_left(llm)


def test_a_negative_prompt_must_be_given(llm: LLM) -> None:
    with pytest.raises(ValueError, match="negative_prompt must be given"):
        llm.generate("hello", SamplingParams(guidance_scale=3.0), use_tqdm=False)
    with pytest.raises(
        ValueError, match="negative_prompt must hold text that the model's tokenizer knows"
    ):
        params = SamplingParams(guidance_scale=3.0, negative_prompt="")
        llm.generate("hello", params, use_tqdm=False)
    params = SamplingParams(guidance_scale=3.0, negative_prompt="n", max_tokens=3, ignore_eos=True)
    (output,) = llm.generate("hello", params, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 3
    assert_nothing_left(llm)
