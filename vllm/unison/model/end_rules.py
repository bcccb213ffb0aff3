# SPDX-License-Identifier: Apache-2.0
"""How a stretch of audio ends, as values, and what its next column must hold.

Steps count from the start of the audio, so stream k holds frame f at step f + delays[k]. Whatever
the rule, the end comes down to one number per stream, the step of its *end*: the first at which it
holds no frame any more. The rules differ in what says so.

`next_column` is a pure function of the columns so far: what a worker keeps as state can be checked
against it. It is written for one request, and not for the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from vllm.unison.model.delay_pattern import interleave
from vllm.unison.model.fills import Fill, StreamFills
from vllm.unison.model.layout import (
    MAX_STREAMS,
    LayoutError,
    Phase,
    PlaceFill,
    StreamLayout,
)
from vllm.unison.model.phases import NO_TOKEN
from vllm.unison.model.spec import SpeechSpec

Columns = NDArray[np.int32]
Steps = NDArray[np.int64]

NEVER = np.iinfo(np.int64).max // 2
"""A step that has not come."""


@dataclass(frozen=True)
class Ends:
    """What a rule has found in the columns so far.

    Attributes:
        steps: [num_streams] the first step at which each stream holds no frame, or NEVER.
        forced: [num_streams] the step from which on its cells are fills, or NEVER. The same, but
            where an end that a stream emitted itself does not bind it.
        num_columns: columns of the whole, or NEVER.
    """

    steps: Steps
    forced: Steps
    num_columns: int

    @staticmethod
    def none_of(num_streams: int) -> Ends:
        """No stream has ended."""
        return Ends.at(np.full(num_streams, NEVER), NEVER)

    @staticmethod
    def at(steps: Steps, num_columns: int) -> Ends:
        """Ends whose streams are bound from their end on."""
        return Ends(steps, steps, num_columns)


@dataclass(frozen=True)
class FixedLength:
    """Only the number of frames ends the audio (MusicGen)."""

    first_step = 0
    extra_steps = 0
    end_ids: tuple[int, ...] = ()
    closing: tuple[int, ...] = ()

    def ends(self, columns: Columns, delays: Steps, first: int) -> Ends:
        """No column says anything."""
        return Ends.none_of(len(delays))

    def may_end(self, step: int, delays: Steps, first: int, ends: Ends) -> NDArray[np.bool_]:
        """No stream may."""
        return np.zeros(len(delays), bool)


@dataclass(frozen=True)
class IdOnPrimary:
    """An id on stream 0 ends it, and each other stream as many steps later as it is delayed.

    A control stream (MOSS-TTS) is this rule too: its id is followed by the stream's tail and by
    `closing`.

    Args:
        end_ids: the ids, at least one.
        first_step: the first step at which they count.
        forbids_earlier: whether they are masked before; False: they are emitted and ignored.
        only_if_argmax: whether the sampler takes an end id if and only if it has the largest logit
            (Dia). It binds the sampler, not the columns.
        extra_steps: steps that the audio runs on after its last frame's; 1 if the last stream's end
            is emitted too.
        closing: ids that stream 0 is forced to emit after that.
    """

    end_ids: tuple[int, ...]
    first_step: int = 0
    forbids_earlier: bool = True
    only_if_argmax: bool = False
    extra_steps: int = 0
    closing: tuple[int, ...] = ()

    def ends(self, columns: Columns, delays: Steps, first: int) -> Ends:
        """All streams' ends follow from the step of the id."""
        found = _first_step(np.isin(columns[:, 0], self.end_ids), first)
        if found == NEVER:
            return Ends.none_of(len(delays))
        last = max(found + 1, found + int(delays.max()) + self.extra_steps)
        return Ends.at(found + delays, last + len(self.closing))

    def may_end(self, step: int, delays: Steps, first: int, ends: Ends) -> NDArray[np.bool_]:
        """Stream 0 may, until it has."""
        allowed = np.zeros(len(delays), bool)
        allowed[0] = step < ends.steps[0] and not self.forbids_at(step, first)
        return allowed

    def forbids_at(self, step: int, first: int) -> bool:
        """Whether column `step` is too early for the ids to be candidates on stream 0."""
        return self.forbids_earlier and step < first


