# SPDX-License-Identifier: Apache-2.0
"""Audio files as blocks of samples, by FFmpeg's libraries through PyAV.

The files are strangers'. Only the containers and codecs named here are opened: FFmpeg's others read
more files (playlists, image sequences) or are not audio. No block of memory that FFmpeg allocates
may be larger than its user says: a few hundred bytes can otherwise announce an index of gigabytes.
"""

from __future__ import annotations

import ctypes
import functools
import io
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONTAINERS = (
    "aac",
    "aiff",
    "amr",
    "au",
    "caf",
    "flac",
    "matroska",
    "mov",
    "mp3",
    "nistsphere",
    "ogg",
    "wav",
)
"""FFmpeg's names: `mov` are MP4, M4A, MOV and 3GP, `matroska` is WebM too."""

CODECS = (
    "aac",
    "adpcm_ima_qt",
    "adpcm_ima_wav",
    "adpcm_ms",
    "alac",
    "amrnb",
    "amrwb",
    "flac",
    "gsm",
    "gsm_ms",
    "mp1float",
    "mp2",
    "mp3float",
    "opus",
    "speex",
    "vorbis",
)
"""FFmpeg's names; and PCM of all kinds."""

MAX_STREAMS = 16
"""Of a container; a telephone's video has up to 6."""
_MAX_FRAME_SAMPLES = 2**17
"""Per channel, of one frame of a codec; FLAC's have up to 65535."""
_LEAST_ALLOCATION = 2**24
"""Bytes that FFmpeg may always allocate at once, for its tables and frames."""
_UNKNOWN_SIZE = 0x7FFF0000
"""Sizes from here on stand for an unknown length in WAV streams: 2^32 - 1 is FFmpeg's, sox and
arecord write others just below 2^31."""


class UnreadableFile(Exception):
    """No audio file, or a damaged one. Says what is wrong, to follow the name of the field."""


class AudioFile:
    """An audio file's best audio stream, which is what players play of several.

    Args:
        data: the file.

    Raises:
        UnreadableFile: if it is none that is read here.
    """

    def __init__(self, data: bytes) -> None:
        import av

        _limit_allocations(max(len(data) + 2**20, _LEAST_ALLOCATION))
        self._data = data
        try:
            # Tags may be in any encoding, and are not used.
            self._container: Any = av.open(
                io.BytesIO(data),
                metadata_errors="ignore",
                container_options={
                    "format_whitelist": ",".join(CONTAINERS),
                    "codec_whitelist": _codecs(),
                    "max_streams": str(MAX_STREAMS),
                },
            )
        except (av.error.FFmpegError, UnicodeError) as error:
            raise UnreadableFile(
                "must be a complete audio file, such as WAV, FLAC, MP3, Ogg, AAC, M4A or WebM"
            ) from error
        self._stream: Any = self._container.streams.best("audio")
        if self._stream is None:
            self._container.close()
            raise UnreadableFile("must have sound, not only pictures")
        self._codec: Any = self._stream.codec_context
        if self._codec is None or self._codec.name not in _codecs().split(","):
            name = "an unknown codec" if self._codec is None else self._codec.name
            self._container.close()
            raise UnreadableFile(f"must have sound in a codec that is read here, not {name}")
        self._codec.thread_count = 1
        self._codec.options = {
            "codec_whitelist": _codecs(),
            "max_samples": str(_MAX_FRAME_SAMPLES),
            # A frame whose checksum is wrong is damaged; the other codecs' are often wrong.
            **({"err_detect": "crccheck+explode"} if self._codec.name == "flac" else {}),
        }

    def __enter__(self) -> AudioFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    @property
    def announced_rate(self) -> int:
        """Hz that the header says; the samples may have another."""
        return int(self._stream.rate or 0)

    def blocks(self) -> Iterator[tuple[NDArray[np.float32], int]]:
        """Samples [num_channels, num_samples], full scale [-1, 1], and their rate in Hz, in order.

        Raises:
            UnreadableFile: as soon as it is known that the file is damaged, or ends before what its
                header announces.
        """
        import av

        if self._container.format.name == "wav" and _wav_is_empty(self._data):
            return
        num_samples = rate = num_packets = 0
        is_cut = False
        damage: Exception | None = None
        is_flac = self._container.format.name == "flac"
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    num_packets += 1
                    is_cut |= packet.is_corrupt
                try:
                    frames = packet.decode()
                except av.error.FFmpegError as error:
                    damage = damage or error
                    continue
                for frame in frames:
                    # A FLAC frame says which sample it begins with; damaged ones are skipped.
                    if is_flac and frame.pts not in (None, num_samples):
                        damage = damage or ValueError("samples are missing")
                    if damage is not None:
                        raise UnreadableFile(f"is damaged after {num_samples / rate:g} seconds")
                    rate = frame.sample_rate
                    num_samples += frame.samples
                    yield _samples(frame), rate
        except (av.error.FFmpegError, ZeroDivisionError) as error:
            raise UnreadableFile("is damaged") from error
        if damage is not None and num_samples == 0:
            raise UnreadableFile("is damaged: it has no sound that can be decoded")
        # A file without a length may end anywhere, also within a frame.
        if self._is_incomplete(num_samples, rate, num_packets, is_cut):
            raise UnreadableFile(
                "is not complete: it ends before the audio that its header announces"
            )

    def _is_incomplete(self, num_samples: int, rate: int, num_packets: int, is_cut: bool) -> bool:
        name = self._container.format.name
        if name == "wav":
            return _wav_is_cut(self._data)
        if name.startswith("matroska"):
            return _matroska_is_cut(self._data)
        if name.startswith("mov"):
            return is_cut or num_packets < len(self._stream.index_entries)
        if self._codec.name == "flac":
            # STREAMINFO: 36 bits of the number of samples; 0 if it is not known.
            known = int.from_bytes((self._codec.extradata or b"")[13:18], "big") & (2**36 - 1)
            return num_samples < known
        if name == "mp3":
            return num_samples < _mp3_samples(self._data, rate)
        if name in ("aiff", "au", "caf", "nistsphere"):
            duration = self._stream.duration
            known = int(duration * self._stream.time_base * rate) if duration else 0
            is_pcm = self._codec.name.startswith("pcm_")
            # The frames that FFmpeg counts in PCM are samples.
            return num_samples < max(known, self._stream.frames if is_pcm else 0)
        return False


