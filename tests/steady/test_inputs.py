# SPDX-License-Identifier: Apache-2.0
"""Moving a step's inputs on, operator against definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.multistream.extension import load_extension
from vllm.steady.inputs import move_inputs, move_inputs_reference

POISON = 0x5A5A5A5A


@pytest.fixture(autouse=True, scope="module")
def _compiled_operators() -> None:
    load_extension()


def _problem(
    seed: int, rows: int, streams: int, block_size: int, blocks: int = 5
) -> tuple[torch.Tensor | int, ...]:
    generator = torch.Generator().manual_seed(seed)

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator)

    positions = integers(blocks * block_size - 1, rows)
    return (
        integers(10000, rows, streams).int(),
        integers(2**20, rows + 2, blocks).int(),
        block_size,
        torch.full((rows,), POISON, dtype=torch.int32),
        positions,
        positions.int() + 1,
        positions + 1,
        torch.full((rows,), POISON, dtype=torch.int64),
        torch.full((rows + 3, streams - 1), POISON, dtype=torch.int32),
    )


@settings(max_examples=100)
@given(st.integers(0, 2**32), st.integers(0, 40), st.integers(1, 9), st.sampled_from([1, 3, 16]))
def test_equals_the_definition(seed: int, rows: int, streams: int, block_size: int) -> None:
    found = _problem(seed, rows, streams, block_size)
    expected = _problem(seed, rows, streams, block_size)
    for _ in range(3 if block_size > 1 else 1):
        if (found[4] >= 5 * block_size - 1).any():  # type: ignore[union-attr, operator]
            break
        move_inputs(*found)  # type: ignore[arg-type]
        move_inputs_reference(*expected)  # type: ignore[arg-type]
        for now, right in zip(found, expected, strict=True):
            assert torch.equal(torch.as_tensor(now), torch.as_tensor(right))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(2, dtype=torch.int32), "tokens"),
        (1, torch.zeros((1, 5), dtype=torch.int32), "block_table"),
        (2, 0, "block_size"),
        (3, torch.zeros(2, dtype=torch.int64), "expected"),
        (4, torch.zeros(3, dtype=torch.int64), "positions"),
        (4, torch.full((2,), 5 * 16 - 1), r"positions\[0\] must be below 79, not 79"),
        (5, torch.zeros(3, dtype=torch.int32), "seq_lens"),
        (6, torch.zeros(3, dtype=torch.int64), "sampled_position"),
        (7, torch.zeros(3, dtype=torch.int64), "slots"),
        (8, torch.zeros((2, 3), dtype=torch.int32), "auxiliary_ids"),
    ],
)
def test_wrong_arguments_are_named(place: int, value: torch.Tensor | int, message: str) -> None:
    arguments = list(_problem(0, 2, 3, 16))
    arguments[place] = value
    with pytest.raises(RuntimeError, match=message):
        move_inputs(*arguments)  # type: ignore[arg-type]
