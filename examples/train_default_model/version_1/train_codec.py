# SPDX-License-Identifier: Apache-2.0
"""Trains the codec of the default model.

The loss is the distance of mel spectra at five resolutions, besides the quantizer's own terms and
the classification of phones by the semantic codebook.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from phones import NUM_LABELS, frame_labels
from progress import LossLog
from synthesize import Corpus
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from vllm.unison.codecs.spectral_codec import (
    ResidualQuantizer,
    SpectralCodecConfig,
    SpectralCodecModel,
    mel_filters,
)

CONFIG = SpectralCodecConfig(codebook_size_semantic=NUM_LABELS)
BATCH, FRAMES = 16, 25
LEARNING_RATE = 1e-3
SEMANTIC_WEIGHT, COMMITMENT_WEIGHT = 0.5, 0.25
NOISY = 0.3
"""Part of the clips that the encoder hears with noise, though the decoder must speak clean."""


class Clips:
    """Random clips of a corpus, in memory, with their phone labels.

    Args:
        corpus: where they come from.
        generator: chooses them.
    """

    def __init__(self, corpus: Corpus, generator: np.random.Generator) -> None:
        self._generator = generator
        frame = CONFIG.samples_per_frame
        self._samples = [corpus.samples(i) for i in range(len(corpus))]
        self._labels = [
            frame_labels(u.phones, -(-u.num_samples // frame), frame / CONFIG.sample_rate)
            for u in corpus.utterances
        ]

    def batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Clean and heard samples [BATCH, FRAMES * samples_per_frame], labels [BATCH, FRAMES]."""
        frame = CONFIG.samples_per_frame
        clean = np.zeros((BATCH, FRAMES * frame), np.float32)
        labels = np.zeros((BATCH, FRAMES), np.int64)
        for row in range(BATCH):
            which = int(self._generator.integers(len(self._samples)))
            most = max(0, len(self._labels[which]) - FRAMES)
            start = int(self._generator.integers(most + 1))
            samples = self._samples[which][start * frame : (start + FRAMES) * frame]
            level = 10 ** self._generator.uniform(-0.6, 0.2)
            clean[row, : len(samples)] = samples * level
            part = self._labels[which][start : start + FRAMES]
            labels[row, : len(part)] = part
        return torch.from_numpy(clean), self._noisy(clean), torch.from_numpy(labels)

    def _noisy(self, clean: np.ndarray) -> torch.Tensor:
        noise = self._generator.standard_normal(clean.shape).astype(np.float32)
        level = np.sqrt((clean**2).mean(1, keepdims=True))
        level *= 10 ** (-self._generator.uniform(10, 40, (BATCH, 1)) / 20)
        chosen = self._generator.random((BATCH, 1)) < NOISY
        return torch.from_numpy((clean + np.where(chosen, noise * level, 0)).astype(np.float32))


