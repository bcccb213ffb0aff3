# SPDX-License-Identifier: Apache-2.0
"""One step's sampling: from hidden states to the tokens of all streams, without a device sync."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vllm.multistream.heads import Heads
from vllm.multistream.layout import StreamLayout
from vllm.multistream.phases import PhaseTable, StateKind
from vllm.multistream.worker.lanes import Lanes
from vllm.multistream.worker.repeated_step import RepeatedCall, RepeatedHead, RepeatedStep
from vllm.multistream.worker.state import SlotSettings, StreamState
from vllm.multistream.worker.stream_step import Choices, StepTokens, StreamStep
from vllm.unison.ops.cfg_merge import cfg_merge
from vllm.unison.ops.sample import SampleArguments, sample_streams

_AUDIO_KINDS = frozenset({StateKind.AUDIO, StateKind.FLUSH})


class HeadModel(Protocol):
    """What the sampler needs of the model."""

    def text_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[num_rows, text candidates] logits of stream 0."""
        ...

    def audio_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[num_rows, audio columns] logits of all streams, laid out as Heads.groups says."""
        ...


@dataclass(frozen=True)
class Rows:
    """The rows of a step, as the sampler's calls share them.

    Attributes:
        hidden_states: [num_rows, hidden_size] of the whole batch.
        position: [num_rows] position of the emitted tokens.
        slots: [num_rows] slot of each row.
        lanes: the groups; None if every row is one of its own.
        unguided: [num_groups, num_streams] bool on the host, streams that are sampled from the
            conditional lane alone; None if there are none.
        choices: what the rows may emit.
    """

    hidden_states: torch.Tensor
    position: torch.Tensor
    slots: torch.Tensor
    lanes: Lanes | None
    unguided: NDArray[np.bool_] | None
    choices: Choices


@dataclass(frozen=True)
class HeadSource:
    """Where a head's rows come from, if each group has one.

    Attributes:
        index: [num_head_rows] rows of the batch; None if it is all of them, or with `members`.
        members, weights: [num_head_rows, most lanes] lanes that are merged, and their weights; None
            if every row is a group of its own.
    """

    index: torch.Tensor | None
    members: torch.Tensor | None
    weights: torch.Tensor | None

    @classmethod
    def of(
        cls, groups: NDArray[np.int64], lanes: Lanes | None, num_rows: int, device: torch.device
    ) -> HeadSource:
        """The source of some groups, of a batch of `num_rows` rows."""
        index = None
        if len(groups) < (num_rows if lanes is None else len(lanes.first_host)):
            index = torch.from_numpy(groups).to(device, non_blocking=True)
        if lanes is None:
            return cls(index, None, None)
        if index is None:
            return cls(None, lanes.rows, lanes.weights)
        return cls(None, lanes.rows[index], lanes.weights[index])

    @property
    def rows(self) -> torch.Tensor | None:
        """[num_head_rows, most lanes] rows that get a group's tokens; None if group g is row g."""
        return self.members if self.index is None else self.index[:, None]

    def read(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[num_head_rows, hidden_size] of a batch's hidden states.

        Heads are linear and weights sum to 1, so hidden states are merged before a head instead of
        logits after it, which multiplies it once per group instead of once per lane.
        """
        if self.members is not None and self.weights is not None:
            return cfg_merge(hidden_states, self.members, self.weights)
        return hidden_states if self.index is None else hidden_states[self.index]


@dataclass(frozen=True)
class HeadRows:
    """The groups that a head is multiplied for.

    Attributes:
        hidden_states: [num_head_rows, hidden_size]: one row per group, merged over its lanes.
            Groups with unguided streams have a second row further down, of their conditional lane
            alone.
        rows: [num_groups, most lanes] rows that get the tokens; None if group g is row g.
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

    def sample(self, logits: torch.Tensor, head: HeadRows, rows: Rows) -> None:
        """Write the tokens of the group's streams, given the head's output."""
        sample_streams(
            logits[:, self._columns].view(len(logits), *self._shape), self._arguments(head, rows)
        )

    def repeated(self, num_rows: int, num_columns: int, head: HeadRows, rows: Rows) -> RepeatedCall:
        """The same call for each step; `num_rows` and `num_columns` are the head output's."""
        is_all = (self._columns.start, self._columns.stop) == (0, num_columns)
        columns = None if is_all else self._columns
        return RepeatedCall(columns, (num_rows, *self._shape), self._arguments(head, rows))

    @property
    def end_column(self) -> int:
        """Columns of the head's output up to the group's last."""
        return self._columns.stop

    def _arguments(self, head: HeadRows, rows: Rows) -> SampleArguments:
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
    """Samples all streams of all rows and moves the rows through their phases.

    Args:
        layout: the model's stream layout.
        table: its phase table.
        state: the per-request state, read and updated by `step`.
    """

    def __init__(self, layout: StreamLayout, table: PhaseTable, state: StreamState) -> None:
        device, settings = state.device, state.settings
        self._state = state
        self._rule = StreamStep(layout, table, state)
        self._is_text = table.kind == StateKind.TEXT
        self._is_audio = np.isin(table.kind, list(_AUDIO_KINDS))
        self._kinds_soon = table.kinds_within_one_step
        heads = Heads(layout, table)
        self._text: _StreamGroup | None = None
        if layout.has_text:
            text_ids = np.arange(*heads.text_range, dtype=np.int32)[None]
            self._text = _StreamGroup(text_ids, heads.text_masks(), 0, 0, 0, settings, device)
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
        discard: torch.Tensor,
        states_are_current: bool,
        lanes: Lanes | None = None,
        unguided: NDArray[np.bool_] | None = None,
    ) -> StepTokens:
        """Sample the next token of every stream of every group.

        Args:
            model: multiplies the heads.
            hidden_states: [num_rows, hidden_size] at each row's last scheduled token.
            position: [num_rows] int64 position of the emitted tokens.
            discard: [num_rows] bool, rows that have not reached their last known token; what is
                sampled for them is thrown away and changes nothing.
            states_are_current: whether the host knows each row's state (else it may be one token
                behind, and heads for everything a row may have become are multiplied).
            lanes: the groups that are sampled; default each row by itself.
            unguided: [num_groups, num_streams] streams outside the guidance interval; default none.

        Returns:
            The step's tokens; a row that cannot be sampled has Finish.ERROR and pads.
        """
        state = self._state
        choices = self._rule.begin(position)
        rows = Rows(hidden_states, position, state.row_slots, lanes, unguided, choices)
        slots = state.row_slots_host
        text, audio = self._groups_by_head(
            slots if lanes is None else slots[lanes.first_host], states_are_current
        )
        if len(text) and self._text is not None:
            head = _head_rows(rows, text)
            self._text.sample(model.text_logits(head.hidden_states), head, rows)
        if len(audio) and self._audio:
            head = _head_rows(rows, audio)
            logits = model.audio_logits(head.hidden_states)
            for group in self._audio:
                group.sample(logits, head, rows)
        return self._rule.advance(
            position, discard, choices.tokens, None if lanes is None else lanes.rows
        )

    def repeat(
        self, position: torch.Tensor, discard: torch.Tensor, lanes: Lanes | None
    ) -> RepeatedStep:
        """A step that can be taken again, on a device that the host reads directly.

        Args:
            position, discard, lanes: as for `step`; no stream is unguided.
        """
        state, num_rows = self._state, len(position)
        choices = self._rule.begin(position)
        rows = Rows(choices.tokens.new_empty(0), position, state.row_slots, lanes, None, choices)
        states = state.known_state[state.row_slots_host]
        if lanes is not None:
            members = lanes.rows.numpy()
            group, place = np.nonzero(members >= 0)
            states[members[group, place]] = states[lanes.first_host[group]]
        slots = state.row_slots_host
        text, audio = self._groups_by_head(
            slots if lanes is None else slots[lanes.first_host], True
        )
        heads = []
        for name, members_of_head, stream_groups in (
            ("text_logits", text, [] if self._text is None else [self._text]),
            ("audio_logits", audio, self._audio),
        ):
            if not len(members_of_head) or not stream_groups:
                continue
            source = HeadSource.of(members_of_head, lanes, num_rows, position.device)
            head = HeadRows(rows.hidden_states, source.rows, None)
            num_columns = stream_groups[-1].end_column
            count = len(members_of_head)
            calls = [group.repeated(count, num_columns, head, rows) for group in stream_groups]
            heads.append(RepeatedHead(name, source, calls))
        outcome = torch.empty((3, num_rows), dtype=torch.int64, device=position.device)
        begin = self._rule.begin_arguments(position, choices)
        advance = self._rule.advance_arguments(
            position, discard, choices.tokens, None if lanes is None else lanes.rows, outcome
        )
        return RepeatedStep(
            position,
            lanes,
            partial(torch.ops.unison.constrain_streams.default, *begin),
            partial(torch.ops.unison.commit_streams.default, *advance),
            heads,
            StepTokens(choices.tokens, outcome),
            states,
        )

    def _groups_by_head(
        self, slots: NDArray[np.int64], states_are_current: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Groups for which the text head, and those for which the audio head, is multiplied."""
        states = self._state.known_state[slots]
        if states_are_current:
            text, audio = self._is_text[states], self._is_audio[states]
        else:
            soon = [self._kinds_soon[s] for s in states.tolist()]
            text = np.array([StateKind.TEXT in kinds for kinds in soon], np.bool_)
            audio = np.array([bool(_AUDIO_KINDS & kinds) for kinds in soon], np.bool_)
        return np.flatnonzero(text), np.flatnonzero(audio)


def _head_rows(rows: Rows, groups: NDArray[np.int64]) -> HeadRows:
    """The rows that a head is multiplied for."""
    hidden_states, lanes = rows.hidden_states, rows.lanes
    device = hidden_states.device
    source = HeadSource.of(groups, lanes, len(hidden_states), device)
    outside = None if rows.unguided is None else rows.unguided[groups]
    if outside is None or not outside.any():
        return HeadRows(source.read(hidden_states), source.rows, None)
    members, weights = source.members, source.weights
    assert members is not None and weights is not None
    mixed = np.flatnonzero(outside.any(axis=1))
    alone = torch.from_numpy(mixed).to(device, non_blocking=True)
    # The second row of a group at the edge of its interval: its conditional lane with weight 1.
    own = torch.full((len(mixed), members.shape[1]), -1, dtype=torch.int64, device=device)
    own[:, 0] = members[alone, 0]
    merged = cfg_merge(
        hidden_states,
        torch.cat([members, own]),
        torch.cat([weights, torch.ones_like(own, dtype=torch.float32)]),
    )
    second = np.zeros(len(groups), np.int64)
    second[mixed] = len(groups) + np.arange(len(mixed))
    head_row = np.where(outside, second[:, None], np.arange(len(groups))[:, None])
    return HeadRows(merged, members, torch.from_numpy(head_row).to(device, non_blocking=True))
