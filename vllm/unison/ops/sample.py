# SPDX-License-Identifier: Apache-2.0
"""The multi-stream sampler: mask, temperature, top-k, top-p and seeded sampling, in one launch.

One *item* is one stream of one group; a group is sampled once per stream, and all of its batch rows
get the token. The lanes of a group have been merged before (:mod:`vllm.unison.ops.cfg_merge`).
``csrc/sample/`` holds the C++ loops and the CUDA kernel; their definition, with the rules, is
:mod:`vllm.unison.ops.sample_reference`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import attrgetter

import torch

from vllm.unison.ops.extension import load_extension

MAX_CANDIDATES = 1 << 18
"""Largest number of candidates: the integer weights of so many sum without error in float64."""

KEEP_OUTPUT = -2
"""A forced value that leaves the output of an item as it is; another call decides the item."""


@dataclass(frozen=True, eq=False)
class SampleArguments:
    """What the sampler is given besides the logits [N, K, C], 1 <= C <= MAX_CANDIDATES.

    There are N rows of logits, K streams, C candidates per stream, M masks, G groups, R rows of the
    batch and S slots of settings.

    `candidate_ids` and `masks` are contiguous. All other tensors may have any strides, so they can
    be broadcast (``expand``) or be columns of a larger tensor.

    Attributes:
        candidate_ids: [K, C] int32 token of each candidate; -1 marks padding.
        masks: [M, K, C] bool, True where a candidate is allowed.
        mask_index: [R] int32 mask of a row; -1 allows every candidate.
        temperature: [S, K] float32; 0 is greedy.
        top_k: [S, K] int32; 0, or C and more, is off.
        top_p: [S, K] float32; 1 is off.
        seed: [S] int64, of which all 64 bits are used.
        position: [R] int64 absolute position of the emitted token.
        first_stream: number of the stream in column 0; column k is stream first_stream + k.
        forced: [R, K] int32: a token to emit as it is, -1 to sample, or KEEP_OUTPUT.
        tokens: [R, K] int32, written: the tokens, -1 where an item cannot be sampled.
        logit_rows: [G, K] int64 row of the logits that each stream of a group is sampled from. An
            item whose index is no row cannot be sampled. None: group g has row g, and G = N.
        rows: [G, any] int64 batch rows that get a group's tokens, all distinct; the first one's
            settings count. An index that is no row, such as -1, is none, and a group without a
            first row is not sampled. None: group g is row g, and R = G.
        slots: [R] int64 where a row's settings are in `temperature`, `top_k`, `top_p` and `seed`. A
            row whose index is no slot cannot be sampled. None: row r has slot r.
    """

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
    tokens: torch.Tensor
    logit_rows: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    slots: torch.Tensor | None = None


_in_order = attrgetter(*(field.name for field in fields(SampleArguments)))
"""The arguments as a tuple: the fields are in the order of the operator's schema."""


def sample_streams(logits: torch.Tensor, arguments: SampleArguments) -> None:
    """Sample one token per group and stream and write it to ``arguments.tokens``.

    No element of an argument is read on the host, and nothing is allocated.

    Args:
        logits: [N, K, C] float32, bfloat16 or float16, contiguous in its last dimension.
        arguments: the rest.

    Raises:
        RuntimeError: a tensor has a wrong shape, type or device; the message names it.
        ImportError: the installed package has no compiled operators.
    """
    load_extension()
    torch.ops.unison.sample_streams.default(logits, *_in_order(arguments))
