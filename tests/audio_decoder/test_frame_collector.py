# SPDX-License-Identifier: Apache-2.0
"""Frames step by step, against those of the whole request."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.support.generation import Request, make_request
from tests.support.random_layouts import layouts
from vllm.unison.audio_decoder.frame_collector import FrameCollector
from vllm.unison.audio_decoder.frames import (
    CodeReader,
    frames_of_segments,
    last_position,
    segments_so_far,
)
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.phases import PhaseTable, replay

CAPACITY = 7


def whole_codes(layout: StreamLayout, table: PhaseTable, request: Request) -> list[list[int]]:
    """Codes of the finished request, as a whole."""
    prompt = request.tokens[: request.num_prompt, 0].tolist()
    output = request.tokens[request.num_prompt :]
    ended = replay(table, prompt, output, request.limit, until_done=True)
    frames = frames_of_segments(layout, request.tokens, ended.segments)
    return CodeReader(layout).codes(frames).tolist()


@given(layout=layouts(any_stream=True), seed=st.integers(0, 2**32 - 1))
def test_frames_of_a_crowd_are_those_of_the_whole_requests(layout: StreamLayout, seed: int) -> None:
    """Requests start, rest and re-enter another slot at any step; not all rows sample."""
    source = random.Random(seed)
    table = PhaseTable(layout)
    requests = [make_request(layout, table, source) for _ in range(5)]
    collector = FrameCollector(layout, table, 12, CAPACITY)
    slot_of: dict[int, int] = {}
    done = [0] * len(requests)
    taken: list[list[list[int]]] = [[] for _ in requests]
    while any(count < request.num_output for count, request in zip(done, requests, strict=True)):
        for name, request in enumerate(requests):
            if name in slot_of and source.random() < 0.1:
                collector.release(slot_of.pop(name))
            if name in slot_of or done[name] == request.num_output or source.random() < 0.4:
                continue
            slot = source.choice([s for s in range(12) if s not in slot_of.values()])
            known = request.tokens[: request.num_prompt + done[name]]
            replayed = request.replayed(table, done[name])
            segments = segments_so_far(table, replayed, request.num_prompt, len(known))
            codes = CodeReader(layout).codes(frames_of_segments(layout, known, segments))
            collector.admit(
                slot,
                known,
                request.num_prompt,
                replayed.state,
                replayed.segment_start,
                last_position(table, replayed.state, replayed.flush_end),
                len(codes),
                bool(segments),
            )
            slot_of[name] = slot
            # What it held and nobody had taken is had from its tokens.
            taken[name] = codes.tolist()
        # One row holds nobody.
        empty = next(s for s in range(12) if s not in slot_of.values())
        rows = [(name, slot) for name, slot in slot_of.items()] + [(-1, empty)]
        source.shuffle(rows)
        slots = np.array([slot for _, slot in rows])
        sampled = np.array([name >= 0 and source.random() < 0.8 for name, _ in rows])
        tokens = np.full((len(rows), layout.num_streams), -1, np.int32)
        state = np.zeros(len(rows), np.int64)
        start = np.zeros(len(rows), np.int64)
        for row, (name, _) in enumerate(rows):
            if sampled[row]:
                request, step = requests[name], done[name]
                tokens[row] = request.tokens[request.num_prompt + step]
                state[row], start[row] = request.state[step], request.segment_start[step]
                done[name] += 1
        collected = collector.update(slots, sampled, tokens, state, start)
        assert collected.rows.tolist() == np.flatnonzero(sampled).tolist()
        assert len(collected.failed) == 0
        for name, slot in list(slot_of.items()):
            waiting = collector.num_frames[slot] - collector.num_taken[slot]
            finished = done[name] == requests[name].num_output
            if waiting == CAPACITY or finished or source.random() < 0.3:
                taken[name] += collector.take(slot).tolist()
            if finished:
                collector.release(slot_of.pop(name))
    for name, request in enumerate(requests):
        assert taken[name] == whole_codes(layout, table, request)
