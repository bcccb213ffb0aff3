# SPDX-License-Identifier: Apache-2.0
"""Phases as a small table, and the rule that moves requests through it.

A phase of the layout becomes one state; every forced token and every flush (the steps in which the
delayed streams catch up after stream 0 ended) becomes a state of its own. The rule is written once,
for whole batches, in operations that numpy and torch share: the worker runs it on the device for
every step, and `replay` runs it on the host to recover a request's state from its tokens.

Positions are absolute indices into the request's steps (prompt included).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vllm.unison.model.layout import END, AudioEnd, PhaseKind, StreamLayout

NO_TOKEN = -1
"""Marks "no forced token" in tables and "free" cells in stream histories."""


class StateKind(IntEnum):
    """What a state does with the streams."""

    TEXT = 0
    AUDIO = 1
    FORCED = 2
    FLUSH = 3
    DONE = 4


class Finish(IntEnum):
    """Why a request has ended, as the worker tells the scheduler."""

    NOT_FINISHED = 0
    STOP = 1
    LENGTH = 2
    ERROR = 3


class PhaseTable:
    """The states of a layout: `kind`, `next_state`, `forced_token`, `finish` as integer arrays.

    Args:
        layout: a validated stream layout.

    Attributes:
        token_class: [vocabulary_size] class of each id; 0 for ids that move no phase.
        next_state: [num_states, num_classes] state after emitting a token of a class.
        first_step: [num_states] step of the segment before which tokens move no audio phase.
        early_mask: [num_states] number of the mask of candidates before that; else the state's own.
        num_masks: numbers of masks; from num_states on those of early_mask.
        kind: [num_states] StateKind.
        forced_token: [num_states] the only token that stream 0 may emit, or NO_TOKEN.
        after_flush: [num_states] for flush states the state that follows.
        end_shift: [num_states] for flush states the end of stream 0, its first position without a
            frame, counted from the token that starts them.
        extra_steps: [num_states] for flush states the steps that they last past the flush's end.
        by_limit: [num_states] 1 for flush states that max_tokens leads to.
        any_ends: [num_states] 1 for the states of phases that any stream may end, flushes included.
        end_ids: [num_streams] the id with which each stream ends those.
        at_limit: [num_states] state after the last token that max_tokens allows.
        finish: [num_states] Finish.
    """

    def __init__(self, layout: StreamLayout) -> None:
        self.layout = layout
        self.max_delay = layout.max_delay
        num_phases = len(layout.phases)
        self.end_stop = num_phases
        self.end_length = num_phases + 1
        self.flush_length = num_phases + 2
        kind = [
            StateKind.AUDIO if phase.kind is PhaseKind.AUDIO else StateKind.TEXT
            for phase in layout.phases
        ] + [StateKind.DONE, StateKind.DONE, StateKind.FLUSH]
        pad = layout.pad_token_ids[0]
        forced = [NO_TOKEN] * num_phases + [pad, pad, _flush_token(layout, by_limit=True)]
        after = [*range(num_phases), self.end_stop, self.end_length, self.end_length]
        end_shift = [0] * (num_phases + 2) + [1]
        extra_steps, by_limit = [0] * len(kind), [0] * (num_phases + 2) + [1]

        def add(
            state_kind: StateKind,
            token: int,
            following: int,
            shift: int = 0,
            extra: int = 0,
            limited: bool = False,
        ) -> int:
            kind.append(state_kind)
            forced.append(token)
            after.append(following)
            end_shift.append(shift)
            extra_steps.append(extra)
            by_limit.append(int(limited))
            return len(kind) - 1

        def add_flush(end: AudioEnd, following: int, limited: bool) -> int:
            for token in reversed(end.closing):
                following = add(StateKind.FLUSH, token, following, limited=limited)
            # A flush that the limit starts has no end token: stream 0 ends one position later, as
            # it does where another stream may have been the one to end.
            is_next = limited or end.any_stream
            shift = 1 if is_next else -self.max_delay if end.after_tail else 0
            token = _flush_token(layout, limited)
            return add(StateKind.FLUSH, token, following, shift, end.extra_steps, limited)

        any_ends: dict[int, int] = {}
        tokens = sorted({t.token for phase in layout.phases for t in phase.transitions})
        class_of = {token: index + 1 for index, token in enumerate(tokens)}
        moves: dict[tuple[int, int], int] = {}
        for index, phase in enumerate(layout.phases):
            for transition in phase.transitions:
                target = (
                    self.end_stop if transition.to == END else layout.phase_index(transition.to)
                )
                for token in reversed(transition.forced):
                    target = add(StateKind.FORCED, token, target)
                if phase.kind is PhaseKind.AUDIO:
                    target = add_flush(phase.end_rule, target, limited=False)
                    any_ends[target] = int(phase.end_rule.any_stream)
                moves[index, class_of[transition.token]] = target
        limits = {
            index: add_flush(phase.end_rule, self.end_length, limited=True)
            for index, phase in enumerate(layout.phases)
            if phase.end_rule.extra_steps or phase.end_rule.closing
        }
        for index, flush in limits.items():
            any_ends[index] = any_ends[flush] = int(layout.phases[index].end_rule.any_stream)

        states = len(kind)
        self.token_class = np.zeros(layout.vocabulary_size, np.int64)
        for token, token_class in class_of.items():
            self.token_class[token] = token_class
        self.next_state = np.empty((states, len(tokens) + 1), np.int64)
        for state in range(states):
            stays = kind[state] is not StateKind.FORCED
            self.next_state[state] = state if stays else after[state]
        for (state, token_class), target in moves.items():
            self.next_state[state, token_class] = target
        self.kind = np.array(kind, np.int64)
        self.forced_token = np.array(forced, np.int64)
        self.after_flush = np.array(after, np.int64)
        self.at_limit = np.full(states, self.end_length, np.int64)
        self.at_limit[self.kind == StateKind.AUDIO] = self.flush_length
        for index, flush in limits.items():
            self.at_limit[index] = flush
        self.end_shift = np.array(end_shift, np.int64)
        self.extra_steps = np.array(extra_steps, np.int64)
        self.by_limit = np.array(by_limit, np.int64)
        self.any_ends = np.array([any_ends.get(state, 0) for state in range(states)], np.int64)
        self.end_ids = np.array(layout.tail.token_ids, np.int64)
        self.first_step = np.zeros(states, np.int64)
        self.early_mask = np.arange(states)
        self.num_masks = states
        for index, phase in enumerate(layout.phases):
            self.first_step[index] = phase.end_rule.first_step
            if phase.end_rule.first_step and phase.end_rule.forbids_earlier:
                self.early_mask[index] = self.num_masks
                self.num_masks += 1
        self.finish = np.full(states, Finish.NOT_FINISHED, np.int64)
        self.finish[self.end_stop] = Finish.STOP
        self.finish[self.end_length] = Finish.LENGTH

    @property
    def num_states(self) -> int:
        """Number of states."""
        return len(self.kind)

    @cached_property
    def kinds_within_one_step(self) -> list[frozenset[StateKind]]:
        """Per state the kinds it may have after at most one more token, its own included."""
        return [
            frozenset(StateKind(int(self.kind[s])) for s in {state, *self.successors(state)})
            for state in range(self.num_states)
        ]

    def successors(self, state: int) -> frozenset[int]:
        """States that may follow a state after one more token."""
        states = {*self.next_state[state].tolist()}
        if self.kind[state] not in (StateKind.FLUSH, StateKind.DONE):
            states.add(int(self.at_limit[state]))
        ended = {s for s in states if self.kind[s] == StateKind.FLUSH}
        states |= {int(self.after_flush[s]) for s in ended}
        return frozenset(states | {self.end_length} if ended else states)

    def ends_request(self, phase_index: int, token: int) -> bool:
        """Whether `token`, emitted in a phase, ends the request (perhaps after a flush)."""
        state = int(self.next_state[phase_index, self.token_class[token]])
        while self.kind[state] in (StateKind.FORCED, StateKind.FLUSH):
            state = int(self.after_flush[state])
        return state == self.end_stop

    def on(self, device: torch.device) -> "DeviceTable":
        """The table as tensors on a device."""

        def move(array: NDArray[np.int64]) -> torch.Tensor:
            return torch.from_numpy(array).to(device)

        return DeviceTable(
            token_class=move(self.token_class),
            next_state=move(self.next_state),
            kind=move(self.kind),
            forced_token=move(self.forced_token),
            after_flush=move(self.after_flush),
            at_limit=move(self.at_limit),
            finish=move(self.finish),
            end_shift=move(self.end_shift),
            extra_steps=move(self.extra_steps),
            by_limit=move(self.by_limit),
            first_step=move(self.first_step),
            early_mask=move(self.early_mask),
            any_ends=move(self.any_ends),
            end_ids=move(self.end_ids),
            end_length=self.end_length,
            max_delay=self.max_delay,
            where=torch.where,
        )

    @cached_property
    def on_host(self) -> "DeviceTable":
        """The table as numpy arrays."""
        return DeviceTable(
            token_class=self.token_class,
            next_state=self.next_state,
            kind=self.kind,
            forced_token=self.forced_token,
            after_flush=self.after_flush,
            at_limit=self.at_limit,
            finish=self.finish,
            end_shift=self.end_shift,
            extra_steps=self.extra_steps,
            by_limit=self.by_limit,
            first_step=self.first_step,
            early_mask=self.early_mask,
            any_ends=self.any_ends,
            end_ids=self.end_ids,
            end_length=self.end_length,
            max_delay=self.max_delay,
            where=np.where,
        )


@dataclass(frozen=True)
class DeviceTable:
    """The arrays of a PhaseTable in one array library, and that library's `where`."""

    token_class: Any
    next_state: Any
    kind: Any
    forced_token: Any
    after_flush: Any
    at_limit: Any
    finish: Any
    end_shift: Any
    extra_steps: Any
    by_limit: Any
    first_step: Any
    early_mask: Any
    any_ends: Any
    end_ids: Any
    end_length: int
    max_delay: int
    where: Any


