# SPDX-License-Identifier: Apache-2.0
"""The delay pattern: from frames to steps and back.

Frame f of stream k is emitted at step f + delays[k] (the delayed pattern of MusicGen,
arXiv 2306.05284, section 2.2, for arbitrary delays). All functions are pure.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int32]


def num_steps(num_frames: int, delays: Sequence[int]) -> int:
    """Steps that `num_frames` frames take: none for no frames, else num_frames + max(delays)."""
    return num_frames + max(delays) if num_frames else 0


def interleave(frames: Codes, delays: Sequence[int], fill: Sequence[int]) -> Codes:
    """Lay frames out in steps.

    Args:
        frames: [num_frames, num_streams] integers.
        delays: per stream the steps it runs behind, at least 0.
        fill: per stream the id where the stream has no frame.

    Returns:
        [num_frames + max(delays), num_streams] int32 ([0, num_streams] for no frames).

    Raises:
        ValueError: if the shapes disagree or a delay is negative.
    """
    frames = _checked("frames", frames, delays)
    if len(fill) != len(delays):
        raise ValueError(f"fill must have {len(delays)} entries, one per stream, not {len(fill)}")
    count = len(frames)
    steps = np.empty((num_steps(count, delays), len(delays)), np.int32)
    steps[:] = np.asarray(fill, np.int32)
    for stream, delay in enumerate(delays):
        steps[delay : delay + count, stream] = frames[:, stream]
    return steps


def deinterleave(steps: Codes, delays: Sequence[int], num_frames: int) -> Codes:
    """Take the first `num_frames` frames out of steps; the inverse of `interleave`.

    Args:
        steps: [num_steps, num_streams] integers; step 0 is the first step of frame 0's stream with
            delay 0.
        delays: per stream the steps it runs behind, at least 0.
        num_frames: frames to take, at most num_steps - max(delays).

    Returns:
        [num_frames, num_streams] int32.

    Raises:
        ValueError: if the steps do not hold that many whole frames.
    """
    steps = _checked("steps", steps, delays)
    if num_frames < 0 or num_steps(num_frames, delays) > len(steps):
        max_frames = max(len(steps) - max(delays), 0)
        raise ValueError(
            f"num_frames must be in [0, {max_frames}] for {len(steps)} steps, not {num_frames}"
        )
    frames = np.empty((num_frames, len(delays)), np.int32)
    for stream, delay in enumerate(delays):
        frames[:, stream] = steps[delay : delay + num_frames, stream]
    return frames


def _checked(name: str, array: Codes, delays: Sequence[int]) -> Codes:
    array = np.asarray(array)
    if len(delays) == 0 or min(delays) < 0:
        raise ValueError(f"delays must be a non-empty list of integers >= 0, not {list(delays)}")
    if array.ndim != 2 or array.shape[1] != len(delays):
        raise ValueError(f"{name} must have shape [n, {len(delays)}], not {list(array.shape)}")
    return array
