# SPDX-License-Identifier: Apache-2.0
"""Audio files of clients: what is read, and what is refused before it costs anything."""

from __future__ import annotations

import asyncio
import base64
import io
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from vllm.entrypoints.speech.encoding import encode_whole, make_encoder, wav_header
from vllm.entrypoints.speech.media import (
    AudioLimits,
    MediaDecoder,
    decode_base64,
    decode_file,
)
from vllm.multistream.refusal import RequestRefused

LIMITS = AudioLimits(file_bytes=2**20, seconds=10.0, decoded_bytes=2**22)


def tone(seconds: float, rate: int) -> np.ndarray:
    return (0.5 * np.sin(np.arange(int(seconds * rate)) / 20)).astype(np.float32)


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "opus"])
def test_what_was_encoded_is_read(name: str) -> None:
    clip = decode_file(encode_whole(name, tone(1.5, 24000), 24000), LIMITS, "file")
    assert (clip.samples.dtype, clip.sample_rate) == (np.float32, 24000)
    assert clip.samples.shape == (1, 36000) and clip.seconds == 1.5
    if name in ("wav", "flac"):
        np.testing.assert_allclose(clip.samples[0], tone(1.5, 24000), atol=1e-4)


def test_channels_are_kept() -> None:
    buffer = io.BytesIO()
    stereo = np.stack([tone(0.1, 16000), -tone(0.1, 16000)], axis=1)
    soundfile.write(buffer, stereo, 16000, format="WAV", subtype="FLOAT")
    clip = decode_file(buffer.getvalue(), LIMITS, "file")
    np.testing.assert_array_equal(clip.samples, stereo.T)


def test_a_stream_of_unknown_length_is_read() -> None:
    for name in ("wav", "flac"):
        encoder = make_encoder(name, 16000)
        data = encoder.encode(tone(5.0, 16000)) + encoder.finish()
        assert decode_file(data, LIMITS, "file").samples.shape == (1, 80000)


def with_field(offset: int, value: bytes) -> bytes:
    data = bytearray(encode_whole("wav", tone(0.1, 16000), 16000))
    data[offset : offset + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "must be a complete audio file"),
        (b"RIFF", "must be a complete audio file"),
        (bytes(100), "must be a complete audio file"),
        (wav_header(16000, 0), "must have at least one sample"),
        (encode_whole("wav", tone(11, 16000), 16000), r"must be at most 10 seconds long"),
        (encode_whole("wav", tone(0.1, 2000), 2000), r"sample rate in \[4000, 192000\] Hz"),
        (with_field(24, struct.pack("<I", 2**31 - 1)), r"sample rate in"),
        (with_field(22, struct.pack("<H", 17) + b""), "channels|complete audio file"),
        (bytes(2**20 + 1), r"must have at most 1048576 bytes, not 1048577"),
    ],
)
def test_what_is_no_sound_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(RequestRefused, match=message) as caught:
        decode_file(data, LIMITS, "file")
    assert caught.value.parameter == "file"


def test_samples_that_are_not_finite_are_refused() -> None:
    buffer = io.BytesIO()
    samples = np.array([0.0, np.nan], np.float32)
    soundfile.write(buffer, samples, 16000, format="WAV", subtype="FLOAT")
    with pytest.raises(RequestRefused, match="file must have finite samples"):
        decode_file(buffer.getvalue(), LIMITS, "file")


def test_too_many_channels_for_the_memory_are_refused() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((160_000, 8), np.int16), 16000, format="FLAC")
    with pytest.raises(RequestRefused, match="decode to at most 4194304 bytes"):
        decode_file(buffer.getvalue(), LIMITS, "file")


def test_a_bomb_costs_no_more_than_the_limit() -> None:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 8000, 1, "PCM_16", format="FLAC") as file:
        for _ in range(50):
            file.write(np.zeros(800_000, np.int16))
    bomb = buffer.getvalue()
    assert len(bomb) < 2**18
    tracemalloc.start()
    with pytest.raises(RequestRefused, match="at most 10 seconds"):
        decode_file(bomb, LIMITS, "file")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**21


@given(
    st.binary(max_size=400), st.sampled_from(["wav", "flac", "opus", "mp3"]), st.integers(0, 400)
)
def test_damaged_files_are_read_or_refused(noise: bytes, name: str, where: int) -> None:
    data = encode_whole(name, tone(0.1, 16000), 16000)
    damaged = data[:where] + noise + data[where + len(noise) :]
    try:
        clip = decode_file(damaged, LIMITS, "file")
    except RequestRefused:
        return
    assert clip.samples.size and np.isfinite(clip.samples).all()
    assert clip.seconds <= LIMITS.seconds


def test_base64_is_strict_and_measured_before_it_is_decoded() -> None:
    assert decode_base64(base64.b64encode(b"abc").decode(), LIMITS, "audio") == b"abc"
    for wrong in ("ab\ncd", "ab=c", "é", "abc"):
        with pytest.raises(RequestRefused, match="audio must be base64"):
            decode_base64(wrong, LIMITS, "audio")
    with pytest.raises(RequestRefused, match="audio must have at most 1048576 bytes"):
        decode_base64("A" * 2**21, LIMITS, "audio")


def test_limits_are_upstream_s_and_the_context_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MAX_AUDIO_CLIP_FILESIZE_MB", "3")
    monkeypatch.setenv("VLLM_MAX_AUDIO_DECODE_DURATION_S", "20")
    assert AudioLimits.from_environment(30.0).seconds == 20.0
    limits = AudioLimits.from_environment(5.0)
    assert (limits.seconds, limits.file_bytes) == (5.0, 3 * 2**20)


def test_files_are_decoded_beside_the_event_loop() -> None:
    data = encode_whole("flac", tone(1.0, 16000), 16000)

    async def run() -> list[float]:
        decoder = MediaDecoder(LIMITS)
        clips = await asyncio.gather(*(decoder.decode(data, "file") for _ in range(5)))
        return [clip.seconds for clip in clips]

    assert asyncio.run(run()) == [1.0] * 5
