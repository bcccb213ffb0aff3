# SPDX-License-Identifier: Apache-2.0
"""Codecs of these tests."""

from __future__ import annotations

import torch
from torch import nn

from vllm.unison.codecs.base import Codec
from vllm.unison.codecs.receptive_field import (
    Context,
    Convolution,
    Layer,
    TransposedConvolution,
    receptive_field,
)


class WindowSumCodec(Codec):
    """Sample j of frame i is the weighted sum of the codes of frames i - 2 to i + 1, plus j.

    In whole numbers, so that every arithmetic gives the same.
    """

    context = Context(2, 1)

    def __init__(self, num_codebooks: int, codebook_size: int) -> None:
        super().__init__(
            sample_rate=8000,
            samples_per_frame=3,
            num_codebooks=num_codebooks,
            codebook_size=codebook_size,
            device=torch.device("cpu"),
        )
        self.calls: list[tuple[int, int]] = []
        """Rows and frames of every call."""
        self.seen: list[int] = []
        """Smallest and largest code of every call."""

    def decoder_context(self) -> Context:
        return self.context

    def _encode(self, samples: torch.Tensor) -> torch.Tensor:
        raise AssertionError("nothing is encoded")

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        self.calls.append((codes.shape[0], codes.shape[1]))
        self.seen += [int(codes.min()), int(codes.max())]
        books = torch.arange(1, self.num_codebooks + 1)
        sums = (codes * books).sum(2)
        padded = nn.functional.pad(sums, (2, 1))
        length = codes.shape[1]
        taps = [(1, 0), (10, 1), (100, 2), (1000, 3)]
        mixed = sum(weight * padded[:, at : at + length] for weight, at in taps)
        return (mixed[..., None] + torch.arange(3)).flatten(1).float() / 65536  # type: ignore[union-attr]


class _Block(nn.Module):
    """ConvNeXt's block in one dimension (arXiv 2201.03545, section 2.6)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        inner = self.norm(self.depthwise(hidden).transpose(1, 2))
        return hidden + self.narrow(nn.functional.gelu(self.widen(inner))).transpose(1, 2)


class FourierCodec(Codec):
    """Eight ConvNeXt blocks and an inverse STFT whose window is four times its hop."""

    hop, window = 64, 256

    def __init__(
        self, num_blocks: int = 8, num_codebooks: int = 3, codebook_size: int = 16
    ) -> None:
        super().__init__(
            sample_rate=16000,
            samples_per_frame=self.hop,
            num_codebooks=num_codebooks,
            codebook_size=codebook_size,
            device=torch.device("cpu"),
        )
        width, self.num_blocks = 16, num_blocks
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            self.books = nn.ModuleList(
                nn.Embedding(codebook_size, width) for _ in range(num_codebooks)
            )
            self.first = nn.Conv1d(width, width, 7, padding=3)
            self.blocks = nn.ModuleList(_Block(width) for _ in range(num_blocks))
            self.head = nn.Linear(width, self.window + 2)
            for part in (self.books, self.first, self.blocks, self.head):
                part.eval().requires_grad_(False)
            # As drawn, they lose in rounding what lies at the edge of the context, or do not,
            # as the processor has it: here it is heard.
            for block in self.blocks:
                block.depthwise.weight[..., [0, -1]] *= 8
                block.narrow.weight *= 4
        self.taper = torch.hann_window(self.window)

    def decoder_context(self) -> Context:
        surplus = (self.window - self.hop) // 2
        layers: list[Layer] = [
            *[Convolution(7)] * (1 + self.num_blocks),
            TransposedConvolution(self.window, self.hop, trimmed=surplus),
        ]
        return receptive_field(layers, self.hop)

    def _encode(self, samples: torch.Tensor) -> torch.Tensor:
        raise AssertionError("nothing is encoded")

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        frames = codes.shape[1]
        hidden = torch.stack([book(codes[..., k]) for k, book in enumerate(self.books)]).sum(0)
        hidden = self.first(hidden.transpose(1, 2))
        for block in self.blocks:
            hidden = block(hidden)
        bins = torch.complex(*self.head(hidden.transpose(1, 2)).chunk(2, dim=-1))
        pieces = torch.fft.irfft(bins, self.window) * self.taper
        length = (frames - 1) * self.hop + self.window
        samples = codes.new_zeros(codes.shape[0], length, dtype=torch.float32)
        weight = torch.zeros(length)
        for frame in range(frames):
            place = slice(frame * self.hop, frame * self.hop + self.window)
            samples[:, place] += pieces[:, frame]
            weight[place] += self.taper.square()
        surplus = (self.window - self.hop) // 2
        return (samples / weight.clamp(min=1e-8))[:, surplus : surplus + frames * self.hop]
