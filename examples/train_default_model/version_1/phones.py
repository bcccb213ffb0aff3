# SPDX-License-Identifier: Apache-2.0
"""Labels of what is said in each frame, for the codec's semantic codebook."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PHONES = str.split(
    "pau aa ae ah ao aw ax ay b ch d dh eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh t "
    "th uh uw v w y z zh"
)
"""flite's English phones; "pau" is silence."""

NUM_LABELS = 2 * len(PHONES)
"""A phone's first and second half have labels of their own, so that a doubled phone is two."""

_INDEX = {phone: index for index, phone in enumerate(PHONES)}


def frame_labels(
    phones: Sequence[tuple[str, float]], num_frames: int, frame_seconds: float
) -> NDArray[np.int64]:
    """[num_frames] labels of the phones at the frames' middles.

    Args:
        phones: (phone, end in seconds) in order.
        num_frames: frames past the last phone are silence.
        frame_seconds: length of a frame.
    """
    middles = (np.arange(num_frames) + 0.5) * frame_seconds
    ends = np.array([end for _, end in phones])
    starts = np.concatenate([[0.0], ends[:-1]])
    which = np.searchsorted(ends, middles, side="right")
    inside = which < len(phones)
    which = np.minimum(which, len(phones) - 1)
    index = np.array([_INDEX[phone] for phone, _ in phones])[which]
    second_half = middles >= (starts[which] + ends[which]) / 2
    return np.where(inside, 2 * index + second_half, 0)
