# SPDX-License-Identifier: Apache-2.0
"""Audio files of clients: what is read, and what is refused before it costs anything."""

from __future__ import annotations

import asyncio
import base64
import io
import math
import struct
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from vllm.entrypoints.speech import media
from vllm.entrypoints.speech.containers import MAX_STREAMS, AudioFile
from vllm.entrypoints.speech.encoding import encode_whole, make_encoder, wav_header
from vllm.entrypoints.speech.media import (
    AudioLimits,
    MediaDecoder,
    decode_base64,
    decode_file,
)
from vllm.unison.frontend.errors import InvalidRequestError

LIMITS = AudioLimits(file_bytes=2**20, seconds=10.0, decoded_bytes=2**22)


def tone(seconds: float, rate: int) -> np.ndarray:
    return (0.5 * np.sin(np.arange(int(seconds * rate)) / 20)).astype(np.float32)


def contained(
    container: str,
    codec: str,
    samples: np.ndarray,
    rate: int,
    options: dict[str, str] | None = None,
    video: bool = False,
) -> bytes:
    """A file that FFmpeg writes; samples [num_samples] or [num_channels, num_samples]."""
    buffer = io.BytesIO()
    layout = {1: "mono", 2: "stereo"}[np.atleast_2d(samples).shape[0]]
    with av.open(buffer, "w", format=container, options=options or {}) as file:
        if video:
            pictures: Any = file.add_stream("mpeg4", rate=10)
            pictures.width = pictures.height = 32
            pictures.pix_fmt = "yuv420p"
        if samples.size:
            sound: Any = file.add_stream(codec, rate=rate)
            sound.codec_context.layout = layout
            values = np.ascontiguousarray(np.atleast_2d(samples), np.float32)
            frame = av.AudioFrame.from_ndarray(values, format="fltp", layout=layout)
            frame.sample_rate = rate
            frame.pts = 0
        if video:
            for _ in range(10):
                picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
                file.mux(pictures.encode(picture))
            file.mux(pictures.encode(None))
        if samples.size:
            file.mux(sound.encode(frame))
            file.mux(sound.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "opus", "aac"])
def test_what_was_encoded_is_read(name: str) -> None:
    clip = decode_file(encode_whole(name, tone(1.5, 24000), 24000), LIMITS, "file")
    # Opus is decoded at 48 kHz, whatever was put in.
    assert clip.samples.dtype == np.float32
    assert clip.sample_rate == (48000 if name == "opus" else 24000)
    if name == "aac":
        assert clip.samples.shape == (1, 37 * 1024)
    else:
        assert clip.samples.shape == (1, 1.5 * clip.sample_rate) and clip.seconds == 1.5
    if name in ("wav", "flac"):
        np.testing.assert_allclose(clip.samples[0], tone(1.5, 24000), atol=1e-4)


@pytest.mark.parametrize(
    ("container", "codec", "delay"),
    [
        ("ipod", "aac", 0),  # m4a, as telephones record
        ("mp4", "aac", 0),
        ("mov", "pcm_s16le", 0),
        ("ipod", "alac", 0),
        ("webm", "libopus", 0),  # as browsers record
        ("webm", "libvorbis" if "libvorbis" in av.codecs_available else "libopus", 0),
        ("adts", "aac", 1024),
        ("caf", "pcm_f32le", 0),
        ("matroska", "flac", 0),
    ],
)
@pytest.mark.parametrize("video", [False, True])
def test_what_telephones_and_browsers_record(
    container: str, codec: str, delay: int, video: bool
) -> None:
    if video and container in ("adts", "caf", "ipod", "webm"):
        pytest.skip("holds no such video")
    sound = np.stack([tone(1.0, 48000), -0.5 * tone(1.0, 48000)])
    clip = decode_file(contained(container, codec, sound, 48000, video=video), LIMITS, "file")
    assert clip.sample_rate == 48000 and len(clip.samples) == 2
    assert delay + 48000 <= clip.samples.shape[1] <= delay + 48000 + 2048
    error = clip.samples[:, delay : delay + 48000] - sound
    assert np.sqrt(np.mean(error**2)) < 0.03


