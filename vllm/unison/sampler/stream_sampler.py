# SPDX-License-Identifier: Apache-2.0
"""One step's sampling: from hidden states to the tokens of all streams, without a device sync."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vllm.unison.model.layout import MAX_STREAMS, StreamLayout
from vllm.unison.model.output_heads import Heads
from vllm.unison.model.phases import PhaseTable, StateKind
from vllm.unison.ops.cfg_merge import cfg_merge
from vllm.unison.ops.sample import SampleArguments, sample_streams
from vllm.unison.sampler.batch_groups import BatchGroups
from vllm.unison.sampler.phase_machine import Choices, PhaseMachine, StepTokens
from vllm.unison.sampler.sampling_plan import (
    HeadGather,
    HeadGatherCache,
    PlannedCall,
    PlannedHead,
    SamplingPlan,
)
from vllm.unison.sampler.slot_table import SlotTable
from vllm.unison.sampler.slot_writes import SlotSettings
from vllm.unison.sampler.upload import upload

_AUDIO_KINDS = frozenset({StateKind.AUDIO, StateKind.FLUSH})

_SECOND_DRAW = MAX_STREAMS
"""What numbers of streams are raised by where a stream is drawn again, which gives it random
numbers of its own."""


class HeadModel(Protocol):
    """What the sampler needs of the model."""

    def text_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[num_rows, text candidates] logits of stream 0."""
        ...

    def audio_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[num_rows, audio columns] logits of all streams, laid out as Heads.groups says."""
        ...


@dataclass(frozen=True)
class BatchInputs:
    """The rows of a step, as the sampler's calls share them.

    Attributes:
        hidden_states: [num_rows, hidden_size] of the whole batch.
        position: [num_rows] position of the emitted tokens.
        slots: [num_rows] slot of each row.
        groups: the batch's groups; None if every row is one of its own.
        unguided: [num_groups, num_streams] bool on the host, streams that are sampled from the
            conditional lane alone; None if there are none.
        choices: what the rows may emit.
    """

    hidden_states: torch.Tensor
    position: torch.Tensor
    slots: torch.Tensor
    groups: BatchGroups | None
    unguided: NDArray[np.bool_] | None
    choices: Choices


@dataclass(frozen=True)
class HeadInputs:
    """The groups that a head is multiplied for.

    Attributes:
        hidden_states: [num_head_rows, hidden_size]: one row per group, merged over its lanes.
            Groups with unguided streams have a second row further down, of their conditional lane
            alone.
        rows: [num_groups, max_lanes] rows that get the tokens; None if group g is row g.
        logit_rows: [num_groups, num_streams] head row of each stream; None if group g has row g.
    """

    hidden_states: torch.Tensor
    rows: torch.Tensor | None
    logit_rows: torch.Tensor | None


class _StreamGroup:
    """Tables and settings of neighbouring streams that one sampler call serves.

    Args:
        candidate_ids: [num_streams, width] int32.
        masks: [num_masks, num_streams, width].
        first_stream: number of the first stream.
        first_column: of the group's logits in the head's output.
        first_setting: column of the first stream's settings, and of its forced tokens.
        settings: of all slots.
        device: where the tables live.
    """

    def __init__(
        self,
        candidate_ids: NDArray[np.int32],
        masks: NDArray[np.bool_],
        first_stream: int,
        first_column: int,
        first_setting: int,
        settings: SlotSettings,
        device: torch.device,
    ) -> None:
        self._first_stream = first_stream
        self._streams = slice(first_stream, first_stream + len(candidate_ids))
        self._columns = slice(first_column, first_column + candidate_ids.size)
        self._shape = candidate_ids.shape
        self._candidate_ids = torch.from_numpy(candidate_ids).to(device)
        self._masks = torch.from_numpy(masks).to(device)
        self._settings_columns = slice(first_setting, first_setting + len(candidate_ids))
        self._temperature = settings.temperature[:, self._settings_columns]
        self._top_k = settings.top_k[:, self._settings_columns]
        self._top_p = settings.top_p[:, self._settings_columns]
        self._seed = settings.seed
        # What stands in for the settings of a stream that is drawn again.
        shape = self._temperature.shape
        self._one = torch.ones((), device=device).expand(shape)
        self._off = torch.zeros((), dtype=torch.int32, device=device).expand(shape)

    def sample(self, logits: torch.Tensor, head: HeadInputs, rows: BatchInputs) -> None:
        """Write the tokens of the group's streams, given the head's output."""
        sample_streams(
            logits[:, self._columns].view(len(logits), *self._shape), self._arguments(head, rows)
        )

    def redraw(
        self, logits: torch.Tensor, redrawn: torch.Tensor, head: HeadInputs, rows: BatchInputs
    ) -> None:
        """Draw streams again from the softmax of their logits; `redrawn` says which."""
        sample_streams(
            logits[:, self._columns].view(len(logits), *self._shape),
            self._again(self._arguments(head, rows), redrawn),
        )

    def _again(self, arguments: SampleArguments, redrawn: torch.Tensor) -> SampleArguments:
        return replace(
            arguments,
            temperature=self._one,
            top_k=self._off,
            top_p=self._one,
            first_stream=_SECOND_DRAW + self._first_stream,
            forced=redrawn[:, self._settings_columns],
        )

    def planned_redraw(self, call: PlannedCall, redrawn: torch.Tensor) -> PlannedCall:
        """`redraw` for many steps, after a planned call of this group."""
        return replace(call, arguments=self._again(call.arguments, redrawn))

    def planned(
        self, num_rows: int, num_columns: int, head: HeadInputs, rows: BatchInputs
    ) -> PlannedCall:
        """The same call for many steps; `num_rows` and `num_columns` are the head output's."""
        is_all = (self._columns.start, self._columns.stop) == (0, num_columns)
        columns = None if is_all else self._columns
        return PlannedCall(columns, (num_rows, *self._shape), self._arguments(head, rows))

    @property
    def end_column(self) -> int:
        """Columns of the head's output up to the group's last."""
        return self._columns.stop

    def _arguments(self, head: HeadInputs, rows: BatchInputs) -> SampleArguments:
        """What the sampler is given besides the logits."""
        streams, logit_rows = self._streams, head.logit_rows
        return SampleArguments(
            candidate_ids=self._candidate_ids,
            masks=self._masks,
            mask_index=rows.choices.mask_index,
            temperature=self._temperature,
            top_k=self._top_k,
            top_p=self._top_p,
            seed=self._seed,
            position=rows.position,
            first_stream=self._first_stream,
            forced=rows.choices.forced[:, self._settings_columns],
            tokens=rows.choices.tokens[:, streams],
            logit_rows=None if logit_rows is None else logit_rows[:, streams],
            rows=head.rows,
            slots=rows.slots,
        )


