# SPDX-License-Identifier: Apache-2.0
"""Sampling groups of lanes: the compiled operator against its definition, and the merge by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.multistream.sampling import guided_multistream_sample, multistream_sample
from vllm.multistream.sampling.oracle import guided_multistream_sample_oracle

from .problems import GuidedProblem, plain_problem, random_guided_problem

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
POISON = 0x5A5A5A5A


def check(problem: GuidedProblem) -> torch.Tensor:
    """The tokens of both, which must be equal, as must be the log-probabilities' bits."""
    tokens, log_probability = problem.results(guided_multistream_sample)
    expected, expected_log_probability = problem.results(guided_multistream_sample_oracle)
    assert torch.equal(tokens, expected)
    assert torch.equal(log_probability.isnan(), expected_log_probability.isnan())
    assert torch.equal(log_probability.nan_to_num(), expected_log_probability.nan_to_num())
    return tokens


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    groups=st.integers(1, 6),
    streams=st.integers(1, 9),
    candidates=st.one_of(st.integers(1, 70), st.integers(1, 2100)),
    dtype=st.sampled_from(DTYPES),
    most_lanes=st.integers(1, 5),
)
def test_operator_equals_oracle(
    seed: int, groups: int, streams: int, candidates: int, dtype: torch.dtype, most_lanes: int
) -> None:
    check(random_guided_problem(seed, groups, streams, candidates, dtype, most_lanes))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_of_item_occurs(dtype: torch.dtype) -> None:
    problem = random_guided_problem(1, 60, 4, 700, dtype)
    tokens = check(problem)
    assert (tokens == -1).any()
    assert (tokens == POISON).any()
    assert ((tokens >= 0) & (tokens != POISON)).sum() > 60


@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets(instruction_sets: list[str], dtype: torch.dtype) -> None:
    for candidates in (1, 17, 1000, 5003):
        problem = random_guided_problem(candidates, 10, 3, candidates, dtype)
        for name in instruction_sets:
            torch.ops.unison.set_instruction_set(name)
            check(problem)


def guided(logits: torch.Tensor, weights: list[float], temperature: float = 1.0) -> GuidedProblem:
    """One group: rows 0.. of the batch are lanes and have rows 0.. of the logits."""
    lanes, streams = logits.shape[:2]
    return GuidedProblem(
        plain_problem(logits, temperature),
        sources=torch.arange(lanes).expand(1, streams, lanes),
        weights=torch.tensor(weights).expand(1, streams, lanes),
        rows=torch.arange(lanes)[None],
        slots=torch.arange(lanes),
    )


