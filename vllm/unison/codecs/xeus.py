# SPDX-License-Identifier: Apache-2.0
"""The encoder of XEUS: a clip's samples to 50 states per second.

Convolutions as wav2vec 2.0 has them (arXiv 2006.11477), a convolution that tells the blocks where
frames are, and E-Branchformer blocks (arXiv 2210.00077): between two halves of a feed-forward
module attention and a gated convolution (arXiv 2207.02971) run side by side, and a depthwise
convolution merges them. Submodules have the published tensors' names.

One clip at a time, without padding, so that a clip's states do not depend on another one's length.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from vllm.unison.formats.xeus_format import POSITION_GROUPS, POSITION_KERNEL, XeusFormat

_EPSILON = 1e-12
"""Of the norms in the blocks; those of the convolutions have PyTorch's own."""


class XeusEncoder(nn.Module):
    """All of XEUS that is not for training.

    Args:
        shape: what its settings say.

    Attributes:
        shape: the same.
    """

    def __init__(self, shape: XeusFormat) -> None:
        super().__init__()
        self.shape = shape
        self.frontend = _Convolutions(shape)
        self.preencoder = nn.ModuleDict(
            {"linear_out": nn.Linear(shape.convolutions[-1][0], shape.hidden_size)}
        )
        self.encoder = _Blocks(shape)

    def num_frames(self, num_samples: int) -> int:
        """Frames of a clip of so many samples."""
        length = num_samples
        for _, kernel, stride in self.shape.convolutions:
            length = max(0, (length - kernel) // stride + 1)
        return length

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """float32 samples [num_samples] to the last block's normalized states.

        Args:
            samples: at 16 kHz, at least `shape.min_samples` of them, at any level: a clip is
                brought to mean 0 and variance 1.

        Returns:
            float32 [num_frames, hidden_size].
        """
        samples = functional.layer_norm(samples, samples.shape)
        hidden = self.preencoder["linear_out"](self.frontend(samples[None, None]))
        states: torch.Tensor = self.encoder(hidden)[0]
        return states


class _Convolutions(nn.Module):
    """[batch, 1, num_samples] to [batch, num_frames, channels]."""

    def __init__(self, shape: XeusFormat) -> None:
        super().__init__()
        inputs = [1, *(channels for channels, _, _ in shape.convolutions)]
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "conv": nn.Conv1d(inputs[i], channels, kernel, stride),
                    "layer_norm": nn.LayerNorm(channels),
                }
            )
            for i, (channels, kernel, stride) in enumerate(shape.convolutions)
        )

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        hidden = samples
        for layer in self.layers:
            frames = layer["layer_norm"](layer["conv"](hidden).transpose(1, 2))
            hidden = functional.gelu(frames).transpose(1, 2)
        return hidden.transpose(1, 2)


class _Blocks(nn.Module):
    """[batch, num_frames, hidden_size] to the same."""

    def __init__(self, shape: XeusFormat) -> None:
        super().__init__()
        self.embed = nn.ModuleList([_Positions(shape.hidden_size)])
        self.encoders = nn.ModuleList(_Block(shape) for _ in range(shape.num_layers))
        self.after_norm = nn.LayerNorm(shape.hidden_size, eps=_EPSILON)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = self.embed[0](hidden)
        for block in self.encoders:
            hidden = block(hidden)
        normalized: torch.Tensor = self.after_norm(hidden)
        return normalized


class _Positions(nn.Module):
    """What tells frames' places: it takes the frames' place instead of being added to them."""

    def __init__(self, size: int) -> None:
        super().__init__()
        convolution = nn.Conv1d(
            size, size, POSITION_KERNEL, padding=POSITION_KERNEL // 2, groups=POSITION_GROUPS
        )
        self.convs = nn.ModuleList([convolution])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        # With an even kernel there is one frame too many at the end.
        placed = self.convs[0](hidden.transpose(1, 2))[..., : hidden.shape[1]]
        return functional.gelu(placed).transpose(1, 2)


class _Block(nn.Module):
    def __init__(self, shape: XeusFormat) -> None:
        super().__init__()
        size = shape.hidden_size
        self.attn = _Attention(size, shape.num_heads)
        self.cgmlp = _GatedConvolution(size, shape.gate_size, shape.gate_kernel)
        self.feed_forward = _FeedForward(size, shape.feed_forward_size)
        self.feed_forward_macaron = _FeedForward(size, shape.feed_forward_size)
        self.norm_ff = nn.LayerNorm(size, eps=_EPSILON)
        self.norm_ff_macaron = nn.LayerNorm(size, eps=_EPSILON)
        self.norm_mha = nn.LayerNorm(size, eps=_EPSILON)
        self.norm_mlp = nn.LayerNorm(size, eps=_EPSILON)
        self.norm_final = nn.LayerNorm(size, eps=_EPSILON)
        self.depthwise_conv_fusion = _depthwise(2 * size, shape.merge_kernel)
        self.merge_proj = nn.Linear(2 * size, size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + 0.5 * self.feed_forward_macaron(self.norm_ff_macaron(hidden))
        attended, gated = self.attn(self.norm_mha(hidden)), self.cgmlp(self.norm_mlp(hidden))
        both = torch.cat((attended, gated), dim=-1)
        near = _over_time(self.depthwise_conv_fusion, both)
        hidden = hidden + self.merge_proj(both + near)
        hidden = hidden + 0.5 * self.feed_forward(self.norm_ff(hidden))
        normalized: torch.Tensor = self.norm_final(hidden)
        return normalized


class _Attention(nn.Module):
    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.linear_q = nn.Linear(size, size)
        self.linear_k = nn.Linear(size, size)
        self.linear_v = nn.Linear(size, size)
        self.linear_out = nn.Linear(size, size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            projection(hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.linear_q, self.linear_k, self.linear_v)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        attended: torch.Tensor = self.linear_out(mixed.transpose(1, 2).flatten(2))
        return attended


class _FeedForward(nn.Module):
    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(size, inner)
        self.w_2 = nn.Linear(inner, size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.w_2(functional.silu(self.w_1(hidden)))
        return result


class _GatedConvolution(nn.Module):
    """One half of the channels times a convolution over the other half."""

    def __init__(self, size: int, inner: int, kernel: int) -> None:
        super().__init__()
        self.channel_proj1 = nn.ModuleList([nn.Linear(size, inner)])
        self.csgu = nn.ModuleDict(
            {"norm": nn.LayerNorm(inner // 2, eps=_EPSILON), "conv": _depthwise(inner // 2, kernel)}
        )
        self.channel_proj2 = nn.Linear(inner // 2, size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        kept, gate = functional.gelu(self.channel_proj1[0](hidden)).chunk(2, dim=-1)
        gate = _over_time(self.csgu["conv"], self.csgu["norm"](gate))
        result: torch.Tensor = self.channel_proj2(kept * gate)
        return result


def _depthwise(channels: int, kernel: int) -> nn.Conv1d:
    return nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=channels)


def _over_time(convolution: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """A convolution of frames that lie in rows."""
    convolved: torch.Tensor = convolution(hidden.transpose(1, 2)).transpose(1, 2)
    return convolved
