# SPDX-License-Identifier: Apache-2.0
"""How a group shares its budget among its lanes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.unison.scheduler.sequence_group import plan_step


def by_the_contract(
    remaining: list[int], budget: int, all_lanes_synced: bool
) -> tuple[list[int], bool]:
    """All lanes to their last token, or token by token, in order, without any last one."""
    if all_lanes_synced and 0 not in remaining and sum(remaining) <= budget:
        return remaining, True
    tokens = [0] * len(remaining)
    for lane, count in enumerate(remaining):
        while budget and tokens[lane] + 1 < count:
            tokens[lane] += 1
            budget -= 1
    return tokens, False


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.integers(0, 40), st.booleans())
@settings(max_examples=500)
def test_the_contract_holds(remaining: list[int], budget: int, all_lanes_synced: bool) -> None:
    given_lanes = list(remaining)
    tokens, samples = plan_step(remaining, budget, all_lanes_synced)
    assert (tokens, samples) == by_the_contract(given_lanes, budget, all_lanes_synced)
    assert remaining == given_lanes
    assert sum(tokens) <= budget


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_chunks_always_come_to_an_end(lanes: int) -> None:
    """The smallest budget that is admitted, one token per lane, lets every group sample."""
    for longest in range(1, 9):
        remaining = [longest] + [1 + longest // 2] * (lanes - 1)
        for _ in range(sum(remaining) + 1):
            tokens, samples = plan_step(remaining, lanes, True)
            if samples:
                break
            assert sum(tokens) > 0
            remaining = [a - b for a, b in zip(remaining, tokens, strict=True)]
        assert samples
