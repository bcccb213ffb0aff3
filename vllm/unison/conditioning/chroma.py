# SPDX-License-Identifier: Apache-2.0
"""The melody of a clip: which pitch class is the loudest, frame by frame.

A power spectrogram with a Hann window, summed into pitch classes by the filters of librosa's
`filters.chroma` (D. Ellis, "Chroma feature analysis and synthesis"), of which each frame keeps the
largest: what MusicGen's melody models were trained on (arXiv 2306.05284, section 2.2).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from vllm.unison.model.spec import MelodySpec

A0 = 27.5
"""Hz; octaves are counted from it."""
CENTER_OCTAVE, OCTAVE_WIDTH = 5.0, 2.0
"""Mean and deviation, in octaves, of the Gaussian that weights frequencies."""
SMALLEST = 1e-6
"""Level below which a frame is not normalized; its bins keep their order."""


def chroma_filters(sample_rate: int, window: int, num_bins: int) -> NDArray[np.float64]:
    """[num_bins, window // 2 + 1] weights of the frequencies in each pitch class, from C on."""
    frequencies = np.arange(1, window) * (sample_rate / window)
    pitches = num_bins * np.log2(frequencies / A0)
    # 0 Hz has no pitch: one and a half octaves below the first is between two classes.
    pitches = np.concatenate([pitches[:1] - 1.5 * num_bins, pitches])
    widths = np.append(np.maximum(np.diff(pitches), 1.0), 1.0)
    half = np.round(num_bins / 2)
    distances = pitches - np.arange(num_bins)[:, None]
    distances = np.mod(distances + half + 10 * num_bins, num_bins) - half
    filters = np.exp(-0.5 * (2 * distances / widths) ** 2)
    filters /= np.linalg.norm(filters, axis=0)
    filters *= np.exp(-0.5 * ((pitches / num_bins - CENTER_OCTAVE) / OCTAVE_WIDTH) ** 2)
    # Pitches are counted from A.
    from_c: NDArray[np.float64] = np.roll(filters, -3 * (num_bins // 12), axis=0)
    return from_c[:, : window // 2 + 1]


class ChromaExtractor:
    """Hears melodies; it encodes clips as a codec does, to one code per frame.

    Args:
        melody: what a model has in its prefix.

    Attributes:
        sample_rate: of the clips, in Hz.
        num_channels: of the clips: one.
        min_clip_samples: up to which clips are completed with zeros: none.
    """

    num_channels = 1
    min_clip_samples = 0

    def __init__(self, melody: MelodySpec) -> None:
        self._melody = melody
        self.sample_rate = melody.sample_rate

    @cached_property
    def _filters(self) -> torch.Tensor:
        melody = self._melody
        weights = chroma_filters(melody.sample_rate, melody.window, melody.num_bins)
        return torch.from_numpy(weights).float()

    @torch.inference_mode()
    def encode(self, samples: torch.Tensor) -> torch.Tensor:
        """int32 [num_frames, 1] loudest pitch class of each frame; the lowest of equal ones.

        Args:
            samples: floating point [num_samples] at `sample_rate`; what is past the longest clip
                is not heard.
        """
        melody = self._melody
        samples = samples.float()[: melody.max_seconds * melody.sample_rate]
        missing = max(melody.window - len(samples), 0)
        samples = torch.nn.functional.pad(samples, (missing // 2, missing - missing // 2))
        window = torch.hann_window(melody.window)
        spectrum = torch.stft(
            samples, melody.window, melody.hop, window=window, center=True, return_complex=True
        )
        power = (spectrum / window.square().sum().sqrt()).abs().square()
        chroma = self._filters @ power
        chroma = torch.nn.functional.normalize(chroma, p=float("inf"), dim=0, eps=SMALLEST)
        return chroma.argmax(dim=0).to(torch.int32)[:, None]
