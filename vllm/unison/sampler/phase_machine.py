# SPDX-License-Identifier: Apache-2.0
"""What a step does to the rows of its batch, before and after sampling.

Before: which token each stream must emit, and what it may choose among. After: the tokens are
written into the history of every lane, and each row moves through its phases. Each is one compiled
operator; the methods named ``_reference`` define them in PyTorch, with the phase rule of
:func:`vllm.unison.model.phases.advance`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from vllm.unison.model.phases import NO_TOKEN, Finish, Progress, StateKind, advance, is_early
from vllm.unison.ops.sample import KEEP_OUTPUT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vllm.unison.model.layout import StreamLayout
    from vllm.unison.model.phases import PhaseTable
    from vllm.unison.sampler.slot_table import SlotTable


@dataclass
class Choices:
    """What a step's rows may emit.

    Attributes:
        forced: [num_rows, 1 + num_streams] int32. Column 0 is for the text head's stream 0, column
            1 + k for the audio head's stream k: a token that must be emitted, NO_TOKEN to sample,
            or KEEP_OUTPUT where the row's phase does not use the head.
        mask_index: [num_rows] int32 row of the heads' masks.
        tokens: [num_rows, num_streams] int32 what is forced, NO_TOKEN where the sampler decides. A
            cell that nothing decides stays so and fails its row.
    """

    forced: torch.Tensor
    mask_index: torch.Tensor
    tokens: torch.Tensor


@dataclass
class StepTokens:
    """What a step emitted.

    Attributes:
        tokens: [num_rows, num_streams] int32.
        outcome: [3, num_rows] int64: phases.Finish, the state of the phase table after the step,
            and the position at which the newest audio segment begins.
    """

    tokens: torch.Tensor
    outcome: torch.Tensor

    @cached_property
    def host(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Both as arrays that share their memory, on a device that the host reads directly."""
        return self.tokens.numpy(), self.outcome.numpy()

    @property
    def finish(self) -> torch.Tensor:
        """[num_rows] int64 phases.Finish."""
        return self.outcome[0]

    @property
    def state(self) -> torch.Tensor:
        """[num_rows] int64 state of the phase table after the step."""
        return self.outcome[1]