@dataclass(frozen=True)
class _OneEndId:
    """What rules have in common whose streams all end with one id, which each emits or is given."""

    end_id: int
    first_step: int = 0
    extra_steps = 1
    closing: tuple[int, ...] = ()

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The id."""
        return (self.end_id,)


@dataclass(frozen=True)
class AnyStream:
    """An end on any stream is the first sign; then streams are bound in the order of their delays.

    The first stream is, in the step after it. The audio ends with the first column that holds an
    end on all streams (Higgs Audio v2), and has the frames that the columns before it hold whole. A
    stream's own end does not bind it: it may emit codes again before it is its turn.

    Args:
        end_ids: per stream the id of its end and tail.
        first_step: the first step at which they count, and are allowed.
    """

    end_ids: tuple[int, ...]
    first_step: int = 0
    extra_steps = 1
    closing: tuple[int, ...] = ()

    def ends(self, columns: Columns, delays: Steps, first: int) -> Ends:
        """The streams' turns, and the column that ends all of them."""
        started = np.arange(len(columns))[:, None] >= delays
        is_end = (columns == np.array(self.end_ids)) & started
        order = 1 + delays - delays.min()
        turns = np.minimum(_first_step(is_end.any(axis=1), first) + order, NEVER)
        whole = _first_step(is_end.all(axis=1), first)
        if whole == NEVER:
            return Ends.at(turns, NEVER)
        return Ends(whole - int(delays.max()) + delays, turns, whole + 1)

    def may_end(self, step: int, delays: Steps, first: int, ends: Ends) -> NDArray[np.bool_]:
        """Every stream that has started."""
        return (step >= delays) & (step >= first)


@dataclass(frozen=True)
class StreamsInTurn(_OneEndId):
    """Each stream emits the id itself, after the one before it has (Parler-TTS).

    Args:
        end_id: the id.
        first_step: the first step at which stream 0 may.
    """

    def ends(self, columns: Columns, delays: Steps, first: int) -> Ends:
        """Stream by stream, each from the step after the one before it."""
        steps = np.full(len(delays), NEVER)
        after = first
        for stream, delay in enumerate(delays.tolist()):
            found = _first_step(columns[:, stream] == self.end_id, max(after, delay))
            if found == NEVER:
                return Ends.at(steps, NEVER)
            steps[stream], after = found, found + 1
        return Ends.at(steps, int(steps[-1]) + 1)

    def may_end(self, step: int, delays: Steps, first: int, ends: Ends) -> NDArray[np.bool_]:
        """The first stream that has not ended, if the one before it ended in an earlier step."""
        before = np.concatenate([[first - 1], ends.steps[:-1]])
        return (before < step) & (step >= delays) & (step < ends.steps)


@dataclass(frozen=True)
class AfterTail:
    """An id on stream 0 ends all streams at once, after a tail that they emit themselves.

    So there are as many frames as columns before the id, less the largest delay (Bagpiper).

    Args:
        end_ids: the ids, at least one.
        first_step: the first step at which they count, and are allowed.
    """

    end_ids: tuple[int, ...]
    first_step: int = 0
    extra_steps = 0
    closing: tuple[int, ...] = ()

    def ends(self, columns: Columns, delays: Steps, first: int) -> Ends:
        """The last stream's last frame stands right before the id."""
        found = _first_step(np.isin(columns[:, 0], self.end_ids), first)
        if found == NEVER:
            return Ends.none_of(len(delays))
        return Ends.at(found - int(delays.max()) + delays, found + 1)

    def may_end(self, step: int, delays: Steps, first: int, ends: Ends) -> NDArray[np.bool_]:
        """Stream 0 may."""
        allowed = np.zeros(len(delays), bool)
        allowed[0] = step >= first
        return allowed


@dataclass(frozen=True)
class AllZero:
    """A column that holds 0 on all of some streams ends the audio, and is no frame (CSM).

    Args:
        streams: the streams that are looked at; empty: all.
        first_step: the first step at which such a column counts.
    """

    streams: tuple[int, ...] = ()
    first_step: int = 0
    extra_steps = 0
    end_ids: tuple[int, ...] = ()
    closing: tuple[int, ...] = ()

    def ends(self, columns: Columns, delays: Steps, first: int) -> Ends:
        """All streams at once."""
        read = columns[:, list(self.streams)] if self.streams else columns
        found = _first_step((read == 0).all(axis=1), first)
        return Ends.at(np.full(len(delays), found), min(found + 1, NEVER))

    def may_end(self, step: int, delays: Steps, first: int, ends: Ends) -> NDArray[np.bool_]:
        """Every stream: 0 is a code as well."""
        return np.ones(len(delays), bool)


