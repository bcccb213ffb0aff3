# SPDX-License-Identifier: Apache-2.0
"""The phase table against a plain reference, request by request and in batches."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.phase_reference import ReferenceRequest
from tests.support.random_layouts import example, layouts, likely_token
from vllm.unison.model.layout import (
    END,
    Phase,
    PhaseKind,
    StreamLayout,
    Transition,
)
from vllm.unison.model.phases import (
    NO_TOKEN,
    Finish,
    PhaseTable,
    Progress,
    Segment,
    StateKind,
    advance,
    replay,
    start_of_generation,
)


@dataclass(frozen=True)
class Case:
    """A layout and several requests: prompts, limits, and what chooses the tokens."""

    layout: StreamLayout
    prompts: list[list[int]]
    limits: list[int]
    num_tokens: int
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    layout = draw(layouts())
    ids = st.integers(0, layout.vocabulary_size - 1)
    rows = draw(st.integers(1, 4))
    prompts = [draw(st.lists(ids, max_size=6)) for _ in range(rows)]
    return Case(
        layout,
        prompts,
        [len(prompt) + draw(st.integers(1, 25)) for prompt in prompts],
        draw(st.integers(1, 30)),
        draw(st.integers(0, 2**32)),
    )


def next_token(request: ReferenceRequest, source: random.Random) -> int:
    if request.forced_token != NO_TOKEN:
        return request.forced_token
    return likely_token(request.layout, request.phase, source)


def assert_equal(
    table: PhaseTable, state: int, segment_start: int, flush_end: int, to: ReferenceRequest
) -> None:
    assert StateKind(int(table.kind[state])) is to.kind
    assert Finish(int(table.finish[state])) is to.finish
    # Where the fills of stream 0 differ, the step looks at those.
    told = int(table.forced_token[state])
    assert told == to.forced_token or (told == NO_TOKEN and to.kind is StateKind.FLUSH)
    if to.kind in (StateKind.TEXT, StateKind.AUDIO):
        assert table.layout.phases[state] is to.phase
    assert (segment_start, flush_end) == (to.segment_start, to.flush_end)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@settings(max_examples=150)
@given(case=cases())
def test_advance_equals_the_reference(library: str, case: Case) -> None:
    table = PhaseTable(case.layout)
    source = random.Random(case.seed)
    requests = [
        ReferenceRequest(case.layout, prompt, limit)
        for prompt, limit in zip(case.prompts, case.limits, strict=True)
    ]
    make = np.array if library == "numpy" else torch.tensor
    device_table = table.on_host if library == "numpy" else table.on(torch.device("cpu"))
    starts = [start_of_generation(case.layout, prompt) for prompt in case.prompts]
    progress = Progress(
        make([state for state, _ in starts]),
        make([start for _, start in starts]),
        make([0] * len(starts)),
    )
    for _ in range(case.num_tokens):
        was = [int(state) for state in progress.state]
        tokens = [next_token(request, source) for request in requests]
        positions = [request.position for request in requests]
        before = progress
        copies = Progress(
            make(before.state.tolist()),
            make(before.segment_start.tolist()),
            make(before.flush_end.tolist()),
        )
        progress = advance(
            device_table,
            before,
            make(positions),
            make(tokens)[:, None],
            make(case.limits),
            make([len(prompt) for prompt in case.prompts]),
        )
        for name in ("state", "segment_start", "flush_end"):
            assert getattr(before, name).tolist() == getattr(copies, name).tolist()
        for row, request in enumerate(requests):
            request.emit(tokens[row])
            state = int(progress.state[row])
            assert_equal(
                table,
                state,
                int(progress.segment_start[row]),
                int(progress.flush_end[row]),
                request,
            )
            soon = table.kinds_within_one_step[was[row]]
            assert {StateKind(int(table.kind[was[row]])), request.kind} <= soon


@settings(max_examples=150)
@given(case=cases())
def test_replay_of_any_prefix_equals_stepping(case: Case) -> None:
    table = PhaseTable(case.layout)
    source = random.Random(case.seed)
    for prompt, limit in zip(case.prompts, case.limits, strict=True):
        request = ReferenceRequest(case.layout, prompt, limit)
        output: list[int] = []
        for _ in range(case.num_tokens):
            found = replay(table, prompt, output, limit)
            assert_equal(table, found.state, found.segment_start, found.flush_end, request)
            assert list(found.segments) == request.segments
            assert found == replay(table, prompt, np.array(output, np.int32), limit)
            token = next_token(request, source)
            request.emit(token)
            output.append(token)


@given(case=cases())
def test_a_replay_may_stop_at_the_end(case: Case) -> None:
    """What a slot's history holds after a request's last token is not the request's."""
    table = PhaseTable(case.layout)
    source = random.Random(case.seed)
    prompt, limit = case.prompts[0], case.limits[0]
    request = ReferenceRequest(case.layout, prompt, limit)
    output: list[int] = []
    # Every request with a limit ends, at the latest when its last flush does.
    for _ in range(limit + case.layout.num_flush_steps + 1):
        if request.kind is StateKind.DONE:
            break
        token = next_token(request, source)
        request.emit(token)
        output.append(token)
    assert request.kind is StateKind.DONE
    assert len(prompt) + len(output) <= limit + case.layout.num_flush_steps
    rest = [source.randrange(case.layout.vocabulary_size) for _ in range(8)]
    whole = replay(table, prompt, output, limit)
    assert replay(table, prompt, output + rest, limit, until_done=True) == whole
    assert list(whole.segments) == request.segments


