# SPDX-License-Identifier: Apache-2.0
"""What the scheduler does for sequence groups.

Inside `Scheduler.schedule` a group is one request whose tokens are those of all its lanes: budgets,
queues, priorities and preemption need no new cases. Before the step's output leaves the scheduler,
the group's entry is split into one per lane.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vllm.unison.messages.guidance import GuidanceStats, GuidedGroup, StepGuidance
from vllm.unison.messages.streams import StreamUpdate
from vllm.unison.model.spec import multistream_spec
from vllm.unison.scheduler.guidance_window import GuidanceWindow
from vllm.unison.scheduler.request_streams import enter_worker
from vllm.unison.scheduler.sequence_group import (
    EntryKind,
    LaneState,
    SequenceGroup,
    StepPlan,
    plan_step,
)
from vllm.v1.core.sched.output import NewRequestData

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import Request


class GroupScheduler:
    """The guidance side of a scheduler.

    Args:
        scheduler: the scheduler that calls it.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        spec = multistream_spec(scheduler.vllm_config.model_config)
        self._num_streams = 1 if spec is None else spec.layout.num_streams
        self._max_delay = 0 if spec is None else spec.layout.max_delay
        self._window = GuidanceWindow(None if spec is None else spec.table)
        # Upstream's V1 runner wants all tokens again of a row that sat out a step; V2 keeps it.
        self._is_v2: bool = scheduler.vllm_config.use_v2_model_runner
        self._placed_lanes: set[str] | None = None if self._is_v2 else set()
        self._scheduled: list[SequenceGroup] = []
        self._has_groups = False
        self.stats = GuidanceStats()

    def pop_stats(self) -> GuidanceStats:
        """Statistics of the newest step, and of what is counted since the last call."""
        running = self._scheduler.running if self._has_groups else ()
        groups = [request.group for request in running if request.group is not None]
        self.stats.running_groups = len(groups)
        self.stats.lanes = sum(len(group.guidance_lanes) for group in groups)
        self.stats.preempted_groups = self._manager.pop_num_preempted_groups()
        stats = replace(self.stats)
        self.stats.cached_tokens = 0
        return stats

    def make_group(self, request: Request) -> SequenceGroup | None:
        """The group of a new request; None without guidance."""
        if request.guidance is None:
            return None
        self._has_groups = True
        return SequenceGroup(request, request.guidance, self._num_streams, self._max_delay)

    def num_reserved_rows(self, candidate: Request) -> int:
        """Batch rows that guidance lanes of running requests and of a candidate may take."""
        if not self._has_groups:
            return 0
        groups = [request.group for request in (*self._scheduler.running, candidate)]
        return sum(group.max_guidance_lanes for group in groups if group is not None)

    def plan(self, request: Request, budget: int, num_computed: int | None = None) -> int:
        """Plan a group's step.

        Args:
            request: the conditional lane's request.
            budget: maximum number of tokens of all lanes together.
            num_computed: tokens of the conditional lane that are computed, if its Request does not
                say so yet (a prefix-cache hit at admission).

        Returns:
            Tokens of all lanes; 0 if the group must wait.
        """
        group = request.group
        assert group is not None
        group.plan = None
        if request.num_tokens + request.num_output_placeholders >= self._scheduler.max_model_len:
            # What is in flight ends the request: the context has no place for another token.
            return 0
        guided = self._window.of_next_token(group)
        if guided is None:
            return 0
        if guided.is_guided and not group.guidance_lanes:
            group.join(guided.stretch_start)
        elif not guided.is_guided and group.guidance_lanes:
            self._manager.free_lanes(group.leave())
        in_flight = request.num_output_placeholders
        remaining = []
        all_synced = True
        for lane in group.active_lanes:
            own = lane.request
            if not lane.is_conditional:
                lane.num_cached_tokens += self._manager.take_cached_prefix(lane)
            known, computed = own.num_tokens, own.num_computed_tokens
            if lane.is_conditional and num_computed is not None:
                computed = num_computed
            # Only lanes that sampled them have the tokens that are in flight.
            is_synced = (
                lane.is_placed(self._placed_lanes)
                and lane.num_tokens_on_worker == known + in_flight
            )
            remaining.append(known - computed + (in_flight if is_synced else 0))
            all_synced &= is_synced
        tokens, samples = plan_step(remaining, budget, not in_flight or all_synced)
        group.plan = StepPlan(group.active_lanes, tokens, samples, guided.frame)
        return group.plan.total

    def cancel_admission(self, request: Request) -> None:
        """Leave nothing behind of an admission that was planned but not made."""
        if request.group is not None:
            self._manager.free(request)

    def split(self, output: SchedulerOutput) -> None:
        """Replace the groups' entries in a step's output by entries of their lanes.

        Called before the conditional lanes' counters are advanced by what was scheduled.
        """
        if not self._has_groups:
            return
        requests = self._scheduler.requests
        self._scheduled = [
            group
            for request_id in output.num_scheduled_tokens
            if (group := requests[request_id].group) is not None
        ]
        entries = [
            (group, lane, lane.entry_kind(self._placed_lanes))
            for group in self._scheduled
            for lane, tokens in self._planned_lanes(group)
            if tokens
        ]
        kept = {
            lane.lane_id
            for group, lane, kind in entries
            if lane.is_conditional and self._keeps_entry(group, kind)
        }
        changed = [group.main.request_id for group in self._scheduled]
        _remove_entries(output, {request_id for request_id in changed if request_id not in kept})
        for group, lane, kind in entries:
            assert group.plan is not None
            if lane.lane_id in kept:
                lane.num_tokens_on_worker += 1
            else:
                self._add_entry(output, group.plan, lane, kind)
        for group in self._scheduled:
            self._add_group(output, group)
        output.finished_req_ids |= self._manager.pop_finished_lanes()
        preempted = self._manager.pop_preempted_lanes()
        if self._is_v2:
            output.preempted_req_ids = (output.preempted_req_ids or set()) | preempted
        else:
            self._placed_lanes = {lane.lane_id for _, lane, _ in entries}

    def _keeps_entry(self, group: SequenceGroup, kind: EntryKind) -> bool:
        """Whether upstream's entry of a group's request is right for its conditional lane.

        It is while the group samples step by step, unless the lane has blocks that the worker does
        not know: some of them may be left from a step in which another lane got none.
        """
        assert group.plan is not None
        lane = group.conditional_lane
        return (
            kind is EntryKind.CONTINUED
            and group.plan.samples
            and self._num_blocks(lane) == lane.num_blocks_on_worker
        )

    def _add_entry(
        self, output: SchedulerOutput, plan: StepPlan, lane: LaneState, kind: EntryKind
    ) -> None:
        """Tell the worker of a lane that computes tokens in this step."""
        request, lane_id = lane.request, lane.lane_id
        blocks = self._manager.coordinator.get_blocks(lane_id)
        num_blocks = [len(of_cache) for of_cache in blocks]
        if kind is EntryKind.NEW or (self._is_v2 and kind is EntryKind.RESUMED):
            known = list(request.all_token_ids)
            prefill = known if self._is_v2 else None
            new = NewRequestData.from_request(request, _ids_from(blocks), prefill)
            if kind is EntryKind.NEW:
                new.prompt_token_ids = known
            output.scheduled_new_reqs.append(new)
        else:
            cached = output.scheduled_cached_reqs
            num_tokens = request.num_tokens
            cached.req_ids.append(lane_id)
            if kind is EntryKind.RESUMED:
                cached.resumed_req_ids.add(lane_id)
                cached.all_token_ids[lane_id] = list(request.all_token_ids)
                cached.new_block_ids.append(_ids_from(blocks))
            else:
                num_tokens = lane.num_tokens_on_worker
                has_new = num_blocks != lane.num_blocks_on_worker
                cached.new_block_ids.append(
                    _ids_from(blocks, lane.num_blocks_on_worker) if has_new else None
                )
            cached.num_computed_tokens.append(request.num_computed_tokens)
            cached.num_output_tokens.append(num_tokens - lane.num_prompt_on_worker)
        if kind is not EntryKind.CONTINUED:
            assert not plan.samples or not plan.lanes[0].request.num_output_placeholders
            if request.streams is not None:
                output.streams = output.streams or StreamUpdate()
                enter_worker(output.streams, lane_id, request, has_audio=lane.is_conditional)
        self.stats.cached_tokens += lane.num_cached_tokens
        lane.note_entry(kind, num_blocks, plan.samples)

    def _add_group(self, output: SchedulerOutput, group: SequenceGroup) -> None:
        """Correct a group's number of tokens, and add it to those that sample with guidance."""
        plan, request_id = group.plan, group.main.request_id
        assert plan is not None
        if plan.tokens[0]:
            output.num_scheduled_tokens[request_id] = plan.tokens[0]
        else:
            del output.num_scheduled_tokens[request_id]
        if plan.samples and group.guidance_lanes:
            inputs = group.inputs
            output.guidance = output.guidance or StepGuidance()
            output.guidance.groups.append(
                GuidedGroup(group.lane_ids, group.weights, inputs.first, inputs.last)
            )
            output.guidance.frames.append(plan.frame)

    def complete(self, output: SchedulerOutput) -> SchedulerOutput:
        """Add the guidance lanes to a step's output and advance their counters."""
        if not self._has_groups:
            return output
        self.stats.guidance_rows = 0
        for group in self._scheduled:
            for lane, tokens in self._planned_lanes(group):
                lane.num_tokens_last_step = tokens
                if lane.is_conditional or not tokens:
                    continue
                self.stats.guidance_rows += 1
                output.num_scheduled_tokens[lane.lane_id] = tokens
                lane.request.num_computed_tokens += tokens
        self._scheduled = []
        return output

    @staticmethod
    def _planned_lanes(group: SequenceGroup) -> Iterator[tuple[LaneState, int]]:
        assert group.plan is not None
        return zip(group.plan.lanes, group.plan.tokens, strict=True)

    def _num_blocks(self, lane: LaneState) -> list[int]:
        """Per KV cache group the blocks of a lane."""
        return [len(of_cache) for of_cache in self._manager.coordinator.get_blocks(lane.lane_id)]

    @property
    def _manager(self) -> Any:
        return self._scheduler.kv_cache_manager