@pytest.mark.parametrize(
    ("container", "subtype"),
    [
        ("WAV", "PCM_U8"), ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "PCM_32"),
        ("WAV", "FLOAT"), ("WAV", "DOUBLE"), ("WAV", "ULAW"), ("WAV", "ALAW"),
        ("WAV", "IMA_ADPCM"), ("WAVEX", "PCM_16"), ("RF64", "PCM_16"), ("FLAC", "PCM_16"),
        ("FLAC", "PCM_24"), ("AIFF", "PCM_16"), ("AIFF", "FLOAT"), ("AU", "PCM_16"),
        ("AU", "FLOAT"), ("CAF", "PCM_16"), ("CAF", "ALAC_16"), ("OGG", "VORBIS"),
        ("MP3", "MPEG_LAYER_III"),
    ],
)  # fmt: skip
def test_another_reader_hears_the_same(container: str, subtype: str) -> None:
    buffer = io.BytesIO()
    stereo = np.stack([tone(3.0, 44100), -0.5 * tone(3.0, 44100)], axis=1)
    soundfile.write(buffer, stereo, 44100, format=container, subtype=subtype)
    clip = decode_file(buffer.getvalue(), AudioLimits(2**22, 10.0, 2**22), "file")
    buffer.seek(0)
    expected, rate = soundfile.read(buffer, dtype="float32")
    assert clip.sample_rate == rate
    atol = 1e-5 if subtype in ("VORBIS", "MPEG_LAYER_III") else 0
    np.testing.assert_allclose(clip.samples, expected.T, atol=atol, rtol=0)


def test_a_stream_of_unknown_length_is_read() -> None:
    for name in ("wav", "flac"):
        encoder = make_encoder(name, 16000)
        data = encoder.encode(tone(5.0, 16000)) + encoder.finish()
        assert decode_file(data, LIMITS, "file").samples.shape == (1, 80000)


def wav_of_sizes(riff: int, size: int, samples: np.ndarray) -> bytes:
    data = bytearray(encode_whole("wav", samples, 16000))
    data[4:8], data[40:44] = struct.pack("<I", riff), struct.pack("<I", size)
    return bytes(data)


@pytest.mark.parametrize(
    ("riff", "size"),
    [
        (0, 0),
        (36, 0),
        (0xFFFFFFFF, 0xFFFFFFFF),  # FFmpeg's, and this server's
        (0xFFFFFFFF, 0),
        (0x7FFF0024, 0x7FFF0000),  # sox's
        (0x80000024, 0x80000000),  # arecord's
        (0xFFFFFFFF, 0xFFFFFFDB),
    ],
)
def test_a_wav_file_as_pipes_write_it_is_read_to_its_end(riff: int, size: int) -> None:
    samples = tone(0.5, 16000)
    clip = decode_file(wav_of_sizes(riff, size, samples), LIMITS, "file")
    np.testing.assert_allclose(clip.samples[0], samples, atol=1e-4)


def test_a_wav_file_of_no_samples_has_none() -> None:
    empty = bytearray(wav_header(16000, 0) + b"LIST" + struct.pack("<I", 4) + b"INFO")
    empty[4:8] = struct.pack("<I", len(empty) - 8)
    with pytest.raises(InvalidRequestError, match="file must have at least one sample"):
        decode_file(bytes(empty), LIMITS, "file")


def test_what_comes_after_the_samples_of_a_wav_file_is_no_sound() -> None:
    data = bytearray(encode_whole("wav", tone(0.5, 16000), 16000))
    data += b"LIST" + struct.pack("<I", 13) + b"INFOIART" + struct.pack("<I", 1) + b"\xe9"
    data[4:8] = struct.pack("<I", len(data) - 8)
    assert decode_file(bytes(data), LIMITS, "file").samples.shape == (1, 8000)


INCOMPLETE = "file is not complete: it ends before the audio that its header announces"
NO_FILE = "file must be a complete audio file"


