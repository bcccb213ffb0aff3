# SPDX-License-Identifier: Apache-2.0
"""Schedules steady steps, and takes in what they emit, without a general step's searches.

A general step asks every request what it needs: tokens, blocks, lanes, entries. A steady one knows:
each row computes its newest token. Blocks are asked for only where a row's next token opens or
fills one. The step's output is complete, so that a worker may run it as any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vllm.guidance.rows import GuidedRows
from vllm.multistream.spec import multistream_spec
from vllm.steady.config import steady_decoding_allowed
from vllm.steady.telling import Telling, tell_untold
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vllm.guidance.group import Row, SequenceGroup
    from vllm.multistream.messages import StreamOutput
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request


MOST_UNSETTLED = 64
"""Steps after which requests are settled at the latest."""


class _Batch:
    """The rows of steady steps, from one step to the next.

    Requests are told of each token of stream 0 at once. The other streams' tokens, all tokens of
    guidance lanes, and the hashes of blocks wait until somebody needs them: a request is *settled*
    when its blocks are asked for or filled, and all are when steadiness ends.

    Args:
        requests: what runs, in the scheduler's order.
        row_ids: the rows of the step before.
        log_stats: whether the engine measures its requests.

    Attributes:
        is_same: whether the requests and their lanes have exactly these rows.
        num_tokens: per row id 1, the tokens that it computes.
        owner: for each row the number of its request.
        num_computed, num_outputs: [num_rows] what the worker is told of each row.
        groups, group_rows: the sequence groups, and the rows of all of them.
        counted: requests and guidance lanes' requests, all of whose computed tokens are counted.
        guidance: what the worker is told of the groups that are guided.
        telling: what the requests' clients are told, and when.
        num_steps_without_blocks: next steps in which no row opens or fills a block, or reaches the
            end of the context.
    """

    def __init__(self, requests: list[Request], row_ids: list[str], log_stats: bool) -> None:
        self.requests = list(requests)
        self.telling = Telling(self.requests, log_stats)
        self.row_ids = row_ids
        self.num_tokens = dict.fromkeys(row_ids, 1)
        self.groups: list[SequenceGroup] = []
        self.group_rows: list[Row] = []
        self.counted = list(requests)
        self.guidance: list[GuidedRows] = []
        owner: dict[str, int] = {}
        counts: dict[str, tuple[int, int]] = {}
        for number, request in enumerate(self.requests):
            owner[request.request_id] = number
            counts[request.request_id] = (request.num_computed_tokens, request.num_output_tokens)
            group = request.group
            if group is None:
                continue
            self.groups.append(group)
            self.group_rows += group.rows
            for row in group.lanes:
                owner[row.row_id] = number
                held = row.num_held - row.num_prompt_sent
                counts[row.row_id] = (row.request.num_computed_tokens, held)
                self.counted.append(row.request)
        self.is_same = owner.keys() == self.num_tokens.keys()
        if not self.is_same:
            return
        self.owner = [owner[row_id] for row_id in row_ids]
        both = np.array([counts[row_id] for row_id in row_ids])
        self.num_computed, self.num_outputs = both[:, 0].copy(), both[:, 1].copy()
        self.none_new: list[tuple[list[int], ...] | None] = [None] * len(row_ids)
        self.num_steps_without_blocks = 0
        for group in self.groups:
            if group.lanes:
                plan, inputs = group.plan, group.inputs
                assert plan is not None
                self.guidance.append(
                    GuidedRows(
                        group.row_ids, group.weights, plan.frame - 1, inputs.first, inputs.last
                    )
                )
        # States of the phase table and starts of the audio segments, as the worker last sent them.
        self.phases: tuple[bytes, bytes] | None = None
        self._worker_ids: list[str] = []
        self._worker_rows: NDArray[np.int64] = np.empty(0, np.int64)
        # [MOST_UNSETTLED, num_requests, num_streams] tokens of the newest steps, and for each
        # request how many of them it has been given.
        self._unsettled: NDArray[np.int32] | None = None
        self._num_unsettled = 0
        self._num_settled = [0] * len(self.requests)

    def worker_rows(self, output: ModelRunnerOutput) -> NDArray[np.int64]:
        """[num_requests] where the worker's output has each request's row."""
        if output.req_ids != self._worker_ids:
            row_of = output.req_id_to_index
            self._worker_ids = list(output.req_ids)
            self._worker_rows = np.array([row_of[r.request_id] for r in self.requests])
        return self._worker_rows

    def keep(self, tokens: NDArray[np.int32]) -> None:
        """Keep a step's [num_requests, num_streams] tokens, to be settled later."""
        if self._unsettled is None:
            self._unsettled = np.empty((MOST_UNSETTLED, *tokens.shape), np.int32)
        if self._num_unsettled == MOST_UNSETTLED:
            self.settle_all()
        self._unsettled[self._num_unsettled] = tokens
        self._num_unsettled += 1

    def settle_all(self) -> None:
        """Settle every request."""
        for number in range(len(self.requests)):
            self.settle(number)
        self._num_unsettled = 0
        self._num_settled = [0] * len(self.requests)

    def settle(self, number: int) -> None:
        """Give a request and its lanes what they lack of the kept steps, and hash full blocks."""
        if self._unsettled is None or self._num_settled[number] == self._num_unsettled:
            return
        tokens = self._unsettled[self._num_settled[number] : self._num_unsettled, number]
        self._num_settled[number] = self._num_unsettled
        request = self.requests[number]
        assert request.streams is not None
        request.streams.append_ids(tokens[:, 1:])
        request.update_block_hashes()
        if request.group is None or not request.group.lanes:
            return
        first = tokens[:, 0].tolist()
        for row in request.group.lanes:
            assert row.request.streams is not None
            row.request.streams.append_ids(tokens[:, 1:])
            row.request.append_output_token_ids(first)


