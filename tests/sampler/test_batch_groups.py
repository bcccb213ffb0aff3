# SPDX-License-Identifier: Apache-2.0
"""Merging lanes, against sums in float64."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.unison.messages.guidance import GuidedGroup
from vllm.unison.ops.cfg_merge import cfg_merge
from vllm.unison.sampler.batch_groups import GuidedBatch

CPU = torch.device("cpu")


def random_groups(source: random.Random) -> tuple[list[GuidedGroup], dict[str, int]]:
    """Groups of 2 to 4 lanes and plain rows, in any order in the batch."""
    groups = []
    names = [f"plain{i}" for i in range(source.randint(0, 4))]
    for number in range(source.randint(1, 5)):
        lane_ids = [f"g{number}"] + [f"g{number}#lane{i + 1}" for i in range(source.randint(1, 3))]
        weights = [source.uniform(-4, 4) for _ in lane_ids[1:]]
        groups.append(GuidedGroup(lane_ids, [1 - sum(weights), *weights], 0, None))
        names += lane_ids
    source.shuffle(names)
    return groups, {name: row for row, name in enumerate(names)}


def merged(groups: list[GuidedGroup], row_of: dict[str, int], values: torch.Tensor) -> torch.Tensor:
    return GuidedBatch(groups, row_of, len(row_of), CPU).merge(values)


@given(st.integers(0, 2**32), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
@settings(max_examples=60)
def test_merge_is_the_weighted_sum(seed: int, dtype: torch.dtype) -> None:
    groups, row_of = random_groups(random.Random(seed))
    generator = torch.Generator().manual_seed(seed)
    values = (10 * torch.randn(len(row_of), 37, generator=generator)).to(dtype)
    found = merged(groups, row_of, values)
    assert found.dtype == torch.float32
    for group, sums in zip(groups, found, strict=True):
        rows = values[[row_of[name] for name in group.lane_ids]].double()
        weights = torch.tensor(group.weights, dtype=torch.float64)[:, None]
        bound = 2.0**-22 * (weights * rows).abs().sum(0)
        assert ((weights * rows).sum(0) - sums.double()).abs().le(bound).all()


@given(st.integers(0, 2**32))
@settings(max_examples=60)
def test_merge_does_not_depend_on_batch_mates(seed: int) -> None:
    """Bit for bit the same alone, with two-lane and four-lane mates, and in another order."""
    source = random.Random(seed)
    groups, row_of = random_groups(source)
    generator = torch.Generator().manual_seed(seed)
    values = 10 * torch.randn(len(row_of), 29, generator=generator)
    together = merged(groups, row_of, values)
    order = source.sample(range(len(groups)), len(groups))
    names = source.sample(list(row_of), len(row_of))
    shuffled = merged(
        [groups[i] for i in order],
        {name: row for row, name in enumerate(names)},
        values[[row_of[name] for name in names]],
    )
    for place, number in enumerate(order):
        group = groups[number]
        rows = values[[row_of[name] for name in group.lane_ids]]
        own = {name: row for row, name in enumerate(group.lane_ids)}
        alone = merged([group], own, rows)[0]
        assert torch.equal(together[number], alone)
        assert torch.equal(shuffled[place], alone)


@given(st.integers(0, 2**32))
@settings(max_examples=60)
def test_lanes_get_the_tokens_of_their_conditional_lane(seed: int) -> None:
    groups, row_of = random_groups(random.Random(seed))
    batch = GuidedBatch(groups, row_of, len(row_of), CPU)
    sampled = torch.arange(len(row_of)) + 100
    tokens = sampled[batch.token_rows].tolist()
    leader = {name: group.lane_ids[0] for group in groups for name in group.lane_ids}
    for name, row in row_of.items():
        assert tokens[row] == 100 + row_of[leader.get(name, name)]
    lanes = {row_of[name] for group in groups for name in group.lane_ids[1:]}
    assert set(batch.guidance_rows) == lanes
    assert batch.groups.first_rows.tolist() == sorted(set(range(len(row_of))) - lanes)
    assert batch.groups.first_rows.tolist() == batch.groups.members[:, 0].tolist()
    assert sorted(batch.groups.members[batch.groups.members >= 0].tolist()) == sorted(
        row_of.values()
    )
    first = batch.groups.first_rows[batch.guided_index].tolist()
    assert (
        first
        == batch.guided_members[:, 0].tolist()
        == [row_of[group.lane_ids[0]] for group in groups]
    )


@given(st.integers(0, 2**32))
@settings(max_examples=60)
def test_rows_without_guidance_are_lanes_of_weight_one(seed: int) -> None:
    groups, row_of = random_groups(random.Random(seed))
    lanes = GuidedBatch(groups, row_of, len(row_of), CPU).groups
    values = torch.randn(len(row_of), 11).bfloat16()
    merged = cfg_merge(values, lanes.members, lanes.weights)
    guided = {row_of[group.lane_ids[0]] for group in groups}
    for place, row in enumerate(lanes.first_rows.tolist()):
        if row not in guided:
            assert lanes.members[place].tolist()[1:] == [-1] * (lanes.members.shape[1] - 1)
            assert torch.equal(merged[place], values[row])


@pytest.mark.parametrize("scale", [0.0, 1.5, 7.0])
def test_equal_lanes_change_nothing(scale: float) -> None:
    group = GuidedGroup(["a", "a#lane1"], [scale, 1 - scale], 0, None)
    row = torch.arange(-4.0, 5.0)
    found = merged([group], {"a#lane1": 0, "a": 1}, torch.stack([row, row]))
    torch.testing.assert_close(found[0], row, rtol=1e-6, atol=1e-6)
