# SPDX-License-Identifier: Apache-2.0
"""Stream history, progress and sampling settings of the worker's requests, by slot.

A request that is in the worker's batch has a slot: a row of device tensors that hold all it needs
from step to step, so that a step is a handful of gathers whatever the number of requests. A request
that leaves the batch (preempted, or not scheduled) gives its slot back; when it returns, the
scheduler sends its streams again and its progress is recovered from its tokens.

What a request writes when it enters is staged by `admit` and written by `set_rows`, together with
that of all others that enter in the step.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vllm.sampling_params import SamplingParams
from vllm.unison.messages.sampling_fields import DEFAULT_MAX_REPEATS, per_stream
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.phases import PhaseTable, Progress, Replay, replay
from vllm.unison.ops.extension import load_extension
from vllm.unison.ops.phase_step import gather_ids
from vllm.unison.sampler.slot_writes import SlotSettings, SlotWrite, write_slots
from vllm.unison.sampler.upload import upload

NEVER = 2**31 - 1
"""A position that no request reaches."""


def num_slots(max_requests: int) -> int:
    """Slots for batches of at most `max_requests` rows.

    A released slot is quarantined for two steps: with asynchronous scheduling the output of a step
    is read after later steps have changed the batch.
    """
    return 3 * max_requests


@dataclass
class SlotRecord:
    """What the host remembers of a slot's request, until the slot is given to another one.

    Attributes:
        request_id: of the request.
        num_prompt_tokens: length of its prompt.
        limit: position at which stream 0 may emit no more.
        start_phase: the phase that generation starts in, if its task says so.
        is_decoded: whether its whole audio has been decoded.
    """

    request_id: str
    num_prompt_tokens: int
    limit: int
    start_phase: int | None = None
    is_decoded: bool = False


class SlotTable:
    """Owner of all per-request device state of multi-stream generation.

    Args:
        layout: the model's stream layout.
        table: its phase table.
        max_requests: maximum number of requests in one batch.
        max_model_len: maximum number of positions of a request.
        device: where the tensors live.
    """

    def __init__(
        self,
        layout: StreamLayout,
        table: PhaseTable,
        max_requests: int,
        max_model_len: int,
        device: torch.device,
    ) -> None:
        load_extension()
        self.layout = layout
        self.table = table
        self.device = device
        self.max_model_len = max_model_len
        self.max_requests = max_requests
        self.padding_slot = num_slots(max_requests)
        self._free = list(range(self.padding_slot))
        self._quarantined: list[list[int]] = [[], []]
        self._slot_of: dict[str, int] = {}
        self._records: dict[int, SlotRecord] = {}
        self._rows: list[str] = []
        self._staged: list[SlotWrite] = []

        rows, streams = self.padding_slot + 1, layout.num_streams

        def table_of(value: float, dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.full((rows, *shape), value, dtype=dtype, device=device)

        # One spare position takes what rows without a request write.
        self.history = table_of(0, torch.int32, max_model_len + 1, streams)
        self.suffix_end = table_of(0, torch.int64)
        self.progress = Progress(
            state=table_of(table.end_stop, torch.int64),
            segment_start=table_of(0, torch.int64),
            flush_end=table_of(0, torch.int64),
        )
        self.settings = SlotSettings(
            temperature=table_of(0, torch.float32, 1 + streams),
            top_k=table_of(0, torch.int32, 1 + streams),
            top_p=table_of(1, torch.float32, 1 + streams),
            seed=table_of(0, torch.int64),
            limit=table_of(NEVER, torch.int64),
            earliest_end=table_of(0, torch.int64),
            num_prompt=table_of(0, torch.int64),
            repeat_window=table_of(0, torch.int64),
            max_repeats=table_of(0, torch.int64),
        )
        self.known_state = np.full(rows, table.end_stop, np.int64)
        """Per slot the newest state that the host knows of; at most one token old."""
        self.draws_repeats_again = np.zeros(rows, np.bool_)
        """Per slot whether its request has a repeat window."""
        self.row_slots_host: NDArray[np.int64] = np.empty(0, np.int64)
        self.row_slots = torch.empty(0, dtype=torch.int64, device=device)

    def slot_of(self, request_id: str) -> int:
        """Slot of a request that is in the batch."""
        return self._slot_of[request_id]

    def record(self, slot: int) -> SlotRecord:
        """What is known of the request that holds a slot, or held it last."""
        return self._records[slot]

    def request_ids(self) -> AbstractSet[str]:
        """Requests that hold a slot."""
        return self._slot_of.keys()

    def num_slots_in_use(self) -> int:
        """Slots held by requests in the batch."""
        return len(self._slot_of)

    def release_except(self, kept: AbstractSet[str]) -> None:
        """Start a step: take back the slots of requests that are not among `kept`."""
        self._free += self._quarantined.pop(0)
        gone = self._slot_of.keys() - kept
        self._quarantined.append([self._slot_of.pop(request_id) for request_id in gone])

    def admit(
        self,
        request_id: str,
        prompt: Sequence[int],
        output: Sequence[int],
        auxiliary_ids: NDArray[np.int32],
        params: SamplingParams,
        start_phase: int | None = None,
    ) -> Replay:
        """Give a request a slot and stage what it writes there; returns what its tokens say.

        Args:
            request_id: id of a request without a slot.
            prompt: [num_prompt] ids of stream 0.
            output: ids that stream 0 has emitted so far.
            auxiliary_ids: [n, num_streams - 1] ids of the other streams, n at least
                num_prompt + len(output); later rows are the prompt's delayed suffix.
            params: the request's sampling parameters, validated at admission.
            start_phase: the phase that generation starts in, if the request's task says so.
        """
        known = len(prompt) + len(output)
        limit = stream_limit(self.layout, len(prompt), params, self.max_model_len)
        if request_id in self._slot_of:
            raise RuntimeError(f"request {request_id} has a slot already")
        steps = stack_streams(prompt, output, auxiliary_ids[: self.max_model_len])
        emitted = steps[len(prompt) : known]
        progress = replay(self.table, prompt, emitted, limit, start_phase=start_phase)
        slot = self._free.pop()
        self._slot_of[request_id] = slot
        self._records[slot] = SlotRecord(request_id, len(prompt), limit, start_phase)
        self.known_state[slot] = progress.state
        self.draws_repeats_again[slot] = bool(params.ras_win_len)
        streams, seed = self.layout.num_streams, params.seed
        assert seed is not None
        self._staged.append(
            SlotWrite(
                slot=slot,
                streams=steps,
                suffix_end=len(auxiliary_ids) if len(auxiliary_ids) > known else 0,
                state=progress.state,
                segment_start=progress.segment_start,
                flush_end=progress.flush_end,
                temperature=[params.temperature, *per_stream(params, "temperature", streams)],
                top_k=[max(k, 0) for k in (params.top_k, *per_stream(params, "top_k", streams))],
                top_p=[params.top_p, *per_stream(params, "top_p", streams)],
                seed=seed,
                limit=limit,
                earliest_end=NEVER if params.ignore_eos else len(prompt) + params.min_tokens,
                num_prompt=len(prompt),
                repeat_window=params.ras_win_len or 0,
                max_repeats=params.ras_win_max_num_repeat or DEFAULT_MAX_REPEATS,
            )
        )
        return progress

    def set_rows(self, request_ids: Sequence[str]) -> None:
        """Say which request each row of the batch holds, and write what those that enter staged."""
        if self._staged:
            writes, self._staged = self._staged, []
            write_slots(writes, self.history, self.suffix_end, self.progress, self.settings)
        # In most steps the batch does not change.
        if request_ids == self._rows:
            return
        self._rows = list(request_ids)
        slots = np.fromiter((self._slot_of[r] for r in request_ids), np.int64, len(request_ids))
        self.row_slots_host = slots
        self.row_slots = upload(slots, self.device)

    def invalidate_rows(self) -> None:
        """Make the next `set_rows` rebuild the rows (a request may hold another slot now)."""
        self._rows = []

    def gather_inputs(self, rows: torch.Tensor, positions: torch.Tensor, out: torch.Tensor) -> None:
        """Write the auxiliary ids of a step's tokens.

        Args:
            rows: [num_tokens] int32 or int64 batch row of each token.
            positions: [num_tokens] int64 position of each token.
            out: [>= num_tokens, num_streams - 1] int32 buffer that the model's forward reads.
        """
        gather_ids(self.history, self.row_slots, rows, positions, out)


def stack_streams(
    prompt: Sequence[int], output: Sequence[int], auxiliary_ids: NDArray[np.int32]
) -> NDArray[np.int32]:
    """[n, num_streams] ids of all streams; those of stream 0 past the output are 0.

    Args:
        prompt, output: ids of stream 0.
        auxiliary_ids: [n, num_streams - 1] ids of the others, n at least as long as both.
    """
    steps = np.zeros((len(auxiliary_ids), auxiliary_ids.shape[1] + 1), np.int32)
    steps[:, 1:] = auxiliary_ids
    steps[: len(prompt), 0] = prompt
    steps[len(prompt) : len(prompt) + len(output), 0] = output
    return steps


def stream_limit(
    layout: StreamLayout, num_prompt_tokens: int, params: SamplingParams, max_model_len: int
) -> int:
    """Position at which stream 0 may emit no more.

    max_tokens counts what stream 0 emits until its end; the steps in which delayed streams catch
    up, and those that an end rule adds, come on top and must fit the context too.
    """
    assert params.max_tokens is not None
    context = max_model_len - layout.num_flush_steps
    return min(num_prompt_tokens + params.max_tokens, context)