class SteadyScheduler:
    """The part of a scheduler that schedules steady steps.

    Args:
        scheduler: the scheduler that calls it.

    Attributes:
        is_enabled: whether there may be steady steps. Multi-stream models have them where no step
            is scheduled before the last one's tokens are known.
        num_steps: steady steps so far.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        config = scheduler.vllm_config
        self._scheduler = scheduler
        self.is_enabled = (
            multistream_spec(config.model_config) is not None
            and not config.scheduler_config.async_scheduling
            and config.parallel_config.data_parallel_size == 1
            and not scheduler.enable_kv_cache_events
            and steady_decoding_allowed(config.additional_config)
        )
        self.num_steps = 0
        self._last: SchedulerOutput | None = None
        self._batch: _Batch | None = None
        # Whether guidance that does not depend on the frame is known to stay as it is.
        self._is_guidance_known = False
        # Tokens that clients are told of with the next step's.
        self._untold: dict[str, list[int]] = {}

    def schedule(self) -> SchedulerOutput | None:
        """The next step, if it is steady; None leaves everything as it is, for a general step."""
        batch = None
        if self.is_enabled and self._is_quiet():
            batch = self._batch
            if batch is not None and (
                batch.requests != self._scheduler.running or not self._stays_guided(batch)
            ):
                self.end()
                batch = None
            if batch is None:
                batch = self._make_batch()
        blocks = None if batch is None else self._new_blocks(batch)
        if batch is None or blocks is None:
            self.end()
            return None
        self._batch = batch
        self._last = self._advance(batch, blocks)
        return self._last

    def end(self) -> None:
        """End steadiness: settle all requests. The next step is a general one."""
        if self._batch is not None:
            self._settle(self._batch)
            self._batch = None

    def observe(self, output: SchedulerOutput) -> SchedulerOutput:
        """Take note of a general step's output, and return it."""
        self._last = output
        return output

    def take_in(
        self, output: SchedulerOutput, emitted: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs] | None:
        """Take in what a steady step emitted; None where it must be taken in the general way.

        Args:
            output: the step.
            emitted: what the worker returned for it.

        Returns:
            What `Scheduler.update_from_output` returns.
        """
        batch, streams = self._batch, emitted.streams
        if batch is None or output is not self._last:
            _list_token_ids(emitted)
            return None
        if streams is None or not self._is_plain(batch, streams, emitted):
            _list_token_ids(emitted)
            self._settle(batch)
            for request in batch.requests:
                # A general step counts them when it is scheduled.
                request.num_in_flight_tokens += 1
            self._is_guidance_known = False
            batch.phases = None
            return None
        outputs = self._append(batch, streams, emitted)
        by_client = {client: EngineCoreOutputs(outputs=held) for client, held in outputs.items()}
        stats = self._scheduler.make_stats(None, None, emitted.cudagraph_stats, None)
        if stats is not None:
            next(iter(by_client.values())).scheduler_stats = stats
        return self.tell(by_client)

    def tell(self, outputs: dict[int, EngineCoreOutputs]) -> dict[int, EngineCoreOutputs]:
        """Add to a step's outputs what clients were not told before it, and return them."""
        if self._untold:
            tell_untold(self._untold, outputs, self._scheduler.requests)
            self._untold = {}
        return outputs

    def _settle(self, batch: _Batch) -> None:
        batch.settle_all()
        self._untold |= batch.telling.take_untold()

    def _is_quiet(self) -> bool:
        """Whether nobody comes or goes."""
        scheduler = self._scheduler
        if (
            not scheduler.running
            or scheduler.finished_req_ids
            or scheduler.reset_preempted_req_ids
            or scheduler.kv_holding_waiting
            or scheduler._pause_state != PauseState.UNPAUSED
            or scheduler.kv_cache_manager.has_finished_rows()
        ):
            return False
        if not scheduler.waiting:
            return True
        # Who waits for a row, and not for blocks, waits on.
        rows = len(scheduler.running) + scheduler.num_waiting_for_streaming_input
        rows += scheduler.groups.extra_rows(scheduler.waiting.peek_request())
        return rows >= scheduler.max_num_active_reqs

    def _make_batch(self) -> _Batch | None:
        """What runs, if all of it goes on from the last step by one token."""
        scheduler, last = self._scheduler, self._last
        if last is None or len(last.num_scheduled_tokens) > min(
            scheduler.max_num_scheduled_tokens, scheduler.scheduler_config.max_num_batched_tokens
        ):
            return None
        scheduled = last.num_scheduled_tokens
        manager = scheduler.kv_cache_manager
        for request in scheduler.running:
            if (
                request.request_id not in scheduled
                or request.num_tokens - request.num_computed_tokens != 1
                or request.is_prefill_chunk
                or request.num_output_placeholders
                or request.num_stale_output_tokens
                or request.has_encoder_inputs
                or request.use_structured_output
                or not manager.is_plain
                or (request.group is not None and not scheduler.groups.plan_steady(request))
            ):
                return None
        batch = _Batch(scheduler.running, list(scheduled), scheduler.log_stats)
        self._is_guidance_known = True
        return batch if batch.is_same else None

    def _stays_guided(self, batch: _Batch) -> bool:
        """Whether every group keeps its lanes in the next step."""
        is_guided = self._scheduler.groups.is_guided_next
        for group in batch.groups:
            timed = group.inputs.first or group.inputs.last is not None
            if (timed or not self._is_guidance_known) and is_guided(group) != bool(group.lanes):
                return False
        self._is_guidance_known = True
        return True

    def _new_blocks(self, batch: _Batch) -> dict[str, tuple[list[int], ...]] | None:
        """The blocks that rows need for their next tokens; None if they or the context run out."""
        if batch.num_steps_without_blocks:
            batch.num_steps_without_blocks -= 1
            return {}
        scheduler = self._scheduler
        manager = scheduler.kv_cache_manager
        left = scheduler.max_model_len - 2 - int(batch.num_computed.max())
        if left < 0:
            return None
        last = manager.plain_block_size - 1
        place = batch.num_computed % manager.plain_block_size
        # A row at the end of a block fills it: the block's content can be found from now on.
        due = np.flatnonzero((place == 0) | (place == last))
        # Rows that are not due now are due after this many more steps; at 0 in the next one.
        until_due = np.where(place >= last - 1, 0, last - 1 - place)
        batch.num_steps_without_blocks = min(int(until_due.min()), left)
        if not len(due):
            return {}
        if np.count_nonzero(place == 0) > manager.block_pool.get_num_free_blocks():
            return None
        blocks: dict[str, tuple[list[int], ...]] = {}
        for number in {batch.owner[row] for row in due.tolist()}:
            batch.settle(number)
            request = batch.requests[number]
            group = request.group
            if group is None:
                allocated = manager.allocate_slots(request, 1)
                assert allocated is not None
                new = allocated.get_block_ids(allow_none=True)
                if new is not None:
                    blocks[request.request_id] = new
                continue
            allocated = manager.allocate_slots(request, len(group.rows))
            assert allocated is not None
            blocks |= scheduler.groups.take_new_blocks(group)
        return blocks

    def _advance(self, batch: _Batch, blocks: dict[str, tuple[list[int], ...]]) -> SchedulerOutput:
        """The step's output; counts its tokens as computed."""
        scheduler = self._scheduler
        scheduler.current_step += 1
        self.num_steps += 1
        for request in batch.counted:
            request.num_computed_tokens += 1
        for row in batch.group_rows:
            row.num_held += 1
        for rows in batch.guidance:
            rows.frame += 1
        scheduler.groups.stats.guidance_rows = len(batch.counted) - len(batch.requests)
        new_block_ids = batch.none_new
        if blocks:
            new_block_ids = [blocks.get(row_id) for row_id in batch.row_ids]
        output = SchedulerOutput(
            scheduled_new_reqs=[],
            scheduled_cached_reqs=CachedRequestData(
                req_ids=batch.row_ids,
                resumed_req_ids=set(),
                new_token_ids=[],
                all_token_ids={},
                new_block_ids=new_block_ids,
                num_computed_tokens=batch.num_computed.tolist(),
                num_output_tokens=batch.num_outputs.tolist(),
            ),
            num_scheduled_tokens=batch.num_tokens,
            total_num_scheduled_tokens=len(batch.row_ids),
            scheduled_spec_decode_tokens={},
            scheduled_encoder_inputs={},
            finished_req_ids=set(),
            preempted_req_ids=set(),
            free_encoder_mm_hashes=scheduler.encoder_cache_manager.get_freed_mm_hashes(),
            new_block_ids_to_zero=scheduler._get_new_block_ids_to_zero() if blocks else None,
            guidance=batch.guidance or None,
            steady=True,
        )
        batch.num_computed += 1
        batch.num_outputs += 1
        return output

    def _is_plain(self, batch: _Batch, streams: StreamOutput, emitted: ModelRunnerOutput) -> bool:
        """Whether a step did nothing but emit tokens: nobody ended, failed or was aborted."""
        scheduler = self._scheduler
        return not (
            streams.errors
            or any(streams.finish.tolist())
            or emitted.num_nans_in_logits
            or scheduler.finished_req_ids_dict
            or scheduler.grammar_compile_error_reqs
            or scheduler.encoder_cache_mismatch_reqs
            or batch.requests != scheduler.running
        )

    def _append(
        self, batch: _Batch, streams: StreamOutput, emitted: ModelRunnerOutput
    ) -> dict[int, list[EngineCoreOutput]]:
        """Take in each request's tokens, and tell clients what is due."""
        rows = batch.worker_rows(emitted)
        tokens = streams.tokens[rows]
        batch.keep(tokens)
        self._note_phases(batch, streams, rows)
        first = tokens[:, 0].tolist()
        for request, token_id in zip(batch.requests, first, strict=True):
            request._output_token_ids.append(token_id)
            request._all_token_ids.append(token_id)
        audio_of = streams.audio
        outputs: dict[int, list[EngineCoreOutput]] = {}
        for number in batch.telling.told:
            request = batch.requests[number]
            audio = audio_of.pop(request.request_id, None)
            if audio is not None:
                assert request.streams is not None
                request.streams.take_audio(audio)
            client = outputs.get(request.client_index)
            if client is None:
                client = outputs[request.client_index] = []
            client.append(
                EngineCoreOutput(
                    request_id=request.request_id,
                    new_token_ids=[first[number]],
                    events=request.take_events() if request.events else None,
                    trace_headers=request.trace_headers,
                    audio=audio,
                )
            )
        # Who waits for the end gets no audio before it.
        assert not audio_of
        batch.telling.add_due(outputs)
        return outputs

    def _note_phases(self, batch: _Batch, streams: StreamOutput, rows: NDArray[np.int64]) -> None:
        """Take in the requests' phases, which decide what is guided."""
        # Compared as bytes, which costs a tenth of comparing arrays.
        phases = (streams.state.tobytes(), streams.segment_start.tobytes())
        if batch.phases == phases:
            return
        batch.phases = phases
        self._is_guidance_known = False
        states, starts = streams.state[rows].tolist(), streams.segment_start[rows].tolist()
        for request, state, start in zip(batch.requests, states, starts, strict=True):
            assert request.streams is not None
            request.streams.state, request.streams.segment_start = state, start


def _list_token_ids(emitted: ModelRunnerOutput) -> None:
    """Write out stream 0's tokens as a general step does; a steady one leaves them in streams."""
    if emitted.streams is not None and not emitted.sampled_token_ids:
        emitted.sampled_token_ids = emitted.streams.tokens[:, :1].tolist()
