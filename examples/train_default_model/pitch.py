# SPDX-License-Identifier: Apache-2.0
"""The pitch of the speech, once: ``pitch/VOICE/00012.npz`` of each shard.

    python examples/train_default_model/pitch.py --folder build/default_model

It is found by autocorrelation, in low and creaky voices too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from corpus import SAMPLE_RATE, Shard, all_shards
from numpy.typing import NDArray
from progress import save_arrays
from synthesize import VOICES
from tqdm import tqdm

HOP = 160
"""Samples from one pitch to the next."""

LOWEST, HIGHEST = 60.0, 500.0
"""Hz between which a pitch is looked for."""

_WINDOW = 0.04
_PER_OCTAVE = 48
_MOVE_COST = 4.0
"""Of a change by an octave from one step to the next."""

_HEIGHT_COST = 0.06
"""Of an octave lower: a multiple of the period fits as well as the period itself."""

_VOICED = 0.55
"""Correlation from which a step counts as voiced."""


def track_pitch(
    samples: NDArray[np.float32], sample_rate: int, hop: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The most likely course of the pitch: correlated with itself a period later, and smooth.

    The correlation is normalized by the energy of both parts; the course is the best one of all
    (Viterbi), as in the robust algorithm for pitch tracking (Talkin, 1995).

    Args:
        samples: [num_samples] of one utterance.
        sample_rate: in Hz.
        hop: samples from one step to the next; step n is centred at sample (n + 1) * hop.

    Returns:
        [num_samples // hop] Hz, and whether a step is voiced; where it is not, the pitch is what
        leads from one voiced part to the next.
    """
    steps = len(samples) // hop
    count = 1 + round(_PER_OCTAVE * np.log2(HIGHEST / LOWEST))
    pitches = HIGHEST * 2.0 ** (-np.arange(count) / _PER_OCTAVE)
    lags = sample_rate / pitches
    longest = int(np.ceil(lags[-1])) + 1
    length = round(_WINDOW * sample_rate)
    span = length + longest
    padded = np.pad(samples.astype(np.float64), (span // 2 - hop, span))
    starts = np.arange(steps) * hop
    pieces = padded[starts[:, None] + np.arange(span)]
    pieces = pieces - pieces.mean(1, keepdims=True)
    size = 1 << int(np.ceil(np.log2(span + length)))
    first = np.fft.rfft(pieces[:, :length], size)
    products = np.fft.irfft(first.conj() * np.fft.rfft(pieces, size), size)[:, : longest + 1]
    energy = np.cumsum(np.pad(pieces**2, ((0, 0), (1, 0))), 1)
    energies = energy[:, length : length + longest + 1] - energy[:, : longest + 1]
    floor = 1e-4 * length
    likeness = products / np.sqrt((energies[:, :1] + floor) * (energies + floor))
    whole = lags.astype(int)
    part = lags - whole
    fits = likeness[:, whole] * (1 - part) + likeness[:, whole + 1] * part
    fits = fits - _HEIGHT_COST * np.arange(count) / _PER_OCTAVE
    moves = np.abs(np.arange(count)[:, None] - np.arange(count)) * (_MOVE_COST / _PER_OCTAVE)
    total = np.zeros(count)
    origins = np.zeros((steps, count), np.int16)
    for step in range(steps):
        ways = total[:, None] - moves
        origins[step] = ways.argmax(0)
        total = ways[origins[step], np.arange(count)] + fits[step]
    course = np.zeros(steps, np.int64)
    state = int(total.argmax())
    for step in range(steps - 1, -1, -1):
        course[step] = state
        state = origins[step, state]
    voiced = likeness[np.arange(steps), np.round(lags[course]).astype(int)] > _VOICED
    # The top of a parabola through a lag and its neighbours lies between lags.
    inner = np.clip(course, 1, count - 2)
    before, at, after = (fits[np.arange(steps), inner + shift] for shift in (-1, 0, 1))
    bend = np.minimum(before - 2 * at + after, -1e-9)
    top = inner + np.clip((before - after) / (2 * bend), -0.5, 0.5)
    found = HIGHEST * 2.0 ** (-top / _PER_OCTAVE)
    if voiced.any():
        where = np.flatnonzero(voiced)
        found = np.exp(np.interp(np.arange(steps), where, np.log(found[where])))
    return found.astype(np.float32), voiced


def write_pitch(stem: Path, file: Path) -> None:
    """Write the pitch of a shard of speech, unless it is there."""
    if file.exists():
        return
    shard = Shard(stem)
    pairs = [track_pitch(shard.samples(i), SAMPLE_RATE, HOP) for i in range(len(shard.utterances))]
    save_arrays(
        file,
        lengths=np.array([len(pitch) for pitch, _ in pairs]),
        pitch=np.concatenate([pitch for pitch, _ in pairs]).astype(np.float16),
        voiced=np.concatenate([voiced for _, voiced in pairs]),
    )


def read_pitch(file: Path) -> list[tuple[NDArray[np.float16], NDArray[np.bool_]]]:
    """Pitch in Hz and whether voiced, of the utterances of a shard, every HOP samples."""
    stored = np.load(file)
    ends = np.cumsum(stored["lengths"])[:-1]
    parts = (np.split(stored[name], ends) for name in ("pitch", "voiced"))
    return list(zip(*parts, strict=True))


def find_pitch(folder: Path, shards: int) -> None:
    """Find the pitch where it is missing.

    Args:
        folder: of the training, with ``speech``.
        shards: of each voice, at most.
    """
    work = [
        (stem, folder / "pitch" / voice / f"{stem.name}.npz")
        for voice in VOICES
        for stem in all_shards(folder, voice)[:shards]
    ]
    for stem, file in tqdm([pair for pair in work if not pair[1].exists()], desc="pitch"):
        write_pitch(stem, file)


def main() -> None:
    """Find what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=Path("build/default_model"))
    parser.add_argument("--shards", type=int, default=16, help="of each voice, at most")
    options = parser.parse_args()
    find_pitch(options.folder, options.shards)


if __name__ == "__main__":
    main()
