# SPDX-License-Identifier: Apache-2.0
"""Has folders of WAV files judged by models that are not ours, in a process of their own.

    python benchmarks/judging.py build/clips

The judges' packages clash with the fork's: they are installed into build/judges, once, and only
`judges/score.py` sees them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
JUDGES = Path(__file__).resolve().parent / "judges"
PACKAGES = ROOT / "build" / "judges"


@dataclass(frozen=True)
class Score:
    """What the judges say of a clip.

    Attributes:
        seconds: its length.
        heard: words, by Whisper.
        distillmos, dnsmos: sound, from 1 to 5; None for a clip of less than half a second.
        voice: embedding of length one; None likewise.
    """

    seconds: float
    heard: str
    distillmos: float | None
    dnsmos: float | None
    voice: Sequence[float] | None


def install(folder: Path = PACKAGES) -> Path:
    """Install the judges' packages unless the folder has them.

    Returns:
        The folder.
    """
    wanted = JUDGES / "requirements.txt"
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()
    stamp = folder / "installed"
    if not stamp.exists() or stamp.read_text() != digest:
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*command, "--target", str(folder), "-r", str(wanted)], check=True)
        stamp.write_text(digest)
    return folder


def judge(folders: Sequence[Path], threads: int = 1) -> list[dict[str, Score]]:
    """Scores of the WAV files of folders, by their names.

    Args:
        folders: with files at 16 kHz; ``scores.jsonl`` is written into each.
        threads: that the judges may use.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(install()),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, str(JUDGES / "score.py"), "--threads", str(threads)]
    subprocess.run([*command, *map(str, folders)], env=environment, check=True)
    return [_scores(folder) for folder in folders]


def _scores(folder: Path) -> dict[str, Score]:
    found: dict[str, Score] = {}
    scores = folder / "scores.jsonl"
    for line in scores.read_text().splitlines() if scores.exists() else ():
        row = json.loads(line)
        name = row.pop("name")
        del row["sha256"]
        # A later row of a file that changed replaces the earlier one.
        found[name] = Score(**row)
    return {file.name: found[file.name] for file in sorted(folder.glob("*.wav"))}


def main() -> None:
    """Judge and print."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    for name, score in judge([folder])[0].items():
        sound = f"{score.distillmos} {score.dnsmos}"
        print(f"{name}: {score.seconds:.2f} s, DistillMOS and DNSMOS {sound}: {score.heard}")


if __name__ == "__main__":
    main()
