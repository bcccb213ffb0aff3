# SPDX-License-Identifier: Apache-2.0
"""The sentences that the default model learns from, and those that are kept from it.

Sources, all of them free to use: the example sentences and definitions of WordNet (Debian's
wordnet-base), Jane Austen's novels (public domain; Debian's r-cran-janeaustenr), everyday sentences
of our own (`templates`), and sequences of random words, which teach how rare words sound. They come
out as they are said, see `spoken_text`.
"""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, islice
from pathlib import Path

from templates import everyday_sentences
from tqdm import tqdm

from vllm.unison.frontend.spoken_text import spoken_text

WORDNET = Path("/usr/share/wordnet")
MIN_WORDS, MAX_WORDS, MAX_LETTERS = 3, 15, 90
CASUAL = 0.12
"""Part of the sentences that are written without capitals and without a full stop."""

EVALUATION = Path(__file__).with_name("evaluation.txt")
"""What every model is measured on, whatever else its texts are: a source and a sentence a line."""

_PARTS = ("noun", "verb", "adj", "adv")
_AUSTEN = """
for (book in c("emma", "mansfieldpark", "northangerabbey", "persuasion", "prideprejudice",
               "sensesensibility")) {
  cat(getExportedValue("janeaustenr", book), sep = "\\n")
}
"""


def words_of(sentence: str) -> tuple[str, ...]:
    """A sentence's words without case and punctuation."""
    return tuple(re.findall(r"[a-z']+", sentence.lower().replace("-", " ")))


def is_held_out(sentence: str) -> bool:
    """Whether a sentence is kept from training: one in forty, by a hash of its words."""
    return hashlib.sha256(" ".join(words_of(sentence)).encode()).digest()[0] % 40 == 0


def _glosses() -> Iterator[str]:
    for part in _PARTS:
        with (WORDNET / f"data.{part}").open(encoding="latin-1") as lines:
            for line in lines:
                if not line.startswith("  "):
                    yield line.split("|", 1)[1].strip()


_PLAIN = re.compile("[A-Za-z ,.?!;:'-]*")


def wordnet_examples() -> Iterator[str]:
    """The sentences and phrases that show how a word is used."""
    for gloss in _glosses():
        yield from filter(_PLAIN.fullmatch, re.findall(r'"([^"]+)"', gloss))


def wordnet_definitions() -> Iterator[str]:
    """What words mean; phrases that have nearly every English word in them."""
    for gloss in _glosses():
        plain = re.sub(r'"[^"]*"|\([^)]*\)', "", gloss)
        yield from filter(_PLAIN.fullmatch, (part.strip() for part in plain.split(";")))


def wordnet_words() -> dict[str, list[str]]:
    """Words of letters only, by part of speech."""
    words = {}
    for part in _PARTS:
        with (WORDNET / f"index.{part}").open(encoding="latin-1") as lines:
            names = (line.split(" ", 1)[0] for line in lines if not line.startswith("  "))
            words[part] = [name for name in names if re.fullmatch("[a-z]{2,14}", name)]
    return words


def austen_sentences() -> Iterator[str]:
    """Short sentences of novels, many of them spoken ones."""
    done = subprocess.run(
        ["Rscript", "-e", _AUSTEN], check=True, capture_output=True, text=True
    ).stdout
    for paragraph in re.split(r"\n\s*\n", done):
        text = " ".join(paragraph.split()).replace("_", "")
        for sentence in re.split(r"(?<!Mr\.)(?<!Mrs\.)(?<!Dr\.)(?<=[.?!;])[\"']?\s+", text):
            if not re.search("CHAPTER|[0-9]", sentence):
                sentence = sentence.replace("Mr.", "mister").replace("Mrs.", "misses")
                yield re.sub(r";$", ".", sentence)


def random_words(seed: int) -> Iterator[str]:
    """Endless sequences of words that make no sense."""
    rng = random.Random(seed)
    words = wordnet_words()
    while True:
        count = rng.randint(3, 7)
        chosen = [rng.choice(words[rng.choice(_PARTS)]) for _ in range(count)]
        joiner = rng.choice([" ", " ", ", "])
        yield joiner.join(chosen)


