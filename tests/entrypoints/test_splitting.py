# SPDX-License-Identifier: Apache-2.0
"""Where audio that is too long is cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vllm.entrypoints.speech.splitting import cut_points

RATE = 1000


def noise(num_samples: int, channels: int = 1) -> NDArray[np.float32]:
    made = np.random.default_rng(0).uniform(0.5, 1.0, (channels, num_samples))
    return made.astype(np.float32)


def lengths(total: int, cuts: list[int]) -> list[int]:
    return [end - begin for begin, end in itertools.pairwise([0, *cuts, total])]


def test_audio_that_fits_is_not_cut() -> None:
    assert cut_points(noise(1000), RATE, 1000) == []
    assert cut_points(noise(1), RATE, 1000) == []
    (cut,) = cut_points(noise(1001), RATE, 1000)
    assert 500 <= cut <= 751


@given(
    st.integers(1, 4000), st.integers(4, 700), st.integers(1, 2), st.sampled_from([0.0, 1.0, 1e-20])
)
def test_parts_are_neither_too_long_nor_slivers(
    total: int, most: int, channels: int, volume: float
) -> None:
    samples = noise(total, channels) * np.float32(volume)
    parts = lengths(total, cut_points(samples, RATE, most))
    assert sum(parts) == total and max(parts) <= most
    if len(parts) > 1:
        assert min(parts[:-1]) >= max(1, most // 2) and parts[-1] >= max(1, most // 4)


def test_a_cut_is_in_the_middle_of_a_silence() -> None:
    samples = noise(10_000, 2)
    pauses = [2500, 3600, 5200, 7900]
    for pause in pauses:
        samples[:, pause - 150 : pause + 150] = 0
    # Within half to all of 3000 samples from the last cut on there is one pause at least.
    cuts = cut_points(samples, RATE, 3000)
    assert len(cuts) == 3
    for cut, pause in zip(cuts, [2500, 5200, 7900], strict=False):
        assert abs(cut - pause) <= 50, (cut, pause)


def test_the_longest_pause_is_taken_not_the_last_zero() -> None:
    samples = noise(2000)
    samples[:, 600:850] = 0
    samples[:, 900:910] = 0
    (cut, *_) = cut_points(samples, RATE, 1000)
    assert 700 <= cut <= 750


def test_the_quieter_pause_is_taken() -> None:
    samples = noise(1500)
    samples[:, 550:800] *= 0.001
    samples[:, 820:1000] *= 0.1
    (cut,) = cut_points(samples, RATE, 1100)
    assert 650 <= cut <= 700


def test_of_equally_quiet_places_the_last_is_taken() -> None:
    silence = np.zeros((1, 4000), np.float32)
    assert cut_points(silence, RATE, 1000) == [1000, 2000, 3000]
    # but for what the last part needs
    assert cut_points(silence[:, :1100], RATE, 1000) == [850]


def test_parts_must_have_some_samples() -> None:
    with pytest.raises(ValueError, match="max_samples must be at least 4, not 3"):
        cut_points(noise(10), RATE, 3)
