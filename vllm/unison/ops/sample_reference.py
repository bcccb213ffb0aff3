# SPDX-License-Identifier: Apache-2.0
"""The guided multi-stream sampler's definition, in plain PyTorch.

The C++ and CUDA operators must give the same tokens, bit for bit. One *item* is one stream of one
group. A group is one or more rows of the step's batch, its lanes: it is sampled once, with the
settings of its first row, and all its rows get the token. Its logits are the weighted sum of some
rows of `logits`, multiplied and added in float32, lane by lane in the order given. A request
without guidance is a group of one lane with weight 1.

With float32 arithmetic throughout, and "allowed" meaning that the candidate is not padding and
the row's mask admits it, an item is decided as follows; the first rule that applies holds.

1. A forced token is emitted as it is; the logits are not looked at. A forced value below -1 leaves
   the outputs as they are: another call decides the item.
2. A mask index outside [-1, M), no settings, no lane, an allowed logit that is NaN or +inf, or no
   allowed logit above -inf: the token is -1. The caller fails the request. Merged logits count.
3. Greedy, where the temperature is not above 0: the largest allowed logit.
4. Scores are x = logit / temperature. If the largest x overflows to an infinity, decide greedily,
   which is the limit of a falling temperature.
5. top-k (if 0 < k < C): candidates with x >= the k-th largest allowed x stay; ties all stay.
6. top-p (if p < 1): weights are w = floor(exp(x - max x) * 2^30), integers, over the candidates
   that stayed. Candidate i stays iff the weights of all candidates with a score strictly above x_i
   sum to less than float64(p) * float64(total weight); one with the largest score always stays.
7. Of the candidates left, the largest x + noise, with the candidate's own Gumbel noise.

Every tie goes to the lowest candidate index. Nothing here depends on a sorting order, on the order
of a floating-point sum (but the lanes', whose order is given) or on other items. Candidates with
x = -inf are never chosen.

The log-probability, where asked for, is that of the token under the softmax of the merged allowed
logits, before temperature and filters: (logit - largest) - log(sum of w / 2^30) with the weights of
rule 6 at temperature 1. It is 0 for a forced token and NaN for one that cannot be sampled.
"""

from __future__ import annotations

import torch

from vllm.multistream.sampling.deterministic_math import (
    WEIGHT_SCALE,
    deterministic_log,
    gumbel_noise,
    integer_weight,
)
from vllm.multistream.sampling.philox import candidate_words

MAX_CANDIDATES = 1 << 18
"""Largest C: integer weights of so many candidates sum without error in float64."""


def _first_argmax(values: torch.Tensor) -> torch.Tensor:
    largest = values.max(dim=-1, keepdim=True).values
    index = torch.arange(values.shape[-1], device=values.device)
    return torch.where(values == largest, index, values.shape[-1]).min(dim=-1).values


def _allowed(
    candidate_ids: torch.Tensor, masks: torch.Tensor, mask_index: torch.Tensor
) -> torch.Tensor:
    """Bool [R, K, C]; a mask index out of range allows nothing."""
    everything = torch.ones((1, *candidate_ids.shape), dtype=torch.bool, device=masks.device)
    nothing = torch.zeros_like(everything)
    table = torch.cat([nothing, everything, masks])
    known = (mask_index >= -1) & (mask_index < masks.shape[0])
    return table[torch.where(known, mask_index + 2, 0).long()] & (candidate_ids >= 0)


