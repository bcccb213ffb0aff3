# SPDX-License-Identifier: Apache-2.0
"""Makes codes of the speech, once: ``codes/VOICE/00012.npz`` of each shard.

    python examples/train_default_model/encode.py --folder build/default_model

Each utterance is encoded twice: as it is, and as another microphone in another room would hear a
somewhat faster or slower, higher or lower speaker, which is what transcription is trained with.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from corpus import SAMPLE_RATE, Shard, Utterance, all_shards
from letters import LetterAligner
from numpy.typing import NDArray
from phones import NUM_LABELS, frame_ends, frame_labels
from place import CPU, Place, add_arguments, place_of
from progress import save_arrays
from synthesize import HELD_OUT_SETS, VOICES
from torch.nn import functional
from tqdm import tqdm
from train_codec import CONFIG, disturbed

from vllm.unison.codecs.spectral_codec import SpectralCodec

UNKNOWN = 255
"""Place of a frame in which no letter is said."""

FRAME = CONFIG.samples_per_frame
FRAME_SECONDS = FRAME / CONFIG.sample_rate
_ALIGNER_UTTERANCES = 3000
_BATCH_SAMPLES = 64 * SAMPLE_RATE


@dataclass(frozen=True)
class Encoded:
    """An utterance as codes.

    Attributes:
        text: what is said.
        voice: who says it.
        codes: [num_frames, num_codebooks] int16.
        heard: the same of the disturbed version, which may have another number of frames.
        places: [num_frames] letter that is said in each frame, or UNKNOWN.
    """

    text: str
    voice: str
    codes: NDArray[np.int16]
    heard: NDArray[np.int16]
    places: NDArray[np.uint8]


def letter_places(
    utterance: Utterance, num_frames: int, aligner: LetterAligner
) -> NDArray[np.uint8]:
    """[num_frames] letter of the text that is said in each frame, or UNKNOWN."""
    ends = frame_ends(utterance.phones, num_frames, FRAME_SECONDS)
    said = [i for i, (phone, _) in enumerate(utterance.phones) if phone != "_"]
    where = aligner.align([utterance.phones[i][0] for i in said], utterance.text)
    places = np.full(num_frames, UNKNOWN, np.uint8)
    starts = np.concatenate([[0], ends[:-1]])
    for i, place in zip(said, np.round(where), strict=True):
        places[starts[i] : ends[i]] = place
    return places


def frames_of_letters(places: NDArray[np.uint8], num_letters: int) -> NDArray[np.float32]:
    """[num_letters] frame in which each letter is said, those between interpolated.

    Args:
        places: of `letter_places`.
        num_letters: of the text.
    """
    known = np.flatnonzero(places != UNKNOWN)
    if not len(known):
        return np.linspace(0, len(places) - 1, num_letters).astype(np.float32)
    letters, first = np.unique(places[known], return_inverse=True)
    middle = np.bincount(first, known) / np.bincount(first)
    return np.interp(np.arange(num_letters), letters, middle).astype(np.float32)


def another_speaker(samples: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Samples played faster or slower by up to an eighth, at another level, disturbed."""
    ratio = rng.uniform(0.88, 1.14)
    length = round(len(samples) * ratio)
    stretched = functional.interpolate(
        torch.from_numpy(samples)[None, None], length, mode="linear", align_corners=False
    )[0, 0].numpy()
    return disturbed(stretched * 10 ** rng.uniform(-0.6, 0.3), rng)


