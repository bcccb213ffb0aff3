# SPDX-License-Identifier: Apache-2.0
"""Makes the lexicon: how the words are said of which that is certain.

    python examples/train_default_model/pronunciation.py --folder build/default_model

A word whose phones depend on the sentence ("read", "live", "the") is left out: the model reads its
letters and hears from the other words which it is. So are words that no dictionary has.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import layout
from corpus import read_texts
from phones import PAUSE, PHONES, PUNCTUATION, STRESS, phone_index
from texts import wordnet_words
from tqdm import tqdm

from vllm.unison.frontend.lexicon import WORD, Lexicon

CERTAIN = 0.97
"""Part of a word's uses that have the same phones, at least, stress aside."""

SENTENCES = 25000
"""Of training, whose words are counted as they are said there."""

_FRAMES = "a {0}, to {0}, they {0}."
"""Where another part of speech would be said in another way."""


def lexicon_file(folder: Path) -> Path:
    """Where a training has its lexicon."""
    return folder / "lexicon.tsv.gz"


def spelling(pronounced: str) -> str:
    """What `teachers.pronounce` gives, in the signs that the tokenizer has for it."""
    signs = []
    for symbol in pronounced:
        if symbol in STRESS:
            signs.append(layout.SOUNDS[len(PHONES) - 1 + STRESS.index(symbol)])
        elif symbol not in PUNCTUATION and symbol != PAUSE:
            signs.append(layout.SOUNDS[phone_index(symbol) - 1])
    return "".join(signs)


def _without_stress(spelled: str) -> str:
    return spelled.translate({ord(sign): None for sign in layout.SOUNDS[-len(STRESS) :]})


def words_as_said(sentence: str, pronounced: str) -> list[tuple[str, str]]:
    """(word, spelling) of a sentence, where the two go together word by word."""
    written, said = sentence.split(), pronounced.split()
    if len(written) != len(said):
        return []
    pairs = zip(written, said, strict=True)
    stripped = ((w.strip(",.?!;:").lower(), spelling(s)) for w, s in pairs)
    return [(w, s) for w, s in stripped if s and re.fullmatch(WORD, w)]


def make_lexicon(
    sentences: Iterable[str], words: Iterable[str], pronounce: Callable[[str], str]
) -> Lexicon:
    """The lexicon of words of which it is certain how they are said.

    Args:
        sentences: whose words are counted as they are said there.
        words: others, in small letters.
        pronounce: from a sentence to its phones, words apart.
    """
    uses: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for sentence in tqdm(sentences, desc="words in sentences"):
        for word, said in words_as_said(sentence, pronounce(sentence)):
            uses[word][said] += 1
    for word in tqdm(sorted({*words, *uses}), desc="words"):
        frames = _FRAMES.format(word)
        for found, said in words_as_said(frames, pronounce(frames)):
            if found == word:
                uses[word][said] += 1
    spellings = {}
    for word, counts in uses.items():
        sounds: Counter[str] = Counter()
        for said, count in counts.items():
            sounds[_without_stress(said)] += count
        [(commonest, count)] = sounds.most_common(1)
        if count >= CERTAIN * counts.total():
            ways = {s: n for s, n in counts.items() if _without_stress(s) == commonest}
            spellings[word] = max(ways, key=lambda said: ways[said])
    return Lexicon(spellings)


def write_lexicon(folder: Path) -> None:
    """Write the lexicon of a training; does nothing if there is one."""
    if lexicon_file(folder).exists():
        return
    from teachers import pronounce

    texts = read_texts(folder / "texts" / "train.txt")
    words = {word for part in wordnet_words().values() for word in part}
    words |= {w for text in texts for w in re.findall(WORD, text.lower())}
    made = make_lexicon(texts[:SENTENCES], words, pronounce())
    made.save(lexicon_file(folder))
    print(f"{len(made)} words have one pronunciation")


def main() -> None:
    """Write the lexicon."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=Path("build/default_model"))
    write_lexicon(parser.parse_args().folder)


if __name__ == "__main__":
    main()
