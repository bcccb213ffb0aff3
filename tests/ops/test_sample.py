# SPDX-License-Identifier: Apache-2.0
"""The compiled sampler gives the reference's tokens, and each depends on its own item only."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.unison.ops.deterministic_math import integer_weight
from vllm.unison.ops.sample import MAX_CANDIDATES, SampleArguments, sample_streams

from .problems import (
    POISON,
    Problem,
    equal_scores_problem,
    plain_problem,
    random_problem,
    threshold_problem,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@settings(max_examples=150)
@given(
    seed=st.integers(0, 1 << 30),
    rows=st.integers(1, 6),
    streams=st.integers(1, 9),
    candidates=st.one_of(st.integers(1, 70), st.integers(1, 2100)),
    dtype=st.sampled_from(DTYPES),
)
def test_operator_equals_reference(
    seed: int, rows: int, streams: int, candidates: int, dtype: torch.dtype
) -> None:
    problem = random_problem(seed, rows, streams, candidates, dtype)
    assert torch.equal(problem.operator(), problem.reference())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("candidates", [1, 3, 512, 1024, 1025, 4097, 9000])
def test_operator_equals_reference_on_many_items(candidates: int, dtype: torch.dtype) -> None:
    problem = random_problem(candidates, 3000 // candidates + 24, 4, candidates, dtype)
    expected = problem.reference()
    assert torch.equal(problem.operator(), expected)
    if candidates > 1:
        assert (expected == -1).any()
        assert (expected != -1).sum() > expected.numel() // 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_text_vocabulary(dtype: torch.dtype) -> None:
    problem = random_problem(5, 12, 1, 151936, dtype)
    assert torch.equal(problem.operator(), problem.reference())


def test_largest_number_of_candidates() -> None:
    logits = torch.zeros((2, 1, MAX_CANDIDATES))
    problem = plain_problem(logits, top_p=0.5)
    assert torch.equal(problem.operator(), problem.reference())
    with pytest.raises(RuntimeError, match="candidates"):
        plain_problem(torch.zeros((1, 1, MAX_CANDIDATES + 1))).operator()
    with pytest.raises(ValueError, match="candidates"):
        plain_problem(torch.zeros((1, 1, MAX_CANDIDATES + 1))).reference()


@pytest.mark.parametrize("top_k", [0, 7, 200])
@pytest.mark.parametrize("top_p", [1.0, 0.8, 0.3])
def test_many_ties(top_k: int, top_p: float) -> None:
    """Few distinct logits: thresholds fall inside runs of equal scores."""
    generator = torch.Generator().manual_seed(top_k)
    logits = torch.randint(-4, 4, (40, 3, 700), generator=generator).to(torch.bfloat16)
    problem = plain_problem(logits, 0.9, top_k, top_p)
    assert torch.equal(problem.operator(), problem.reference())


@pytest.mark.parametrize("candidates", [24, 150])
def test_thresholds(candidates: int) -> None:
    for seed in range(10):
        problem = threshold_problem(seed, 200, candidates)
        assert torch.equal(problem.operator(), problem.reference())


@pytest.mark.parametrize("candidates", [2, 2500, 9000])
@pytest.mark.parametrize("top_k", [0, 5])
def test_ties_after_noise(candidates: int, top_k: int) -> None:
    problem = equal_scores_problem(4, candidates)
    problem = replace(problem, top_k=torch.full_like(problem.top_k, top_k))
    assert problem.reference().tolist() == [[0, 0], [candidates // 2] * 2] * 2
    assert torch.equal(problem.operator(), problem.reference())


@pytest.mark.parametrize(
    "temperature", [1e-45, 1e-38, 1e-30, 1e30, float("inf"), -1.0, float("nan")]
)
def test_extreme_temperatures(temperature: float) -> None:
    logits = torch.randn((8, 2, 300), generator=torch.Generator().manual_seed(0)) * 10
    problem = plain_problem(logits, temperature, top_k=20, top_p=0.9)
    tokens = problem.operator()
    assert torch.equal(tokens, problem.reference())
    if not temperature > 1e-30:
        assert torch.equal(tokens.long(), logits.argmax(-1))


@pytest.mark.parametrize("temperature", [1e-45, 1e-31, 1e-29, 0.3, 1e29, 1e31, float("inf")])
@pytest.mark.parametrize("scale", [1e-44, 1e-20, 1.0, 1e29, 1e31, 3e37])
def test_extreme_temperatures_and_logits(temperature: float, scale: float) -> None:
    """Where products with the reciprocal and bounds in units of logits stop being good enough."""
    logits = torch.randn((6, 2, 600), generator=torch.Generator().manual_seed(1)) * scale
    for top_k, top_p in ((0, 1.0), (9, 1.0), (0, 0.9), (300, 0.7)):
        problem = plain_problem(logits, temperature, top_k, top_p)
        assert torch.equal(problem.operator(), problem.reference()), (top_k, top_p)


@pytest.mark.parametrize("top_k", [0, 3, 30, 200, 700])
def test_quotients_that_round_together(instruction_sets: list[str], top_k: int) -> None:
    """Different logits with equal scores: filters must keep all or none of them."""
    generator = torch.Generator().manual_seed(top_k)
    steps = torch.stack([torch.randperm(1200, generator=generator) for _ in range(60)])
    ulps = torch.tensor(1.9).view(torch.int32) + steps.view(20, 3, 1200)
    logits = ulps.to(torch.int32).view(torch.float32)
    for top_p in (1.0, 0.4):
        problem = plain_problem(logits, 1.9, top_k, top_p)
        expected = problem.reference()
        for name in instruction_sets:
            torch.ops.unison.set_instruction_set(name)
            assert torch.equal(problem.operator(), expected), name


def test_logits_at_the_ends_of_float32() -> None:
    largest = torch.finfo(torch.float32).max
    logits = torch.tensor([largest, -largest, 0.0, 1e-45, -0.0, largest / 2]).repeat(50, 2, 1)
    for temperature in (0.5, 1.0, 1e30, float("inf")):
        for top_p in (1.0, 0.5):
            problem = plain_problem(logits, temperature, top_p=top_p)
            assert torch.equal(problem.operator(), problem.reference())
    only_lowest = plain_problem(torch.full((3, 1, 5), -largest), 0.1)
    assert only_lowest.operator().tolist() == [[0]] * 3
    assert only_lowest.reference().tolist() == [[0]] * 3


def test_half_precision_values_are_read_exactly() -> None:
    """Every float16 and bfloat16 bit pattern, as the only candidate above a threshold."""
    bits = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        values = bits.view(dtype)
        finite = values[values.isfinite()]
        pairs = torch.stack([finite, finite.flip(0)], dim=-1).unsqueeze(1)
        greedy = plain_problem(pairs, temperature=0.0).operator().squeeze(1)
        assert torch.equal(greedy.bool(), pairs[:, 0, 1].float() > pairs[:, 0, 0].float())
        unusable = values[values.isnan() | (values == torch.inf)].view(-1, 1, 1)
        assert (plain_problem(unusable).operator() == -1).all()


def _one_row(logits: list[float], temperature: float = 1.0) -> Problem:
    return plain_problem(torch.tensor([[logits]]), temperature)


@pytest.mark.parametrize("implementation", ["operator", "reference"])
class TestRules:
    """The definition's rules, each on a case small enough to decide by hand."""

    def test_forced_token_needs_no_logits(self, implementation: str) -> None:
        problem = _one_row([float("nan")] * 4)
        problem = replace(problem, forced=torch.tensor([[77]], dtype=torch.int32))
        assert getattr(problem, implementation)().tolist() == [[77]]

    @pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf")])
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_unusable_logit(self, implementation: str, value: float, temperature: float) -> None:
        problem = _one_row([1.0, value, 0.0], temperature=temperature)
        assert getattr(problem, implementation)().tolist() == [[-1]]
        masks = torch.tensor([[[True, False, True]]])
        masked = replace(problem, masks=masks, mask_index=torch.zeros(1, dtype=torch.int32))
        assert getattr(masked, implementation)().item() in (0, 2)

    def test_nothing_to_choose(self, implementation: str) -> None:
        assert getattr(_one_row([-float("inf")] * 3), implementation)().item() == -1
        problem = _one_row([1.0, 2.0])
        padding = replace(problem, candidate_ids=torch.full((1, 2), -1, dtype=torch.int32))
        assert getattr(padding, implementation)().item() == -1
        masks = torch.zeros((1, 1, 2), dtype=torch.bool)
        masked = replace(problem, masks=masks, mask_index=torch.zeros(1, dtype=torch.int32))
        assert getattr(masked, implementation)().item() == -1

    @pytest.mark.parametrize("index", [-2, 1, 1 << 30])
    def test_unknown_mask(self, implementation: str, index: int) -> None:
        problem = replace(
            _one_row([1.0, 2.0]),
            masks=torch.ones((1, 1, 2), dtype=torch.bool),
            mask_index=torch.tensor([index], dtype=torch.int32),
        )
        assert getattr(problem, implementation)().item() == -1

    def test_greedy_takes_the_first_of_equals(self, implementation: str) -> None:
        problem = _one_row([0.0, 3.0, 3.0, -1.0], temperature=0.0)
        assert getattr(problem, implementation)().item() == 1
        zeros = _one_row([-1.0, -0.0, 0.0], temperature=0.0)
        assert getattr(zeros, implementation)().item() == 1

    def test_top_k_keeps_ties(self, implementation: str) -> None:
        logits = torch.tensor([4.0, 3.0, 3.0, 3.0, 2.9]).repeat(400, 1, 1)
        tokens = getattr(plain_problem(logits, 5.0, top_k=2), implementation)()
        assert set(tokens.flatten().tolist()) == {0, 1, 2, 3}

    def test_top_p_keeps_what_has_less_above_it(self, implementation: str) -> None:
        # Probabilities 0.5, 0.2, 0.2, 0.1: above them lie 0, 0.5, 0.5, 0.9.
        logits = torch.tensor([0.5, 0.2, 0.2, 0.1]).log().repeat(400, 1, 1)
        for top_p, kept in (
            (0.0, {0}),
            (0.49, {0}),
            (0.51, {0, 1, 2}),
            (0.89, {0, 1, 2}),
            (0.91, {0, 1, 2, 3}),
        ):
            tokens = getattr(plain_problem(logits, top_p=top_p), implementation)()
            assert set(tokens.flatten().tolist()) == kept

    def test_top_p_excludes_equality(self, implementation: str) -> None:
        near_half = torch.tensor(0.5).log() + torch.arange(-64, 64) * 2.0**-25
        exactly_half = near_half[integer_weight(near_half, torch.tensor(0.0)) == 1 << 29][0]
        logits = torch.stack([torch.tensor(0.0), exactly_half, exactly_half]).repeat(400, 1, 1)
        above = float(torch.nextafter(torch.tensor(0.5), torch.tensor(1.0)))
        for top_p, kept in ((0.5, {0}), (above, {0, 1, 2})):
            tokens = getattr(plain_problem(logits, top_p=top_p), implementation)()
            assert set(tokens.flatten().tolist()) == kept

    def test_top_p_counts_what_top_k_left(self, implementation: str) -> None:
        # Of 0.4, 0.3, 0.3 the first two carry 0.57 and 0.43; above the second lies 0.57.
        logits = torch.tensor([0.4, 0.31, 0.29]).log().repeat(400, 1, 1)
        narrow = getattr(plain_problem(logits, top_k=2, top_p=0.5), implementation)()
        assert set(narrow.flatten().tolist()) == {0}
        without_k = getattr(plain_problem(logits, top_p=0.5), implementation)()
        assert set(without_k.flatten().tolist()) == {0, 1}

    def test_padding_and_minus_infinity_are_never_chosen(self, implementation: str) -> None:
        logits = torch.tensor([5.0, -float("inf"), 0.0]).repeat(200, 1, 1)
        problem = plain_problem(logits, temperature=100.0)
        ids = torch.tensor([[-1, 11, 12]], dtype=torch.int32)
        tokens = getattr(replace(problem, candidate_ids=ids), implementation)()
        assert set(tokens.flatten().tolist()) == {12}


