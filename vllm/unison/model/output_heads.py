# SPDX-License-Identifier: Apache-2.0
"""Which rows of the output head each phase multiplies, and which candidates it may choose.

Text phases multiply the rows of the text slice. Audio phases multiply, per stream, the rows of that
stream's own slice (and of the fills that it emits itself, and, on stream 0, of the tokens that end
the phase). Neighbouring streams of one
width form a group, so that one sampler call serves all of them.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vllm.unison.model.layout import PhaseKind, StreamLayout
from vllm.unison.model.phases import PhaseTable, StateKind

PADDING_CANDIDATE = -1
"""Id of a candidate that only pads a stream to its group's width and is never chosen."""

_MOST_PADDING = 1.25
"""Streams share one group while padding them to one width costs at most this much more."""


@dataclass(frozen=True)
class StreamGroup:
    """Neighbouring streams whose candidates have one width.

    Attributes:
        first_stream: the first stream of the group.
        candidate_ids: [num_streams_of_group, width] int32 global id of each candidate, or
            PADDING_CANDIDATE.
        first_column: column of the group's first candidate in the audio head's output.
    """

    first_stream: int
    candidate_ids: NDArray[np.int32]
    first_column: int

    @property
    def num_streams(self) -> int:
        """Streams in the group."""
        return len(self.candidate_ids)

    @property
    def width(self) -> int:
        """Candidates per stream, padding included."""
        return int(self.candidate_ids.shape[1])


class Heads:
    """Candidates and masks of the text head and of the audio head.

    Args:
        layout: the stream layout.
        table: its phase table.
    """

    def __init__(self, layout: StreamLayout, table: PhaseTable) -> None:
        self.layout = layout
        self._table = table

    @cached_property
    def text_range(self) -> tuple[int, int]:
        """Half-open range of ids that the text head multiplies: text and what ends text phases."""
        if self.layout.text_slice is None:
            return 0, 0
        ids = [*self.layout.text_slice]
        for token in self._transition_tokens(PhaseKind.TEXT):
            ids += [token, token + 1]
        return min(ids), max(ids)

    @cached_property
    def groups(self) -> list[StreamGroup]:
        """The audio head's stream groups; empty for a model without audio."""
        if not self.layout.has_audio:
            return []
        per_stream = []
        for stream, (begin, end) in enumerate(self.layout.slices):
            moves = self._end_ids(stream)
            others = [i for i in self.layout.more_than_codes(stream) if i not in moves]
            per_stream.append(np.array([*range(begin, end), *moves, *others], np.int32))
        groups: list[StreamGroup] = []
        column = start = 0
        for stop in range(1, len(per_stream) + 1):
            if stop < len(per_stream) and _fit_together(per_stream[start : stop + 1]):
                continue
            members = per_stream[start:stop]
            ids = np.full((len(members), max(map(len, members))), PADDING_CANDIDATE, np.int32)
            for row, member in enumerate(members):
                ids[row, : len(member)] = member
            groups.append(StreamGroup(start, ids, column))
            column += ids.size
            start = stop
        return groups

    @property
    def audio_columns(self) -> int:
        """Width of the audio head's output: candidates of all streams."""
        return sum(group.candidate_ids.size for group in self.groups)

    def text_masks(self) -> NDArray[np.bool_]:
        """[2 * num_masks, 1, text candidates]: what stream 0 may emit in each state.

        Row 2 * state is the state's allowed set; row 2 * state + 1 the same without the tokens that
        end the request (for min_tokens and ignore_eos). Rows from 2 * num_states on are those of
        phases before their first step that may end.
        """
        begin, end = self.text_range
        masks = np.zeros((2 * self._table.num_masks, 1, end - begin), np.bool_)
        for index, phase in enumerate(self.layout.phases):
            if phase.kind is not PhaseKind.TEXT or self.layout.text_slice is None:
                continue
            first, last = (token - begin for token in self.layout.text_slice)
            early = int(self._table.early_mask[index])
            for variant in (0, 1):
                for row in (early, index):
                    masks[2 * row + variant, 0, first:last] = not phase.chooses
                for token in self._allowed_transitions(index, variant):
                    masks[2 * index + variant, 0, token - begin] = True
        return masks

    def audio_masks(self, group: StreamGroup) -> NDArray[np.bool_]:
        """[2 * num_masks, num_streams_of_group, width], as `text_masks`."""
        shape = (2 * self._table.num_masks, *group.candidate_ids.shape)
        masks = np.zeros(shape, np.bool_)
        kinds = self._table.kind
        for row in range(group.num_streams):
            stream = group.first_stream + row
            begin, end = self.layout.slices[stream]
            ids = group.candidate_ids[row]
            own = (ids >= begin) & (ids < end) | np.isin(ids, self.layout.more_than_codes(stream))
            for state in range(self._table.num_states):
                if kinds[state] not in (StateKind.AUDIO, StateKind.FLUSH):
                    continue
                if self._table.any_ends[state]:
                    # Other streams may end by themselves until it is their turn.
                    ends = own | (ids == self._table.end_ids[stream])
                    may_end = kinds[state] == StateKind.FLUSH or bool(
                        self._allowed_transitions(state, 1)
                    )
                    masks[2 * state, row] = ends
                    masks[2 * state + 1, row] = ends if may_end else own
                    continue
                early = int(self._table.early_mask[state])
                for variant in (0, 1):
                    allowed = before = own
                    if stream == 0 and kinds[state] == StateKind.AUDIO:
                        moves = self._allowed_transitions(state, variant)
                        # An id that also fills the tail is a candidate like any fill, but not where
                        # the request must not end.
                        ends = self._phase_moves(state)
                        refused = set(ends).difference(moves)
                        before = own & ~np.isin(ids, ends)
                        allowed = own & ~np.isin(ids, list(refused)) | np.isin(ids, moves)
                    masks[2 * early + variant, row] = before
                    masks[2 * state + variant, row] = allowed
        return masks

    def _allowed_transitions(self, phase_index: int, variant: int) -> list[int]:
        return [
            t.token
            for t in self.layout.phases[phase_index].transitions
            if not (variant and self._table.ends_request(phase_index, t.token))
        ]

    def _phase_moves(self, phase_index: int) -> list[int]:
        return [t.token for t in self.layout.phases[phase_index].transitions]

    def _end_ids(self, stream: int) -> list[int]:
        """Ids with which a stream may end audio."""
        if stream == 0:
            return self._transition_tokens(PhaseKind.AUDIO)
        ends = (self.layout.end_ids(phase) for phase in self.layout.phases)
        return sorted({ids[stream] for ids in ends if ids})

    def _transition_tokens(self, kind: PhaseKind) -> list[int]:
        return sorted(
            {t.token for p in self.layout.phases if p.kind is kind for t in p.transitions}
        )


def _fit_together(members: list[NDArray[np.int32]]) -> bool:
    widths = [len(member) for member in members]
    return len(widths) * max(widths) <= _MOST_PADDING * sum(widths)
