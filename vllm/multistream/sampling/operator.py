# SPDX-License-Identifier: Apache-2.0
"""The compiled multi-stream sampler, ``torch.ops.unison.multistream_sample``."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

import vllm
from vllm.multistream.sampling.oracle import MAX_CANDIDATES, multistream_sample_oracle

EXTENSION_NAME = "_unison_C.so"

sample_reference = multistream_sample_oracle
"""The oracle under the signature of :func:`multistream_sample`, to be put in its place."""


def extension_path() -> Path:
    """Where the built package keeps its compiled operators."""
    return Path(vllm.__file__).parent / EXTENSION_NAME


def _multistream_sample_fake(
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
) -> None:
    torch._check(tokens.shape == logits.shape[:2], lambda: "tokens must have the shape [R, K]")


@functools.cache
def load_extension() -> None:
    """Load the compiled operators into ``torch.ops.unison``; once per process.

    Raises:
        ImportError: the installed package has no compiled operators.
    """
    path = extension_path()
    if not path.is_file():
        raise ImportError(
            f"the compiled operators of multi-stream generation are missing: no {path}. "
            "Install a wheel built from this fork, or build csrc/ with CMake."
        )
    torch.ops.load_library(str(path))
    torch.library.register_fake("unison::multistream_sample", _multistream_sample_fake)


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
    """Sample one token per row and stream in one launch.

    The rules are those of :mod:`vllm.multistream.sampling.oracle`; so are the tokens, bit for bit.
    No element of an argument is read on the host, and nothing but ``out`` is allocated.

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
        forced: [R, K] int32, a token to emit as it is, or -1 to sample.
        out: [R, K] int32 to write into; allocated if None.

    Per-row and per-item tensors, and ``out``, may have any strides, so they can be broadcast
    (``expand``) or be columns of a larger tensor.

    Returns:
        [R, K] int32 tokens; -1 where an item cannot be sampled.

    Raises:
        RuntimeError: a tensor has a wrong shape, type or device; the message names it.
        ImportError: the installed package has no compiled operators.
    """
    load_extension()
    if out is None:
        out = torch.empty(logits.shape[:2], dtype=torch.int32, device=logits.device)
    torch.ops.unison.multistream_sample(
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
    "EXTENSION_NAME",
    "MAX_CANDIDATES",
    "extension_path",
    "load_extension",
    "multistream_sample",
    "sample_reference",
]
