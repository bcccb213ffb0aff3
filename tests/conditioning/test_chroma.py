# SPDX-License-Identifier: Apache-2.0
"""Melodies of clips, against the functions that transformers' own extractor is made of.

The extractor itself needs torchaudio; its spectrogram is that of `audio_utils.spectrogram`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers.audio_utils import chroma_filter_bank, spectrogram, window_function

from vllm.unison.conditioning.chroma import ChromaExtractor, chroma_filters
from vllm.unison.model.spec import MelodySpec

PUBLISHED = MelodySpec(num_bins=12, num_positions=235)
SMALL = MelodySpec(12, 21, sample_rate=8000, window=2048, hop=512, max_seconds=2)
C, A = 0, 9
"""Bins of pitch classes."""


def tone(pitch: float, melody: MelodySpec, seconds: float) -> torch.Tensor:
    time = torch.arange(int(seconds * melody.sample_rate)) / melody.sample_rate
    return 0.5 * torch.sin(2 * torch.pi * pitch * time)


def noise(num_samples: int, seed: int) -> torch.Tensor:
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


def by_transformers(samples: torch.Tensor, melody: MelodySpec) -> NDArray[np.int64]:
    """[num_frames] bins."""
    power = spectrogram(
        samples.numpy().astype(np.float64),
        window_function(melody.window, "hann"),
        frame_length=melody.window,
        hop_length=melody.hop,
        fft_length=melody.window,
        power=2.0,
        center=True,
        pad_mode="reflect",
    )
    filters = chroma_filter_bank(melody.window, melody.num_bins, melody.sample_rate, tuning=0)
    bins: NDArray[np.int64] = (filters @ power).argmax(axis=0)
    return bins


@pytest.mark.parametrize(("rate", "window", "bins"), [(32000, 16384, 12), (8000, 2048, 24)])
def test_filters_are_transformers(rate: int, window: int, bins: int) -> None:
    expected = chroma_filter_bank(window, bins, rate, tuning=0)
    np.testing.assert_allclose(chroma_filters(rate, window, bins), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("melody", "num_samples"), [(PUBLISHED, 100_000), (SMALL, 15_999), (SMALL, 2048)]
)
def test_bins_are_transformers(melody: MelodySpec, num_samples: int) -> None:
    samples = noise(num_samples, num_samples)
    found = ChromaExtractor(melody).encode(samples)
    expected = by_transformers(samples, melody)
    assert found.dtype == torch.int32 and found.shape == (num_samples // melody.hop + 1, 1)
    assert len(set(expected.tolist())) > 1
    np.testing.assert_array_equal(found[:, 0], expected)


def test_tones_are_heard() -> None:
    extractor = ChromaExtractor(PUBLISHED)
    for pitch, expected in ((440.0, A), (261.63, C), (880.0, A)):
        heard = extractor.encode(tone(pitch, PUBLISHED, 1.0))
        assert set(heard.flatten().tolist()) == {expected}


def test_a_short_clip_stands_in_the_middle_of_a_window() -> None:
    samples = noise(501, 3)
    padded = torch.nn.functional.pad(samples, (773, 774))
    found = ChromaExtractor(SMALL).encode(samples)
    assert len(found) == 5
    np.testing.assert_array_equal(found[:, 0], by_transformers(padded, SMALL))


def test_what_is_past_the_longest_clip_is_not_heard() -> None:
    samples = noise(3 * 8000, 4)
    extractor = ChromaExtractor(SMALL)
    assert torch.equal(extractor.encode(samples), extractor.encode(samples[: 2 * 8000]))
    assert len(extractor.encode(samples)) == 16000 // 512 + 1
    # Half a minute, which the published length is made for.
    assert PUBLISHED.max_seconds * PUBLISHED.sample_rate // PUBLISHED.hop + 1 == 235


def test_silence_has_the_first_bin() -> None:
    assert ChromaExtractor(SMALL).encode(torch.zeros(9000)).tolist() == [[0]] * 18
