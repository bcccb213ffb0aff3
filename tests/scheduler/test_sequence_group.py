# SPDX-License-Identifier: Apache-2.0
"""The lanes of a group: what they hold from their join to their leave."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from vllm.sampling_params import SamplingParams
from vllm.unison.messages.guidance_inputs import GuidanceInputs, LaneInputs
from vllm.unison.messages.streams import StreamInputs
from vllm.unison.scheduler.sequence_group import EntryKind, LaneState, SequenceGroup
from vllm.v1.request import Request, RequestStatus

PADS = [7, 8, 9]


def make_main(prompt: list[list[int]], num_streams: int) -> Request:
    """A request whose prompt has one row of all streams' ids per step."""
    streams = None
    if num_streams > 1:
        auxiliary = np.array([row[1:] for row in prompt], np.int32)
        streams = StreamInputs(auxiliary, None, 2, 0, len(prompt))
    return Request(
        request_id="r",
        prompt_token_ids=[row[0] for row in prompt],
        sampling_params=SamplingParams(max_tokens=50),
        pooling_params=None,
        client_index=3,
        priority=2,
        cache_salt="salt",
        streams=streams,
    )


def emit(main: Request, rows: list[list[int]]) -> None:
    """Record what steps emitted, as the scheduler does."""
    for row in rows:
        if main.streams is not None:
            main.streams.append_ids(np.array([row[1:]], np.int32))
        main.append_output_token_ids(row[0])


def held(request: Request) -> list[list[int]]:
    """All ids of a request, one row per step."""
    tokens = list(request.all_token_ids)
    if request.streams is None:
        return [[token] for token in tokens]
    ids = request.streams.ids()
    assert len(ids) == len(tokens)
    return [[token, *row] for token, row in zip(tokens, ids.tolist(), strict=True)]


