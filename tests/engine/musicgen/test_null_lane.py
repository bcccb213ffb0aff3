# SPDX-License-Identifier: Apache-2.0
"""Rows without encoder states, with each kernel that attention on the CPU chooses among."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.musicgen.cases import GREEDY, LONG, SHORT, MusicCase, codes_of, generate
from tests.engine.streams.conftest import open_engine
from tests.support.musicgen import write_musicgen
from vllm.model_executor.models.musicgen import CrossAttention

GUIDED = GREEDY | {"guidance_scale": 3.0}


@pytest.mark.parametrize(
    ("dtype", "head_size"),
    # Upstream's kernels are for heads of a multiple of 32 or of 16, and for matrix units in
    # bfloat16 where the processor has them.
    [("float32", 32), ("bfloat16", 32), ("float32", 80), ("bfloat16", 80)],
)
def test_their_cross_attention_adds_exactly_zero(
    dtype: str, head_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every layer and step, beside rows that attend to their texts."""
    zero, other = [], []
    forward = CrossAttention.forward

    def watching(self: Any, hidden: torch.Tensor, without_states: torch.Tensor) -> torch.Tensor:
        output = forward(self, hidden, without_states)
        of_rows = without_states[:, 0]
        zero.append(output[of_rows])
        other.append(output[~of_rows])
        return output

    write_musicgen(tmp_path, hidden_size=2 * head_size)
    with open_engine(tmp_path, dtype=dtype) as llm:
        monkeypatch.setattr(CrossAttention, "forward", watching)
        outputs = generate(llm, [MusicCase(text, 10, GUIDED) for text in (SHORT, LONG)])
    assert all(len(codes_of(output)) == 10 for output in outputs)
    added = torch.cat(zero)
    assert len(added) >= 2 * 2 * 10 and torch.equal(added, torch.zeros_like(added))
    assert (torch.cat(other).abs().sum(dim=1) > 0).all()
