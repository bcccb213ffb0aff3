# SPDX-License-Identifier: Apache-2.0
"""Trains the decoder that filters a voice's source; the codes stay what they are.

    python examples/train_default_model/train_decoder.py --folder build/default_model

It learns from codes and the samples they are of, so it may be trained before, after or beside the
language model; after it, also from the codes that the model would choose (`predict.py`). The
harmonics it filters have the pitch that the speech has; a small network of its own learns to tell
the pitch. Goes on where an interrupted run stopped; `voiced_codec/` holds the running mean of the
weights at the last checkpoint.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from corpus import Shard
from encode import FRAME, read_encoded
from numpy.typing import NDArray
from pitch import HOP, read_pitch
from place import CPU, Place, add_arguments, place_of
from predict import read_predicted
from progress import LossLog, save_atomically, with_weights
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm
from train_codec import CHECKPOINT_SECONDS, VOICE_SHARE, MelDistance
from train_pitch import train_pitch

from vllm.unison.codecs.source_filter_decoder import SourceFilterConfig, SourceFilterDecoder
from vllm.unison.codecs.spectral_codec import ResidualQuantizer, SpectralCodecModel
from vllm.unison.codecs.voice_source import SourceState

SOURCE_FILTER = SourceFilterConfig(hop_length=HOP)
LOOKAHEAD = (3, 1, 0, 0, 0, 0)
BATCH, FRAMES = 10, 40
RATE = 1e-3
WARM_STEPS = 100
ADAPTING_STEPS = 2500
"""Further steps, on codes that the language model predicts too."""

LOSS = "voiced_decoder_loss"
"""The curve's files, in the folder of the training, without suffix."""

PITCH_STEPS, PITCH_BATCH = 6000, 64
DETAIL_WEIGHT = 0.5
MEAN_DECAY = 0.995
DETAIL_WINDOWS = (256, 512, 1024)
CURVES = ["mel", "detail"]

