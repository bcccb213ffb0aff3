# SPDX-License-Identifier: Apache-2.0
"""Lets the judges score a folder of WAV files, in a process that has nothing else to do.

    python benchmarks/judging.py build/clips

runs this with the judges' packages. ``scores.jsonl`` of the folder has an object per file: its name
and the SHA-256 of its bytes, ``heard`` (Whisper), ``distillmos``, ``dnsmos`` and ``voice`` (an
embedding of length one; null for clips too short to be judged). A file that was scored before is
not scored again, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import soundfile
from judges import SAMPLE_RATE, Naturalness, Quality, Transcriber, Voice
from tqdm import tqdm

SHORTEST = SAMPLE_RATE // 2
"""Samples below which a clip's sound and voice are not judged."""


def digest(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


class Judges:
    """All of them.

    Args:
        threads: that each may use.
    """

    def __init__(self, threads: int) -> None:
        self._transcribe = Transcriber(threads)
        self._naturalness, self._quality = Naturalness(), Quality(threads)
        self._voice = Voice()

    def score(self, file: Path) -> dict[str, Any]:
        """The row of a file.

        Raises:
            ValueError: its sample rate is not SAMPLE_RATE.
        """
        samples, rate = soundfile.read(file, dtype="float32")
        if rate != SAMPLE_RATE:
            raise ValueError(f"{file}: sample rate must be {SAMPLE_RATE} Hz, not {rate}")
        row: dict[str, Any] = {"name": file.name, "sha256": digest(file)}
        row["seconds"] = len(samples) / rate
        row["heard"] = self._transcribe(samples)
        whole = len(samples) >= SHORTEST
        row["distillmos"] = round(self._naturalness(samples), 4) if whole else None
        row["dnsmos"] = round(self._quality(samples), 4) if whole else None
        row["voice"] = [round(float(x), 5) for x in self._voice(samples)] if whole else None
        return row


def unscored(folder: Path) -> list[Path]:
    """Files of a folder that are new or have changed since they were scored."""
    scores, done = folder / "scores.jsonl", set()
    if scores.exists():
        rows = (json.loads(line) for line in scores.read_text().splitlines())
        done = {(row["name"], row["sha256"]) for row in rows}
    return [file for file in sorted(folder.glob("*.wav")) if (file.name, digest(file)) not in done]


def score_folders(folders: Sequence[Path], threads: int) -> None:
    """Score what is not scored yet."""
    files = [file for folder in folders for file in unscored(folder)]
    if not files:
        return
    judges = Judges(threads)
    for file in tqdm(files, desc="judging"):
        row = json.dumps(judges.score(file))
        with (file.parent / "scores.jsonl").open("a") as lines:
            lines.write(row + "\n")


def main() -> None:
    """Score folders."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    score_folders(options.folders, options.threads)


if __name__ == "__main__":
    main()
