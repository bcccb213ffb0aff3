# SPDX-License-Identifier: Apache-2.0
"""MusicGen Melody: codes of all streams equal transformers', whatever is scheduled beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.guidance.conftest import (
    Watch,
    assert_nothing_left,
    runner_of,
    watch,  # noqa: F401
)
from tests.engine.musicgen.cases import DRAWN, GREEDY, MusicCase, codes_of, generate
from tests.engine.musicgen.melody import MelodyReference, bins_of, tune
from tests.engine.musicgen.reference import MusicReference
from tests.engine.streams.conftest import open_engine
from tests.support.musicgen import CHROMA_LENGTH, t5_tokenizer
from vllm import LLM, SamplingParams
from vllm.unison.frontend.errors import InvalidRequestError
from vllm.unison.messages.conditioning import PrefixInput
from vllm.unison.worker.prefix_embeddings import PrefixEmbeddings

GUIDED = GREEDY | {"guidance_scale": 3.0}
TEXT, LONGER = "warm piano", "lo fi beat, slow drums and piano. noise jazz rock"
RISING, FALLING = tune([0, 2, 4, 5, 7, 9]), tune([12, 9, 5, 2, -3] * 3)
"""Shorter and longer than the positions of a melody."""
THREE_LANES = [{"weight": 2.5}, {"weight": -0.5, "prompt": LONGER}, {"weight": -1.0}]


def _mixed() -> list[MusicCase]:
    kinds: tuple[dict[str, Any], ...] = (
        {"guidance_scale": 3.0},
        {},
        {"guidance_scale": 2.0, "negative_prompt": "noise"},
        {"guidance_lanes": THREE_LANES},
    )
    texts, clips = (TEXT, LONGER, "beat"), (None, RISING, FALLING)
    cases = []
    for index in range(12):
        options = kinds[index % 4] | (GREEDY if index % 3 else DRAWN | {"seed": index})
        frames = (3, 17, 40, 24, 31)[index % 5]
        cases.append(MusicCase(texts[index % 3], frames, options, clips[index // 2 % 3]))
    return cases


MIXED = _mixed()
CHUNKED = {"max_num_batched_tokens": 16}
TINY_CACHE = {"num_gpu_blocks_override": 16, "max_model_len": 128}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "tokens 16, prefix cache": CHUNKED | {"enable_prefix_caching": True},
    "preemption, tokens 16": TINY_CACHE
    | CHUNKED
    | {"num_gpu_blocks_override": 12, "enable_prefix_caching": False},
    "preemption, prefix cache, asynchronous": TINY_CACHE
    | {"enable_prefix_caching": True, "asynchronous": True},
}


@pytest.fixture(scope="module")
def engine(published: Callable[[str], Path]) -> Iterator[LLM]:
    with open_engine(published("melody")) as llm:
        yield llm


def test_greedy_codes_are_those_of_generate(
    engine: LLM, music: Callable[[str], MusicReference]
) -> None:
    """Guided and not, with melodies and without."""
    cases = [
        MusicCase(text, 30, options, clip)
        for text in (TEXT, LONGER)
        for options in (GREEDY, GUIDED)
        for clip in (None, RISING, FALLING)
    ]
    outputs = generate(engine, cases)
    for case, output in zip(cases, outputs, strict=True):
        scale = case.options.get("guidance_scale", 1.0)
        codes, samples = music("melody").generate(case.text, 30, scale, case.clip)
        assert np.array_equal(codes_of(output), codes), case
        audio = output.outputs[0].audio
        assert audio is not None
        np.testing.assert_allclose(audio.samples, samples, atol=1e-5)
    assert len({codes_of(output).tobytes() for output in outputs}) == len(cases)
    assert_nothing_left(engine)


def test_prefixes_are_those_of_generate(
    engine: LLM, music: Callable[[str], MusicReference]
) -> None:
    reference = music("melody")
    assert isinstance(reference, MelodyReference)
    ids, bins = t5_tokenizer().encode(LONGER), bins_of(RISING)
    repeated = bytes(bins.tolist() * CHROMA_LENGTH)[:CHROMA_LENGTH]
    inputs = [
        PrefixInput(repeated, ids, len(ids)),
        PrefixInput(bytes(CHROMA_LENGTH), [], len(ids)),
    ]
    found = torch.stack(runner_of(engine).model.prefix_states(inputs))
    torch.testing.assert_close(found, reference.prefixes(ids, bins), atol=1e-5, rtol=0)
    assert (found[1, CHROMA_LENGTH:] == 0).all() and (found[1, :CHROMA_LENGTH] != 0).any()


def test_stereo(published: Callable[[str], Path], music: Callable[[str], MusicReference]) -> None:
    cases = [MusicCase(TEXT, 20, options, RISING) for options in (GREEDY, GUIDED)]
    with open_engine(published("stereo melody")) as llm:
        outputs = generate(llm, cases)
    for case, output in zip(cases, outputs, strict=True):
        scale = case.options.get("guidance_scale", 1.0)
        codes, samples = music("stereo melody").generate(case.text, 20, scale, case.clip)
        assert codes.shape == (20, 8)
        assert np.array_equal(codes_of(output), codes), case
        audio = output.outputs[0].audio
        assert audio is not None
        np.testing.assert_allclose(audio.samples, samples, atol=1e-5)


def test_all_kinds_of_requests_in_one_batch(
    engine: LLM, music: Callable[[str], MusicReference]
) -> None:
    """Negative prompts, three lanes, seeds; by the reference's loop."""
    outputs = generate(engine, MIXED)
    for case, output in zip(MIXED, outputs, strict=True):
        assert np.array_equal(codes_of(output), case.expected(music("melody"))), case
    assert_nothing_left(engine)


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_codes_do_not_depend_on_the_schedule(
    name: str,
    published: Callable[[str], Path],
    music: Callable[[str], MusicReference],
    watch: Watch,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = [case.expected(music("melody")) for case in MIXED]
    options = dict(CONFIGURATIONS[name])
    asynchronous = options.pop("asynchronous", False)
    monkeypatch.setenv("UNISON_CPU_ASYNC_SCHEDULING", str(int(asynchronous)))
    with open_engine(published("melody"), **options) as llm:
        assert llm.llm_engine.vllm_config.scheduler_config.async_scheduling is asynchronous
        for _ in range(2):
            outputs = generate(llm, MIXED)
            for case, output, codes in zip(MIXED, outputs, expected, strict=True):
                assert np.array_equal(codes_of(output), codes), case
            assert_nothing_left(llm)
        if "num_gpu_blocks_override" in options:
            assert watch.guided_mid_generation, watch.preemptions
        if options["enable_prefix_caching"]:
            assert sum(output.num_cached_tokens or 0 for output in outputs) > 0


def test_blocks_are_shared_by_equal_texts_and_melodies_only(
    published: Callable[[str], Path], music: Callable[[str], MusicReference]
) -> None:
    """Their ids are the same: placeholders, and the start column."""
    swapped = " ".join(reversed(LONGER.split()))
    with open_engine(published("melody"), enable_prefix_caching=True) as llm:
        for text, clip, num_cached in (
            (LONGER, RISING, 0),
            (swapped, RISING, 0),
            (LONGER, FALLING, 0),
            (LONGER, None, 0),
            (LONGER, RISING, 32),
            (LONGER, FALLING, 32),
            (LONGER, None, 32),
        ):
            case = MusicCase(text, 9, GREEDY, clip)
            (output,) = generate(llm, [case])
            assert output.prompt_token_ids == [64] * len(output.prompt_token_ids)
            assert len(output.prompt_token_ids) > 32
            assert output.num_cached_tokens == num_cached, (text, num_cached)
            assert np.array_equal(codes_of(output), case.expected(music("melody")))


def test_audio_is_not_continued(engine: LLM) -> None:
    kwargs = {"duration": 2, "extend_stride": 0.5}
    prompt: Any = {"prompt": TEXT, "mm_processor_kwargs": kwargs}
    message = "^extend_stride is not supported: the model does not go on from audio"
    with pytest.raises(InvalidRequestError, match=message):
        engine.generate(prompt, SamplingParams(**GREEDY), use_tqdm=False)


def test_states_are_kept_while_a_prompt_is_computed(
    published: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And steps in which no row is in its prompt write nothing."""
    kept, replaced = [], []
    prepare = PrefixEmbeddings.prepare_inputs

    def watching(
        self: PrefixEmbeddings, slots: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor
    ) -> None:
        prepare(self, slots, rows, positions)
        kept.append(self.num_lanes)
        replaced.append(int(tokens.is_prefix[: len(rows)].sum()))

    monkeypatch.setattr(PrefixEmbeddings, "prepare_inputs", watching)
    with open_engine(published("melody"), **CHUNKED) as llm:
        tokens = runner_of(llm).model.prefix_tokens
        (output,) = generate(llm, [MusicCase(TEXT, 5, GREEDY, RISING)])
    assert len(codes_of(output)) == 5
    num_states = len(output.prompt_token_ids) - 1
    assert 16 <= num_states < 32
    # The prompt takes two steps, and 5 frames with their delays 7 more.
    assert kept[:9] == [1, 1, *[0] * 7] and set(kept[9:]) <= {0}
    assert replaced[:9] == [16, num_states - 16, *[0] * 7] and set(replaced[9:]) <= {0}
