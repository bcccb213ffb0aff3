# SPDX-License-Identifier: Apache-2.0
"""The block that the spectral codec is built of (ConvNeXt, arXiv 2201.03545, over time)."""

import torch
from torch import nn
from torch.nn import functional


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, then a two-layer perceptron per step, added to the input.

    Args:
        channels: of input and output.
        intermediate: inside the perceptron.
        kernel_size: steps that the convolution covers.
        lookahead: how many of them lie ahead.
        scale: initial factor on what the block adds.
    """

    def __init__(
        self, channels: int, intermediate: int, kernel_size: int, lookahead: int, scale: float
    ) -> None:
        super().__init__()
        self._padding = (kernel_size - 1 - lookahead, lookahead)
        self.mix = nn.Conv1d(channels, channels, kernel_size, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, intermediate)
        self.contract = nn.Linear(intermediate, channels)
        self.scale = nn.Parameter(torch.full((channels,), scale))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[batch, steps, channels] to the same."""
        padded = functional.pad(values.transpose(1, 2), self._padding)
        mixed = self.norm(self.mix(padded).transpose(1, 2))
        return values + self.scale * self.contract(functional.gelu(self.expand(mixed)))