@functools.cache
def _codecs() -> str:
    import av

    pcm = [name for name in av.codecs_available if name.startswith("pcm_")]
    return ",".join([*CODECS, *sorted(pcm)])


@functools.cache
def _set_max_alloc() -> Callable[[int], None]:
    """FFmpeg's av_max_alloc, which PyAV does not expose, of the library that PyAV is linked to."""
    import av._core  # type: ignore[import-not-found]

    function = ctypes.CDLL(av._core.__file__).av_max_alloc
    function.argtypes, function.restype = [ctypes.c_size_t], None
    return function  # type: ignore[no-any-return]


def _limit_allocations(num_bytes: int) -> None:
    _set_max_alloc()(num_bytes)


def _samples(frame: Any) -> NDArray[np.float32]:
    """float32 [num_channels, num_samples] of a decoded frame."""
    values: NDArray[Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - np.float32(128)) / np.float32(128)
    if values.dtype.kind == "i":
        full_scale = 2.0 ** (np.iinfo(values.dtype).bits - 1)
        return (values / full_scale).astype(np.float32)
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _wav_data(data: bytes) -> tuple[int, int]:
    """Where the data chunk of a WAV file begins, and how many bytes it announces."""
    order = ">" if data[:4] == b"RIFX" else "<"
    at, size_64 = 12, None
    while at + 8 <= len(data):
        name, size = struct.unpack_from(f"{order}4sI", data, at)
        at += 8
        if name == b"ds64" and at + 16 <= len(data):
            size_64 = struct.unpack_from("<Q", data, at + 8)[0]
        if name == b"data":
            return at, size if size_64 is None else size_64
        at += size + size % 2
    return len(data), 0


def _wav_is_cut(data: bytes) -> bool:
    """Whether a WAV file lacks bytes that its header announces."""
    begin, size = _wav_data(data)
    is_known = size < _UNKNOWN_SIZE or data[:4] == b"RF64"
    return is_known and begin + size > len(data)


def _wav_is_empty(data: bytes) -> bool:
    """Whether a WAV file is whole and has no samples. One that announces none may be a stream whose
    header was never completed: its outer size is not that of the file."""
    _, size = _wav_data(data)
    whole = int.from_bytes(data[4:8], "big" if data[:4] == b"RIFX" else "little") + 8
    return size == 0 and whole in (len(data), len(data) + 1)


def _mp3_samples(data: bytes, rate: int) -> int:
    """The least number of samples that an MP3 file's Xing header announces; 0 without one."""
    begin = 0
    if data[:3] == b"ID3" and len(data) >= 10:
        begin = 10 + sum((byte & 0x7F) << 7 * (3 - i) for i, byte in enumerate(data[6:10]))
    # The header lies in the first frame, behind up to 36 bytes.
    head = data[begin : begin + 4096]
    at = max(head.find(b"Xing"), head.find(b"Info"))
    if at < 0 or at + 12 > len(head):
        return 0
    flags, frames = struct.unpack_from(">II", head, at + 4)
    samples_per_frame = 1152 if rate >= 32000 else 576
    # Up to 4 frames are the encoder's and decoder's delay, which is cut off.
    return max(0, frames - 4) * samples_per_frame if flags & 1 else 0


def _matroska_is_cut(data: bytes) -> bool:
    """Whether a Matroska file lacks bytes that its segment announces."""
    at = 0
    while at + 5 <= len(data):
        name = data[at : at + 4]
        at += 4
        length = 9 - data[at].bit_length()
        if length > 8:
            return False
        size = int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1)
        is_known = size != (1 << 7 * length) - 1
        at += length
        if name == b"\x18\x53\x80\x67":
            return is_known and at + size > len(data)
        at += size
    return False
