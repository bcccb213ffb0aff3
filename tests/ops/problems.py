# SPDX-License-Identifier: Apache-2.0
"""Random problems for the operators, and both implementations side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from hypothesis import strategies as st

from vllm.unison.ops.sample import KEEP_OUTPUT, SampleArguments, sample_streams
from vllm.unison.ops.sample_reference import sample_streams_reference

POISON = 0x5A5A5A5A
"""What outputs hold before an operator writes them."""

WIDTHS = st.one_of(st.integers(1, 70), st.sampled_from([256, 1023, 1024, 1025, 3000]))
"""Widths of rows around the sizes of vectors and blocks."""

Sampler = Callable[[torch.Tensor, SampleArguments], None]


@dataclass(frozen=True)
class Problem:
    """What is sampled: R rows that are groups of their own, of K streams and C candidates."""

    logits: torch.Tensor
    candidate_ids: torch.Tensor
    masks: torch.Tensor
    mask_index: torch.Tensor
    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    seed: torch.Tensor
    position: torch.Tensor
    first_stream: int
    forced: torch.Tensor

    def arguments(self, tokens: torch.Tensor) -> SampleArguments:
        """The sampler's arguments besides the logits, for [R, K] outputs."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        del given["logits"]
        return SampleArguments(**given, tokens=tokens)

    def tokens_of(self, sample: Sampler) -> torch.Tensor:
        """The tokens of an implementation, which writes over a poisoned output."""
        tokens = torch.full(self.logits.shape[:2], POISON, dtype=torch.int32)
        sample(self.logits, self.arguments(tokens))
        return tokens

    def operator(self) -> torch.Tensor:
        """The tokens of the compiled operator."""
        return self.tokens_of(sample_streams)

    def reference(self) -> torch.Tensor:
        """The tokens of the definition."""
        return self.tokens_of(sample_streams_reference)

    def rows(self, index: torch.Tensor) -> Problem:
        """The same requests, fewer or in another order."""
        per_row = ("logits", "mask_index", "temperature", "top_k", "top_p", "seed", "position")
        return replace(self, **{name: getattr(self, name)[index] for name in (*per_row, "forced")})


def plain_problem(
    logits: torch.Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    first_stream: int = 0,
) -> Problem:
    """Everything allowed; token = candidate; row r has seed 7 and position r."""
    rows, streams, candidates = logits.shape
    return Problem(
        logits=logits,
        candidate_ids=torch.arange(candidates, dtype=torch.int32).repeat(streams, 1),
        masks=torch.ones((0, streams, candidates), dtype=torch.bool),
        mask_index=torch.full((rows,), -1, dtype=torch.int32),
        temperature=torch.full((rows, streams), temperature),
        top_k=torch.full((rows, streams), top_k, dtype=torch.int32),
        top_p=torch.full((rows, streams), top_p),
        seed=torch.full((rows,), 7),
        position=torch.arange(rows),
        first_stream=first_stream,
        forced=torch.full((rows, streams), -1, dtype=torch.int32),
    )


def _choose(
    generator: torch.Generator, values: list[float], shape: tuple[int, ...]
) -> torch.Tensor:
    index = torch.randint(len(values), shape, generator=generator)
    return torch.tensor(values)[index]


