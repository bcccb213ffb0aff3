# SPDX-License-Identifier: Apache-2.0
"""End rules: columns against a slow restatement, against transformers, and against what is known
of the published families."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import DiaEOSDelayPatternLogitsProcessor
from transformers.models.higgs_audio_v2.generation_higgs_audio_v2 import (
    HiggsAudioV2DelayPatternLogitsProcessor,
)

from tests.support import stream_patterns as families
from tests.support.phase_reference import ReferenceRequest
from tests.support.random_layouts import layouts
from tests.support.stream_patterns import Played, play
from vllm.unison.model.delay_pattern import interleave
from vllm.unison.model.end_rules import (
    AfterTail,
    AllZero,
    AnyStream,
    EndRule,
    FixedLength,
    IdOnPrimary,
    StreamPattern,
    StreamsInTurn,
    next_column,
    num_whole_frames,
    prompt_columns,
    speech_lm_pattern,
)
from vllm.unison.model.fills import Fill, StreamFills
from vllm.unison.model.layout import LayoutError, PhaseKind
from vllm.unison.model.phases import NO_TOKEN, StateKind
from vllm.unison.model.spec import SpeechSpec

IDS = 8
"""Ids of the random patterns; few, so that ends are drawn often."""


@st.composite
def patterns(draw: st.DrawFn) -> StreamPattern:
    """A valid pattern with any rule."""
    streams = draw(st.integers(1, 4))
    ids = st.integers(0, IDS - 1)
    end_ids = tuple(draw(st.lists(ids, min_size=1, max_size=2, unique=True)))
    first_step = draw(st.integers(0, 3))
    rules: list[EndRule] = [
        FixedLength(),
        IdOnPrimary(
            end_ids,
            first_step,
            forbids_earlier=draw(st.booleans()),
            extra_steps=draw(st.integers(0, 1)),
            closing=tuple(draw(st.lists(ids, max_size=2))),
        ),
        AnyStream(end_ids[:1] * streams, first_step),
        StreamsInTurn(end_ids[0], first_step),
        AfterTail(end_ids, first_step),
        AllZero(draw(st.sampled_from([(), (0,), (streams - 1,)])), first_step),
    ]
    rule = draw(st.sampled_from(rules))
    in_turn = isinstance(rule, StreamsInTurn)
    delays = draw(st.lists(st.integers(0, 6), min_size=streams, max_size=streams, unique=in_turn))
    if isinstance(rule, AllZero):
        delays = [0] * streams
    if isinstance(rule, IdOnPrimary | AfterTail):
        delays[0] = 0
    fill = st.builds(Fill, ids, st.booleans(), st.booleans())
    last = fill
    if isinstance(rule, AnyStream | StreamsInTurn):
        sampled = st.just(False) if isinstance(rule, AnyStream) else st.booleans()
        last = st.builds(Fill, st.just(end_ids[0]), st.booleans(), sampled)
    fills = tuple(
        StreamFills(draw(fill), draw(fill), draw(st.none() | last), draw(last))
        for _ in range(streams)
    )
    return StreamPattern(tuple(sorted(delays) if in_turn else delays), fills, rule, IDS)


def assert_all_prefixes_agree(
    pattern: StreamPattern,
    played: Played,
    limit: int | None,
    prompt: np.ndarray[Any, np.dtype[np.int32]] | None,
) -> None:
    columns = np.array(played.columns, np.int32).reshape(-1, pattern.num_streams)
    for step in range(len(columns) + 1):
        found = next_column(pattern, columns[:step], limit=limit, prompt=prompt)
        complete = played.num_frames is not None and step == len(columns)
        assert found.ended == complete, step
        if step == len(columns):
            break
        expected = np.where(played.forced[step], columns[step], NO_TOKEN)
        np.testing.assert_array_equal(found.forced, expected, err_msg=f"step {step}")
        np.testing.assert_array_equal(found.may_end, played.may_end[step], err_msg=f"{step}")
    if played.num_frames is not None:
        frames = num_whole_frames(pattern, columns, limit=limit, prompt=prompt)
        assert frames == played.num_frames


@settings(max_examples=600)
@given(patterns(), st.none() | st.integers(1, 12), st.integers(0, 5), st.integers(0, 2**32))
def test_columns_are_those_of_the_restatement(
    pattern: StreamPattern, limit: int | None, num_prompt: int, seed: int
) -> None:
    source = random.Random(seed)
    num_prompt = min(num_prompt, 5 if limit is None else limit - 1)
    rows = [[source.randrange(IDS) for _ in pattern.delays] for _ in range(num_prompt)]
    played = play(pattern, lambda step, k: source.randrange(IDS), limit, rows or None, max_steps=40)
    prompt = np.array(rows, np.int32) if rows else None
    assert_all_prefixes_agree(pattern, played, limit, prompt)
    if limit is not None:
        assert played.num_frames is not None, "a limit ends every audio"
        assert played.num_frames <= limit
        assert len(played.columns) <= pattern.num_columns(limit)
    if prompt is not None:
        known = prompt_columns(pattern, prompt)
        for step in range(num_prompt):
            for k, delay in enumerate(pattern.delays):
                if step >= delay or played.forced[step][k]:
                    assert known[step, k] == played.columns[step][k]


@settings(max_examples=200)
@given(patterns(), st.integers(1, 8), st.integers(0, 2**32))
def test_whole_frames_hold_what_was_sampled(pattern: StreamPattern, limit: int, seed: int) -> None:
    """With the limit alone every frame is the sampler's, laid out by the delay pattern."""
    fills = tuple(
        StreamFills(lead_in=replace(f.lead_in, sampled=False), tail=f.tail)  # type: ignore[type-var]
        for f in pattern.fills
    )
    fixed = replace(pattern, end_rule=FixedLength(), fills=fills)
    source = random.Random(seed)
    frames = np.array([[source.randrange(IDS) for _ in fixed.delays] for _ in range(limit)])
    columns = np.empty((0, fixed.num_streams), np.int32)
    while not (found := next_column(fixed, columns, limit=limit)).ended:
        sampled = [
            frames[len(columns) - delay, k] if token == NO_TOKEN else token
            for k, (delay, token) in enumerate(zip(fixed.delays, found.forced, strict=True))
        ]
        columns = np.concatenate([columns, np.array([sampled], np.int32)])
    assert len(columns) == fixed.num_columns(limit)
    fill = [NO_TOKEN] * fixed.num_streams
    expected = interleave(frames, fixed.delays, fill)
    np.testing.assert_array_equal(columns[expected != NO_TOKEN], expected[expected != NO_TOKEN])
    assert num_whole_frames(fixed, columns, limit=limit) == limit