def _remove_entries(output: SchedulerOutput, request_ids: Collection[str]) -> None:
    """Remove what a step's output tells the worker of some requests."""
    if not request_ids:
        return
    output.scheduled_new_reqs[:] = [
        new for new in output.scheduled_new_reqs if new.req_id not in request_ids
    ]
    cached = output.scheduled_cached_reqs
    kept = [i for i, request_id in enumerate(cached.req_ids) if request_id not in request_ids]
    if len(kept) < len(cached.req_ids):
        for name in ("req_ids", "new_block_ids", "num_computed_tokens", "num_output_tokens"):
            values = getattr(cached, name)
            setattr(cached, name, [values[i] for i in kept])
    for request_id in request_ids:
        cached.resumed_req_ids.discard(request_id)
        cached.all_token_ids.pop(request_id, None)
        if output.streams is not None:
            output.streams.auxiliary_ids.pop(request_id, None)
            output.streams.audio_frames.pop(request_id, None)
            output.streams.encoder_inputs.pop(request_id, None)


def _ids_from(
    blocks: Sequence[Sequence[KVCacheBlock]], first: Sequence[int] | None = None
) -> tuple[list[int], ...]:
    """Block ids per KV cache group, from each group's first-th block on."""
    starts = first or [0] * len(blocks)
    return tuple(
        [block.block_id for block in of_cache[start:]]
        for of_cache, start in zip(blocks, starts, strict=True)
    )