@dataclass
class Progress:
    """Where requests stand: one entry per row, integer arrays or tensors of one length.

    Attributes:
        state: state of the phase table.
        segment_start: position at which the current (or last) audio segment begins.
        flush_end: position by which the last stream has emitted the last frame of the segment that
            the current (or last) flush ends.
    """

    state: Any
    segment_start: Any
    flush_end: Any


def advance(
    table: DeviceTable,
    progress: Progress,
    position: Any,
    tokens: Any,
    limit: Any,
    num_prompt: Any = 0,
) -> Progress:
    """Progress after the streams emitted `tokens` at `position`.

    Args:
        table: the phase table, in the array library of the other arguments.
        progress: [num_rows] each, before the token.
        position: [num_rows] position of the tokens.
        tokens: [num_rows, num_streams] ids, at least 0; of streams 1.. those count only in phases
            that any stream may end.
        limit: [num_rows] position at which stream 0 may emit no more (prompt plus max_tokens).
        num_prompt: [num_rows] length of the prompt, at which generation starts.

    Returns:
        The new progress; the arguments are not changed.
    """
    where, kind = table.where, table.kind
    state = progress.state
    flushing = kind[state] == StateKind.FLUSH
    early = is_early(table, state, progress.segment_start, position, num_prompt)
    any_ends, ended = table.any_ends[state] == 1, tokens == table.end_ids
    token = where(any_ends & ended.any(-1), table.end_ids[0], tokens[..., 0])
    after = table.next_state[state, where(early, 0, table.token_class[token])]
    free = (kind[after] != StateKind.FLUSH) & (kind[after] != StateKind.DONE)
    after = where((position + 1 >= limit) & ~flushing & free, table.at_limit[state], after)

    starts_flush = (kind[after] == StateKind.FLUSH) & ~flushing
    end = position + table.end_shift[after]
    flush_end = where(starts_flush, end + table.max_delay, progress.flush_end)
    flush_end = where(any_ends & ended.all(-1), position, flush_end)
    last = flush_end + table.extra_steps[after]
    flushed = (kind[after] == StateKind.FLUSH) & (position + 1 >= last)
    following = table.after_flush[after]
    goes_on = (kind[following] != StateKind.DONE) & (kind[following] != StateKind.FLUSH)
    spent = (position + 1 >= limit) & goes_on
    after = where(flushed, where(spent, table.end_length, following), after)

    enters_audio = (kind[after] == StateKind.AUDIO) & (flushed | (kind[state] != StateKind.AUDIO))
    segment_start = where(enters_audio, position + 1, progress.segment_start)
    return Progress(after, segment_start, flush_end)


