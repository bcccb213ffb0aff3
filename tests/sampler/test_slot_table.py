# SPDX-License-Identifier: Apache-2.0
"""Slots of the worker's requests against a model that is a dictionary."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.random_layouts import example
from vllm.sampling_params import SamplingParams
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.phases import PhaseTable, replay
from vllm.unison.sampler.slot_table import NEVER, SlotTable, stream_limit

LAYOUT = StreamLayout.from_dict(example())
CPU = torch.device("cpu")
MAX_MODEL_LEN = 24


def make_state(max_requests: int = 3) -> SlotTable:
    return SlotTable(LAYOUT, PhaseTable(LAYOUT), max_requests, MAX_MODEL_LEN, CPU)


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"seed": 1, "max_tokens": 8, **fields})


def ids(source: random.Random, rows: int) -> np.ndarray:
    values = [source.randrange(24, 32) for _ in range(2 * rows)]
    return np.array(values, np.int32).reshape(rows, 2)


@pytest.mark.parametrize("seed", range(8))
def test_slots_and_histories_of_random_batches(seed: int) -> None:
    source = random.Random(seed)
    max_requests = source.randint(1, 4)
    state = make_state(max_requests)
    streams: dict[str, np.ndarray] = {}
    quarantined: list[set[int]] = [set(), set()]
    batch: list[str] = []
    names = 0
    for _ in range(120):
        held = {name: state.slot_of(name) for name in batch}
        stay = [name for name in batch if source.random() < 0.7]
        # A request may leave and enter in one step, as one that is resumed at once does.
        entering = [name for name in stay if source.random() < 0.1]
        batch = list(stay)
        while len(batch) < max_requests and source.random() < 0.6:
            names += 1
            batch.append(f"request {names}")
            entering.append(batch[-1])
        source.shuffle(batch)

        kept = set(batch) - set(entering)
        state.release_except(kept)
        quarantined = [quarantined[1], {slot for name, slot in held.items() if name not in kept}]
        assert state.num_slots_in_use() == len(kept)
        for name in entering:
            prompt = [source.randrange(40) for _ in range(source.randint(1, 8))]
            output = [source.randrange(10, 20) for _ in range(source.randint(0, 4))]
            suffix = source.randint(0, LAYOUT.max_delay)
            streams[name] = ids(source, len(prompt) + len(output) + suffix)
            state.admit(name, prompt, output, streams[name], params())
        if entering:
            state.invalidate_rows()
        state.set_rows(batch)

        slots = {name: state.slot_of(name) for name in batch}
        assert len(set(slots.values())) == len(batch) == state.num_slots_in_use()
        assert all(slots[name] == held[name] for name in kept)
        for unusable in quarantined:
            assert not unusable & {slots[name] for name in entering}
        assert state.row_slots.tolist() == [slots[name] for name in batch]
        np.testing.assert_array_equal(state.row_slots_host, state.row_slots.numpy())

        gathered = [
            (row, position)
            for row, name in enumerate(batch)
            for position in range(len(streams[name]))
            if source.random() < 0.5
        ]
        rows = torch.tensor([row for row, _ in gathered], dtype=torch.int64)
        positions = torch.tensor([position for _, position in gathered], dtype=torch.int64)
        out = torch.full((len(gathered) + 2, 2), -5, dtype=torch.int32)
        state.gather_inputs(rows, positions, out)
        expected = [streams[batch[row]][position].tolist() for row, position in gathered]
        assert out.tolist() == [*expected, [-5, -5], [-5, -5]]


def test_a_slot_rests_for_two_steps() -> None:
    state = make_state(max_requests=1)
    given: list[int] = []
    for step in range(9):
        state.release_except(set())
        state.admit(f"{step}", [1], [], ids(random.Random(0), 1), params())
        given.append(state.slot_of(f"{step}"))
    for step, slot in enumerate(given):
        assert slot not in given[max(step - 2, 0) : step]


def test_a_request_has_one_slot() -> None:
    state = make_state()
    state.admit("a", [1], [], ids(random.Random(0), 1), params())
    with pytest.raises(RuntimeError, match="request a has a slot already"):
        state.admit("a", [1], [], ids(random.Random(0), 1), params())
    state.release_except(set())
    with pytest.raises(KeyError):
        state.slot_of("a")


def test_a_full_batch_can_be_replaced_at_every_step() -> None:
    state = make_state(max_requests=3)
    for step in range(10):
        state.release_except(set())
        for row in range(3):
            state.admit(f"{step} {row}", [1], [], ids(random.Random(0), 1), params())


def test_history_and_progress_of_an_admitted_request() -> None:
    state = make_state()
    prompt, output = [1, 10, 5, 20], [21, 22, 6]
    auxiliary = ids(random.Random(3), 9)
    state.admit("a", prompt, output, auxiliary, params(max_tokens=20))
    state.set_rows(["a"])
    slot = state.slot_of("a")
    np.testing.assert_array_equal(state.history[slot, :7, 0], prompt + output)
    np.testing.assert_array_equal(state.history[slot, :9, 1:], auxiliary)
    assert state.suffix_end[slot] == 9
    expected = replay(state.table, prompt, output, 4 + 20)
    assert state.known_state[slot] == state.progress.state[slot] == expected.state
    assert state.progress.segment_start[slot] == expected.segment_start == 3
    assert state.progress.flush_end[slot] == expected.flush_end == 8


def test_the_suffix_ends_where_it_is_known() -> None:
    state = make_state()
    state.admit("no suffix", [1, 10], [11], ids(random.Random(0), 3), params())
    state.admit("suffix", [1, 10], [], ids(random.Random(0), 4), params())
    state.set_rows(["no suffix", "suffix"])
    assert state.suffix_end[state.slot_of("no suffix")] == 0
    assert state.suffix_end[state.slot_of("suffix")] == 4


def test_settings_are_per_slot() -> None:
    state = make_state()
    before = state.settings.temperature.clone()
    auxiliary = ids(random.Random(0), 3)
    state.admit(
        "a",
        [1, 10, 11],
        [],
        auxiliary,
        params(
            temperature=0.5,
            top_k=-1,
            top_p=0.9,
            stream_temperature=[0.0, 1.0, 2.0],
            stream_top_k=[0, -1, 7],
            stream_top_p=0.25,
            seed=-5,
            max_tokens=6,
            min_tokens=4,
        ),
    )
    state.admit("b", [1], [], auxiliary, params(temperature=0.0, seed=2**62, ignore_eos=True))
    state.set_rows(["b", "a"])
    a, b = state.slot_of("a"), state.slot_of("b")
    settings = state.settings
    assert settings.temperature[a].tolist() == [0.5, 0.0, 1.0, 2.0]
    assert settings.top_k[a].tolist() == [0, 0, 0, 7]
    assert settings.top_p[a].tolist() == pytest.approx([0.9, 0.25, 0.25, 0.25])
    assert (settings.seed[a], settings.limit[a], settings.earliest_end[a]) == (-5, 9, 7)
    assert settings.temperature[b].tolist() == [0.0] * 4
    assert (settings.seed[b], settings.limit[b], settings.earliest_end[b]) == (2**62, 9, NEVER)
    others = [slot for slot in range(len(before)) if slot not in (a, b)]
    assert torch.equal(settings.temperature[others], before[others])


def test_settings_of_a_slot_are_those_of_its_last_request() -> None:
    state = make_state(max_requests=1)
    temperatures = {}
    for step in range(7):
        state.release_except(set())
        temperature = step / 8
        state.admit(
            f"{step}", [1], [], ids(random.Random(0), 1), params(stream_temperature=temperature)
        )
        state.set_rows([f"{step}"])
        slot = state.slot_of(f"{step}")
        temperatures[slot] = temperature
        assert state.settings.temperature[slot, 1:].tolist() == [temperature] * 3
    for slot, temperature in temperatures.items():
        assert state.settings.temperature[slot, 1] == temperature


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "expected"), [(4, 6, 10), (4, 18, 22), (4, 19, 22), (21, 99, 22)]
)
def test_the_limit_leaves_room_for_the_flush(
    num_prompt: int, max_tokens: int, expected: int
) -> None:
    # Two steps of the context are kept for streams that run two steps behind.
    request = params(max_tokens=max_tokens)
    assert stream_limit(LAYOUT, num_prompt, request, MAX_MODEL_LEN) == expected


def test_a_text_model_may_fill_its_context() -> None:
    text = StreamLayout.from_dict(example(phases=[{"name": "text", "kind": "text"}]))
    assert stream_limit(text, 4, params(max_tokens=99), MAX_MODEL_LEN) == MAX_MODEL_LEN


def test_rows_follow_their_requests() -> None:
    state = make_state()
    for name in "abc":
        state.admit(name, [1], [], ids(random.Random(0), 1), params())
    for order in ("abc", "cab", "b", "bc"):
        state.set_rows(list(order))
        assert state.row_slots.tolist() == [state.slot_of(name) for name in order]
