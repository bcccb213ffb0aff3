# SPDX-License-Identifier: Apache-2.0
"""Philox4x32-10 as tensor expressions.

The counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
1, 2, 3" (SC 2011). ``csrc/common/philox.h`` is the same for C++ and CUDA.
"""

from __future__ import annotations

import torch

_MASK = 0xFFFFFFFF
_MULTIPLIER_0 = 0xD2511F53
_MULTIPLIER_1 = 0xCD9E8D57
_WEYL_0 = 0x9E3779B9
_WEYL_1 = 0xBB67AE85
_ROUNDS = 10


def _multiply_high_low(value: torch.Tensor, multiplier: int) -> tuple[torch.Tensor, torch.Tensor]:
    # The product wraps modulo 2^64 in int64, which keeps all of its bits.
    product = value * multiplier
    return (product >> 32) & _MASK, product & _MASK


def philox(counter: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """The four output words of each counter.

    Args:
        counter: int64 [..., 4], words in [0, 2^32).
        key: int64 [..., 2], words in [0, 2^32); leading dimensions broadcast.

    Returns:
        int64 [..., 4], words in [0, 2^32).
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(_ROUNDS):
        high0, low0 = _multiply_high_low(c0, _MULTIPLIER_0)
        high1, low1 = _multiply_high_low(c2, _MULTIPLIER_1)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = (k0 + _WEYL_0) & _MASK
        k1 = (k1 + _WEYL_1) & _MASK
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), dim=-1)


def candidate_words(
    seed: torch.Tensor, position: torch.Tensor, stream: torch.Tensor, num_candidates: int
) -> torch.Tensor:
    """One random word per candidate.

    Key: the two halves of the seed. Counter: (position low, position high, stream, candidate // 4).
    Candidate c takes output word c % 4. A word depends on nothing else.

    Args:
        seed, position, stream: int64 tensors of one broadcastable shape S.
        num_candidates: C.

    Returns:
        int64 [*S, C], words in [0, 2^32).
    """
    blocks = torch.arange((num_candidates + 3) // 4, dtype=torch.int64, device=seed.device)
    counter = torch.stack(
        torch.broadcast_tensors(
            (position & _MASK).unsqueeze(-1),
            ((position >> 32) & _MASK).unsqueeze(-1),
            (stream & _MASK).unsqueeze(-1),
            blocks,
        ),
        dim=-1,
    )
    key = torch.stack([seed & _MASK, (seed >> 32) & _MASK], dim=-1).unsqueeze(-2)
    return philox(counter, key).flatten(-2)[..., :num_candidates]
