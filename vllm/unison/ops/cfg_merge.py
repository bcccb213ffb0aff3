# SPDX-License-Identifier: Apache-2.0
"""The CFG merge: the one place where the lanes of a sequence group are combined.

Classifier-free guidance decodes a group of lanes, the conditional one and one or more guidance
lanes, and samples all of them from one weighted sum:

    merged[g] = sum over lanes i of weights[g, i] * values[members[g, i]]

The weights of a group sum to 1; plain CFG with scale s has the weights (s, 1 - s). Products and
sums are in float32, lane by lane in the order given, and the result is rounded once. A group's sum
depends on its own lanes only, and has the same bits on every device.

The engine merges

- in a multi-stream model the hidden states, before its heads (``worker/sampler.py``). The heads are
  linear, so they are multiplied once per group instead of once per lane;
- in a text-only model the logits (``guidance/worker.py``), since a model may do anything after its
  head. Upstream's sampler takes the merged logits.

The sampler itself merges nothing. ``csrc/cfg_merge/`` holds the C++ loops and the CUDA kernel;
:func:`cfg_merge_reference` defines them in plain PyTorch.
"""

from __future__ import annotations

import torch

from vllm.unison.ops.extension import load_extension


def cfg_merge(
    values: torch.Tensor,
    members: torch.Tensor,
    weights: torch.Tensor,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Weighted sums over the active lanes of groups.

    Args:
        values: [num_rows, width] float32, bfloat16 or float16, contiguous in its last dimension.
        members: [num_groups, max_lanes] int64 row of `values` of each lane, the conditional lane
            first. An index that is no row, such as -1, stands for no lane. A group without lanes
            gives 0.
        weights: [num_groups, max_lanes] float32.
        dtype: of the result: float32, or that of `values` (the default).

    Returns:
        [num_groups, width].

    Raises:
        RuntimeError: a tensor has a wrong shape, type or device; the message names it.
        ImportError: the installed package has no compiled operators.
    """
    load_extension()
    merged = values.new_empty((members.shape[0], values.shape[1]), dtype=dtype)
    torch.ops.unison.cfg_merge.default(values, members, weights, merged)
    return merged


def cfg_merge_reference(
    values: torch.Tensor,
    members: torch.Tensor,
    weights: torch.Tensor,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The definition of :func:`cfg_merge`, bit for bit."""
    exists = (members >= 0) & (members < len(values))
    merged = torch.zeros((len(members), values.shape[1]), device=values.device)
    is_empty = torch.ones(len(members), dtype=torch.bool, device=values.device)
    for lane in range(members.shape[1] if len(values) else 0):
        rows = torch.where(exists[:, lane], members[:, lane], 0)
        term = values[rows].float() * weights[:, lane, None]
        total = torch.where(is_empty[:, None], term, merged + term)
        merged = torch.where(exists[:, lane, None], total, merged)
        is_empty &= ~exists[:, lane]
    return merged.to(values.dtype if dtype is None else dtype)
