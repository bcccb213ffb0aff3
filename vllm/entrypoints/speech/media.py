# SPDX-License-Identifier: Apache-2.0
"""Audio files of clients, decoded within limits.

Nothing that a file says of itself is believed: it is decoded in blocks until it ends or a limit is
met, so a small file that expands without end costs no more than the limit.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import vllm.envs as envs
from vllm.multistream.codecs.resample import MAX_CHANNELS, MAX_RATE, MIN_RATE
from vllm.multistream.refusal import RequestRefused

MiB = 2**20
_BLOCK_FRAMES = 2**16


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
    """Decode an audio file: WAV, FLAC, MP3, Ogg and what else libsndfile reads.

    Args:
        data: the file.
        limits: see AudioLimits.
        field: of the request, for messages.

    Raises:
        RequestRefused: if it is no such file, empty, or beyond a limit.
    """
    import soundfile

    class ForwardOnly(soundfile.SoundFile):
        """Never seeks, which soundfile does after each read and files of no length cannot."""

        def seekable(self) -> bool:
            return False

    if len(data) > limits.file_bytes:
        raise RequestRefused(
            f"{field} must have at most {limits.file_bytes} bytes, not {len(data)}"
        )
    try:
        with ForwardOnly(io.BytesIO(data)) as file:
            return _read(file, limits, field)
    except (soundfile.LibsndfileError, TypeError, OSError) as error:
        raise RequestRefused(
            f"{field} must be a complete audio file, such as WAV, FLAC, MP3 or Ogg"
        ) from error


def _read(file: Any, limits: AudioLimits, field: str) -> Clip:
    import soundfile

    rate, channels = file.samplerate, file.channels
    if not MIN_RATE <= rate <= MAX_RATE:
        raise RequestRefused(
            f"{field} must have a sample rate in [{MIN_RATE}, {MAX_RATE}] Hz, not {rate}"
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise RequestRefused(f"{field} must have 1 to {MAX_CHANNELS} channels, not {channels}")
    most = int(limits.seconds * rate)
    blocks: list[NDArray[np.float32]] = []
    total = 0
    while total <= most:
        try:
            # Not SoundFile.read: it allocates by the header's length.
            block = np.empty((_BLOCK_FRAMES, channels), np.float32)
            count = file.buffer_read_into(memoryview(block).cast("B"), "float32")  # type: ignore
        except soundfile.LibsndfileError:
            if not blocks:
                raise
            break
        if count == 0:
            break
        blocks.append(block[:count])
        total += count
        if total * channels * 4 > limits.decoded_bytes:
            raise RequestRefused(
                f"{field} must decode to at most {limits.decoded_bytes} bytes of samples"
            )
    if total > most:
        raise RequestRefused(f"{field} must be at most {limits.seconds:g} seconds long")
    if total == 0:
        raise RequestRefused(f"{field} must have at least one sample")
    samples = np.concatenate(blocks).T
    if not np.isfinite(samples).all():
        raise RequestRefused(f"{field} must have finite samples")
    return Clip(np.ascontiguousarray(samples), rate)


def decode_base64(data: str, limits: AudioLimits, field: str) -> bytes:
    """The bytes of strict base64, refused before they are decoded if too many."""
    if len(data) > 4 * (limits.file_bytes // 3 + 1):
        raise RequestRefused(f"{field} must have at most {limits.file_bytes} bytes")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestRefused(f"{field} must be base64") from error


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

    async def decode(self, data: bytes, field: str) -> Clip:
        """See `decode_file`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, decode_file, data, self.limits, field)