# What the rules have in common: `ends` reads the columns so far, and `may_end` says which streams
# may emit an end id in column `step`. Both take the first step at which the rule looks, which a
# prompt moves. `extra_steps` and `closing` say how long audio is that a limit ends.
EndRule: TypeAlias = FixedLength | IdOnPrimary | AnyStream | StreamsInTurn | AfterTail | AllZero


@dataclass(frozen=True)
class StreamPattern:
    """Delays, fills and the end of a stretch of audio.

    Args:
        delays: steps that each stream runs behind, at least 0.
        fills: what each stream carries where it has no frame.
        end_rule: what ends the audio besides a limit on its frames.
        vocabulary_size: ids lie below it.

    Raises:
        LayoutError: naming the field and what is accepted.
    """

    delays: tuple[int, ...]
    fills: tuple[StreamFills, ...]
    end_rule: EndRule
    vocabulary_size: int

    def __post_init__(self) -> None:
        _validate(self)

    @property
    def num_streams(self) -> int:
        """Number of streams K."""
        return len(self.delays)

    @property
    def max_delay(self) -> int:
        """Steps after which the last stream starts."""
        return max(self.delays)

    def num_columns(self, num_frames: int) -> int:
        """Columns of audio that its limit of `num_frames` ends."""
        rule = self.end_rule
        return num_frames + self.max_delay + rule.extra_steps + len(rule.closing)


def prompt_columns(pattern: StreamPattern, frames: Columns) -> Columns:
    """The columns of a prompt of frames that audio goes on from, one per frame.

    Args:
        pattern: of the model.
        frames: [num_frames, num_streams] ids.

    Returns:
        [num_frames, num_streams] int32: all columns before the first in which stream 0
        is free. The rest of the delayed streams follows, forced by `next_column`.
    """
    lead_in = [f.lead_in.token_id if f.lead_in else NO_TOKEN for f in pattern.fills]
    fill = [NO_TOKEN if token is None else token for token in lead_in]
    return interleave(frames, pattern.delays, fill)[: len(frames)]


def speech_lm_pattern(spec: SpeechSpec, phase_index: int) -> StreamPattern:
    """The pattern of an audio phase of the SpeechLM format, up to the end of its flush.

    It is what the worker follows: the phase table and the step's operators are its state machine.

    What a transition forces after the flush differs from token to token, so it stays with the phase
    table.

    Args:
        spec: of the model.
        phase_index: of an audio phase.
    """
    layout = spec.layout

    def fill(place: PlaceFill, stream: int) -> Fill:
        skipped = spec.auxiliary_skip_ids if stream else spec.primary_skip_ids
        token = place.token_ids[stream]
        return Fill(token, embeds=token not in skipped, sampled=place.sampled[stream])

    return StreamPattern(
        delays=layout.delays,
        fills=tuple(
            StreamFills(
                text=fill(layout.pads, stream) if stream else None,
                lead_in=fill(layout.lead_in, stream),
                end=fill(layout.end, stream) if layout.fills.end else None,
                tail=fill(layout.tail, stream),
            )
            for stream in range(layout.num_streams)
        ),
        end_rule=_end_rule(layout, layout.phases[phase_index]),
        vocabulary_size=layout.vocabulary_size,
    )


def _end_rule(layout: StreamLayout, phase: Phase) -> EndRule:
    rule = phase.end_rule
    tokens = tuple(transition.token for transition in phase.transitions)
    if not tokens:
        return FixedLength()
    if rule.any_stream:
        return AnyStream(layout.end_ids(phase))
    if rule.after_tail:
        return AfterTail(tokens, rule.first_step)
    return IdOnPrimary(
        tokens,
        first_step=rule.first_step,
        forbids_earlier=rule.forbids_earlier,
        extra_steps=rule.extra_steps,
        closing=rule.closing,
    )


@dataclass(frozen=True)
class NextColumn:
    """What the next column must hold.

    Attributes:
        ended: whether there is none: the audio is complete. The rest says nothing then.
        forced: [num_streams] int32 ids, NO_TOKEN where the sampler decides.
        may_end: [num_streams] whether the rule's end ids are among what the sampler may choose. The
            ids of sampled lead-ins and tails always are, but for an end on stream 0 that comes too
            early.
    """

    ended: bool
    forced: Columns
    may_end: NDArray[np.bool_]


