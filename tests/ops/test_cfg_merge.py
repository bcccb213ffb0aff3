# SPDX-License-Identifier: Apache-2.0
"""The CFG merge: the compiled operator against its definition, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.unison.ops.cfg_merge import cfg_merge, cfg_merge_reference

from .problems import WIDTHS, equal_bits

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("merge", [cfg_merge, cfg_merge_reference])
def test_is_the_formula(merge: Callable[..., torch.Tensor]) -> None:
    """Plain CFG of two groups, and three lanes; each is computed by hand."""
    values = torch.tensor([[1.0, 8.0], [3.0, 4.0], [5.0, -2.0]])
    members = torch.tensor([[2, 0, -1], [1, -1, -1], [0, 1, 2]])
    weights = torch.tensor([[3.0, -2.0, 0.0], [1.0, 0.0, 0.0], [2.0, -0.5, -0.5]])
    expected = [[13.0, -22.0], [3.0, 4.0], [-2.0, 15.0]]
    assert merge(values, members, weights).tolist() == expected


def test_a_group_depends_on_its_own_lanes_only() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn((12, 1000), generator=generator).bfloat16()
    members = torch.randint(0, 12, (20, 3), generator=generator)
    weights = torch.randn((20, 3), generator=generator)
    together = cfg_merge(values, members, weights)
    for group in range(20):
        own = slice(group, group + 1)
        assert torch.equal(cfg_merge(values, members[own], weights[own])[0], together[group])


@settings(max_examples=80)
@given(st.integers(0, 2**32), WIDTHS, st.sampled_from(DTYPES), st.booleans())
def test_cfg_merge(seed: int, width: int, dtype: torch.dtype, widened: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, groups, lanes = 9, 5, 4
    # A view with gaps between rows.
    storage = torch.randn((rows, width + 3), generator=generator) * 100
    values = storage.to(dtype)[:, 2 : width + 2]
    values[torch.rand(values.shape, generator=generator) < 0.01] = torch.nan
    values[torch.rand(values.shape, generator=generator) < 0.01] = torch.inf
    members = torch.randint(-1, rows + 1, (groups, lanes), generator=generator)
    members[0] = -1
    weights = torch.randn((groups, lanes), generator=generator) * 3
    weights[torch.rand(weights.shape, generator=generator) < 0.2] = 1.0
    out = torch.float32 if widened else dtype
    found = cfg_merge(values, members, weights, out)
    assert equal_bits(found, cfg_merge_reference(values, members, weights, out))
    assert (found[0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_that_of_torch(dtype: torch.dtype, instruction_sets: list[str]) -> None:
    """Every value of the 16-bit type times weights that give every kind of rounding."""
    bits = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    values = bits.view(dtype)[None]
    members = torch.zeros((6, 1), dtype=torch.int64)
    weights = torch.tensor([[1.0], [1.0 + 2**-10], [0.3333], [2**-13], [-1.7], [2**-140]])
    expected = cfg_merge_reference(values, members, weights)
    for name in instruction_sets:
        torch.ops.unison.set_instruction_set(name)
        assert equal_bits(cfg_merge(values, members, weights), expected), name


def test_many_rows_in_threads() -> None:
    values = torch.randn(600, 1024)
    members = torch.arange(600).view(300, 2)
    weights = torch.randn(300, 2)
    found = cfg_merge(values, members, weights)
    assert torch.equal(found, cfg_merge_reference(values, members, weights))


def test_wrong_arguments_are_named() -> None:
    values, members, weights = torch.zeros(3, 4), torch.zeros((2, 2)).long(), torch.zeros(2, 2)
    with pytest.raises(RuntimeError, match="values must be float32, bfloat16 or float16"):
        cfg_merge(values.double(), members, weights)
    with pytest.raises(RuntimeError, match="values must be a matrix with contiguous rows"):
        cfg_merge(values[:, ::2], members, weights)
    with pytest.raises(RuntimeError, match="weights must have the shape of members"):
        cfg_merge(values, members, weights[:1])
    with pytest.raises(RuntimeError, match="merged must be float32 or of the type of values"):
        cfg_merge(values, members, weights, torch.bfloat16)


def test_fake_implementation() -> None:
    values, members, weights = torch.zeros(3, 4), torch.zeros((2, 2)).long(), torch.zeros(2, 2)
    torch.library.opcheck(
        torch.ops.unison.cfg_merge.default,
        (values, members, weights, torch.zeros(2, 4)),
        test_utils=("test_schema", "test_faketensor"),
    )
