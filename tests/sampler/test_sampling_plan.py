# SPDX-License-Identifier: Apache-2.0
"""Steps that run a kept plan against steps that are worked out each time."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sampler.test_phase_machine import MAX_MODEL_LEN, everything, random_state
from tests.sampler.test_stream_sampler import FakeModel
from tests.support.random_layouts import layouts
from vllm.unison.model.layout import StreamLayout
from vllm.unison.ops.extension import load_extension
from vllm.unison.sampler.batch_groups import BatchGroups
from vllm.unison.sampler.stream_sampler import StreamSampler
from vllm.unison.testing.random_checkpoint import stream_layout

STEPS = 8


@pytest.fixture(autouse=True, scope="module")
def _compiled_operators() -> None:
    load_extension()


def _random_groups(num_rows: int, generator: torch.Generator) -> BatchGroups:
    """The rows in groups of one to three lanes, in the order of their first rows."""
    order = torch.randperm(num_rows, generator=generator).tolist()
    groups: list[list[int]] = []
    while order:
        size = int(torch.randint(1, 4, (1,), generator=generator))
        groups.append(order[:size])
        order = order[size:]
    groups.sort()
    weights = [[3.0, -1.5, -0.5][: len(rows)] if len(rows) > 1 else [1.0] for rows in groups]
    return BatchGroups(
        torch.tensor([rows + [-1] * (3 - len(rows)) for rows in groups]),
        torch.tensor([own + [0.0] * (3 - len(own)) for own in weights]),
        np.array([rows[0] for rows in groups]),
    )


@settings(max_examples=80)
@given(layouts(max_streams=4, max_delay=3, any_stream=True), st.integers(0, 2**32), st.booleans())
def test_equals_steps_that_are_worked_out_anew(
    layout: StreamLayout, seed: int, grouped: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    slots = random_state(layout, generator)
    num_rows = len(slots.row_slots)
    slots.row_slots_host = slots.row_slots.numpy()
    slots.settings.temperature[:] = torch.rand(slots.settings.temperature.shape) > 0.5
    slots.settings.seed[:] = torch.arange(len(slots.settings.seed))
    # Some requests have their repetitions drawn again.
    slots.settings.repeat_window[:] = torch.randint(0, 3, slots.settings.seed.shape) * 4
    slots.settings.max_repeats[:] = 1
    slots.draws_repeats_again[:] = slots.settings.repeat_window > 0
    groups = _random_groups(num_rows, generator) if grouped else None
    if groups is not None:
        # Lanes of a group go through the same phases.
        for rows in groups.members.tolist():
            own = slots.row_slots[[row for row in rows if row >= 0]]
            slots.progress.state[own] = slots.progress.state[own[0]].clone()
    slots.known_state = slots.progress.state.numpy().copy()
    other = copy.deepcopy(slots)
    model = FakeModel(layout)
    anew = StreamSampler(layout, slots.table, slots)
    planned = StreamSampler(layout, other.table, other, keeps_plans=True)
    position = torch.randint(0, MAX_MODEL_LEN, (num_rows,), generator=generator)
    first_rows = np.arange(num_rows) if groups is None else groups.first_rows
    width = layout.num_streams * layout.vocabulary_size
    plans = []
    for step in range(STEPS):
        hidden_states = torch.randn((num_rows, width), generator=generator)
        before = slots.known_state[slots.row_slots_host[first_rows]].tolist()
        arguments = (model, hidden_states, position + step, None, True, groups)
        expected, found = anew.step(*arguments), planned.step(*arguments)
        assert torch.equal(found.tokens, expected.tokens)
        assert torch.equal(found.outcome, expected.outcome)
        for now, right in zip(everything(other), everything(slots), strict=True):
            assert torch.equal(now, right)
        for table in (slots, other):
            own = table.row_slots_host[first_rows]
            table.known_state[own] = expected.state.numpy()[first_rows]
        plans.append((before, planned._plan))
    assert anew._plan is None
    for (states, plan), (next_states, next_plan) in itertools.pairwise(plans):
        assert (plan is next_plan) == (states == next_states)


def test_a_plan_is_left_where_it_does_not_fit() -> None:
    """Rows that are discarded, streams outside the guidance interval and late states need none."""
    layout = StreamLayout.from_dict(stream_layout(2))
    generator = torch.Generator().manual_seed(0)
    slots = random_state(layout, generator)
    num_rows = len(slots.row_slots)
    slots.row_slots_host = slots.row_slots.numpy()
    slots.known_state = slots.progress.state.numpy().copy()
    sampler = StreamSampler(layout, slots.table, slots, keeps_plans=True)
    model = FakeModel(layout)
    hidden_states = torch.randn(num_rows, layout.num_streams * layout.vocabulary_size)
    position = torch.full((num_rows,), 3)
    groups = _random_groups(num_rows, generator)
    discard = torch.ones(num_rows, dtype=torch.bool)
    unguided = np.ones((len(groups.first_rows), layout.num_streams), np.bool_)
    sampler.step(model, hidden_states, position, discard, True)
    sampler.step(model, hidden_states, position, None, False)
    sampler.step(model, hidden_states, position, None, True, groups, unguided)
    assert sampler._plan is None
    sampler.step(model, hidden_states, position, None, True)
    assert sampler._plan is not None
