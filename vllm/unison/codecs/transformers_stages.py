# SPDX-License-Identifier: Apache-2.0
"""The decoders of transformers' codecs as layers and stages, for streaming.

Layers are read from configurations, and say what transformers' modules do: DAC's decoder
(arXiv 2306.06546, appendix) and the SEANet decoder of EnCodec and Mimi (arXiv 2210.13438, section
3.1; arXiv 2410.00037, section 3.3). What runs is always the module itself.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from vllm.unison.codecs.receptive_field import (
    Convolution,
    Layer,
    TransposedConvolution,
)
from vllm.unison.codecs.stages import StateStage


def dac_decoder_layers(upsampling_ratios: Sequence[int]) -> list[Layer]:
    """Layers of DAC's decoder; X-codec's acoustic decoder has the same."""
    layers: list[Layer] = [Convolution(7)]
    for ratio in upsampling_ratios:
        layers.append(TransposedConvolution(2 * ratio, ratio, trimmed=math.ceil(ratio / 2)))
        layers += [Convolution(7, dilation) for dilation in (1, 3, 9)]
    return [*layers, Convolution(7)]


def _seanet_convolution(config: Any, kernel: int, dilation: int = 1) -> Convolution:
    span = dilation * (kernel - 1)
    padding = span if config.use_causal_conv else span - span // 2
    return Convolution(kernel, dilation, padding, mirrors=config.pad_mode == "reflect")


def seanet_upsampling(config: Any, kernel: int, stride: int) -> TransposedConvolution:
    """A transposed convolution of SEANet's, whose surplus is cut off on one or both sides."""
    surplus = kernel - stride
    if config.use_causal_conv:
        trimmed = surplus - math.ceil(surplus * config.trim_right_ratio)
    else:
        trimmed = surplus - surplus // 2
    return TransposedConvolution(kernel, stride, trimmed)


def seanet_first_layers(config: Any) -> list[Layer]:
    """What the decoder has before it begins to upsample (and before EnCodec's LSTM)."""
    return [_seanet_convolution(config, config.kernel_size)]


def seanet_upsampling_layers(config: Any) -> list[Layer]:
    """What the decoder has from its first upsampling layer on."""
    layers: list[Layer] = []
    for ratio in config.upsampling_ratios:
        layers.append(seanet_upsampling(config, 2 * ratio, ratio))
        layers += [
            _seanet_convolution(
                config, config.residual_kernel_size, config.dilation_growth_rate**number
            )
            for number in range(config.num_residual_layers)
        ]
    return [*layers, _seanet_convolution(config, config.last_kernel_size)]


def run_over_time(
    layers: Sequence[Callable[[torch.Tensor], torch.Tensor]], inputs: torch.Tensor
) -> torch.Tensor:
    """[batch, time, channels] through layers that want [batch, channels, time], and back."""
    hidden = inputs.transpose(1, 2)
    for layer in layers:
        hidden = layer(hidden)
    return hidden.transpose(1, 2)


class LstmStage(StateStage):
    """The LSTM of EnCodec's decoder, whose input is added to its output.

    Args:
        lstm: torch.nn.LSTM with time first.
    """

    def __init__(self, lstm: nn.LSTM) -> None:
        self._lstm = lstm

    def step(
        self, inputs: torch.Tensor, states: Sequence[Any | None]
    ) -> tuple[torch.Tensor, list[Any]]:
        """[batch, num_frames, size] to the same; a state is (h, c), each [layers, size]."""
        lstm = self._lstm
        zeros = inputs.new_zeros(lstm.num_layers, lstm.hidden_size)
        pairs = [(zeros, zeros) if state is None else state for state in states]
        before = tuple(torch.stack([pair[i] for pair in pairs], dim=1) for i in (0, 1))
        by_time = inputs.transpose(0, 1)
        outputs, (hidden, cell) = lstm(by_time, before)
        after = [
            (h.clone(), c.clone()) for h, c in zip(hidden.unbind(1), cell.unbind(1), strict=True)
        ]
        return (outputs + by_time).transpose(0, 1), after


class _WindowCache:
    """Keys and values of past positions, as attention modules of transformers ask for them."""

    def __init__(self, past: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.layers = past

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [batch, heads, new, size] to a layer, and return all that it has."""
        past_key, past_value = self.layers[layer_idx]
        whole = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
        self.layers[layer_idx] = whole
        return whole


class SlidingAttentionStage(StateStage):
    """A transformer whose positions attend to a sliding window of the past (Mimi's).

    Its state is the keys and values of the last window - 1 positions, and the number of positions
    seen, which the rotary embedding needs.

    Args:
        transformer: a MimiTransformerModel.
    """

    def __init__(self, transformer: Any) -> None:
        config = transformer.config
        self._transformer = transformer
        self._window = int(config.sliding_window)
        self._past_shape = (config.num_key_value_heads, config.head_dim)

    def step(
        self, inputs: torch.Tensor, states: Sequence[Any | None]
    ) -> tuple[torch.Tensor, list[Any]]:
        """[batch, num_frames, positions per frame, size] to the same.

        A state is (number of positions, keys and values [layers, 2, heads, past, head size]).
        """
        hidden = inputs.flatten(1, 2)
        new = hidden.shape[1]
        device = hidden.device
        layers = self._transformer.layers
        heads, size = self._past_shape
        none = (0, hidden.new_zeros(len(layers), 2, heads, 0, size))
        known = [none if state is None else state for state in states]
        lengths = [kept.shape[3] for _, kept in known]
        longest = max(lengths)
        # Pasts are aligned at their ends; what is before the shorter ones is masked.
        pasts = torch.stack(
            [
                nn.functional.pad(kept, (0, 0, longest - length, 0))
                for (_, kept), length in zip(known, lengths, strict=True)
            ],
            dim=2,
        )
        counts = torch.tensor([count for count, _ in known], device=device)
        position = counts[:, None] + torch.arange(new, device=device)
        mask = self._mask(torch.tensor(lengths, device=device), longest, new, hidden.dtype)
        embeddings = self._transformer.rotary_emb(hidden, position)
        cache = _WindowCache([(layer[0], layer[1]) for layer in pasts])
        for layer in layers:
            (hidden,) = layer(
                hidden,
                attention_mask=mask,
                past_key_values=cache,
                position_embeddings=embeddings,
            )
        whole = torch.stack([torch.stack(pair) for pair in cache.layers])
        after = []
        for row, length in enumerate(lengths):
            kept = min(length + new, self._window - 1)
            state = whole[:, :, row, :, whole.shape[4] - kept :].clone()
            after.append((known[row][0] + new, state))
        return hidden.unflatten(1, inputs.shape[1:3]), after

    def _mask(
        self, lengths: torch.Tensor, longest: int, new: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """[batch, 1, new, longest + new], added to the attention's scores."""
        device = lengths.device
        key = torch.arange(longest + new, device=device)
        query = longest + torch.arange(new, device=device)[:, None]
        seen = (key <= query) & (key > query - self._window)
        real = key >= longest - lengths[:, None]
        allowed = seen & real[:, None]
        lowest = torch.finfo(dtype).min
        return torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill(~allowed, lowest)[
            :, None
        ]
