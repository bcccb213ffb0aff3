# SPDX-License-Identifier: Apache-2.0
"""The executor in a crowd, against the whole audio of each request."""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.support.codecs import WindowSumCodec
from tests.support.generation import Request, make_request
from tests.support.random_layouts import example, layouts
from tests.support.spans import exporter
from vllm.unison.audio_decoder.chunk_schedule import ChunkSchedule
from vllm.unison.audio_decoder.codec_stream import HostCodecStream, HostCopy
from vllm.unison.audio_decoder.executor import TRACES_ENDPOINT, Admission, AudioExecutor
from vllm.unison.audio_decoder.frames import CodeReader, frames_of_segments
from vllm.unison.codecs.base import Codec
from vllm.unison.codecs.channels import ChannelCodec
from vllm.unison.messages.streams import AudioOutput
from vllm.unison.model.layout import PhaseKind, StreamLayout
from vllm.unison.model.phases import Finish, PhaseTable, replay


class SlowTransfer:
    """Is done when it has been asked so many times, or waited for."""

    def __init__(self, samples: torch.Tensor, patience: int) -> None:
        self._samples, self._patience = samples, patience

    def is_done(self) -> bool:
        self._patience -= 1
        return self._patience < 0

    def wait(self) -> NDArray[np.float32]:
        return self._samples.numpy()


class SlowCodecStream(HostCodecStream):
    """Stands for a device whose results arrive some steps later."""

    def __init__(self, source: random.Random) -> None:
        self._source = source

    def fetch(self, samples: torch.Tensor) -> HostCopy:
        return SlowTransfer(samples, self._source.choice([0, 0, 1, 3]))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with torch.inference_mode():
            yield


@dataclass
class Scheduled:
    """A request as a scheduler sees it.

    Attributes:
        request: all that it will emit.
        num_read: outputs that the scheduler has received.
        num_launched: outputs that have been launched since it entered, and before.
        pieces: of audio that have arrived.
        slot: that it holds, if it is in the batch.
        finished: whether the scheduler knows its end.
    """

    request: Request
    num_read: int = 0
    num_launched: int = 0
    pieces: list[AudioOutput] = field(default_factory=list)
    slot: int | None = None
    finished: bool = False
    error: str | None = None

    @property
    def num_emitted(self) -> int:
        return sum(len(piece.codes) for piece in self.pieces)


