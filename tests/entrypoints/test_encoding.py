# SPDX-License-Identifier: Apache-2.0
"""Waveforms as bytes: what is written piece by piece is the file, and other programs read it."""

from __future__ import annotations

import hashlib
import io
import shutil
import struct
import subprocess
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vllm.entrypoints.speech.encoding import (
    FORMATS,
    UNKNOWN_LENGTH,
    encode_whole,
    make_encoder,
    pcm16,
    wav_header,
    wav_sizes,
)


def tone(seconds: float, rate: int, frequency: float = 440.0) -> NDArray[np.float32]:
    times = np.arange(int(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * frequency * times)).astype(np.float32)


def in_pieces(
    name: str,
    samples: NDArray[np.float32],
    rate: int,
    cuts: Sequence[int],
    is_whole: bool = False,
) -> bytes:
    num_channels = 1 if samples.ndim == 1 else samples.shape[1]
    encoder = make_encoder(name, rate, is_whole, num_channels)
    pieces = np.split(samples, sorted(cuts))
    return b"".join([*(encoder.encode(piece) for piece in pieces), encoder.finish()])


def decoded_by_ffmpeg(data: bytes) -> tuple[NDArray[np.float32], int]:
    """Samples and rate."""
    container: Any = av.open(io.BytesIO(data))
    with container:
        resampler = av.AudioResampler("flt", "mono")
        frames = [f for frame in container.decode(audio=0) for f in resampler.resample(frame)]
        pieces = [np.empty(0, np.float32), *(frame.to_ndarray()[0] for frame in frames)]
        return np.concatenate(pieces), container.streams.audio[0].rate


def decoded(data: bytes) -> tuple[NDArray[np.float32], int]:
    """Samples and rate."""
    if data[:1] == b"\xff" and data[1] & 0xF6 == 0xF0:  # AAC, which libsndfile does not read
        return decoded_by_ffmpeg(data)
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        # libsndfile cannot seek to the end of a FLAC stream of unknown length, as read() wants.
        count = 5 * file.samplerate if file.frames > 2**40 else file.frames
        samples = np.zeros(count, np.float32)
        read = soundfile._snd.sf_readf_float(
            file._file, soundfile._ffi.cast("float*", samples.ctypes.data), count
        )
        return samples[:read], file.samplerate


def test_samples_are_rounded_and_clipped() -> None:
    samples = np.array([0, 1, -1, 2, -2, 0.5 / 32767, 1.6 / 32767], np.float32)
    assert np.frombuffer(pcm16(samples), "<i2").tolist() == [
        0, 32767, -32767, 32767, -32767, 0, 2,
    ]  # fmt: skip


@given(st.lists(st.integers(0, 4800), max_size=6), st.booleans())
def test_pieces_make_the_same_file(cuts: list[int], is_whole: bool) -> None:
    samples = tone(0.3, 16000)
    for name in FORMATS:
        assert in_pieces(name, samples, 16000, cuts, is_whole) == (
            encode_whole(name, samples, 16000) if is_whole else in_pieces(name, samples, 16000, [])
        )


def test_a_wav_file_says_its_length_and_a_wav_stream_says_that_it_does_not() -> None:
    samples = tone(0.25, 24000)
    whole = encode_whole("wav", samples, 24000)
    with wave.open(io.BytesIO(whole)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 24000)
        assert file.getnframes() == 6000
        assert file.readframes(6000) == pcm16(samples)
    stream = in_pieces("wav", samples, 24000, [100])
    assert stream[4:8] == stream[40:44] == UNKNOWN_LENGTH.to_bytes(4, "little")
    assert stream[44:] == whole[44:] and len(wav_header(24000)) == 44
    read, rate = decoded(stream)
    assert (len(read), rate) == (6000, 24000)


