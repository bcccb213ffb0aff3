# SPDX-License-Identifier: Apache-2.0
"""The step's compiled operators against their definitions, on random states of random layouts."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.random_layouts import example, layouts
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.phases import NO_TOKEN, PhaseTable
from vllm.unison.ops.phase_step import gather_ids, gather_ids_reference
from vllm.unison.ops.sample import KEEP_OUTPUT
from vllm.unison.sampler.phase_machine import Choices, PhaseMachine
from vllm.unison.sampler.slot_table import SlotTable

CPU = torch.device("cpu")
MAX_MODEL_LEN = 20
MAX_REQUESTS = 6
POISON = 0x5A5A5A5A


def random_state(layout: StreamLayout, generator: torch.Generator) -> SlotTable:
    """Slots in any state of the phase table, whether or not requests can get there."""
    table = PhaseTable(layout)
    state = SlotTable(layout, table, MAX_REQUESTS, MAX_MODEL_LEN, CPU)
    slots = len(state.suffix_end)

    def integers(low: int, high: int, *size: int) -> torch.Tensor:
        return torch.randint(low, high, size or (slots,), generator=generator)

    state.history[:] = integers(-1, layout.vocabulary_size, *state.history.shape)
    state.suffix_end[:] = integers(0, MAX_MODEL_LEN + 1)
    state.progress.state[:] = integers(0, table.num_states)
    state.progress.segment_start[:] = integers(0, MAX_MODEL_LEN)
    state.progress.flush_end[:] = integers(0, MAX_MODEL_LEN)
    state.settings.limit[:] = integers(1, MAX_MODEL_LEN)
    state.settings.earliest_end[:] = integers(0, MAX_MODEL_LEN)
    state.settings.num_prompt[:] = integers(0, MAX_MODEL_LEN)
    rows = int(integers(1, MAX_REQUESTS + 1, 1))
    state.row_slots = torch.randperm(slots - 1, generator=generator)[:rows]
    return state


def everything(state: SlotTable) -> list[torch.Tensor]:
    progress = state.progress
    return [state.history, progress.state, progress.segment_start, progress.flush_end]


def published_layout() -> StreamLayout:
    """A layout with text, audio, forced tokens and delays."""
    return StreamLayout.from_dict(example())


def layout_with_rules() -> StreamLayout:
    """The same with fills that differ by place, and all options of an end."""
    layout = example(
        fills={
            "lead_in": {"token_ids": 7, "sampled": [False, True, False]},
            "end": {"token_ids": [7, 8, 9]},
            "tail": {"token_ids": [9, 8, 7], "sampled": [True, False, True]},
        }
    )
    layout["phases"][1]["end_rule"] = {"first_step": 4, "extra_steps": 1, "closing": [9, 8]}
    return StreamLayout.from_dict(layout)


def check_begin(layout: StreamLayout, seed: int) -> None:
    """What rows may emit, operator against definition; nothing else is written."""
    generator = torch.Generator().manual_seed(seed)
    state = random_state(layout, generator)
    rule = PhaseMachine(layout, state.table, state)
    rows = len(state.row_slots)
    position = torch.randint(0, MAX_MODEL_LEN + 3, (rows,), generator=generator)
    rule._forced.fill_(POISON)
    rule._mask_index.fill_(POISON)
    before = [tensor.clone() for tensor in everything(state)]
    found, expected = rule.constrain(position), rule.constrain_reference(position)
    assert torch.equal(found.forced, expected.forced)
    assert torch.equal(found.mask_index, expected.mask_index)
    assert torch.equal(found.tokens, expected.tokens)
    assert (found.forced >= KEEP_OUTPUT).all()
    for was, now in zip(before, everything(state), strict=True):
        assert torch.equal(was, now)


def check_advance(layout: StreamLayout, seed: int, grouped: bool) -> None:
    """Tokens, outcomes, history and progress, operator against definition."""
    generator = torch.Generator().manual_seed(seed)
    state = random_state(layout, generator)
    rule = PhaseMachine(layout, state.table, state)
    num_rows = len(state.row_slots)

    def integers(low: int, high: int, *size: int) -> torch.Tensor:
        return torch.randint(low, high, size, generator=generator)

    position = integers(0, MAX_MODEL_LEN + 3, num_rows)
    discard = torch.rand(num_rows, generator=generator) < 0.2
    tokens = integers(0, layout.vocabulary_size, num_rows, layout.num_streams).int()
    ends = state.table.end_ids[None].repeat(num_rows, 0)
    shown = torch.rand((num_rows, 1), generator=generator).round(decimals=1)
    is_end = torch.rand(tokens.shape, generator=generator) < shown
    tokens = torch.where(is_end, torch.from_numpy(ends).int(), tokens)
    tokens[torch.rand(tokens.shape, generator=generator) < 0.1] = -1
    groups = None
    if grouped:
        order = torch.randperm(num_rows, generator=generator).tolist()
        lists: list[list[int]] = []
        while order:
            size = int(integers(1, 4, 1))
            lists.append(order[:size])
            order = order[size:]
        groups = torch.tensor([rows + [-1] * (3 - len(rows)) for rows in lists])
    other = copy.deepcopy(state)
    reference = PhaseMachine(layout, state.table, other)
    found = rule.commit(position, discard, tokens.clone(), groups)
    expected = reference.commit_reference(position, discard, tokens.clone(), groups)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.outcome, expected.outcome)
    for now, right in zip(everything(state), everything(other), strict=True):
        assert torch.equal(now, right)


def check_gather(seed: int, streams: int, dtype: torch.dtype) -> None:
    """Auxiliary ids of tokens, operator against definition; the rest of the buffer stays."""
    generator = torch.Generator().manual_seed(seed)
    history = torch.randint(0, 99, (7, 11, streams), generator=generator).int()
    slots = torch.randint(0, 7, (4,), generator=generator)
    rows = torch.randint(0, 4, (13,), generator=generator).to(dtype)
    positions = torch.randint(0, 11, (13,), generator=generator)
    found = torch.full((20, streams - 1), POISON, dtype=torch.int32)
    expected = found.clone()
    gather_ids(history, slots, rows, positions, found)
    gather_ids_reference(history, slots, rows, positions, expected)
    assert torch.equal(found, expected)


def check_repeats(layout: StreamLayout, seed: int) -> None:
    """Streams that are drawn again, operator against definition."""
    generator = torch.Generator().manual_seed(seed)
    state = random_state(layout, generator)
    slots, rows = len(state.suffix_end), len(state.row_slots)
    state.settings.repeat_window[:] = torch.randint(-1, 12, (slots,), generator=generator)
    state.settings.max_repeats[:] = torch.randint(1, 4, (slots,), generator=generator)
    machine = PhaseMachine(layout, state.table, state)
    shape = (rows, layout.num_streams)
    choices = Choices(
        forced=torch.randint(-2, 1, (rows, 1 + layout.num_streams), generator=generator).int(),
        mask_index=torch.zeros(rows, dtype=torch.int32),
        tokens=torch.randint(-1, layout.vocabulary_size, shape, generator=generator).int(),
    )
    position = torch.randint(0, MAX_MODEL_LEN, (rows,), generator=generator)
    redrawn = torch.full_like(choices.forced, POISON)
    machine.find_repeats_call(position, choices, redrawn)()
    assert torch.equal(redrawn, machine.find_repeats_reference(position, choices))


@settings(max_examples=150)
@given(layouts(max_streams=4, max_delay=3, any_stream=True), st.integers(0, 2**32))
def test_begin(layout: StreamLayout, seed: int) -> None:
    check_begin(layout, seed)


@settings(max_examples=150)
@given(layouts(max_streams=4, max_delay=3, any_stream=True), st.integers(0, 2**32), st.booleans())
def test_advance(layout: StreamLayout, seed: int, grouped: bool) -> None:
    check_advance(layout, seed, grouped)


@settings(max_examples=150)
@given(layouts(max_streams=4, max_delay=3), st.integers(0, 2**32))
def test_repeats(layout: StreamLayout, seed: int) -> None:
    check_repeats(layout, seed)


def test_what_is_drawn_again() -> None:
    """Cell by cell: a window, an id that is no code, a segment's start, and a forced stream."""
    layout = published_layout()
    state = SlotTable(layout, PhaseTable(layout), 2, MAX_MODEL_LEN, CPU)
    state.row_slots = torch.tensor([0, 1])
    state.settings.repeat_window[:2] = torch.tensor([3, 0])
    state.settings.max_repeats[:2] = 2
    state.progress.segment_start[:2] = 5
    # Stream 0 has said 20 at 4, 6, 7; stream 1 its pad 0; stream 2 the code 30 at 5, 6, 7.
    rows = [[20, 0, 9], [21, 0, 30], [20, 0, 30], [20, 0, 30]]
    state.history[:2, 4:8] = torch.tensor(rows, dtype=torch.int32)
    machine = PhaseMachine(layout, state.table, state)
    forced = torch.full((2, 4), NO_TOKEN, dtype=torch.int32)
    tokens = torch.tensor([[20, 0, 30]] * 2, dtype=torch.int32)
    choices = Choices(forced, torch.zeros(2, dtype=torch.int32), tokens)

    def again(position: int) -> list[list[int]]:
        redrawn = torch.empty_like(forced)
        machine.find_repeats_call(torch.tensor([position] * 2), choices, redrawn)()
        return redrawn.tolist()

    keep, draw = KEEP_OUTPUT, NO_TOKEN
    assert again(8) == [[keep, draw, keep, draw], [keep] * 4]
    # What was said before the segment does not count, and 20 has been said once in it.
    assert again(7) == [[keep, keep, keep, draw], [keep] * 4]
    forced[0, 3] = 30
    assert again(8) == [[keep, draw, keep, keep], [keep] * 4]


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(1, 9), st.sampled_from([torch.int32, torch.int64]))
def test_gather(seed: int, streams: int, dtype: torch.dtype) -> None:
    check_gather(seed, streams, dtype)


def test_wrong_arguments_are_named() -> None:
    history = torch.zeros((2, 3, 4), dtype=torch.int32)
    index = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="ids must be contiguous of shape"):
        gather_ids(history, index, index, index, torch.zeros((2, 4), dtype=torch.int32))
    with pytest.raises(RuntimeError, match="positions"):
        gather_ids(history, index, index, index[:1], torch.zeros((2, 3), dtype=torch.int32))