PitchBatch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Codes [count, FRAMES, books] int64, pitch in Hz and whether voiced [count, FRAMES * STEPS]."""

Known = tuple[Shard, int, NDArray[np.int16], tuple[NDArray[np.float16], NDArray[np.bool_]]]
"""Shard, place in it, codes, and pitch, of an utterance."""

STEPS = FRAME // HOP


def voiced(folder: Path) -> Path:
    """The codec of a training, with the decoder that filters a source if there is one yet."""
    best = folder / "voiced_codec"
    return best if (best / "config.json").exists() else folder / "codec"


def read_known(folder: Path) -> dict[str, list[Known]]:
    """By voice, the utterances whose codes and pitch are known, and that are long enough.

    One is there a second time with the codes that the language model predicts, if they are known.
    """
    return {voice: _read_voice(folder, voice) for voice in VOICE_SHARE}


def _read_voice(folder: Path, voice: str) -> list[Known]:
    found: list[Known] = []
    for file in sorted((folder / "pitch" / voice).glob("?????.npz")):
        stem = folder / "speech" / voice / file.stem
        codes = folder / "codes" / voice / file.name
        if not codes.exists():
            continue
        shard = Shard(stem)
        encoded = read_encoded(stem, codes, voice)
        ways = [[utterance.codes for utterance in encoded]]
        predicted = folder / "predicted" / voice / file.name
        if predicted.exists():
            ways.append(read_predicted(predicted, encoded))
        for i, (*codes_of, pitch) in enumerate(zip(*ways, read_pitch(file), strict=True)):
            found += [(shard, i, its, pitch) for its in codes_of if len(its) >= FRAMES]
    return found


def choose(
    known: Mapping[str, list[Known]], count: int, rng: np.random.Generator
) -> list[tuple[Known, int]]:
    """Random utterances, voices by their shares, and a frame of each where a part begins."""
    voices = [voice for voice in VOICE_SHARE if known[voice]]
    shares = np.array([VOICE_SHARE[voice] for voice in voices])
    pools = [known[voices[i]] for i in rng.choice(len(voices), count, p=shares / shares.sum())]
    chosen = [pool[int(rng.integers(len(pool)))] for pool in pools]
    return [(one, int(rng.integers(len(one[2]) - FRAMES + 1))) for one in chosen]


def codes_and_pitch(chosen: Sequence[tuple[Known, int]]) -> PitchBatch:
    """Of FRAMES frames of utterances."""
    codes, pitches, voiced = [], [], []
    for (_, _, its_codes, (pitch, is_voiced)), start in chosen:
        codes.append(its_codes[start : start + FRAMES].astype(np.int64))
        steps = slice(start * STEPS, (start + FRAMES) * STEPS)
        # The last samples of an utterance may be missing.
        missing = (0, FRAMES * STEPS - len(pitch[steps]))
        pitches.append(np.pad(pitch[steps].astype(np.float32), missing, mode="edge"))
        voiced.append(np.pad(is_voiced[steps], missing))
    stacked = (np.stack(part) for part in (codes, pitches, voiced))
    first, second, third = map(torch.from_numpy, stacked)
    return first, second, third


def pitch_batches(
    known: Mapping[str, list[Known]], seed: int, device: torch.device
) -> Iterator[PitchBatch]:
    """Endless batches for `train_pitch`."""
    rng = np.random.default_rng(seed)
    while True:
        codes, pitch, voiced = codes_and_pitch(choose(known, PITCH_BATCH, rng))
        yield codes.to(device), pitch.to(device), voiced.to(device)


class Parts(IterableDataset):  # type: ignore[type-arg]
    """Endless batches of parts of utterances: samples, and their codes and pitch.

    Args:
        known: of `read_known`.
        seed: of what is random.
        count: parts of a batch.
    """

    def __init__(self, known: Mapping[str, list[Known]], seed: list[int], count: int) -> None:
        self._known, self._seed, self._count = known, seed, count

    def __iter__(self) -> Iterator[tuple[torch.Tensor, PitchBatch]]:
        worker = get_worker_info()
        rng = np.random.default_rng([*self._seed, worker.id if worker else 0])
        while True:
            chosen = choose(self._known, self._count, rng)
            samples = np.zeros((len(chosen), FRAMES * FRAME), np.float32)
            for row, ((shard, index, _, _), start) in zip(samples, chosen, strict=True):
                part = shard.samples(index)[start * FRAME :][: len(row)]
                row[: len(part)] = part
            yield torch.from_numpy(samples), codes_and_pitch(chosen)


class Detail(nn.Module):
    """Mean distance of the logarithms of spectra, bin by bin, at several resolutions."""

    def __init__(self) -> None:
        super().__init__()
        for window in DETAIL_WINDOWS:
            self.register_buffer(f"window_{window}", torch.hann_window(window))

    def forward(self, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        """Distance of samples [batch, num_samples]."""
        total = ours.new_zeros(())
        for length in DETAIL_WINDOWS:
            window = getattr(self, f"window_{length}")
            both = torch.stft(
                torch.cat([ours, theirs]), length, length // 4, window=window, return_complex=True
            )
            power = both.real.square() + both.imag.square()
            mine, its = (0.5 * (power + 1e-3).log()).chunk(2)
            total = total + (mine - its).abs().mean() / len(DETAIL_WINDOWS)
        return total


def with_source(codec: SpectralCodecModel) -> SpectralCodecModel:
    """The codec with a new decoder, which filters a voice's source."""
    config = replace(codec.config, source_filter=SOURCE_FILTER, decoder_lookahead=LOOKAHEAD)
    made = SpectralCodecModel(config)
    made.encoder.load_state_dict(codec.encoder.state_dict())
    made.quantizer.load_state_dict(codec.quantizer.state_dict())
    assert isinstance(made.decoder, SourceFilterDecoder)
    # Softly at first: speech is that loud, and noise is less than harmonics.
    bins = SOURCE_FILTER.window_length // 2 + 1
    with torch.no_grad():
        made.decoder.filters.weight.mul_(0.3)
        made.decoder.filters.bias[:bins] = -3.5
        made.decoder.filters.bias[bins : 2 * bins] = 0
        made.decoder.filters.bias[2 * bins :] = -5.0
    return made


