# SPDX-License-Identifier: Apache-2.0
"""Prefix embeddings of random batches, token by token, and what a step without any costs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vllm.unison.conditioning.prefix_tokens import PrefixTokens
from vllm.unison.messages.conditioning import AudioInput, PrefixInput, PromptStates
from vllm.unison.worker.prefix_embeddings import PrefixedModel, PrefixEmbeddings

NUM_SLOTS, MAX_TOKENS, WIDTH = 6, 16, 3


class Model:
    """A model whose states are made of its inputs' hashes.

    Attributes:
        prefix_tokens: see PrefixedModel.
        num_computed: inputs whose states were asked for.
    """

    def __init__(self) -> None:
        self.prefix_tokens = PrefixTokens(MAX_TOKENS, WIDTH)
        self.num_computed = 0

    def prefix_states(self, inputs: Sequence[PromptStates]) -> list[torch.Tensor]:
        self.num_computed += len(inputs)
        return [states_of(prefix) for prefix in inputs]


def states_of(prefix: PromptStates) -> torch.Tensor:
    seed = int.from_bytes(prefix.key[:4], "little")
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(prefix.num_positions, WIDTH, generator=generator)


class Operators(TorchDispatchMode):
    """Counts the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class Lane:
    """A lane with a prompt of tokens, if states may come after any, states and one token."""

    def __init__(self, number: int) -> None:
        self.name = f"lane {number}"
        self.prefix: PromptStates
        if random.random() < 0.5:
            num_text = random.randrange(4)
            chroma = bytes(random.choices(range(12), k=random.randrange(1, 9)))
            self.prefix = PrefixInput(chroma, [number] * num_text, num_text)
        else:
            features = np.full((3, 2), number, np.float32)
            self.prefix = AudioInput(features, random.randrange(6), random.randrange(1, 9))
        self.slot = -1
        self.computed = 0

    @property
    def num_known(self) -> int:
        """Tokens of the prompt; a generated one is known once all before it are computed."""
        return max(self.num_prompt + 1, self.computed + 1)

    @property
    def num_prompt(self) -> int:
        """Tokens up to the last state."""
        return self.prefix.first_position + self.prefix.num_positions


@pytest.mark.parametrize("seed", range(20))
def test_batches_of_lanes_in_all_parts_of_their_prompts(seed: int) -> None:
    random.seed(seed)
    model = Model()
    assert isinstance(model, PrefixedModel)
    prefixes = PrefixEmbeddings(model, NUM_SLOTS + 1, torch.device("cpu"))
    lanes: list[Lane] = []
    waiting = [Lane(number) for number in range(12)]
    for _ in range(120):
        for lane in [lane for lane in lanes if random.random() < 0.08]:
            lanes.remove(lane)
            if random.random() < 0.5:  # preempted: all of it is computed again
                lane.computed = random.choice([0, lane.computed // 2])
                waiting.append(lane)
        prefixes.release_except({lane.name for lane in lanes})
        while waiting and len(lanes) < NUM_SLOTS and random.random() < 0.4:
            lane = waiting.pop(0)
            lane.slot = min(set(range(NUM_SLOTS)) - {other.slot for other in lanes})
            lanes.append(lane)
            prefixes.admit(lane.name, lane.slot, lane.prefix)
        random.shuffle(lanes)
        prefixes.compute()
        batch: list[tuple[Lane, int]] = []
        rows: list[int] = []
        positions: list[int] = []
        for lane in lanes:
            room = MAX_TOKENS - len(rows)
            count = min(lane.num_known - lane.computed, random.randrange(1, 8), room)
            if count > 0:
                rows += [len(batch)] * count
                positions += range(lane.computed, lane.computed + count)
                batch.append((lane, count))
        if not batch:
            continue
        slots = torch.tensor([lane.slot for lane, _ in batch])
        prefixes.prepare_inputs(slots, torch.tensor(rows), torch.tensor(positions))
        embeddings = torch.randn(len(rows), WIDTH)
        expected = embeddings.clone()
        for index, (row, position) in enumerate(zip(rows, positions, strict=True)):
            prefix = batch[row][0].prefix
            if 0 <= position - prefix.first_position < prefix.num_positions:
                expected[index] = states_of(prefix)[position - prefix.first_position]
        model.prefix_tokens.replace(embeddings)
        assert torch.equal(embeddings, expected)
        unfinished = []
        for lane, count in batch:
            unfinished.append(lane.computed + count < lane.num_known)
            lane.computed += count
        prefixes.note_computed([lane.name for lane, _ in batch], np.array(unfinished))
        in_prompt = [lane for lane in lanes if lane.computed <= lane.num_prompt]
        assert prefixes.num_lanes >= len(in_prompt)
    assert model.num_computed > 12


def test_a_step_without_prefixes_calls_nothing() -> None:
    model = Model()
    prefixes = PrefixEmbeddings(model, NUM_SLOTS + 1, torch.device("cpu"))
    prefix = PrefixInput(bytes(2), [], 1)
    slots, rows = torch.tensor([4, 2]), torch.tensor([0, 0, 0, 0, 1])
    prefixes.admit("a", 4, prefix)
    prefixes.compute()
    prefixes.prepare_inputs(slots, rows, torch.tensor([0, 1, 2, 3, 9]))
    assert model.prefix_tokens.is_prefix[:, 0].nonzero().flatten().tolist() == [0, 1, 2]
    prefixes.note_computed(["a", "b"], np.array([False, False]))
    prefixes.prepare_inputs(slots, torch.tensor([0, 1]), torch.tensor([4, 10]))
    assert not model.prefix_tokens.is_prefix.any()
    arguments = slots, torch.tensor([0, 1]), torch.tensor([5, 11])
    with Operators() as operators:
        prefixes.release_except({"a", "b"})
        prefixes.compute()
        prefixes.prepare_inputs(*arguments)
        prefixes.note_computed(["a", "b"], np.array([False, False]))
        assert operators.count == 0
        prefixes.admit("c", 2, prefix)
        prefixes.compute()
        prefixes.prepare_inputs(*arguments)
    assert operators.count > 0
