# SPDX-License-Identifier: Apache-2.0
"""Resampling of input audio to a codec's sample rate.

NumPy only: upstream's resamplers each need a package that is not among its requirements, and
PyTorch's thread pool must not start in the front-end process, which may fork the engine later.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

MIN_RATE = 4_000
MAX_RATE = 192_000
MAX_CHANNELS = 16

# Windowed-sinc low-pass: zero crossings on each side, and the Kaiser window's beta, for which
# Kaiser's formula gives 81 dB of attenuation and a transition 0.11 wide, in units of the lower
# Nyquist frequency. The cutoff puts the end of the transition at that frequency.
ZERO_CROSSINGS = 48
KAISER_BETA = 8.0
CUTOFF = 0.947

# Points at which half of the window is tabulated; linear interpolation between them is off by 1e-8.
WINDOW_POINTS = 8193
# Weights that are computed or applied at a time; bounds the memory.
BLOCK = 2**20


def resample(samples: npt.NDArray[np.floating], from_rate: float, to_rate: float) -> npt.NDArray:
    """Mix to mono and change the sample rate.

    Band-limited interpolation with a Kaiser-windowed sinc (Smith, "Digital Audio Resampling",
    https://ccrma.stanford.edu/~jos/resample/), linear phase: output sample ``i`` is the input at
    time ``i / to_rate``, zeros beyond both ends.

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
    source_rate = _check_rate("from_rate", from_rate)
    target_rate = _check_rate("to_rate", to_rate)
    mono = _to_mono(samples)
    if source_rate == target_rate or mono.shape[0] == 0:
        return mono
    divisor = math.gcd(source_rate, target_rate)
    up, down = target_rate // divisor, source_rate // divisor
    num_outputs = -(-mono.shape[0] * up // down)
    filters = _phase_filters(up, down)
    num_taps = filters.shape[1]
    # Output i lies at input position i * down / up = start + phase / up; its window begins
    # num_taps // 2 - 1 samples before start.
    padded = np.pad(mono, (num_taps // 2 - 1, num_taps // 2 + 1))
    windows = np.lib.stride_tricks.sliding_window_view(padded, num_taps)
    output = np.empty(num_outputs, dtype=np.float32)
    for block in _blocks(num_outputs, num_taps):
        start, phase = np.divmod(block * down, up)
        output[block] = np.einsum("ij,ij->i", windows[start], filters[phase])
    return output


class StreamResampler:
    """`resample` for samples that come in pieces.

    The pieces that it returns, joined, are `resample` of the joined input: each output sample is
    made from the same input samples, once the last of them has come.

    Args:
        from_rate, to_rate: as for `resample`.
    """

    def __init__(self, from_rate: float, to_rate: float) -> None:
        self._from_rate = _check_rate("from_rate", from_rate)
        self._to_rate = _check_rate("to_rate", to_rate)
        divisor = math.gcd(self._from_rate, self._to_rate)
        self._up, self._down = self._to_rate // divisor, self._from_rate // divisor
        self._reach = 0
        if self._up != self._down:
            self._reach = _phase_filters(self._up, self._down).shape[1] // 2
        # Input from sample `_offset` on, which is a multiple of `down`: there, an output sample
        # lies exactly on an input sample, so the buffer's outputs are a run of the whole's.
        self._buffer = np.empty(0, np.float32)
        self._offset = 0
        self._num_inputs = 0
        self._num_outputs = 0

    def push(self, samples: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """float32 samples that are complete now that mono `samples` [num_samples] have come."""
        self._append(samples)
        if self._up == self._down:
            return self._take(self._num_inputs)
        # Output i lies at input i * down / up and needs the `reach` samples after it.
        return self._take(max(0, (self._num_inputs - self._reach) * self._up // self._down))

    def finish(self) -> npt.NDArray[np.float32]:
        """The remaining float32 samples; nothing may be pushed after it."""
        return self._take(-(-self._num_inputs * self._up // self._down))

    def _append(self, samples: npt.NDArray[np.floating]) -> None:
        self._buffer = np.concatenate([self._buffer, _to_mono(samples)])
        self._num_inputs = self._offset + len(self._buffer)

    def _take(self, end: int) -> npt.NDArray[np.float32]:
        begin = self._num_outputs
        if end <= begin:
            return np.empty(0, np.float32)
        first = self._offset // self._down * self._up
        made = resample(self._buffer, self._from_rate, self._to_rate)[begin - first : end - first]
        self._num_outputs = end
        # The next output needs `reach` samples before it; older ones go, in multiples of `down`.
        oldest = end * self._down // self._up - self._reach
        drop = max(0, oldest - self._offset) // self._down * self._down
        self._buffer = self._buffer[drop:]
        self._offset += drop
        return made


def _blocks(num_rows: int, row_length: int) -> Iterator[npt.NDArray[np.int64]]:
    """Row numbers, in runs of as many rows as a block may hold."""
    step = max(1, BLOCK // row_length)
    for begin in range(0, num_rows, step):
        yield np.arange(begin, min(begin + step, num_rows), dtype=np.int64)


@lru_cache(maxsize=4)
def _phase_filters(up: int, down: int) -> npt.NDArray[np.float32]:
    """Interpolation weights for the ``up`` positions between two input samples.

    Row ``p`` weighs the input samples at offsets ``-(taps/2 - 1) .. taps/2`` to give the value at
    offset ``p / up``. Every row sums to 1, so a constant stays exactly that.
    """
    cutoff = CUTOFF * min(1.0, up / down)
    half_width = ZERO_CROSSINGS / cutoff
    half_taps = math.ceil(half_width)
    offsets = np.arange(-half_taps + 1, half_taps + 1)
    grid = np.linspace(0.0, 1.0, WINDOW_POINTS)
    window = np.i0(KAISER_BETA * np.sqrt(1.0 - grid**2))
    filters = np.empty((up, len(offsets)), dtype=np.float32)
    for block in _blocks(up, len(offsets)):
        distance = offsets[None, :] - block[:, None] / up
        weights = np.interp(np.abs(distance) / half_width, grid, window, right=0.0)
        weights *= np.sinc(cutoff * distance)
        filters[block] = weights / weights.sum(axis=1, keepdims=True)
    return filters


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
