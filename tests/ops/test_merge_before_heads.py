# SPDX-License-Identifier: Apache-2.0
"""Merging hidden states before a linear head against merging logits after it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vllm.unison.messages.guidance import GuidedGroup
from vllm.unison.sampler.batch_groups import GuidedBatch


@pytest.mark.parametrize("scale", [0.0, 1.5, 3.0, 7.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_orders_agree_up_to_rounding(scale: float, dtype: torch.dtype) -> None:
    """The bound is that of rounding: each product and sum of a head with `hidden` terms, and for
    bfloat16 the merged hidden state's own cast, relative to the sizes of what is summed."""
    generator = torch.Generator().manual_seed(int(scale * 10))
    rows, hidden, candidates = 12, 256, 1024
    states = torch.randn(rows, hidden, generator=generator).to(dtype)
    head = torch.randn(candidates, hidden, generator=generator).to(dtype)
    bias = torch.randn(candidates, generator=generator).to(dtype)
    groups = [
        GuidedGroup([f"{g}", f"{g}#lane1"], [scale, 1 - scale], 0, None) for g in range(rows // 2)
    ]
    row_of = {lane_id: row for row, lane_id in enumerate(r for g in groups for r in g.lane_ids)}
    batch = GuidedBatch(groups, row_of, rows, torch.device("cpu"))

    before = F.linear(batch.merge(states).to(dtype), head, bias).double()
    exact = F.linear(states.double(), head.double(), bias.double())
    after = scale * exact[0::2] + (1 - scale) * exact[1::2]
    sizes = F.linear(states.double().abs(), head.double().abs(), bias.double().abs())
    size = abs(scale) * sizes[0::2] + abs(1 - scale) * sizes[1::2]
    # Roundings: one per term and sum in float32; the cast of the merge and of the result in dtype.
    unit = torch.finfo(torch.float32).eps * hidden + 2 * torch.finfo(dtype).eps
    assert ((before - after).abs() <= unit * size).all()
    assert (before - after).abs().max() > 0


def test_the_sum_of_weights_keeps_a_bias() -> None:
    states = torch.randn(2, 8)
    batch = GuidedBatch(
        [GuidedGroup(["a", "b"], [3.0, -2.0], 0, None)], {"a": 0, "b": 1}, 2, torch.device("cpu")
    )
    bias = torch.full((4,), 100.0)
    merged = F.linear(batch.merge(states), torch.zeros(4, 8), bias)
    torch.testing.assert_close(merged, bias[None])
