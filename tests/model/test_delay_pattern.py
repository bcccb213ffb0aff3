# SPDX-License-Identifier: Apache-2.0
"""The delay pattern, cell by cell."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vllm.unison.model.delay_pattern import deinterleave, interleave, num_steps


@st.composite
def patterns(draw: st.DrawFn) -> tuple[NDArray[np.int32], list[int], list[int]]:
    """Frames, delays and fills."""
    delays = draw(st.lists(st.integers(0, 9), min_size=1, max_size=6))
    count = draw(st.integers(0, 12))
    ids = draw(
        st.lists(
            st.integers(0, 2**31 - 1), min_size=count * len(delays), max_size=count * len(delays)
        )
    )
    fill = draw(st.lists(st.integers(-9, -1), min_size=len(delays), max_size=len(delays)))
    return np.array(ids, np.int32).reshape(count, len(delays)), delays, fill


@given(patterns())
def test_deinterleave_undoes_interleave(
    pattern: tuple[NDArray[np.int32], list[int], list[int]],
) -> None:
    frames, delays, fill = pattern
    steps = interleave(frames, delays, fill)
    back = deinterleave(steps, delays, len(frames))
    assert back.dtype == np.int32
    np.testing.assert_array_equal(back, frames)


@given(patterns())
def test_every_cell_is_where_the_pattern_says(
    pattern: tuple[NDArray[np.int32], list[int], list[int]],
) -> None:
    frames, delays, fill = pattern
    steps = interleave(frames, delays, fill)
    assert steps.dtype == np.int32
    count = len(frames)
    assert steps.shape == ((count + max(delays) if count else 0), len(delays))
    assert len(steps) == num_steps(count, delays)
    for step in range(len(steps)):
        for stream, delay in enumerate(delays):
            frame = step - delay
            expected = frames[frame, stream] if 0 <= frame < count else fill[stream]
            assert steps[step, stream] == expected


@given(patterns(), st.data())
def test_fewer_frames_are_the_first_ones(
    pattern: tuple[NDArray[np.int32], list[int], list[int]], data: st.DataObject
) -> None:
    frames, delays, fill = pattern
    count = data.draw(st.integers(0, len(frames)))
    steps = interleave(frames, delays, fill)
    np.testing.assert_array_equal(deinterleave(steps, delays, count), frames[:count])


def test_a_known_pattern() -> None:
    frames = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    np.testing.assert_array_equal(
        interleave(frames, [0, 2, 1], [7, 8, 9]),
        [[1, 8, 9], [4, 8, 3], [7, 2, 6], [7, 5, 9]],
    )


@pytest.mark.parametrize(
    ("frames", "delays", "fill", "message"),
    [
        (np.zeros((2, 2)), [], [], "delays must be a non-empty list"),
        (np.zeros((2, 2)), [0, -1], [0, 0], "delays must be a non-empty list of integers >= 0"),
        (np.zeros((2, 3)), [0, 1], [0, 0], r"frames must have shape \[n, 2\], not \[2, 3\]"),
        (np.zeros(2), [0, 1], [0, 0], r"frames must have shape \[n, 2\], not \[2\]"),
        (np.zeros((2, 2)), [0, 1], [0], "fill must have 2 entries, one per stream, not 1"),
    ],
)
def test_interleave_refuses(
    frames: NDArray[np.int32], delays: list[int], fill: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        interleave(frames, delays, fill)


@pytest.mark.parametrize(
    ("steps", "delays", "count", "message"),
    [
        (np.zeros((5, 2)), [0, 3], 3, r"num_frames must be in \[0, 2\] for 5 steps, not 3"),
        (np.zeros((5, 2)), [0, 3], -1, r"num_frames must be in \[0, 2\] for 5 steps, not -1"),
        (np.zeros((2, 2)), [0, 3], 1, r"num_frames must be in \[0, 0\] for 2 steps, not 1"),
        (np.zeros((5, 3)), [0, 3], 1, r"steps must have shape \[n, 2\], not \[5, 3\]"),
        (np.zeros((5, 1)), [-1], 1, "delays must be a non-empty list of integers >= 0"),
    ],
)
def test_deinterleave_refuses(
    steps: NDArray[np.int32], delays: list[int], count: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        deinterleave(steps, delays, count)