def scripted(script: dict[tuple[int, int], int], otherwise: int = 7) -> Callable[[int, int], int]:
    """A sampler that emits some ids at (step, stream) and else one code."""
    return lambda step, stream: script.get((step, stream), otherwise)


def columns_of(pattern: StreamPattern, script: dict[tuple[int, int], int], **kwargs: Any) -> Any:
    """The columns that `next_column` leads to with a scripted sampler."""
    draw = scripted(script)
    columns = np.empty((0, pattern.num_streams), np.int32)
    while not (found := next_column(pattern, columns, **kwargs)).ended:
        row = [
            draw(len(columns), k) if token == NO_TOKEN else token
            for k, token in enumerate(found.forced)
        ]
        columns = np.concatenate([columns, np.array([row], np.int32)])
        assert len(columns) < 200
    return columns


E = 20
"""The step at which the scripted samplers end, unless the family says otherwise."""

# Columns and frames that each family makes, as its own library does.
LENGTHS: list[tuple[str, StreamPattern, dict[tuple[int, int], int], dict[str, Any], int, int]] = [
    ("musicgen", families.musicgen(), {}, {"limit": 30}, 33, 30),
    ("musicgen, stereo", families.musicgen(8, 2), {}, {"limit": 30}, 33, 30),
    # Six more rows than the end's own, and one frame per row before the end's.
    ("higgs 3", families.higgs_3(), {(E, 0): 1025}, {}, E + 7, E),
    ("higgs 3, early end", families.higgs_3(), {(5, 0): 1025, (E, 0): 1025}, {}, E + 7, E),
    ("higgs 2", families.higgs_2(), {(E, 0): 1025}, {}, E + 9, E),
    ("higgs 2, stream 3 first", families.higgs_2(), {(E, 3): 1025}, {}, E + 9, E),
    ("dia", families.dia(), {(E, 0): 1024}, {}, E + 16, E),
    ("dia, limit", families.dia(), {}, {"limit": 25}, 25 + 16, 25),
    ("parler", families.parler(), {(E + k, k): 1024 for k in range(9)}, {}, E + 9, E),
    # The last stream lets a code pass before its end.
    ("parler, late", families.parler(3),
     {(E, 0): 1024, (E + 1, 1): 1024, (E + 5, 2): 1024}, {}, E + 6, E),
    ("zonos", families.zonos(), {(E, 0): 1024}, {}, E + 9, E),
    ("moss", families.moss(), {(E, 0): families.MOSS_DELAY_SLOT}, {}, E + 33, E),
    ("opuslm", families.opuslm(), {(E, 0): 5}, {}, E + 9, E),
    ("bagpiper", families.bagpiper(), {(60, 0): 3}, {}, 61, 53),
    ("bagpiper, forbidden before 50", families.bagpiper(), {(49, 0): 3, (60, 0): 2}, {}, 61, 53),
    ("csm", families.csm(), {(E, k): 0 for k in range(31)}, {}, E + 1, E),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "script", "kwargs", "columns", "frames"),
                         [pytest.param(*case[1:], id=case[0]) for case in LENGTHS])  # fmt: skip
