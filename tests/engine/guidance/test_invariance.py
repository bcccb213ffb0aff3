# SPDX-License-Identifier: Apache-2.0
"""Contract 2 with guidance: what a request gives does not depend on how groups are scheduled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.guidance.cases import MIXED, Model
from tests.engine.guidance.conftest import Watch, assert_nothing_left
from tests.engine.streams.cases import Case, assert_equals, comparable
from tests.engine.streams.conftest import open_engine
from vllm import LLM, RequestOutput

CHUNKED = {"max_num_batched_tokens": 16}
TINY_CACHE = {"num_gpu_blocks_override": 15}
CACHED = {"enable_prefix_caching": True}
UNCACHED = {"enable_prefix_caching": False}
ASYNCHRONOUS = {"asynchronous": True}
PRIORITIES = {"scheduling_policy": "priority"}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "tokens 16, prefix cache": CHUNKED | CACHED,
    "tokens 64, few rows": UNCACHED | {"max_num_batched_tokens": 64, "max_num_seqs": 4},
    "preemption": TINY_CACHE | UNCACHED,
    "preemption, tokens 16, prefix cache": TINY_CACHE | CHUNKED | CACHED,
    "asynchronous, prefix cache": CACHED | ASYNCHRONOUS,
    "asynchronous, tokens 16, preemption": TINY_CACHE | CHUNKED | UNCACHED | ASYNCHRONOUS,
    "asynchronous, tokens 64, preemption, prefix cache, few rows": TINY_CACHE
    | CACHED
    | ASYNCHRONOUS
    | {"num_gpu_blocks_override": 11, "max_num_batched_tokens": 64, "max_num_seqs": 5},
    "priorities, tokens 64, preemption": TINY_CACHE
    | UNCACHED
    | PRIORITIES
    | {"max_num_batched_tokens": 64},
    "priorities, asynchronous, tokens 16, preemption, prefix cache": TINY_CACHE
    | CACHED
    | PRIORITIES
    | ASYNCHRONOUS
    | CHUNKED,
}


def _generate(llm: LLM, cases: list[Case], **options: Any) -> list[RequestOutput]:
    prompts = [c.prompt for c in cases]
    return llm.generate(prompts, [c.params for c in cases], use_tqdm=False, **options)


@pytest.fixture(scope="module")
def baselines(model: Callable[[str], Model]) -> Callable[[str], list[Any]]:
    """Of a model: all requests in one batch of whole prompts, which equal the reference's."""
    found: dict[str, list[Any]] = {}

    def get(name: str) -> list[Any]:
        if name not in found:
            options = UNCACHED | {
                "max_num_batched_tokens": 4096,
                "max_num_seqs": 64,
                "async_scheduling": False,
            }
            with open_engine(model(name).folder, **options) as llm:
                assert not llm.llm_engine.vllm_config.scheduler_config.async_scheduling
                outputs = _generate(llm, MIXED)
                assert_nothing_left(llm)
            for case, output in zip(MIXED, outputs, strict=True):
                assert_equals(output, model(name).expected(case), f"{name} {case}")
            found[name] = [comparable(output) for output in outputs]
        return found[name]

    return get


def _assert_same(outputs: list[RequestOutput], baseline: list[Any]) -> None:
    for index, (output, expected) in enumerate(zip(outputs, baseline, strict=True)):
        assert comparable(output) == expected, MIXED[index]


def _check(
    model: Model,
    baseline: list[Any],
    configuration: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twice the same outputs, with nothing left behind."""
    options = dict(configuration)
    asynchronous = options.pop("asynchronous", False)
    monkeypatch.setenv("UNISON_CPU_ASYNC_SCHEDULING", str(int(asynchronous)))
    more: dict[str, Any] = {}
    if "scheduling_policy" in options:
        # The first come last, so that they are preempted by those that follow.
        more["priority"] = [len(MIXED) - i for i in range(len(MIXED))]
    with open_engine(model.folder, **options) as llm:
        config = llm.llm_engine.vllm_config.scheduler_config
        assert config.async_scheduling is asynchronous
        for _ in range(2):
            outputs = _generate(llm, MIXED, **more)
            _assert_same(outputs, baseline)
            assert_nothing_left(llm)
        if options["enable_prefix_caching"] and "num_gpu_blocks_override" not in options:
            assert sum(output.num_cached_tokens or 0 for output in outputs) > 0


@pytest.mark.parametrize("configuration", list(CONFIGURATIONS))
def test_outputs_are_the_same(
    configuration: str,
    model: Callable[[str], Model],
    baselines: Callable[[str], list[Any]],
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    baseline = baselines("constant")
    watch.preemptions.clear()
    options = CONFIGURATIONS[configuration]
    _check(model("constant"), baseline, options, monkeypatch)
    print(
        configuration,
        len(watch.preemptions),
        len(watch.guided_mid_generation),
        len(watch.guided_mid_prefill),
    )
    if "num_gpu_blocks_override" in options:
        assert watch.guided_mid_generation, watch.preemptions
    else:
        assert not watch.preemptions


@pytest.mark.parametrize("name", ["audio_only", "pads"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
def test_outputs_with_lanes_that_join_late_are_the_same(
    name: str,
    asynchronous: bool,
    model: Callable[[str], Model],
    baselines: Callable[[str], list[Any]],
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    baseline = baselines(name)
    watch.preemptions.clear()
    options = TINY_CACHE | CACHED | {"max_num_batched_tokens": 24, "asynchronous": asynchronous}
    _check(model(name), baseline, options, monkeypatch)
    assert watch.guided_mid_generation, watch.preemptions


@pytest.mark.slow
@pytest.mark.processes
def test_two_tensor_parallel_ranks_give_the_same(
    model: Callable[[str], Model], baselines: Callable[[str], list[Any]], tmp_path: Path
) -> None:
    script = "tests.engine.guidance.run_in_tensor_parallel"
    result = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", script, str(model("constant").folder), str(result)],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads(result.read_text())
    for case, (token_ids, reason, codes), [(expected, _, end, audio)] in zip(
        MIXED, rows, baselines("constant"), strict=True
    ):
        assert token_ids == expected, case
        assert reason == end, case
        assert codes == (None if audio is None else audio[0]), case
