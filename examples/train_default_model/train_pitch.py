# SPDX-License-Identifier: Apache-2.0
"""Trains the small network that tells a voice's pitch by the codes of its frames.

It is a part of the decoder that filters a voice's source, and learns by itself in some minutes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from progress import LossLog
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from vllm.unison.codecs.pitch_network import PitchNetwork
from vllm.unison.codecs.spectral_codec import ResidualQuantizer

RATE = 1e-2
WARM_STEPS = 50
_SMOOTH = 0.05
"""Octaves up to which the loss is quadratic."""


@torch.no_grad()
def begin_with(network: PitchNetwork, quantizer: ResidualQuantizer, seed: int) -> None:
    """Let codes that the quantizer takes for alike begin alike.

    Args:
        network: whose tables are set.
        quantizer: of the same codes.
        seed: of the random projection of the quantizer's vectors.
    """
    books = ([] if quantizer.semantic is None else [quantizer.semantic]) + list(quantizer.books)
    _, codes, size = network.tables.shape
    vectors = torch.stack([book.lookup(torch.arange(codes)) for book in books])
    generator = torch.Generator().manual_seed(seed)
    projection = torch.randn(vectors.shape[-1], size, generator=generator)
    tables = vectors @ projection
    network.tables.copy_(0.5 * tables / tables.std())


def train_pitch(
    network: PitchNetwork,
    quantizer: ResidualQuantizer,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    steps: int,
    log: LossLog,
    seed: int = 2,
) -> None:
    """Train from nothing.

    Args:
        network: to be trained.
        quantizer: that makes the codes.
        batches: codes [count, frames, books], pitch in Hz and whether voiced
            [count, frames * steps_per_frame].
        steps: batches to learn from; the learning rate ends with them.
        log: of the mean distance in octaves, where there is a voice.
        seed: of everything random.
    """
    begin_with(network, quantizer, seed)
    network.requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, (0.9, 0.99), fused=True)
    progress = tqdm(range(steps), desc="pitch network", mininterval=5)
    for step in progress:
        for group in optimizer.param_groups:
            falling = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
            group["lr"] = RATE * min(1.0, (step + 1) / WARM_STEPS) * falling
        codes, pitch, voiced = next(batches)
        octaves = network.course(codes).flatten(1).log2()
        off = functional.smooth_l1_loss(
            octaves, pitch.double().log2(), reduction="none", beta=_SMOOTH
        )
        loss = (off * voiced).sum() / voiced.sum().clamp_min(1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        log.add(step, {"octaves": float(loss.detach())})
        progress.set_postfix(octaves=f"{float(loss.detach()):.4f}")
    network.requires_grad_(False)
