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
from pathlib import Path
from typing import Any

import soundfile
from judges import SAMPLE_RATE, Naturalness, Transcriber, Voice, dnsmos
from tqdm import tqdm

SHORTEST = SAMPLE_RATE // 2
"""Samples below which a clip's sound and voice are not judged."""


def digest(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


class Judges:
    """All of them.

    Args:
        threads: that Whisper may use.
    """

    def __init__(self, threads: int) -> None:
        self._transcribe = Transcriber(threads)
        self._naturalness = Naturalness()
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
        row["dnsmos"] = round(dnsmos(samples), 4) if whole else None
        row["voice"] = [round(float(x), 5) for x in self._voice(samples)] if whole else None
        return row


def score_folder(folder: Path, threads: int) -> None:
    """Score what is not scored yet."""
    scores = folder / "scores.jsonl"
    done = set()
    if scores.exists():
        rows = (json.loads(line) for line in scores.read_text().splitlines())
        done = {(row["name"], row["sha256"]) for row in rows}
    files = [f for f in sorted(folder.glob("*.wav")) if (f.name, digest(f)) not in done]
    if not files:
        return
    judges = Judges(threads)
    with scores.open("a") as lines:
        for file in tqdm(files, desc=f"judging {folder.name}"):
            lines.write(json.dumps(judges.score(file)) + "\n")
            lines.flush()


def main() -> None:
    """Score folders."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    for folder in options.folders:
        score_folder(folder, options.threads)


if __name__ == "__main__":
    main()
