# SPDX-License-Identifier: Apache-2.0
"""Contract 2 for MusicGen Melody, and what its engines share, keep and write."""

from __future__ import annotations

from collections.abc import Callable
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
from tests.engine.musicgen.cases import GREEDY, MusicCase, codes_of, generate
from tests.engine.musicgen.melody import (
    FALLING,
    GUIDED,
    LONGER,
    MIXED,
    RISING,
    TEXT,
)
from tests.engine.musicgen.reference import MusicReference
from tests.engine.streams.conftest import open_engine
from vllm.unison.worker.prefix_embeddings import PrefixEmbeddings

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
