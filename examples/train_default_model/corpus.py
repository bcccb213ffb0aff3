# SPDX-License-Identifier: Apache-2.0
"""The files that the stages of the training hand to each other: texts, and shards of speech."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16000
"""Of all speech, in Hz."""


@dataclass(frozen=True)
class Utterance:
    """One synthesized sentence.

    Attributes:
        text: what is said.
        num_samples: its length.
        phones: (phone, end in seconds) in order; "_" is silence.
    """

    text: str
    num_samples: int
    phones: list[tuple[str, float]]


class Shard:
    """A shard; its samples stay on disk.

    Args:
        stem: its path without suffix.
    """

    def __init__(self, stem: Path) -> None:
        with stem.with_suffix(".jsonl").open() as lines:
            self.utterances = [Utterance(**json.loads(line)) for line in lines]
        lengths = [utterance.num_samples for utterance in self.utterances]
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._samples = np.memmap(stem.with_suffix(".int16"), "<i2", "r")

    def samples(self, index: int) -> NDArray[np.float32]:
        """[num_samples] float32 samples of an utterance, full scale is [-1, 1]."""
        part = self._samples[self._starts[index] : self._starts[index + 1]]
        return part.astype(np.float32) / np.float32(32767)


def read_texts(file: Path) -> list[str]:
    """The sentences of a file that `texts.write_texts` wrote."""
    return [line.split("\t", 1)[1] for line in file.read_text().splitlines()]


def all_shards(folder: Path, voice: str) -> list[Path]:
    """Stems of the shards of a voice that are complete, from the first on without a gap."""
    stems: list[Path] = []
    while (stem := folder / "speech" / voice / f"{len(stems):05d}").with_suffix(".jsonl").exists():
        stems.append(stem)
    return stems
