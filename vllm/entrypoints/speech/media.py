# SPDX-License-Identifier: Apache-2.0
"""Audio files of clients, decoded within limits.

Nothing that a file says of itself is believed: it is decoded in blocks until it ends or a limit is
met, so a small file that expands without end costs no more than the limit. What its header
announces counts for one thing: a file that holds less is not complete.
"""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import vllm.envs as envs
from vllm.entrypoints.speech.containers import AudioFile, UnreadableFile
from vllm.unison.codecs.resampling import MAX_CHANNELS, MAX_RATE, MIN_RATE
from vllm.unison.frontend.clips import check_samples
from vllm.unison.frontend.errors import InvalidRequestError

MiB = 2**20
_BASE64_PIECE = 2**18  # a multiple of four letters, which are three bytes
_MOST_URI_HEAD = 256
"""Characters before the comma of a data URI."""


@dataclass(frozen=True)
class AudioLimits:
    """What an audio file may be.

    Attributes:
        file_bytes: size of the file.
        seconds: length of the audio.
        decoded_bytes: size of its samples in float32, all channels.
    """

    file_bytes: int
    seconds: float
    decoded_bytes: int

    def max_samples(self, rate: int) -> int:
        """Samples per channel that a clip of a rate may have."""
        # Limits of a context are quotients: as much as their rounding is not held against a clip.
        return math.floor(self.seconds * rate + 1e-3)

    @classmethod
    def from_environment(cls, context_seconds: float) -> AudioLimits:
        """Upstream's limits of audio, and what the model's context can hold."""
        return cls(
            file_bytes=int(envs.VLLM_MAX_AUDIO_CLIP_FILESIZE_MB * MiB),
            seconds=min(float(envs.VLLM_MAX_AUDIO_DECODE_DURATION_S), context_seconds),
            decoded_bytes=int(envs.VLLM_MAX_AUDIO_DECODE_BYTES),
        )


@dataclass(frozen=True)
class Clip:
    """Decoded audio: float32 `samples` [num_channels, num_samples] at `sample_rate` Hz."""

    samples: NDArray[np.float32]
    sample_rate: int

    @property
    def seconds(self) -> float:
        return self.samples.shape[1] / self.sample_rate


def decode_file(data: bytes, limits: AudioLimits, field: str) -> Clip:
    """Decode an audio file, or the sound of a video, of a kind that `containers` names.

    A file that holds less than its header announces is refused. One that announces no length is
    read to its end: streamed WAV (sizes of 0 or from 2 GiB on), streamed FLAC, MP3 without a Xing
    header, AAC, Ogg, and WebM as browsers record it.

    Args:
        data: the file.
        limits: see AudioLimits.
        field: of the request, for messages.

    Raises:
        InvalidRequestError: if it is no such file, empty, damaged, incomplete or beyond a limit.
    """
    if len(data) > limits.file_bytes:
        raise InvalidRequestError(
            f"{field} must have at most {limits.file_bytes} bytes, not {len(data)}"
        )
    try:
        with AudioFile(data) as file:
            return _read(file, limits, field)
    except UnreadableFile as error:
        raise InvalidRequestError(f"{field} {error}") from error


def _read(file: AudioFile, limits: AudioLimits, field: str) -> Clip:
    blocks: list[NDArray[np.float32]] = []
    total, channels, rate = 0, 0, file.announced_rate
    for block, block_rate in file.blocks():
        if not blocks:
            channels, rate = len(block), block_rate
            _check_shape(rate, channels, field)
        if (len(block), block_rate) != (channels, rate):
            raise InvalidRequestError(
                f"{field} must have one sample rate and one number of channels"
            )
        blocks.append(block)
        total += block.shape[1]
        if total > limits.max_samples(rate):
            raise InvalidRequestError(f"{field} must be at most {limits.seconds:g} seconds long")
        if total * channels * 4 > limits.decoded_bytes:
            raise InvalidRequestError(
                f"{field} must decode to at most {limits.decoded_bytes} bytes of samples"
            )
    if total == 0:
        if rate:
            _check_shape(rate, 1, field)
        raise InvalidRequestError(f"{field} must have at least one sample")
    samples = np.concatenate(blocks, axis=1)
    check_samples(samples, field)
    return Clip(samples, rate)


def _check_shape(rate: int, channels: int, field: str) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise InvalidRequestError(
            f"{field} must have a sample rate in [{MIN_RATE}, {MAX_RATE}] Hz, not {rate}"
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise InvalidRequestError(f"{field} must have 1 to {MAX_CHANNELS} channels, not {channels}")


def decode_base64(data: str, limits: AudioLimits, field: str) -> bytes:
    """The bytes of base64, refused before they are decoded if too many.

    Line ends and spaces between the letters are skipped, as MIME writes them, and so is what a data
    URI has before them (`data:audio/wav;base64,`). All else must be strict base64.

    Raises:
        InvalidRequestError: naming the field.
    """
    head, comma, rest = data[:_MOST_URI_HEAD].partition(",")
    if head[:5].lower() == "data:":
        if not comma or not head.lower().endswith(";base64"):
            raise InvalidRequestError(
                f"{field} must begin with data:TYPE;base64, if it is a data URI"
            )
        data = rest + data[_MOST_URI_HEAD:]
    letters = data.encode("ascii", "replace").translate(None, b" \t\r\n")
    if len(letters) // 4 * 3 - letters[-2:].count(b"=") > limits.file_bytes:
        raise InvalidRequestError(f"{field} must have at most {limits.file_bytes} bytes")
    try:
        return b"".join(_decoded_pieces(letters))
    except ValueError as error:
        raise InvalidRequestError(f"{field} must be base64") from error


def _decoded_pieces(letters: bytes) -> Iterator[bytes]:
    """Decode strict base64 piece by piece: no other thread runs while one is decoded."""
    for begin in range(0, len(letters), _BASE64_PIECE):
        piece = letters[begin : begin + _BASE64_PIECE]
        if b"=" in piece and begin + len(piece) < len(letters):
            raise ValueError("padding before the end")
        yield base64.b64decode(piece, validate=True)


class MediaDecoder:
    """Decodes files beside the event loop, a few at a time.

    Args:
        limits: see AudioLimits.
    """

    def __init__(self, limits: AudioLimits) -> None:
        self.limits = limits
        self._pool = ThreadPoolExecutor(
            max_workers=envs.VLLM_MAX_AUDIO_PREPROCESS_WORKERS, thread_name_prefix="audio-decode"
        )

    async def decode(self, data: bytes | str, field: str) -> Clip:
        """See `decode_file`, and for a str, which is base64, `decode_base64`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._decode, data, field)

    def _decode(self, data: bytes | str, field: str) -> Clip:
        if isinstance(data, str):
            data = decode_base64(data, self.limits, field)
        return decode_file(data, self.limits, field)
