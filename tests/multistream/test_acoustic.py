# SPDX-License-Identifier: Apache-2.0
"""From the tokens of a finished request to codes and waveform, on examples made by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.multistream.random_layouts import example, layouts
from vllm.multistream.codecs.base import Codec
from vllm.multistream.delay import interleave
from vllm.multistream.layout import StreamLayout
from vllm.multistream.phases import Segment
from vllm.multistream.worker.acoustic import (
    AcousticDecoder,
    codes_of_frames,
    frames_of_segments,
)

LAYOUT = StreamLayout.from_dict(example())

# Two segments, at 1 and at 6; delays are 0, 1 and 2.
TOKENS = np.array(
    [
        [5, 0, 0],
        [20, 0, 0],
        [21, 24, 0],
        [6, 25, 28],
        [0, 0, 29],
        [5, 0, 0],
        [22, 0, 0],
        [2, 26, 0],
        [0, 0, 30],
        [39, 39, 39],
    ],
    np.int32,
)
FIRST, SECOND = Segment(1, 2, 0), Segment(6, 1, 0)


class ExampleCodec(Codec):
    """Four samples per frame: the codes of the frame, then a zero."""

    def __init__(self) -> None:
        super().__init__(
            sample_rate=8000,
            samples_per_frame=4,
            num_codebooks=3,
            codebook_size=4,
            device=torch.device("cpu"),
        )

    def _encode(self, samples: torch.Tensor) -> torch.Tensor:
        raise AssertionError("nothing is encoded")

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(codes.float(), (0, 1)).flatten(1)


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        ((FIRST,), [[20, 24, 28], [21, 25, 29]]),
        ((SECOND,), [[22, 26, 30]]),
        ((FIRST, SECOND), [[20, 24, 28], [21, 25, 29], [22, 26, 30]]),
        ((Segment(1, 2, 1), SECOND), [[21, 25, 29], [22, 26, 30]]),
        ((Segment(1, 2, 2),), []),
        ((Segment(1, 0, 0),), []),
        ((), []),
    ],
)
def test_frames_of_segments(segments: tuple[Segment, ...], expected: list[list[int]]) -> None:
    frames = frames_of_segments(LAYOUT, TOKENS, segments)
    assert frames.shape == (len(expected), 3)
    assert frames.dtype == np.int32
    assert frames.tolist() == expected


@given(layouts(), st.data())
def test_frames_of_random_segments(layout: StreamLayout, data: st.DataObject) -> None:
    expected, pieces, segments, start = [], [], [], 0
    for _ in range(data.draw(st.integers(0, 3))):
        count = data.draw(st.integers(0, 5))
        skipped = data.draw(st.integers(0, count))
        shape = (count, layout.num_streams)
        frames = start + np.arange(count * layout.num_streams, dtype=np.int32).reshape(shape)
        between = np.full((data.draw(st.integers(0, 2)), layout.num_streams), -3, np.int32)
        pieces += [between, interleave(frames, layout.delays, layout.pad_token_ids)]
        segments.append(Segment(start + len(between), count, skipped))
        start += sum(map(len, pieces[-2:]))
        expected += frames[skipped:].tolist()
    pieces.append(np.full((2, layout.num_streams), -3, np.int32))
    found = frames_of_segments(layout, np.concatenate(pieces), tuple(segments))
    assert found.tolist() == expected


def test_codes_are_counted_from_the_slice_s_begin_in_the_codec_s_order() -> None:
    frames = np.array([[20, 25, 30], [23, 24, 31]], np.int32)
    np.testing.assert_array_equal(codes_of_frames(LAYOUT, frames), [[0, 1, 2], [3, 0, 3]])
    layout = StreamLayout.from_dict(example(codebook_streams=[2, 1]))
    codes = codes_of_frames(layout, frames)
    np.testing.assert_array_equal(codes, [[2, 1], [3, 0]])
    assert codes.flags.c_contiguous and codes.dtype == np.int32
    assert codes_of_frames(layout, frames[:0]).shape == (0, 2)


def test_a_finished_request_becomes_a_waveform() -> None:
    audio = AcousticDecoder(ExampleCodec(), LAYOUT).decode(TOKENS, (FIRST, SECOND))
    assert audio.sample_rate == 8000
    assert audio.codes.tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    assert audio.samples.dtype == np.float32
    assert audio.samples.tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 2, 2, 2, 0]
    assert audio.seconds == 12 / 8000


def test_a_request_without_frames_has_no_samples() -> None:
    audio = AcousticDecoder(ExampleCodec(), LAYOUT).decode(TOKENS, (Segment(1, 0, 0),))
    assert audio.codes.shape == (0, 3)
    assert audio.samples.shape == (0,)


def test_tokens_that_are_no_codes_are_not_decoded() -> None:
    with pytest.raises(ValueError, match=r"codes must be in \[0, 3\]"):
        AcousticDecoder(ExampleCodec(), LAYOUT).decode(TOKENS, (Segment(6, 2, 0),))
