# SPDX-License-Identifier: Apache-2.0
"""Tells recorded from decoded speech by complex spectra at several resolutions.

The losses are those of a least-squares adversarial training (arXiv 1611.04076) with a distance of
the discriminator's features (arXiv 1910.06711); complex spectra as input are of DAC (2306.06546).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

WINDOWS = (256, 512, 1024)
"""Samples of the spectra's windows; they step by a quarter."""

CHANNELS = 16
_EXPONENT = 0.3
"""Of the magnitudes, so that quiet parts of a spectrum count beside loud ones."""

_LEAST_POWER = 1e-8
_SLOPE = 0.1
_LAYERS = (((3, 9), 2), ((3, 9), 2), ((3, 9), 2), ((3, 3), 1))
"""Kernels in steps and bins, and strides over the bins."""

Features = list[list[torch.Tensor]]
"""Per resolution what each layer gives; the last is the verdict."""


class SpectrumDiscriminator(nn.Module):
    """One resolution.

    Args:
        window: samples of a spectrum.
    """

    window: torch.Tensor

    def __init__(self, window: int) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        layers: list[nn.Module] = []
        channels = 2
        for kernel, stride in _LAYERS:
            padding = (kernel[0] // 2, kernel[1] // 2)
            layer = nn.Conv2d(channels, CHANNELS, kernel, (1, stride), padding)
            layers.append(nn.utils.parametrizations.weight_norm(layer))
            channels = CHANNELS
        self.layers = nn.ModuleList(layers)
        self.verdict = nn.utils.parametrizations.weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, samples: torch.Tensor) -> list[torch.Tensor]:
        """Features of samples [batch, num_samples]: [batch, channels, steps, bins] each."""
        length = len(self.window)
        with torch.autocast(samples.device.type, enabled=False):
            spectrum = torch.stft(
                samples, length, length // 4, window=self.window, return_complex=True
            )
            parts = torch.view_as_real(spectrum / length**0.5)
            power = parts.square().sum(-1, keepdim=True) + _LEAST_POWER
            values = (parts * power ** ((_EXPONENT - 1) / 2)).permute(0, 3, 2, 1)
        found = []
        for layer in self.layers:
            values = functional.leaky_relu(layer(values), _SLOPE)
            found.append(values)
        return [*found, self.verdict(values)]


class Discriminator(nn.Module):
    """All resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([SpectrumDiscriminator(window) for window in WINDOWS])

    def forward(self, samples: torch.Tensor) -> Features:
        """Features of samples [batch, num_samples]."""
        return [part(samples) for part in self.parts]


def discriminator_loss(real: Features, decoded: Features) -> torch.Tensor:
    """Mean over the resolutions: real is to be judged 1, decoded 0."""
    losses = [
        (1 - ours[-1].float()).square().mean() + theirs[-1].float().square().mean()
        for ours, theirs in zip(real, decoded, strict=True)
    ]
    return torch.stack(losses).mean()


def adversarial_loss(decoded: Features) -> torch.Tensor:
    """Mean over the resolutions: decoded is to be judged 1."""
    return torch.stack([(1 - part[-1].float()).square().mean() for part in decoded]).mean()


def feature_distance(real: Features, decoded: Features) -> torch.Tensor:
    """Mean distance of features, relative to their mean size in real speech."""
    distances = [
        (theirs.float() - ours.detach().float()).abs().mean()
        / ours.detach().float().abs().mean().clamp_min(1e-4)
        for real_part, decoded_part in zip(real, decoded, strict=True)
        for ours, theirs in zip(real_part[:-1], decoded_part[:-1], strict=True)
    ]
    return torch.stack(distances).mean()
