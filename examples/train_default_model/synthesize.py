# SPDX-License-Identifier: Apache-2.0
"""Lets the teachers say the texts, shard by shard.

    python examples/train_default_model/synthesize.py --folder build/default_model --hours 40

A shard is 250 sentences of one voice: ``speech/VOICE/00012.jsonl`` has an object per utterance
(`Utterance`), ``speech/VOICE/00012.int16`` the samples of all, one after the other, at 16 kHz. A
shard appears when it is complete, and is the same whenever it is made: more speech is more shards.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
from corpus import SAMPLE_RATE, Utterance, read_texts
from texts import write_texts
from tqdm import tqdm

SHARD = 250
VOICES = {"heart": 0.5, "joe": 0.3, "many": 0.2}
"""Voices of training, and each one's part of the sentences."""

HELD_OUT_SETS = {"validation": ("heart", "joe"), "evaluation": ("heart", "joe")}
"""Sets of sentences that are kept from training, and voices that say all of each."""


def write_shard(stem: Path, voice: str, sentences: Sequence[str], seed: int) -> float:
    """Synthesize sentences into a shard, unless it is there.

    Args:
        stem: its path without suffix.
        voice: one of `teachers.TEACHERS`.
        sentences: left out are those that the voice cannot say.
        seed: of what is random in a voice.

    Returns:
        Seconds of speech that were made.
    """
    import onnxruntime
    from teachers import TEACHERS

    index = stem.with_suffix(".jsonl")
    if index.exists():
        return 0.0
    # A network's own random numbers begin when it is loaded.
    onnxruntime.set_seed(seed)
    teacher = TEACHERS[voice]()
    stem.parent.mkdir(parents=True, exist_ok=True)
    partial = stem.with_suffix(f".partial.{os.getpid()}")
    lines, total = [], 0
    with partial.open("wb") as file:
        for number, sentence in enumerate(sentences):
            speech = teacher(sentence, np.random.default_rng([seed, number]))
            if speech is None:
                continue
            samples = np.round(speech.samples * 32767).astype("<i2")
            phones = [(phone, round(end, 4)) for phone, end in speech.phones]
            lines.append(json.dumps(asdict(Utterance(sentence, len(samples), phones))))
            file.write(samples.tobytes())
            total += len(samples)
    partial.rename(stem.with_suffix(".int16"))
    partial.write_text("".join(line + "\n" for line in lines))
    partial.rename(index)
    return total / SAMPLE_RATE


def _shards(folder: Path, sentences: Sequence[str]) -> Iterator[tuple[Path, str, list[str], int]]:
    """All shards, in the order in which they are wanted: voices grow alike."""
    names = list(VOICES)
    owed = dict.fromkeys(names, 0.0)
    counts = dict.fromkeys(names, 0)
    for block in range(len(sentences) // SHARD):
        for name, part in VOICES.items():
            owed[name] += part
        voice = max(names, key=lambda name: owed[name])
        owed[voice] -= 1
        shard = counts[voice]
        counts[voice] += 1
        part_of = list(sentences[block * SHARD : (block + 1) * SHARD])
        yield folder / "speech" / voice / f"{shard:05d}", voice, part_of, block


def seconds_of(folder: Path) -> float:
    """Speech that a folder has, all voices of training together."""
    files = (file for voice in VOICES for file in (folder / "speech" / voice).glob("*.int16"))
    return sum(file.stat().st_size for file in files) / 2 / SAMPLE_RATE


def _held_out_shards(folder: Path) -> Iterator[tuple[Path, str, list[str], int]]:
    for part, voices in HELD_OUT_SETS.items():
        sentences = read_texts(folder / "texts" / f"{part}.txt")
        for number, voice in enumerate(voices):
            yield folder / "speech" / part / voice, voice, sentences, 10**6 + number


def synthesize(folder: Path, hours: float, processes: int = 2) -> None:
    """Make speech until there is enough; first all sentences that are kept from training.

    Args:
        folder: with ``texts``; ``speech`` is written.
        hours: of speech to learn from, all voices together.
        processes: that work at once.
    """
    sentences = read_texts(folder / "texts" / "train.txt")
    have = seconds_of(folder)
    with (
        ProcessPoolExecutor(processes) as pool,
        tqdm(total=round(hours * 3600), initial=round(have), desc="speech", unit="s") as progress,
    ):
        held_out = [pool.submit(write_shard, *shard) for shard in _held_out_shards(folder)]
        pending: list = []
        for shard in _shards(folder, sentences):
            if shard[0].with_suffix(".jsonl").exists():
                continue
            if have >= hours * 3600:
                break
            pending.append(pool.submit(write_shard, *shard))
            if len(pending) > processes:
                made = pending.pop(0).result()
                have += made
                progress.update(round(made))
        for future in pending:
            progress.update(round(future.result()))
        for future in held_out:
            future.result()


def main() -> None:
    """Write the texts and synthesize what is missing of them."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=Path("build/default_model"))
    parser.add_argument("--hours", type=float, default=40.0)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    write_texts(options.folder / "texts")
    synthesize(options.folder, options.hours, options.processes)


if __name__ == "__main__":
    main()
