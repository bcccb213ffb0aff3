# SPDX-License-Identifier: Apache-2.0
"""When requests are guided, against a replay of what they emit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.random_layouts import layouts
from vllm.unison.messages.guidance_inputs import GuidanceInputs
from vllm.unison.model.layout import Phase, PhaseKind, StreamLayout, Transition
from vllm.unison.model.phases import NO_TOKEN, PhaseTable, StateKind, replay
from vllm.unison.scheduler.guidance_window import NOT_GUIDED, GuidanceWindow, Guided

AUDIO_KINDS = (StateKind.AUDIO, StateKind.FLUSH)


def group_at(
    table: PhaseTable | None,
    prompt: list[int],
    output: list[int],
    limit: int,
    in_flight: int = 0,
    **inputs: Any,
) -> Any:
    """What the timing asks of a group."""
    streams = None
    if table is not None:
        now = replay(table, prompt, output, limit)
        streams = SimpleNamespace(state=now.state, segment_start=now.segment_start)
    return SimpleNamespace(
        main=SimpleNamespace(
            num_tokens=len(prompt) + len(output),
            num_prompt_tokens=len(prompt),
            num_output_placeholders=in_flight,
            streams=streams,
        ),
        inputs=GuidanceInputs(weight=3.0, lanes=[], **inputs),
        max_delay=0 if table is None else table.max_delay,
    )


def possible_tokens(table: PhaseTable, state: int) -> list[int]:
    """One token of each kind that stream 0 may emit in a state."""
    if int(table.kind[state]) == StateKind.DONE:
        return []
    if int(table.forced_token[state]) != NO_TOKEN:
        return [int(table.forced_token[state])]
    if int(table.kind[state]) == StateKind.FLUSH:
        return [table.layout.slices[0][0]]
    phase = table.layout.phases[state]
    ids = table.layout.slices[0] if phase.kind is PhaseKind.AUDIO else table.layout.text_slice
    assert ids is not None
    return [ids[0], *(transition.token for transition in phase.transitions)]


def continuations(
    table: PhaseTable, prompt: list[int], output: list[int], limit: int, count: int
) -> Iterator[list[int]]:
    """Outputs that are `count` tokens longer, one for each way that the phases may go."""
    if count == 0:
        yield output
        return
    state = replay(table, prompt, output, limit).state
    for token in possible_tokens(table, state):
        yield from continuations(table, prompt, [*output, token], limit, count - 1)


def truth(
    table: PhaseTable, prompt: list[int], output: list[int], limit: int, inputs: GuidanceInputs
) -> Guided | None:
    """Guidance of the token after `output`; None if there is no such token."""
    now = replay(table, prompt, output, limit)
    kind = int(table.kind[now.state])
    if kind == StateKind.DONE:
        return None
    if inputs.audio_only and kind not in AUDIO_KINDS:
        return NOT_GUIDED
    start = now.segment_start if inputs.audio_only else len(prompt)
    frame = len(prompt) + len(output) - start
    last = float("inf") if inputs.last is None else inputs.last + table.max_delay
    return Guided(inputs.first <= frame <= last, start, frame)


@given(st.data())
@settings(max_examples=150)
def test_every_answer_is_right_whatever_is_in_flight(data: st.DataObject) -> None:
    layout = data.draw(layouts())
    table = PhaseTable(layout)
    source = random.Random(data.draw(st.integers(0, 2**32)))
    begins = [token for phase in layout.phases for token in phase.begin_tokens]
    prompt = [source.choice([layout.pad_token_ids[0], *begins]) for _ in range(3)]
    limit = len(prompt) + source.randint(1, 14)
    inputs: dict[str, Any] = {
        "audio_only": source.random() < 0.8,
        "first": source.choice([0, 0, 2]),
        "last": source.choice([None, 2, 5]),
    }
    timing = GuidanceWindow(table)
    output: list[int] = []
    while int(table.kind[replay(table, prompt, output, limit).state]) != StateKind.DONE:
        for in_flight in range(3):
            group = group_at(table, prompt, output, limit, in_flight, **inputs)
            answer = timing.of_next_token(group)
            truths = {
                truth(table, prompt, longer, limit, group.inputs)
                for longer in continuations(table, prompt, output, limit, in_flight)
            } - {None}
            if answer is None:
                assert in_flight > 0, "everything is known"
            elif truths:
                assert truths == {answer}
        state = replay(table, prompt, output, limit).state
        output.append(source.choice(possible_tokens(table, state)))
        if len(output) > 40:
            break


def text_then_audio(forced: tuple[int, ...], delays: tuple[int, ...] = (0, 1, 2)) -> PhaseTable:
    """Text ids 10 to 19, codes from 20 on; 2 ends the text, 1 ends the audio."""
    return PhaseTable(
        StreamLayout(
            delays=delays,
            vocabulary_size=40,
            slices=((20, 24),) * len(delays),
            pad_token_ids=(0,) * len(delays),
            phases=(
                Phase("text", PhaseKind.TEXT, (3,), (Transition(2, "audio", forced),)),
                Phase("audio", PhaseKind.AUDIO, (4,), (Transition(1, "end"),)),
            ),
            text_slice=(10, 20),
        )
    )


def answers(table: PhaseTable, output: list[int], in_flight: int, **inputs: Any) -> Guided | None:
    group = group_at(table, [3, 10], output, 99, in_flight, audio_only=True, **inputs)
    return GuidanceWindow(table).of_next_token(group)


def test_text_is_not_guided_and_what_may_follow_it_is_not_known() -> None:
    table = text_then_audio(forced=())
    assert answers(table, [11, 12], 0) == NOT_GUIDED
    assert answers(table, [11, 12], 1) is None
    assert answers(table, [11, 2], 0) == Guided(True, 4, 0)
    assert answers(table, [11, 2, 20], 1) == Guided(True, 4, 2)


def test_forced_tokens_announce_the_audio() -> None:
    """With one step in flight no step is lost: forced tokens are known before they come."""
    table = text_then_audio(forced=(5, 6))
    assert answers(table, [11], 1) == NOT_GUIDED
    assert answers(table, [11, 2], 0) == NOT_GUIDED
    assert answers(table, [11, 2], 1) == NOT_GUIDED
    assert answers(table, [11, 2], 2) == Guided(True, 6, 0)
    assert answers(table, [11, 2, 5], 1) == Guided(True, 6, 0)
    assert answers(table, [11, 2, 5, 6], 0) == Guided(True, 6, 0)
    assert answers(table, [11, 2, 5, 6], 1) == Guided(True, 6, 1)


def test_audio_is_guided_to_the_end_of_its_flush() -> None:
    table = text_then_audio(forced=())
    assert answers(table, [2, 20, 1], 0) == Guided(True, 3, 2)
    # Frame 0 of the last stream came with the token before.
    assert answers(table, [2, 20, 1, 0], 0) == NOT_GUIDED
    assert answers(table, [2, 20], 1) == Guided(True, 3, 2)


def test_an_interval_counts_frames_and_lasts_until_their_last_stream() -> None:
    table = text_then_audio(forced=())
    codes = [20] * 9
    guided = [
        answer.is_guided
        for count in range(8)
        if (answer := answers(table, [2, *codes[:count]], 0, first=2, last=4)) is not None
    ]
    # Frame 4 of a stream that is delayed by 2 comes with step 6.
    assert guided == [False, False, True, True, True, True, True, False]


def test_audio_that_follows_audio_begins_anew() -> None:
    """Without delays a flush is over at once, so one token in flight may begin another segment."""
    layout = StreamLayout(
        delays=(0, 0),
        vocabulary_size=40,
        slices=((20, 24), (20, 24)),
        pad_token_ids=(0, 0),
        phases=(Phase("audio", PhaseKind.AUDIO, (4,), (Transition(1, "audio"),)),),
    )
    table = PhaseTable(layout)
    assert answers(table, [20, 20], 0) == Guided(True, 2, 2)
    assert answers(table, [20, 20], 1) is None
    assert answers(table, [20, 1], 0) == Guided(True, 4, 0)


@pytest.mark.parametrize("in_flight", [0, 1, 3])
def test_a_single_stream_is_guided_from_its_prompt_on(in_flight: int) -> None:
    group = group_at(None, [1, 2, 3], [4], 99, in_flight, first=2, last=3)
    frame = 1 + in_flight
    assert GuidanceWindow(None).of_next_token(group) == Guided(2 <= frame <= 3, 3, frame)