@torch.inference_mode()
def encode_all(codec: SpectralCodec, clips: list[NDArray[np.float32]]) -> list[NDArray[np.int16]]:
    """[num_frames, num_codebooks] codes of each clip. Clips of one length share a batch."""
    frame = codec.samples_per_frame
    lengths = np.array([-(-len(clip) // frame) for clip in clips])
    codes: list[NDArray[np.int16]] = [np.empty((0, 0), np.int16)] * len(clips)
    for length in np.unique(lengths):
        which = np.flatnonzero(lengths == length)
        size = max(1, _BATCH_SAMPLES // (length * frame))
        for start in range(0, len(which), size):
            batch = which[start : start + size]
            samples = np.zeros((len(batch), length * frame), np.float32)
            for row, index in enumerate(batch):
                samples[row, : len(clips[index])] = clips[index]
            latents = codec.model.encoder(torch.from_numpy(samples).to(codec.device))
            found = codec.model.quantizer.encode(latents).cpu().numpy().astype(np.int16)
            for row, index in enumerate(batch):
                codes[index] = found[row]
    return codes


def encode_shard(
    stem: Path, file: Path, codec: SpectralCodec, aligner: LetterAligner, seed: int, threads: int
) -> None:
    """Encode a shard of speech into a file, unless it is there."""
    if file.exists():
        return
    shard = Shard(stem)
    count = len(shard.utterances)
    clean = [shard.samples(i) for i in range(count)]

    def hear(index: int) -> NDArray[np.float32]:
        return another_speaker(clean[index], np.random.default_rng([seed, index]))

    with ThreadPoolExecutor(threads) as pool:
        heard = list(pool.map(hear, range(count)))
    codes = encode_all(codec, clean)
    others = encode_all(codec, heard)
    places = [
        letter_places(utterance, len(part), aligner)
        for utterance, part in zip(shard.utterances, codes, strict=True)
    ]
    save_arrays(
        file,
        lengths=np.array([len(part) for part in codes]),
        heard_lengths=np.array([len(part) for part in others]),
        codes=np.concatenate(codes),
        heard=np.concatenate(others),
        places=np.concatenate(places),
    )


def read_encoded(stem: Path, file: Path, voice: str) -> list[Encoded]:
    """The utterances of a shard that was encoded."""
    stored = np.load(file)
    ends, heard_ends = np.cumsum(stored["lengths"])[:-1], np.cumsum(stored["heard_lengths"])[:-1]
    parts = (
        np.split(stored["codes"], ends),
        np.split(stored["heard"], heard_ends),
        np.split(stored["places"], ends),
    )
    texts = [utterance.text for utterance in Shard(stem).utterances]
    return [Encoded(t, voice, c, h, p) for t, c, h, p in zip(texts, *parts, strict=True)]


Mishear = Callable[[NDArray[np.int16], np.random.Generator], NDArray[np.int16]]
"""From labels to those that are heard in their place."""


def mishear_some(labels: NDArray[np.int16], rng: np.random.Generator) -> NDArray[np.int16]:
    """One label in twenty is any other."""
    heard = labels.copy()
    wrong = rng.random(len(labels)) < 0.05
    heard[wrong] = rng.integers(NUM_LABELS, size=int(wrong.sum()))
    return heard


def sketch(
    utterance: Utterance,
    voice: str,
    aligner: LetterAligner,
    rng: np.random.Generator,
    mishear: Mishear = mishear_some,
) -> Encoded:
    """What can be told of an utterance without a codec: semantic codes, the other ones are -1.

    The disturbed version has another pace, and labels are heard wrongly.
    """
    count = -(-utterance.num_samples // FRAME)
    codes = np.full((count, CONFIG.num_codebooks), -1, np.int16)
    codes[:, 0] = frame_labels(utterance.phones, count, FRAME_SECONDS)
    length = max(2, round(count * rng.uniform(0.88, 1.14)))
    heard = codes[np.linspace(0, count - 1, length).round().astype(int)]
    heard[:, 0] = mishear(heard[:, 0], rng)
    return Encoded(utterance.text, voice, codes, heard, letter_places(utterance, count, aligner))


def make_aligner(folder: Path) -> LetterAligner:
    """An aligner that learned from the first utterances of all voices."""
    utterances = [
        utterance
        for voice in VOICES
        for stem in all_shards(folder, voice)[: _ALIGNER_UTTERANCES // 500]
        for utterance in Shard(stem).utterances
    ]
    return LetterAligner(
        [
            ([phone for phone, _ in utterance.phones if phone != "_"], utterance.text)
            for utterance in utterances
        ]
    )


def encode(folder: Path, place: Place = CPU) -> None:
    """Encode all speech that is there and has no codes.

    Args:
        folder: of the training, with ``speech`` and ``codec``.
        place: where to compute.
    """
    codec = SpectralCodec.from_pretrained(str(folder / "codec"), device=place.device)
    aligner = make_aligner(folder)
    work = [
        (folder / "speech" / part / voice, folder / "codes" / part / f"{voice}.npz")
        for part, voices in HELD_OUT_SETS.items()
        for voice in voices
    ]
    work += [
        (stem, folder / "codes" / voice / f"{stem.name}.npz")
        for voice in VOICES
        for stem in all_shards(folder, voice)
    ]
    work = [pair for pair in work if not pair[1].exists()]
    for stem, file in tqdm(work, desc="encoding", unit="shard"):
        # The same codes, whatever was encoded before.
        seed = zlib.crc32(str(file.relative_to(folder)).encode())
        encode_shard(stem, file, codec, aligner, seed, max(1, place.workers))


def main() -> None:
    """Encode what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=Path("build/default_model"))
    add_arguments(parser)
    options = parser.parse_args()
    encode(options.folder, place_of(options))


if __name__ == "__main__":
    main()