@pytest.mark.parametrize("num_samples", [0, 1, 6000])
def test_the_sizes_of_a_wav_header(num_samples: int) -> None:
    """RIFF counts what follows its own 8 bytes: 36 of header, and the samples."""
    samples = tone(1.0, 24000)[:num_samples]
    made = {
        "header": wav_header(24000, num_samples) + pcm16(samples),
        "in memory": encode_whole("wav", samples, 24000),
        "in pieces, kept": in_pieces("wav", samples, 24000, [num_samples // 3], is_whole=True),
    }
    streamed = bytearray(in_pieces("wav", samples, 24000, [num_samples // 3]))
    for offset, size in wav_sizes(len(streamed)):
        streamed[offset : offset + len(size)] = size
    made["completed"] = bytes(streamed)
    for how, data in made.items():
        riff, size = struct.unpack_from("<I", data, 4)[0], struct.unpack_from("<I", data, 40)[0]
        assert (riff, size) == (36 + 2 * num_samples, 2 * num_samples), how
        assert len(data) == 44 + 2 * num_samples, how
        assert data[44:] == pcm16(samples), how


@pytest.mark.parametrize("rate", [16000, 22050, 24000, 32000, 44100])
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "pcm"])
def test_every_format_keeps_the_sound_at_every_rate(name: str, rate: int) -> None:
    samples = tone(1.0, rate)
    read, read_rate = decoded(in_pieces(name, samples, rate, range(0, rate, rate // 7)))
    if name != "opus":
        assert read_rate == rate
    # MP3 begins and ends with whole frames of silence, of up to 72 ms.
    assert len(read) / read_rate == pytest.approx(1.0, abs=0.15)
    assert np.isfinite(read).all()
    spectrum = np.abs(np.fft.rfft(read))
    assert np.argmax(spectrum) * read_rate / len(read) == pytest.approx(440, abs=2)
    assert np.sqrt(np.mean(read[read_rate // 4 : read_rate // 2] ** 2)) == pytest.approx(
        0.5 / np.sqrt(2), rel=0.1
    )
    if name in ("wav", "flac"):
        np.testing.assert_array_equal(np.round(read * 32768), np.round(samples * 32767))


@pytest.mark.parametrize("num_samples", [2000, 24000, 23987])
def test_a_whole_file_knows_its_length(num_samples: int) -> None:
    samples = tone(1.0, 24000)[:num_samples]
    for name in ("wav", "flac", "mp3", "opus"):
        with soundfile.SoundFile(io.BytesIO(encode_whole(name, samples, 24000))) as file:
            assert (file.frames, file.samplerate) == (num_samples, 24000), name


def test_the_header_of_a_whole_flac_file() -> None:
    samples = tone(1.0, 24000)
    for is_whole in (True, False):
        data = in_pieces("flac", samples, 24000, [7, 9000], is_whole)
        # STREAMINFO: 36 bits of the number of samples, then the MD5 of the samples.
        total = int.from_bytes(data[21:26], "big") & (2**36 - 1)
        assert total == (24000 if is_whole else 0)
        expected = hashlib.md5(pcm16(samples)).digest() if is_whole else bytes(16)
        assert data[26:42] == expected


def test_the_header_of_a_whole_mp3_file() -> None:
    samples = tone(1.0, 24000)
    whole, stream = encode_whole("mp3", samples, 24000), in_pieces("mp3", samples, 24000, [])
    where = max(whole.find(b"Info"), whole.find(b"Xing"))
    assert 0 < where < 60
    flags, frames = struct.unpack_from(">II", whole, where + 4)
    # A frame has 576 samples at this rate; the encoder's delay is held by up to 3 more.
    assert flags & 1 and 24000 / 576 <= frames <= 24000 / 576 + 3
    assert b"Info" not in stream[:200] and b"Xing" not in stream[:200]


def test_an_aac_stream_is_frames_of_1024_samples() -> None:
    samples = tone(1.0, 24000)
    data = encode_whole("aac", samples, 24000)
    assert data == in_pieces("aac", samples, 24000, [])
    frames, at = 0, 0
    while at < len(data):
        assert data[at] == 0xFF and data[at + 1] & 0xF6 == 0xF0
        at += (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
        frames += 1
    assert at == len(data)
    # One frame before the sound, and one for its rest.
    assert frames == -(-24000 // 1024) + 1
    read, rate = decoded_by_ffmpeg(data)
    assert (len(read), rate) == (frames * 1024, 24000)
    assert np.sqrt(np.mean((read[1024 : 1024 + 24000] - samples) ** 2)) < 0.02


@pytest.mark.parametrize("name", FORMATS)
def test_sound_is_not_held_back(name: str) -> None:
    """What has been sent when a second has been spoken holds all but its last 0.2 seconds."""
    samples = tone(2.0, 16000)
    encoder = make_encoder(name, 16000)
    sent = b"".join(encoder.encode(piece) for piece in np.split(samples[:16000], 25))
    if name == "pcm":
        sent = wav_header(16000) + sent
    # FFmpeg's reader of FLAC wants the next frame's header to believe in this one's end.
    assert len(decoded_by_ffmpeg(sent)[0]) >= (0.6 if name == "flac" else 0.8) * (
        48000 if name == "opus" else 16000
    )


def test_rates_that_a_format_lacks_become_the_next_one() -> None:
    expected = {
        "opus": {11025: 12000, 16000: 16000, 22050: 24000, 32000: 48000, 96000: 48000},
        "mp3": {7000: 8000, 24000: 24000, 37000: 44100, 44101: 48000, 96000: 48000},
        "aac": {8000: 8000, 50000: 64000, 96000: 96000, 192_000: 96000},
        "flac": {7000: 7000, 192_000: 192_000},
    }
    for name, rates in expected.items():
        assert {rate: FORMATS[name].rate_for(rate) for rate in rates} == rates


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("is_whole", [False, True])
def test_no_samples_make_an_empty_file(name: str, is_whole: bool) -> None:
    data = in_pieces(name, np.empty(0, np.float32), 16000, [], is_whole)
    assert data.startswith({"wav": b"RIFF", "flac": b"fLaC", "opus": b"OggS"}.get(name, b""))
    assert len(data) == {"wav": 44, "pcm": 0, "aac": 0}.get(name, len(data))
    if name in ("wav", "flac"):
        assert len(decoded_by_ffmpeg(data)[0]) == 0


def stereo_tone(seconds: float, rate: int) -> NDArray[np.float32]:
    """Two notes, one in each channel, the right one half as loud."""
    return np.stack([tone(seconds, rate), 0.5 * tone(seconds, rate, 660.0)], axis=1)


def stereo_decoded_by_ffmpeg(data: bytes) -> tuple[NDArray[np.float32], int, int]:
    """Samples [num_samples, num_channels], rate, and the channels that the header announces."""
    container: Any = av.open(io.BytesIO(data))
    with container:
        stream = container.streams.audio[0]
        announced = stream.channels
        resampler = av.AudioResampler("fltp", "stereo")
        frames = [f for frame in container.decode(audio=0) for f in resampler.resample(frame)]
        pieces: list[Any] = [np.empty((2, 0), np.float32)]
        pieces += [frame.to_ndarray() for frame in frames]
        return np.concatenate(pieces, axis=1).T, stream.rate, announced


@pytest.mark.parametrize("rate", [16000, 32000, 44100])
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "pcm"])
@pytest.mark.parametrize("is_whole", [False, True])
def test_every_container_says_and_keeps_two_channels(name: str, rate: int, is_whole: bool) -> None:
    samples = stereo_tone(1.0, rate)
    data = in_pieces(name, samples, rate, range(0, rate, rate // 7), is_whole)
    read, read_rate, announced = stereo_decoded_by_ffmpeg(data)
    assert announced == 2
    assert len(read) / read_rate == pytest.approx(1.0, abs=0.15)
    for channel, frequency, level in ((0, 440, 0.5), (1, 660, 0.25)):
        heard = read[:, channel]
        spectrum = np.abs(np.fft.rfft(heard))
        assert np.argmax(spectrum) * read_rate / len(read) == pytest.approx(frequency, abs=2)
        middle = heard[read_rate // 4 : read_rate // 2]
        assert np.sqrt(np.mean(middle**2)) == pytest.approx(level / np.sqrt(2), rel=0.1)
    if name in ("wav", "flac"):
        np.testing.assert_array_equal(np.round(read * 32768), np.round(samples * 32767))


@given(st.lists(st.integers(0, 4800), max_size=6), st.booleans())
def test_pieces_of_stereo_make_the_same_file(cuts: list[int], is_whole: bool) -> None:
    samples = stereo_tone(0.3, 16000)
    for name in FORMATS:
        assert in_pieces(name, samples, 16000, cuts, is_whole) == (
            encode_whole(name, samples, 16000) if is_whole else in_pieces(name, samples, 16000, [])
        )


def test_sizes_and_lengths_of_stereo_are_those_of_a_channel() -> None:
    samples = stereo_tone(0.25, 32000)
    whole = encode_whole("wav", samples, 32000)
    with wave.open(io.BytesIO(whole)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 32000)
        assert file.getnframes() == 8000
        assert file.readframes(8000) == pcm16(samples)
    # Bytes per second and per sample of all channels, as RIFF has them.
    assert struct.unpack_from("<IH", whole, 28) == (128_000, 4)
    streamed = bytearray(in_pieces("wav", samples, 32000, [100]))
    for offset, size in wav_sizes(len(streamed)):
        streamed[offset : offset + len(size)] = size
    assert bytes(streamed) == whole
    for name in ("flac", "mp3", "opus"):
        with soundfile.SoundFile(io.BytesIO(encode_whole(name, samples, 32000))) as file:
            expected = 12000 if name == "opus" else 8000
            assert (file.frames, file.channels) == (expected, 2), name


def test_a_channel_s_sound_is_what_it_is_alone() -> None:
    """Where nothing is lost: the channels of a file are the files of the channels."""
    samples = stereo_tone(0.3, 22050)
    for name in ("pcm", "wav"):
        both = np.frombuffer(in_pieces(name, samples, 22050, [99])[-4 * len(samples) :], "<i2")
        for channel in (0, 1):
            alone = in_pieces(name, samples[:, channel], 22050, [99])[-2 * len(samples) :]
            assert both[channel::2].tobytes() == alone


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "opus", "aac"])
@pytest.mark.parametrize("is_whole", [False, True])
def test_ffmpeg_reads_the_files(name: str, is_whole: bool, tmp_path: Path) -> None:
    if shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None:
        pytest.skip("ffmpeg is not installed")
    path = tmp_path / f"stream.{'ogg' if name == 'opus' else name}"
    path.write_bytes(in_pieces(name, tone(2.0, 16000), 16000, range(0, 32000, 3000), is_whole))
    entries = ["-show_entries", "stream=codec_name,channels", "-of", "csv=p=0"]
    probe = subprocess.run(
        ["ffprobe", "-v", "error", *entries, str(path)], capture_output=True, check=True, text=True
    )
    codec = {"wav": "pcm_s16le"}.get(name, name)
    assert probe.stdout.strip() == f"{codec},1"
    raw = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", str(path), "-f", "s16le", "-ar", "16000", "-"],
        capture_output=True,
        check=True,
    )
    assert len(raw.stdout) / 2 / 16000 == pytest.approx(2.0, abs=0.15)
