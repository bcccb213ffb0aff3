# SPDX-License-Identifier: Apache-2.0
"""Waveforms as bytes: WAV, raw PCM, FLAC, MP3 and Ogg Opus, whole or piece by piece.

PCM and WAV are written here; the other formats by libsndfile, through the soundfile package.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vllm.multistream.codecs.resample import StreamResampler

UNKNOWN_LENGTH = 0xFFFFFFFF
"""Sizes in the header of a WAV stream that is not finished; readers then read to the end."""

OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
"""Sample rates that Opus encodes (RFC 6716, section 2); others are resampled to the next one."""
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
"""Sample rates of MPEG-1, 2 and 2.5 layer III."""


class Encoder(Protocol):
    """Turns float32 samples [num_samples] in [-1, 1], mono, into the bytes of a file."""

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
        container, subtype: libsndfile's names; empty for what is written here.
        rates: sample rates in Hz that it takes; empty: all.
        options: for soundfile. MP3 has a constant bit rate: without the length in its header, which
            a stream cannot have, readers compute times from the rate of the first frame.
    """

    media_type: str
    container: str = ""
    subtype: str = ""
    rates: tuple[int, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


FORMATS: Mapping[str, AudioFormat] = {
    "wav": AudioFormat("audio/wav"),
    "pcm": AudioFormat("audio/pcm"),
    "flac": AudioFormat("audio/flac", "FLAC", "PCM_16"),
    "mp3": AudioFormat(
        "audio/mpeg",
        "MP3",
        "MPEG_LAYER_III",
        MP3_RATES,
        {"bitrate_mode": "CONSTANT", "compression_level": 0.5},
    ),
    "opus": AudioFormat("audio/ogg", "OGG", "OPUS", OPUS_RATES),
}


def pcm16(samples: NDArray[np.floating]) -> bytes:
    """Little-endian 16-bit PCM of samples in [-1, 1]; what is beyond is clipped."""
    return np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def wav_header(sample_rate: int, num_samples: int | None = None) -> bytes:
    """Header of a mono 16-bit WAV file (RIFF, 44 bytes).

    Args:
        sample_rate: Hz.
        num_samples: None if it is not known yet; both sizes are then UNKNOWN_LENGTH.
    """
    size = UNKNOWN_LENGTH if num_samples is None else 2 * num_samples
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        size if num_samples is None else size + 36,
        b"WAVE",
        b"fmt ",
        16,
        1,
        1,
        sample_rate,
        2 * sample_rate,
        2,
        16,
        b"data",
        size,
    )


def wav_sizes(num_bytes: int) -> list[tuple[int, bytes]]:
    """Offset and bytes of the two sizes in the header of a finished file of `wav_header`'s form."""
    return [(4, struct.pack("<I", num_bytes - 8)), (40, struct.pack("<I", num_bytes - 44))]


class PcmEncoder:
    """Raw 16-bit samples, after a header if there is one."""

    def __init__(self, header: bytes = b"") -> None:
        self._header = header

    def encode(self, samples: NDArray[np.float32]) -> bytes:
        header, self._header = self._header, b""
        return header + pcm16(samples)

    def finish(self) -> bytes:
        return self.encode(np.empty(0, np.float32))


class LibsndfileEncoder:
    """FLAC, MP3 or Ogg Opus by libsndfile, as it is made.

    libsndfile goes back to a file's header when it closes it, to write what is known by then (FLAC:
    length and checksum; MP3: length). A stream is gone by then and keeps the header of a stream of
    unknown length, which both formats provide for.

    Args:
        sample_rate: Hz of the samples.
        audio_format: one with a container.
        is_whole: whether the file is kept until it is finished, header and all.
    """

    def __init__(self, sample_rate: int, audio_format: AudioFormat, is_whole: bool = False) -> None:
        import soundfile

        above = [rate for rate in audio_format.rates if rate >= sample_rate]
        rate = sample_rate
        if audio_format.rates and sample_rate not in audio_format.rates:
            rate = above[0] if above else audio_format.rates[-1]
        self._resampler = StreamResampler(sample_rate, rate)
        self._sink = _StreamSink(is_whole)
        self._is_pcm16 = audio_format.subtype == "PCM_16"
        self._file: Any = soundfile.SoundFile(
            self._sink,
            "w",
            samplerate=rate,
            channels=1,
            format=audio_format.container,
            subtype=audio_format.subtype,
            **audio_format.options,
        )

    def encode(self, samples: NDArray[np.float32]) -> bytes:
        self._write(self._resampler.push(samples))
        return self._sink.take()

    def finish(self) -> bytes:
        self._write(self._resampler.finish())
        self._file.close()
        return self._sink.take(is_finished=True)

    def _write(self, samples: NDArray[np.float32]) -> None:
        if len(samples) == 0:
            return
        if self._is_pcm16:
            # Rounded as in the other lossless formats, not as libsndfile would.
            self._file.write(np.frombuffer(pcm16(samples), "<i2"))
        else:
            self._file.write(np.clip(samples, -1, 1))


class _StreamSink:
    """A file whose bytes are taken as they are written; what was taken cannot be rewritten.

    Args:
        is_whole: take nothing before the end.
    """

    def __init__(self, is_whole: bool) -> None:
        self._is_whole = is_whole
        self._pending = bytearray()
        self._position = 0
        self._taken = 0

    @property
    def _end(self) -> int:
        return self._taken + len(self._pending)

    def take(self, is_finished: bool = False) -> bytes:
        if self._is_whole and not is_finished:
            return b""
        pending, self._pending = bytes(self._pending), bytearray()
        self._taken += len(pending)
        return pending

    def write(self, data: Any) -> int:
        data = bytes(data)
        kept = data[max(0, self._taken - self._position) :]
        begin = max(0, self._position - self._taken)
        if kept:
            self._pending[begin : begin + len(kept)] = kept
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = (
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._end}[whence]
        )
        return self._position

    def tell(self) -> int:
        return self._position


def make_encoder(name: str, sample_rate: int, is_whole: bool = False) -> Encoder:
    """An encoder for samples that come in pieces.

    Args:
        name: a key of FORMATS.
        sample_rate: Hz of the samples.
        is_whole: whether to keep what libsndfile makes until it is finished, so that its header
            says the length. A WAV header never does; see `wav_sizes`.
    """
    audio_format = FORMATS[name]
    if audio_format.container:
        return LibsndfileEncoder(sample_rate, audio_format, is_whole)
    return PcmEncoder(wav_header(sample_rate) if name == "wav" else b"")


def encode_whole(name: str, samples: NDArray[np.float32], sample_rate: int) -> bytes:
    """A complete file; a WAV file's header gives its length."""
    if name == "wav":
        return wav_header(sample_rate, len(samples)) + pcm16(samples)
    encoder = make_encoder(name, sample_rate, is_whole=True)
    return encoder.encode(samples) + encoder.finish()
