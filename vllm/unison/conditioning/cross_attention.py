# SPDX-License-Identifier: Apache-2.0
"""Attention of a decoder's layers to encoder states.

The keys and values of a lane's states are a KV cache group of their own beside the decoder's. They
are written once, outside the forward, when the lane enters the batch (`write`), and then only read;
so nothing of them depends on how its prompt is divided into chunks, and a captured graph holds no
write. Lanes without states have no blocks: their rows read what is there and the result is
replaced by zeros, so that their cross-attention adds exactly zero whatever a backend makes of an
empty row.
"""

from __future__ import annotations

import functools
from copy import copy
from typing import Any

import torch
from torch import nn

from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.unison.conditioning.states_kv_cache import EncoderStatesSpec
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionType,
    CommonAttentionMetadata,
    subclass_attention_backend,
)
from vllm.v1.attention.selector import get_attn_backend


class StateRows(nn.Module):
    """How many encoder states each row of the batch has: what all layers' attention reads.

    Args:
        max_states: of a lane.
        max_rows: of a batch.
        max_tokens: of a batch.

    Attributes:
        max_states: of a lane.
        lengths: [max_rows] int32, at least 1: rows without states read one position.
        without_states: [max_tokens, 1] bool, whether a token's row has none.
    """

    lengths: torch.Tensor
    without_states: torch.Tensor

    def __init__(self, max_states: int, max_rows: int, max_tokens: int) -> None:
        super().__init__()
        self.max_states = max_states
        lengths = torch.ones(max_rows, dtype=torch.int32)
        self.register_buffer("lengths", lengths, persistent=False)
        without = torch.zeros(max_tokens, 1, dtype=torch.bool)
        self.register_buffer("without_states", without, persistent=False)


class EncoderAttention(Attention):
    """Attention of one layer to encoder states.

    Args:
        num_heads, head_size, scale, num_kv_heads, cache_config, prefix: see Attention.
        rows: the batch's; shared by all layers.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        *,
        rows: StateRows,
        cache_config: Any,
        prefix: str,
    ) -> None:
        cache_dtype = "auto" if cache_config is None else cache_config.cache_dtype
        underlying = get_attn_backend(
            head_size,
            torch.get_default_dtype(),
            cache_dtype,
            attn_type=AttentionType.ENCODER_DECODER,
        )
        super().__init__(
            num_heads,
            head_size,
            scale,
            cache_config=cache_config,
            prefix=prefix,
            attn_type=AttentionType.ENCODER_DECODER,
            attn_backend=_reading_states(underlying),
        )
        self.rows = rows

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> EncoderStatesSpec:
        """The layer's part of the group."""
        return EncoderStatesSpec(
            block_size=vllm_config.cache_config.block_size,
            num_kv_heads=self.num_kv_heads,
            head_size=self.head_size,
            dtype=self.kv_cache_torch_dtype,
            max_states=self.rows.max_states,
        )

    def attend(self, query: torch.Tensor, without_states: torch.Tensor) -> torch.Tensor:
        """[num_tokens, num_heads * head_size] of each token; zeros where there are no states.

        Args:
            query: [num_tokens, num_heads * head_size].
            without_states: [num_tokens, 1] of StateRows.
        """
        return self(query, None, None).masked_fill(without_states, 0)

    def write(self, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor) -> None:
        """Write a lane's keys and values.

        Args:
            keys, values: [num_states, num_kv_heads, head_size].
            slots: [num_states] int64 of the KV cache; see `slots_of_blocks`.
        """
        backend: Any = self.impl
        backend.do_kv_cache_update(self, keys, values, self.kv_cache, slots)


@functools.lru_cache
def _reading_states(underlying: type[AttentionBackend]) -> type[AttentionBackend]:
    """A backend as the platform has it, whose rows attend to their encoder states."""
    backend: Any = underlying
    builder_class: Any = backend.get_builder_cls()

    class StatesBuilder(builder_class):
        """Tells the backend of the states' lengths where it asks for the decoder's."""

        def __init__(
            self, spec: Any, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
        ) -> None:
            super().__init__(spec, layer_names, vllm_config, device)
            layers = vllm_config.compilation_config.static_forward_context
            self._state_rows: StateRows = layers[layer_names[0]].rows
            # Nothing on the host knows the rows' own lengths, nor needs to.
            self._upper_bounds = torch.full(
                (len(self._state_rows.lengths),),
                self._state_rows.max_states,
                dtype=torch.int32,
                device="cpu",
            )

        def build(
            self,
            common_prefix_len: int,
            common_attn_metadata: CommonAttentionMetadata,
            fast_build: bool = False,
        ) -> Any:
            """Upstream's metadata, not causal, over the states."""
            rows, of_states = self._state_rows, copy(common_attn_metadata)
            of_states.causal = False
            of_states.seq_lens = rows.lengths[: of_states.num_reqs]
            of_states.max_seq_len = rows.max_states
            of_states.seq_lens_cpu_upper_bound = self._upper_bounds[: of_states.num_reqs]
            return super().build(0, of_states, fast_build)

    return subclass_attention_backend("EncoderStates_", underlying, StatesBuilder)
