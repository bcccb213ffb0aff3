# SPDX-License-Identifier: Apache-2.0
"""Stream layouts: what is read, what is refused, and what follows from one."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given

from tests.support import published_layouts, stream_patterns
from tests.support.random_layouts import example, layouts
from vllm.unison.model.end_rules import speech_lm_pattern
from vllm.unison.model.fills import Fill
from vllm.unison.model.layout import (
    AudioEnd,
    DelayScope,
    LayoutError,
    Phase,
    PhaseKind,
    PlaceFill,
    StreamLayout,
    Transition,
)
from vllm.unison.model.spec import SpeechSpec


def changed(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    """Set the value at a path of a layout object."""

    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = to

    return change


def without(name: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        del data[name]

    return change


def doubled_phase(data: dict[str, Any]) -> None:
    data["phases"][1]["name"] = "text"
    data["phases"][0]["transitions"] = []
    data["phases"][1]["transitions"] = []


def fill(**place: Any) -> Callable[[dict[str, Any]], None]:
    return changed("fills", to={"tail": place})


def ends(**rule: Any) -> Callable[[dict[str, Any]], None]:
    return changed("phases", 1, "end_rule", to=rule)


def any_ends(**fills: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        phase = data["phases"][1]
        phase["transitions"], phase["end_rule"] = phase["transitions"][:1], {"kind": "any_stream"}
        data["fills"] = fills

    return change


def without_transitions(data: dict[str, Any]) -> None:
    data["phases"][1]["transitions"] = []
    data["phases"][1]["end_rule"] = {"extra_steps": 1}


def tail_that_ends(data: dict[str, Any]) -> None:
    data["fills"] = {"tail": {"token_ids": 6, "sampled": True}}
    data["phases"][1]["end_rule"] = {"kind": "after_tail"}


TOO_MANY = 65
REFUSALS = [
    (without("delays"), "stream_layout.delays is missing"),
    (without("vocabulary_size"), "stream_layout.vocabulary_size is missing"),
    (without("slices"), "stream_layout.slices is missing"),
    (without("pad_token_ids"), "stream_layout.pad_token_ids is missing"),
    (without("phases"), "stream_layout.phases is missing"),
    (changed("delay", to=[0]), "stream_layout has unknown keys ['delay']"),
    (changed("delays", to=[]), "delays must have 1 to 64 entries"),
    (changed("delays", to=[0] * TOO_MANY), "delays must have 1 to 64 entries"),
    (changed("delays", to="012"), "stream_layout.delays must be a list of integers"),
    (changed("delays", to=3), "stream_layout.delays must be a list of integers"),
    (changed("delays", 1, to=1.0), "stream_layout.delays[1] must be an integer"),
    (changed("delays", 1, to=True), "stream_layout.delays[1] must be an integer"),
    (changed("delays", 2, to=-1), "delays[2] must be at least 0, not -1"),
    (changed("delays", 0, to=1), "delays[0] must be 0, not 1"),
    (changed("vocabulary_size", to=0), "vocabulary_size must be at least 1, not 0"),
    (changed("vocabulary_size", to="40"), "stream_layout.vocabulary_size must be an integer"),
    (changed("vocabulary_size", to=31), "slices[2] must be [begin, end)"),
    (changed("slices", to=[[20, 24]]), "slices must have 3 entries, one per stream, not 1"),
    (changed("slices", 1, to=[24]), "stream_layout.slices[1] must be a pair"),
    (changed("slices", 1, to=[24, None]), "stream_layout.slices[1][1] must be an integer"),
    (changed("slices", 1, to=[24, 24]), "slices[1] must be [begin, end) with 0 <= begin < end"),
    (changed("slices", 1, to=[28, 24]), "slices[1] must be [begin, end) with 0 <= begin < end"),
    (changed("slices", 0, to=[-1, 4]), "slices[0] must be [begin, end) with 0 <= begin < end"),
    (changed("pad_token_ids", to=[0, 0]), "pad_token_ids must have 3 entries, one per stream"),
    (changed("pad_token_ids", to=[0, 40, 0]), "pad_token_ids[1] must be in [0, 40), not 40"),
    (changed("pad_token_ids", to=-1), "pad_token_ids[0] must be in [0, 40), not -1"),
    (changed("pad_token_ids", to="0"), "stream_layout.pad_token_ids must be a list"),
    (changed("pad_token_ids", to=25), "pad_token_ids[1] must lie outside slices[1] = [24, 28)"),
    (changed("text_slice", to=[10, 41]), "text_slice must be [begin, end)"),
    (changed("text_slice", to=[10, 21]), "text_slice must not overlap slices[0] = [20, 24)"),
    (changed("text_slice", to=[10]), "stream_layout.text_slice must be a pair"),
    (changed("text_slice", to=None), "phases[0].kind is text, so text_slice must be given"),
    (changed("codebook_streams", to=[0, 0]), "codebook_streams must not repeat a stream"),
    (changed("codebook_streams", to=[0, 3]), "codebook_streams[1] must be in [0, 3), not 3"),
    (changed("codebook_streams", to=[-1]), "codebook_streams[0] must be in [0, 3), not -1"),
    (changed("delay_scope", to="frame"), "stream_layout.delay_scope must be"),
    (changed("outside_codebook", to=4), "'fail', 'drop' or a code in [0, 3], not 4"),
    (changed("outside_codebook", to=27), "'fail', 'drop' or a code in [0, 3], not 27"),
    (changed("outside_codebook", to=-1), "'fail', 'drop' or a code in [0, 3], not -1"),
    (changed("outside_codebook", to=True), "'fail', 'drop' or a code in [0, 3], not True"),
    (changed("outside_codebook", to="keep"), "'fail', 'drop' or a code in [0, 3], not 'keep'"),
    (changed("phases", to=[]), "phases must have at least one entry"),
    (doubled_phase, "phases must have different names"),
    (changed("slices", to=3), "stream_layout.slices must be a list"),
    (changed("phases", to=None), "stream_layout.phases must be a list"),
    (changed("phases", 0, "transitions", to=3), "phases[0].transitions must be a list"),
    (changed("phases", 0, to="text"), "stream_layout.phases[0] must be an object"),
    (changed("phases", 0, "ends", to=[]), "stream_layout.phases[0] has unknown keys ['ends']"),
    (changed("phases", 0, "name", to="end"), "phases[0].name must be neither empty nor 'end'"),
    (changed("phases", 0, "name", to=""), "phases[0].name must be neither empty nor 'end'"),
    (changed("phases", 1, "kind", to="video"), "stream_layout.phases[1].kind must be"),
    (
        changed("phases", 1, "begin_tokens", to=[40]),
        "phases[1].begin_tokens[0] must be in [0, 40), not 40",
    ),
    (
        changed("phases", 1, "begin_tokens", to=[7, 1]),
        "phases[1].begin_tokens[1] = 1 begins another phase too",
    ),
    (
        changed("phases", 1, "transitions", 0, to=[2, "end"]),
        "stream_layout.phases[1].transitions[0] must be an object",
    ),
    (
        changed("phases", 1, "transitions", 0, "from", to="text"),
        "stream_layout.phases[1].transitions[0] has unknown keys ['from']",
    ),
    (
        changed("phases", 1, "transitions", 0, "token", to=None),
        "stream_layout.phases[1].transitions[0].token must be an integer",
    ),
    (
        changed("phases", 1, "transitions", 0, "token", to=-2),
        "phases[1].transitions[0].token must be in [0, 40), not -2",
    ),
    (
        changed("phases", 1, "transitions", 1, "token", to=2),
        "phases[1].transitions[1].token = 2 stands twice in phases[1]",
    ),
    (
        changed("phases", 1, "transitions", 1, "token", to=21),
        "phases[1].transitions[1].token must lie outside the ids that 'audio' emits, [20, 24)",
    ),
    (
        changed("phases", 0, "transitions", 0, "token", to=15),
        "phases[0].transitions[0].token must lie outside the ids that 'text' emits, [10, 20)",
    ),
    (
        changed("phases", 0, "transitions", 1, "to", to="speech"),
        "phases[0].transitions[1].to must be 'end' or one of ['text', 'audio'], not 'speech'",
    ),
    (
        changed("phases", 0, "transitions", 1, "forced", to=[4, 99]),
        "phases[0].transitions[1].forced[1] must be in [0, 40), not 99",
    ),
    (
        changed("phases", 0, "transitions", 1, "forced", to=4),
        "stream_layout.phases[0].transitions[1].forced must be a list of integers",
    ),
    (changed("fills", to=[]), "stream_layout.fills must be an object"),
    (changed("fills", to={"text": 0}), "stream_layout.fills has unknown keys ['text']"),
    (changed("fills", to={"tail": 7}), "stream_layout.fills.tail must be an object"),
    (fill(), "stream_layout.fills.tail.token_ids is missing"),
    (fill(token_ids=7, embeds=True), "stream_layout.fills.tail has unknown keys ['embeds']"),
    (fill(token_ids="7"), "stream_layout.fills.tail.token_ids must be a list of integers"),
    (fill(token_ids=[7]), "fills.tail.token_ids must have 3 entries, one per stream, not 1"),
    (fill(token_ids=[7, 7, 40]), "fills.tail.token_ids[2] must be in [0, 40), not 40"),
    (fill(token_ids=25), "fills.tail.token_ids[1] must lie outside slices[1] = [24, 28), not 25"),
    (fill(token_ids=7, sampled=1), "stream_layout.fills.tail.sampled must be a list of booleans"),
    (fill(token_ids=7, sampled=[True]), "fills.tail.sampled must have 3 entries, one per stream"),
    (
        fill(token_ids=7, sampled=[True, 0, True]),
        "stream_layout.fills.tail.sampled[1] must be true or false, not 0",
    ),
    (ends(rule=1), "stream_layout.phases[1].end_rule has unknown keys ['rule']"),
    (
        ends(kind="all_zero"),
        "stream_layout.phases[1].end_rule.kind must be one of ['id_on_primary', 'after_tail', "
        "'any_stream'], not 'all_zero'",
    ),
    (
        ends(kind="any_stream", first_step=1),
        "stream_layout.phases[1].end_rule has unknown keys ['first_step']",
    ),
    (
        ends(kind="any_stream"),
        "fills.tail.token_ids[0] must be the only token that ends phase 'audio', [2, 6], not 0",
    ),
    (
        any_ends(tail={"token_ids": [6, 7, 8]}),
        "fills.tail.token_ids[0] must be the only token that ends phase 'audio', [2], not 6",
    ),
    (
        any_ends(tail={"token_ids": [2, 7, 8]}, end={"token_ids": [2, 7, 9]}),
        "fills.end.token_ids must be those of fills.tail, which any stream of phase 'audio' ends",
    ),
    (
        any_ends(tail={"token_ids": [2, 7, 8], "sampled": [False, True, False]}),
        "fills.tail.sampled[1] must be false, since the tail of phase 'audio' is forced",
    ),
    (
        any_ends(tail={"token_ids": [2, 7, 8]}, lead_in={"token_ids": [3, 7, 3]}),
        "fills.lead_in.token_ids[1] must not be what ends phase 'audio', 7",
    ),
    (
        any_ends(tail={"token_ids": [2, 0, 8]}, lead_in={"token_ids": 3}),
        "pad_token_ids[1] must not be what ends phase 'audio', 0",
    ),
    (
        changed("more_candidates", to=[[7]]),
        "more_candidates must have 3 entries, one per stream, or none, not 1",
    ),
    (
        changed("more_candidates", to=[[], [40], []]),
        "more_candidates[1][0] must be in [0, 40), not 40",
    ),
    (
        changed("more_candidates", to=[[], [7, 24], []]),
        "more_candidates[1][1] must lie outside slices[1] = [24, 28), not 24",
    ),
    (
        changed("more_candidates", to=[7, 7, 7]),
        "stream_layout.more_candidates[0] must be a list of integers",
    ),
    (
        ends(kind="after_tail", extra_steps=1),
        "stream_layout.phases[1].end_rule has unknown keys ['extra_steps']",
    ),
    (ends(first_step=-1), "phases[1].end_rule.first_step must be at least 0, not -1"),
    (ends(first_step=True), "stream_layout.phases[1].end_rule.first_step must be an integer"),
    (ends(extra_steps=2), "phases[1].end_rule.extra_steps must be 0 or 1, not 2"),
    (ends(closing=[40]), "phases[1].end_rule.closing[0] must be in [0, 40), not 40"),
    (
        ends(forbids_earlier="yes"),
        "stream_layout.phases[1].end_rule.forbids_earlier must be true or false, not 'yes'",
    ),
    (
        changed("phases", 0, "end_rule", to={"first_step": 2, "extra_steps": 1}),
        "phases[0].end_rule of a text phase must hold first_step only",
    ),
    (
        without_transitions,
        "phases[1].end_rule is only for phases that have transitions",
    ),
    (
        ends(kind="after_tail"),
        "fills.tail.sampled[0] must be true, since stream 0 emits its tail itself in phase 'audio'",
    ),
    (
        tail_that_ends,
        "fills.tail.token_ids[0] must not be a token that ends phase 'audio', not 6",
    ),
]


@pytest.mark.parametrize(
    ("change", "message"), REFUSALS, ids=[f"{i}: {m[:60]}" for i, (_, m) in enumerate(REFUSALS)]
)
def test_a_refusal_names_the_field(change: Callable[[dict[str, Any]], None], message: str) -> None:
    data = copy.deepcopy(example())
    StreamLayout.from_dict(data)
    change(data)
    with pytest.raises(LayoutError) as refused:
        StreamLayout.from_dict(data)
    assert message in str(refused.value)


@pytest.mark.parametrize("data", [None, [], "layout", 3])
def test_a_layout_that_is_no_object_is_refused(data: Any) -> None:
    with pytest.raises(LayoutError, match="stream_layout must be an object"):
        StreamLayout.from_dict(data)


@given(layouts(any_stream=True))
def test_a_layout_survives_json(layout: StreamLayout) -> None:
    assert StreamLayout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


def test_what_is_read() -> None:
    layout = StreamLayout.from_dict(example())
    assert layout.num_streams == 3
    assert layout.max_delay == layout.num_flush_steps == 2
    assert layout.pad_token_ids == (0, 0, 0)
    assert layout.delay_scope is DelayScope.SEGMENT
    assert layout.phases[0] == Phase(
        "text", PhaseKind.TEXT, (1,), (Transition(2, "end"), Transition(3, "audio", (4, 5)))
    )
    assert layout.phase_index("audio") == 1
    with pytest.raises(KeyError):
        layout.phase_index("end")
    assert [layout.is_text(token) for token in (9, 10, 19, 20)] == [False, True, True, False]


def test_fills_and_end_rules_are_read() -> None:
    rule = {"first_step": 3, "forbids_earlier": False, "extra_steps": 1, "closing": [7]}
    layout = StreamLayout.from_dict(
        with_end_rule(
            rule, lead_in={"token_ids": 8}, tail={"token_ids": [7, 8, 9], "sampled": True}
        )
    )
    assert layout.lead_in == PlaceFill((8, 8, 8), (False,) * 3)
    assert layout.end == layout.tail == PlaceFill((7, 8, 9), (True,) * 3)
    assert layout.phases[1].end_rule == AudioEnd(False, 3, False, 1, (7,))
    assert layout.num_flush_steps == layout.max_delay + 2
    assert [layout.sampled_fills(stream) for stream in range(3)] == [[7], [8], [9]]
    data = example(more_candidates=[[9], [], [8]])
    any_ends(tail={"token_ids": [2, 7, 8]})(data)
    any_stream = StreamLayout.from_dict(data)
    assert any_stream.phases[1].end_rule == AudioEnd(any_stream=True, extra_steps=1)
    assert any_stream.end_ids(any_stream.phases[1]) == (2, 7, 8)
    assert [any_stream.more_than_codes(stream) for stream in range(3)] == [[9], [], [8]]
    assert any_stream.num_flush_steps == any_stream.max_delay + 1
    after = StreamLayout.from_dict(
        with_end_rule(
            {"kind": "after_tail", "first_step": 4}, tail={"token_ids": 7, "sampled": True}
        )
    )
    assert after.phases[1].end_rule == AudioEnd(after_tail=True, first_step=4)
    assert after.lead_in == after.pads == PlaceFill((0, 0, 0), (False,) * 3)
    assert after.num_flush_steps == after.max_delay


def with_end_rule(rule: dict[str, Any], **fills: Any) -> dict[str, Any]:
    data = example(fills=fills)
    data["phases"][1]["end_rule"] = rule
    return data


def test_defaults() -> None:
    data = example()
    del data["codebook_streams"], data["delay_scope"], data["text_slice"]
    data["phases"] = [{"name": "audio", "kind": "audio"}]
    layout = StreamLayout.from_dict(data)
    assert layout.codebook_streams == (0, 1, 2)
    assert layout.delay_scope is DelayScope.SEQUENCE
    assert layout.has_audio and not layout.has_text
    assert not layout.is_text(10)
    assert layout.phases == (Phase("audio", PhaseKind.AUDIO),)


def test_a_text_model_has_no_flush() -> None:
    text = {"name": "text", "kind": "text"}
    layout = StreamLayout.from_dict(example(phases=[text]))
    assert layout.max_delay == 2
    assert layout.num_flush_steps == 0
    assert layout.has_text and not layout.has_audio


def phases_of(graph: dict[str, list[str]]) -> tuple[Phase, ...]:
    """Phases with these transitions; the kind is the name's first letter."""
    kinds = {"t": PhaseKind.TEXT, "a": PhaseKind.AUDIO}
    return tuple(
        Phase(name, kinds[name[0]], (), tuple(Transition(i, to) for i, to in enumerate(targets)))
        for name, targets in graph.items()
    )


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({"t": ["end"]}, False),
        ({"t": ["a"], "a": ["end"]}, False),
        ({"t": ["end", "a"], "a": ["a", "end"]}, False),
        ({"a": ["t"], "t": ["end"]}, True),
        ({"a": ["end"], "t": ["t", "a"]}, False),
        ({"a1": ["a2"], "a2": ["a1", "a3"], "a3": ["t"], "t": []}, True),
        ({"a1": ["a2"], "a2": ["a1", "end"], "t": ["a1"]}, False),
    ],
)
def test_text_can_follow_audio(graph: dict[str, list[str]], expected: bool) -> None:
    layout = StreamLayout(
        delays=(0,),
        vocabulary_size=40,
        slices=((20, 24),),
        pad_token_ids=(19,),
        phases=phases_of(graph),
        text_slice=(10, 19),
    )
    assert layout.text_can_follow_audio is expected


