# SPDX-License-Identifier: Apache-2.0
"""The multi-stream sampler's definition, in plain PyTorch.

The C++ and CUDA operators must give the same tokens, bit for bit. One *item* is one stream of one
row. With float32 arithmetic throughout, and "allowed" meaning that the candidate is not padding and
the row's mask admits it, an item is decided as follows; the first rule that applies holds.

1. A forced token is emitted as it is; the logits are not looked at.
2. A mask index outside [-1, M), an allowed logit that is NaN or +inf, or no allowed logit above
   -inf: the token is -1. The caller fails the request.
3. Greedy, where the temperature is not above 0: the largest allowed logit.
4. Scores are x = logit / temperature. If the largest x overflows to an infinity, decide greedily,
   which is the limit of a falling temperature.
5. top-k (if 0 < k < C): candidates with x >= the k-th largest allowed x stay; ties all stay.
6. top-p (if p < 1): weights are w = floor(exp(x - max x) * 2^30), integers, over the candidates
   that stayed. Candidate i stays iff the weights of all candidates with a score strictly above x_i
   sum to less than float64(p) * float64(total weight); one with the largest score always stays.
7. Of the candidates left, the largest x + noise, with the candidate's own Gumbel noise.

Every tie goes to the lowest candidate index. Nothing here depends on a sorting order, on the order
of a floating-point sum or on other items. Candidates with x = -inf are never chosen.
"""

from __future__ import annotations

import torch

from vllm.multistream.sampling.deterministic_math import gumbel_noise, integer_weight
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
    """Sample one token per row and stream; see the module's docstring for the rules.

    Args:
        logits: [R, K, C] float32, bfloat16 or float16, 1 <= C <= 2^18.
        candidate_ids: [K, C] int32, the token of each candidate; -1 marks padding.
        masks: [M, K, C] bool, True where a candidate is allowed.
        mask_index: [R] int32, the row's mask; -1 allows every candidate.
        temperature: [R, K] float32; 0 is greedy.
        top_k: [R, K] int32; 0 (or C and more) is off.
        top_p: [R, K] float32; 1 is off.
        seed: [R] int64, all 64 bits are used.
        position: [R] int64, absolute position of the emitted token.
        first_stream: number of the stream in column 0; column k is stream first_stream + k.
        forced: [R, K] int32, a token to emit as it is, or -1 to sample.
        out: [R, K] int32 to write into; allocated if None.

    Returns:
        [R, K] int32 tokens, -1 where an item cannot be sampled.
    """
    num_streams, num_candidates = logits.shape[1:]
    if not 1 <= num_candidates <= MAX_CANDIDATES:
        raise ValueError(
            f"logits has {num_candidates} candidates; accepted are 1 to {MAX_CANDIDATES}"
        )
    logits = logits.float()
    allowed = _allowed(candidate_ids, masks, mask_index)
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
    tokens = candidate_ids[columns, choice]
    tokens = torch.where(unusable, -1, tokens)
    tokens = torch.where(forced >= 0, forced, tokens).to(torch.int32)
    if out is None:
        return tokens
    return out.copy_(tokens)
