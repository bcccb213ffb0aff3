# SPDX-License-Identifier: Apache-2.0
"""The KV cache group that holds the layers' keys and values of encoder states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vllm.utils.math_utils import cdiv
from vllm.v1.kv_cache_interface import CrossAttentionSpec, KVCacheConfig

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@dataclass(frozen=True, kw_only=True)
class EncoderStatesSpec(CrossAttentionSpec):
    """KV cache of a layer's keys and values of encoder states.

    Blocks are not shared by content: a request's are its own until it is freed.

    Attributes:
        max_states: of a lane.
    """

    max_states: int

    @property
    def prefix_cacheable(self) -> bool:
        """Tokens of the decoder have nothing to do with these blocks."""
        return False

    def max_memory_usage_bytes(self, vllm_config: VllmConfig) -> int:
        """Bytes that one lane takes at most."""
        return int(cdiv(self.max_states, self.block_size) * self.page_size_bytes)

    def max_num_blocks_per_req(self, vllm_config: VllmConfig, max_len: int) -> int:
        """Entries of a block table; as upstream's slot mapping asks for the decoder's positions."""
        return int(cdiv(max(self.max_states, max_len), self.block_size))


def group_of_states(kv_cache_config: KVCacheConfig) -> int | None:
    """Number of the KV cache group that holds keys and values of encoder states, if one does."""
    for number, group in enumerate(kv_cache_config.kv_cache_groups):
        if isinstance(group.kv_cache_spec, EncoderStatesSpec):
            return number
    return None


def slots_of_blocks(
    block_ids: Sequence[int], block_size: int, num_states: int
) -> NDArray[np.int64]:
    """[num_states] slots of the KV cache that a lane's states have in its blocks."""
    starts = np.asarray(block_ids, np.int64)[:, None] * block_size
    slots: NDArray[np.int64] = (starts + np.arange(block_size)).reshape(-1)[:num_states]
    if len(slots) < num_states:
        raise ValueError(f"{len(block_ids)} blocks of {block_size} do not hold {num_states} states")
    return slots