def next_column(
    pattern: StreamPattern,
    columns: Columns,
    *,
    limit: int | None = None,
    prompt: Columns | None = None,
) -> NextColumn:
    """What comes after some columns of audio.

    Args:
        pattern: of the model.
        columns: [num_columns, num_streams] ids since the audio's start; with a prompt its columns
            too (those of its first frames, one per frame).
        limit: frames at which the audio ends if its rule has not ended it; the prompt's count.
        prompt: [num_prompt_frames, num_streams] ids of the frames that the audio goes on from. The
            last of the delayed streams stand in the first columns after the prompt's.
    """
    step, delays = len(columns), np.array(pattern.delays, np.int64)
    given = 0 if prompt is None else len(prompt)
    first = _first_looked_at(pattern, limit, given)
    ends, by_limit = _ends(pattern, columns, limit, first)
    forced = np.full(pattern.num_streams, NO_TOKEN, np.int32)
    for stream, fills in enumerate(pattern.fills):
        frame = step - pattern.delays[stream]
        if frame < 0:
            fill = fills.lead_in
            bound = True
        elif prompt is not None and frame < given:
            forced[stream] = prompt[frame, stream]
            continue
        else:
            bound = step >= ends.forced[stream]
            fill = fills.end if step == ends.forced[stream] and fills.end else fills.tail
        # At the limit the sampler is not asked: it might go on.
        if bound and fill is not None and (not fill.sampled or (frame >= 0 and by_limit[stream])):
            assert fill.token_id is not None
            forced[stream] = fill.token_id
    closing = pattern.end_rule.closing
    to_close = step - (ends.num_columns - len(closing))
    if 0 <= to_close < len(closing):
        forced[0] = closing[to_close]
    rule, sampled = pattern.end_rule, _samples_end(pattern)
    if isinstance(rule, IdOnPrimary) and step < ends.steps[0]:
        # No candidate too early, though it fills the tail as well.
        sampled[0] &= not rule.forbids_at(step, first)
    may_end = rule.may_end(step, delays, first, ends) | sampled
    return NextColumn(step >= ends.num_columns, forced, may_end & (forced == NO_TOKEN))


def num_whole_frames(
    pattern: StreamPattern,
    columns: Columns,
    *,
    limit: int | None = None,
    prompt: Columns | None = None,
) -> int:
    """Frames of audio that has ended: those that every stream holds; arguments as `next_column`.

    Raises:
        ValueError: the audio has not ended.
    """
    given = 0 if prompt is None else len(prompt)
    ends, _ = _ends(pattern, columns, limit, _first_looked_at(pattern, limit, given))
    if len(columns) < ends.num_columns:
        raise ValueError(f"columns must be those of audio that has ended, not {len(columns)} of it")
    return max(int((ends.steps - np.array(pattern.delays, np.int64)).min()), 0)


def _first_looked_at(pattern: StreamPattern, limit: int | None, given: int) -> int:
    """The step at which the rule starts to look; at the limit it does in any case."""
    if limit is None:
        return given + pattern.end_rule.first_step
    if limit <= given:
        raise ValueError(f"limit must be greater than the prompt's {given} frames, not {limit}")
    return min(given + pattern.end_rule.first_step, limit)


def _ends(
    pattern: StreamPattern, columns: Columns, limit: int | None, first: int
) -> tuple[Ends, NDArray[np.bool_]]:
    """What the rule and the limit say, and per stream whether it is the limit that binds it."""
    if columns.ndim != 2 or columns.shape[1] != pattern.num_streams:
        raise ValueError(
            f"columns must have shape [n, {pattern.num_streams}], not {list(columns.shape)}"
        )
    delays = np.array(pattern.delays, np.int64)
    ends = pattern.end_rule.ends(columns, delays, first)
    if limit is None:
        return ends, np.zeros(pattern.num_streams, bool)
    at = limit + delays
    merged = Ends(
        np.minimum(ends.steps, at),
        np.minimum(ends.forced, at),
        min(ends.num_columns, pattern.num_columns(limit)),
    )
    return merged, at <= ends.forced


def _samples_end(pattern: StreamPattern) -> NDArray[np.bool_]:
    """Per stream whether an end id is a sampled fill of it as well."""
    end_ids = pattern.end_rule.end_ids
    return np.array(
        [
            any(fill and fill.sampled and fill.token_id in end_ids for fill in (f.lead_in, f.tail))
            for f in pattern.fills
        ]
    )


