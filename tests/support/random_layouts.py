# SPDX-License-Identifier: Apache-2.0
"""Valid stream layouts of every shape, small enough to look at."""

import random
from typing import Any

from hypothesis import strategies as st

from vllm.unison.model.layout import (
    END,
    FAIL_REQUEST,
    AudioEnd,
    AudioFills,
    DelayScope,
    Phase,
    PhaseKind,
    PlaceFill,
    StreamLayout,
    Transition,
)

NUM_SPECIALS = 20
"""Ids below are neither text nor codes."""


@st.composite
def layouts(
    draw: st.DrawFn,
    max_streams: int = 5,
    max_delay: int = 4,
    max_phases: int = 3,
    kinds: tuple[PhaseKind, ...] = (PhaseKind.TEXT, PhaseKind.AUDIO),
    rules: bool = True,
    any_stream: bool = False,
) -> StreamLayout:
    """A valid layout: specials, then text ids, then codec ids.

    Args:
        max_streams, max_delay, max_phases: the most of each.
        kinds: of phases.
        rules: whether half of the layouts have fills and end rules of their own.
        any_stream: whether some of those may have phases that any stream ends.
    """
    streams = draw(st.integers(1, max_streams))
    later = st.lists(st.integers(0, max_delay), min_size=streams - 1, max_size=streams - 1)
    text_size = draw(st.integers(1, 6))
    first_code = NUM_SPECIALS + text_size
    slices, begin = [], first_code
    for _ in range(streams):
        size = draw(st.integers(1, 6))
        slices.append((begin, begin + size))
        begin += size
    if draw(st.booleans()):
        # Streams may share ids, as codes of one codec sometimes do.
        slices = [slices[0]] * streams
    specials = st.integers(0, NUM_SPECIALS - 1)
    num_phases = draw(st.integers(1, max_phases))
    names = [f"phase {index}" for index in range(num_phases)]
    begins = draw(st.permutations(range(NUM_SPECIALS)))
    has_rules = rules and draw(st.booleans())
    delays = (0, *draw(later))
    after_tail = has_rules and draw(st.booleans())
    fills = draw(_audio_fills(streams, after_tail)) if has_rules else AudioFills()
    any_ends = has_rules and any_stream and draw(st.booleans())
    if any_ends:
        fills = draw(_fills_that_end(streams))
    pads = st.integers(0, FIRST_FILL - 1) if any_ends else specials
    more: tuple[tuple[int, ...], ...] = ()
    if has_rules and draw(st.booleans()):
        one_more = st.lists(specials, max_size=1).map(tuple)
        more = tuple(draw(one_more) for _ in range(streams))
    phases = []
    for index, name in enumerate(names):
        ids = st.integers(0, FIRST_FILL - 1) if after_tail else specials
        tokens = draw(st.lists(ids, unique=True, max_size=4))
        transitions = tuple(
            Transition(
                token,
                draw(st.sampled_from([END, *names])),
                tuple(draw(st.lists(st.integers(0, begin - 1), max_size=3))),
            )
            for token in tokens
        )
        count = draw(st.integers(0, 2))
        kind = draw(st.sampled_from(kinds))
        end_rule = AudioEnd()
        if any_ends:
            assert fills.tail is not None
            if kind is PhaseKind.AUDIO:
                end_rule = AudioEnd(any_stream=True, extra_steps=1)
                to = draw(st.sampled_from([END, *names]))
                transitions = (Transition(fills.tail.token_ids[0], to),)
        elif has_rules and kind is PhaseKind.AUDIO and tokens:
            end_rule = draw(_ends(after_tail))
        elif has_rules and tokens:
            end_rule = AudioEnd(first_step=draw(st.integers(0, 4)))
        phases.append(
            Phase(name, kind, tuple(begins[2 * index : 2 * index + count]), transitions, end_rule)
        )
    has_text = any(phase.kind is PhaseKind.TEXT for phase in phases)
    order = draw(st.permutations(range(streams)))
    return StreamLayout(
        delays=delays,
        vocabulary_size=begin,
        slices=tuple(slices),
        pad_token_ids=tuple(draw(pads) for _ in range(streams)),
        phases=tuple(phases),
        text_slice=(NUM_SPECIALS, first_code) if has_text or draw(st.booleans()) else None,
        codebook_streams=tuple(order[: draw(st.integers(1, streams))]),
        delay_scope=draw(st.sampled_from(DelayScope)),
        fills=fills,
        more_candidates=more,
        # Fills that are sampled may stand where a frame is expected.
        outside_codebook=0 if has_rules else FAIL_REQUEST,
    )


