# SPDX-License-Identifier: Apache-2.0
"""The closed vocabulary of the default model, and sentences drawn from it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

NUMBERS = str.split(
    "zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty "
    "fifty sixty seventy eighty ninety hundred thousand"
)
SPELLING = str.split(
    "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november "
    "oscar papa quebec romeo sierra tango uniform victor whiskey yankee zulu"
)
COLOURS = str.split("red green blue yellow orange purple black white brown pink silver golden")
DAYS = str.split("monday tuesday wednesday thursday friday saturday sunday")
MONTHS = str.split("january february march april may june july august september october december")
ACTIONS = str.split("start stop open close play pause cancel repeat find search record answer")
THINGS = str.split(
    "window door light music message picture number station kitchen garden table camera"
)
MANNERS = str.split(
    "forward backward left right faster slower louder today tomorrow morning evening tonight"
)
ANSWERS = str.split("yes no hello please sorry welcome")

WORDS: tuple[str, ...] = tuple(
    dict.fromkeys(
        NUMBERS + SPELLING + COLOURS + DAYS + MONTHS + ACTIONS + THINGS + MANNERS + ANSWERS
    )
)
"""All words, each once."""

MAX_WORDS = 8


def is_held_out(sentence: str) -> bool:
    """Whether a sentence is kept for evaluation: one in twenty of those of 2 words and more.

    Single words are never held out, or the model would not learn them.
    """
    digest = hashlib.sha256(sentence.encode()).digest()
    return " " in sentence and digest[0] % 20 == 0


def _command(rng: random.Random) -> list[str]:
    colour = [rng.choice(COLOURS)] if rng.random() < 0.5 else []
    number = [rng.choice(NUMBERS)] if rng.random() < 0.3 else []
    when = [rng.choice(MANNERS)] if rng.random() < 0.4 else []
    polite = [rng.choice(ANSWERS)] if rng.random() < 0.3 else []
    return [*polite, rng.choice(ACTIONS), *colour, rng.choice(THINGS), *number, *when]


def _date(rng: random.Random) -> list[str]:
    return [rng.choice(DAYS), rng.choice([*MONTHS, "november"]), *rng.choices(NUMBERS, k=2)]


def _random_words(rng: random.Random) -> list[str]:
    return rng.choices(WORDS, k=rng.randint(1, MAX_WORDS))


def _digits_or_letters(rng: random.Random) -> list[str]:
    return rng.choices(rng.choice((NUMBERS, SPELLING)), k=rng.randint(2, MAX_WORDS))


def sentences(seed: int, held_out: bool) -> Iterator[str]:
    """Endless sentences of 1 to 8 words, half of them arbitrary sequences of words.

    Args:
        seed: same seed, same sentences.
        held_out: only sentences that are (True) or are not (False) kept for evaluation.
    """
    rng = random.Random(seed)
    makers = (_random_words, _random_words, _random_words, _command, _date, _digits_or_letters)
    while True:
        sentence = " ".join(rng.choice(makers)(rng))
        if is_held_out(sentence) == held_out:
            yield sentence
