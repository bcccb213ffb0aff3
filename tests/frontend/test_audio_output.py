# SPDX-License-Identifier: Apache-2.0
"""What outputs hold of a request's audio, and what is measured of its times."""

from __future__ import annotations

import asyncio
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.unison.frontend.audio_output import AudioAssembly, join_audio
from vllm.unison.messages.streams import AudioOutput
from vllm.unison.metrics.audio_timing import AudioStats, AudioTimes
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.engine.output_processor import RequestOutputCollector
from vllm.v1.metrics.stats import IterationStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

RATE = 100


CHANNELS: tuple[int, ...] = ()


@pytest.fixture(params=["mono", "stereo"], autouse=True)
def _channels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test of this file, for audio of both kinds."""
    here = sys.modules[__name__]
    monkeypatch.setattr(here, "CHANNELS", () if request.param == "mono" else (2,))
    monkeypatch.setattr(here, "PIECES", pieces())


def piece(num_frames: int, seed: int = 0) -> AudioOutput:
    random = np.random.default_rng(seed)
    return AudioOutput(
        random.standard_normal((20 * num_frames, *CHANNELS)).astype(np.float32),
        RATE,
        random.integers(0, 9, (num_frames, 3), np.int32),
    )


def core_output(audio: AudioOutput | None, finished: bool = False) -> EngineCoreOutput:
    reason = FinishReason.STOP if finished else None
    return EngineCoreOutput("r", [1], finish_reason=reason, audio=audio)


def pieces() -> list[AudioOutput | None]:
    return [None, piece(2, 1), None, None, piece(3, 2), piece(4, 3), None, piece(9, 4), None]


PIECES = pieces()


def fed(kind: RequestOutputKind) -> list[AudioOutput | None]:
    assembly = AudioAssembly(kind)
    taken = []
    for index, audio in enumerate(PIECES):
        finished = index == len(PIECES) - 1
        assembly.add(core_output(audio, finished), None, None)
        taken.append(assembly.take(finished))
    return taken


def assert_equal(audio: AudioOutput | None, *expected: AudioOutput | None) -> None:
    given = [one for one in expected if one is not None]
    assert audio is not None and audio.sample_rate == RATE
    assert audio.num_channels == (2 if CHANNELS else 1)
    assert audio.seconds == pytest.approx(20 * len(audio.codes) / RATE)
    np.testing.assert_array_equal(audio.samples, np.concatenate([p.samples for p in given]))
    np.testing.assert_array_equal(audio.codes, np.concatenate([p.codes for p in given]))


def test_deltas_are_what_is_new() -> None:
    taken = fed(RequestOutputKind.DELTA)
    assert [audio is None for audio in taken] == [p is None for p in PIECES]
    assert_equal(join_audio(join_audio(taken[1], taken[4]), taken[5]), *PIECES[:6])


def test_cumulative_is_all_so_far_and_stays_as_it_was() -> None:
    taken = fed(RequestOutputKind.CUMULATIVE)
    assert taken[0] is None
    for index in range(1, len(PIECES)):
        assert_equal(taken[index], *PIECES[: index + 1])
    with pytest.raises(ValueError, match="read-only"):
        taken[-1].samples[0] = 1  # type: ignore[union-attr]


def test_cumulative_does_not_copy_all_of_it_each_time() -> None:
    assembly = AudioAssembly(RequestOutputKind.CUMULATIVE)
    places = set()
    for _ in range(1000):
        assembly.add(core_output(piece(1)), None, None)
        audio = assembly.take(False)
        assert audio is not None
        places.add(audio.samples.__array_interface__["data"][0])
    assert len(places) < 20


def test_final_only_is_all_at_the_end() -> None:
    taken = fed(RequestOutputKind.FINAL_ONLY)
    assert taken[:-1] == [None] * (len(PIECES) - 1)
    assert_equal(taken[-1], *PIECES)


@pytest.mark.parametrize("kind", list(RequestOutputKind))
def test_audio_without_samples_is_not_no_audio(kind: RequestOutputKind) -> None:
    assembly = AudioAssembly(kind)
    assert assembly.take(True) is None
    assembly.add(core_output(piece(0), True), None, None)
    assert_equal(assembly.take(True), piece(0))


def test_joining_nothing() -> None:
    assert join_audio(None, None) is None
    one = piece(2)
    assert join_audio(one, None) is one and join_audio(None, one) is one


def request_output(audio: AudioOutput | None, index: int = 0) -> RequestOutput:
    completion = CompletionOutput(index, "", [1], None, None, audio=audio)
    return RequestOutput("r", None, [1], None, [completion], False)


def test_deltas_that_nobody_fetched_are_joined() -> None:
    async def collect(kind: RequestOutputKind) -> RequestOutput:
        collector = RequestOutputCollector(kind, "r")
        for index, audio in enumerate(PIECES):
            collector.put(request_output(audio))
            collector.put(request_output(audio if index == 4 else None, index=1))
        output = await collector.get()
        assert isinstance(output, RequestOutput)
        return output

    first, second = asyncio.run(collect(RequestOutputKind.DELTA)).outputs
    assert_equal(first.audio, *PIECES)
    assert_equal(second.audio, PIECES[4])


def test_samples_cross_a_process_boundary_as_they_lie_in_memory() -> None:
    audio = piece(400)
    sent = MsgpackEncoder().encode(EngineCoreOutputs(outputs=[core_output(audio)]))
    buffers = [memoryview(buffer) for buffer in sent]  # type: ignore[arg-type]
    # Two arrays beside the message, which are the arrays' own memory.
    assert len(buffers) == 3
    assert [buffer.nbytes for buffer in buffers[1:]] == [audio.samples.nbytes, audio.codes.nbytes]
    assert len(bytes(buffers[0])) < 200
    audio.samples.flat[7] = 0.25
    assert np.frombuffer(buffers[1], np.float32)[7] == 0.25
    received = MsgpackDecoder(EngineCoreOutputs).decode(buffers)
    arrived = received.outputs[0].audio
    assert_equal(arrived, audio)
    assert np.shares_memory(arrived.samples, audio.samples)


def test_times_of_a_request_with_an_underrun() -> None:
    times, stats = AudioTimes(), AudioStats()
    times.observe(stats, 10.5, 10.0, 0.0, False)
    times.observe(stats, 11.0, 10.0, 0.4, False)  # plays until 11.4
    times.observe(stats, 11.3, 10.0, 0.4, False)  # plays until 11.8
    times.observe(stats, 11.5, 10.0, 0.0, False)
    times.observe(stats, 12.0, 10.0, 0.5, False)  # 0.2 too late, plays until 12.5
    times.observe(stats, 12.4, 10.0, 0.5, False)
    times.observe(stats, 12.9, 10.0, 0.0, True)
    assert stats.to_first == [1.0]
    assert stats.gaps == pytest.approx([0.3, 0.7, 0.4])
    assert stats.underruns == 1
    assert stats.seconds == pytest.approx(1.8)
    assert stats.real_time_factors == pytest.approx([2.4 / 1.8])


def test_a_request_without_audio_is_not_counted() -> None:
    times, stats = AudioTimes(), AudioStats()
    times.observe(stats, 10.5, 10.0, 0.0, True)
    assert stats == AudioStats()


def test_the_assembly_measures_from_arrival() -> None:
    assembly, request = AudioAssembly(RequestOutputKind.DELTA), SimpleNamespace(arrival_time=5.0)
    seen = []
    for now, audio, finished in ((6.0, piece(5), False), (6.5, None, False), (8.0, piece(5), True)):
        iteration = IterationStats()
        iteration.iteration_timestamp = now
        assembly.add(core_output(audio, finished), iteration, request)  # type: ignore[arg-type]
        seen.append(iteration.audio)
    assert seen[0] == AudioStats(seconds=1.0, to_first=[1.0])
    assert seen[1] == AudioStats()
    # Played from 6 to 7, so the second piece was a second late.
    assert seen[2] == AudioStats(1.0, [], [2.0], [1.5], 1)
