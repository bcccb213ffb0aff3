# SPDX-License-Identifier: Apache-2.0
"""Resampling of input audio to a codec's sample rate, by the SoX resampler (the soxr package)."""

import numpy as np
import numpy.typing as npt
import soxr

MIN_RATE = 4_000
MAX_RATE = 192_000
MAX_CHANNELS = 16

QUALITY = "HQ"
"""soxr's default: linear phase, 20 bits, flat up to 0.91 of the lower Nyquist frequency and nothing
left above that frequency; streamed, it holds back 20 to 90 ms."""


def resample(
    samples: npt.NDArray[np.floating], from_rate: float, to_rate: float
) -> npt.NDArray[np.float32]:
    """Mix to mono and change the sample rate.

    Linear phase: output sample ``i`` is the input at time ``i / to_rate``, zeros beyond both ends.

    Args:
        samples: floating point ``[num_samples]``, or ``[channels, num_samples]`` with 1 to 16
            channels, which are averaged.
        from_rate: Hz of ``samples``, a whole number in [4000, 192000].
        to_rate: Hz wanted, in the same range.

    Returns:
        float32 ``[ceil(num_samples * to_rate / from_rate)]``. With equal rates, the (mixed)
        samples unchanged.

    Raises:
        ValueError: samples of another shape or type, NaN or infinity, or a rate out of range.
    """
    resampler = StreamResampler(from_rate, to_rate)
    return np.concatenate([resampler.push(samples), resampler.finish()])


class StreamResampler:
    """`resample` for samples that come in pieces.

    The pieces that it returns, joined, are `resample` of the joined input, to the bit: the SoX
    resampler's output does not depend on how its input is cut.

    Args:
        from_rate, to_rate: as for `resample`.
    """

    def __init__(self, from_rate: float, to_rate: float) -> None:
        self._from_rate = _check_rate("from_rate", from_rate)
        self._to_rate = _check_rate("to_rate", to_rate)
        self._stream: soxr.ResampleStream | None = None
        if self._from_rate != self._to_rate:
            self._stream = soxr.ResampleStream(
                self._from_rate, self._to_rate, 1, dtype="float32", quality=QUALITY
            )
        self._num_inputs = 0
        self._num_outputs = 0

    def push(self, samples: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """float32 samples that are complete now that `samples` have come, as for `resample`."""
        mono = _to_mono(samples)
        self._num_inputs += len(mono)
        if self._stream is None or len(mono) == 0:
            return mono
        made: npt.NDArray[np.float32] = self._stream.resample_chunk(np.ascontiguousarray(mono))
        self._num_outputs += len(made)
        return made

    def finish(self) -> npt.NDArray[np.float32]:
        """The remaining float32 samples; nothing may be pushed after it."""
        if self._stream is None:
            return np.empty(0, np.float32)
        # soxr rounds the length. Zeros that follow, which it assumes anyway, complete it.
        zeros = np.zeros(-(-self._from_rate // self._to_rate), np.float32)
        made: npt.NDArray[np.float32] = self._stream.resample_chunk(zeros, last=True)
        length = -(-self._num_inputs * self._to_rate // self._from_rate)
        return made[: max(0, length - self._num_outputs)]


def _check_rate(field: str, rate: float) -> int:
    if not MIN_RATE <= rate <= MAX_RATE or rate != int(rate):
        raise ValueError(
            f"{field} must be a whole number of Hz in [{MIN_RATE}, {MAX_RATE}], got {rate}"
        )
    return int(rate)


def _to_mono(samples: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    samples = np.asarray(samples)
    if not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"samples must be floating point, got {samples.dtype}")
    if samples.ndim == 2:
        if not 1 <= samples.shape[0] <= MAX_CHANNELS:
            raise ValueError(
                f"samples must have 1 to {MAX_CHANNELS} channels, as [channels, num_samples], "
                f"got shape {list(samples.shape)}"
            )
    elif samples.ndim != 1:
        raise ValueError(
            "samples must have shape [num_samples] or [channels, num_samples], "
            f"got {list(samples.shape)}"
        )
    with np.errstate(over="ignore"):
        samples = samples.astype(np.float32)
    if not np.isfinite(samples).all():
        raise ValueError("samples must be finite in float32, got NaN or infinity")
    return samples if samples.ndim == 1 else samples.mean(axis=0)