def random_problem(
    seed: int, rows: int, streams: int, candidates: int, dtype: torch.dtype = torch.float32
) -> Problem:
    """Every feature at once: masks, padding, forced tokens, filters, unusable and tied logits."""
    generator = torch.Generator().manual_seed(seed)
    items = (rows, streams)
    shape = (rows, streams, candidates)

    def uniform(*size: int) -> torch.Tensor:
        return torch.rand(size, generator=generator)

    # Logits are a view with gaps between rows and streams.
    storage = torch.randn((rows, streams + 1, candidates + 3), generator=generator)
    storage *= _choose(generator, [0.1, 1.0, 5.0, 30.0], (rows, streams + 1, 1))
    logits = storage.to(dtype)[:, 1:, 2 : candidates + 2]
    flat = uniform(*items) < 0.1
    logits[flat] = 1.5
    for value, share in ((-torch.inf, 0.1), (torch.inf, 0.01), (torch.nan, 0.01)):
        hit = (uniform(*items) < share * 5).unsqueeze(-1) & (uniform(*shape) < 0.3)
        few = (uniform(*items) < share * 5).unsqueeze(-1) & (uniform(*shape) < 1 / candidates)
        logits[hit | few] = value
    tokens = torch.randint(0, 1 << 30, (streams, candidates), generator=generator)
    candidate_ids = torch.where(uniform(streams, candidates) < 0.05, -1, tokens).int()
    masks = uniform(4, streams, candidates) < torch.tensor([0.0, 0.02, 0.5, 0.95]).view(4, 1, 1)
    return Problem(
        logits=logits,
        candidate_ids=candidate_ids,
        masks=masks,
        mask_index=_choose(generator, [-1, -1, 0, 1, 2, 2, 3, 3, 4, -2], (rows,)).int(),
        temperature=_choose(generator, [0.0, 0.3, 1.0, 5.0], items),
        top_k=_choose(
            generator, [0, 0, 1, 2, 30, candidates // 2, candidates, candidates + 5], items
        ).int(),
        top_p=_choose(generator, [1.0, 1.0, 0.9, 0.5, 0.01, 0.9999, 0.0], items),
        seed=torch.randint(-(1 << 62), 1 << 62, (rows,), generator=generator),
        position=torch.randint(0, 1 << 40, (rows,), generator=generator),
        first_stream=int(torch.randint(0, 20, (), generator=generator)),
        forced=torch.where(
            uniform(*items) < 0.05,
            torch.randint(0, 1 << 30, items, generator=generator),
            torch.tensor(-1),
        ).int(),
    )


def threshold_problem(seed: int, rows: int, candidates: int = 24) -> Problem:
    """Scores in tight clusters, every one likely to be sampled if it is kept.

    A filter whose threshold is off by one candidate, or by one unit in the last place of a score,
    gives other tokens in many rows.
    """
    generator = torch.Generator().manual_seed(seed)
    centre = _choose(generator, [-0.75, 0.25, 0.5, 1.0, 1.75, 2.0], (rows, 1, candidates))
    steps = torch.randint(0, 40, (rows, 1, candidates), generator=generator)
    problem = plain_problem(centre + steps * 2.0**-22)
    return replace(
        problem,
        top_k=torch.randint(0, candidates + 1, (rows, 1), generator=generator).int(),
        top_p=torch.rand((rows, 1), generator=generator) * 1.3,
    )


def equal_scores_problem(rows: int, candidates: int) -> Problem:
    """Scores so large that adding the noise changes none of them: all tie."""
    problem = plain_problem(torch.full((rows, 2, candidates), 1e9))
    masks = torch.ones((2, 2, candidates), dtype=torch.bool)
    masks[1, :, : candidates // 2] = False
    return replace(problem, masks=masks, mask_index=torch.arange(rows).remainder(2).int())


@dataclass(frozen=True)
class GroupProblem:
    """What is sampled: groups of rows of a step's batch.

    Attributes:
        settings: logits [N, K, C]; per slot temperature, top_k, top_p and seed; per row mask_index,
            position and forced.
        logit_rows: [G, K] row of the logits of each item.
        rows: [G, L] batch rows that get the tokens.
        slots: [R] slot of each row.
    """

    settings: Problem
    logit_rows: torch.Tensor
    rows: torch.Tensor
    slots: torch.Tensor

    def arguments(self, tokens: torch.Tensor) -> SampleArguments:
        """The sampler's arguments besides the logits, for [R, K] outputs."""
        return replace(
            self.settings.arguments(tokens),
            logit_rows=self.logit_rows,
            rows=self.rows,
            slots=self.slots,
        )

    def tokens_of(self, sample: Sampler) -> torch.Tensor:
        """The tokens of an implementation, which writes over a poisoned output."""
        shape = (len(self.slots), self.settings.logits.shape[1])
        tokens = torch.full(shape, POISON, dtype=torch.int32)
        sample(self.settings.logits, self.arguments(tokens))
        return tokens


def random_group_problem(
    seed: int,
    groups: int,
    streams: int,
    candidates: int,
    dtype: torch.dtype = torch.float32,
    max_rows: int = 3,
) -> GroupProblem:
    """Groups of none to `max_rows` rows, in any order in the batch, beside rows of no group.

    Most groups have one row of the logits for all streams; in some, each stream has its own, as at
    the edge of a guidance interval. Some items have none.
    """
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *size: int) -> torch.Tensor:
        return torch.randint(low, high, size, generator=generator)

    def uniform(*size: int) -> torch.Tensor:
        return torch.rand(size, generator=generator)

    num_slots = 3 * groups + 2
    num_rows = groups * max_rows + 3
    num_logits = 2 * groups + 1
    settings = random_problem(
        seed, max(num_slots, num_rows, num_logits), streams, candidates, dtype
    )
    kept = (uniform(num_rows, streams) < 0.1) & (settings.forced[:num_rows] < 0)
    settings = replace(
        settings,
        logits=settings.logits[:num_logits],
        mask_index=settings.mask_index[:num_rows],
        temperature=settings.temperature[:num_slots],
        top_k=settings.top_k[:num_slots],
        top_p=settings.top_p[:num_slots],
        seed=settings.seed[:num_slots],
        position=settings.position[:num_rows],
        forced=torch.where(kept, KEEP_OUTPUT, settings.forced[:num_rows]).int(),
    )
    rows = torch.randperm(num_rows, generator=generator)[: groups * max_rows]
    rows = rows.view(groups, max_rows)
    rows[uniform(groups, max_rows) < 0.2] = -1
    mixed = uniform(groups, 1) < 0.4
    logit_rows = torch.where(
        mixed, integers(0, num_logits, groups, streams), integers(0, num_logits, groups, 1)
    )
    logit_rows[uniform(groups, streams) < 0.03] = -1
    logit_rows[uniform(groups, streams) < 0.03] = num_logits
    slots = torch.randperm(num_slots, generator=generator)[:num_rows]
    slots = slots[integers(0, len(slots), num_rows)]
    slots[uniform(num_rows) < 0.05] = -1
    return GroupProblem(settings, logit_rows, rows, slots)


def embedding_arguments(
    seed: int, streams: int, width: int, dtype: torch.dtype, ids_dtype: torch.dtype | None
) -> tuple[Any, ...]:
    """The arguments of embed_streams; `ids_dtype` None: stream 0's embeddings as they are."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary, auxiliary_rows, tokens = 40, 17, 23

    def integers(low: int, high: int, *size: int) -> torch.Tensor:
        return torch.randint(low, high, size, generator=generator)

    primary = torch.randn((vocabulary, width), generator=generator).to(dtype)
    auxiliary = torch.randn((auxiliary_rows, width), generator=generator).to(dtype)
    # Never read: it stands for ids that add nothing.
    auxiliary[0] = torch.nan
    row_of = integers(0, auxiliary_rows, vocabulary).int()
    ids = None
    skipped = None
    if ids_dtype is None:
        primary = primary[torch.arange(tokens) % vocabulary]
    else:
        ids = integers(-1, vocabulary + 1, tokens).to(ids_dtype)
        skipped = torch.rand(vocabulary, generator=generator) < 0.2
    auxiliary_ids = integers(-1, vocabulary + 1, tokens, streams - 1).int()
    return primary, ids, skipped, auxiliary, row_of, auxiliary_ids


def equal_bits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal, NaN where the other is NaN (its payload is free)."""
    same = found.dtype == expected.dtype and torch.equal(found.isnan(), expected.isnan())
    return same and torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))
