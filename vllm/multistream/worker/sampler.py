# SPDX-License-Identifier: Apache-2.0
"""One step's sampling: from hidden states to the tokens of all streams, without a device sync."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vllm.multistream.heads import Heads, StreamGroup
from vllm.multistream.layout import StreamLayout
from vllm.multistream.phases import (
    NO_TOKEN,
    Finish,
    PhaseTable,
    Progress,
    StateKind,
    advance,
)
from vllm.multistream.sampling import multistream_sample
from vllm.multistream.worker.state import StreamState

_AUDIO_KINDS = frozenset({StateKind.AUDIO, StateKind.FLUSH})


class HeadModel(Protocol):
    """What the sampler needs of the model."""

    def text_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[num_rows, text candidates] logits of stream 0."""
        ...

    def audio_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[num_rows, audio columns] logits of all streams, laid out as Heads.groups says."""
        ...


@dataclass
class StepTokens:
    """What a step emitted.

    Attributes:
        tokens: [num_rows, num_streams] int32.
        finish: [num_rows] int64 phases.Finish.
        state: [num_rows] int64 state of the phase table after the step.
        segment_start: [num_rows] int64 position at which the newest audio segment begins.
    """

    tokens: torch.Tensor
    finish: torch.Tensor
    state: torch.Tensor
    segment_start: torch.Tensor

    def of_rows(self, rows: torch.Tensor) -> "StepTokens":
        """The step of some rows, in the order given."""
        return StepTokens(
            self.tokens[rows], self.finish[rows], self.state[rows], self.segment_start[rows]
        )


@dataclass
class UnguidedStreams:
    """Streams of guided rows that lie outside the guidance interval.

    Attributes:
        hidden_states: [num_rows, hidden_size] of the conditional lanes alone.
        streams: [num_rows, num_streams] bool, where these hidden states hold.
    """

    hidden_states: torch.Tensor
    streams: torch.Tensor


class _Group:
    """A stream group's tables on the device."""

    def __init__(self, group: StreamGroup, heads: Heads, device: torch.device) -> None:
        self.first_stream = group.first_stream
        self.streams = slice(group.first_stream, group.first_stream + group.num_streams)
        self.columns = slice(group.first_column, group.first_column + group.candidate_ids.size)
        self.shape = group.candidate_ids.shape
        self.candidate_ids = torch.from_numpy(group.candidate_ids).to(device)
        self.masks = torch.from_numpy(heads.audio_masks(group)).to(device)