class Engine:
    """Drives an executor as the engine does: batches change, steps are launched, read in order.

    Args:
        depth: steps that may be launched and unread; 2 is asynchronous scheduling.
    """

    def __init__(
        self,
        layout: StreamLayout,
        executor: AudioExecutor,
        requests: list[Request],
        source: random.Random,
        depth: int,
        num_slots: int,
    ) -> None:
        self.table = PhaseTable(layout)
        self.layout, self.executor, self.source = layout, executor, source
        self.all = {f"r{i}": Scheduled(request) for i, request in enumerate(requests)}
        self.depth = depth
        # As in the worker: a slot rests for two steps after its release.
        self.free = list(range(num_slots))
        self.quarantined: deque[list[int]] = deque([[], []])
        self.in_flight: deque[Callable[[], None]] = deque()
        self.num_preempted = 0

    def run(self) -> None:
        while not all(one.finished for one in self.all.values()):
            launched = self._launch()
            # With nothing to launch, what is on its way is read.
            while len(self.in_flight) >= (self.depth if launched else 1):
                self.in_flight.popleft()()
        while self.in_flight:
            self.in_flight.popleft()()
        self.executor.change_batch(set(), [])

    def _launch(self) -> bool:
        self.free += self.quarantined.popleft()
        self.quarantined.append([])
        for one in self.all.values():
            leaves = one.finished or self.source.random() < 0.05
            if one.slot is not None and leaves:
                self.num_preempted += not one.finished
                self.quarantined[-1].append(one.slot)
                one.slot = None
        staying = {name for name, one in self.all.items() if one.slot is not None}
        admissions = []
        for name, one in self.all.items():
            # It returns when all that it has emitted is known.
            waits = one.finished or one.slot is not None or one.num_read != one.num_launched
            if waits or not self.free or self.source.random() < 0.5:
                continue
            one.slot = self.free.pop(0)
            tokens = one.request.tokens[: one.request.num_prompt + one.num_read]
            replayed = one.request.replayed(self.table, one.num_read)
            admissions.append(
                Admission(name, one.slot, tokens, one.request.num_prompt, replayed, one.num_emitted)
            )
        self.executor.change_batch(staying, admissions)
        batch = [(name, one) for name, one in self.all.items() if one.slot is not None]
        if not batch:
            return False
        count = len(batch)
        sampled = np.array([self.source.random() < 0.85 for _ in batch])
        tokens = np.full((count, self.layout.num_streams), -1, np.int32)
        state, start = np.zeros(count, np.int64), np.zeros(count, np.int64)
        finish = np.zeros(count, np.int64)
        slots = np.array([one.slot for _, one in batch])
        for row, (_, one) in enumerate(batch):
            step = min(one.num_launched, one.request.num_output - 1)
            if sampled[row]:
                # Past its end (which the scheduler may not know yet) a row only repeats it.
                tokens[row] = one.request.tokens[one.request.num_prompt + step]
                state[row] = one.request.state[step]
                start[row] = one.request.segment_start[step]
                finish[row] = one.request.finish[step]
                one.num_launched = min(one.num_launched + 1, one.request.num_output)
        self.executor.launch()

        def read() -> None:
            result = self.executor.step(slots, sampled, tokens, state, start, finish)
            names = {name for row, (name, _) in enumerate(batch) if sampled[row]}
            assert result.audio.keys() | result.errors.keys() <= names
            for row, (name, one) in enumerate(batch):
                if not sampled[row] or one.finished:
                    continue
                if name in result.audio:
                    one.pieces.append(result.audio[name])
                one.error = result.errors.get(name)
                one.num_read += 1
                one.finished = finish[row] != Finish.NOT_FINISHED or one.error is not None

        self.in_flight.append(read)
        return True


def expected_of(layout: StreamLayout, request: Request) -> tuple[NDArray[np.int32], bool]:
    """Codes of the whole request, and whether it had audio at all."""
    prompt = request.tokens[: request.num_prompt, 0].tolist()
    output = request.tokens[request.num_prompt :]
    ended = replay(PhaseTable(layout), prompt, output, request.limit, until_done=True)
    codes = CodeReader(layout).codes(frames_of_segments(layout, request.tokens, ended.segments))
    return codes, bool(ended.segments)


