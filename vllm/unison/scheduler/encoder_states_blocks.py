# SPDX-License-Identifier: Apache-2.0
"""Blocks of encoder states' keys and values: allocated for all of a text at once, never shared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.unison.conditioning.states_kv_cache import EncoderStatesSpec
from vllm.v1.core.single_type_kv_cache_manager import CrossAttentionManager
from vllm.v1.kv_cache_interface import CrossAttentionSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

if TYPE_CHECKING:
    from vllm.v1.request import Request


class EncoderStatesManager(CrossAttentionManager):
    """Upstream's manager of cross-attention, beside a group whose prefixes are cached."""

    def cache_blocks(self, request: Request, num_tokens: int, *args: Any, **kwargs: Any) -> None:
        """The tokens whose blocks are cached are not in these ones."""


def register_encoder_states() -> None:
    """Let upstream's coordinator use the manager for the spec."""
    # Upstream registers its own only while none is registered.
    KVCacheSpecRegistry._ensure_registered()
    KVCacheSpecRegistry.register(EncoderStatesSpec, EncoderStatesManager, CrossAttentionSpec)
