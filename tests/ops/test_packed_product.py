# SPDX-License-Identifier: Apache-2.0
"""The audio head by packed weights against the exact product."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vllm.unison.ops.packed_product import packed_product


@pytest.mark.parametrize("rows", [1, 2, 7, 33])
@pytest.mark.parametrize(("columns", "hidden"), [(1024, 256), (8200, 256), (77, 64), (96, 100)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_packed_product(rows: int, columns: int, hidden: int, has_bias: bool) -> None:
    """Within the rounding of float32 sums and of a result in bfloat16."""
    generator = torch.Generator().manual_seed(rows)
    states = torch.randn(rows, hidden, generator=generator).bfloat16()
    weight = torch.randn(columns, hidden, generator=generator).bfloat16()
    bias = torch.randn(columns, generator=generator).bfloat16() if has_bias else None
    exact = F.linear(states.double(), weight.double(), None if bias is None else bias.double())
    found = packed_product(weight.clone(), None if bias is None else bias.clone())(states)
    assert found.dtype == torch.bfloat16
    assert found.shape == (rows, columns)
    sizes = F.linear(states.double().abs(), weight.double().abs())
    bound = torch.finfo(torch.float32).eps * hidden * sizes + 2.0**-8 * exact.abs() + 1e-6
    assert ((found.double() - exact).abs() <= bound).all()