def complete(kind: str) -> bytes:
    sound = tone(2.0, 16000)
    if kind in ("wav", "flac", "mp3", "opus", "aac"):
        return encode_whole(kind, sound, 16000)
    if kind.startswith("stream ") and kind != "stream webm":
        encoder = make_encoder(kind.removeprefix("stream "), 16000)
        return encoder.encode(sound) + encoder.finish()
    if kind in ("aiff", "au", "caf", "rf64"):
        buffer = io.BytesIO()
        soundfile.write(buffer, sound, 16000, format=kind.upper(), subtype="PCM_16")
        return buffer.getvalue()
    container, codec, options = {
        "m4a": ("ipod", "aac", {}),
        "m4a, index first": ("ipod", "aac", {"moov_size": "8192"}),
        "webm": ("webm", "libopus", {}),
        "stream webm": ("webm", "libopus", {"live": "1"}),
    }[kind]
    rate = 48000 if codec == "libopus" else 16000
    return contained(container, codec, tone(2.0, rate), rate, options)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("wav", INCOMPLETE),
        ("rf64", INCOMPLETE),
        ("flac", INCOMPLETE),
        ("mp3", INCOMPLETE),
        ("aiff", INCOMPLETE),
        ("au", INCOMPLETE),
        ("caf", INCOMPLETE),
        ("webm", INCOMPLETE),
        ("m4a", NO_FILE),  # its index comes last
        ("m4a, index first", INCOMPLETE),
    ],
)
def test_a_file_that_lost_its_end_is_refused(kind: str, message: str) -> None:
    data = complete(kind)
    assert decode_file(data, LIMITS, "file").seconds >= 2.0
    for share in (0.5, 0.9):
        with pytest.raises(InvalidRequestError, match=message):
            decode_file(data[: int(len(data) * share)], LIMITS, "file")
    if kind in ("wav", "rf64", "aiff", "au", "caf"):
        with pytest.raises(InvalidRequestError, match=message):
            decode_file(data[:-2], LIMITS, "file")


def test_the_last_bytes_count() -> None:
    data = complete("flac")
    with pytest.raises(InvalidRequestError, match=INCOMPLETE):
        decode_file(data[:-1], LIMITS, "file")
    data = complete("m4a, index first")
    container: Any = av.open(io.BytesIO(data))
    with container:
        ends = [entry.pos + entry.size for entry in container.streams.audio[0].index_entries]
    assert len(ends) > 20 and max(ends) <= len(data)
    decode_file(data[: ends[-1]], LIMITS, "file")
    # A packet less, and a part of one less.
    for end in (ends[-2], ends[-1] - 1, ends[10]):
        with pytest.raises(InvalidRequestError, match=INCOMPLETE):
            decode_file(data[:end], LIMITS, "file")


def test_no_more_tracks_are_opened_than_the_limit() -> None:
    def tracks(count: int) -> bytes:
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="matroska") as file:
            streams: list[Any] = [file.add_stream("pcm_s16le", rate=16000) for _ in range(count)]
            for stream in streams:
                stream.codec_context.layout = "mono"
            for stream in streams:
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 160), np.int16), "s16", "mono")
                frame.sample_rate, frame.pts = 16000, 0
                file.mux(stream.encode(frame))
                file.mux(stream.encode(None))
        return buffer.getvalue()

    for count in (1, MAX_STREAMS, 40):
        with AudioFile(tracks(count)) as file:
            assert len(file._container.streams) == min(count, MAX_STREAMS)
            assert [block.shape for block, _ in file.blocks()] == [(1, 160)]


@pytest.mark.parametrize(
    "kind", ["stream wav", "stream flac", "stream mp3", "stream opus", "aac", "stream webm"]
)
def test_a_stream_that_announces_no_length_is_read_to_its_end(kind: str) -> None:
    data = complete(kind)
    for share in (0.5, 0.77, 0.9):
        clip = decode_file(data[: int(len(data) * share)], LIMITS, "file")
        assert 2 * share - 0.35 <= clip.seconds <= 2 * share + 0.35


