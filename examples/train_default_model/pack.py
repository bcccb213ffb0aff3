# SPDX-License-Identifier: Apache-2.0
"""Packs the encoded speech into one file, for a machine that has a better processor and no speech.

    python examples/train_default_model/pack.py --folder build/default_model --hours 18

writes ``corpus.npz``, about 25 MB for that much, with the sentences for validation in it. There,

    python examples/train_default_model/train_language_model.py \\
        --packed corpus.npz --folder out --device cuda --seconds 480 --scale 16 --workers 12

needs this repository, and of its packages only PyTorch, Transformers, Numba and Matplotlib.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from encode import FRAME_SECONDS, Encoded
from numpy.typing import NDArray
from synthesize import VOICES
from train_codec import CONFIG

from vllm.unison.frontend.lexicon import Lexicon

_CODE_BITS = (CONFIG.codebook_size - 1).bit_length()
_VOICE_NAMES = list(VOICES)
_SETS = ("train", "validation")


def _bits(codes: NDArray[np.int16]) -> NDArray[np.uint8]:
    bits = (codes.reshape(-1, 1) >> np.arange(_CODE_BITS)) & 1
    return np.packbits(bits.astype(np.uint8).reshape(-1))


def _codes(packed: NDArray[np.uint8], count: int) -> NDArray[np.int16]:
    bits = np.unpackbits(packed, count=count * _CODE_BITS).reshape(count, _CODE_BITS)
    return (bits.astype(np.int16) << np.arange(_CODE_BITS, dtype=np.int16)).sum(1, dtype=np.int16)


def _pack_codes(parts: Sequence[NDArray[np.int16]]) -> dict[str, NDArray]:
    """The first book, which compresses well, apart from the others, which do not."""
    together = np.concatenate(parts)
    return {
        "lengths": np.array([len(part) for part in parts], np.uint16),
        "semantic": together[:, 0].astype(np.uint8),
        "acoustic": _bits(together[:, 1:]),
    }


def _unpack_codes(stored: dict[str, NDArray]) -> list[NDArray[np.int16]]:
    semantic = stored["semantic"].astype(np.int16)
    books = CONFIG.num_codebooks - 1
    acoustic = _codes(stored["acoustic"], len(semantic) * books).reshape(-1, books)
    together = np.concatenate([semantic[:, None], acoustic], 1)
    return np.split(together, np.cumsum(stored["lengths"].astype(np.int64))[:-1])


def pack(utterances: Sequence[Encoded]) -> dict[str, NDArray]:
    """Arrays that hold utterances.

    Args:
        utterances: encoded ones, no sketches.
    """
    if any((item.codes < 0).any() for item in utterances):
        raise ValueError("only speech that has codes is packed, and there are sketches")
    clean = _pack_codes([item.codes for item in utterances])
    heard = _pack_codes([item.heard for item in utterances])
    return {
        "texts": np.frombuffer("\n".join(item.text for item in utterances).encode(), np.uint8),
        "voices": np.array([_VOICE_NAMES.index(item.voice) for item in utterances], np.uint8),
        "places": np.concatenate([item.places for item in utterances]),
        **{f"clean.{name}": array for name, array in clean.items()},
        **{f"heard.{name}": array for name, array in heard.items()},
    }


def unpack(arrays: dict[str, NDArray]) -> list[Encoded]:
    """The utterances that `pack` made arrays of."""
    parts = [
        _unpack_codes(
            {name: arrays[f"{kind}.{name}"] for name in ("lengths", "semantic", "acoustic")}
        )
        for kind in ("clean", "heard")
    ]
    ends = np.cumsum(arrays["clean.lengths"].astype(np.int64))[:-1]
    places = np.split(arrays["places"], ends)
    texts = arrays["texts"].tobytes().decode().split("\n")
    voices = [_VOICE_NAMES[index] for index in arrays["voices"]]
    return [Encoded(*fields) for fields in zip(texts, voices, *parts, places, strict=True)]


def write(file: Path, sets: Mapping[str, dict[str, NDArray]], lexicon: Lexicon) -> None:
    """Write what `PackedUtterances` reads.

    Args:
        file: its path.
        sets: arrays of `pack`, by the name of the set.
        lexicon: of the training.
    """
    arrays: dict[str, Any] = {
        f"{name}/{key}": array for name, part in sets.items() for key, array in part.items()
    }
    arrays["lexicon"] = np.frombuffer(lexicon.to_bytes(), np.uint8)
    np.savez_compressed(file, **arrays)


class PackedUtterances:
    """The utterances of a file that this script wrote; no others come later.

    Args:
        file: its path.
    """

    def __init__(self, file: Path) -> None:
        stored = dict(np.load(file))
        self._sets = {
            name: unpack(
                {key.split("/", 1)[1]: a for key, a in stored.items() if key.startswith(f"{name}/")}
            )
            for name in _SETS
        }
        self.all = self._sets["train"]
        self.lexicon = Lexicon.from_bytes(stored["lexicon"].tobytes())

    def draw(self, rng: np.random.Generator) -> Encoded:
        """Any of them."""
        return self.all[int(rng.integers(len(self.all)))]

    def look_for_more(self) -> None:
        """There are none."""

    def held_out(self, part: str) -> list[Encoded]:
        """Utterances of a set that is kept from training."""
        return self._sets[part]


def main() -> None:
    """Pack what there is."""
    from train_language_model import Utterances

    parser = argparse.ArgumentParser(description="Pack the encoded speech.", allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=Path("build/default_model"))
    parser.add_argument("--hours", type=float, default=18.0, help="at most, of all voices")
    parser.add_argument("--file", type=Path, help="default: corpus.npz in the folder")
    options = parser.parse_args()
    data = Utterances(options.folder)
    known = [item for item in data.all if (item.codes >= 0).all()]
    random.Random(0).shuffle(known)
    chosen, seconds = [], 0.0
    for item in known:
        if seconds >= options.hours * 3600:
            break
        chosen.append(item)
        seconds += len(item.codes) * FRAME_SECONDS
    sets = {"train": pack(chosen), "validation": pack(data.held_out("validation"))}
    file = options.file or options.folder / "corpus.npz"
    write(file, sets, data.lexicon)
    print(
        f"{file}: {len(chosen)} utterances, {seconds / 3600:.1f} hours, {file.stat().st_size} bytes"
    )


if __name__ == "__main__":
    main()