def _keep_top_k(scores: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    num_candidates = scores.shape[-1]
    active = (top_k > 0) & (top_k < num_candidates)
    rank = torch.where(active, top_k, num_candidates).long() - 1
    descending = scores.sort(dim=-1, descending=True).values
    return scores >= descending.gather(-1, rank.unsqueeze(-1))


def _keep_top_p(scores: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    largest = scores.max(dim=-1, keepdim=True).values
    descending, order = scores.sort(dim=-1, descending=True)
    weights = integer_weight(descending, largest)
    weights = torch.where(descending == -torch.inf, 0, weights)
    cumulative = weights.cumsum(-1)
    # The weight strictly above a score is the exclusive sum at the first candidate of its ties.
    starts_ties = torch.ones_like(descending, dtype=torch.bool)
    starts_ties[..., 1:] = descending[..., 1:] != descending[..., :-1]
    above = torch.where(starts_ties, cumulative - weights, 0).cummax(dim=-1).values
    limit = top_p.double().unsqueeze(-1) * cumulative[..., -1:].double()
    keep = (above.double() < limit) | (above == 0) | ~(top_p < 1).unsqueeze(-1)
    return torch.zeros_like(keep).scatter(-1, order, keep)


def merge_logits(
    logits: torch.Tensor, sources: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sums over lanes.

    Args:
        logits: [N, K, C].
        sources: [G, K, S] int64 rows of `logits`; what is no row is no lane.
        weights: [G, K, S] float32.

    Returns:
        [G, K, C] float32 merged logits, and [G, K] bool whether the item has a lane.
    """
    num_groups, num_streams = sources.shape[:2]
    merged = torch.zeros((num_groups, num_streams, logits.shape[2]), device=logits.device)
    has_lane = torch.zeros((num_groups, num_streams), dtype=torch.bool, device=logits.device)
    columns = torch.arange(num_streams, device=logits.device)
    for lane in range(sources.shape[2] if len(logits) else 0):
        rows = sources[..., lane]
        exists = (rows >= 0) & (rows < len(logits))
        term = logits[torch.where(exists, rows, 0), columns].float() * weights[..., lane, None]
        total = torch.where(has_lane[..., None], merged + term, term)
        merged = torch.where(exists[..., None], total, merged)
        has_lane |= exists
    return merged, has_lane


def _choose(
    logits: torch.Tensor,
    candidate_ids: torch.Tensor,
    allowed: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    first_stream: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [G, K], -1 where an item cannot be sampled, and their log-probabilities."""
    num_streams, num_candidates = logits.shape[1:]
    unusable = (allowed & (logits.isnan() | (logits == torch.inf))).any(-1)
    logits = torch.where(allowed, logits, -torch.inf)
    unusable |= ~(logits > -torch.inf).any(-1)
    # Rows that fail are decided by rule 2; a harmless value keeps NaN out of the rest.
    logits = torch.where(unusable.unsqueeze(-1), 0.0, logits)

    sampled = temperature > 0
    scores = logits / torch.where(sampled, temperature, 1.0).unsqueeze(-1)
    sampled &= scores.max(dim=-1).values.isfinite()
    scores = torch.where(sampled.unsqueeze(-1), scores, logits)

    kept = torch.where(_keep_top_k(scores, top_k), scores, -torch.inf)
    kept = torch.where(_keep_top_p(kept, top_p), kept, -torch.inf)

    streams = first_stream + torch.arange(num_streams, device=logits.device)
    words = candidate_words(seed.unsqueeze(-1), position.unsqueeze(-1), streams, num_candidates)
    noisy = kept + gumbel_noise(words)

    choice = torch.where(sampled, _first_argmax(noisy), _first_argmax(logits))
    columns = torch.arange(num_streams, device=logits.device)
    tokens = torch.where(unusable, -1, candidate_ids[columns, choice]).to(torch.int32)

    largest = logits.max(dim=-1, keepdim=True).values
    total = torch.where(logits == -torch.inf, 0, integer_weight(logits, largest)).sum(-1)
    log_total = deterministic_log(total.to(torch.float32) * (1 / WEIGHT_SCALE))
    own = logits.gather(-1, choice.unsqueeze(-1)).squeeze(-1)
    log_probability = (own - largest.squeeze(-1)) - log_total
    return tokens, torch.where(unusable, torch.nan, log_probability)


def guided_multistream_sample_oracle(
    logits: torch.Tensor,
    candidate_ids: torch.Tensor,
    masks: torch.Tensor,
    mask_index: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    first_stream: int,
    forced: torch.Tensor,
    tokens: torch.Tensor,
    sources: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    slots: torch.Tensor | None = None,
    log_probability: torch.Tensor | None = None,
) -> None:
    """Sample one token per group and stream; see the module's docstring for the rules.

    Args:
        logits: [N, K, C] float32, bfloat16 or float16, 1 <= C <= 2^18.
        candidate_ids: [K, C] int32, the token of each candidate; -1 marks padding.
        masks: [M, K, C] bool, True where a candidate is allowed.
        mask_index: [R] int32, the row's mask; -1 allows every candidate.
        temperature: [slots, K] float32; 0 is greedy.
        top_k: [slots, K] int32; 0 (or C and more) is off.
        top_p: [slots, K] float32; 1 is off.
        seed: [slots] int64, all 64 bits are used.
        position: [R] int64, absolute position of the emitted token.
        first_stream: number of the stream in column 0; column k is stream first_stream + k.
        forced: [R, K] int32, a token to emit as it is, -1 to sample, -2 to leave the outputs.
        tokens: [R, K] int32, written.
        sources: [G, K, S] int64 rows of `logits` that an item merges, in order; an index that is no
            row, such as -1, is no lane. None: group g has row g alone, G = N.
        weights: [G, K, S] float32, given with `sources`.
        rows: [G, L] int64 rows that get a group's tokens, distinct; the first one's settings count.
            An index that is no row is none, and a group without a first one is left out.
            None: group g is row g, R = G.
        slots: [R] int64, where in `temperature`, `top_k`, `top_p` and `seed` a row's settings are.
            None: row r has slot r.
        log_probability: [R, K] float32, written like `tokens`; None if not asked for.
    """
    num_candidates = logits.shape[2]
    if not 1 <= num_candidates <= MAX_CANDIDATES:
        raise ValueError(
            f"logits has {num_candidates} candidates; accepted are 1 to {MAX_CANDIDATES}"
        )
    if sources is None or weights is None:
        merged = logits.float()
        has_lane = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    else:
        merged, has_lane = merge_logits(logits, sources, weights)
    num_groups = len(merged)
    if rows is None:
        rows = torch.arange(num_groups, device=logits.device)[:, None]
    num_rows = len(tokens)
    if num_groups == 0 or num_rows == 0:
        return
    is_row = (rows >= 0) & (rows < num_rows)
    rows = torch.where(is_row, rows, 0)
    first = rows[:, 0]
    slot = first if slots is None else slots[first]
    has_slot = (slot >= 0) & (slot < len(temperature))
    slot = torch.where(has_slot, slot, 0)
    usable = has_lane & has_slot[:, None]
    allowed = _allowed(candidate_ids, masks, mask_index[first]) & usable[..., None]
    chosen, chosen_log_probability = _choose(
        merged,
        candidate_ids,
        allowed,
        temperature[slot],
        top_k[slot],
        top_p[slot],
        seed[slot],
        position[first],
        first_stream,
    )
    given = forced[first]
    chosen = torch.where(given >= 0, given, chosen)
    chosen_log_probability = torch.where(given >= 0, 0.0, chosen_log_probability)
    for place in range(rows.shape[1]):
        group, stream = torch.where((is_row[:, place] & is_row[:, 0])[:, None] & (given >= -1))
        tokens[rows[group, place], stream] = chosen[group, stream]
        if log_probability is not None:
            values = chosen_log_probability[group, stream]
            log_probability[rows[group, place], stream] = values


def multistream_sample_oracle(
    logits: torch.Tensor,
    candidate_ids: torch.Tensor,
    masks: torch.Tensor,
    mask_index: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    first_stream: int,
    forced: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sample rows that are groups of their own: one lane with weight 1 each.

    Args:
        logits: [R, K, C].
        temperature, top_k, top_p: [R, K].
        seed: [R].
        out: [R, K] int32 to write into; allocated, filled with -1, if None.

    The other arguments are those of :func:`guided_multistream_sample_oracle`.

    Returns:
        [R, K] int32 tokens, -1 where an item cannot be sampled.
    """
    if out is None:
        out = torch.full(logits.shape[:2], -1, dtype=torch.int32, device=logits.device)
    guided_multistream_sample_oracle(
        logits,
        candidate_ids,
        masks,
        mask_index,
        temperature,
        top_k,
        top_p,
        seed,
        position,
        first_stream,
        forced,
        out,
    )
    return out