@pytest.mark.parametrize("kind", ["flac", "stream flac"])
def test_a_damaged_file_is_refused(kind: str) -> None:
    data = bytearray(complete(kind))
    data[len(data) // 2] ^= 0x10
    with pytest.raises(InvalidRequestError, match=r"file is damaged after [01].\d+ seconds"):
        decode_file(bytes(data), LIMITS, "file")


def test_tags_may_be_in_any_encoding() -> None:
    frame = b"TIT2" + struct.pack(">I", 4) + b"\0\0" + b"\x03\xff\xfe\xe9"
    tag = b"ID3\x03\0\0" + struct.pack(">I", len(frame)) + frame
    assert decode_file(tag + complete("mp3"), LIMITS, "file").seconds == 2.0


def with_field(offset: int, value: bytes) -> bytes:
    data = bytearray(encode_whole("wav", tone(0.1, 16000), 16000))
    data[offset : offset + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "must be a complete audio file"),
        (contained("mp4", "", np.empty(0), 0, video=True), "must have sound, not only pictures"),
        (contained("avi", "mp2", tone(0.1, 16000), 16000), "must be a complete audio file"),
        (contained("matroska", "ac3", tone(0.1, 48000), 48000), "in a codec that .* not ac3"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n", "must be a complete audio file"),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", "must be a complete audio file"),
        (b"<?xml version='1.0'?><MPD></MPD>", "must be a complete audio file"),
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
    with pytest.raises(InvalidRequestError, match=message) as caught:
        decode_file(data, LIMITS, "file")
    assert caught.value.parameter == "file"


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("container", ["WAV", "AIFF"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, math.nan], "file must have finite samples"),
        ([0.0, -math.inf], "file must have finite samples"),
        ([1e30, 0.0], r"file must have float samples .* not in \[0, 1e\+30\]"),
        ([-32768.0, 32767.0], r"not in \[-32768, 32767\]; integer samples need an integer type"),
        ([0.5, -8.01], r"\(louder is taken up to 8\), not in \[-8.01, 0.5\]"),
    ],
)
def test_float_samples_that_are_no_sound_are_refused(
    container: str, subtype: str, values: list[float], message: str
) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.array(values), 16000, format=container, subtype=subtype)
    with pytest.raises(InvalidRequestError, match=message):
        decode_file(buffer.getvalue(), LIMITS, "file")


def test_float_samples_that_overshoot_are_taken() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.array([8.0, -8.0, 0.5]), 16000, format="WAV", subtype="FLOAT")
    np.testing.assert_array_equal(
        decode_file(buffer.getvalue(), LIMITS, "file").samples, [[8.0, -8.0, 0.5]]
    )


def wav_of(num_samples: int, rate: int = 16000, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    samples = np.zeros((num_samples, channels), np.int16)
    soundfile.write(buffer, samples, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def test_exactly_at_a_limit_is_accepted_and_one_more_is_not() -> None:
    def read(data: bytes, **limits: Any) -> int:
        most = {"file_bytes": 2**20, "seconds": 10.0, "decoded_bytes": 2**22} | limits
        return decode_file(data, AudioLimits(**most), "file").samples.shape[1]

    data = wav_of(1000)
    assert read(data, file_bytes=len(data)) == 1000
    with pytest.raises(
        InvalidRequestError, match=f"at most {len(data) - 1} bytes, not {len(data)}"
    ):
        read(data, file_bytes=len(data) - 1)
    # Seconds of a context of whole frames: a quotient that floats may round down.
    for seconds, rate in ((0.1, 16000), (1 / 3, 48000), (7 * 320 / 44100, 44100), (0.29, 100_000)):
        most = round(seconds * rate)
        assert read(wav_of(most, rate), seconds=seconds) == most
        with pytest.raises(InvalidRequestError, match=f"at most {seconds:g} seconds long"):
            read(wav_of(most + 1, rate), seconds=seconds)
    for channels in (1, 2):
        assert read(wav_of(1000, channels=channels), decoded_bytes=4000 * channels) == 1000
        with pytest.raises(
            InvalidRequestError, match=f"at most {4000 * channels} bytes of samples"
        ):
            read(wav_of(1001, channels=channels), decoded_bytes=4000 * channels)
    for rate in (4000, 192_000):
        assert read(wav_of(10, rate)) == 10
    for rate in (3999, 192_001):
        with pytest.raises(InvalidRequestError, match=r"in \[4000, 192000\] Hz, not " + str(rate)):
            read(wav_of(10, rate))
    assert read(wav_of(10, channels=16)) == 10
    with pytest.raises(InvalidRequestError, match="1 to 16 channels, not 17"):
        read(wav_of(10, channels=17))


def test_too_many_channels_for_the_memory_are_refused() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((160_000, 8), np.int16), 16000, format="FLAC")
    with pytest.raises(InvalidRequestError, match="decode to at most 4194304 bytes"):
        decode_file(buffer.getvalue(), LIMITS, "file")


def test_a_bomb_costs_no_more_than_the_limit() -> None:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 8000, 1, "PCM_16", format="FLAC") as file:
        for _ in range(50):
            file.write(np.zeros(800_000, np.int16))
    bomb = buffer.getvalue()
    assert len(bomb) < 2**18
    tracemalloc.start()
    with pytest.raises(InvalidRequestError, match="at most 10 seconds"):
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
    except InvalidRequestError:
        return
    assert clip.samples.size and np.isfinite(clip.samples).all()
    assert clip.seconds <= LIMITS.seconds


