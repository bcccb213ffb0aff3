# SPDX-License-Identifier: Apache-2.0
"""Samples follow the distribution they claim, independently over seeds, positions and streams."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy import stats

from .problems import plain_problem

SAMPLES = 60_000
# Seeds are fixed, so a p-value is a fixed number; a sound sampler fails this once in 1000 rewrites.
SIGNIFICANCE = 1e-3


def _expected(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """Probabilities [C] after both filters, in float64, by sorting."""
    scores = logits.double() / temperature
    if top_k:
        scores[scores < scores.sort(descending=True).values[top_k - 1]] = -torch.inf
    probabilities = scores.softmax(-1)
    descending, order = probabilities.sort(descending=True)
    keep = descending.cumsum(-1) - descending < top_p
    probabilities[order[~keep]] = 0
    return probabilities / probabilities.sum()


@pytest.mark.parametrize("candidates", [7, 129])
@pytest.mark.parametrize("temperature", [0.7, 2.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.8), (6, 0.7)])
def test_chi_square(candidates: int, temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(candidates, generator=torch.Generator().manual_seed(candidates))
    problem = plain_problem(logits.repeat(SAMPLES, 1, 1), temperature, top_k, top_p)
    observed = torch.bincount(problem.operator().flatten().long(), minlength=candidates)
    expected = _expected(logits, temperature, top_k, top_p) * SAMPLES
    assert observed[expected == 0].sum() == 0
    kept = expected > 0
    assert stats.chisquare(observed[kept], expected[kept]).pvalue > SIGNIFICANCE


def test_rare_candidates_keep_their_share() -> None:
    """4000 candidates of probability 5e-6 each beside a dominant one: only far noise picks them."""
    logits = torch.zeros(4001)
    logits[0] = torch.tensor(0.98 / 5e-6).log()
    problem = plain_problem(logits.repeat(3000, 1, 1))
    tokens = torch.cat(
        [replace(problem, seed=torch.full((3000,), seed)).operator() for seed in range(5)]
    )
    rare = int((tokens != 0).sum())
    assert stats.binomtest(rare, tokens.numel(), 0.02).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("axis", ["position", "stream", "seed"])
def test_neighbours_are_independent(axis: str) -> None:
    """Contingency of the tokens of adjacent positions, streams or seeds."""
    candidates = 6
    count = 40_000
    logits = torch.linspace(0.0, 1.5, candidates)
    if axis == "stream":
        tokens = plain_problem(logits.repeat(count, 2, 1)).operator()
        first, second = tokens.unbind(-1)
    else:
        problem = plain_problem(logits.repeat(count, 1, 1))
        if axis == "seed":
            problem = replace(problem, seed=problem.position, position=problem.seed)
        tokens = problem.operator().flatten()
        first, second = tokens[0::2], tokens[1::2]
    table = torch.bincount(first.long() * candidates + second.long(), minlength=candidates**2)
    assert stats.chi2_contingency(table.view(candidates, candidates).numpy()).pvalue > SIGNIFICANCE


def test_position_stream_and_seed_all_matter() -> None:
    problem = plain_problem(torch.zeros((64, 4, 1024)))
    base = problem.operator()
    changed = [
        replace(problem, seed=problem.seed + 1),
        replace(problem, seed=problem.seed + (1 << 40)),
        replace(problem, position=problem.position + 1000),
        replace(problem, position=problem.position + (1 << 40)),
        replace(problem, first_stream=4),
    ]
    for other in changed:
        assert (other.operator() == base).float().mean() < 0.05
    shifted = replace(problem, first_stream=1).operator()
    assert torch.equal(shifted[:, :3], base[:, 1:])
