# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with null prompts, and what the engine does with groups, watched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from tests.guidance.engine.cases import Model
from tests.guidance.engine.checkpoints import CHECKPOINTS
from tests.multistream.engine.conftest import emitted_steps  # noqa: F401
from vllm import LLM, RequestOutput, SamplingParams
from vllm.guidance.inputs import is_guided
from vllm.guidance.worker import GuidedRunner
from vllm.multistream.worker import runner as multistream_runner
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


def num_blocks(scheduler: Any, row_ids: Iterable[str]) -> int:
    """KV blocks that rows hold."""
    manager = scheduler.kv_cache_manager
    return sum(len(blocks) for row_id in row_ids for blocks in manager.get_blocks(row_id).blocks)


def runner_of(llm: LLM) -> Any:
    """The worker's model runner of an engine in this process."""
    core: Any = llm.llm_engine.engine_core
    return core.engine_core.model_executor.driver_worker.worker.model_runner


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
    assert len(runner.requests) <= 1, list(runner.requests)
    assert not any(LANE in request_id for request_id in runner.requests)
    if hasattr(runner, "_streams"):
        assert runner._streams.num_slots_in_use() <= 1


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
    """What the worker did with guided requests in a step.

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
            in_merge = {row_id for rows in step.merged for row_id in rows}
            assert step.sampled == in_merge, step


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Records of the engines that run in this process during the test."""
    watch = Watch()
    preempt = Scheduler._preempt_request

    def preempting(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        lanes = [] if request.group is None else request.group.lanes
        preemption = Preemption(
            request.group is not None,
            request.num_output_tokens,
            [(row.request.num_computed_tokens, row.request.num_tokens) for row in lanes],
        )
        preempt(self, request, *args, **kwargs)
        row_ids = [request.request_id, *(row.row_id for row in lanes)]
        preemption.num_blocks_left = num_blocks(self, row_ids)
        watch.preemptions.append(preemption)

    monkeypatch.setattr(Scheduler, "_preempt_request", preempting)
    update = GuidedRunner._update_states

    def updating(self: Any, scheduler_output: Any) -> Any:
        self._computed = dict(scheduler_output.num_scheduled_tokens)
        return update(self, scheduler_output)

    monkeypatch.setattr(GuidedRunner, "_update_states", updating)
    for runner, name in (
        (GuidedRunner, "_sample"),
        (multistream_runner._MultiStreamRunner, "_sample_streams"),
    ):
        monkeypatch.setattr(runner, name, _recording(getattr(runner, name), watch))
    return watch


def _recording(sample: Any, watch: Watch) -> Any:
    def sampling(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = self.input_batch
        guided = {
            row_id for row_id in batch.req_ids if is_guided(self.requests[row_id].sampling_params)
        }
        discarded = self.discard_request_mask.np[: batch.num_reqs]
        sampled = {row for row, no in zip(batch.req_ids, discarded, strict=True) if not no}
        merged = [list(group.row_ids) for group in self._guidance or ()]
        computed = {row: self._computed[row] for row in guided}
        watch.steps.append(Step(computed, sampled & guided, merged))
        return sample(self, *args, **kwargs)

    return sampling