class StreamSampler:
    """Samples all streams of all rows and moves the rows through their phases.

    Args:
        layout: the model's stream layout.
        table: its phase table.
        state: the per-request state, read and updated by `step`.
    """

    def __init__(self, layout: StreamLayout, table: PhaseTable, state: StreamState) -> None:
        device = state.device
        self._layout = layout
        self._state = state
        self._table = table.on(device)
        self._kinds = table.kind
        self._kinds_soon = table.kinds_within_one_step
        heads = Heads(layout, table)
        begin, end = heads.text_range
        self._text_ids = torch.arange(begin, end, dtype=torch.int32, device=device)[None]
        self._text_masks = torch.from_numpy(heads.text_masks()).to(device)
        self._groups = [_Group(group, heads, device) for group in heads.groups]
        self._delays = torch.tensor(layout.delays, dtype=torch.int64, device=device)
        self._pads = torch.tensor(layout.pad_token_ids, dtype=torch.int32, device=device)
        self._max_delay = layout.max_delay

    def step(
        self,
        model: HeadModel,
        hidden_states: torch.Tensor,
        position: torch.Tensor,
        discard: torch.Tensor,
        states_are_current: bool,
        rows: NDArray[np.int64] | None = None,
        unguided: UnguidedStreams | None = None,
    ) -> StepTokens:
        """Sample the next token of every stream of every row.

        Args:
            model: multiplies the heads.
            hidden_states: [num_rows, hidden_size] at each row's last scheduled token.
            position: [num_rows] position of the emitted tokens.
            discard: [num_rows] bool, rows that have not reached their last known token; what is
                sampled for them is thrown away and changes nothing.
            states_are_current: whether the host knows each row's state (else it may be one token
                behind, and heads for everything a row may have become are multiplied).
            rows: the batch's rows that the other arguments are about; default all.
            unguided: streams that are sampled from other hidden states; default none.

        Returns:
            The step's tokens; a row that cannot be sampled has Finish.ERROR and pads.
        """
        state = self._state
        slots, slots_host = state.row_slots, state.row_slots_host
        if rows is not None:
            slots_host = slots_host[rows]
            slots = slots[torch.from_numpy(rows).to(slots.device)]
        progress = Progress(
            state.progress.state[slots],
            state.progress.segment_start[slots],
            state.progress.flush_end[slots],
        )
        kind = self._table.kind[progress.state]
        forced = self._forced(slots, progress, kind, position)
        tokens = forced.clamp(min=0)
        text_rows, audio_rows = self._rows_by_head(slots_host, states_are_current)
        no_end = (position < state.settings.earliest_end[slots]).to(torch.int64)
        mask_index = (2 * progress.state + no_end).to(torch.int32)
        self._sample_text(
            model,
            hidden_states,
            text_rows,
            slots,
            position,
            mask_index,
            kind,
            forced,
            tokens,
            unguided,
        )
        self._sample_audio(
            model,
            hidden_states,
            audio_rows,
            slots,
            position,
            mask_index,
            kind,
            forced,
            tokens,
            unguided,
        )

        failed = (tokens < 0).any(dim=1)
        tokens = torch.where(tokens < 0, self._pads, tokens)
        after = advance(
            self._table, progress, position, tokens[:, 0].long(), state.settings.limit[slots]
        )
        finish = torch.where(failed, Finish.ERROR, self._table.finish[after.state])

        kept = torch.where(discard, state.scratch_slot, slots)
        state.progress.state[kept] = after.state
        state.progress.segment_start[kept] = after.segment_start
        state.progress.flush_end[kept] = after.flush_end
        place = position.clamp(max=state.max_model_len)
        state.history[kept, place] = tokens
        return StepTokens(tokens, finish, after.state, after.segment_start)

    def _forced(
        self, slots: torch.Tensor, progress: Progress, kind: torch.Tensor, position: torch.Tensor
    ) -> torch.Tensor:
        """[num_rows, num_streams] int32 token that a stream must emit, or NO_TOKEN."""
        state = self._state
        in_audio = (kind == StateKind.AUDIO)[:, None]
        in_flush = (kind == StateKind.FLUSH)[:, None]
        here = position[:, None]
        started = here >= progress.segment_start[:, None] + self._delays
        unfinished = here < progress.flush_end[:, None] - self._max_delay + self._delays
        active = started & (in_audio | (in_flush & unfinished))
        forced = torch.where(active, NO_TOKEN, self._pads)
        forced[:, 0] = torch.where(
            kind == StateKind.AUDIO,
            forced[:, 0],
            self._table.forced_token[progress.state].to(torch.int32),
        )
        # What a prompt's delayed tail says goes before everything else.
        if forced.shape[1] > 1:
            place = position.clamp(max=state.max_model_len)
            tail = state.history[slots, place, 1:]
            in_tail = (position < state.tail_end[slots])[:, None] & (tail >= 0)
            forced[:, 1:] = torch.where(in_tail, tail, forced[:, 1:])
        return forced

    def _rows_by_head(
        self, slots: NDArray[np.int64], states_are_current: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows for which the text head, and those for which the audio head, is multiplied."""
        states = self._state.known_state[slots]
        if states_are_current:
            kinds = self._kinds[states]
            text = kinds == StateKind.TEXT
            audio = (kinds == StateKind.AUDIO) | (kinds == StateKind.FLUSH)
        else:
            soon = [self._kinds_soon[s] for s in states.tolist()]
            text = np.array([StateKind.TEXT in kinds for kinds in soon], np.bool_)
            audio = np.array([bool(_AUDIO_KINDS & kinds) for kinds in soon], np.bool_)
        return np.flatnonzero(text), np.flatnonzero(audio)

    def _sample_text(
        self,
        model: HeadModel,
        hidden_states: torch.Tensor,
        rows: NDArray[np.int64],
        slots: torch.Tensor,
        position: torch.Tensor,
        mask_index: torch.Tensor,
        kind: torch.Tensor,
        forced: torch.Tensor,
        tokens: torch.Tensor,
        unguided: UnguidedStreams | None,
    ) -> None:
        if len(rows) == 0 or not self._layout.has_text:
            return
        index = torch.from_numpy(rows).to(tokens.device)
        own, settings = slots[index], self._state.settings
        hidden_states = hidden_states[index]
        if unguided is not None:
            # Text is stream 0.
            hidden_states = torch.where(
                unguided.streams[index, :1], unguided.hidden_states[index], hidden_states
            )
        sampled = multistream_sample(
            model.text_logits(hidden_states)[:, None],
            self._text_ids,
            self._text_masks,
            mask_index[index],
            settings.temperature[own, :1],
            settings.top_k[own, :1],
            settings.top_p[own, :1],
            settings.seed[own],
            position[index],
            0,
            forced[index, :1],
        )
        is_text = kind[index] == StateKind.TEXT
        tokens[index, 0] = torch.where(is_text, sampled[:, 0], tokens[index, 0])

    def _sample_audio(
        self,
        model: HeadModel,
        hidden_states: torch.Tensor,
        rows: NDArray[np.int64],
        slots: torch.Tensor,
        position: torch.Tensor,
        mask_index: torch.Tensor,
        kind: torch.Tensor,
        forced: torch.Tensor,
        tokens: torch.Tensor,
        unguided: UnguidedStreams | None,
    ) -> None:
        if len(rows) == 0 or not self._groups:
            return
        index = torch.from_numpy(rows).to(tokens.device)
        own, settings = slots[index], self._state.settings
        logits = model.audio_logits(hidden_states[index])
        plain = None
        if unguided is not None:
            plain = model.audio_logits(unguided.hidden_states[index])
        temperature = settings.temperature[own, 1:]
        top_k, top_p = settings.top_k[own, 1:], settings.top_p[own, 1:]
        is_audio = (kind[index] == StateKind.AUDIO) | (kind[index] == StateKind.FLUSH)
        for group in self._groups:
            shape = (len(rows), *group.shape)
            logits_of_group = logits[:, group.columns].view(shape)
            if unguided is not None and plain is not None:
                logits_of_group = torch.where(
                    unguided.streams[index, group.streams][:, :, None],
                    plain[:, group.columns].view(shape),
                    logits_of_group,
                )
            sampled = multistream_sample(
                logits_of_group,
                group.candidate_ids,
                group.masks,
                mask_index[index],
                temperature[:, group.streams],
                top_k[:, group.streams],
                top_p[:, group.streams],
                settings.seed[own],
                position[index],
                group.first_stream,
                forced[index, group.streams],
            )
            before = tokens[index, group.streams]
            tokens[index, group.streams] = torch.where(is_audio[:, None], sampled, before)