def is_early(
    table: DeviceTable, state: Any, segment_start: Any, position: Any, num_prompt: Any
) -> Any:
    """Whether tokens do not count yet in the audio segment that a row is in.

    Args:
        table, position, num_prompt: as in `advance`.
        state, segment_start: of the progress.
    """
    first_step = table.first_step[state]
    generated = table.where(segment_start > num_prompt, segment_start, num_prompt)
    return (first_step > 0) & (position < generated + first_step)


@dataclass(frozen=True)
class Segment:
    """A stretch of audio in a request.

    Attributes:
        start: position of the step in which a stream without delay emits frame 0.
        num_frames: whole frames in the segment.
        first_generated: index of the first frame that was generated (frames before it are prompt).
    """

    start: int
    num_frames: int
    first_generated: int


@dataclass(frozen=True)
class Replay:
    """What the tokens of a request say: its progress, and its finished audio segments."""

    state: int
    segment_start: int
    flush_end: int
    segments: tuple[Segment, ...]


def replay(
    table: PhaseTable,
    prompt: Sequence[int],
    output: Sequence[int] | NDArray[np.int32],
    limit: int,
    until_done: bool = False,
    start_phase: int | None = None,
) -> Replay:
    """Recover a request's progress from its tokens.

    Generation starts as `start_of_generation` says.

    Args:
        table: the phase table.
        prompt: ids of stream 0 in the prompt.
        output: [num_steps, num_streams] ids that it has emitted, flush pads included; [num_steps]
            of stream 0 will do where no other stream may end audio.
        limit: position at which stream 0 may emit no more.
        until_done: stop at the request's end and leave what comes after it unread.
        start_phase: the phase that it starts in, if its task says so.
    """
    state, segment_start = start_of_generation(table.layout, prompt, start_phase)
    host = table.on_host
    flush_end = 0
    segments: list[Segment] = []
    class_of, next_state, kind = table.token_class, table.next_state, table.kind
    steps = np.asarray(output, np.int64)
    steps = steps[:, None] if steps.ndim == 1 else steps
    ended = (steps == table.end_ids).any(axis=1).tolist() if table.any_ends.any() else None
    for position, token in enumerate(steps[:, 0].tolist(), start=len(prompt)):
        if until_done and kind[state] == StateKind.DONE:
            break
        row = position - len(prompt)
        if (
            kind[state] == StateKind.AUDIO
            and next_state[state, class_of[token]] == state
            and position + 1 < limit
            and not (ended is not None and table.any_ends[state] and ended[row])
        ):
            continue
        was = Progress(np.int64(state), np.int64(segment_start), np.int64(flush_end))
        now = advance(
            host,
            was,
            np.int64(position),
            steps[row],
            np.int64(limit),
            np.int64(len(prompt)),
        )
        left_audio = kind[state] in (StateKind.AUDIO, StateKind.FLUSH)
        moved = int(now.state) != state or int(now.segment_start) != segment_start
        if left_audio and moved and kind[now.state] != StateKind.FLUSH:
            frames = max(int(now.flush_end) - table.max_delay - segment_start, 0)
            first = max(len(prompt) - segment_start, 0)
            segments.append(Segment(segment_start, frames, min(first, frames)))
        state, segment_start = int(now.state), int(now.segment_start)
        flush_end = int(now.flush_end)
    return Replay(state, segment_start, flush_end, tuple(segments))


