# SPDX-License-Identifier: Apache-2.0
"""Synthesizes the speech that the default model learns from, with flite.

A corpus is a folder of two files:

- ``utterances.jsonl``: one object per utterance, see `Utterance`,
- ``samples.int16``: the samples of all utterances, one after the other, at 16 kHz.
"""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
import wave
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm
from vocabulary import sentences

SAMPLE_RATE = 16000
SPEAKERS = ("slt", "rms", "awb")
"""Voices that the model learns to speak with."""

HELD_OUT_SPEAKER = "kal16"
"""The voice that only evaluation hears. It is of another kind: joined recordings of diphones."""


@dataclass(frozen=True)
class Utterance:
    """One synthesized sentence.

    Attributes:
        text: what is said.
        speaker: flite's voice.
        num_samples: its length.
        phones: (phone, end in seconds) in order, from flite; "pau" is silence.
    """

    text: str
    speaker: str
    num_samples: int
    phones: list[tuple[str, float]]


def synthesize(
    text: str, speaker: str, stretch: float = 1.0, pitch: float = 1.0
) -> tuple[NDArray[np.int16], list[tuple[str, float]]]:
    """Let flite say a text.

    Args:
        text: words.
        speaker: flite's voice; must be one of 16 kHz.
        stretch: factor on durations.
        pitch: factor on the fundamental frequency (statistical voices only).

    Returns:
        int16 samples at SAMPLE_RATE, and the phones with their ends in seconds.
    """
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        command = ["flite", "-voice", speaker, "--setf", f"duration_stretch={stretch:.4f}"]
        command += ["--setf", f"f0_shift={pitch:.4f}", "-psdur", "-t", text, "-o", file.name]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        with wave.open(file.name) as reader:
            if reader.getframerate() != SAMPLE_RATE:
                raise ValueError(f"speaker {speaker!r} must have a rate of {SAMPLE_RATE} Hz")
            samples = np.frombuffer(reader.readframes(reader.getnframes()), np.int16)
    phones = [part.rsplit(":", 1) for part in printed.split()]
    return samples, [(name, float(end)) for name, end in phones]


def _one(task: tuple[str, str, float, float]) -> tuple[Utterance, bytes]:
    text, speaker, stretch, pitch = task
    samples, phones = synthesize(text, speaker, stretch, pitch)
    return Utterance(text, speaker, len(samples), phones), samples.tobytes()


def _tasks(
    count: int, seed: int, held_out: bool, speakers: tuple[str, ...], varied: bool
) -> Iterator:
    rng = random.Random(seed)
    texts = sentences(seed, held_out)
    for index in range(count):
        stretch = rng.uniform(0.9, 1.15) if varied else 1.0
        pitch = rng.uniform(0.92, 1.1) if varied else 1.0
        yield next(texts), speakers[index % len(speakers)], stretch, pitch


def write_corpus(
    folder: Path,
    count: int,
    *,
    seed: int,
    held_out: bool = False,
    speakers: tuple[str, ...] = SPEAKERS,
    varied: bool = True,
    processes: int = 2,
) -> None:
    """Synthesize a corpus; does nothing if it is complete already.

    Args:
        folder: where to.
        count: utterances.
        seed: same seed, same corpus.
        held_out: sentences kept for evaluation, or those of training.
        speakers: voices, taken in turn.
        varied: with random speed and pitch.
        processes: how many instances of flite run at once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / "utterances.jsonl"
    if index.exists():
        return
    partial = folder / "utterances.partial"
    tasks = _tasks(count, seed, held_out, speakers, varied)
    with (
        ProcessPoolExecutor(processes) as pool,
        partial.open("w") as lines,
        (folder / "samples.int16").open("wb") as samples,
    ):
        done = pool.map(_one, tasks, chunksize=16)
        for utterance, data in tqdm(done, total=count, desc=f"synthesizing {folder.name}"):
            lines.write(json.dumps(asdict(utterance)) + "\n")
            samples.write(data)
    partial.rename(index)


class Corpus:
    """A corpus that was written by `write_corpus`; samples stay on disk.

    Args:
        folder: where it lies.
    """

    def __init__(self, folder: Path) -> None:
        with (folder / "utterances.jsonl").open() as lines:
            self.utterances = [Utterance(**json.loads(line)) for line in lines]
        lengths = [utterance.num_samples for utterance in self.utterances]
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._samples = np.memmap(folder / "samples.int16", np.int16, "r")

    def __len__(self) -> int:
        return len(self.utterances)

    def samples(self, index: int) -> NDArray[np.float32]:
        """[num_samples] float32 samples of an utterance, full scale is [-1, 1]."""
        part = self._samples[self._starts[index] : self._starts[index + 1]]
        return part.astype(np.float32) / np.float32(32768)
