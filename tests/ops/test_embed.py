# SPDX-License-Identifier: Apache-2.0
"""The embeddings of a position's streams: the operator against its definition, bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.unison.ops.embed import embed_streams, embed_streams_reference

from .problems import WIDTHS, embedding_arguments, equal_bits

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@settings(max_examples=80)
@given(
    st.integers(0, 2**32),
    st.integers(1, 9),
    WIDTHS,
    st.sampled_from(DTYPES),
    st.sampled_from([None, torch.int32, torch.int64]),
)
def test_embed_streams(
    seed: int, streams: int, width: int, dtype: torch.dtype, ids_dtype: torch.dtype | None
) -> None:
    arguments = embedding_arguments(seed, streams, width, dtype, ids_dtype)
    found = embed_streams(*arguments)
    expected = embed_streams_reference(*arguments)
    assert equal_bits(found, expected)
    assert not found.isnan().any()


def test_embedding_in_float32_is_the_sum() -> None:
    arguments = embedding_arguments(3, 5, 64, torch.float32, torch.int64)
    primary, ids, skipped, auxiliary, row_of, auxiliary_ids = arguments
    found = embed_streams(*arguments)
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
    expected = embed_streams_reference(*arguments)
    for name in instruction_sets:
        torch.ops.unison.set_instruction_set(name)
        assert equal_bits(embed_streams(*arguments), expected), name


def test_wrong_arguments_are_named() -> None:
    primary, ids, skipped, auxiliary, row_of, auxiliary_ids = embedding_arguments(
        0, 3, 8, torch.float32, torch.int64
    )
    with pytest.raises(RuntimeError, match="auxiliary_ids must have"):
        embed_streams(primary, ids, skipped, auxiliary, row_of, auxiliary_ids[:2])
    with pytest.raises(RuntimeError, match="auxiliary_embedding must have the type and width"):
        embed_streams(primary, ids, skipped, auxiliary.half(), row_of, auxiliary_ids)
    with pytest.raises(RuntimeError, match="out must be contiguous"):
        embed_streams(
            primary, ids, skipped, auxiliary, row_of, auxiliary_ids, out=torch.empty(23, 9)
        )
    with pytest.raises(RuntimeError, match="primary_skipped needs primary_ids"):
        embed_streams(primary[:23], None, skipped, auxiliary, row_of, auxiliary_ids)


def test_the_result_is_written_where_the_caller_says() -> None:
    arguments = embedding_arguments(2, 3, 8, torch.float32, torch.int64)
    kept = torch.full((30, 8), 7.0)
    primary, ids, skipped, auxiliary, row_of, auxiliary_ids = arguments
    found = embed_streams(primary, ids, skipped, auxiliary, row_of, auxiliary_ids, out=kept[:23])
    assert found.data_ptr() == kept.data_ptr()
    assert equal_bits(kept[:23], embed_streams_reference(*arguments))
    assert torch.equal(kept[23:], torch.full((7, 8), 7.0))


def test_fake_implementation() -> None:
    torch.library.opcheck(
        torch.ops.unison.embed_streams.default,
        (*embedding_arguments(0, 3, 8, torch.float32, torch.int64), torch.empty(23, 8)),
        test_utils=("test_schema", "test_faketensor"),
    )