def _flush_token(layout: StreamLayout, by_limit: bool) -> int:
    """The one id that stream 0 emits in a flush; NO_TOKEN if its fills say more than that."""
    end, tail = layout.end, layout.tail
    if not by_limit:
        # Its end is the token that starts the flush.
        return NO_TOKEN if tail.sampled[0] else tail.token_ids[0]
    # At the limit the sampler is not asked: it might go on.
    return tail.token_ids[0] if end.token_ids[0] == tail.token_ids[0] else NO_TOKEN


def start_of_generation(
    layout: StreamLayout, prompt: Sequence[int], start_phase: int | None = None
) -> tuple[int, int]:
    """State and segment start that a prompt leads to.

    That is the phase of the prompt's last begin token, whose segment starts right after it, or the
    first phase at the prompt's end if there is none.

    Args:
        layout: the stream layout.
        prompt: ids of stream 0.
        start_phase: the phase instead, if the request's task says so; it starts at the prompt's
            end.
    """
    if start_phase is not None:
        return start_phase, len(prompt)
    phase_of = {
        token: index for index, phase in enumerate(layout.phases) for token in phase.begin_tokens
    }
    ids = np.asarray(prompt, np.int64)
    found = np.flatnonzero(np.isin(ids, list(phase_of))) if phase_of else np.empty(0, np.int64)
    if len(found) == 0:
        return 0, len(ids)
    last = int(found[-1])
    return phase_of[int(ids[last])], last + 1
