# SPDX-License-Identifier: Apache-2.0
"""What happens to one request, written out with plain ifs over the layout.

Independent of the phase table: no states, no arrays. Written from the layout's docstrings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from vllm.unison.model.layout import END, Phase, PhaseKind, StreamLayout, Transition
from vllm.unison.model.phases import NO_TOKEN, Finish, Segment, StateKind


@dataclass
class ReferenceRequest:
    """A request that emits one token of stream 0 at a time.

    Args:
        layout: the layout.
        prompt: ids of stream 0 in the prompt.
        limit: position at which stream 0 may emit no more.
    """

    layout: StreamLayout
    prompt: list[int]
    limit: int
    position: int = field(init=False)
    phase: Phase = field(init=False)
    kind: StateKind = field(init=False)
    finish: Finish = Finish.NOT_FINISHED
    segment_start: int = field(init=False)
    flush_end: int = 0
    forced_left: list[int] = field(default_factory=list)
    after: Transition | None = None
    last_step: int = 0
    closing_left: list[int] | None = None
    segments: list[Segment] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.position = self.segment_start = len(self.prompt)
        self.phase = self.layout.phases[0]
        for index, token in enumerate(self.prompt):
            for phase in self.layout.phases:
                if token in phase.begin_tokens:
                    self.phase, self.segment_start = phase, index + 1
        self.kind = kind_of(self.phase)

    @property
    def forced_token(self) -> int:
        """What stream 0 must emit next, or NO_TOKEN."""
        if self.kind is StateKind.FORCED:
            return self.forced_left[0]
        if self.kind is StateKind.DONE:
            return self.layout.pad_token_ids[0]
        if self.kind is not StateKind.FLUSH:
            return NO_TOKEN
        if self.closing_left is not None:
            return self.closing_left[0]
        return self.forced_in_audio(0)

    def forced_in_audio(self, stream: int) -> int:
        """What a stream must emit next, in audio or its flush, or NO_TOKEN."""
        layout = self.layout
        delay, by_limit = layout.delays[stream], self.after is None
        if self.position < self.segment_start + delay:
            place = layout.fills.lead_in
            by_limit = False
        elif self.kind is StateKind.AUDIO:
            return NO_TOKEN
        else:
            end = self.flush_end - layout.max_delay + delay
            if self.position < end:
                return NO_TOKEN
            place = layout.fills.tail
            if self.position == end and layout.fills.end is not None:
                place = layout.fills.end
        if place is None:
            return layout.pad_token_ids[stream]
        if place.sampled[stream] and not by_limit:
            return NO_TOKEN
        return place.token_ids[stream]

    @property
    def may_move(self) -> bool:
        """Whether tokens that leave the phase count."""
        first = max(self.segment_start, len(self.prompt)) + self.phase.end_rule.first_step
        return self.kind not in (StateKind.AUDIO, StateKind.TEXT) or self.position >= first

    @property
    def num_frames(self) -> int:
        """Frames of the segment whose flush is running."""
        return max(self.flush_end - self.layout.max_delay - self.segment_start, 0)

    def emit(self, row: int | Sequence[int]) -> None:
        """The streams emit a row; stream 0's id alone where no other stream may end audio."""
        token = row if isinstance(row, int) else row[0]
        if self.phase.end_rule.any_stream and self.kind in (StateKind.AUDIO, StateKind.FLUSH):
            assert not isinstance(row, int)
            self._emit_where_any_ends(row)
            return
        counts = self.may_move
        position, self.position = self.position, self.position + 1
        if self.kind is StateKind.DONE:
            return
        if self.kind is StateKind.FLUSH:
            self._end_flush_when_due()
            return
        if self.kind is StateKind.FORCED:
            self.forced_left.pop(0)
            self._continue()
            return
        found = [t for t in self.phase.transitions if t.token == token]
        if self.kind is StateKind.TEXT:
            if found and counts:
                self._take(found[0])
            self._continue()
            return
        if found and counts:
            ends_at = position
            if self.phase.end_rule.after_tail:
                ends_at -= self.layout.max_delay
            self._flush(ends_at=ends_at, after=found[0])
        elif self.position >= self.limit:
            self._flush(ends_at=self.position, after=None)

    def _emit_where_any_ends(self, row: Sequence[int]) -> None:
        """The first sign binds stream 0 from the next step on, and a whole row of ends is last."""
        tail = self.layout.fills.tail
        assert tail is not None
        ended = [token == end for token, end in zip(row, tail.token_ids, strict=True)]
        position, self.position = self.position, self.position + 1
        if self.kind is StateKind.AUDIO and (any(ended) or self.position >= self.limit):
            transition = self.phase.transitions[0] if any(ended) else None
            self._flush(ends_at=position + 1, after=transition)
        if all(ended):
            self.flush_end, self.last_step = position, position + 1
        if self.kind is StateKind.FLUSH:
            self._end_flush_when_due()

    def _flush(self, ends_at: int, after: Transition | None) -> None:
        """Stream 0 has frames up to `ends_at`; the others have as many, later."""
        self.kind, self.after = StateKind.FLUSH, after
        self.flush_end = ends_at + self.layout.max_delay
        self.last_step = self.flush_end + self.phase.end_rule.extra_steps
        self.closing_left = None
        self._end_flush_when_due()

    def _end_flush_when_due(self) -> None:
        if self.position < self.last_step:
            return
        if self.closing_left is None:
            self.closing_left = list(self.phase.end_rule.closing)
        else:
            self.closing_left.pop(0)
        if self.closing_left:
            return
        in_prompt = max(len(self.prompt) - self.segment_start, 0)
        self.segments.append(
            Segment(self.segment_start, self.num_frames, min(in_prompt, self.num_frames))
        )
        if self.after is None:
            self.kind, self.finish = StateKind.DONE, Finish.LENGTH
            return
        self._take(self.after)
        self._continue()

    def _take(self, transition: Transition) -> None:
        self.kind = StateKind.FORCED
        self.forced_left = list(transition.forced)
        self.after = transition

    def _continue(self) -> None:
        """After a token: leave the forced tokens when none is left, and end at the limit."""
        if self.kind is StateKind.FORCED and not self.forced_left:
            assert self.after is not None
            if self.after.to == END:
                self.kind, self.finish = StateKind.DONE, Finish.STOP
                return
            self.phase = self.layout.phases[self.layout.phase_index(self.after.to)]
            self.kind = kind_of(self.phase)
            if self.kind is StateKind.AUDIO and self.position < self.limit:
                self.segment_start = self.position
        if self.position >= self.limit:
            self.kind, self.finish = StateKind.DONE, Finish.LENGTH


def kind_of(phase: Phase) -> StateKind:
    """The kind of the state that stands for a phase."""
    return StateKind.AUDIO if phase.kind is PhaseKind.AUDIO else StateKind.TEXT
