# SPDX-License-Identifier: Apache-2.0
"""Sizes of chunks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm.unison.audio_decoder.chunk_schedule import ChunkSchedule

policies = st.builds(
    lambda first, more, growth: ChunkSchedule(first, first + more, growth),
    st.integers(1, 20),
    st.integers(0, 60),
    st.floats(1.01, 5),
)


@given(policy=policies, stop=st.integers(0, 400))
def test_chunks_grow_from_the_first_size_to_the_last(policy: ChunkSchedule, stop: int) -> None:
    boundaries = policy.boundaries(0, stop)
    sizes = [b - a for a, b in itertools.pairwise([0, *boundaries])]
    assert sizes[:1] in ([], [policy.first_chunk_frames])
    for before, size in itertools.pairwise(sizes):
        assert size == policy.chunk_frames or before < size < policy.chunk_frames
        assert size <= before * policy.growth + 1
    assert policy.boundary_after(stop) > stop
    assert policy.boundary_after(stop) - (boundaries[-1] if boundaries else 0) <= max(
        policy.chunk_frames, policy.first_chunk_frames
    )


@given(policy=policies, start=st.integers(0, 300), stop=st.integers(0, 300))
def test_boundaries_do_not_depend_on_where_one_starts(
    policy: ChunkSchedule, start: int, stop: int
) -> None:
    every = policy.boundaries(0, 700)
    assert policy.boundaries(start, stop) == [b for b in every if start < b <= stop]
    assert policy.boundary_after(start) == next(b for b in every if b > start)


def test_the_default() -> None:
    policy = ChunkSchedule.from_config({"unrelated": 1})
    assert policy == ChunkSchedule.from_config(None) == ChunkSchedule()
    assert policy.boundaries(0, 150) == [4, 12, 28, 60, 92, 124]


def test_constant_sizes() -> None:
    policy = ChunkSchedule.from_config(
        {"acoustic_decoding": {"first_chunk_frames": 5, "chunk_frames": 5}}
    )
    assert policy.boundaries(0, 20) == [5, 10, 15, 20]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"first_chunk_frames": 0}, "first_chunk_frames must be an integer of at least 1, not 0"),
        ({"first_chunk_frames": 2.0}, "first_chunk_frames must be an integer of at least 1"),
        ({"first_chunk_frames": True}, "first_chunk_frames must be an integer of at least 1"),
        ({"first_chunk_frames": 9, "chunk_frames": 8}, "chunk_frames must be an integer of at l"),
        ({"chunk_frames": "8"}, "chunk_frames must be an integer of at least 4, not '8'"),
        ({"growth": 1}, "growth must be a finite number above 1, not 1"),
        ({"growth": float("inf")}, "growth must be a finite number above 1, not inf"),
        ({"growth": float("nan")}, "growth must be a finite number above 1, not nan"),
        ({"growth": True}, "growth must be a finite number above 1, not True"),
        ({"size": 1}, "must be an object with keys among"),
        ([1], "must be an object with keys among"),
    ],
)
def test_bad_fields_are_named(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match="acoustic_decoding") as refused:
        ChunkSchedule.from_config({"acoustic_decoding": fields})
    assert message in str(refused.value)
