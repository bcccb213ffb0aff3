# SPDX-License-Identifier: Apache-2.0
"""What benchmarks hook into an engine's step is there, and does what it is said to do."""

from __future__ import annotations

import gc
import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.benchmark_acoustic_decoding import CodecClock, run_requests, time_codec
from benchmarks.benchmark_guidance import Variant, write_model
from benchmarks.profile_step import BACKBONE, PartTimer, instrument, profile
from tests.engine.streams.conftest import open_engine
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.sampling_params import RequestOutputKind
from vllm.unison.testing.random_checkpoint import write_random_speech_lm


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Variant]:
    model = write_model(tmp_path_factory.mktemp("model"), 64, 1, num_streams=3)
    variant = Variant("plain", str(model), max_model_len=128)
    yield variant
    variant.engine.engine_core.shutdown()
    del variant
    gc.collect()
    cleanup_dist_env_and_memory()


def tokens_of(variant: Variant, count: int, num_frames: int) -> list[list[int]]:
    """Of `count` requests, or pairs, in the order in which they were added."""
    ids = variant.start(count, num_frames)
    found: dict[str, list[int]] = {}
    while variant.engine.has_unfinished_requests():
        for output in variant.engine.step():
            found[output.request_id] = list(output.outputs[0].token_ids)
    return [found[request_id] for request_id in ids]


def test_pairs_that_are_merged_by_hand_get_the_tokens_of_guidance(variant: Variant) -> None:
    variant.become("naive")
    naive = tokens_of(variant, 3, 8)
    variant.become("plain")
    plain = tokens_of(variant, 3, 8)
    variant.become("guided")
    guided = tokens_of(variant, 3, 8)
    assert naive[::2] == naive[1::2]
    # The engine merges hidden states and the hook logits, which rounds otherwise in bfloat16.
    assert [tokens[0] for tokens in naive[::2]] == [tokens[0] for tokens in guided]
    assert guided != plain


def test_every_part_of_a_step_is_timed(variant: Variant) -> None:
    timer = PartTimer(itertools.count().__next__)
    instrument(variant.engine, timer)
    variant.become("guided")
    row = profile(variant, timer, 2, 4, statistics.median, is_streamed=True)
    parts = row["parts_ms"]
    assert set(parts) >= {
        "engine loop",
        "output processing",
        "schedule",
        "update from output",
        "input preparation",
        "batch update",
        "input streams",
        "embedding",
        BACKBONE,
        "output rows",
        "phases",
        "heads",
        "CFG merge",
        "sampling",
    }
    assert all(milliseconds > 0 for milliseconds in parts.values())
    assert 0 < row["outside_backbone"] < 1
    assert row["operators"][BACKBONE] > 0 and row["operators"]["sampling"] > 0


@pytest.mark.parametrize("kind", [RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY])
def test_the_codecs_calls_are_timed(kind: Any, tmp_path: Path) -> None:
    folder = write_random_speech_lm(tmp_path)
    with open_engine(folder) as llm:
        clock = CodecClock()
        time_codec(llm, clock)
        times = run_requests(llm, 1, kind, clock, "request")
    assert 0 < times["codec"] < times["total"]
    assert 0 < times["first"] <= times["total"]
    assert times["steps"] == pytest.approx(times["total"] - times["codec"])
