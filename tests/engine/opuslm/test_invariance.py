# SPDX-License-Identifier: Apache-2.0
"""Contract 2 for OpusLM: what a request gives does not depend on how it is scheduled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.opuslm.cases import CASES, MAX_MODEL_LEN
from tests.engine.streams.cases import assert_equals
from tests.engine.streams.conftest import open_engine
from tests.engine.streams.reference import Generated, Reference

CHUNKED = {"max_num_batched_tokens": 16}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "tokens 16, prefix cache": CHUNKED | {"enable_prefix_caching": True},
    "preemption, tokens 16, asynchronous": CHUNKED
    | {"enable_prefix_caching": False, "num_gpu_blocks_override": 10, "asynchronous": True},
}


@pytest.fixture(scope="module")
def expected(reference: Callable[[str], Reference]) -> list[Generated]:
    return [case.expected(reference("llama")) for case in CASES]


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_outputs_are_the_same(
    name: str,
    published: Callable[[str], Path],
    expected: list[Generated],
    preempted: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = dict(CONFIGURATIONS[name])
    asynchronous = options.pop("asynchronous", False)
    monkeypatch.setenv("UNISON_CPU_ASYNC_SCHEDULING", str(int(asynchronous)))
    with open_engine(published("llama"), max_model_len=MAX_MODEL_LEN, **options) as llm:
        config = llm.llm_engine.vllm_config
        assert config.scheduler_config.async_scheduling is asynchronous
        for _ in range(2 if options["enable_prefix_caching"] else 1):
            outputs = llm.generate(
                [case.prompt for case in CASES], [case.params for case in CASES], use_tqdm=False
            )
            for case, output, found in zip(CASES, outputs, expected, strict=True):
                assert_equals(output, found, repr(case))
        if options["enable_prefix_caching"]:
            assert sum(output.num_cached_tokens or 0 for output in outputs) > 0
        else:
            assert max(preempted, default=0) > 0
