# SPDX-License-Identifier: Apache-2.0
"""The definition of the multi-stream sampler, in plain PyTorch.

The C++ and CUDA operators give the same tokens, bit for bit. One *item* is one stream of one group.
It is sampled from one row of the logits, with the settings of the group's first batch row, and all
rows of the group get the token.

Arithmetic is in float32, and a candidate is "allowed" if it is not padding and the row's mask
admits it. The first rule that applies decides an item:

1. A forced token is emitted as it is; the logits are not looked at. A forced value below -1 leaves
   the output as it is: another call decides the item.
2. The token is -1, and the caller fails the request, where the mask index is outside [-1, M), the
   item has no settings or no row of logits, an allowed logit is NaN or +inf, or no allowed logit is
   above -inf.
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

from vllm.unison.ops.deterministic_math import gumbel_noise, integer_weight
from vllm.unison.ops.philox import candidate_words
from vllm.unison.ops.sample import MAX_CANDIDATES, SampleArguments


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
    exists = (mask_index >= -1) & (mask_index < masks.shape[0])
    return table[torch.where(exists, mask_index + 2, 0).long()] & (candidate_ids >= 0)


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
) -> torch.Tensor:
    """Tokens [G, K], -1 where an item cannot be sampled."""
    num_streams, num_candidates = logits.shape[1:]
    unusable = (allowed & (logits.isnan() | (logits == torch.inf))).any(-1)
    logits = torch.where(allowed, logits, -torch.inf)
    unusable |= ~(logits > -torch.inf).any(-1)
    # Rule 2 decides these items; a harmless value keeps NaN out of the rest.
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
    return torch.where(unusable, -1, candidate_ids[columns, choice]).to(torch.int32)


def sample_streams_reference(logits: torch.Tensor, arguments: SampleArguments) -> None:
    """The definition of :func:`vllm.unison.ops.sample.sample_streams`, bit for bit.

    Raises:
        ValueError: the logits have no candidates or more than MAX_CANDIDATES.
    """
    num_candidates = logits.shape[2]
    if not 1 <= num_candidates <= MAX_CANDIDATES:
        raise ValueError(
            f"logits has {num_candidates} candidates; accepted are 1 to {MAX_CANDIDATES}"
        )
    tokens, logit_rows, rows = arguments.tokens, arguments.logit_rows, arguments.rows
    if logit_rows is None:
        logit_rows = torch.arange(len(logits), device=logits.device)[:, None]
        logit_rows = logit_rows.expand(-1, logits.shape[1])
    num_groups, num_rows = len(logit_rows), len(tokens)
    if num_groups == 0 or num_rows == 0:
        return
    if rows is None:
        rows = torch.arange(num_groups, device=logits.device)[:, None]
    is_row = (rows >= 0) & (rows < num_rows)
    rows = torch.where(is_row, rows, 0)
    first = rows[:, 0]
    slot = first if arguments.slots is None else arguments.slots[first]
    has_slot = (slot >= 0) & (slot < len(arguments.temperature))
    slot = torch.where(has_slot, slot, 0)
    has_logits = (logit_rows >= 0) & (logit_rows < len(logits))
    usable = has_logits & has_slot[:, None]
    if len(logits):
        columns = torch.arange(logits.shape[1], device=logits.device)
        own_logits = logits[torch.where(has_logits, logit_rows, 0), columns].float()
    else:
        own_logits = logits.new_zeros((*logit_rows.shape, num_candidates)).float()
    allowed = _allowed(arguments.candidate_ids, arguments.masks, arguments.mask_index[first])
    chosen = _choose(
        own_logits,
        arguments.candidate_ids,
        allowed & usable[..., None],
        arguments.temperature[slot],
        arguments.top_k[slot],
        arguments.top_p[slot],
        arguments.seed[slot],
        arguments.position[first],
        arguments.first_stream,
    )
    forced = arguments.forced[first]
    chosen = torch.where(forced >= 0, forced, chosen)
    for place in range(rows.shape[1]):
        is_written = (is_row[:, place] & is_row[:, 0])[:, None] & (forced >= -1)
        group, stream = torch.where(is_written)
        tokens[rows[group, place], stream] = chosen[group, stream]
