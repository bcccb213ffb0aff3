# SPDX-License-Identifier: Apache-2.0
"""A step that is taken again and again against one that finds everything out each time."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.multistream.random_layouts import layouts
from tests.multistream.test_step_sampler import FakeModel
from tests.multistream.test_stream_step import MAX_MODEL_LEN, everything, random_state
from vllm.multistream.layout import StreamLayout
from vllm.multistream.worker.lanes import Lanes
from vllm.multistream.worker.sampler import StreamSampler
from vllm.unison.ops.extension import load_extension

STEPS = 8


@pytest.fixture(autouse=True, scope="module")
def _compiled_operators() -> None:
    load_extension()


def _random_lanes(num_rows: int, generator: torch.Generator) -> Lanes:
    """The rows in groups of one to three lanes, in the order of their first rows."""
    order = torch.randperm(num_rows, generator=generator).tolist()
    groups: list[list[int]] = []
    while order:
        size = int(torch.randint(1, 4, (1,), generator=generator))
        groups.append(order[:size])
        order = order[size:]
    groups.sort()
    weights = [[3.0, -1.5, -0.5][: len(rows)] if len(rows) > 1 else [1.0] for rows in groups]
    return Lanes(
        torch.tensor([rows + [-1] * (3 - len(rows)) for rows in groups]),
        torch.tensor([own + [0.0] * (3 - len(own)) for own in weights]),
        np.array([rows[0] for rows in groups]),
    )


@settings(deadline=None, max_examples=80)
@given(layouts(max_streams=4, max_delay=3), st.integers(0, 2**32), st.booleans())
def test_equals_steps_that_are_made_anew(layout: StreamLayout, seed: int, grouped: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    state = random_state(layout, generator)
    num_rows = len(state.row_slots)
    state.row_slots_host = state.row_slots.numpy()
    state.settings.temperature[:] = torch.rand(state.settings.temperature.shape) > 0.5
    state.settings.seed[:] = torch.arange(len(state.settings.seed))
    lanes = _random_lanes(num_rows, generator) if grouped else None
    if lanes is not None:
        # Lanes of a group go through the same phases.
        for rows in lanes.rows.tolist():
            slots = state.row_slots[[row for row in rows if row >= 0]]
            state.progress.state[slots] = state.progress.state[slots[0]].clone()
    state.known_state = state.progress.state.numpy().copy()
    other = copy.deepcopy(state)
    model = FakeModel(layout)
    anew = StreamSampler(layout, state.table, state)
    again = StreamSampler(layout, other.table, other)
    position = torch.randint(0, MAX_MODEL_LEN, (num_rows,), generator=generator)
    discard = torch.zeros(num_rows, dtype=torch.bool)
    kept = np.ones(num_rows, np.bool_)
    if lanes is not None:
        kept[:] = False
        kept[lanes.first_host] = True
    moved = position.clone()
    repeated = again.repeat(moved, discard, lanes)
    width = layout.num_streams * layout.vocabulary_size
    for number in range(STEPS):
        hidden_states = torch.randn((num_rows, width), generator=generator)
        expected = anew.step(model, hidden_states, position + number, discard, True, lanes)
        found = repeated.take(model, hidden_states)
        assert torch.equal(found.tokens, expected.tokens)
        assert torch.equal(found.outcome, expected.outcome)
        for now, right in zip(everything(other), everything(state), strict=True):
            assert torch.equal(now, right)
        slots = state.row_slots_host[kept]
        before = state.known_state[slots].copy()
        for told in (state, other):
            told.known_state[slots] = expected.state.numpy()[kept]
        assert repeated.is_valid == np.array_equal(before, state.known_state[slots])
        moved += 1
        assert repeated.is_of(moved, lanes) == repeated.is_valid
        if not repeated.is_valid:
            repeated = again.repeat(moved, discard, lanes)
    assert not repeated.is_of(moved.clone(), lanes)