def audio_only(
    delays: tuple[int, ...], *transitions: Transition, text: tuple[Transition, ...] = ()
) -> StreamLayout:
    """Phases "audio" (begun by 1) and "text" (begun by 2); codes from 20, text from 10, pad 0."""
    streams = len(delays)
    return StreamLayout(
        delays=delays,
        vocabulary_size=20 + 5 * streams,
        slices=tuple((20 + 5 * k, 25 + 5 * k) for k in range(streams)),
        pad_token_ids=(0,) * streams,
        phases=(
            Phase("audio", PhaseKind.AUDIO, (1,), transitions),
            Phase("text", PhaseKind.TEXT, (2,), text),
        ),
        text_slice=(10, 20),
    )


def run(layout: StreamLayout, prompt: list[int], output: list[int], limit: int) -> list[str]:
    """Kinds after each token, the last with its finish."""
    table = PhaseTable(layout)
    kinds = []
    for count in range(1, len(output) + 1):
        state = replay(table, prompt, output[:count], limit).state
        name = StateKind(int(table.kind[state])).name
        finish = Finish(int(table.finish[state]))
        kinds.append(name if finish is Finish.NOT_FINISHED else finish.name)
    return kinds


@pytest.mark.parametrize(
    ("delays", "flush_steps"), [((0,), 0), ((0, 1), 0), ((0, 2, 1), 1), ((0, 8, 15), 14)]
)
def test_an_end_token_is_followed_by_the_late_streams(
    delays: tuple[int, ...], flush_steps: int
) -> None:
    # The last frame's last token comes max(delays) steps after its first, which stands right
    # before the end token.
    layout = audio_only(delays, Transition(3, END))
    output = [20, 21, 3] + [0] * flush_steps
    kinds = run(layout, [1], output, limit=100)
    assert kinds == ["AUDIO", "AUDIO", *["FLUSH"] * flush_steps, "STOP"]
    found = replay(PhaseTable(layout), [1], output, 100)
    assert found.segments == (Segment(start=1, num_frames=2, first_generated=0),)


@pytest.mark.parametrize("delays", [(0,), (0, 1), (0, 2, 1), (0, 8, 15)])
def test_the_limit_is_followed_by_one_step_more(delays: tuple[int, ...]) -> None:
    # Without an end token the last frame stands at the limit itself.
    layout = audio_only(delays, Transition(3, END))
    output = [20, 21, 22] + [0] * max(delays)
    kinds = run(layout, [1], output, limit=4)
    assert kinds == ["AUDIO", "AUDIO", *["FLUSH"] * max(delays), "LENGTH"]
    found = replay(PhaseTable(layout), [1], output, 4)
    assert found.segments == (Segment(start=1, num_frames=3, first_generated=0),)


def test_an_end_token_at_the_limit_is_a_stop() -> None:
    layout = audio_only((0, 2), Transition(3, END), text=(Transition(3, END),))
    assert run(layout, [1], [20, 3, 0], limit=3) == ["AUDIO", "FLUSH", "STOP"]
    assert run(layout, [2], [10, 3], limit=3) == ["TEXT", "STOP"]
    assert run(layout, [2], [10, 11], limit=3) == ["TEXT", "LENGTH"]


