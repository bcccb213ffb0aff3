# SPDX-License-Identifier: Apache-2.0
"""Short-time spectra back to samples."""

import torch
from torch.nn import functional


def overlap_add(spectrum: torch.Tensor, hop_length: int, window: torch.Tensor) -> torch.Tensor:
    """The inverse of a short-time Fourier transform, by least squares (Griffin and Lim, 1984).

    Args:
        spectrum: [batch, steps, window_length / 2 + 1] complex.
        hop_length: samples per step.
        window: [window_length].

    Returns:
        [batch, steps * hop_length] samples.
    """
    length = len(window)
    pieces = torch.fft.irfft(spectrum, length) * window
    steps = pieces.shape[1]
    total = (steps - 1) * hop_length + length

    def fold(values: torch.Tensor) -> torch.Tensor:
        return functional.fold(values, (1, total), (1, length), stride=(1, hop_length))[:, 0, 0]

    weight = fold(window.square().expand(1, steps, length).transpose(1, 2))
    margin = (length - hop_length) // 2
    inside = slice(margin, total - margin)
    return fold(pieces.transpose(1, 2))[:, inside] / weight[:, inside].clamp_min(1e-3)