FIRST_FILL = NUM_SPECIALS - 4
"""Few ids, so that places share some; transitions may have the same."""


@st.composite
def _audio_fills(draw: st.DrawFn, streams: int, after_tail: bool) -> AudioFills:
    def place(must_be: bool = False, must_be_sampled: bool = False) -> PlaceFill | None:
        if not must_be and draw(st.integers(0, 3)) == 0:
            return None
        fills = st.integers(FIRST_FILL, NUM_SPECIALS - 1)
        ids = draw(st.lists(fills, min_size=streams, max_size=streams))
        sampled = draw(st.lists(st.booleans(), min_size=streams, max_size=streams))
        if must_be_sampled or draw(st.booleans()):
            sampled = [True] * streams
        return PlaceFill(tuple(ids), tuple(sampled))

    # What ends audio after its tail must not be the tail itself, nor what the default would be.
    return AudioFills(place(after_tail), place(), place(after_tail, after_tail))


@st.composite
def _fills_that_end(draw: st.DrawFn, streams: int) -> AudioFills:
    """Of layouts in which any stream may end audio: with its tail, which is forced."""
    ids = st.lists(st.integers(FIRST_FILL, NUM_SPECIALS - 1), min_size=2, max_size=2, unique=True)
    pairs = [draw(ids) for _ in range(streams)]
    forced = (False,) * streams
    lead_in = PlaceFill(tuple(pair[0] for pair in pairs), forced)
    return AudioFills(lead_in, None, PlaceFill(tuple(pair[1] for pair in pairs), forced))


@st.composite
def _ends(draw: st.DrawFn, after_tail: bool) -> AudioEnd:
    first_step = draw(st.integers(0, 6))
    if after_tail:
        return AudioEnd(after_tail=True, first_step=first_step)
    return AudioEnd(
        first_step=first_step,
        forbids_earlier=draw(st.booleans()),
        extra_steps=draw(st.integers(0, 1)),
        closing=tuple(draw(st.lists(st.integers(0, NUM_SPECIALS - 1), max_size=2))),
    )


def allowed_ids(layout: StreamLayout, phase: Phase, stream: int, may_end: bool = True) -> list[int]:
    """Candidates of a stream in a phase: its codes (or the text), then what moves the phase."""
    ids: list[int] = []
    if phase.kind is PhaseKind.AUDIO:
        ids += range(*layout.slices[stream])
        ids += sampled_fills(layout, stream)
        if phase.end_rule.any_stream and stream:
            assert layout.fills.tail is not None
            if may_end or phase.transitions[0].to != END:
                ids.append(layout.fills.tail.token_ids[stream])
    elif stream == 0:
        assert layout.text_slice is not None
        ids += range(*layout.text_slice)
    if stream == 0:
        ids += [t.token for t in phase.transitions if may_end or t.to != END]
        refused = {t.token for t in phase.transitions if not (may_end or t.to != END)}
        ids = [token for token in dict.fromkeys(ids) if token not in refused]
    return ids


def sampled_fills(layout: StreamLayout, stream: int) -> list[int]:
    """Ids besides its codes and its end that a stream may emit itself."""
    fills = layout.fills
    places = [fills.lead_in, fills.end, fills.tail]
    given = [place for place in places if place is not None and place.sampled[stream]]
    more = layout.more_candidates[stream] if layout.more_candidates else ()
    return sorted({place.token_ids[stream] for place in given}.union(more))


def likely_token(layout: StreamLayout, phase: Phase, source: random.Random) -> int:
    """What stream 0 may emit in a phase, in one of four cases a token that leaves it."""
    ids = allowed_ids(layout, phase, 0)
    moves = [t.token for t in phase.transitions]
    return source.choice(moves if moves and source.random() < 0.25 else ids)


def example(**changes: Any) -> dict[str, Any]:
    """A valid `stream_layout` object with text and audio, to be broken by `changes`."""
    layout: dict[str, Any] = {
        "delays": [0, 1, 2],
        "vocabulary_size": 40,
        "slices": [[20, 24], [24, 28], [28, 32]],
        "pad_token_ids": 0,
        "text_slice": [10, 20],
        "codebook_streams": [0, 1, 2],
        "delay_scope": "segment",
        "phases": [
            {
                "name": "text",
                "kind": "text",
                "begin_tokens": [1],
                "transitions": [
                    {"token": 2, "to": "end"},
                    {"token": 3, "to": "audio", "forced": [4, 5]},
                ],
            },
            {
                "name": "audio",
                "kind": "audio",
                "begin_tokens": [5],
                "transitions": [{"token": 2, "to": "end"}, {"token": 6, "to": "text"}],
            },
        ],
    }
    return layout | changes