def test_a_published_family_makes_as_many_columns_and_frames(
    pattern: StreamPattern,
    script: dict[tuple[int, int], int],
    kwargs: dict[str, Any],
    columns: int,
    frames: int,
) -> None:
    found = columns_of(pattern, script, **kwargs)
    assert len(found) == columns
    assert num_whole_frames(pattern, found, **kwargs) == frames
    played = play(pattern, scripted(script), max_steps=150, **kwargs)
    assert found.tolist() == played.columns


def table(columns: Any) -> list[str]:
    """Columns as one line per stream, "." where the sampler emitted its code."""
    return [" ".join("." if token == 7 else str(token) for token in stream) for stream in columns.T]


def test_the_ends_of_four_families_cell_by_cell() -> None:
    three = families.musicgen(3)
    assert table(columns_of(three, {}, limit=3)) == [
        ". . . 2048 2048",
        "2048 . . . 2048",
        "2048 2048 . . .",
    ]
    # Stream 1 ends first, and may emit codes again until it is its turn.
    assert table(columns_of(families.higgs_2(3), {(5, 1): 1025, (6, 1): 9})) == [
        "1024 . . . . . 1025 1025 1025",
        "1024 1024 . . . 1025 9 1025 1025",
        "1024 1024 1024 . . . . . 1025",
    ]
    assert table(columns_of(families.dia((0, 2, 3)), {(4, 0): 1024})) == [
        ". . . . 1024 1025 1025 1025",
        "1026 1026 . . . . 1024 1025",
        "1026 1026 1026 . . . . 1024",
    ]
    assert table(columns_of(families.parler(3), {(3, 0): 1024, (4, 1): 1024, (6, 2): 1024})) == [
        ". . . 1024 1024 1024 1024",
        "1025 . . . 1024 1024 1024",
        "1025 1025 . . . . 1024",
    ]


def test_a_control_stream_is_forced_to_its_close() -> None:
    """A stream without delay is sampled in the same step as the id, and knows nothing of it."""
    slot, end = families.MOSS_DELAY_SLOT, families.MOSS_AUDIO_END
    assert table(columns_of(families.moss(2), {(2, 0): slot})) == [
        f". . {slot} {slot} {end}",
        ". . . 1024 1024",
        "1024 . . 1024 1024",
    ]


def test_a_limit_before_the_rule_looks_is_an_end_as_any_other() -> None:
    """The last stream may end in its turn after those that the limit ended."""
    fills = families.parler(3).fills
    late = StreamPattern((0, 1, 3), fills, StreamsInTurn(1024, first_step=4), 1089)
    assert table(columns_of(late, {(5, 2): 1024}, limit=3)) == [
        ". . . 1024 1024 1024",
        "1025 . . . 1024 1024",
        "1025 1025 1025 . . 1024",
    ]


def test_late_frames_of_a_prompt_come_first() -> None:
    prompt = np.array([[10, 20, 30], [11, 21, 31]], np.int32)
    pattern = families.musicgen(3)
    known = prompt_columns(pattern, prompt)
    assert table(known) == ["10 11", "2048 20", "2048 2048"]
    assert table(columns_of(pattern, {}, limit=4, prompt=prompt)) == [
        "10 11 . . 2048 2048",
        "2048 20 21 . . 2048",
        "2048 2048 30 31 . .",
    ]


