# SPDX-License-Identifier: Apache-2.0
"""A decoder that filters a voice's source: how loud is each frequency of its harmonics and noise.

Its blocks say how a voice's pitch moves and what filters its harmonics and its noise have; what
they need not invent is the fine structure of a voice, of which the source has the sharpness that
spectra on average lack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from vllm.unison.codecs.convnext import ConvNeXtBlock
from vllm.unison.codecs.overlap_add import overlap_add
from vllm.unison.codecs.pitch_network import PitchNetwork
from vllm.unison.codecs.receptive_field import (
    Context,
    TransposedConvolution,
    looking_ahead,
    receptive_field,
)
from vllm.unison.codecs.voice_source import SourceStage, framed, make_noise

if TYPE_CHECKING:
    from vllm.unison.codecs.spectral_codec import SpectralCodecConfig

_HIGHEST_LOG_MAGNITUDE = 5.0


@dataclass(frozen=True)
class SourceFilterConfig:
    """Sizes of the second half of the decoder, which filters.

    Attributes:
        hop_length: samples from one filter to the next; divides the codec's own.
        window_length: samples that one filter covers; Hann window.
        lookahead: per block the steps that its convolution looks ahead.
        pitch_size: channels of the network that works out the pitch.
    """

    hop_length: int = 160
    window_length: int = 640
    lookahead: tuple[int, ...] = (1, 0, 0)
    pitch_size: int = 48

    def __post_init__(self) -> None:
        object.__setattr__(self, "lookahead", tuple(self.lookahead))
        if self.hop_length < 1 or self.window_length < 2 * self.hop_length:
            raise ValueError("window_length must be at least 2 * hop_length, hop_length at least 1")
        if self.window_length % 2 or (self.window_length - self.hop_length) % 2:
            raise ValueError("window_length and window_length - hop_length must be even")

    def check_beside(self, hop_length: int, kernel_size: int) -> None:
        """Check what the codec's own sizes demand.

        Raises:
            ValueError: hop_length does not divide the codec's, or lookahead exceeds the kernel.
        """
        if hop_length % self.hop_length:
            raise ValueError(
                f"source_filter.hop_length must divide {hop_length}, got {self.hop_length}"
            )
        if not all(0 <= ahead < kernel_size for ahead in self.lookahead):
            raise ValueError(f"source_filter.lookahead must lie in [0, {kernel_size - 1}]")


class SourceFilterDecoder(nn.Module):
    """Latent vectors to samples, in three parts: what to filter, the source, and the filtering.

    Args:
        config: of the codec, which has a `source_filter`.
    """

    window: torch.Tensor
    noise: torch.Tensor

    def __init__(self, config: SpectralCodecConfig) -> None:
        super().__init__()
        assert config.source_filter is not None
        self._config, self._own = config, config.source_filter
        hidden, own = config.hidden_size, config.source_filter
        self._finer = config.hop_length // own.hop_length
        scale = 1 / (len(config.decoder_lookahead) + len(own.lookahead))

        def blocks(lookahead: tuple[int, ...]) -> nn.Sequential:
            sizes = (hidden, config.intermediate_size, config.kernel_size)
            return nn.Sequential(*[ConvNeXtBlock(*sizes, ahead, scale) for ahead in lookahead])

        self.expand = nn.Linear(hidden, config.steps_per_frame * hidden)
        self.blocks = blocks(config.decoder_lookahead)
        self.pitch = PitchNetwork(
            config.num_codebooks, config.codebook_size, own.pitch_size, self.steps_per_frame
        )
        self.refine = nn.Linear(hidden, self._finer * hidden)
        self.fine_blocks = blocks(own.lookahead)
        self.norm = nn.LayerNorm(hidden)
        self.filters = nn.Linear(hidden, 3 * (own.window_length // 2 + 1))
        window = torch.hann_window(own.window_length)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("noise", make_noise(), persistent=False)

    @property
    def steps_per_frame(self) -> int:
        """Filters of a frame."""
        return self._config.steps_per_frame * self._finer

    def source(self) -> SourceStage:
        """The stage between `plan` and `filter`, on the device where the decoder is now."""
        return SourceStage(
            self.noise, self.steps_per_frame, self._own.hop_length, self._config.sample_rate
        )

    def contexts(self) -> tuple[Context, Context]:
        """The frames around a frame that its plan, and its filtered samples, depend on."""
        config, own = self._config, self._own
        coarse = config.steps_per_frame
        blocks = receptive_field(
            looking_ahead(config.kernel_size, config.decoder_lookahead), coarse, coarse
        )
        pitch = self.pitch.context()
        margin = (own.window_length - own.hop_length) // 2
        transform = TransposedConvolution(own.window_length, own.hop_length, margin)
        filtered = receptive_field(
            [*looking_ahead(config.kernel_size, own.lookahead), transform],
            config.samples_per_frame,
            self.steps_per_frame,
        )
        # Of the source a sample depends on what shares a window with it.
        source = -(-(own.window_length - 1) // config.samples_per_frame)
        return _both(blocks, pitch), _both(filtered, Context(source, source))

    def plan(self, codes: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """What to filter: pitches, and what the filters are made of.

        Args:
            codes: [batch, frames, books] int64.
            latents: [batch, frames, hidden_size], their sum in the quantizer.

        Returns:
            [batch, frames, steps_per_frame + size] float32: Hz, and the rest.
        """
        batch, frames, hidden = latents.shape
        steps = frames * self._config.steps_per_frame
        values = self.blocks(self.expand(latents).reshape(batch, steps, hidden))
        return torch.cat([self.pitch(codes), values.float().reshape(batch, frames, -1)], -1)

    def filter(self, source: torch.Tensor) -> torch.Tensor:
        """Samples of a source and of what its filters are made of.

        Args:
            source: [batch, frames, 2 * samples_per_frame + size] of `SourceStage`.

        Returns:
            [batch, frames, samples_per_frame] float32.
        """
        length, own = self._config.samples_per_frame, self._own
        voiced, noise, plan = source.split([length, length, source.shape[-1] - 2 * length], -1)
        values = self.refine(plan.unflatten(-1, (self._config.steps_per_frame, -1)).flatten(1, 2))
        fine = self.fine_blocks(values.unflatten(-1, (self._finer, -1)).flatten(1, 2))
        strength, phase, breath = self.filters(self.norm(fine)).float().chunk(3, -1)
        strength, breath = (
            part.clamp_max(_HIGHEST_LOG_MAGNITUDE).exp() for part in (strength, breath)
        )
        # Autocast would round the sums of the transforms.
        with torch.autocast(source.device.type, enabled=False):
            pair = [
                framed(part.flatten(1), own.hop_length, self.window) for part in (voiced, noise)
            ]
            spectrum = pair[0] * torch.polar(strength, phase) + pair[1] * breath
            return overlap_add(spectrum, own.hop_length, self.window).unflatten(1, (-1, length))

    def forward(self, codes: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """As `plan`, to samples [batch, frames * samples_per_frame]."""
        source, _ = self.source().step(self.plan(codes, latents), [None] * len(latents))
        return self.filter(source).flatten(1)


def _both(one: Context, other: Context) -> Context:
    return Context(
        max(one.left, other.left), max(one.right, other.right), max(one.first, other.first)
    )
