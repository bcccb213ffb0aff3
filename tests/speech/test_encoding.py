# SPDX-License-Identifier: Apache-2.0
"""Waveforms as bytes: what is written piece by piece is the file, and other programs read it."""

from __future__ import annotations

import io
import shutil
import subprocess
import wave
from collections.abc import Sequence
from pathlib import Path

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
)
from vllm.multistream.codecs.resample import StreamResampler, resample


def tone(seconds: float, rate: int, frequency: float = 440.0) -> NDArray[np.float32]:
    times = np.arange(int(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * frequency * times)).astype(np.float32)


def in_pieces(name: str, samples: NDArray[np.float32], rate: int, cuts: Sequence[int]) -> bytes:
    encoder = make_encoder(name, rate)
    pieces = np.split(samples, sorted(cuts))
    return b"".join([*(encoder.encode(piece) for piece in pieces), encoder.finish()])


def decoded(data: bytes) -> tuple[NDArray[np.float32], int]:
    """Samples and rate."""
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


@given(st.lists(st.integers(0, 4800), max_size=6))
def test_pieces_make_the_same_file(cuts: list[int]) -> None:
    samples = tone(0.3, 16000)
    for name in ("wav", "pcm", "flac", "mp3"):
        assert in_pieces(name, samples, 16000, cuts) == in_pieces(name, samples, 16000, [])
    # An Ogg stream has a random serial number.
    pieces, whole = in_pieces("opus", samples, 16000, cuts), in_pieces("opus", samples, 16000, [])
    np.testing.assert_array_equal(decoded(pieces)[0], decoded(whole)[0])


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


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "opus"])
def test_a_whole_file_knows_its_length(name: str) -> None:
    data = encode_whole(name, tone(1.0, 24000), 24000)
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        assert file.frames / file.samplerate == pytest.approx(1.0, abs=0.01)
        assert file.samplerate == 24000


@pytest.mark.parametrize("name", FORMATS)
def test_no_samples_make_an_empty_file(name: str) -> None:
    data = in_pieces(name, np.empty(0, np.float32), 16000, [])
    # libsndfile writes the header of a FLAC file with its first samples.
    begins = {"wav": b"RIFF", "opus": b"OggS"}
    assert data.startswith(begins.get(name, b""))
    assert len(data) == {"wav": 44, "pcm": 0, "flac": 0}.get(name, len(data))


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "opus"])
def test_ffprobe_knows_the_streams(name: str, tmp_path: Path) -> None:
    if shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None:
        pytest.skip("ffmpeg is not installed")
    path = tmp_path / f"stream.{'ogg' if name == 'opus' else name}"
    path.write_bytes(in_pieces(name, tone(2.0, 16000), 16000, range(0, 32000, 3000)))
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


@given(
    st.sampled_from([(16000, 48000), (22050, 24000), (44100, 48000), (32000, 16000), (8000, 8000)]),
    st.integers(0, 3000),
    st.lists(st.integers(0, 3000), max_size=5),
    st.integers(0, 2**32 - 1),
)
def test_resampling_in_pieces_is_resampling(
    rates: tuple[int, int], length: int, cuts: list[int], seed: int
) -> None:
    samples = np.random.default_rng(seed).standard_normal(length).astype(np.float32)
    resampler = StreamResampler(*rates)
    pieces = [resampler.push(piece) for piece in np.split(samples, sorted(cuts))]
    joined = np.concatenate([*pieces, resampler.finish()])
    np.testing.assert_array_equal(joined, resample(samples, *rates))


def test_resampling_in_pieces_does_not_hold_samples_back() -> None:
    resampler = StreamResampler(44100, 48000)
    pushed = made = 0
    for _ in range(50):
        made += len(resampler.push(np.zeros(441, np.float32)))
        pushed += 441
        assert made >= (pushed - 60) * 48000 / 44100
    assert len(resampler._buffer) < 1000
