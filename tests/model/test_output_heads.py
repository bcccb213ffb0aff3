# SPDX-License-Identifier: Apache-2.0
"""Candidates and masks of the heads, by brute force over the layout."""

import numpy as np
from hypothesis import given

from tests.support import published_layouts
from tests.support.random_layouts import allowed_ids, layouts, sampled_fills
from vllm.unison.model.layout import PhaseKind, StreamLayout
from vllm.unison.model.output_heads import PADDING_CANDIDATE, Heads
from vllm.unison.model.phases import PhaseTable, StateKind


def heads_of(layout: StreamLayout) -> tuple[Heads, PhaseTable]:
    table = PhaseTable(layout)
    return Heads(layout, table), table


@given(layouts())
def test_text_masks_allow_exactly_what_the_layout_says(layout: StreamLayout) -> None:
    heads, table = heads_of(layout)
    begin, end = heads.text_range
    masks = heads.text_masks()
    assert masks.shape == (2 * table.num_masks, 1, end - begin)
    for state in range(table.num_states):
        for variant in (0, 1):
            expected: set[int] = set()
            if table.kind[state] == StateKind.TEXT:
                expected = set(allowed_ids(layout, layout.phases[state], 0, may_end=variant == 0))
            found = begin + np.flatnonzero(masks[2 * state + variant, 0])
            assert set(found.tolist()) == expected


@given(layouts())
def test_audio_masks_allow_exactly_what_the_layout_says(layout: StreamLayout) -> None:
    heads, table = heads_of(layout)
    for group in heads.groups:
        masks = heads.audio_masks(group)
        assert masks.shape == (2 * table.num_masks, group.num_streams, group.width)
        assert not masks[:, group.candidate_ids == PADDING_CANDIDATE].any()
        for state in range(table.num_states):
            for row in range(group.num_streams):
                stream = group.first_stream + row
                for variant in (0, 1):
                    allowed = masks[2 * state + variant, row]
                    found = group.candidate_ids[row, allowed].tolist()
                    assert len(found) == len(set(found))
                    expected: set[int] = set()
                    if table.kind[state] == StateKind.AUDIO:
                        phase = layout.phases[state]
                        expected = set(allowed_ids(layout, phase, stream, may_end=variant == 0))
                    elif table.kind[state] == StateKind.FLUSH:
                        expected = {*range(*layout.slices[stream])}
                        expected |= set(sampled_fills(layout, stream))
                    assert set(found) == expected


@given(layouts())
def test_groups_cover_all_streams_once(layout: StreamLayout) -> None:
    heads, _ = heads_of(layout)
    if not layout.has_audio:
        assert heads.groups == [] and heads.audio_columns == 0
        return
    streams = [g.first_stream + row for g in heads.groups for row in range(g.num_streams)]
    assert streams == list(range(layout.num_streams))
    column = 0
    for group in heads.groups:
        assert group.candidate_ids.dtype == np.int32
        assert group.first_column == column
        column += group.num_streams * group.width
    assert heads.audio_columns == column


@given(layouts())
def test_padding_costs_at_most_a_quarter(layout: StreamLayout) -> None:
    heads, _ = heads_of(layout)
    ends = {t.token for p in layout.phases if p.kind is PhaseKind.AUDIO for t in p.transitions}
    for group in heads.groups:
        real = group.candidate_ids != PADDING_CANDIDATE
        assert group.candidate_ids.size <= 1.25 * real.sum()
        assert real.any(axis=1).all()
        for row, used in enumerate(real):
            stream = group.first_stream + row
            count = int(used.sum())
            assert used[:count].all(), "padding comes last"
            begin, end = layout.slices[stream]
            ids = group.candidate_ids[row, :count].tolist()
            moves = sorted(ends) if stream == 0 else []
            fills = [token for token in sampled_fills(layout, stream) if token not in moves]
            assert ids == [*range(begin, end), *moves, *fills]


def test_min_tokens_removes_only_what_ends_the_request() -> None:
    layout = StreamLayout.from_dict(published_layouts.bagpiper())
    heads, table = heads_of(layout)
    removed = {}
    masks = heads.text_masks()[:, 0]
    lost = masks[0] & ~masks[1]
    removed["text"] = (heads.text_range[0] + np.flatnonzero(lost)).tolist()
    group = heads.groups[0]
    audio = heads.audio_masks(group)
    state = 2 * layout.phase_index("audio")
    removed["audio"] = group.candidate_ids[audio[state] & ~audio[state + 1]].tolist()
    # The end of the text leads to audio, so it may come at any time.
    assert removed == {"text": [], "audio": [2, 3]}
    assert table.ends_request(1, 2)


def test_published_layouts_multiply_few_rows() -> None:
    opuslm = StreamLayout.from_dict(published_layouts.opuslm_7b())
    heads, _ = heads_of(opuslm)
    # The SSL units and eos make a group, the eight DAC streams and their pad another.
    assert [g.candidate_ids.shape for g in heads.groups] == [(1, 5001), (8, 1025)]
    assert heads.text_range == (5, 113800)
    bagpiper = StreamLayout.from_dict(published_layouts.bagpiper())
    heads, _ = heads_of(bagpiper)
    assert [g.candidate_ids.shape for g in heads.groups] == [(8, 1027)]
    assert heads.text_range == (2, 152192)


def test_a_model_without_text_has_no_text_candidates() -> None:
    data = published_layouts.opuslm_7b()
    data["text_slice"] = None
    data["phases"] = data["phases"][1:2]
    heads, table = heads_of(StreamLayout.from_dict(data))
    assert heads.text_range == (0, 0)
    assert heads.text_masks().shape == (2 * table.num_masks, 1, 0)
