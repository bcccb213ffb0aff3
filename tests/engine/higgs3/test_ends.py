# SPDX-License-Identifier: Apache-2.0
"""Ends of Higgs TTS 3 by scripted logits: wherever stream 0 says so, and wherever the limit does.

The rule here is written from the facts: all streams are sampled in every step; in step r < 8 the
streams after the r-th are set to 1024, and an end on stream 0 means nothing; later six more rows
follow it, in which nothing is forced.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.ends import Ending, EngineEnds, Made, Rows, Scripted, open_scripted
from tests.support.higgs3 import (
    CODEBOOK_IDS,
    END,
    LEAD_IN,
    NUM_CODES,
    NUM_STREAMS,
    TEXT_VOCABULARY,
)

LAST = NUM_STREAMS - 1
NUM_STEPS = 40
OFFSETS = TEXT_VOCABULARY + CODEBOOK_IDS * np.arange(NUM_STREAMS)


def rule(wanted: Rows, limit: int) -> Made:
    """What comes of the ids [num_steps, 8] of codebooks that the logits want."""
    rows: list[list[int]] = []
    end, is_cut = NUM_STEPS, False
    for step in itertools.count():
        row = [int(wanted[step, k]) if step >= k else LEAD_IN for k in range(NUM_STREAMS)]
        if is_cut:
            row = [END if step >= limit + k else token for k, token in enumerate(row)]
        rows.append(row)
        if end == NUM_STEPS and step >= NUM_STREAMS and row[0] == END:
            end = step
        elif end == NUM_STEPS and step + 1 == limit:
            end, is_cut = limit, True
        if step + 1 == end + LAST:
            break
    codes = [[rows[t + k][k] for k in range(NUM_STREAMS)] for t in range(end)]
    found = np.array(codes).reshape(-1, NUM_STREAMS)
    return Made(np.array(rows) + OFFSETS, np.where(found < NUM_CODES, found, 0), not is_cut)


def _noise(seed: int) -> Rows:
    """Codes, some of the other ids among them, but no end on stream 0."""
    random = np.random.default_rng(seed)
    wanted = random.integers(NUM_CODES, size=(NUM_STEPS, NUM_STREAMS))
    others = random.integers(NUM_CODES, CODEBOOK_IDS, size=wanted.shape)
    wanted = np.where(random.random(wanted.shape) < 0.1, others, wanted)
    wanted[wanted[:, 0] == END, 0] = 0
    return wanted


def _endings() -> list[Ending]:
    endings = []

    def add(name: str, wanted: Rows, limit: int = 24) -> None:
        made = rule(wanted, limit)
        endings.append(Ending(name, "hi", limit, wanted + OFFSETS, list(OFFSETS), made))

    for end in range(NUM_STREAMS + 9):
        wanted = _noise(end)
        wanted[end, 0] = END
        add(f"end at {end}", wanted)
        # As training rows were: the id stays.
        trained = wanted.copy()
        for stream in range(NUM_STREAMS):
            trained[end + stream :, stream] = END
        add(f"end at {end}, and on", trained)
    for limit in range(1, NUM_STREAMS + 3):
        add(f"limit {limit}", _noise(100 + limit), limit)
    for limit in range(10, 20):
        wanted = _noise(200 + limit)
        wanted[11, 0] = END
        add(f"end at 11, limit {limit}", wanted, limit)
    return endings


ENDINGS = _endings()


def test_the_endings_are_of_all_kinds() -> None:
    """Of the rule: its facts in numbers."""
    made = {ending.name: ending.made for ending in ENDINGS}
    assert len(made["end at 8"].codes) == 8 and len(made["end at 8"].rows) == 15
    assert not made["end at 7"].stops and len(made["end at 7"].codes) == 24
    assert made["end at 11, limit 12"].stops and not made["end at 11, limit 11"].stops
    assert len(made["limit 1"].rows) == 8


@pytest.fixture(scope="module", params=[False, True], ids=["synchronous", "asynchronous"])
def engine(request: Any, published: Callable[[str], Path]) -> Iterator[Scripted]:
    with open_scripted(published("plain"), asynchronous=request.param) as scripted:
        yield scripted


class TestEnds(EngineEnds):
    endings = ENDINGS