@pytest.mark.parametrize("sample", [guided_multistream_sample, guided_multistream_sample_oracle])
class TestRules:
    """Both versions, on cases small enough to decide by hand."""

    def test_greedy_token_of_the_weighted_sum(self, sample: object) -> None:
        logits = torch.tensor([[[1.0, 2.0, 0.0]], [[0.0, 4.0, 0.0]]])
        # 3 * first - 2 * second = 3, -2, 0.
        tokens, _ = guided(logits, [3.0, -2.0], 0.0).results(sample)
        assert tokens.tolist() == [[0], [0]]
        tokens, _ = guided(logits, [0.0, 1.0], 0.0).results(sample)
        assert tokens.tolist() == [[1], [1]]

    def test_log_probability_is_that_of_the_merged_logits(self, sample: object) -> None:
        logits = 4 * torch.randn(3, 5, 333, generator=torch.Generator().manual_seed(0))
        weights = [2.0, -0.4, -0.6]
        tokens, found = guided(logits, weights, 2.5).results(sample)
        merged = (torch.tensor(weights, dtype=torch.float64)[:, None, None] * logits).sum(0)
        exact = merged.log_softmax(-1).gather(-1, tokens[0].long()[:, None])[:, 0]
        assert (found.double() - exact).abs().max() < 2e-6

    @pytest.mark.parametrize(("value", "lane"), [(torch.nan, 0), (torch.nan, 1), (torch.inf, 0)])
    def test_a_lane_that_is_no_number_fails_the_item(
        self, sample: object, value: float, lane: int
    ) -> None:
        logits = torch.zeros(2, 2, 5)
        logits[lane, 0, 3] = value
        tokens, found = guided(logits, [3.0, -2.0]).results(sample)
        assert (tokens[:, 0] == -1).all()
        assert (tokens[:, 1] >= 0).all()
        assert found[:, 0].isnan().all()

    def test_no_lane_and_no_slot_fail_the_item(self, sample: object) -> None:
        problem = guided(torch.zeros(2, 1, 5), [3.0, -2.0])
        nothing = replace(problem, sources=torch.full((1, 1, 2), -1))
        assert nothing.results(sample)[0].tolist() == [[-1], [-1]]
        lost = replace(problem, slots=torch.tensor([7, 0]))
        assert lost.results(sample)[0].tolist() == [[-1], [-1]]

    def test_forced_and_left_items(self, sample: object) -> None:
        problem = guided(torch.full((2, 2, 5), torch.nan), [3.0, -2.0])
        forced = torch.tensor([[9, -2], [5, 5]], dtype=torch.int32)
        problem = replace(problem, settings=replace(problem.settings, forced=forced))
        tokens, found = problem.results(sample)
        assert tokens.tolist() == [[9, POISON], [9, POISON]]
        assert found.tolist() == [[0.0, 12345.0]] * 2


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 30), dtype=st.sampled_from(DTYPES))
def test_equals_sampling_logits_that_were_merged_before(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups, lanes, streams, candidates = 4, 3, 3, 257
    logits = (3 * torch.randn(groups * lanes, streams, candidates, generator=generator)).to(dtype)
    weights = torch.randn(groups, lanes, generator=generator)
    of_group = logits.float().view(groups, lanes, streams, candidates)
    merged = of_group[:, 0] * weights[:, 0, None, None]
    for lane in range(1, lanes):
        merged = merged + of_group[:, lane] * weights[:, lane, None, None]
    plain = plain_problem(merged, 0.9, top_k=50, top_p=0.9)
    tokens = torch.empty((groups * lanes, streams), dtype=torch.int32)
    rows = torch.arange(groups * lanes).view(groups, lanes)
    arguments = plain.arguments() | {
        "logits": logits,
        "mask_index": torch.full((groups * lanes,), -1, dtype=torch.int32),
        "position": plain.position.repeat_interleave(lanes),
        "forced": torch.full((groups * lanes, streams), -1, dtype=torch.int32),
        "tokens": tokens,
        "sources": rows[:, None].expand(-1, streams, -1),
        "weights": weights[:, None].expand(-1, streams, -1),
        "rows": rows,
        "slots": torch.arange(groups).repeat_interleave(lanes),
    }
    guided_multistream_sample(**arguments)
    expected = multistream_sample(**plain.arguments())
    assert torch.equal(tokens, expected.repeat_interleave(lanes, 0))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sources", torch.zeros((1, 3, 2), dtype=torch.int64)),
        ("sources", torch.zeros((1, 1, 2), dtype=torch.int32)),
        ("weights", torch.zeros((1, 1, 3))),
        ("rows", torch.zeros((2, 2), dtype=torch.int64)),
        ("slots", torch.zeros((2, 1), dtype=torch.int64)),
    ],
)
def test_wrong_arguments_are_named(field: str, value: torch.Tensor) -> None:
    problem = replace(guided(torch.zeros((2, 1, 5)), [3.0, -2.0]), **{field: value})
    # A wrong element type is named by its tensor's type.
    with pytest.raises(RuntimeError, match=rf"{field}|scalar type"):
        problem.results(guided_multistream_sample)


def test_fake_implementation() -> None:
    problem = guided(torch.randn(2, 1, 5), [3.0, -2.0])
    tokens = torch.zeros((2, 1), dtype=torch.int32)
    arguments = problem.arguments()
    extra = [arguments.pop(name) for name in ("sources", "weights", "rows", "slots")]
    torch.library.opcheck(
        torch.ops.unison.guided_multistream_sample.default,
        (*arguments.values(), tokens, *extra, torch.zeros((2, 1))),
        test_utils=("test_schema", "test_faketensor"),
    )
