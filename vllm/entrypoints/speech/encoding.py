# SPDX-License-Identifier: Apache-2.0
"""Waveforms as bytes: WAV, raw PCM, FLAC, MP3, Ogg Opus and AAC, whole or piece by piece.

PCM and WAV are written here; the other formats by FFmpeg's libraries, through PyAV.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vllm.unison.codecs.resampling import StreamResampler

UNKNOWN_LENGTH = 0xFFFFFFFF
"""Sizes in the header of a WAV stream that is not finished; readers then read to the end."""

OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
"""Sample rates that Opus encodes (RFC 6716, section 2); others are resampled to the next one."""
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
"""Sample rates of MPEG-1, 2 and 2.5 layer III."""
AAC_RATES = (*MP3_RATES, 64000, 88200, 96000)
"""Sample rates of MPEG-4 AAC from 8000 on."""
MAX_BIT_RATE = 128_000
"""Of a channel."""


class Encoder(Protocol):
    """Turns float32 samples in [-1, 1] into the bytes of a file.

    They are [num_samples] of mono audio, [num_samples, 2] of stereo.

    Attributes:
        is_compressed: whether encoding takes long enough to keep it off an event loop.
    """

    is_compressed: bool

    def encode(self, samples: NDArray[np.float32]) -> bytes:
        """The bytes that can be sent now that `samples` are known; may be none."""
        ...

    def finish(self) -> bytes:
        """The rest of the file. Called once, last."""
        ...


@dataclass(frozen=True)
class AudioFormat:
    """A format of audio as clients name it.

    Attributes:
        media_type: for the Content-Type header.
        container, codec, sample_format: FFmpeg's names; empty for what is written here.
        rates: sample rates in Hz that it takes; empty: all.
        options: of the container, for a stream.
        options_whole: of the container, for a file that is kept until it is finished.
    """

    media_type: str
    container: str = ""
    codec: str = ""
    sample_format: str = "fltp"
    rates: tuple[int, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    options_whole: Mapping[str, str] = field(default_factory=dict)

    def rate_for(self, sample_rate: int) -> int:
        """The rate in Hz at which it holds samples of a rate: the same or the next that it has."""
        if not self.rates or sample_rate in self.rates:
            return sample_rate
        return min((rate for rate in self.rates if rate > sample_rate), default=self.rates[-1])


FORMATS: Mapping[str, AudioFormat] = {
    "wav": AudioFormat("audio/wav"),
    "pcm": AudioFormat("audio/pcm"),
    "flac": AudioFormat(
        "audio/flac", "flac", "flac", "s16", options={"metadata_header_padding": "0"}
    ),
    # A Xing header has the length, which a stream cannot know.
    "mp3": AudioFormat(
        "audio/mpeg",
        "mp3",
        "libmp3lame",
        rates=MP3_RATES,
        options={"id3v2_version": "0", "write_xing": "0"},
        options_whole={"id3v2_version": "0", "write_xing": "1"},
    ),
    # Pages of 40 ms; FFmpeg's default of a second would delay the sound by as much.
    "opus": AudioFormat(
        "audio/ogg", "ogg", "libopus", "flt", OPUS_RATES, {"page_duration": "40000"}
    ),
    "aac": AudioFormat("audio/aac", "adts", "aac", rates=AAC_RATES),
}


def pcm16(samples: NDArray[np.floating]) -> bytes:
    """Little-endian 16-bit PCM of samples in [-1, 1]; what is beyond is clipped.

    Of samples [num_samples, num_channels] the channels take turns.
    """
    return np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def wav_header(sample_rate: int, num_samples: int | None = None, num_channels: int = 1) -> bytes:
    """Header of a 16-bit WAV file (RIFF, 44 bytes).

    Args:
        sample_rate: Hz.
        num_samples: of a channel; None if it is not known yet: both sizes are then UNKNOWN_LENGTH.
        num_channels: of the audio.
    """
    width = 2 * num_channels
    size = UNKNOWN_LENGTH if num_samples is None else width * num_samples
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        size if num_samples is None else size + 36,
        b"WAVE",
        b"fmt ",
        16,
        1,
        num_channels,
        sample_rate,
        width * sample_rate,
        width,
        16,
        b"data",
        size,
    )


def wav_sizes(num_bytes: int) -> list[tuple[int, bytes]]:
    """Offset and bytes of the two sizes in the header of a finished file of `wav_header`'s form."""
    return [(4, struct.pack("<I", num_bytes - 8)), (40, struct.pack("<I", num_bytes - 44))]


class PcmEncoder:
    """Raw 16-bit samples, or a WAV file of them.

    Args:
        wav_rate: Hz, for the header of a WAV file; None: no header.
        is_whole: whether the file is kept until it is finished, so that its header says its length.
        num_channels: of the samples.
    """

    is_compressed = False

    def __init__(
        self, wav_rate: int | None = None, is_whole: bool = False, num_channels: int = 1
    ) -> None:
        self._wav_rate = wav_rate
        self._num_channels = num_channels
        self._is_whole = is_whole
        self._has_begun = False
        self._kept: list[bytes] = []

    def encode(self, samples: NDArray[np.float32]) -> bytes:
        data = pcm16(samples)
        if self._is_whole:
            self._kept.append(data)
            return b""
        return self._begin(None) + data

    def finish(self) -> bytes:
        data = b"".join(self._kept)
        num_samples = len(data) // (2 * self._num_channels)
        return self._begin(num_samples if self._is_whole else None) + data

    def _begin(self, num_samples: int | None) -> bytes:
        has_begun, self._has_begun = self._has_begun, True
        if has_begun or self._wav_rate is None:
            return b""
        return wav_header(self._wav_rate, num_samples, self._num_channels)