class PhaseMachine:
    """The step's rule over a batch.

    Args:
        layout: the model's stream layout.
        table: its phase table.
        slots: the per-request state, read by `constrain` and updated by `commit`.
    """

    def __init__(self, layout: StreamLayout, table: PhaseTable, slots: SlotTable) -> None:
        device = slots.device
        self._slots = slots
        self._table = table.on(device)
        self._delays = torch.tensor(layout.delays, dtype=torch.int64, device=device)
        self._pads = torch.tensor(layout.pad_token_ids, dtype=torch.int32, device=device)
        self._fills = _fills_of(layout, device)
        slices = torch.tensor(layout.slices, dtype=torch.int64, device=device)
        self._code_begin, self._code_end = slices.T.contiguous()
        self._num_streams = layout.num_streams
        self._forced = torch.empty(
            (slots.max_requests, 1 + layout.num_streams), dtype=torch.int32, device=device
        )
        self._mask_index = torch.empty(slots.max_requests, dtype=torch.int32, device=device)

    def constrain(self, position: torch.Tensor) -> Choices:
        """What the rows of the state's batch may emit.

        Args:
            position: [num_rows] int64 position of the emitted tokens.

        Returns:
            The choices, of which `forced` and `mask_index` hold until the next step.
        """
        rows = len(position)
        choices = Choices(
            self._forced[:rows],
            self._mask_index[:rows],
            self._forced.new_empty((rows, self._num_streams)),
        )
        self.constrain_call(position, choices)()
        return choices

    def constrain_call(self, position: torch.Tensor, choices: Choices) -> Callable[[], None]:
        """The call that writes `choices` for rows at `position`, to be made any number of times."""
        slots, table = self._slots, self._table
        return partial(
            torch.ops.unison.constrain_streams.default,
            table.kind,
            table.forced_token,
            self._delays,
            self._pads,
            self._fills,
            table.by_limit,
            table.first_step,
            table.early_mask,
            table.max_delay,
            slots.progress.state,
            slots.progress.segment_start,
            slots.progress.flush_end,
            slots.suffix_end,
            slots.settings.earliest_end,
            slots.settings.num_prompt,
            slots.history,
            slots.row_slots,
            position,
            choices.forced,
            choices.mask_index,
            choices.tokens,
        )

    def find_repeats_call(
        self, position: torch.Tensor, choices: Choices, redrawn: torch.Tensor
    ) -> Callable[[], None]:
        """The call that says which of the sampled streams are drawn again.

        A stream is if it has emitted the code `max_repeats` times in the last `repeat_window` steps
        of its audio segment; ids that are no codes are not counted.

        Args:
            position: [num_rows] int64 position of the sampled tokens.
            choices: of the step, its `tokens` sampled.
            redrawn: [num_rows, 1 + num_streams] int32, written: NO_TOKEN where a stream is drawn
                again, KEEP_OUTPUT elsewhere; column 0 is for text, of which nothing is.
        """
        slots = self._slots
        return partial(
            torch.ops.unison.find_repeats.default,
            self._code_begin,
            self._code_end,
            slots.settings.repeat_window,
            slots.settings.max_repeats,
            slots.progress.segment_start,
            slots.history,
            slots.row_slots,
            position,
            choices.forced,
            choices.tokens,
            redrawn,
        )

    def find_repeats_reference(self, position: torch.Tensor, choices: Choices) -> torch.Tensor:
        """The definition of `find_repeats_call`: what it writes."""
        state, slots = self._slots, self._slots.row_slots
        tokens, window = choices.tokens, state.settings.repeat_window[slots]
        past = torch.arange(state.history.shape[1], device=position.device)
        first = torch.maximum(position - window, state.progress.segment_start[slots])
        is_looked_at = (past >= first[:, None]) & (past < position[:, None])
        same = (state.history[slots] == tokens[:, None]) & is_looked_at[:, :, None]
        is_code = (tokens >= self._code_begin) & (tokens < self._code_end)
        often = same.sum(dim=1) >= state.settings.max_repeats[slots, None]
        is_drawn = choices.forced[:, 1:] == NO_TOKEN
        again = is_drawn & is_code & often & (window > 0)[:, None]
        redrawn = torch.full_like(choices.forced, KEEP_OUTPUT)
        redrawn[:, 1:][again] = NO_TOKEN
        return redrawn

    def commit(
        self,
        position: torch.Tensor,
        discard: torch.Tensor,
        tokens: torch.Tensor,
        rows: torch.Tensor | None,
    ) -> StepTokens:
        """Commit what was sampled: write the history, move rows through their phases.

        Args:
            position: [num_rows] int64 position of the tokens.
            discard: [num_rows] bool, rows for which nothing is written.
            tokens: [num_rows, num_streams] int32, negative where a row could not be sampled. Those
                rows fail and emit pads; all rows of a group get the tokens of its first.
            rows: [num_groups, max rows of a group] int64 rows of the sampled groups, the one that
                moves through phases first; -1 for none. None: each row is a group.

        Returns:
            The step, with `tokens` written in place. Rows of no group have undefined outcomes.
        """
        outcome = torch.empty((3, len(position)), dtype=torch.int64, device=position.device)
        self.commit_call(position, discard, tokens, rows, outcome)()
        return StepTokens(tokens, outcome)

    def commit_call(
        self,
        position: torch.Tensor,
        discard: torch.Tensor,
        tokens: torch.Tensor,
        rows: torch.Tensor | None,
        outcome: torch.Tensor,
    ) -> Callable[[], None]:
        """The call that takes `tokens` and writes `outcome`, to be made any number of times."""
        slots, table = self._slots, self._table
        return partial(
            torch.ops.unison.commit_streams.default,
            table.token_class,
            table.next_state,
            table.kind,
            table.after_flush,
            table.at_limit,
            table.finish,
            table.end_shift,
            table.extra_steps,
            table.first_step,
            table.any_ends,
            table.end_ids,
            self._pads,
            table.max_delay,
            table.end_length,
            int(Finish.ERROR),
            slots.progress.state,
            slots.progress.segment_start,
            slots.progress.flush_end,
            slots.settings.limit,
            slots.settings.num_prompt,
            slots.history,
            slots.row_slots,
            position,
            discard,
            rows,
            tokens,
            outcome,
        )

    def constrain_reference(self, position: torch.Tensor) -> Choices:
        """The definition of `constrain`."""
        state, table, slots = self._slots, self._table, self._slots.row_slots
        own_state = state.progress.state[slots]
        kind = table.kind[own_state]
        in_audio = (kind == StateKind.AUDIO)[:, None]
        in_flush = (kind == StateKind.FLUSH)[:, None]
        here = position[:, None]
        segment_start = state.progress.segment_start[slots]
        started = here >= segment_start[:, None] + self._delays
        ends = state.progress.flush_end[slots][:, None] - table.max_delay + self._delays
        lead_in, end, tail = self._fills[:3, None]
        by_limit = table.by_limit[own_state][:, None] == 1
        end = torch.where(by_limit, self._fills[3], end)
        tail = torch.where(by_limit, self._fills[4], tail)
        ended = torch.where(here == ends, end, tail)
        tokens = torch.where(in_flush & (here >= ends), ended, NO_TOKEN)
        tokens = torch.where(started, tokens, lead_in)
        tokens = torch.where(in_audio | in_flush, tokens, self._pads)
        own_token = table.forced_token[own_state].to(torch.int32)
        is_told = ~(in_audio | in_flush)[:, 0] | (own_token != NO_TOKEN)
        tokens[:, 0] = torch.where(is_told, own_token, tokens[:, 0])
        # What a prompt's delayed suffix says goes before everything else.
        place = position.clamp(max=state.max_model_len)
        suffix = state.history[slots, place, 1:]
        in_suffix = (position < state.suffix_end[slots])[:, None] & (suffix >= 0)
        tokens[:, 1:] = torch.where(in_suffix, suffix, tokens[:, 1:])
        text = torch.where((kind == StateKind.TEXT)[:, None], tokens[:, :1], KEEP_OUTPUT)
        audio = torch.where(in_audio | in_flush, tokens, KEEP_OUTPUT)
        no_end = (position < state.settings.earliest_end[slots]).to(torch.int64)
        num_prompt = state.settings.num_prompt[slots]
        early = is_early(table, own_state, segment_start, position, num_prompt)
        mask = torch.where(early, table.early_mask[own_state], own_state)
        mask_index = (2 * mask + no_end).to(torch.int32)
        return Choices(torch.cat([text, audio], dim=1), mask_index, tokens)

    def commit_reference(
        self,
        position: torch.Tensor,
        discard: torch.Tensor,
        tokens: torch.Tensor,
        rows: torch.Tensor | None,
    ) -> StepTokens:
        """The definition of `commit`."""
        state, table = self._slots, self._table
        num_rows = len(position)
        if rows is None:
            rows = torch.arange(num_rows, device=position.device)[:, None]
        rows = rows[(rows[:, 0] >= 0) & (rows[:, 0] < num_rows)]
        first = rows[:, 0]
        slots = state.row_slots[first]
        own = tokens[first]
        failed = (own < 0).any(dim=1)
        own = torch.where(own < 0, self._pads, own)
        before = Progress(
            state.progress.state[slots],
            state.progress.segment_start[slots],
            state.progress.flush_end[slots],
        )
        after = advance(
            table,
            before,
            position[first],
            own.long(),
            state.settings.limit[slots],
            state.settings.num_prompt[slots],
        )
        kept = slots[~discard[first]]
        state.progress.state[kept] = after.state[~discard[first]]
        state.progress.segment_start[kept] = after.segment_start[~discard[first]]
        state.progress.flush_end[kept] = after.flush_end[~discard[first]]
        finish = torch.where(failed, Finish.ERROR, table.finish[after.state])
        outcome = torch.empty((3, num_rows), dtype=torch.int64, device=position.device)
        for place in range(rows.shape[1]):
            lane = rows[:, place]
            is_row = (lane >= 0) & (lane < num_rows)
            lane = lane[is_row]
            tokens[lane] = own[is_row]
            values = torch.stack([finish, after.state, after.segment_start])
            outcome[:, lane] = values[:, is_row]
            written = lane[~discard[lane]]
            where = position[written].clamp(max=state.max_model_len)
            state.history[state.row_slots[written], where] = tokens[written]
        return StepTokens(tokens, outcome)


def _fills_of(layout: StreamLayout, device: torch.device) -> torch.Tensor:
    """[5, num_streams] int32 what streams emit in audio where they have no frame.

    By row: before the first frame, right after the last, and after that; then the latter two once
    more for audio that its limit has ended, where the sampler is not asked: it might go on.
    NO_TOKEN where it is.
    """
    places = (layout.lead_in, layout.end, layout.tail)
    rows = [
        [
            NO_TOKEN if sampled else token
            for token, sampled in zip(place.token_ids, place.sampled, strict=True)
        ]
        for place in places
    ]
    rows += [list(place.token_ids) for place in places[1:]]
    return torch.tensor(rows, dtype=torch.int32, device=device)
