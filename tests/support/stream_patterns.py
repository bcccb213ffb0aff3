# SPDX-License-Identifier: Apache-2.0
"""Published families as stream patterns, and a slow restatement of how one plays out.

`play` is written from the docstrings of the rules, step by step with plain ifs; it keeps state, and
looks at no column twice.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from vllm.unison.model.end_rules import (
    AfterTail,
    AllZero,
    AnyStream,
    EndRule,
    FixedLength,
    IdOnPrimary,
    StreamPattern,
    StreamsInTurn,
)
from vllm.unison.model.fills import NOTHING, Fill, StreamFills


def _same(streams: int, fills: StreamFills) -> tuple[StreamFills, ...]:
    return (fills,) * streams


def musicgen(streams: int = 4, channels: int = 1) -> StreamPattern:
    """2048 in lead-in and tail, by position."""
    fill = Fill(2048)
    delays = tuple(k // channels for k in range(streams))
    return StreamPattern(
        delays, _same(streams, StreamFills(lead_in=fill, tail=fill)), FixedLength(), 2049
    )


def higgs_3() -> StreamPattern:
    """Ends of the first 8 rows are emitted and ignored; the tail is sampled."""
    fills = StreamFills(text=NOTHING, lead_in=Fill(1024), tail=Fill(1025, sampled=True))
    rule = IdOnPrimary((1025,), first_step=8, forbids_earlier=False)
    return StreamPattern(tuple(range(8)), _same(8, fills), rule, 1026)


def higgs_2(streams: int = 8) -> StreamPattern:
    """One row of 1024 before the delays."""
    end = Fill(1025)
    fills = StreamFills(text=NOTHING, lead_in=Fill(1024), end=end, tail=end)
    delays = tuple(range(1, streams + 1))
    return StreamPattern(delays, _same(streams, fills), AnyStream((1025,) * streams), 1026)


def dia(delays: tuple[int, ...] = (0, *range(8, 16))) -> StreamPattern:
    """An end that is the argmax; 1024 once and then 1025."""
    fills = StreamFills(lead_in=Fill(1026), end=Fill(1024), tail=Fill(1025))
    rule = IdOnPrimary((1024,), only_if_argmax=True, extra_steps=1)
    return StreamPattern(delays, _same(len(delays), fills), rule, 1028)


def parler(streams: int = 9) -> StreamPattern:
    """One stream after another."""
    fills = StreamFills(lead_in=Fill(1025), end=Fill(1024), tail=Fill(1024))
    return StreamPattern(tuple(range(streams)), _same(streams, fills), StreamsInTurn(1024), 1089)


def zonos(streams: int = 9) -> StreamPattern:
    """1024 on a diagonal, 1025 behind it."""
    fills = StreamFills(lead_in=Fill(1025), end=Fill(1024), tail=Fill(1025))
    rule = IdOnPrimary((1024,), extra_steps=1)
    return StreamPattern(tuple(range(streams)), _same(streams, fills), rule, 1026)


MOSS_DELAY_SLOT, MOSS_AUDIO_END = 151662, 151653


def moss(codebooks: int = 32) -> StreamPattern:
    """A control stream: as many delay slots as codebooks, then the end of audio."""
    pad, slot = Fill(1024), Fill(MOSS_DELAY_SLOT)
    audio = StreamFills(text=pad, lead_in=pad, tail=pad)
    rule = IdOnPrimary((MOSS_DELAY_SLOT,), extra_steps=1, closing=(MOSS_AUDIO_END,))
    fills = (StreamFills(tail=slot), *_same(codebooks, audio))
    return StreamPattern((0, *range(codebooks)), fills, rule, 152000)


def opuslm() -> StreamPattern:
    """As its reference decodes: nothing is forced once stream 0 has ended."""
    pad = Fill(0, embeds=False)
    later = StreamFills(text=pad, lead_in=pad, tail=Fill(0, embeds=False, sampled=True))
    first = StreamFills(end=Fill(5, sampled=True), tail=Fill(0, sampled=True))
    rule = IdOnPrimary((5,), first_step=3, extra_steps=1)
    return StreamPattern(tuple(range(9)), (first, *_same(8, later)), rule, 113870)


def bagpiper() -> StreamPattern:
    """Own pads are sampled in lead-in and tail; the end comes after them."""
    pads = [Fill(152192 + 1025 * k, sampled=True) for k in range(8)]
    text = Fill(0, embeds=False)
    fills = tuple(StreamFills(text if k else None, pad, None, pad) for k, pad in enumerate(pads))
    return StreamPattern(tuple(range(8)), fills, AfterTail((2, 3), first_step=50), 160392)


def csm() -> StreamPattern:
    """transformers leaves the last codebook out of the test."""
    return StreamPattern((0,) * 32, _same(32, StreamFills()), AllZero(tuple(range(31))), 2051)


@dataclass
class Played:
    """What `play` has seen: per step the column, which cells were forced, and who might end."""

    columns: list[list[int]] = field(default_factory=list)
    forced: list[list[bool]] = field(default_factory=list)
    may_end: list[list[bool]] = field(default_factory=list)
    num_frames: int | None = None
    """None: it has not ended within the steps played."""


def play(
    pattern: StreamPattern,
    draw: Callable[[int, int], int],
    limit: int | None = None,
    prompt: list[list[int]] | None = None,
    max_steps: int = 60,
) -> Played:
    """Emit columns until the audio ends; `draw(step, stream)` is the sampler."""
    rule, delays, streams = pattern.end_rule, pattern.delays, len(pattern.delays)
    given = len(prompt or ())
    first = given + rule.first_step
    if limit is not None:
        first = min(first, limit)
    played = Played()
    bound: list[int | None] = [None] * streams
    by_limit = [False] * streams
    last: list[int | None] = [None] * streams
    finish = None
    if limit is not None:
        finish = limit + max(delays) + rule.extra_steps + len(rule.closing)
    for step in range(max_steps):
        if finish is not None and step >= finish:
            break
        row, forced, may_end = [], [], []
        for k in range(streams):
            if limit is not None and step == limit + delays[k]:
                if bound[k] is None or bound[k] >= step:  # type: ignore[operator]
                    bound[k], by_limit[k] = step, True
                last[k] = step if last[k] is None else last[k]
            token = _forced(pattern, step, k, prompt, bound[k], by_limit[k])
            if rule.closing and k == 0 and finish is not None:
                left = finish - step
                if left <= len(rule.closing):
                    token = rule.closing[-left]
            may_end.append(token is None and _may_end(pattern, step, first, k, last))
            forced.append(token is not None)
            row.append(draw(step, k) if token is None else token)
        played.columns.append(row)
        played.forced.append(forced)
        played.may_end.append(may_end)
        finish = _look(rule, row, step, first, delays, bound, last, finish)
    else:
        if finish is None or finish > max_steps:
            return played
    if limit is not None:
        last = [limit + delays[k] if at is None else at for k, at in enumerate(last)]
    frames = [at - delay for at, delay in zip(last, delays, strict=True) if at is not None]
    played.num_frames = max(min(frames), 0)
    return played


def _forced(
    pattern: StreamPattern,
    step: int,
    k: int,
    prompt: list[list[int]] | None,
    bound: int | None,
    by_limit: bool,
) -> int | None:
    fills, frame = pattern.fills[k], step - pattern.delays[k]
    if frame < 0:
        assert fills.lead_in is not None
        return None if fills.lead_in.sampled else fills.lead_in.token_id
    if frame < len(prompt or ()):
        assert prompt is not None
        return prompt[frame][k]
    if bound is None or step < bound:
        return None
    fill = fills.tail
    if step == bound and fills.end is not None:
        fill = fills.end
    if fill is None or (fill.sampled and not by_limit):
        return None
    return fill.token_id


def _may_end(pattern: StreamPattern, step: int, first: int, k: int, last: list[int | None]) -> bool:
    rule, fills = pattern.end_rule, pattern.fills[k]
    is_early = k == 0 and last[0] is None and step < first
    if isinstance(rule, IdOnPrimary) and is_early and rule.forbids_earlier:
        return False
    for fill in (fills.lead_in, fills.tail):
        if fill is not None and fill.sampled and fill.token_id in rule.end_ids:
            return True
    if isinstance(rule, FixedLength):
        return False
    if isinstance(rule, AllZero):
        return True
    if isinstance(rule, IdOnPrimary):
        return k == 0 and last[0] is None and (step >= first or not rule.forbids_earlier)
    if isinstance(rule, AfterTail):
        return k == 0 and step >= first
    if step < pattern.delays[k]:
        return False
    if isinstance(rule, AnyStream):
        return step >= first
    if last[k] is not None:
        return False
    before = last[k - 1] if k else first - 1
    return before is not None and before < step


def _look(
    rule: EndRule,
    row: list[int],
    step: int,
    first: int,
    delays: tuple[int, ...],
    bound: list[int | None],
    last: list[int | None],
    finish: int | None,
) -> int | None:
    """What a column says, once it is emitted; the step at which the audio is complete, if known."""

    def sooner(at: int) -> int:
        return at if finish is None else min(at, finish)

    streams = range(len(delays))
    if step < first or isinstance(rule, FixedLength):
        return finish
    if isinstance(rule, IdOnPrimary):
        if row[0] not in rule.end_ids or (bound[0] is not None and bound[0] < step):
            return finish
        for k in streams:
            bound[k] = last[k] = step + delays[k]
        return sooner(max(step + 1, step + max(delays) + rule.extra_steps) + len(rule.closing))
    if isinstance(rule, AfterTail):
        if row[0] not in rule.end_ids:
            return finish
        for k in streams:
            ends = step - max(delays) + delays[k]
            known = last[k]
            last[k] = ends if known is None else min(ends, known)
        return sooner(step + 1)
    if isinstance(rule, AllZero):
        if any(row[k] != 0 for k in rule.streams or streams):
            return finish
        for k in streams:
            last[k] = step if last[k] is None else last[k]
        return sooner(step + 1)
    if isinstance(rule, AnyStream):
        here = [row[k] == rule.end_ids[k] and step >= delays[k] for k in streams]
        if any(here):
            for k in streams:
                due = step + 1 + delays[k] - min(delays)
                later = bound[k] is None or bound[k] > due  # type: ignore[operator]
                bound[k] = due if later else bound[k]
        if not all(here):
            return finish
        for k in streams:
            ends = step - max(delays) + delays[k]
            known = last[k]
            last[k] = ends if known is None else min(ends, known)
        return sooner(step + 1)
    for k in streams:
        if k and not (isinstance(turn := bound[k - 1], int) and turn < step):
            break
        ended = row[k] == rule.end_id and step >= delays[k]
        if ended and (bound[k] is None or bound[k] >= step):  # type: ignore[operator]
            bound[k] = step
            last[k] = step if last[k] is None else last[k]
            return sooner(step + 1) if k == len(delays) - 1 else finish
    return finish