class AvEncoder:
    """FLAC, MP3, Ogg Opus or AAC by FFmpeg, sent as it is made.

    FFmpeg goes back to a file's header when it closes it, to write what is known by then (FLAC:
    length and checksum; MP3: length). A stream is gone by then and keeps the header of a stream of
    unknown length, which both formats provide for. Ogg says its length in its last page, and AAC
    (ADTS) has no place for one.

    Args:
        sample_rate: Hz of the samples.
        audio_format: one with a container.
        is_whole: whether the file is kept until it is finished, header and all.
        num_channels: of the samples, 1 or 2.
    """

    is_compressed = True

    def __init__(
        self,
        sample_rate: int,
        audio_format: AudioFormat,
        is_whole: bool = False,
        num_channels: int = 1,
    ) -> None:
        # Imported where it is used: who speaks WAV starts without it.
        import av

        self._rate = audio_format.rate_for(sample_rate)
        self._resamplers = [StreamResampler(sample_rate, self._rate) for _ in range(num_channels)]
        self._layout = "mono" if num_channels == 1 else "stereo"
        self._format = audio_format
        self._sink = io.BytesIO() if is_whole else _StreamSink()
        chosen = audio_format.options_whole if is_whole else audio_format.options
        # bitexact: no random serial numbers and no versions of encoders, so equal samples make
        # equal files. flush_packets: what is encoded comes at once.
        common = {"fflags": "+bitexact", "flush_packets": "1"}
        self._container: Any = av.open(
            self._sink, "w", format=audio_format.container, container_options=common | dict(chosen)
        )
        self._stream: Any = self._container.add_stream(audio_format.codec, rate=self._rate)
        context: Any = self._stream.codec_context
        context.layout = self._layout
        context.format = audio_format.sample_format
        if audio_format.sample_format != "s16":
            # 4 bits a sample: clear speech in all of these, and a rate that each has.
            context.bit_rate = num_channels * min(MAX_BIT_RATE, 4 * self._rate)
        self._container.start_encoding()
        self._num_samples = 0

    def encode(self, samples: NDArray[np.float32]) -> bytes:
        channels = [samples] if samples.ndim == 1 else samples.T
        self._write(
            [r.push(channel) for r, channel in zip(self._resamplers, channels, strict=True)]
        )
        return self._sink.take() if isinstance(self._sink, _StreamSink) else b""

    def finish(self) -> bytes:
        self._write([resampler.finish() for resampler in self._resamplers])
        self._mux(None)
        self._container.close()
        return self._sink.take() if isinstance(self._sink, _StreamSink) else self._sink.getvalue()

    def _write(self, channels: Sequence[NDArray[np.float32]]) -> None:
        num_samples = len(channels[0])
        if num_samples == 0:
            return
        name = self._format.sample_format
        if name.endswith("p"):
            values: NDArray[Any] = np.clip(np.stack(channels), -1, 1)
        else:
            # The channels take turns in one row.
            samples = np.stack(channels, axis=1)
            # Rounded as in the other lossless formats, not as FFmpeg would.
            is_pcm = name == "s16"
            row = np.frombuffer(pcm16(samples), "<i2") if is_pcm else np.clip(samples, -1, 1)
            values = row.reshape(1, -1)
        from av import AudioFrame

        frame = AudioFrame.from_ndarray(values, format=name, layout=self._layout)
        frame.sample_rate = self._rate
        frame.pts = self._num_samples
        self._num_samples += num_samples
        self._mux(frame)

    def _mux(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            self._container.mux(packet)


class _StreamSink:
    """A file that cannot seek, whose bytes are taken as they are written."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def take(self) -> bytes:
        pending, self._pending = bytes(self._pending), bytearray()
        return pending

    def write(self, data: Any) -> int:
        self._pending += data
        return len(data)


def make_encoder(
    name: str, sample_rate: int, is_whole: bool = False, num_channels: int = 1
) -> Encoder:
    """An encoder for samples that come in pieces.

    Args:
        name: a key of FORMATS.
        sample_rate: Hz of the samples.
        is_whole: whether to keep the file until it is finished, so that its header says its
            length, where the format has a place for that (all but `pcm` and `aac`).
        num_channels: of the samples, 1 or 2.
    """
    audio_format = FORMATS[name]
    if audio_format.container:
        return AvEncoder(sample_rate, audio_format, is_whole, num_channels)
    return PcmEncoder(sample_rate if name == "wav" else None, is_whole, num_channels)


def encode_whole(name: str, samples: NDArray[np.float32], sample_rate: int) -> bytes:
    """A complete file, whose header gives its length; see `make_encoder`."""
    num_channels = samples.shape[1] if np.ndim(samples) == 2 else 1
    encoder = make_encoder(name, sample_rate, is_whole=True, num_channels=num_channels)
    return encoder.encode(samples) + encoder.finish()