def _finish(sentence: str, rng: random.Random) -> str | None:
    """A sentence as it is said and written, or None if it does not suit."""
    spoken = spoken_text(sentence)
    count = len(words_of(spoken))
    if not MIN_WORDS <= count <= MAX_WORDS or not 8 <= len(spoken) <= MAX_LETTERS:
        return None
    if max(len(word) for word in words_of(spoken)) > 16:
        return None
    if rng.random() < CASUAL:
        return spoken.lower().rstrip(".")
    if spoken[-1] not in ".?!":
        spoken += "."
    return spoken[0].upper() + spoken[1:]


def _distinct(sentences: Iterable[str], seen: set[tuple[str, ...]]) -> Iterator[str]:
    for sentence in sentences:
        words = words_of(sentence)
        if words not in seen:
            seen.add(words)
            yield sentence


def _variants(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """What is left of words when at most two are taken away."""
    for removed in range(min(3, len(words))):
        for gone in combinations(range(len(words)), removed):
            yield tuple(word for i, word in enumerate(words) if i not in gone)


def word_distance(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Fewest insertions, deletions and replacements of words from one to the other."""
    row = list(range(len(theirs) + 1))
    for i, word in enumerate(ours, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(theirs, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


class NearbySentences:
    """Finds sentences that differ from one of a set in two words or fewer.

    Two sentences at that distance are equal once at most two words are taken from each.

    Args:
        sentences: the set.
    """

    def __init__(self, sentences: Iterable[str]) -> None:
        self._by_variant: dict[int, set[tuple[str, ...]]] = {}
        for sentence in sentences:
            words = words_of(sentence)
            for variant in _variants(words):
                self._by_variant.setdefault(hash(variant), set()).add(words)

    def near(self, sentence: str) -> bool:
        """Whether one of the set is within two words of a sentence."""
        words = words_of(sentence)
        return any(
            word_distance(words, other) <= 2
            for variant in _variants(words)
            for other in self._by_variant.get(hash(variant), ())
        )


COUNTS = {"example": 45000, "definition": 12000, "austen": 8000, "everyday": 12000, "words": 4000}
"""At most so many sentences of each source."""


def _sources(seed: int) -> dict[str, Iterable[str]]:
    nouns = wordnet_words()["noun"]
    rng = random.Random(seed)
    definitions = list(wordnet_definitions())
    rng.shuffle(definitions)
    return {
        "example": wordnet_examples(),
        "definition": definitions,
        "austen": austen_sentences(),
        "everyday": everyday_sentences(seed, nouns),
        "words": random_words(seed),
    }


def write_texts(folder: Path, seed: int = 1, validation: int = 300) -> None:
    """Write train.txt, validation.txt and evaluation.txt; does nothing if they exist.

    A line is a source and a sentence, separated by a tabulator. No sentence of training is within
    two words of one of the others; those of validation and evaluation are whole sentences.

    Args:
        folder: made if missing.
        seed: same seed, same texts.
        validation: how many sentences of it.
    """
    if (folder / "train.txt").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    seen: set[tuple[str, ...]] = set()
    kept: list[tuple[str, str]] = []
    held_out: list[tuple[str, str]] = []
    for source, sentences in _sources(seed).items():
        wanted = COUNTS[source]
        finished = (done for s in sentences if (done := _finish(s, rng)) is not None)
        found = tqdm(islice(_distinct(finished, seen), wanted), total=wanted, desc=source)
        for sentence in found:
            (held_out if is_held_out(sentence) else kept).append((source, sentence))
    rng.shuffle(kept)
    rng.shuffle(held_out)
    ordinary = [pair for pair in held_out if pair[0] in ("example", "everyday", "austen")]
    rows = (line.split("\t") for line in EVALUATION.read_text().splitlines())
    evaluation = [(source, sentence) for source, sentence in rows]
    used = {words_of(sentence) for _, sentence in evaluation}
    parts = {"evaluation": evaluation}
    parts["validation"] = [pair for pair in ordinary if words_of(pair[1]) not in used][:validation]
    index = NearbySentences(sentence for part in parts.values() for _, sentence in part)
    parts["train"] = [
        pair for pair in tqdm(kept, desc="comparing with held-out") if not index.near(pair[1])
    ]
    print(f"{len(kept) - len(parts['train'])} sentences are too near to held-out ones")
    for name, pairs in parts.items():
        lines = "".join(f"{source}\t{sentence}\n" for source, sentence in pairs)
        partial = folder / f"{name}.partial"
        partial.write_text(lines)
        partial.rename(folder / f"{name}.txt")