@settings(max_examples=60)
@given(st.integers(1, 9), st.data())
def test_dia_forces_what_transformers_does(end: int, data: st.DataObject) -> None:
    later = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    delays = (0, *later)
    pattern = families.dia(delays)
    # transformers counts the start column, and leaves room for the ends.
    limit = data.draw(st.integers(1, 9))
    processor = DiaEOSDelayPatternLogitsProcessor(
        list(delays), eos_token_id=1024, max_generation_len=limit + 1 + max(delays) + 1
    )
    columns = columns_of(pattern, {(end, 0): 1024}, limit=limit)
    assert len(columns) == min(end, limit) + max(delays) + 1
    for step, column in enumerate(columns):
        scores = torch.zeros(len(delays), 1028)
        scores[:, 7] = 1
        if step == end:
            scores[0, 1024] = 2
        seen = torch.zeros(1, 1 + step, dtype=torch.long)
        forced = (processor(seen, scores) == -torch.inf).any(1)
        # In the lead-in, which another part of transformers lays, and after its end a stream's
        # cells are none of this processor's.
        for k, delay in enumerate(delays):
            if delay <= step <= min(end, limit) + delay:
                assert bool(forced[k]) == (column[k] == 1024), (step, k)


@settings(max_examples=60)
@given(st.integers(2, 5), st.integers(0, 2**32))
def test_higgs_2_forces_what_transformers_does(streams: int, seed: int) -> None:
    source = random.Random(seed)
    pattern = families.higgs_2(streams)
    bos, audio, delay = 1, 2, 3
    processor = HiggsAudioV2DelayPatternLogitsProcessor(
        [k + 1 for k in range(streams)], bos, delay, 1024, 1025, streams, 1026
    )
    text = [0] * streams + [bos]
    columns = np.empty((0, streams), np.int32)
    for _ in range(80):
        found = next_column(pattern, columns)
        if found.ended:
            break
        scores = processor(torch.tensor([text]), torch.zeros(1, streams * 1026))
        allowed = scores.reshape(streams, 1026) > -torch.inf
        forced = [int(row.nonzero()[0]) if row.sum() == 1 else NO_TOKEN for row in allowed]
        assert found.forced.tolist() == forced
        row = [
            source.choice([7, 8, 9, 10, 1025 if found.may_end[k] else 7])
            if token == NO_TOKEN
            else token
            for k, token in enumerate(forced)
        ]
        columns = np.concatenate([columns, np.array([row], np.int32)])
        # The text track, as the library's loop writes it.
        text.append(delay if 1025 in row or text[-1] == delay else audio)
        assert (columns[-1] == 1025).all() == next_column(pattern, columns).ended
    else:
        pytest.skip("no end was drawn")


def speech_spec(layout: Any) -> SpeechSpec:
    return SpeechSpec(layout, auxiliary_skip_ids=layout.pad_token_ids[1:2])


@settings(max_examples=300)
@given(
    layouts(kinds=(PhaseKind.AUDIO,), max_phases=1, rules=False),
    st.integers(1, 12),
    st.integers(0, 2**32),
)
def test_the_speech_lm_format_can_be_said(layout: Any, limit: int, seed: int) -> None:
    """The same flush as the phase table's, whose reference emits beside it."""
    pattern = speech_lm_pattern(speech_spec(layout), 0)
    source = random.Random(seed)
    (phase,) = layout.phases
    tokens = [transition.token for transition in phase.transitions]
    request = ReferenceRequest(layout, [], limit)
    begin, _ = layout.slices[0]
    columns = np.empty((0, layout.num_streams), np.int32)
    while request.kind in (StateKind.AUDIO, StateKind.FLUSH) and not request.segments:
        found = next_column(pattern, columns, limit=limit)
        assert not found.ended
        assert found.forced[0] == request.forced_token
        assert found.may_end[0] == bool(tokens and request.kind is StateKind.AUDIO)
        for k in range(1, layout.num_streams):
            frame = len(columns) - layout.delays[k]
            flushed = request.kind is StateKind.FLUSH and frame >= request.num_frames
            expected = layout.pad_token_ids[k] if frame < 0 or flushed else NO_TOKEN
            assert found.forced[k] == expected
        token = source.choice([begin, begin, *tokens]) if found.forced[0] < 0 else found.forced[0]
        row = np.where(found.forced < 0, [s[0] for s in layout.slices], found.forced)
        row[0] = token
        columns = np.concatenate([columns, row[None].astype(np.int32)])
        request.emit(int(token))
    assert next_column(pattern, columns, limit=limit).ended
    (segment,) = request.segments
    assert num_whole_frames(pattern, columns, limit=limit) == segment.num_frames
    for k, fills in enumerate(pattern.fills[1:], start=1):
        pad = layout.pad_token_ids[k]
        assert fills.text == fills.tail == Fill(pad, embeds=pad not in layout.pad_token_ids[1:2])


