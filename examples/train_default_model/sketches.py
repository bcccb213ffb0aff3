# SPDX-License-Identifier: Apache-2.0
"""Sentences that nobody spoke: their phones, for as long as a voice would say them.

A language model learns to spell and to pronounce from phones and letters, of which there are more
than there is speech; the codec's other codes are not known of them, nor learned. Words that are
rare in sentences come in random rows of words as well.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from corpus import SAMPLE_RATE, Shard, Utterance, all_shards, read_texts
from encode import FRAME_SECONDS, Encoded, read_encoded, sketch
from layout import SPEAKERS
from letters import LetterAligner
from numpy.typing import NDArray
from phones import NUM_LABELS, PAUSE, PHONES, PUNCTUATION, STRESS, frame_labels, phone_index

ROWS_OF_WORDS = 0.5
"""Part of the sketches that are rows of random words."""

_MARGIN = 0.1
"""Seconds of silence around, as the teachers leave it."""

_WORDS = (2, 4)
_SHARDS = 12
_NEEDED = 3
"""Durations that are known of a phone between two others, to choose among them."""

_RARE_COUNT = 0.3
"""Words count as so many more than they are, and then by their square root."""


def phones_of(pronounced: str) -> list[str]:
    """Phones of what `teachers.pronounce` gives, with a pause where there is punctuation."""
    found = [PAUSE]
    for symbol in pronounced:
        if symbol in STRESS or symbol == " ":
            continue
        phone = PAUSE if symbol in PUNCTUATION else PHONES[phone_index(symbol)]
        if not (phone == PAUSE and found[-1] == PAUSE):
            found.append(phone)
    return found if found[-1] == PAUSE else [*found, PAUSE]


class Durations:
    """How long a voice's phones last, between the phones around them.

    Args:
        utterances: of the voice.
    """

    def __init__(self, utterances: Iterable[Utterance]) -> None:
        known: defaultdict[tuple[str, ...], list[float]] = defaultdict(list)
        for utterance in utterances:
            start, lengths = 0.0, []
            for _, end in utterance.phones:
                lengths.append(end - start)
                start = end
            names = [PHONES[phone_index(phone)] for phone, _ in utterance.phones]
            for i in range(1, len(names) - 1):
                around = names[i - 1], names[i], names[i + 1]
                for key in (around, (around[1], around[2]), around[1:2]):
                    known[key].append(lengths[i])
        self._known = {key: np.array(found) for key, found in known.items()}
        self._some = np.array([0.08])

    def draw(self, phones: Sequence[str], rng: np.random.Generator) -> list[float]:
        """Seconds of each phone; the first and the last one are the pauses around all."""
        lengths = [_MARGIN]
        for i in range(1, len(phones) - 1):
            around = phones[i - 1], phones[i], phones[i + 1]
            for key in (around, (around[1], around[2]), around[1:2]):
                found = self._known.get(key, self._some)
                if len(found) >= _NEEDED:
                    break
            lengths.append(float(found[rng.integers(len(found))]))
        return [*lengths, _MARGIN]


def confusions(pairs: Iterable[tuple[Utterance, Encoded]]) -> NDArray[np.float64]:
    """[NUM_LABELS, NUM_LABELS] how often the codec takes a label for another."""
    counts = np.eye(NUM_LABELS)
    for utterance, encoded in pairs:
        labels = frame_labels(utterance.phones, len(encoded.codes), FRAME_SECONDS)
        np.add.at(counts, (labels, encoded.codes[:, 0].clip(0, NUM_LABELS - 1)), 1)
    return counts / counts.sum(1, keepdims=True)


class Sketches:
    """Makes sketches.

    Args:
        folder: of the training, with ``texts`` and speech.
        aligner: of phones and letters.
        pronounce: of `teachers`, from a sentence to its phones.
    """

    def __init__(
        self, folder: Path, aligner: LetterAligner, pronounce: Callable[[str], str]
    ) -> None:
        self._aligner = aligner
        self._pronounce = pronounce
        self._texts = read_texts(folder / "texts" / "train.txt")
        counts = Counter(
            word for text in self._texts for word in re.findall(r"[A-Za-z']*[A-Za-z]", text)
        )
        self._words = sorted(counts)
        weights = np.sqrt(np.array([counts[word] for word in self._words]) + _RARE_COUNT)
        self._limits = np.cumsum(weights / weights.sum())
        self._durations = {}
        pairs: list[tuple[Utterance, Encoded]] = []
        for voice in SPEAKERS:
            stems = all_shards(folder, voice)[:_SHARDS]
            utterances = [u for stem in stems for u in Shard(stem).utterances]
            self._durations[voice] = Durations(utterances)
            for stem in stems[:2]:
                file = folder / "codes" / voice / f"{stem.name}.npz"
                if file.exists():
                    encoded = read_encoded(stem, file, voice)
                    pairs += zip(Shard(stem).utterances, encoded, strict=True)
        self._confused = np.cumsum(confusions(pairs), 1)

    def _text(self, rng: np.random.Generator) -> str:
        if rng.random() >= ROWS_OF_WORDS:
            return self._texts[int(rng.integers(len(self._texts)))]
        count = int(rng.integers(*_WORDS, endpoint=True))
        chosen = np.searchsorted(self._limits, rng.random(count)).clip(0, len(self._words) - 1)
        row = " ".join(self._words[int(i)] for i in chosen)
        return row[0].upper() + row[1:] + "."

    def draw(self, rng: np.random.Generator) -> Encoded:
        """A sketch: its codes but the semantic ones are -1."""
        while True:
            text = self._text(rng)
            phones = phones_of(self._pronounce(text))
            if len(phones) > 2:
                break
        voice = SPEAKERS[int(rng.integers(len(SPEAKERS)))]
        ends = np.cumsum(self._durations[voice].draw(phones, rng))
        timed = [(phone, float(end)) for phone, end in zip(phones, ends, strict=True)]
        utterance = Utterance(text, round(float(ends[-1]) * SAMPLE_RATE), timed)
        return sketch(utterance, voice, self._aligner, rng, self._mishear)

    def _mishear(self, labels: NDArray[np.int16], rng: np.random.Generator) -> NDArray[np.int16]:
        """Labels that the codec may take these for."""
        limits = self._confused[labels]
        return (rng.random((len(labels), 1)) > limits).sum(1).clip(0, NUM_LABELS - 1)
