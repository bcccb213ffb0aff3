# SPDX-License-Identifier: Apache-2.0
"""Embeddings that take the place of those of a step's tokens: what a model's forward reads."""

from __future__ import annotations

import torch
from torch import nn


class PrefixTokens(nn.Module):
    """The states that stand in a step's first positions of prompts.

    Captured graphs read them where they were at their capture, so they are buffers.

    Args:
        max_tokens: of a batch.
        hidden_size: of the decoder.

    Attributes:
        is_prefix: [max_tokens, 1] bool, whether a token's embedding is replaced.
        states: [max_tokens, hidden_size] by what; other tokens' are never read.
    """

    is_prefix: torch.Tensor
    states: torch.Tensor

    def __init__(self, max_tokens: int, hidden_size: int) -> None:
        super().__init__()
        no_token = torch.zeros(max_tokens, 1, dtype=torch.bool)
        self.register_buffer("is_prefix", no_token, persistent=False)
        self.register_buffer("states", torch.zeros(max_tokens, hidden_size), persistent=False)

    def replace(self, embeddings: torch.Tensor) -> None:
        """Replace those of [num_tokens, hidden_size] embeddings that are of a prefix."""
        count = len(embeddings)
        replaced = torch.where(self.is_prefix[:count], self.states[:count], embeddings)
        embeddings.copy_(replaced)