FILLS = StreamFills(lead_in=Fill(1), tail=Fill(1))
REFUSALS: list[tuple[Callable[[], Any], str]] = [
    (lambda: StreamPattern((), (), FixedLength(), 2), "delays must have 1 to 64 entries"),
    (lambda: StreamPattern((0,), (), FixedLength(), 2), "fills must have 1 entries"),
    (lambda: StreamPattern((-1,), (FILLS,), FixedLength(), 2), r"delays\[0\] must be at least 0"),
    (lambda: StreamPattern((0,), (FILLS,), FixedLength(), 0), "vocabulary_size must be at least 1"),
    (
        lambda: StreamPattern((0, 1), (FILLS, StreamFills()), FixedLength(), 2),
        r"fills\[1\]\.lead_in must be given: stream 1 starts late",
    ),
    (
        lambda: StreamPattern((0, 1), (StreamFills(), FILLS), FixedLength(), 2),
        r"fills\[0\]\.tail must be given: stream 0 ends before the audio",
    ),
    (
        lambda: StreamPattern((0, 2), (StreamFills(end=Fill(1)), FILLS), FixedLength(), 2),
        r"fills\[0\]\.tail must be given",
    ),
    (
        lambda: StreamPattern((0,), (FILLS,), FixedLength(), 1),
        r"fills\[0\]\.lead_in\.token_id must be in \[0, 1\), not 1",
    ),
    (
        lambda: StreamPattern((0,), (FILLS,), IdOnPrimary((2,)), 2),
        r"end_rule\.end_ids\[0\] must be in \[0, 2\), not 2",
    ),
    (
        lambda: StreamPattern((0,), (FILLS,), IdOnPrimary((0,), closing=(3,)), 2),
        r"end_rule\.closing\[0\] must be in \[0, 2\), not 3",
    ),
    (
        lambda: StreamPattern((0,), (FILLS,), AfterTail(()), 2),
        r"end_rule\.end_ids must have at least one entry",
    ),
    (
        lambda: StreamPattern((0,), (FILLS,), AfterTail((0,), first_step=-1), 2),
        r"end_rule\.first_step must be at least 0, not -1",
    ),
    (
        lambda: StreamPattern((0,), (FILLS,), IdOnPrimary((0,), extra_steps=2), 2),
        r"end_rule\.extra_steps must be 0 or 1, not 2",
    ),
    (
        lambda: StreamPattern((0,), (FILLS,), AllZero((1,)), 2),
        r"end_rule\.streams\[0\] must be in \[0, 1\), not 1",
    ),
    (
        lambda: StreamPattern((1, 0), (FILLS, FILLS), AfterTail((0,)), 2),
        r"delays\[0\] must be 0, since stream 0 ends, not 1",
    ),
    (
        lambda: StreamPattern((0, 1), (FILLS, FILLS), AllZero(), 2),
        r"delays must be 0, since all streams end in one step, not \[0, 1\]",
    ),
    (
        lambda: StreamPattern((0,), (FILLS,), AnyStream((0,)), 2),
        r"fills\[0\] must end with the id of end_rule, 0, not 1",
    ),
    (
        lambda: StreamPattern((0,), (FILLS,), AnyStream((1, 1)), 2),
        r"end_rule\.end_ids must have 1 entries, one per stream, not 2",
    ),
    (
        lambda: StreamPattern(
            (0,), (replace(FILLS, tail=Fill(1, sampled=True)),), AnyStream((1,)), 2
        ),
        r"fills\[0\] must be forced at the end",
    ),
    (
        lambda: StreamPattern((0, 0), (FILLS, FILLS), StreamsInTurn(1), 2),
        r"delays must increase from stream to stream, since they end in turn, not \[0, 0\]",
    ),
    (
        lambda: next_column(families.musicgen(), np.zeros((1, 3), np.int32)),
        r"columns must have shape \[n, 4\], not \[1, 3\]",
    ),
    (
        lambda: next_column(
            families.musicgen(),
            np.zeros((0, 4), np.int32),
            limit=2,
            prompt=np.zeros((2, 4), np.int32),
        ),
        "limit must be greater than the prompt's 2 frames, not 2",
    ),
    (
        lambda: num_whole_frames(families.musicgen(), np.zeros((1, 4), np.int32), limit=2),
        "columns must be those of audio that has ended, not 1 of it",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSALS)
def test_a_refusal_names_the_field(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_refusals_of_patterns_are_those_of_layouts() -> None:
    with pytest.raises(LayoutError):
        StreamPattern((), (), FixedLength(), 2)
