# SPDX-License-Identifier: Apache-2.0
"""Valid stream layouts of every shape, small enough to look at."""

import random
from typing import Any

from hypothesis import strategies as st

from vllm.unison.model.layout import (
    END,
    DelayScope,
    Phase,
    PhaseKind,
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
) -> StreamLayout:
    """A valid layout: specials, then text ids, then codec ids."""
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
    phases = []
    for index, name in enumerate(names):
        tokens = draw(st.lists(specials, unique=True, max_size=4))
        transitions = tuple(
            Transition(
                token,
                draw(st.sampled_from([END, *names])),
                tuple(draw(st.lists(st.integers(0, begin - 1), max_size=3))),
            )
            for token in tokens
        )
        count = draw(st.integers(0, 2))
        phases.append(
            Phase(
                name,
                draw(st.sampled_from(kinds)),
                tuple(begins[2 * index : 2 * index + count]),
                transitions,
            )
        )
    has_text = any(phase.kind is PhaseKind.TEXT for phase in phases)
    order = draw(st.permutations(range(streams)))
    return StreamLayout(
        delays=(0, *draw(later)),
        vocabulary_size=begin,
        slices=tuple(slices),
        pad_token_ids=tuple(draw(specials) for _ in range(streams)),
        phases=tuple(phases),
        text_slice=(NUM_SPECIALS, first_code) if has_text or draw(st.booleans()) else None,
        codebook_streams=tuple(order[: draw(st.integers(1, streams))]),
        delay_scope=draw(st.sampled_from(DelayScope)),
    )


def allowed_ids(layout: StreamLayout, phase: Phase, stream: int, may_end: bool = True) -> list[int]:
    """Candidates of a stream in a phase: its codes (or the text), then what moves the phase."""
    ids: list[int] = []
    if phase.kind is PhaseKind.AUDIO:
        ids += range(*layout.slices[stream])
    elif stream == 0:
        assert layout.text_slice is not None
        ids += range(*layout.text_slice)
    if stream == 0:
        ids += [t.token for t in phase.transitions if may_end or t.to != END]
    return ids


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