def train_decoder(
    folder: Path, steps: int, place: Place = CPU, seed: int = 1, seconds: float = math.inf
) -> None:
    """Train, or go on where an interrupted run stopped.

    Args:
        folder: of the training, with a complete ``codec``, ``codes`` and ``pitch``.
        steps: of BATCH parts of FRAMES frames, times the scale; the learning rate ends with them.
        place: where to compute.
        seed: of everything random.
        seconds: be complete after so long, however few the steps.
    """
    torch.manual_seed(seed)
    device = torch.device(place.device)
    codec = with_source(SpectralCodecModel.load(folder / "codec")).to(device)
    codec.requires_grad_(False)
    decoder = codec.decoder.requires_grad_(True)
    assert isinstance(decoder, SourceFilterDecoder)
    decoder.pitch.requires_grad_(False)
    learn = torch.optim.AdamW(
        [weight for weight in decoder.parameters() if weight.requires_grad],
        RATE,
        (0.8, 0.99),
        weight_decay=1e-3,
        fused=True,
    )
    learned = {n: weight for n, weight in decoder.named_parameters() if weight.requires_grad}
    mean = {name: weight.detach().clone() for name, weight in learned.items()}
    log, first = LossLog(folder / LOSS), 0
    checkpoint = folder / "voiced_decoder_checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device)
        decoder.load_state_dict(state["decoder"])
        learn.load_state_dict(state["learn"])
        mean, first = state["mean"], state["step"]
        log.resume(first)
    known = read_known(folder)
    _give_pitch(decoder, codec.quantizer, known, folder, device)
    made = Parts(known, [seed, first], BATCH * place.scale)
    batches = iter(DataLoader(made, batch_size=None, num_workers=place.workers))
    distance, detail = MelDistance().to(device), Detail().to(device)
    rng = torch.Generator(device).manual_seed(seed + first)
    started = saved = time.monotonic()
    progress = tqdm(range(first, steps), initial=first, total=steps, desc="decoder", mininterval=5)
    for step in progress:
        part_done = min(1.0, max(step / steps, (time.monotonic() - started) / seconds))
        warm = min(1.0, (step + 1) / WARM_STEPS)
        for group in learn.param_groups:
            group["lr"] = RATE * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * part_done)))
        clean, (codes, pitch, _) = next(batches)
        clean, codes, pitch = clean.to(device), codes.to(device), pitch.to(device)
        with torch.no_grad():
            vectors = codec.quantizer.decode(codes)
        with torch.autocast(device.type, torch.bfloat16):
            plan = decoder.plan(codes, vectors)
        count = decoder.steps_per_frame
        phases = torch.randint(1 << 40, (len(codes),), generator=rng, device=device)
        places = torch.randint(1 << 16, (len(codes),), generator=rng, device=device).tolist()
        states = [
            SourceState(phase, row[0], place)
            for phase, row, place in zip(phases, pitch, places, strict=True)
        ]
        given = torch.cat([pitch.unflatten(1, (-1, count)), plan[..., count:]], -1)
        source, _ = decoder.source().step(given, states)
        with torch.autocast(device.type, torch.bfloat16):
            decoded = decoder.filter(source).flatten(1)
        shown = {"mel": distance(decoded, clean), "detail": detail(decoded, clean)}
        loss = shown["mel"] + DETAIL_WEIGHT * shown["detail"]
        learn.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        learn.step()
        with torch.no_grad():
            for name, weight in learned.items():
                mean[name].lerp_(weight, 1 - min(MEAN_DECAY, (step + 1) / (step + 10)))
        values = {name: float(value.detach()) for name, value in shown.items()}
        log.add(step, values)
        progress.set_postfix({name: f"{value:.3f}" for name, value in values.items()})
        over = time.monotonic() - started > seconds or step + 1 == steps
        if over or time.monotonic() - saved > CHECKPOINT_SECONDS:
            state = {"decoder": decoder.state_dict(), "learn": learn.state_dict()}
            save_atomically(state | {"mean": mean, "step": step + 1}, checkpoint)
            with with_weights(decoder, mean):
                codec.save(folder / "voiced_codec", torch.float32)
            log.plot(CURVES)
            saved = time.monotonic()
        if over:
            break


def _give_pitch(
    decoder: SourceFilterDecoder,
    quantizer: ResidualQuantizer,
    known: Mapping[str, list[Known]],
    folder: Path,
    device: torch.device,
) -> None:
    """Train the network that tells the pitch, or read what an earlier run trained."""
    file = folder / "pitch_network.pt"
    if file.exists():
        decoder.pitch.load_state_dict(torch.load(file, map_location=device))
        return
    batches = pitch_batches(known, 2, device)
    train_pitch(decoder.pitch, quantizer, batches, PITCH_STEPS, LossLog(folder / "pitch_loss"))
    save_atomically(decoder.pitch.state_dict(), file)


def main() -> None:
    """Train the decoder."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=Path("build/default_model"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=math.inf, help="to train for, at most")
    add_arguments(parser)
    options = parser.parse_args()
    train_decoder(options.folder, options.steps, place_of(options), seconds=options.seconds)


if __name__ == "__main__":
    main()