class TestInvariance:
    """A token depends on its own item and on nothing else."""

    def test_row_alone_equals_row_in_a_crowd(self) -> None:
        problem = random_problem(11, 24, 5, 777)
        together = problem.operator()
        for row in range(24):
            assert torch.equal(problem.rows(torch.tensor([row])).operator()[0], together[row])
        order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
        assert torch.equal(problem.rows(order).operator(), together[order])

    def test_stream_alone_equals_stream_among_others(self) -> None:
        problem = random_problem(12, 6, 7, 500)
        together = problem.operator()
        for column in range(7):
            part = slice(column, column + 1)
            alone = replace(
                problem,
                logits=problem.logits[:, part],
                candidate_ids=problem.candidate_ids[part],
                masks=problem.masks[:, part].contiguous(),
                temperature=problem.temperature[:, part],
                top_k=problem.top_k[:, part],
                top_p=problem.top_p[:, part],
                forced=problem.forced[:, part],
                first_stream=problem.first_stream + column,
            )
            assert torch.equal(alone.operator()[:, 0], together[:, column])

    def test_number_of_threads(self) -> None:
        problem = random_problem(13, 64, 9, 1024)
        threads = torch.get_num_threads()
        try:
            tokens = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                tokens.append(problem.operator())
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(tokens[0], tokens[1])
        assert torch.equal(tokens[0], tokens[2])

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_instruction_set(self, instruction_sets: list[str], dtype: torch.dtype) -> None:
        for candidates in (1, 17, 1000, 5003):
            problem = random_problem(candidates, 30, 3, candidates, dtype)
            expected = problem.reference()
            for name in instruction_sets:
                torch.ops.unison.set_instruction_set(name)
                assert torch.equal(problem.operator(), expected), name

    def test_padding_candidates_change_nothing(self) -> None:
        problem = replace(random_problem(14, 20, 3, 333), mask_index=torch.full((20,), -1).int())
        problem = replace(problem, top_k=problem.top_k.clamp(max=30))
        nan = torch.full((20, 3, 51), torch.nan)
        padded = replace(
            problem,
            logits=torch.cat([problem.logits, nan], dim=-1),
            candidate_ids=torch.cat(
                [problem.candidate_ids, torch.full((3, 51), -1, dtype=torch.int32)], dim=-1
            ),
            masks=torch.ones((0, 3, 384), dtype=torch.bool),
        )
        assert torch.equal(padded.operator(), problem.operator())


