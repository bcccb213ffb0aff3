# SPDX-License-Identifier: Apache-2.0
"""Parts of the MusicGen decoder that need no engine."""

from __future__ import annotations

import pytest
import torch
from transformers.models.musicgen.modeling_musicgen import MusicgenSinusoidalPositionalEmbedding

from vllm.model_executor.models.musicgen import sinusoids


@pytest.mark.parametrize(("count", "size"), [(1, 4), (7, 16), (300, 64)])
def test_positions_are_transformers(count: int, size: int) -> None:
    expected = MusicgenSinusoidalPositionalEmbedding(count, size).weights
    torch.testing.assert_close(sinusoids(count, size), expected[:count], atol=1e-6, rtol=0)
