# SPDX-License-Identifier: Apache-2.0
"""Sums of rows: the compiled operators against their definitions, bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.multistream.extension import load_extension
from vllm.multistream.row_sums import (
    merge_lanes,
    merge_lanes_reference,
    multistream_embed,
    multistream_embed_reference,
)

from .problems import embedding_arguments

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WIDTHS = st.one_of(st.integers(1, 70), st.sampled_from([256, 1023, 1024, 1025, 3000]))


@pytest.fixture(autouse=True, scope="module")
def _compiled_operators() -> None:
    load_extension()


def equal_bits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal, NaN where the other is NaN (its payload is free)."""
    same = found.dtype == expected.dtype and torch.equal(found.isnan(), expected.isnan())
    return same and torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**32), WIDTHS, st.sampled_from(DTYPES), st.booleans())
def test_merge_lanes(seed: int, width: int, dtype: torch.dtype, widened: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, groups, lanes = 9, 5, 4
    # A view with gaps between rows.
    storage = torch.randn((rows, width + 3), generator=generator) * 100
    values = storage.to(dtype)[:, 2 : width + 2]
    values[torch.rand(values.shape, generator=generator) < 0.01] = torch.nan
    values[torch.rand(values.shape, generator=generator) < 0.01] = torch.inf
    sources = torch.randint(-1, rows + 1, (groups, lanes), generator=generator)
    sources[0] = -1
    weights = torch.randn((groups, lanes), generator=generator) * 3
    weights[torch.rand(weights.shape, generator=generator) < 0.2] = 1.0
    out = torch.float32 if widened else dtype
    found = merge_lanes(values, sources, weights, out)
    assert equal_bits(found, merge_lanes_reference(values, sources, weights, out))
    assert (found[0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_that_of_torch(dtype: torch.dtype, instruction_sets: list[str]) -> None:
    """Every value of the 16-bit type times weights that give every kind of rounding."""
    bits = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    values = bits.view(dtype)[None]
    sources = torch.zeros((6, 1), dtype=torch.int64)
    weights = torch.tensor([[1.0], [1.0 + 2**-10], [0.3333], [2**-13], [-1.7], [2**-140]])
    expected = merge_lanes_reference(values, sources, weights)
    for name in instruction_sets:
        torch.ops.unison.set_instruction_set(name)
        assert equal_bits(merge_lanes(values, sources, weights), expected), name


@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 2**32),
    st.integers(1, 9),
    WIDTHS,
    st.sampled_from(DTYPES),
    st.sampled_from([None, torch.int32, torch.int64]),
)
def test_multistream_embed(
    seed: int, streams: int, width: int, dtype: torch.dtype, ids_dtype: torch.dtype | None
) -> None:
    arguments = embedding_arguments(seed, streams, width, dtype, ids_dtype)
    found = multistream_embed(*arguments)
    expected = multistream_embed_reference(*arguments)
    assert equal_bits(found, expected)
    assert not found.isnan().any()


def test_embedding_in_float32_is_the_sum() -> None:
    arguments = embedding_arguments(3, 5, 64, torch.float32, torch.int64)
    primary, ids, skipped, auxiliary, row_of, auxiliary_ids = arguments
    found = multistream_embed(*arguments)
    for token in range(len(found)):
        total = torch.zeros(64, dtype=torch.float64)
        own = int(ids[token])
        if 0 <= own < len(primary) and not skipped[own]:
            total += primary[own]
        for other in auxiliary_ids[token].tolist():
            if 0 <= other < len(row_of) and row_of[other] > 0:
                total += auxiliary[row_of[other]]
        torch.testing.assert_close(found[token].double(), total, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets(instruction_sets: list[str], dtype: torch.dtype) -> None:
    arguments = embedding_arguments(5, 8, 1000, dtype, torch.int32)
    expected = multistream_embed_reference(*arguments)
    for name in instruction_sets:
        torch.ops.unison.set_instruction_set(name)
        assert equal_bits(multistream_embed(*arguments), expected), name


def test_many_rows_in_threads() -> None:
    values = torch.randn(600, 1024)
    sources = torch.arange(600).view(300, 2)
    weights = torch.randn(300, 2)
    found = merge_lanes(values, sources, weights)
    assert torch.equal(found, merge_lanes_reference(values, sources, weights))


def test_wrong_arguments_are_named() -> None:
    values, sources, weights = torch.zeros(3, 4), torch.zeros((2, 2)).long(), torch.zeros(2, 2)
    with pytest.raises(RuntimeError, match="values must be float32, bfloat16 or float16"):
        merge_lanes(values.double(), sources, weights)
    with pytest.raises(RuntimeError, match="values must be a matrix with contiguous rows"):
        merge_lanes(values[:, ::2], sources, weights)
    with pytest.raises(RuntimeError, match="weights must have the shape of sources"):
        merge_lanes(values, sources, weights[:1])
    with pytest.raises(RuntimeError, match="merged must be float32 or of the type of values"):
        merge_lanes(values, sources, weights, torch.bfloat16)
    primary, ids, skipped, auxiliary, row_of, auxiliary_ids = embedding_arguments(
        0, 3, 8, torch.float32, torch.int64
    )
    with pytest.raises(RuntimeError, match="auxiliary_ids must have"):
        multistream_embed(primary, ids, skipped, auxiliary, row_of, auxiliary_ids[:2])
    with pytest.raises(RuntimeError, match="auxiliary_embedding must have the type and width"):
        multistream_embed(primary, ids, skipped, auxiliary.half(), row_of, auxiliary_ids)
    with pytest.raises(RuntimeError, match="primary_skipped needs primary_ids"):
        multistream_embed(primary[:23], None, skipped, auxiliary, row_of, auxiliary_ids)


def test_fake_implementations() -> None:
    values, sources, weights = torch.zeros(3, 4), torch.zeros((2, 2)).long(), torch.zeros(2, 2)
    torch.library.opcheck(
        torch.ops.unison.merge_lanes.default,
        (values, sources, weights, torch.zeros(2, 4)),
        test_utils=("test_schema", "test_faketensor"),
    )
    torch.library.opcheck(
        torch.ops.unison.multistream_embed.default,
        embedding_arguments(0, 3, 8, torch.float32, torch.int64),
        test_utils=("test_schema", "test_faketensor"),
    )
