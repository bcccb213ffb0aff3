# SPDX-License-Identifier: Apache-2.0
"""Contract 2: what a request gives does not depend on how the engine schedules it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.streams.cases import CASES, SAMPLES_PER_FRAME, Case, assert_equals, comparable
from tests.engine.streams.conftest import open_engine
from tests.engine.streams.reference import Reference
from vllm import LLM, RequestOutput
from vllm.unison.testing.random_checkpoint import BEGIN_TEXT, FIRST_TEXT

NAME = "llama_nine"
CHUNKED = {"max_num_batched_tokens": 16}
TINY_CACHE = {"num_gpu_blocks_override": 13}
CACHED = {"enable_prefix_caching": True}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "tokens 16, prefix cache": CHUNKED | CACHED,
    "tokens 64": {"max_num_batched_tokens": 64, "enable_prefix_caching": False},
    "preemption": TINY_CACHE | {"enable_prefix_caching": False},
    "preemption, tokens 64, prefix cache, few rows": TINY_CACHE
    | CACHED
    | {"max_num_batched_tokens": 64, "max_num_seqs": 5},
    "asynchronous": {"enable_prefix_caching": False, "asynchronous": True},
    "asynchronous, preemption, tokens 16, prefix cache": TINY_CACHE
    | CHUNKED
    | CACHED
    | {"asynchronous": True},
}


def _generate(llm: LLM, cases: list[Case]) -> list[RequestOutput]:
    return llm.generate([c.prompt for c in cases], [c.params for c in cases], use_tqdm=False)


@pytest.fixture(scope="module")
def baseline(checkpoint: Callable[[str], Path]) -> list[Any]:
    """All requests in one batch of whole prompts, with nothing cached."""
    with open_engine(
        checkpoint(NAME),
        max_num_batched_tokens=4096,
        enable_prefix_caching=False,
        async_scheduling=False,
    ) as llm:
        assert not llm.llm_engine.vllm_config.scheduler_config.async_scheduling
        outputs = _generate(llm, CASES)
    return [comparable(output) for output in outputs]


def _assert_same(outputs: list[RequestOutput], baseline: list[Any]) -> None:
    for index, (output, expected) in enumerate(zip(outputs, baseline, strict=True)):
        assert comparable(output) == expected, CASES[index]


@pytest.mark.parametrize("configuration", list(CONFIGURATIONS))
def test_outputs_are_the_same(
    configuration: str,
    checkpoint: Callable[[str], Path],
    baseline: list[Any],
    preempted: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = dict(CONFIGURATIONS[configuration])
    asynchronous = options.pop("asynchronous", False)
    monkeypatch.setenv("UNISON_CPU_ASYNC_SCHEDULING", str(int(asynchronous)))
    with open_engine(checkpoint(NAME), **options) as llm:
        config = llm.llm_engine.vllm_config
        assert config.scheduler_config.async_scheduling is asynchronous
        first = _generate(llm, CASES)
        _assert_same(first, baseline)
        again = _generate(llm, CASES)
        _assert_same(again, baseline)
        if options.get("enable_prefix_caching"):
            assert sum(output.num_cached_tokens or 0 for output in again) > 0
        else:
            assert all(not output.num_cached_tokens for output in first + again)
    if "num_gpu_blocks_override" in options:
        # In the middle of generation, so that streams had to be brought back.
        assert sum(count > 0 for count in preempted) >= 2, preempted
    else:
        assert not preempted


def test_requests_that_switch_phases_survive_preemption(
    checkpoint: Callable[[str], Path],
    reference: Callable[[str], Reference],
    preempted: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against the reference: several segments of audio per request, delayed suffixes overlap."""
    monkeypatch.setenv("UNISON_CPU_ASYNC_SCHEDULING", "1")
    cases = [
        Case(text=f"request {i}", options={"max_tokens": 70, "min_tokens": 40 + i})
        for i in range(4)
    ]
    cases += [
        Case(
            token_ids=(BEGIN_TEXT, FIRST_TEXT + i),
            options={"max_tokens": 80, "seed": i, "ignore_eos": True, "temperature": 1.0},
        )
        for i in range(6)
    ]
    with open_engine(
        checkpoint("switching"), max_num_batched_tokens=48, num_gpu_blocks_override=10
    ) as llm:
        outputs = _generate(llm, cases)
    segments = 0
    for case, output in zip(cases, outputs, strict=True):
        expected = case.expected(reference("switching"))
        assert_equals(output, expected, str(case))
        segments = max(segments, expected.num_segments)
    assert segments > 1
    assert sum(count > 0 for count in preempted) >= 2, preempted


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.processes
def test_two_tensor_parallel_ranks_give_the_same(
    checkpoint: Callable[[str], Path], baseline: list[Any], tmp_path: Path
) -> None:
    script = "tests.engine.streams.run_in_tensor_parallel"
    result = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", script, str(checkpoint(NAME)), str(result)],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads(result.read_text())
    for case, (*got, codes, num_samples), [(*expected, audio)] in zip(
        CASES, rows, baseline, strict=True
    ):
        assert got == expected, case
        assert codes == (None if audio is None else audio[0]), case
        assert num_samples == (None if codes is None else len(codes) * SAMPLES_PER_FRAME), case