def test_broadcast_and_strided_arguments() -> None:
    problem = random_problem(15, 10, 4, 200)
    wide = torch.full((10, 12), 5, dtype=torch.int32)
    dense = replace(
        problem,
        temperature=problem.temperature[:, :1].repeat(1, 4),
        top_p=problem.top_p[:1].repeat(10, 1),
        seed=problem.seed[:1].repeat(10),
    )
    strided = replace(
        dense,
        temperature=problem.temperature[:, :1].expand(10, 4),
        top_p=problem.top_p[:1].expand(10, 4),
        seed=problem.seed[:1].expand(10),
        position=torch.stack([problem.position] * 2, dim=-1)[:, 0],
    )
    sample_streams(strided.logits, strided.arguments(wide[:, 1::3]))
    assert torch.equal(wide[:, 1::3], dense.reference())
    assert (wide[:, 0::3] == 5).all()
    assert (wide[:, 2::3] == 5).all()


def test_no_rows() -> None:
    assert plain_problem(torch.zeros((0, 3, 10))).operator().shape == (0, 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logits", torch.zeros((2, 3, 5), dtype=torch.float64)),
        ("logits", torch.zeros((2, 3, 10))[..., ::2]),
        ("candidate_ids", torch.zeros((3, 4), dtype=torch.int32)),
        ("masks", torch.ones((1, 2, 5), dtype=torch.bool)),
        ("mask_index", torch.zeros(3, dtype=torch.int32)),
        ("temperature", torch.ones((2, 1))),
        ("top_k", torch.zeros((3, 3), dtype=torch.int32)),
        ("top_p", torch.ones(2)),
        ("seed", torch.zeros((2, 3), dtype=torch.int64)),
        ("position", torch.zeros(1, dtype=torch.int64)),
        ("forced", torch.zeros((2, 2), dtype=torch.int32)),
    ],
)
def test_wrong_arguments_are_named(field: str, value: torch.Tensor) -> None:
    problem = replace(plain_problem(torch.zeros((2, 3, 5))), **{field: value})
    tokens = torch.full((2, 3), POISON, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=field):
        sample_streams(problem.logits, problem.arguments(tokens))
    assert (tokens == POISON).all()


@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (6,)])
def test_wrong_output_is_named(shape: tuple[int, ...]) -> None:
    problem = plain_problem(torch.zeros((2, 3, 5)))
    with pytest.raises(RuntimeError, match="tokens must have"):
        sample_streams(problem.logits, problem.arguments(torch.zeros(shape, dtype=torch.int32)))


def test_arguments_are_those_of_the_schema() -> None:
    """The dataclass passes its fields by position."""
    schema = torch.ops.unison.sample_streams.default._schema
    names = [field.name for field in fields(SampleArguments)]
    assert ["logits", *names] == [argument.name for argument in schema.arguments]


def test_fake_implementation() -> None:
    problem = random_problem(16, 3, 2, 50)
    arguments = problem.arguments(torch.empty((3, 2), dtype=torch.int32))
    torch.library.opcheck(
        torch.ops.unison.sample_streams.default,
        (problem.logits, *(getattr(arguments, field.name) for field in fields(arguments))),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_missing_extension_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vllm.unison.ops import extension

    monkeypatch.setattr(extension, "extension_path", lambda: tmp_path / "_unison_C.so")
    with pytest.raises(ImportError, match=r"_unison_C\.so"):
        extension.load_extension.__wrapped__()