@pytest.mark.parametrize("num_streams", [1, 3])
@pytest.mark.parametrize("num_lanes", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_lanes_follow_what_is_emitted(num_streams: int, num_lanes: int, seed: int) -> None:
    source = random.Random(seed)

    def rows(count: int) -> list[list[int]]:
        return [[source.randrange(10, 99) for _ in range(num_streams)] for _ in range(count)]

    prompt = rows(4)
    main = make_main(prompt, num_streams)
    starts = [rows(source.randint(1, 6)) for _ in range(num_lanes)]
    weights = [source.uniform(-2, 2) for _ in starts]
    lanes = [
        LaneInputs(
            weight,
            [row[0] for row in start],
            np.array([row[1:] for row in start], np.int32) if num_streams > 1 else None,
        )
        for weight, start in zip(weights, starts, strict=True)
    ]
    group = SequenceGroup(main, GuidanceInputs(0.5, lanes, pad_token_ids=PADS), num_streams, 2)
    main.group = group
    assert group.active_lanes == [group.conditional_lane] and group.max_guidance_lanes == num_lanes

    before, since, after = rows(3), rows(2), rows(4)
    emit(main, before + since)
    main.status = RequestStatus.RUNNING
    group.join(len(prompt) + len(before))
    assert [lane.weight for lane in group.active_lanes] == [0.5, *weights]
    assert [lane.lane_id for lane in group.active_lanes] == [
        "r",
        *(f"r#lane{i + 1}" for i in range(num_lanes)),
    ]
    for row, start in zip(group.guidance_lanes, starts, strict=True):
        assert held(row.request) == start + since
        assert row.request.num_computed_tokens == 0 and not row.is_on_worker
        assert row.request.status == RequestStatus.RUNNING
        for name in ("client_index", "priority", "cache_salt", "arrival_time"):
            assert getattr(row.request, name) == getattr(main, name)

    emit(main, after)
    for row, start in zip(group.guidance_lanes, starts, strict=True):
        assert held(row.request) == start + since + after
    assert held(main) == prompt + before + since + after

    gone = group.leave()
    assert len(gone) == num_lanes and group.active_lanes == [group.conditional_lane]
    emit(main, rows(1))
    assert held(gone[0].request) == starts[0] + since + after


@pytest.mark.parametrize("num_streams", [1, 3])
def test_a_lane_of_pads_is_as_long_as_what_came_before(num_streams: int) -> None:
    main = make_main([[1] * num_streams] * 5, num_streams)
    inputs = GuidanceInputs(3.0, [LaneInputs(-2.0, None)], pad_token_ids=PADS[:num_streams])
    group = main.group = SequenceGroup(main, inputs, num_streams)
    emit(main, [[20] * num_streams, [21] * num_streams])
    group.join(6)
    pads = [PADS[:num_streams]] * 6
    assert held(group.guidance_lanes[0].request) == [*pads, [21] * num_streams]


def test_a_prompt_of_one_stream_has_pads_in_the_others() -> None:
    main = make_main([[1, 2, 3]], 3)
    inputs = GuidanceInputs(3.0, [LaneInputs(-2.0, [5, 6])], pad_token_ids=PADS)
    group = main.group = SequenceGroup(main, inputs, 3)
    group.join(1)
    assert held(group.guidance_lanes[0].request) == [[5, 8, 9], [6, 8, 9]]


def test_lanes_are_hashed_by_all_their_streams() -> None:
    """Lanes with the same stream 0 and other auxiliary ids do not share blocks."""
    from tests.scheduler.driver import BLOCK_SIZE, _block_hasher

    hashes = []
    for second in (5, 6):
        main = make_main([[1, 2, 3]], 3)
        main._block_hasher = _block_hasher()
        auxiliary = np.full((BLOCK_SIZE, 2), 4, np.int32)
        auxiliary[3, 1] = second
        lane = LaneInputs(-2.0, [5] * BLOCK_SIZE, auxiliary)
        group = SequenceGroup(main, GuidanceInputs(3.0, [lane], pad_token_ids=PADS), 3)
        group.join(1)
        hashes.append(group.guidance_lanes[0].request.block_hashes)
    assert len(hashes[0]) == len(hashes[1]) == 1
    assert hashes[0] != hashes[1]


NEVER_SEEN: dict[str, Any] = {
    "is_on_worker": False,
    "num_blocks_on_worker": None,
    "num_tokens_on_worker": 0,
}
CURRENT: dict[str, Any] = {
    "is_on_worker": True,
    "num_blocks_on_worker": [1],
    "num_tokens_on_worker": 3,
}


@pytest.mark.parametrize(
    ("state", "in_last_step", "kind"),
    [
        (NEVER_SEEN, False, EntryKind.NEW),
        (NEVER_SEEN | {"num_blocks_on_worker": [1]}, True, EntryKind.NEW),
        (CURRENT, True, EntryKind.CONTINUED),
        # With a token in flight it has one more than is known.
        (CURRENT | {"num_tokens_on_worker": 4}, True, EntryKind.CONTINUED),
        (CURRENT, False, EntryKind.RESUMED),
        (CURRENT | {"num_blocks_on_worker": None}, True, EntryKind.RESUMED),
        (CURRENT | {"num_tokens_on_worker": 2}, True, EntryKind.RESUMED),
    ],
)
def test_what_the_worker_is_told_of_a_lane(
    state: dict[str, Any], in_last_step: bool, kind: EntryKind
) -> None:
    lane = LaneState(make_main([[1], [2], [3]], 1), 1.0, **state)
    assert lane.entry_kind({"r"} if in_last_step else {"other"}) is kind
    if in_last_step:
        # On the V2 runner a lane that is known has a row.
        assert lane.entry_kind(None) is kind


@pytest.mark.parametrize("samples", [False, True])
@pytest.mark.parametrize("kind", list(EntryKind))
def test_what_the_worker_has_after_an_entry(kind: EntryKind, samples: bool) -> None:
    lane = LaneState(make_main([[1], [2], [3]], 1), 1.0, num_cached_tokens=2, **CURRENT)
    lane.num_prompt_on_worker, lane.num_tokens_on_worker = 1, 4
    lane.note_entry(kind, [2], samples)
    assert lane.is_on_worker and lane.num_blocks_on_worker == [2] and lane.num_cached_tokens == 0
    assert lane.num_prompt_on_worker == (3 if kind is EntryKind.NEW else 1)
    assert lane.num_tokens_on_worker == (4 if kind is EntryKind.CONTINUED else 3) + samples
    lane.note_freed()
    assert lane.entry_kind({"r"}) is EntryKind.RESUMED


@pytest.mark.parametrize("num_streams", [1, 3])
def test_what_is_in_flight_before_a_stretch_is_not_the_lanes(num_streams: int) -> None:
    """With asynchronous scheduling lanes join before the last token ahead of theirs is known."""
    steps = [step[:num_streams] for step in ([1, 2, 3], [4, 5, 6], [10, 11, 12], [20, 21, 22])]
    main = make_main(steps[:2], num_streams)
    inputs = GuidanceInputs(3.0, [LaneInputs(-2.0, [50])], pad_token_ids=PADS[:num_streams])
    group = main.group = SequenceGroup(main, inputs, num_streams)
    group.join(3)
    emit(main, steps[2:3])
    (lane,) = group.guidance_lanes
    assert held(lane.request) == [[50, *PADS[1:num_streams]]]
    emit(main, steps[3:])
    assert held(lane.request) == [[50, *PADS[1:num_streams]], steps[3]]