class StreamSampler:
    """Samples all streams of all groups and moves the requests through their phases.

    Args:
        layout: the model's stream layout.
        table: its phase table.
        slots: the per-request state, read and updated by `step`.
        keeps_plans: whether a step's working-out may be kept for the next ones. What such a step
            emits is overwritten by the next, so it must be read before; and the host must know
            each row's state.
    """

    def __init__(
        self, layout: StreamLayout, table: PhaseTable, slots: SlotTable, keeps_plans: bool = False
    ) -> None:
        device, settings = slots.device, slots.settings
        self._slots = slots
        self._machine = PhaseMachine(layout, table, slots)
        self._is_text = table.kind == StateKind.TEXT
        self._is_audio = np.isin(table.kind, list(_AUDIO_KINDS))
        soon = table.kinds_within_one_step
        self._may_be_text = np.array([StateKind.TEXT in kinds for kinds in soon], np.bool_)
        self._may_be_audio = np.array([bool(_AUDIO_KINDS & kinds) for kinds in soon], np.bool_)
        self._none_discarded = torch.zeros(slots.max_requests, dtype=torch.bool, device=device)
        self._text_gather, self._audio_gather = HeadGatherCache(device), HeadGatherCache(device)
        self._keeps_plans = keeps_plans
        self._plan: SamplingPlan | None = None
        heads = Heads(layout, table)
        self._text: list[_StreamGroup] = []
        if layout.has_text:
            text_ids = np.arange(*heads.text_range, dtype=np.int32)[None]
            masks = heads.text_masks()
            self._text.append(_StreamGroup(text_ids, masks, 0, 0, 0, settings, device))
        self._audio = [
            _StreamGroup(
                group.candidate_ids,
                heads.audio_masks(group),
                group.first_stream,
                group.first_column,
                1 + group.first_stream,
                settings,
                device,
            )
            for group in heads.groups
        ]

    def step(
        self,
        model: HeadModel,
        hidden_states: torch.Tensor,
        position: torch.Tensor,
        discard: torch.Tensor | None,
        states_are_current: bool,
        groups: BatchGroups | None = None,
        unguided: NDArray[np.bool_] | None = None,
    ) -> StepTokens:
        """Sample the next token of every stream of every group.

        Args:
            model: multiplies the heads.
            hidden_states: [num_rows, hidden_size] at each row's last scheduled token.
            position: [num_rows] integer position of the emitted tokens.
            discard: [num_rows] bool, rows that have not reached their last known token; what is
                sampled for them is thrown away and changes nothing. None: no row.
            states_are_current: whether the host knows each row's state (else it may be one token
                behind, and heads for everything a row may have become are multiplied).
            groups: what is sampled once; default each row by itself.
            unguided: [num_groups, num_streams] streams outside the guidance interval; default none.

        Returns:
            The step's tokens; a row that cannot be sampled has Finish.ERROR and pads.
        """
        row_slots = self._slots.row_slots_host
        own_slots = row_slots if groups is None else row_slots[groups.first_rows]
        states = self._slots.known_state[own_slots]
        if self._keeps_plans and states_are_current and discard is None and unguided is None:
            if self._plan is None or not self._plan.matches(row_slots, groups, states):
                self._plan = self._make_plan(model, groups, states, hidden_states)
            return self._plan.run(hidden_states, position)
        position = position.long()
        if discard is None:
            discard = self._none_discarded[: len(position)]
        choices = self._machine.constrain(position)
        rows = BatchInputs(
            hidden_states, position, self._slots.row_slots, groups, unguided, choices
        )
        text, audio = self._groups_by_head(states, states_are_current)
        for chosen, gathers, logits_of, stream_groups in (
            (text, self._text_gather, model.text_logits, self._text),
            (audio, self._audio_gather, model.audio_logits, self._audio),
        ):
            if len(chosen) and stream_groups:
                head = _head_inputs(rows, chosen, gathers.get(chosen, groups, len(position)))
                logits = logits_of(head.hidden_states)
                for stream_group in stream_groups:
                    stream_group.sample(logits, head, rows)
                if stream_groups is self._audio and self._draws_again():
                    redrawn = torch.empty_like(choices.forced)
                    self._machine.find_repeats_call(position, choices, redrawn)()
                    for stream_group in stream_groups:
                        stream_group.redraw(logits, redrawn, head, rows)
        return self._machine.commit(
            position, discard, choices.tokens, None if groups is None else groups.members
        )

    def _make_plan(
        self,
        model: HeadModel,
        groups: BatchGroups | None,
        states: NDArray[np.int64],
        hidden_states: torch.Tensor,
    ) -> SamplingPlan:
        """The plan of a step whose groups are in `states` [num_groups]; nothing is sampled."""
        num_rows, device = len(hidden_states), hidden_states.device
        position = torch.zeros(num_rows, dtype=torch.int64, device=device)
        discard = torch.zeros(num_rows, dtype=torch.bool, device=device)
        outcome = torch.empty((3, num_rows), dtype=torch.int64, device=device)
        choices = self._machine.constrain(position)
        redrawn = torch.empty_like(choices.forced)
        find_repeats = self._machine.find_repeats_call(position, choices, redrawn)
        rows = BatchInputs(
            hidden_states[:0], position, self._slots.row_slots, groups, None, choices
        )
        text, audio = self._groups_by_head(states, states_are_current=True)
        heads = []
        for chosen, logits_of, stream_groups in (
            (text, model.text_logits, self._text),
            (audio, model.audio_logits, self._audio),
        ):
            if len(chosen) and stream_groups:
                gather = HeadGather.of(chosen, groups, num_rows, device)
                head = HeadInputs(rows.hidden_states, gather.rows, None)
                num_columns = stream_groups[-1].end_column
                calls = [g.planned(len(chosen), num_columns, head, rows) for g in stream_groups]
                redraws: list[PlannedCall] = []
                if stream_groups is self._audio and self._draws_again():
                    redraws = [
                        group.planned_redraw(call, redrawn)
                        for group, call in zip(stream_groups, calls, strict=True)
                    ]
                heads.append(PlannedHead(logits_of, gather, calls, redraws, find_repeats))
        members = None if groups is None else groups.members
        return SamplingPlan(
            self._slots.row_slots_host,
            groups,
            states,
            position,
            self._machine.constrain_call(position, choices),
            self._machine.commit_call(position, discard, choices.tokens, members, outcome),
            heads,
            StepTokens(choices.tokens, outcome),
        )

    def _draws_again(self) -> bool:
        """Whether a request of the batch has a repeat window."""
        slots = self._slots
        return bool(slots.draws_repeats_again[slots.row_slots_host].any())

    def _groups_by_head(
        self, states: NDArray[np.int64], states_are_current: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Groups for which the text head, and those for which the audio head, is multiplied."""
        if states_are_current:
            text, audio = self._is_text[states], self._is_audio[states]
        else:
            text, audio = self._may_be_text[states], self._may_be_audio[states]
        return np.flatnonzero(text), np.flatnonzero(audio)


def _head_inputs(rows: BatchInputs, chosen: NDArray[np.int64], gather: HeadGather) -> HeadInputs:
    """What a head is multiplied with, for the groups numbered `chosen`."""
    hidden_states = rows.hidden_states
    device = hidden_states.device
    outside = None if rows.unguided is None else rows.unguided[chosen]
    if outside is None or not outside.any():
        return HeadInputs(gather.read(hidden_states), gather.rows, None)
    members, weights = gather.members, gather.weights
    assert members is not None and weights is not None
    mixed = np.flatnonzero(outside.any(axis=1))
    alone = upload(mixed, device)
    # The second row of a group at the edge of its interval: its conditional lane with weight 1.
    own = torch.full((len(mixed), members.shape[1]), -1, dtype=torch.int64, device=device)
    own[:, 0] = members[alone, 0]
    merged = cfg_merge(
        hidden_states,
        torch.cat([members, own]),
        torch.cat([weights, torch.ones_like(own, dtype=torch.float32)]),
    )
    second = np.zeros(len(chosen), np.int64)
    second[mixed] = len(chosen) + np.arange(len(mixed))
    head_row = np.where(outside, second[:, None], np.arange(len(chosen))[:, None])
    logit_rows = upload(head_row, device)
    return HeadInputs(merged, members, logit_rows)
