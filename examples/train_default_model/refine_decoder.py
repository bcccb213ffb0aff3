# SPDX-License-Identifier: Apache-2.0
"""Trains the codec's decoder further, against a discriminator; the codes stay what they are.

    python examples/train_default_model/refine_decoder.py --folder build/default_model

A distance of spectra alone makes a decoder give the mean of what could have been said, which sounds
dull; the discriminator asks for one of them. Encoder and quantizer are not touched, so this may be
done before, after or beside the training of the language model. Goes on where an interrupted run
stopped; `refined_codec/` holds the running mean of the weights at the last checkpoint.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from discriminator import Discriminator, adversarial_loss, discriminator_loss, feature_distance
from place import CPU, Place, add_arguments, place_of
from progress import LossLog, save_atomically, with_weights
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from train_codec import CHECKPOINT_SECONDS, ClipBatches, MelDistance
from train_decoder import voiced

from vllm.unison.codecs.spectral_codec import SpectralCodecModel

BATCH = 8
DECODER_RATE, DISCRIMINATOR_RATE = 4e-4, 4e-4
MEL_WEIGHT, FEATURE_WEIGHT = 8.0, 8.0
ALONE_STEPS = 150
"""Steps in which the discriminator learns before the decoder heeds it."""

MEAN_DECAY = 0.995
CURVES = ["mel", "feature", "adversarial", "discriminator"]


def refined(folder: Path) -> Path:
    """The codec of a training with its best decoder so far."""
    best = folder / "refined_codec"
    return best if (best / "config.json").exists() else voiced(folder)


def refine_decoder(
    folder: Path, steps: int, place: Place = CPU, seed: int = 1, seconds: float = math.inf
) -> None:
    """Train, or go on where an interrupted run stopped.

    Args:
        folder: of the training, with a complete ``codec``, and ``voiced_codec`` if it is wanted.
        steps: of BATCH clips, times the scale; the learning rate ends with them.
        place: where to compute.
        seed: of everything random.
        seconds: be complete after so long, however few the steps.
    """
    torch.manual_seed(seed)
    device = torch.device(place.device)
    codec = SpectralCodecModel.load(voiced(folder)).to(device).requires_grad_(False)
    decoder = codec.decoder.requires_grad_(True)
    judge = Discriminator().to(device)
    learn = torch.optim.AdamW(decoder.parameters(), DECODER_RATE, (0.8, 0.99), fused=True)
    learn_to_judge = torch.optim.AdamW(
        judge.parameters(), DISCRIMINATOR_RATE, (0.8, 0.99), fused=True
    )
    mean = {name: weight.detach().clone() for name, weight in decoder.state_dict().items()}
    parts = {"decoder": decoder, "judge": judge, "learn": learn, "learn_to_judge": learn_to_judge}
    log, first = LossLog(folder / "decoder_loss"), 0
    checkpoint = folder / "decoder_checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        mean, first = state["mean"], state["step"]
        log.resume(first)
    made = ClipBatches(folder, [seed, first], BATCH * place.scale)
    clips = iter(DataLoader(made, batch_size=None, num_workers=place.workers))
    distance = MelDistance().to(device)
    started = saved = time.monotonic()
    progress = tqdm(range(first, steps), initial=first, total=steps, desc="decoder", mininterval=5)
    for step in progress:
        part_done = min(1.0, max(step / steps, (time.monotonic() - started) / seconds))
        factor = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * part_done))
        for optimizer, rate in ((learn, DECODER_RATE), (learn_to_judge, DISCRIMINATOR_RATE)):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        clean, heard, _ = (part.to(device) for part in next(clips))
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            latents = codec.encoder(heard)
        with torch.no_grad():
            codes = codec.quantizer.encode(latents.float())
        with torch.autocast(device.type, torch.bfloat16):
            decoded = codec.decode(codes)
            shown = {"discriminator": discriminator_loss(judge(clean), judge(decoded.detach()))}
        learn_to_judge.zero_grad(set_to_none=True)
        shown["discriminator"].backward()
        nn.utils.clip_grad_norm_(judge.parameters(), 10.0)
        learn_to_judge.step()

        shown["mel"] = distance(decoded, clean)
        loss = MEL_WEIGHT * shown["mel"]
        if step >= ALONE_STEPS:
            judge.requires_grad_(False)
            with torch.autocast(device.type, torch.bfloat16):
                with torch.no_grad():
                    wanted = judge(clean)
                found = judge(decoded)
                shown["adversarial"] = adversarial_loss(found)
                shown["feature"] = feature_distance(wanted, found)
            judge.requires_grad_(True)
            loss = loss + shown["adversarial"] + FEATURE_WEIGHT * shown["feature"]
        learn.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 10.0)
        learn.step()
        with torch.no_grad():
            for name, weight in decoder.state_dict().items():
                mean[name].lerp_(weight, 1 - min(MEAN_DECAY, (step + 1) / (step + 10)))
        values = {name: float(value.detach()) for name, value in shown.items()}
        log.add(step, values)
        progress.set_postfix({name: f"{value:.3f}" for name, value in values.items()})
        over = time.monotonic() - started > seconds or step + 1 == steps
        if over or time.monotonic() - saved > CHECKPOINT_SECONDS:
            state = {name: part.state_dict() for name, part in parts.items()}
            save_atomically(state | {"mean": mean, "step": step + 1}, checkpoint)
            with with_weights(decoder, mean):
                codec.save(folder / "refined_codec", torch.float32)
            log.plot(CURVES)
            saved = time.monotonic()
        if over:
            break


def main() -> None:
    """Train the decoder."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=Path("build/default_model"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seconds", type=float, default=math.inf, help="to train for, at most")
    add_arguments(parser)
    options = parser.parse_args()
    refine_decoder(options.folder, options.steps, place_of(options), seconds=options.seconds)


if __name__ == "__main__":
    main()