def codec_of(layout: StreamLayout, may_be_stereo: bool) -> Codec:
    size = max(b - a for a, b in (layout.slices[s] for s in layout.codebook_streams))
    count = len(layout.codebook_streams)
    if may_be_stereo and count % 2 == 0:
        return ChannelCodec(WindowSumCodec(count // 2, size), 2)
    return WindowSumCodec(count, size)


policies = st.builds(
    lambda first, more: ChunkSchedule(first, first + more), st.integers(1, 6), st.integers(0, 8)
)


@given(
    layout=layouts(kinds=(PhaseKind.AUDIO, PhaseKind.TEXT), any_stream=True),
    policy=policies,
    seed=st.integers(0, 2**32 - 1),
    depth=st.integers(1, 2),
)
def test_each_request_of_a_crowd_gets_all_its_audio_once(
    layout: StreamLayout, policy: ChunkSchedule, seed: int, depth: int
) -> None:
    source = random.Random(seed)
    table = PhaseTable(layout)
    codec = codec_of(layout, may_be_stereo=source.random() < 0.5)
    num_slots = 15
    codec_stream = SlowCodecStream(source) if source.random() < 0.5 else HostCodecStream()
    executor = AudioExecutor(codec, layout, table, policy, num_slots, codec_stream)
    requests = [make_request(layout, table, source) for _ in range(6)]
    requests = [request for request in requests if request.finish[-1]]
    engine = Engine(layout, executor, requests, source, depth, num_slots)
    engine.run()
    for one in engine.all.values():
        codes, has_audio = expected_of(layout, one.request)
        assert one.error is None
        assert bool(one.pieces) == has_audio
        if not has_audio:
            continue
        got = np.concatenate([piece.codes for piece in one.pieces])
        np.testing.assert_array_equal(got, codes)
        samples = np.concatenate([piece.samples for piece in one.pieces])
        np.testing.assert_array_equal(samples, codec.decode(torch.from_numpy(codes)).numpy())
        for piece in one.pieces:
            assert (piece.sample_rate, piece.num_channels) == (8000, codec.num_channels)
            assert len(piece.samples) == 3 * len(piece.codes)
            assert len(piece.codes) or not len(codes)
    assert executor.num_streams() == 0 and executor.num_bytes() == 0


LAYOUT = StreamLayout.from_dict(example())
TABLE = PhaseTable(LAYOUT)


def audio_request(num_frames: int, seed: int, layout: StreamLayout = LAYOUT) -> Request:
    """Text prompt, audio of so many frames, and its end."""
    source = np.random.default_rng(seed)
    prompt = np.array([[11, 0, 0], [5, 0, 0]], np.int32)
    frames = np.stack([source.integers(*layout.slices[k], num_frames) for k in range(3)], 1)
    steps = np.zeros((num_frames + 2, 3), np.int32)
    for stream, delay in enumerate(layout.delays):
        steps[delay : delay + num_frames, stream] = frames[:, stream]
    steps[num_frames, 0] = 2
    count = len(steps)
    state = np.full(count, 1, np.int64)
    table = PhaseTable(layout)
    flush = int(table.next_state[1, table.token_class[2]])
    state[num_frames:] = flush
    state[-1] = table.end_stop
    finish = table.finish[state]
    return Request(
        2,
        1000,
        np.concatenate([prompt, steps]),
        state,
        np.full(count, 2, np.int64),
        finish,
    )


class Driver:
    """One executor, synchronous steps, one slot per request."""

    def __init__(self, executor: AudioExecutor, requests: list[Request]) -> None:
        self.executor = executor
        self.requests = requests
        self.done = [0] * len(requests)
        self.kept: set[str] = set()

    def enter(self, name: int, num_emitted: int = 0) -> None:
        request = self.requests[name]
        admission = Admission(
            f"r{name}",
            name,
            request.tokens[: request.num_prompt + self.done[name]],
            request.num_prompt,
            request.replayed(TABLE, self.done[name]),
            num_emitted,
        )
        self.executor.change_batch(self.kept, [admission])
        self.kept.add(f"r{name}")

    def leave(self, name: int) -> None:
        self.kept.discard(f"r{name}")
        self.executor.change_batch(set(self.kept), [])

    def step(self, **changes: Any) -> Any:
        names = [n for n in range(len(self.requests)) if f"r{n}" in self.kept]
        rows = [min(self.done[n], self.requests[n].num_output - 1) for n in names]
        self.executor.launch()
        columns = {
            "tokens": np.array(
                [
                    self.requests[n].tokens[self.requests[n].num_prompt + r]
                    for n, r in zip(names, rows, strict=True)
                ],
                np.int32,
            ),
            "finish": np.array(
                [self.requests[n].finish[r] for n, r in zip(names, rows, strict=True)]
            ),
        }
        columns |= changes
        result = self.executor.step(
            np.array(names),
            np.ones(len(names), np.bool_),
            columns["tokens"],
            np.array([self.requests[n].state[r] for n, r in zip(names, rows, strict=True)]),
            np.full(len(names), 2),
            columns["finish"],
        )
        for name in names:
            self.done[name] += 1
        return result


def executor_with(codec: WindowSumCodec, layout: StreamLayout = LAYOUT, chunk: int = 4) -> Any:
    policy = ChunkSchedule(2, chunk)
    return AudioExecutor(codec, layout, PhaseTable(layout), policy, 8)


def test_chunks_come_as_soon_as_their_context_is_there() -> None:
    codec = WindowSumCodec(3, 4)
    driver = Driver(executor_with(codec), [audio_request(13, seed=0)])
    driver.enter(0)
    arrived = {}
    for step in range(15):
        audio = driver.step().audio
        if audio:
            arrived[step] = len(audio["r0"].codes)
    # Frame f is complete at step f + 2, and the last of a chunk needs one more frame.
    assert arrived == {4: 2, 8: 4, 12: 4, 14: 3}
    # Windows of exactly the frames that are needed: 2 before, 1 after.
    assert codec.calls == [(1, 3), (1, 7), (1, 7), (1, 5)]


def test_requests_in_step_share_calls() -> None:
    codec = WindowSumCodec(3, 4)
    driver = Driver(executor_with(codec), [audio_request(13, seed=n) for n in range(4)])
    for name in range(4):
        driver.enter(name)
    for _ in range(15):
        driver.step()
    assert codec.calls == [(4, 3), (4, 7), (4, 7), (4, 5)]


def test_memory_is_bounded_and_given_back() -> None:
    codec = WindowSumCodec(3, 4)
    executor = executor_with(codec)
    driver = Driver(executor, [audio_request(300, seed=n) for n in range(3)])
    for name in range(3):
        driver.enter(name)
    held = []
    for _ in range(290):
        driver.step()
        held.append(executor.num_bytes())
    # At most a chunk, its context and what arrives until the next, as 64-bit integers.
    assert 0 < max(held) <= 3 * (2 + 4 + 4 + 1) * 3 * 8
    assert executor.num_streams() == 3
    driver.leave(1)
    assert executor.num_streams() == 2 and not executor.holds("r1")
    for _ in range(12):
        driver.step()
    # Ended, which the batch shows a step later.
    assert executor.num_streams() == 0 and executor.num_bytes() == 0
    assert executor.holds("r0")
    driver.leave(0)
    assert not executor.holds("r0")


def test_a_failing_codec_fails_the_request_that_it_fails_on() -> None:
    codec = WindowSumCodec(3, 4)
    requests = [audio_request(20, seed=n) for n in range(3)]
    codes = [expected_of(LAYOUT, request)[0] for request in requests]
    plain = codec._decode

    def broken(batch: torch.Tensor) -> torch.Tensor:
        for row in batch:
            if len(row) == 7 and np.array_equal(row.numpy(), codes[1][:7]):
                raise RuntimeError("out of tune")
        return plain(batch)

    codec._decode = broken  # type: ignore[method-assign, assignment]
    executor = executor_with(codec)
    driver = Driver(executor, requests)
    for name in range(3):
        driver.enter(name)
    errors: dict[str, tuple[int, str]] = {}
    pieces: dict[str, list[NDArray[np.int32]]] = {f"r{n}": [] for n in range(3)}
    for step in range(22):
        result = driver.step()
        for name, error in result.errors.items():
            errors[name] = (step, error)
        for name, audio in result.audio.items():
            pieces[name].append(audio.codes)
    # What it had before stays right, and nothing comes after.
    assert errors == {"r1": (8, "the codec failed: out of tune")}
    assert [len(piece) for piece in pieces["r1"]] == [2]
    for name in (0, 2):
        np.testing.assert_array_equal(np.concatenate(pieces[f"r{name}"]), codes[name])


def test_a_request_without_usable_logits_gives_no_more_audio() -> None:
    codec = WindowSumCodec(3, 4)
    executor = executor_with(codec)
    driver = Driver(executor, [audio_request(20, seed=0), audio_request(20, seed=1)])
    driver.enter(0)
    driver.enter(1)
    for _ in range(4):
        driver.step()
    tokens = np.array([[-5, -5, -5], driver.requests[1].tokens[2 + 4]], np.int32)
    finish = np.array([Finish.ERROR, Finish.NOT_FINISHED])
    result = driver.step(tokens=tokens, finish=finish)
    # The worker says why.
    assert list(result.audio) == ["r1"] and not result.errors
    assert executor.num_streams() == 1 and executor.holds("r0")


# Of stream 1: its pad, another stream's code, the end token.
@pytest.mark.parametrize("token", [0, 28, 2])
@pytest.mark.parametrize("rule", ["fail", "drop", 3])
def test_codes_outside_the_codebook_never_reach_the_codec(token: int, rule: str | int) -> None:
    layout = StreamLayout.from_dict(example(outside_codebook=rule))
    codec = WindowSumCodec(3, 4)
    executor = executor_with(codec, layout)
    broken, whole = audio_request(20, seed=0, layout=layout), audio_request(20, seed=1)
    broken.tokens[2 + 9 + 1, 1] = token  # stream 1 of frame 9
    driver = Driver(executor, [broken, whole])
    driver.enter(0)
    driver.enter(1)
    pieces: dict[str, list[AudioOutput]] = {"r0": [], "r1": []}
    errors: dict[str, tuple[int, str]] = {}
    for step in range(22):
        result = driver.step()
        for name, audio in result.audio.items():
            pieces[name].append(audio)
        errors |= {name: (step, error) for name, error in result.errors.items()}
    assert min(codec.seen) >= 0 and max(codec.seen) <= 3
    np.testing.assert_array_equal(
        np.concatenate([piece.codes for piece in pieces["r1"]]), expected_of(layout, whole)[0]
    )
    got = np.concatenate([piece.codes for piece in pieces["r0"]])
    if rule == "fail":
        reason = f"frame 9 has code {token - 24} in codebook 1, which must be in [0, 3]"
        assert errors == {"r0": (11, f"the codec failed: {reason}")}
        assert len(got) == 6
        return
    assert not errors
    expected = expected_of(layout, broken)[0]
    assert len(expected) == (19 if rule == "drop" else 20)
    np.testing.assert_array_equal(got, expected)
    samples = np.concatenate([piece.samples for piece in pieces["r0"]])
    np.testing.assert_array_equal(samples, codec.decode(torch.from_numpy(expected)).numpy())


def test_a_broken_frame_is_told_again_when_the_scheduler_missed_it() -> None:
    """A preempted request's last output may be dropped, with the error in it."""
    request = audio_request(20, seed=0)
    request.tokens[2 + 3, 1] = 0  # stream 1 of frame 2
    driver = Driver(executor_with(WindowSumCodec(3, 4)), [request])
    driver.done[0] = 7
    driver.enter(0)
    reason = "the codec failed: frame 2 has code -24 in codebook 1, which must be in [0, 3]"
    assert driver.step().errors == {"r0": reason}
    assert driver.executor.num_streams() == 0


def test_a_codec_that_cannot_be_decoded_in_parts_is_refused() -> None:
    codec = WindowSumCodec(3, 4)
    codec.decoder_context = lambda: None  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(ValueError, match="cannot be decoded in parts"):
        executor_with(codec)


def test_calls_of_the_codec_are_spans_where_traces_are_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = exporter()
    request = audio_request(6, 1)
    for endpoint, is_traced in (("", False), ("http://localhost:1", True)):
        monkeypatch.setenv(TRACES_ENDPOINT, endpoint)
        driver = Driver(executor_with(WindowSumCodec(3, 3)), [request])
        driver.enter(0)
        for _ in range(request.num_output):
            driver.step()
        names = {span.name for span in kept.get_finished_spans()}
        assert names == ({"speech.codec"} if is_traced else set())
