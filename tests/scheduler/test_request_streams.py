# SPDX-License-Identifier: Apache-2.0
"""The scheduler's side of a request's streams."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.unison.messages.streams import AudioOutput, StreamInputs, StreamOutput, StreamUpdate
from vllm.unison.model.phases import Finish
from vllm.unison.scheduler.request_streams import (
    RequestStreams,
    block_keys,
    enter_worker,
    make_request_streams,
    make_stream_update,
    stop_of_streams,
)
from vllm.v1.request import RequestStatus


def emitted(*rows: list[int], finish: Finish = Finish.NOT_FINISHED, **more: Any) -> StreamOutput:
    count = len(rows)
    return StreamOutput(
        np.array(rows, np.int32),
        finish=np.full(count, finish, np.int64),
        state=np.arange(count, dtype=np.int64),
        segment_start=np.arange(10, 10 + count, dtype=np.int64),
        **more,
    )


def test_what_is_emitted_overwrites_the_tail_and_then_appends() -> None:
    prompt = np.array([[1, 2], [3, 4], [5, -1], [-1, -1]], np.int32)
    streams = RequestStreams(prompt, num_prompt_tokens=2)
    np.testing.assert_array_equal(streams.ids(), prompt)
    streams.append("r", emitted([0, 0, 0], [9, 5, 7]), row=1)
    np.testing.assert_array_equal(streams.ids(), [[1, 2], [3, 4], [5, 7], [-1, -1]])
    for token in range(3):
        streams.append("r", emitted([9, token, token]), row=0)
    np.testing.assert_array_equal(streams.ids(), [[1, 2], [3, 4], [5, 7], [0, 0], [1, 1], [2, 2]])
    np.testing.assert_array_equal(prompt[2:], [[5, -1], [-1, -1]])


@pytest.mark.parametrize("num_streams", [1, 2, 9])
def test_streams_grow_without_loss(num_streams: int) -> None:
    source = random.Random(num_streams)
    expected = [[source.randrange(99) for _ in range(num_streams - 1)] for _ in range(3)]
    streams = RequestStreams(np.array(expected, np.int32).reshape(3, -1), 3)
    for step in range(500):
        row = [source.randrange(99) for _ in range(num_streams)]
        streams.append("r", emitted(row), row=0)
        expected.append(row[1:])
        if step % 50 == 0:
            ids = streams.ids()
            assert ids.dtype == np.int32
            np.testing.assert_array_equal(ids, np.array(expected).reshape(len(expected), -1))
            start = source.randrange(len(expected))
            end = source.randint(start, len(expected))
            key = np.array(expected[start:end], np.int32).tobytes()
            assert streams.block_key(start, end) == key


def test_ids_are_a_copy() -> None:
    streams = RequestStreams(np.array([[1]], np.int32), 1)
    streams.ids()[0] = 5
    assert streams.ids().tolist() == [[1]]


def test_a_block_is_hashed_only_when_its_streams_are_known() -> None:
    streams = RequestStreams(np.array([[1], [2], [3]], np.int32), num_prompt_tokens=2)
    assert streams.block_key(0, 2) == np.array([1, 2], np.int32).tobytes()
    with pytest.raises(RuntimeError, match=r"block \[1, 3\) is hashed before its streams"):
        streams.block_key(1, 3)
    streams.append("r", emitted([9, 7]), row=0)
    assert streams.block_key(1, 3) == np.array([2, 7], np.int32).tobytes()


def test_blocks_that_differ_in_one_stream_differ_in_their_key() -> None:
    ids = np.arange(12, dtype=np.int32).reshape(4, 3)
    other = ids.copy()
    other[2, 1] += 1
    keys = [RequestStreams(array, 4).block_key(0, 4) for array in (ids, other)]
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("prompt", "length"),
    [(np.zeros((2, 1), np.int32), 3), (np.zeros(3, np.int32), 3)],
)
def test_a_prompt_that_lacks_streams_is_refused(prompt: np.ndarray, length: int) -> None:
    with pytest.raises(ValueError, match=r"auxiliary_token_ids must have shape .* n >= 3"):
        RequestStreams(prompt, length)


def test_a_step_without_streams_is_an_error() -> None:
    streams = RequestStreams(np.zeros((1, 1), np.int32), 1)
    with pytest.raises(RuntimeError, match="returned no streams"):
        streams.append("r", None, row=0)


def test_streams_of_a_new_request() -> None:
    assert make_request_streams(None, [1, 2]) is None
    inputs = StreamInputs(np.array([[4], [5]], np.int32), (1, 2), num_flush_steps=7)
    streams = make_request_streams(inputs, [1])
    assert streams is not None
    assert streams.max_steps(10) == 17
    assert streams.ids().tolist() == [[4], [5]]
    with pytest.raises(RuntimeError):
        streams.block_key(0, 2)


def request_with(
    streams: RequestStreams | None, output_kind: RequestOutputKind = RequestOutputKind.FINAL_ONLY
) -> Any:
    return SimpleNamespace(
        request_id="r",
        streams=streams,
        status=RequestStatus.RUNNING,
        stop_reason=None,
        sampling_params=SamplingParams(output_kind=output_kind),
    )


def test_only_requests_with_streams_add_to_a_block_s_hash() -> None:
    assert block_keys(request_with(None), 0, 1) == []
    streams = RequestStreams(np.array([[4]], np.int32), 1)
    assert block_keys(request_with(streams), 0, 1) == [np.array([4], np.int32).tobytes()]


@pytest.mark.parametrize(
    ("finish", "status"),
    [
        (Finish.NOT_FINISHED, RequestStatus.RUNNING),
        (Finish.STOP, RequestStatus.FINISHED_STOPPED),
        (Finish.LENGTH, RequestStatus.FINISHED_LENGTH_CAPPED),
        (Finish.ERROR, RequestStatus.FINISHED_ERROR),
    ],
)
def test_the_worker_says_when_a_request_ends(finish: Finish, status: RequestStatus) -> None:
    streams = RequestStreams(np.zeros((1, 1), np.int32), 1)
    request = request_with(streams)
    assert not stop_of_streams(request)
    audio = AudioOutput(np.zeros(4, np.float32), 8, np.zeros((1, 1), np.int32))
    errors = {"r": "broken"} if finish is Finish.ERROR else {}
    streams.append(
        "r", emitted([1, 2], finish=finish, audio={"r": audio, "s": audio}, errors=errors), row=0
    )
    assert streams.audio is audio and audio.seconds == 0.5
    assert stop_of_streams(request) is (finish is not Finish.NOT_FINISHED)
    assert request.status is status
    assert request.stop_reason == (errors.get("r"))


def test_audio_and_errors_of_others_are_not_taken() -> None:
    streams = RequestStreams(np.zeros((1, 1), np.int32), 1)
    audio = AudioOutput(np.zeros(4, np.float32), 8, np.zeros((1, 1), np.int32))
    streams.append("r", emitted([1, 2], audio={"s": audio}, errors={"s": "broken"}), row=0)
    assert streams.audio is None and streams.error is None


def scheduled(new: list[str], with_all_tokens: list[str]) -> Any:
    """A scheduler's output in which some running requests come with all their tokens."""
    return SimpleNamespace(
        scheduled_new_reqs=[SimpleNamespace(req_id=request_id) for request_id in new],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[*with_all_tokens, "running"],
            all_token_ids={request_id: [1] for request_id in with_all_tokens},
        ),
    )