class MelDistance(nn.Module):
    """Mean distance of log-mel spectra at several resolutions."""

    def __init__(self) -> None:
        super().__init__()
        for i, (window, mels) in enumerate(
            zip((128, 256, 512, 1024, 2048), (10, 20, 40, 80, 120), strict=True)
        ):
            self.register_buffer(f"window_{i}", torch.hann_window(window))
            self.register_buffer(f"filters_{i}", mel_filters(CONFIG.sample_rate, window, mels))

    def forward(self, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        """Distance of samples [batch, num_samples], in natural logarithm of the magnitude."""
        both = torch.cat([ours, theirs])
        total = torch.zeros(())
        for i in range(5):
            window, filters = getattr(self, f"window_{i}"), getattr(self, f"filters_{i}")
            length = len(window)
            spectrum = torch.stft(both, length, length // 4, window=window, return_complex=True)
            power = spectrum.real.square() + spectrum.imag.square()
            mels = (filters @ (power + 1e-9).sqrt()).clamp_min(1e-3).log()
            mine, its = mels.chunk(2)
            total = total + (mine - its).abs().mean() / 5
        return total


def quantize(
    quantizer: ResidualQuantizer, latents: torch.Tensor, labels: torch.Tensor, usage: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor], list[torch.Tensor]]:
    """The quantizer with gradients: straight through the lookups, random numbers of books.

    Args:
        quantizer: with a semantic book.
        latents: [batch, frames, hidden_size] float32.
        labels: [batch, frames] of the semantic book.
        usage: [num_books, codebook_size] running counts of codes, updated.

    Returns:
        Decoder's input, the terms of the loss, and per book the vectors that it was asked for.
    """
    semantic = quantizer.semantic
    assert semantic is not None
    logits = semantic.classify(latents)
    vector = semantic.lookup(logits.argmax(-1))
    terms = {
        "semantic": functional.cross_entropy(logits.flatten(0, 1), labels.flatten()),
        "accuracy": (logits.argmax(-1) == labels).float().mean().detach(),
        "codebook": functional.mse_loss(vector, latents.detach()),
        "commitment": torch.zeros(()),
    }
    total, residual = vector, latents - vector.detach()
    batch, books = len(latents), len(quantizer.books)
    # A quarter of the clips use fewer books, so that each book does what it can alone.
    used = torch.where(torch.rand(batch) < 0.25, torch.randint(1, books + 1, (batch,)), books)
    usage *= 0.99
    found = []
    for i, book in enumerate(quantizer.books):
        projected = functional.normalize(book.project_in(residual), dim=-1)
        codes = book.choose(projected.detach())
        entry = functional.normalize(book.entries, dim=-1)[codes]
        terms["codebook"] = terms["codebook"] + (entry - projected.detach()).square().sum(-1).mean()
        terms["commitment"] = (
            terms["commitment"] + (entry.detach() - projected).square().sum(-1).mean()
        )
        out = book.project_out(projected + (entry - projected).detach())
        residual = residual - out
        total = total + out * (i < used)[:, None, None]
        usage[i] += torch.bincount(codes.flatten(), minlength=usage.shape[1])
        found.append(projected.detach().flatten(0, 1))
    return total, terms, found


@torch.no_grad()
def restart_dead_codes(
    quantizer: ResidualQuantizer, usage: torch.Tensor, found: list[torch.Tensor]
) -> None:
    """Move codes that are not used to vectors that were seen.

    Args:
        quantizer: whose entries are moved.
        usage: [num_books, codebook_size] running counts, updated.
        found: per book [count, codebook_dimension] vectors that it was asked for.
    """
    for book, counts, seen in zip(quantizer.books, usage, found, strict=True):
        dead = counts < 0.02
        chosen = seen[torch.randint(len(seen), (int(dead.sum()),))]
        book.entries[dead] = chosen + 0.02 * torch.randn(chosen.shape)
        counts[dead] = 1.0


def train_codec(corpus: Corpus, folder: Path, steps: int, seed: int = 0) -> SpectralCodecModel:
    """Train, or go on where an interrupted run stopped.

    Args:
        corpus: speech with phones.
        folder: where checkpoints and the loss curve go; `codec/` in it is the result.
        steps: of 16 clips of a second.
        seed: of everything random.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = SpectralCodecModel(CONFIG)
    optimizer = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, betas=(0.8, 0.99), weight_decay=1e-3
    )
    usage = torch.ones(CONFIG.num_codebooks - 1, CONFIG.codebook_size)
    log, first = LossLog(folder / "codec_loss"), 0
    checkpoint = folder / "codec_checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        usage, first = state["usage"], state["step"]
        log.resume(first)
    clips = Clips(corpus, np.random.default_rng([seed, first]))
    distance = MelDistance()
    progress = tqdm(range(first, steps), initial=first, total=steps, desc="codec")
    for step in progress:
        warm = min(1.0, (step + 1) / 200)
        rate = LEARNING_RATE * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        clean, heard, labels = clips.batch()
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.encoder(heard)
        decoded, terms, found = quantize(model.quantizer, latents.float(), labels, usage)
        with torch.autocast("cpu", torch.bfloat16):
            samples = model.decoder(decoded)
        terms["mel"] = distance(samples, clean)
        loss = (
            terms["mel"]
            + terms["codebook"] / CONFIG.num_codebooks
            + COMMITMENT_WEIGHT * terms["commitment"] / CONFIG.num_codebooks
            + SEMANTIC_WEIGHT * terms["semantic"]
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        restart_dead_codes(model.quantizer, usage, found)
        used = float((usage > 0.05).float().mean())
        shown = {name: float(value.detach()) for name, value in terms.items()} | {"used": used}
        log.add(step, shown)
        progress.set_postfix({name: f"{value:.3f}" for name, value in shown.items()})
        if (step + 1) % 500 == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"usage": usage, "step": step + 1}, checkpoint)
            log.plot(["mel", "semantic", "accuracy", "used"])
            model.save(folder / "codec", torch.float32)
    return model
