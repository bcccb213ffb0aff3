# SPDX-License-Identifier: Apache-2.0
"""Contract 2 for MusicGen: what a request gives does not depend on how lanes are scheduled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.guidance.conftest import Watch, assert_nothing_left, watch  # noqa: F401
from tests.engine.musicgen.cases import MIXED, codes_of
from tests.engine.musicgen.reference import MusicReference
from tests.engine.streams.conftest import open_engine

CHUNKED = {"max_num_batched_tokens": 16}
TINY_CACHE = {"num_gpu_blocks_override": 22, "max_model_len": 128}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "tokens 16, prefix cache": CHUNKED | {"enable_prefix_caching": True},
    "few rows": {"enable_prefix_caching": False, "max_num_seqs": 4},
    "preemption, tokens 16": TINY_CACHE | CHUNKED | {"enable_prefix_caching": False},
    "preemption, prefix cache, asynchronous": TINY_CACHE
    | {"enable_prefix_caching": True, "asynchronous": True},
    "tokens 16, asynchronous": CHUNKED | {"enable_prefix_caching": True, "asynchronous": True},
}


@pytest.fixture(scope="module")
def expected(music: Callable[[str], MusicReference]) -> list[Any]:
    return [case.expected(music("mono")) for case in MIXED]


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_codes_are_the_same(
    name: str,
    published: Callable[[str], Path],
    expected: list[Any],
    watch: Watch,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = dict(CONFIGURATIONS[name])
    asynchronous = options.pop("asynchronous", False)
    monkeypatch.setenv("UNISON_CPU_ASYNC_SCHEDULING", str(int(asynchronous)))
    with open_engine(published("mono"), **options) as llm:
        config = llm.llm_engine.vllm_config
        assert config.scheduler_config.async_scheduling is asynchronous
        assert config.cache_config.enable_prefix_caching is options["enable_prefix_caching"]
        for _ in range(2):
            outputs = llm.generate(
                [c.prompt for c in MIXED], [c.params for c in MIXED], use_tqdm=False
            )
            for case, output, codes in zip(MIXED, outputs, expected, strict=True):
                assert np.array_equal(codes_of(output), codes), case
            assert_nothing_left(llm)
        if "num_gpu_blocks_override" in options:
            assert watch.guided_mid_generation, watch.preemptions
        elif options["enable_prefix_caching"]:
            assert sum(output.num_cached_tokens or 0 for output in outputs) > 0