def test_streams_go_to_the_worker_with_requests_that_enter_its_batch() -> None:
    requests: dict[str, Any] = {
        name: request_with(RequestStreams(np.array([[index]], np.int32), 1))
        for index, name in enumerate(["new", "resumed", "running"])
    }
    requests["text"] = request_with(None)
    update = make_stream_update(scheduled(["new", "text"], ["resumed"]), requests)
    assert update is not None
    sent = {name: ids.tolist() for name, ids in update.auxiliary_ids.items()}
    assert sent == {"new": [[0]], "resumed": [[1]]}
    assert make_stream_update(scheduled([], []), requests) is None
    assert make_stream_update(scheduled(["text"], []), requests) is None


@pytest.mark.parametrize("kind", [RequestOutputKind.DELTA, RequestOutputKind.CUMULATIVE])
def test_the_worker_learns_how_much_audio_has_arrived(kind: RequestOutputKind) -> None:
    streams = RequestStreams(np.zeros((1, 1), np.int32), 1)
    requests = {"r": request_with(streams, kind)}
    for frames in (3, 0, 5):
        audio = AudioOutput(
            np.zeros(10 * frames, np.float32), 16000, np.zeros((frames, 2), np.int32)
        )
        streams.append("r", emitted([1, 2], audio={"r": audio}), 0)
        streams.append("r", emitted([1, 2], audio={"another": audio}), 0)
    update = make_stream_update(scheduled([], ["r"]), requests)
    assert update is not None and update.audio_frames == {"r": 8}
    # Audio at the end is not streamed, and guidance lanes have none.
    requests["r"].sampling_params.output_kind = RequestOutputKind.FINAL_ONLY
    update = make_stream_update(scheduled(["r"], []), requests)
    assert update is not None and update.audio_frames == {}
    requests["r"].sampling_params.output_kind = kind
    update = StreamUpdate()
    enter_worker(update, "lane", requests["r"], has_audio=False)
    assert list(update.auxiliary_ids) == ["lane"] and update.audio_frames == {}


def test_the_newest_state_is_kept() -> None:
    streams = RequestStreams(np.zeros((2, 2), np.int32), 2, state=3, segment_start=1)
    assert (streams.state, streams.segment_start) == (3, 1)
    streams.append("a", emitted([1, 2, 3], [4, 5, 6]), 1)
    assert (streams.state, streams.segment_start) == (1, 11)
    np.testing.assert_array_equal(streams.last_ids(1), [[5, 6]])
