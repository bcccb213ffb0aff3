# SPDX-License-Identifier: Apache-2.0
"""From the tokens of a finished request to codes and waveform, on examples made by hand."""

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.random_layouts import example, layouts
from vllm.unison.audio_decoder.codec_stream import HostCodecStream
from vllm.unison.audio_decoder.frames import (
    CodeError,
    CodeReader,
    frames_of_segments,
    segments_so_far,
)
from vllm.unison.audio_decoder.whole_request import OfflineDecoder
from vllm.unison.codecs.base import Codec
from vllm.unison.model.delay_pattern import interleave
from vllm.unison.model.layout import LayoutError, StreamLayout
from vllm.unison.model.phases import PhaseTable, Replay, Segment, StateKind

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


@pytest.mark.parametrize(
    ("num_prompt", "num_known", "last"),
    [
        # The segment begins at 6, and its last stream is two steps behind.
        (6, 6, Segment(6, 0, 0)),
        (6, 8, Segment(6, 0, 0)),
        (6, 9, Segment(6, 1, 0)),
        (6, 15, Segment(6, 7, 0)),
        (4, 15, Segment(6, 7, 0)),
        (9, 15, Segment(6, 7, 3)),
        (14, 15, Segment(6, 7, 7)),
    ],
)
def test_the_segment_that_goes_on_has_its_whole_frames(
    num_prompt: int, num_known: int, last: Segment
) -> None:
    table = PhaseTable(LAYOUT)
    in_audio, in_text = (
        next(state for state in range(len(table.kind)) if table.kind[state] == kind)
        for kind in (StateKind.AUDIO, StateKind.TEXT)
    )
    going_on = Replay(in_audio, 6, 0, (FIRST,))
    assert segments_so_far(table, going_on, num_prompt, num_known) == (FIRST, last)
    over = Replay(in_text, 6, 0, (FIRST, SECOND))
    assert segments_so_far(table, over, num_prompt, num_known) == (FIRST, SECOND)


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
    np.testing.assert_array_equal(CodeReader(LAYOUT).codes(frames), [[0, 1, 2], [3, 0, 3]])
    layout = StreamLayout.from_dict(example(codebook_streams=[2, 1]))
    codes = CodeReader(layout).codes(frames)
    np.testing.assert_array_equal(codes, [[2, 1], [3, 0]])
    assert codes.flags.c_contiguous and codes.dtype == np.int32
    assert CodeReader(layout).codes(frames[:0]).shape == (0, 2)


def test_a_finished_request_becomes_a_waveform() -> None:
    audio = OfflineDecoder(ExampleCodec(), LAYOUT).decode(TOKENS, (FIRST, SECOND))
    assert audio.sample_rate == 8000
    assert audio.codes.tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    assert audio.samples.dtype == np.float32
    assert audio.samples.tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 2, 2, 2, 0]
    assert audio.seconds == 12 / 8000


def test_the_codec_runs_where_codecs_run() -> None:
    """On a GPU: on a stream of its own, in float32 that is not rounded."""
    running: list[bool] = []

    class Watched(HostCodecStream):
        @contextlib.contextmanager
        def running(self) -> Iterator[None]:
            with super().running():
                running.append(True)
                yield
            running.pop()

    class Watching(ExampleCodec):
        def _decode(self, codes: torch.Tensor) -> torch.Tensor:
            assert running
            return super()._decode(codes)

    audio = OfflineDecoder(Watching(), LAYOUT, Watched()).decode(TOKENS, (FIRST, SECOND))
    assert len(audio.samples) == 12 and not running


def test_a_request_without_frames_has_no_samples() -> None:
    audio = OfflineDecoder(ExampleCodec(), LAYOUT).decode(TOKENS, (Segment(1, 0, 0),))
    assert audio.codes.shape == (0, 3)
    assert audio.samples.shape == (0,)


def test_tokens_that_are_no_codes_are_not_decoded() -> None:
    message = r"frame 1 has code -18 in codebook 0, which must be in \[0, 3\]"
    with pytest.raises(CodeError, match=message):
        OfflineDecoder(ExampleCodec(), LAYOUT).decode(TOKENS, (Segment(6, 2, 0),))


# Stream 1 has ids 24 to 27. Each is outside: its pad, the end token, other streams' codes, text.
OUTSIDE = [0, 2, 20, 28, 39]


@pytest.mark.parametrize("token", OUTSIDE)
@pytest.mark.parametrize("stream", [0, 1, 2])
def test_a_code_outside_its_codebook_fails_drops_or_is_replaced(token: int, stream: int) -> None:
    frames = np.array([[20, 25, 30], [23, 24, 31], [21, 27, 28]], np.int32)
    begin, end = LAYOUT.slices[stream]
    if begin <= token < end:
        token = 3
    frames[1, stream] = token
    whole = [[0, 1, 2], [3, 0, 3], [1, 3, 0]]

    with pytest.raises(CodeError, match=rf"frame 1 has code {token - begin} in codebook {stream}"):
        CodeReader(StreamLayout.from_dict(example(outside_codebook="fail"))).codes(frames)

    dropping = CodeReader(StreamLayout.from_dict(example(outside_codebook="drop")))
    assert dropping.codes(frames).tolist() == [whole[0], whole[2]]

    for code in (0, 3):
        replaced = [list(row) for row in whole]
        replaced[1][stream] = code
        replacing = CodeReader(StreamLayout.from_dict(example(outside_codebook=code)))
        assert replacing.codes(frames).tolist() == replaced


@pytest.mark.parametrize("rule", ["error", -1, 4, True, None, 1.0])
def test_rules_that_a_layout_cannot_have(rule: object) -> None:
    message = r"outside_codebook must be 'fail', 'drop' or a code in \[0, 3\]"
    with pytest.raises(LayoutError, match=message):
        StreamLayout.from_dict(example(outside_codebook=rule))


def test_the_rule_is_written_and_read_back() -> None:
    for rule in ("fail", "drop", 2):
        layout = StreamLayout.from_dict(example(outside_codebook=rule))
        assert layout.outside_codebook == rule
        assert StreamLayout.from_dict(layout.to_dict()) == layout
    assert LAYOUT.outside_codebook == "fail"


@pytest.mark.parametrize("rule", ["drop", 1])
def test_a_request_of_broken_frames_is_decoded_by_the_rule(rule: str | int) -> None:
    layout = StreamLayout.from_dict(example(outside_codebook=rule))
    audio = OfflineDecoder(ExampleCodec(), layout).decode(TOKENS, (Segment(6, 2, 0),))
    expected = [[2, 2, 2]] if rule == "drop" else [[2, 2, 2], [1, 1, 1]]
    assert audio.codes.tolist() == expected
    assert len(audio.samples) == 4 * len(expected)