def isom_box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def mp4_that_announces(num_samples: int, num_tracks: int) -> bytes:
    """A few hundred bytes a track, whose index would take 24 bytes a sample."""

    def table(kind: bytes, *values: int) -> bytes:
        return isom_box(kind, struct.pack(f">{len(values) + 1}I", 0, *values))

    codec = isom_box(
        b"mp4a", bytes(7) + b"\1" + bytes(8) + struct.pack(">HHHHI", 2, 16, 0, 0, 44100 << 16)
    )
    tables = isom_box(
        b"stbl",
        isom_box(b"stsd", struct.pack(">II", 0, 1), codec),
        table(b"stts", 1, num_samples, 1024),
        table(b"stsc", 1, 1, num_samples, 1),
        table(b"stsz", 1, num_samples),
        table(b"stco", 1, 40),
    )
    media = isom_box(
        b"mdia",
        isom_box(b"mdhd", struct.pack(">5IHH", 0, 0, 0, 44100, 1024_000, 0, 0)),
        isom_box(b"hdlr", bytes(8) + b"soun" + bytes(13)),
        isom_box(b"minf", isom_box(b"smhd", bytes(8)), tables),
    )
    tracks = [
        isom_box(
            b"trak", isom_box(b"tkhd", struct.pack(">6I", 7, 0, 0, n, 0, 1000) + bytes(60)), media
        )
        for n in range(1, num_tracks + 1)
    ]
    moov = isom_box(b"moov", isom_box(b"mvhd", bytes(100)), *tracks)
    return isom_box(b"ftyp", b"isom", bytes(4)) + isom_box(b"mdat", bytes(64)) + moov


READ = """
import resource, sys
from vllm.entrypoints.speech.media import AudioLimits, decode_file
from vllm.unison.frontend.errors import InvalidRequestError

def read(data):
    try:
        decode_file(data, AudioLimits(2**20, 10.0, 2**22), "file")
    except InvalidRequestError as error:
        return str(error)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

one, sixteen = sys.stdin.buffer.read().split(b"next file")
read(b"RIFF")
before = peak()
print(read(one), read(sixteen), sep="\\n")
print(peak() - before)
"""


@pytest.mark.slow
def test_what_a_header_announces_costs_no_memory() -> None:
    """80 million samples in 600 bytes took FFmpeg 2.8 GB."""
    files = b"next file".join(mp4_that_announces(80_000_000, tracks) for tracks in (1, 16))
    done = subprocess.run(
        [sys.executable, "-c", READ], input=files, capture_output=True, check=True, text=False
    )
    *messages, grown_mib = done.stdout.decode().splitlines()[-3:]
    assert all(message.startswith("file ") for message in messages)
    assert int(grown_mib) < 100


@given(st.integers(2, 100_000_000), st.integers(1, 20))
def test_a_hostile_index_is_refused(num_samples: int, num_tracks: int) -> None:
    with pytest.raises(InvalidRequestError, match=r"file (is|must)"):
        decode_file(mp4_that_announces(num_samples, num_tracks), LIMITS, "file")


def test_a_rate_that_changes_is_refused() -> None:
    def adts(rate: int) -> bytes:
        return encode_whole("aac", tone(0.5, rate), rate)

    with pytest.raises(
        InvalidRequestError, match="file must have one sample rate and one number of"
    ):
        decode_file(adts(16000) + adts(48000), LIMITS, "file")
    assert decode_file(adts(16000) + adts(16000), LIMITS, "file").seconds > 1.0


