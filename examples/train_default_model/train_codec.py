# SPDX-License-Identifier: Apache-2.0
"""Trains the codec of the default model.

    python examples/train_default_model/train_codec.py --folder build/default_model

The loss is the distance of mel spectra at five resolutions, besides the quantizer's own terms and
the classification of phones by the semantic codebook. Goes on where an interrupted run stopped.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from corpus import Shard, all_shards
from phones import NUM_LABELS, frame_labels
from place import CPU, Place, add_arguments, place_of
from progress import LossLog, save_atomically
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
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
SEMANTIC_WEIGHT, COMMITMENT_WEIGHT = 1.0, 0.25
DISTURBED = 0.35
"""Part of the clips that the encoder hears with noise and through another microphone, though the
decoder must speak clean."""

CHECKPOINT_SECONDS = 240
VOICE_SHARE = {"heart": 0.4, "joe": 0.4, "many": 0.2}


class Clips:
    """Random clips of the speech that there is, with their labels.

    Args:
        folder: of the training.
        generator: chooses them.
        count: of a batch.
    """

    def __init__(self, folder: Path, generator: np.random.Generator, count: int = BATCH) -> None:
        self._folder, self._generator, self._count = folder, generator, count
        self._shards: dict[str, list[Shard]] = {}
        self.look_for_more()

    def look_for_more(self) -> None:
        """Take shards into account that were made meanwhile."""
        for voice in VOICE_SHARE:
            known = self._shards.setdefault(voice, [])
            known += [Shard(stem) for stem in all_shards(self._folder, voice)[len(known) :]]

    def batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Clean and heard samples [count, FRAMES * samples_per_frame], labels [count, FRAMES]."""
        frame = CONFIG.samples_per_frame
        clean = np.zeros((self._count, FRAMES * frame), np.float32)
        labels = np.zeros((self._count, FRAMES), np.int64)
        voices = [voice for voice in VOICE_SHARE if self._shards[voice]]
        shares = np.array([VOICE_SHARE[voice] for voice in voices])
        for row in range(self._count):
            shards = self._shards[
                voices[self._generator.choice(len(voices), p=shares / shares.sum())]
            ]
            shard = shards[int(self._generator.integers(len(shards)))]
            which = int(self._generator.integers(len(shard.utterances)))
            samples, utterance = shard.samples(which), shard.utterances[which]
            # A frame may begin anywhere: labels are those of the clip, not of the utterance.
            start = int(self._generator.integers(max(1, len(samples) - FRAMES * frame // 2)))
            samples = samples[start : start + FRAMES * frame]
            begin = start / CONFIG.sample_rate
            phones = [(phone, end - begin) for phone, end in utterance.phones if end > begin]
            count = -(-len(samples) // frame)
            part = _clip_labels(phones, count, frame / CONFIG.sample_rate)
            level = 10 ** self._generator.uniform(-0.6, 0.3)
            clean[row, : len(samples)] = samples * level
            labels[row, : len(part)] = part
        return (
            torch.from_numpy(clean),
            torch.from_numpy(self._disturb(clean)),
            torch.from_numpy(labels),
        )

    def _disturb(self, clean: np.ndarray) -> np.ndarray:
        heard = clean.copy()
        for row in np.flatnonzero(self._generator.random(self._count) < DISTURBED):
            heard[row] = disturbed(clean[row], self._generator)
        return heard


class ClipBatches(IterableDataset):  # type: ignore[type-arg]
    """Endless batches of clips, which other processes may make; each makes its own.

    Args:
        folder: of the training.
        seed: of what is random.
        count: clips of a batch.
    """

    _LOOK_AGAIN = 300

    def __init__(self, folder: Path, seed: list[int], count: int) -> None:
        self._folder, self._seed, self._count = folder, seed, count

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        worker = get_worker_info()
        generator = np.random.default_rng([*self._seed, worker.id if worker else 0])
        clips = Clips(self._folder, generator, self._count)
        while True:
            for _ in range(self._LOOK_AGAIN):
                yield clips.batch()
            clips.look_for_more()


def _clip_labels(
    phones: Sequence[tuple[str, float]], num_frames: int, frame_seconds: float
) -> np.ndarray:
    """Labels of a clip that may end inside a phone."""
    length = num_frames * frame_seconds
    inside = [pair for pair in phones if pair[1] < length]
    cut = phones[len(inside) : len(inside) + 1]
    inside += [(phone, length) for phone, _ in cut] or []
    if not inside or inside[-1][1] < length:
        inside.append(("_", length))
    return frame_labels(inside, num_frames, frame_seconds)


def disturbed(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Samples with white or low noise at 8 to 40 dB, and with treble or bass weaker.

    Args:
        samples: [num_samples] float32.
        rng: decides.
    """
    noise: np.ndarray = rng.standard_normal(len(samples))
    if rng.random() < 0.5:
        noise = np.convolve(noise, np.ones(8) / 8, "same") * 2.8
    rms = math.sqrt(float((samples**2).mean()) + 1e-12)
    noise *= rms * 10 ** (-rng.uniform(8, 40) / 20)
    spectrum = np.fft.rfft(samples + noise)
    place = np.linspace(0, 1, len(spectrum))
    bumps = sum(
        rng.uniform(-4, 4) * np.cos(np.pi * order * place + rng.uniform(0, np.pi))
        for order in (1, 2, 3)
    )
    return np.fft.irfft(spectrum * 10 ** (bumps / 20), len(samples)).astype(np.float32)


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
        total = ours.new_zeros(())
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
        "commitment": latents.new_zeros(()),
    }
    total, residual = vector, latents - vector.detach()
    batch, books = len(latents), len(quantizer.books)
    # A quarter of the clips use fewer books, so that each book does what it can alone.
    used = torch.where(torch.rand(batch) < 0.25, torch.randint(1, books + 1, (batch,)), books)
    used = used.to(latents.device)
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
        chosen = seen[torch.randint(len(seen), (int(dead.sum()),), device=seen.device)]
        book.entries[dead] = chosen + 0.02 * torch.randn_like(chosen)
        counts[dead] = 1.0


def train_codec(
    folder: Path, steps: int, place: Place = CPU, seed: int = 0, seconds: float = math.inf
) -> SpectralCodecModel:
    """Train, or go on where an interrupted run stopped.

    Args:
        folder: of the training, with ``speech``; ``codec/`` in it is the result.
        steps: of BATCH clips of FRAMES frames, times the scale; the learning rate ends with them.
        place: where to compute.
        seed: of everything random.
        seconds: be complete after so long, however few the steps.
    """
    torch.manual_seed(seed)
    device = torch.device(place.device)
    model = SpectralCodecModel(CONFIG).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, betas=(0.8, 0.99), weight_decay=1e-3, fused=True
    )
    usage = torch.ones(CONFIG.num_codebooks - 1, CONFIG.codebook_size, device=device)
    log, first = LossLog(folder / "codec_loss"), 0
    checkpoint = folder / "codec_checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        usage, first = state["usage"], state["step"]
        log.resume(first)
    made = ClipBatches(folder, [seed, first], BATCH * place.scale)
    clips = iter(DataLoader(made, batch_size=None, num_workers=place.workers))
    distance = MelDistance().to(device)
    started = saved = time.monotonic()
    progress = tqdm(range(first, steps), initial=first, total=steps, desc="codec", mininterval=5)
    for step in progress:
        warm = min(1.0, (step + 1) / 200)
        part = min(1.0, max(step / steps, (time.monotonic() - started) / seconds))
        rate = LEARNING_RATE * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * part)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        clean, heard, labels = (part.to(device) for part in next(clips))
        with torch.autocast(device.type, torch.bfloat16):
            latents = model.encoder(heard)
        decoded, terms, found = quantize(model.quantizer, latents.float(), labels, usage)
        with torch.autocast(device.type, torch.bfloat16):
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
        over = time.monotonic() - started > seconds
        if time.monotonic() - saved > CHECKPOINT_SECONDS or step + 1 == steps or over:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save_atomically(state | {"usage": usage, "step": step + 1}, checkpoint)
            log.plot(["mel", "semantic", "accuracy", "used"])
            saved = time.monotonic()
        if over:
            break
    model.save(folder / "codec", torch.float32)
    return model


def main() -> None:
    """Train the codec."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=Path("build/default_model"))
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--seconds", type=float, default=math.inf, help="to train for, at most")
    add_arguments(parser)
    options = parser.parse_args()
    train_codec(options.folder, options.steps, place_of(options), seconds=options.seconds)


if __name__ == "__main__":
    main()
