# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with null prompts, and what the engine does with groups, watched."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from tests.engine.guidance.cases import Model
from tests.engine.guidance.checkpoints import CHECKPOINTS
from tests.engine.streams.conftest import emitted_steps  # noqa: F401
from vllm import LLM, RequestOutput, SamplingParams
from vllm.v1.core.sched.scheduler import Scheduler

LANE = "#lane"
"""Part of the ids of guidance lanes' rows."""


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """The tensors of these tests are too small to gain from threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """A model of CHECKPOINTS, written once."""
    models: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in models:
            models[name] = Model.of(CHECKPOINTS[name](tmp_path_factory.mktemp(name)))
        return models[name]

    return get


def scheduler_of(llm: LLM) -> Any:
    """The scheduler of an engine in this process."""
    core: Any = llm.llm_engine.engine_core
    return core.engine_core.scheduler


def num_blocks(scheduler: Any, lane_ids: Iterable[str]) -> int:
    """KV blocks that rows hold."""
    manager = scheduler.kv_cache_manager
    return sum(len(blocks) for lane_id in lane_ids for blocks in manager.get_blocks(lane_id).blocks)


def runner_of(llm: LLM) -> Any:
    """The worker's model runner of an engine in this process."""
    core: Any = llm.llm_engine.engine_core
    return core.engine_core.model_executor.driver_worker.worker.model_runner


def rows_of(llm: LLM) -> Collection[str]:
    """The requests and lanes that the worker of an engine in this process knows."""
    runner = runner_of(llm)
    # By the V2 runner, and by V1.
    states = getattr(runner, "req_states", None)
    return runner.requests if states is None else states.req_id_to_index


def assert_nothing_left(llm: LLM) -> None:
    """All blocks are free, and the worker keeps no lane and no slot of earlier requests."""
    assert not llm.llm_engine.has_unfinished_requests()
    scheduler, runner = scheduler_of(llm), runner_of(llm)
    # The worker learns with the next step what has ended.
    params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
    (last,) = llm.generate("x", params, use_tqdm=False)
    assert last.finished
    pool = scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1  # without the null block
    assert [block.ref_cnt for block in pool.blocks if not block.is_null and block.ref_cnt] == []
    assert not scheduler.requests
    rows = rows_of(llm)
    assert len(rows) <= 1, list(rows)
    assert not any(LANE in request_id for request_id in rows)
    if hasattr(runner.adapter, "worker"):
        assert runner.adapter.worker.slots.num_slots_in_use() <= 1


def run_steps(llm: LLM, limit: int = 2000) -> dict[str, RequestOutput]:
    """Step until all requests have ended; their last outputs by id."""
    finished: dict[str, RequestOutput] = {}
    for _ in range(limit):
        if not llm.llm_engine.has_unfinished_requests():
            return finished
        for output in llm.llm_engine.step():
            assert isinstance(output, RequestOutput)
            if output.finished:
                finished[output.request_id] = output
    raise AssertionError(f"unfinished after {limit} steps")


@dataclass
class Preemption:
    """A preempted request.

    Attributes:
        is_guided: whether it had guidance lanes.
        num_output_tokens: that it had generated.
        lanes: (computed, known) tokens of every guidance lane.
        num_blocks_left: KV blocks that any of its lanes holds afterwards.
    """

    is_guided: bool
    num_output_tokens: int
    lanes: list[tuple[int, int]]
    num_blocks_left: int = 0


@dataclass
class Step:
    """What a step did with guided requests.

    Attributes:
        computed: row id to the tokens that the step computed, of lanes and conditional lanes.
        sampled: ids of the rows that were sampled.
        merged: the groups that were merged, as row ids.
    """

    computed: dict[str, int]
    sampled: set[str]
    merged: list[list[str]]


@dataclass
class Watch:
    """Preemptions and steps so far."""

    preemptions: list[Preemption] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    @property
    def guided_mid_generation(self) -> list[Preemption]:
        """Preemptions of groups that had generated something."""
        return [p for p in self.preemptions if p.lanes and p.num_output_tokens > 0]

    @property
    def guided_mid_prefill(self) -> list[Preemption]:
        """Preemptions of groups with a lane that had computed a part of its prompt."""
        return [
            p
            for p in self.preemptions
            if p.num_output_tokens == 0 and any(0 < done < known - 1 for done, known in p.lanes)
        ]

    def assert_merged_or_not_sampled(self) -> None:
        """In no step a part of a guided group was sampled alone.

        For models that guide from the first step on.
        """
        assert any(step.merged for step in self.steps)
        for step in self.steps:
            in_merge = {lane_id for rows in step.merged for lane_id in rows}
            assert step.sampled == in_merge, step


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Records of the engines that run in this process during the test."""
    watch = Watch()
    preempt = Scheduler._preempt_request

    def preempting(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        lanes = [] if request.group is None else request.group.guidance_lanes
        preemption = Preemption(
            request.group is not None,
            request.num_output_tokens,
            [(row.request.num_computed_tokens, row.request.num_tokens) for row in lanes],
        )
        preempt(self, request, *args, **kwargs)
        lane_ids = [request.request_id, *(row.lane_id for row in lanes)]
        preemption.num_blocks_left = num_blocks(self, lane_ids)
        watch.preemptions.append(preemption)

    monkeypatch.setattr(Scheduler, "_preempt_request", preempting)
    schedule, update = Scheduler.schedule, Scheduler.update_from_output
    guided_rows: list[tuple[Any, dict[str, int]]] = []

    def scheduling(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = schedule(self, *args, **kwargs)
        guided = {name for name, request in self.requests.items() if request.guidance is not None}
        rows = output.num_scheduled_tokens.items()
        computed = {row: count for row, count in rows if row.partition(LANE)[0] in guided}
        guided_rows.append((output, computed))
        return output

    def updating(self: Any, output: Any, result: Any) -> Any:
        computed = next((rows for of_step, rows in guided_rows if of_step is output), None)
        if computed is None:
            # Scheduled before the test, and in flight when it began.
            return update(self, output, result)
        tokens = zip(result.req_ids, result.sampled_token_ids, strict=True)
        sampled = {row for row, ids in tokens if ids}
        groups = [] if output.guidance is None else output.guidance.groups
        merged = [list(group.lane_ids) for group in groups]
        watch.steps.append(Step(computed, sampled & computed.keys(), merged))
        return update(self, output, result)

    monkeypatch.setattr(Scheduler, "schedule", scheduling)
    monkeypatch.setattr(Scheduler, "update_from_output", updating)
    return watch