def test_base64_is_strict_and_measured_before_it_is_decoded() -> None:
    assert decode_base64(base64.b64encode(b"abc").decode(), LIMITS, "audio") == b"abc"
    for wrong in ("ab=c", "é", "abc", "ab-_", "ab\x00cd", "audio,YWJj"):
        with pytest.raises(InvalidRequestError, match="audio must be base64"):
            decode_base64(wrong, LIMITS, "audio")
    with pytest.raises(InvalidRequestError, match="audio must have at most 1048576 bytes"):
        decode_base64("A" * 2**21, LIMITS, "audio")


def test_long_base64_is_decoded_in_pieces_that_change_nothing() -> None:
    """The size of a piece is three quarters of 2^18."""
    piece = 3 * 2**16
    for size in (piece - 1, piece, piece + 1, 2 * piece, 2 * piece + 2):
        data = np.random.default_rng(size).bytes(size)
        assert decode_base64(base64.b64encode(data).decode(), LIMITS, "audio") == data
    padded = base64.b64encode(bytes(piece - 1)).decode()
    for wrong in (padded + "AAAA", padded[:-1], "A" * 2**18 + "A", "A" * 2**18 + "===="):
        with pytest.raises(InvalidRequestError, match="audio must be base64"):
            decode_base64(wrong, LIMITS, "audio")


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 57, 58, 1000])
def test_base64_as_mime_and_browsers_write_it(size: int) -> None:
    data = bytes(range(256)) * 4
    data = data[:size]
    plain = base64.b64encode(data).decode()
    for text in (
        plain,
        base64.encodebytes(data).decode(),
        plain.replace("A", "A\r\n"),
        f" {plain}\n",
        f"data:audio/wav;base64,{plain}",
        f"data:;base64,{plain}",
        f"DATA:audio/webm;codecs=opus;BASE64,{base64.encodebytes(data).decode()}",
    ):
        assert decode_base64(text, LIMITS, "audio") == data
    for wrong in (
        f"data:audio/wav,{plain}",
        f"data:audio/wav;base64;{plain}",
        "data:;base64" + "x" * 999,
    ):
        with pytest.raises(
            InvalidRequestError, match="audio must begin with data:TYPE;base64, if it is a"
        ):
            decode_base64(wrong, LIMITS, "audio")


@pytest.mark.parametrize("size", [1000, 1001, 1002])
def test_base64_at_the_limit_is_accepted_and_a_byte_more_is_not(size: int) -> None:
    limits = AudioLimits(file_bytes=size, seconds=1.0, decoded_bytes=1)
    assert len(decode_base64(base64.encodebytes(bytes(size)).decode(), limits, "audio")) == size
    with pytest.raises(InvalidRequestError, match=f"audio must have at most {size} bytes"):
        decode_base64(base64.b64encode(bytes(size + 1)).decode(), limits, "audio")


def test_limits_are_upstream_s_and_the_context_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MAX_AUDIO_CLIP_FILESIZE_MB", "3")
    monkeypatch.setenv("VLLM_MAX_AUDIO_DECODE_DURATION_S", "20")
    assert AudioLimits.from_environment(30.0).seconds == 20.0
    limits = AudioLimits.from_environment(5.0)
    assert (limits.seconds, limits.file_bytes) == (5.0, 3 * 2**20)


def test_files_are_decoded_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode_whole("flac", tone(1.0, 16000), 16000)

    async def run(files: Sequence[bytes | str]) -> list[float]:
        decoder = MediaDecoder(LIMITS)
        clips = await asyncio.gather(*(decoder.decode(file, "file") for file in files))
        return [clip.seconds for clip in clips]

    threads = set()

    def noted(*arguments: Any) -> Any:
        threads.add(threading.current_thread())
        return decode_file(*arguments)

    monkeypatch.setattr(media, "decode_file", noted)
    assert asyncio.run(run([data, base64.b64encode(data).decode()] * 3)) == [1.0] * 6
    assert threading.main_thread() not in threads