@pytest.mark.parametrize("rule", ["fail", "drop", 0, 3])
def test_rules_for_ids_outside_the_codebook(rule: str | int) -> None:
    assert StreamLayout.from_dict(example(outside_codebook=rule)).outside_codebook == rule


def test_ids_that_a_stream_may_emit_besides_its_codes() -> None:
    data = example(more_candidates=[[7], [], [9, 8]])
    layout = StreamLayout.from_dict(data)
    assert [layout.more_than_codes(stream) for stream in range(3)] == [[7], [], [8, 9]]
    assert StreamLayout.from_dict(layout.to_dict()) == layout
    assert StreamLayout.from_dict(example()).more_than_codes(1) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([[7]], r"^more_candidates must have 3 entries, one per stream, or none, not 1$"),
        ([[], [40], []], r"^more_candidates\[1\]\[0\] must be in \[0, 40\), not 40$"),
        ([[20], [], []], r"^more_candidates\[0\]\[0\] must lie outside slices\[0\] = \[20, 24\)"),
        ([[], 5, []], r"^stream_layout\.more_candidates\[1\] must be a list"),
    ],
)
def test_wrong_candidates_are_refused_by_their_place(more: list[Any], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        StreamLayout.from_dict(example(more_candidates=more))


def test_opuslm_is_expressible() -> None:
    layout = StreamLayout.from_dict(published_layouts.opuslm_7b())
    assert layout.num_streams == 9
    assert layout.slices[-1][1] == layout.text_slice[0] == 13448  # type: ignore[index]
    assert layout.codebook_streams == tuple(range(1, 9))
    # The last frame of the last stream comes 8 steps after the end, which is one step itself.
    assert layout.num_flush_steps == 9
    assert not layout.text_can_follow_audio
    pattern = speech_lm_pattern(SpeechSpec(layout, auxiliary_skip_ids=(0,)), 1)
    family = stream_patterns.opuslm()
    assert (pattern.delays, pattern.end_rule) == (family.delays, family.end_rule)
    assert pattern.fills[1:] == family.fills[1:]
    # Stream 0 may emit in its tail what it may before: a unit, or the end.
    assert pattern.fills[0].tail == Fill(5, sampled=True)
    json.dumps(published_layouts.opuslm_7b())


def test_bagpiper_is_expressible() -> None:
    layout = StreamLayout.from_dict(published_layouts.bagpiper())
    assert layout.vocabulary_size == 160392
    assert layout.slices[-1][1] == 160392
    assert layout.pad_token_ids == (0,) * 8
    for place in (layout.lead_in, layout.tail):
        assert all(
            pad == begin - 1 and end - begin == 1024
            for pad, (begin, end) in zip(place.token_ids, layout.slices, strict=True)
        )
    spec = SpeechSpec(layout, auxiliary_skip_ids=(0,))
    assert speech_lm_pattern(spec, 1) == stream_patterns.bagpiper()
    assert layout.phases[0].transitions == tuple(Transition(t, "audio", (6, 8)) for t in (2, 3))
    assert not layout.text_can_follow_audio
    json.dumps(published_layouts.bagpiper())
