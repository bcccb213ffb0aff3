# SPDX-License-Identifier: Apache-2.0
"""Sampling groups of batch rows: the compiled operator against its definition, and by hand."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.unison.ops.sample import KEEP_OUTPUT, sample_streams
from vllm.unison.ops.sample_reference import sample_streams_reference

from .problems import POISON, GroupProblem, Sampler, plain_problem, random_group_problem

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def check(problem: GroupProblem) -> torch.Tensor:
    """The tokens of both, which must be equal."""
    tokens = problem.tokens_of(sample_streams)
    assert torch.equal(tokens, problem.tokens_of(sample_streams_reference))
    return tokens


@settings(max_examples=120)
@given(
    seed=st.integers(0, 1 << 30),
    groups=st.integers(1, 6),
    streams=st.integers(1, 9),
    candidates=st.one_of(st.integers(1, 70), st.integers(1, 2100)),
    dtype=st.sampled_from(DTYPES),
    max_rows=st.integers(1, 5),
)
def test_operator_equals_reference(
    seed: int, groups: int, streams: int, candidates: int, dtype: torch.dtype, max_rows: int
) -> None:
    check(random_group_problem(seed, groups, streams, candidates, dtype, max_rows))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_of_item_occurs(dtype: torch.dtype) -> None:
    problem = random_group_problem(1, 60, 4, 700, dtype)
    tokens = check(problem)
    assert (tokens == -1).any()
    assert (tokens == POISON).any()
    assert ((tokens >= 0) & (tokens != POISON)).sum() > 60
    own = problem.logit_rows
    assert (own != own[:, :1]).any()
    assert (own < 0).any()
    assert (own == len(problem.settings.logits)).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets(instruction_sets: list[str], dtype: torch.dtype) -> None:
    for candidates in (1, 17, 1000, 5003):
        problem = random_group_problem(candidates, 10, 3, candidates, dtype)
        for name in instruction_sets:
            torch.ops.unison.set_instruction_set(name)
            check(problem)


def one_group(
    logits: torch.Tensor, logit_rows: list[list[int]], temperature: float = 0.0
) -> GroupProblem:
    """One group of two batch rows, whose settings are in slots 0 and 1."""
    settings = plain_problem(logits, temperature)
    return GroupProblem(
        settings,
        logit_rows=torch.tensor(logit_rows),
        rows=torch.tensor([[0, 1]]),
        slots=torch.arange(2),
    )


@pytest.mark.parametrize("sample", [sample_streams, sample_streams_reference])
class TestRules:
    """Both versions, on cases small enough to decide by hand."""

    def test_each_stream_reads_its_own_row(self, sample: Sampler) -> None:
        logits = torch.eye(3)[:2, None].expand(2, 2, 3)
        assert one_group(logits, [[0, 1]]).tokens_of(sample).tolist() == [[0, 1], [0, 1]]
        assert one_group(logits, [[1, 0]]).tokens_of(sample).tolist() == [[1, 0], [1, 0]]

    def test_noise_and_settings_do_not_depend_on_the_row_that_is_read(
        self, sample: Sampler
    ) -> None:
        logits = torch.randn(1, 2, 50).expand(2, 2, 50)
        tokens = [
            one_group(logits, rows, 1.0).tokens_of(sample).tolist()
            for rows in ([[0, 0]], [[0, 1]], [[1, 0]])
        ]
        assert tokens[0] == tokens[1] == tokens[2]

    def test_the_first_row_decides_for_its_group(self, sample: Sampler) -> None:
        problem = one_group(torch.randn(2, 1, 300), [[0]], 1.0)
        swapped = replace(problem, rows=torch.tensor([[1, 0]]))
        first, second = problem.tokens_of(sample), swapped.tokens_of(sample)
        assert first[0] == first[1]
        assert second[0] == second[1]
        alone = replace(problem, rows=torch.tensor([[1, -1]])).tokens_of(sample)
        assert alone.tolist() == [[POISON], second[1].tolist()]

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_an_unusable_logit_fails_its_item(self, sample: Sampler, value: float) -> None:
        logits = torch.zeros(2, 2, 5)
        logits[1, 0, 3] = value
        tokens = one_group(logits, [[1, 1]], 1.0).tokens_of(sample)
        assert (tokens[:, 0] == -1).all()
        assert (tokens[:, 1] >= 0).all()
        assert (one_group(logits, [[0, 1]], 1.0).tokens_of(sample) >= 0).all()

    def test_no_logits_and_no_slot_fail_the_item(self, sample: Sampler) -> None:
        logits = torch.zeros(2, 2, 5)
        assert one_group(logits, [[-1, 1]]).tokens_of(sample).tolist() == [[-1, 0], [-1, 0]]
        assert one_group(logits, [[0, 2]]).tokens_of(sample).tolist() == [[0, -1], [0, -1]]
        lost = replace(one_group(logits, [[0, 1]]), slots=torch.tensor([7, 0]))
        assert lost.tokens_of(sample).tolist() == [[-1, -1], [-1, -1]]

    def test_forced_items_and_kept_outputs(self, sample: Sampler) -> None:
        problem = one_group(torch.full((2, 2, 5), torch.nan), [[0, 1]])
        forced = torch.tensor([[9, KEEP_OUTPUT], [5, 5]], dtype=torch.int32)
        problem = replace(problem, settings=replace(problem.settings, forced=forced))
        assert problem.tokens_of(sample).tolist() == [[9, POISON], [9, POISON]]


@settings(max_examples=40)
@given(seed=st.integers(0, 1 << 30), dtype=st.sampled_from(DTYPES))
def test_equals_sampling_logits_that_were_gathered_before(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups, streams, candidates = 6, 3, 257
    logits = (3 * torch.randn(9, streams, candidates, generator=generator)).to(dtype)
    logit_rows = torch.randint(0, 9, (groups, streams), generator=generator)
    gathered = plain_problem(logits[logit_rows, torch.arange(streams)], 0.9, top_k=50, top_p=0.9)
    tokens = torch.empty((groups, streams), dtype=torch.int32)
    sample_streams(logits, replace(gathered.arguments(tokens), logit_rows=logit_rows))
    assert torch.equal(tokens, gathered.operator())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logit_rows", torch.zeros((1, 2), dtype=torch.int64)),
        ("logit_rows", torch.zeros((1, 1, 1), dtype=torch.int64)),
        ("logit_rows", torch.zeros((1, 1), dtype=torch.int32)),
        ("rows", torch.zeros((2, 2), dtype=torch.int64)),
        ("rows", torch.zeros((1, 0), dtype=torch.int64)),
        ("rows", torch.zeros((1, 2), dtype=torch.int32)),
        ("slots", torch.zeros((2, 1), dtype=torch.int64)),
        ("slots", torch.zeros(3, dtype=torch.int64)),
    ],
)
def test_wrong_arguments_are_named(field: str, value: torch.Tensor) -> None:
    problem = replace(one_group(torch.zeros((2, 1, 5)), [[0]]), **{field: value})
    tokens = torch.zeros((2, 1), dtype=torch.int32)
    # A wrong element type is named by its tensor's type.
    with pytest.raises(RuntimeError, match=rf"{field} must have|scalar type"):
        sample_streams(problem.settings.logits, problem.arguments(tokens))


def test_fake_implementation() -> None:
    problem = one_group(torch.randn(2, 1, 5), [[0]])
    arguments = problem.arguments(torch.zeros((2, 1), dtype=torch.int32))
    torch.library.opcheck(
        torch.ops.unison.sample_streams.default,
        (problem.settings.logits, *(getattr(arguments, f.name) for f in fields(arguments))),
        test_utils=("test_schema", "test_faketensor"),
    )
