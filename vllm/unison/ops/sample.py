# SPDX-License-Identifier: Apache-2.0
"""The compiled multi-stream sampler, ``torch.ops.unison.guided_multistream_sample``."""

from __future__ import annotations

import torch

from vllm.multistream.extension import load_extension
from vllm.multistream.sampling.oracle import MAX_CANDIDATES, multistream_sample_oracle

sample_reference = multistream_sample_oracle
"""The oracle under the signature of :func:`multistream_sample`, to be put in its place."""


def guided_multistream_sample(
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
    """Merge lanes and sample one token per group and stream, in one launch.

    The rules and arguments are those of
    :func:`vllm.multistream.sampling.oracle.guided_multistream_sample_oracle`; so are the results,
    bit for bit. No element of an argument is read on the host, and nothing is allocated.

    `logits` must be contiguous in its last dimension, `candidate_ids` and `masks` altogether. All
    other tensors may have any strides, so they can be broadcast (``expand``) or be columns of a
    larger tensor.

    Raises:
        RuntimeError: a tensor has a wrong shape, type or device; the message names it.
        ImportError: the installed package has no compiled operators.
    """
    load_extension()
    torch.ops.unison.guided_multistream_sample.default(
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
        tokens,
        sources,
        weights,
        rows,
        slots,
        log_probability,
    )


def multistream_sample(
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
        logits: [R, K, C] float32, bfloat16 or float16, 1 <= C <= 2^18, contiguous in C.
        candidate_ids: [K, C] int32, contiguous; the token of each candidate, -1 for padding.
        masks: [M, K, C] bool, contiguous; True where a candidate is allowed.
        mask_index: [R] int32, the row's mask; -1 allows every candidate.
        temperature: [R, K] float32; 0 is greedy.
        top_k: [R, K] int32; 0 (or C and more) is off.
        top_p: [R, K] float32; 1 is off.
        seed: [R] int64, all 64 bits are used.
        position: [R] int64, absolute position of the emitted token.
        first_stream: number of the stream in column 0.
        forced: [R, K] int32, a token to emit as it is, -1 to sample, -2 to leave what is in `out`.
        out: [R, K] int32 to write into; allocated, filled with -1, if None.

    Returns:
        [R, K] int32 tokens; -1 where an item cannot be sampled.

    Raises:
        RuntimeError: a tensor has a wrong shape, type or device; the message names it.
        ImportError: the installed package has no compiled operators.
    """
    if out is None:
        out = torch.full(logits.shape[:2], -1, dtype=torch.int32, device=logits.device)
    guided_multistream_sample(
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


__all__ = [
    "MAX_CANDIDATES",
    "guided_multistream_sample",
    "load_extension",
    "multistream_sample",
    "sample_reference",
]
