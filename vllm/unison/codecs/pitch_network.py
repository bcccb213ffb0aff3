# SPDX-License-Identifier: Apache-2.0
"""A voice's pitch, of the codes of its frames.

The phase of a voice is the sum of its pitch over all time, so a pitch must not depend, in the
least, on how many frames are decoded at a time, or beside whom. Sums of matrix products do, in
their last digits; here they are taken in float64, and what is left of it is rounded away.
"""

import torch
from torch import nn
from torch.nn import functional

from vllm.unison.codecs.receptive_field import Context, looking_ahead, receptive_field

LOWEST_PITCH, HIGHEST_PITCH = 50.0, 600.0
"""Hz; a pitch outside is moved to the nearer one."""

GRID = 1024
"""Steps of a Hz that pitches are rounded to; float32 holds every one of them."""

_KERNEL = 5
_LOOKAHEAD = (2, 0)


class PitchNetwork(nn.Module):
    """Two convolutions over frames.

    Args:
        num_codebooks, codebook_size: of the codes.
        size: channels.
        steps_per_frame: pitches of a frame.
    """

    def __init__(
        self, num_codebooks: int, codebook_size: int, size: int, steps_per_frame: int
    ) -> None:
        super().__init__()
        self.tables = nn.Parameter(0.3 * torch.randn(num_codebooks, codebook_size, size))
        self.mix = nn.Conv1d(size, size, _KERNEL)
        self.octaves = nn.Conv1d(size, steps_per_frame, _KERNEL)

    @staticmethod
    def context() -> Context:
        """The frames around a frame that its pitch depends on."""
        return receptive_field(looking_ahead(_KERNEL, _LOOKAHEAD), 1)

    def course(self, codes: torch.Tensor) -> torch.Tensor:
        """Pitch before it is rounded, with gradients.

        Args:
            codes: [batch, frames, at most num_codebooks] int64.

        Returns:
            [batch, frames, steps_per_frame] float64, Hz.
        """
        tables = self.tables.double()
        values = tables[0][codes[..., 0]]
        for book in range(1, codes.shape[-1]):
            values = values + tables[book][codes[..., book]]
        hidden = values.transpose(1, 2)
        for layer, ahead in zip((self.mix, self.octaves), _LOOKAHEAD, strict=True):
            padded = functional.pad(hidden.tanh(), (_KERNEL - 1 - ahead, ahead))
            bias = None if layer.bias is None else layer.bias.double()
            hidden = functional.conv1d(padded, layer.weight.double(), bias)
        middle = (LOWEST_PITCH * HIGHEST_PITCH) ** 0.5
        return (middle * torch.exp2(hidden)).transpose(1, 2)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """As of `course`, rounded, float32."""
        pitch = self.course(codes).clamp(LOWEST_PITCH, HIGHEST_PITCH)
        return ((pitch * GRID).round() / GRID).float()