def _first_step(flags: NDArray[np.bool_], first: int) -> int:
    """Index of the first that is set from `first` on, or NEVER."""
    found = np.flatnonzero(flags[first:])
    return first + int(found[0]) if len(found) else NEVER


def _validate(pattern: StreamPattern) -> None:
    streams, rule = len(pattern.delays), pattern.end_rule
    if not 1 <= streams <= MAX_STREAMS:
        raise LayoutError(
            f"delays must have 1 to {MAX_STREAMS} entries, one per stream, not {streams}"
        )
    if len(pattern.fills) != streams:
        raise LayoutError(
            f"fills must have {streams} entries, one per stream, not {len(pattern.fills)}"
        )
    if pattern.vocabulary_size < 1:
        raise LayoutError(f"vocabulary_size must be at least 1, not {pattern.vocabulary_size}")
    ids = {f"end_rule.end_ids[{i}]": token for i, token in enumerate(rule.end_ids)}
    ids |= {f"end_rule.closing[{i}]": token for i, token in enumerate(rule.closing)}
    after_last = pattern.num_columns(0)
    for k, (delay, fills) in enumerate(zip(pattern.delays, pattern.fills, strict=True)):
        if delay < 0:
            raise LayoutError(f"delays[{k}] must be at least 0, not {delay}")
        if delay > 0 and fills.lead_in is None:
            raise LayoutError(f"fills[{k}].lead_in must be given: stream {k} starts late")
        # Cells that the stream has after its last frame when the limit ends the audio.
        cells = after_last - delay
        if (cells > 1 and not fills.tail) or (cells == 1 and not (fills.end or fills.tail)):
            raise LayoutError(f"fills[{k}].tail must be given: stream {k} ends before the audio")
        for place, fill in fills.named().items():
            if fill.token_id is not None:
                ids[f"fills[{k}].{place}.token_id"] = fill.token_id
    for name, token in ids.items():
        if not 0 <= token < pattern.vocabulary_size:
            raise LayoutError(f"{name} must be in [0, {pattern.vocabulary_size}), not {token}")
    _validate_rule(pattern)


def _validate_rule(pattern: StreamPattern) -> None:
    rule = pattern.end_rule
    if not isinstance(rule, FixedLength | AllZero) and not rule.end_ids:
        raise LayoutError("end_rule.end_ids must have at least one entry")
    if rule.first_step < 0:
        raise LayoutError(f"end_rule.first_step must be at least 0, not {rule.first_step}")
    if rule.extra_steps not in (0, 1):
        raise LayoutError(f"end_rule.extra_steps must be 0 or 1, not {rule.extra_steps}")
    if isinstance(rule, IdOnPrimary | AfterTail) and pattern.delays[0] != 0:
        raise LayoutError(f"delays[0] must be 0, since stream 0 ends, not {pattern.delays[0]}")
    if isinstance(rule, AllZero):
        if any(pattern.delays):
            raise LayoutError(
                f"delays must be 0, since all streams end in one step, not {list(pattern.delays)}"
            )
        for i, stream in enumerate(rule.streams):
            if not 0 <= stream < pattern.num_streams:
                raise LayoutError(
                    f"end_rule.streams[{i}] must be in [0, {pattern.num_streams}), not {stream}"
                )
    increasing = all(a < b for a, b in zip(pattern.delays, pattern.delays[1:], strict=False))
    if isinstance(rule, StreamsInTurn) and not increasing:
        raise LayoutError(
            f"delays must increase from stream to stream, since they end in turn, "
            f"not {list(pattern.delays)}"
        )
    if isinstance(rule, AnyStream | StreamsInTurn):
        ends = rule.end_ids if isinstance(rule, AnyStream) else rule.end_ids * pattern.num_streams
        if len(ends) != pattern.num_streams:
            raise LayoutError(
                f"end_rule.end_ids must have {pattern.num_streams} entries, one per stream, "
                f"not {len(ends)}"
            )
        # The rule looks for the ids that the fills write.
        for k, (fills, end_id) in enumerate(zip(pattern.fills, ends, strict=True)):
            for fill in (fills.end, fills.tail):
                if fill is not None and fill.token_id != end_id:
                    raise LayoutError(
                        f"fills[{k}] must end with the id of end_rule, {end_id}, "
                        f"not {fill.token_id}"
                    )
                if fill is not None and fill.sampled and isinstance(rule, AnyStream):
                    raise LayoutError(
                        f"fills[{k}] must be forced at the end, since the first sign binds streams"
                    )
