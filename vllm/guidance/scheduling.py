# SPDX-License-Identifier: Apache-2.0
"""What the scheduler does for sequence groups.

Inside `Scheduler.schedule` a group is one request whose tokens are those of all its lanes: budgets,
queues, priorities and preemption need no new cases. Before the step's output leaves the scheduler,
the group's entry is split into one row per lane.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vllm.guidance.group import Row, SequenceGroup, StepPlan, plan_step
from vllm.guidance.rows import GuidanceStats, GuidedRows
from vllm.guidance.timing import GuidanceTiming
from vllm.multistream.messages import StreamUpdate
from vllm.multistream.request import enter_worker
from vllm.multistream.spec import multistream_spec
from vllm.v1.core.sched.output import NewRequestData

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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
        self._timing = GuidanceTiming(None if spec is None else spec.table)
        self._rows_last_step: set[str] = set()
        self._scheduled: list[SequenceGroup] = []
        self._has_groups = False
        self.stats = GuidanceStats()

    def take_stats(self) -> GuidanceStats:
        """Statistics of the newest step, and of what is counted since the last call."""
        running = self._scheduler.running if self._has_groups else ()
        groups = [request.group for request in running if request.group is not None]
        self.stats.running_groups = len(groups)
        self.stats.lanes = sum(len(group.lanes) for group in groups)
        self.stats.preempted_groups = self._manager.take_num_preempted_groups()
        taken = replace(self.stats)
        self.stats.cached_tokens = 0
        return taken

    def make_group(self, request: Request) -> SequenceGroup | None:
        """The group of a new request; None without guidance."""
        if request.guidance is None:
            return None
        self._has_groups = True
        return SequenceGroup(request, request.guidance, self._num_streams, self._max_delay)

    def extra_rows(self, candidate: Request) -> int:
        """Rows that guidance lanes of running requests and of a candidate take or may take."""
        if not self._has_groups:
            return 0
        groups = [request.group for request in (*self._scheduler.running, candidate)]
        return sum(group.most_lanes for group in groups if group is not None)

    def plan(self, request: Request, budget: int, num_computed: int | None = None) -> int:
        """Plan a group's step.

        Args:
            request: the conditional lane's request.
            budget: most tokens of all lanes together.
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
        guided = self._timing.of_next_token(group)
        if guided is None:
            return 0
        if guided.is_guided and not group.lanes:
            group.join(guided.stretch_start)
        elif not guided.is_guided and group.lanes:
            self._manager.free_lanes(group.leave())
        in_flight = request.num_output_placeholders
        computed = request.num_computed_tokens if num_computed is None else num_computed
        remaining = []
        all_hold = True
        for row in group.rows:
            lane = row.request
            if not row.is_main:
                row.num_adopted += self._manager.adopt_cached_prefix(row)
                computed = lane.num_computed_tokens
            known = lane.num_tokens
            # Only lanes that sampled in the last step hold the tokens that are in flight.
            holds = row.row_id in self._rows_last_step and row.num_held == known + in_flight
            remaining.append(known - computed + (in_flight if holds else 0))
            all_hold &= holds
        can_level = not in_flight or all_hold
        tokens, samples = plan_step(remaining, budget, can_level)
        group.plan = StepPlan(group.rows, tokens, samples, guided.frame)
        return group.plan.total

    def _take_row_blocks(self, row: Row) -> tuple[list[int], ...] | None:
        """The blocks of a lane that goes on which the worker has not been told of, if any."""
        blocks = self._manager.coordinator.get_blocks(row.row_id)
        sent = row.num_blocks_sent
        assert sent is not None
        counts = [len(of_cache) for of_cache in blocks]
        if counts == sent:
            return None
        row.num_blocks_sent = counts
        return _ids_from(blocks, sent)

    def give_up(self, request: Request) -> None:
        """Leave nothing behind of an admission that was planned but not made."""
        if request.group is not None:
            self._manager.free(request)

    def split(self, output: SchedulerOutput) -> None:
        """Replace the groups' entries in a step's output by entries of their lanes' rows.

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
        going_on = [self._goes_on(group) for group in self._scheduled]
        changed = {
            group.main_row.row_id
            for group, goes_on in zip(self._scheduled, going_on, strict=True)
            if not goes_on
        }
        if changed:
            self._remove_entries(output, changed)
        for group, goes_on in zip(self._scheduled, going_on, strict=True):
            self._split_group(output, group, goes_on)
        output.finished_req_ids |= self._manager.take_finished_rows()
        self._rows_last_step = {row.row_id for row, tokens in self._scheduled_rows() if tokens}

    def complete(self, output: SchedulerOutput) -> SchedulerOutput:
        """Add the guidance lanes' rows to a step's output and advance their counters."""
        if not self._has_groups:
            return output
        self.stats.guidance_rows = 0
        for row, tokens in self._scheduled_rows():
            row.num_last = tokens
            if row.is_main or not tokens:
                continue
            self.stats.guidance_rows += 1
            output.num_scheduled_tokens[row.row_id] = tokens
            row.request.num_computed_tokens += tokens
        self._scheduled = []
        return output

    def _scheduled_rows(self) -> Iterable[tuple[Row, int]]:
        for group in self._scheduled:
            assert group.plan is not None
            yield from zip(group.plan.rows, group.plan.tokens, strict=True)

    @staticmethod
    def _remove_entries(output: SchedulerOutput, row_ids: set[str]) -> None:
        output.scheduled_new_reqs[:] = [
            new for new in output.scheduled_new_reqs if new.req_id not in row_ids
        ]
        cached = output.scheduled_cached_reqs
        if not row_ids.isdisjoint(cached.req_ids):
            kept = [i for i, row_id in enumerate(cached.req_ids) if row_id not in row_ids]
            for name in ("req_ids", "new_block_ids", "num_computed_tokens", "num_output_tokens"):
                values = getattr(cached, name)
                setattr(cached, name, [values[i] for i in kept])
            cached.resumed_req_ids -= row_ids
            for row_id in row_ids:
                cached.all_token_ids.pop(row_id, None)
        if output.streams is not None:
            for row_id in row_ids:
                output.streams.auxiliary_ids.pop(row_id, None)
                output.streams.audio_frames.pop(row_id, None)

    def _goes_on(self, group: SequenceGroup) -> bool:
        """Whether all lanes sampled in the last step and compute their next token in this one.

        Upstream's entry then holds for the conditional lane, unless the lane has new blocks: some
        of them may be left from a try in which another lane got none.
        """
        plan = group.plan
        assert plan is not None
        if not plan.samples or self._num_blocks(group.main_row) != group.main_row.num_blocks_sent:
            return False
        for row in plan.rows:
            if (
                not row.is_known
                or row.num_blocks_sent is None
                or row.row_id not in self._rows_last_step
                or row.num_held < row.request.num_tokens
            ):
                return False
        return True

    def _split_group(self, output: SchedulerOutput, group: SequenceGroup, goes_on: bool) -> None:
        plan = group.plan
        assert plan is not None
        for row, tokens in zip(plan.rows, plan.tokens, strict=True):
            if not goes_on:
                if tokens:
                    self._add_entry(output, group, row)
                continue
            if not row.is_main:
                self._continue_entry(output, row)
            row.num_held += 1
        main = group.main_row.row_id
        if plan.tokens[0]:
            output.num_scheduled_tokens[main] = plan.tokens[0]
        else:
            del output.num_scheduled_tokens[main]
        if plan.samples and group.lanes:
            inputs = group.inputs
            if output.guidance is None:
                output.guidance = []
            output.guidance.append(
                GuidedRows(group.row_ids, group.weights, plan.frame, inputs.first, inputs.last)
            )

    def _continue_entry(self, output: SchedulerOutput, row: Row) -> None:
        """Add the entry of a guidance lane that goes on."""
        cached = output.scheduled_cached_reqs
        cached.req_ids.append(row.row_id)
        cached.new_block_ids.append(self._take_row_blocks(row))
        cached.num_computed_tokens.append(row.request.num_computed_tokens)
        cached.num_output_tokens.append(row.num_held - row.num_prompt_sent)

    def _num_blocks(self, row: Row) -> list[int]:
        """Per KV cache group the blocks of a lane."""
        return [len(of_cache) for of_cache in self._manager.coordinator.get_blocks(row.row_id)]

    def _add_entry(self, output: SchedulerOutput, group: SequenceGroup, row: Row) -> None:
        request, row_id = row.request, row.row_id
        plan = group.plan
        assert plan is not None
        blocks = self._manager.coordinator.get_blocks(row_id)
        in_flight = group.main.num_output_placeholders
        goes_on = (
            row_id in self._rows_last_step
            and row.num_blocks_sent is not None
            and row.num_held >= request.num_tokens
        )
        if not row.is_known:
            # A lane that joined late is new with all that it holds; outputs are counted from there.
            new = NewRequestData.from_request(request, _ids_from(blocks))
            new.prompt_token_ids = list(request.all_token_ids)
            output.scheduled_new_reqs.append(new)
            row.is_known, row.num_prompt_sent = True, request.num_tokens
        else:
            cached = output.scheduled_cached_reqs
            cached.req_ids.append(row_id)
            if goes_on:
                assert row.num_blocks_sent is not None
                fresh = _ids_from(blocks, row.num_blocks_sent)
                cached.new_block_ids.append(fresh if any(fresh) else None)
            else:
                # Anew: the worker drops what it has and takes all blocks and tokens as they are.
                cached.resumed_req_ids.add(row_id)
                cached.new_block_ids.append(_ids_from(blocks))
                cached.all_token_ids[row_id] = list(request.all_token_ids)
            held = row.num_held if goes_on else request.num_tokens
            cached.num_computed_tokens.append(request.num_computed_tokens)
            cached.num_output_tokens.append(held - row.num_prompt_sent)
        self.stats.cached_tokens += row.num_adopted
        row.num_adopted = 0
        row.num_blocks_sent = [len(of_cache) for of_cache in blocks]
        if not goes_on:
            assert not in_flight or not plan.samples
            row.num_held = request.num_tokens
            if request.streams is not None:
                if output.streams is None:
                    output.streams = StreamUpdate()
                enter_worker(output.streams, row_id, request, has_audio=row.is_main)
        row.num_held += plan.samples

    @property
    def _manager(self) -> Any:
        return self._scheduler.kv_cache_manager


def _ids_from(
    blocks: Sequence[Sequence[KVCacheBlock]], first: Sequence[int] | None = None
) -> tuple[list[int], ...]:
    """Block ids per KV cache group, from each group's first-th block on."""
    starts = first or [0] * len(blocks)
    return tuple(
        [block.block_id for block in of_cache[start:]]
        for of_cache, start in zip(blocks, starts, strict=True)
    )