def test_forced_tokens_come_one_per_step() -> None:
    layout = audio_only((0, 1), Transition(3, END), text=(Transition(4, "audio", (7, 8)),))
    assert run(layout, [2], [10, 4, 7, 8, 20, 3], limit=50) == [
        "TEXT", "FORCED", "FORCED", "AUDIO", "AUDIO", "STOP",
    ]  # fmt: skip
    found = replay(PhaseTable(layout), [2], [10, 4, 7, 8, 20, 3], 50)
    assert found.segments == (Segment(start=5, num_frames=1, first_generated=0),)


@pytest.mark.parametrize(("max_tokens", "forced"), [(2, (7, 8)), (3, (7, 8)), (4, (7, 8)), (2, ())])
def test_a_limit_before_the_first_frame_makes_no_audio(
    max_tokens: int, forced: tuple[int, ...]
) -> None:
    layout = audio_only((0, 3), Transition(3, END), text=(Transition(4, "audio", forced),))
    output = [10, 4, *forced][:max_tokens]
    assert run(layout, [2], output, limit=1 + max_tokens)[-1] == "LENGTH"
    assert replay(PhaseTable(layout), [2], output + [0] * 5, 1 + max_tokens).segments == ()


def test_audio_then_text_then_audio() -> None:
    layout = audio_only(
        (0, 2), Transition(3, END), Transition(4, "text", (9,)), text=(Transition(5, "audio"),)
    )
    output = [20, 21, 4, 0, 9, 10, 5, 22, 3, 0]
    kinds = ["AUDIO", "AUDIO", "FLUSH", "FORCED", "TEXT", "TEXT", "AUDIO", "AUDIO", "FLUSH", "STOP"]
    assert run(layout, [1], output, limit=50) == kinds
    found = replay(PhaseTable(layout), [1], output, 50)
    assert found.segments == (Segment(1, 2, 0), Segment(8, 1, 0))


@pytest.mark.parametrize("delays", [(0,), (0, 1), (0, 3)])
def test_audio_that_leads_to_audio_starts_a_new_segment(delays: tuple[int, ...]) -> None:
    layout = audio_only(delays, Transition(3, END), Transition(4, "audio"))
    flush = [0] * max(max(delays) - 1, 0)
    output = [20, 21, 4, *flush, 22, 3, *flush]
    found = replay(PhaseTable(layout), [1], output, 50)
    assert found.segments == (Segment(1, 2, 0), Segment(4 + len(flush), 1, 0))


def test_frames_of_the_prompt_belong_to_the_segment() -> None:
    layout = audio_only((0, 1), Transition(3, END))
    found = replay(PhaseTable(layout), [9, 1, 20, 21, 22], [23, 3], 50)
    assert found.segments == (Segment(start=2, num_frames=4, first_generated=3),)


def test_a_flush_that_outlasts_the_limit_ends_by_length() -> None:
    layout = audio_only((0, 3), Transition(4, "text"))
    assert run(layout, [1], [20, 4, 0, 0], limit=3) == ["AUDIO", "FLUSH", "FLUSH", "LENGTH"]
    assert run(layout, [1], [20, 4, 0, 0], limit=6) == ["AUDIO", "FLUSH", "FLUSH", "TEXT"]


def test_the_last_begin_token_of_a_prompt_decides() -> None:
    layout = StreamLayout.from_dict(example())
    assert start_of_generation(layout, []) == (0, 0)
    assert start_of_generation(layout, [9, 9]) == (0, 2)
    assert start_of_generation(layout, [1, 10, 5, 20]) == (1, 3)
    assert start_of_generation(layout, [5, 20, 1, 10]) == (0, 3)


def test_ends_request() -> None:
    layout = audio_only(
        (0, 1),
        Transition(3, END),
        Transition(4, "text"),
        Transition(5, END, (9, 9)),
        text=(Transition(6, "audio", (1,)), Transition(7, END, (8,)), Transition(8, END)),
    )
    table = PhaseTable(layout)
    assert [table.ends_request(0, token) for token in (3, 4, 5, 20)] == [True, False, True, False]
    assert [table.ends_request(1, token) for token in (6, 7, 8, 10)] == [False, True, True, False]
