# SPDX-License-Identifier: Apache-2.0
"""Where to cut audio that is longer than a model takes at once: in its silences."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_HOP = 0.02
"""Seconds by which levels are measured."""
_PAUSE = 0.2
"""Seconds of quiet that a cut is put in the middle of, so that no word loses its edge."""
_MIN_PART = 0.5
_MIN_REST = 0.25
"""A part has at least _MIN_PART of the maximal length, and the last one _MIN_REST."""


def cut_points(samples: NDArray[np.float32], sample_rate: int, max_samples: int) -> list[int]:
    """Where to cut audio so that no part is longer than a model takes.

    Args:
        samples: [num_channels, num_samples].
        sample_rate: Hz.
        max_samples: of a part; at least 4.

    Returns:
        Offsets of samples, ascending, without 0 and the end; none if the audio is short enough.
        Each is the quietest place, over _PAUSE seconds, of those that keep the parts' lengths in
        bounds; of equally quiet ones the last, so that there are few parts.
    """
    if max_samples < 4:
        raise ValueError(f"max_samples must be at least 4, not {max_samples}")
    total = samples.shape[1]
    cuts: list[int] = []
    begin = 0
    while total - begin > max_samples:
        first = begin + max(1, int(_MIN_PART * max_samples))
        last = min(begin + max_samples, total - max(1, int(_MIN_REST * max_samples)))
        begin = _quietest(samples, sample_rate, first, last)
        cuts.append(begin)
    return cuts


def _quietest(samples: NDArray[np.float32], sample_rate: int, first: int, last: int) -> int:
    """The quietest place of [first, last], in steps of a hop from the end."""
    hop = max(1, int(_HOP * sample_rate))
    half = max(1, int(_PAUSE * sample_rate) // 2)
    low, high = max(0, first - half), min(samples.shape[1], last + half)
    power = np.square(samples[:, low:high], dtype=np.float64).sum(axis=0)
    sums = np.concatenate([[0.0], np.cumsum(power)])
    places = np.arange(last, first - 1, -hop)
    left, right = np.maximum(places - half, low) - low, np.minimum(places + half, high) - low
    levels = (sums[right] - sums[left]) / (right - left)
    # Sums of squares differ in their last digits where the audio is equally quiet.
    return int(places[np.argmax(levels <= levels.min() + 1e-12)])
