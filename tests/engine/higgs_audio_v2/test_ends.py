# SPDX-License-Identifier: Apache-2.0
"""Ends of Higgs Audio v2 by scripted logits: on any stream, in any step, and by the limit.

The rule here is written from the facts: stream k is forced to 1024 for k more rows than the first,
which the prompt holds; once any stream has emitted 1025, that is forced on one more stream in each
step that follows, from stream 0 up; the first row with 1025 on all streams is the last.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.ends import Ending, EngineEnds, Made, Rows, Scripted, open_scripted
from tests.support.higgs_audio_v2 import NUM_CODEBOOKS, NUM_CODES, tokenizer

BEGIN, END = NUM_CODES, NUM_CODES + 1
LAST = NUM_CODEBOOKS - 1
NUM_STEPS = 40
OFFSETS = len(tokenizer()) + (NUM_CODES + 2) * np.arange(NUM_CODEBOOKS)


def rule(wanted: Rows, limit: int) -> Made:
    """What comes of the ids [num_steps, 8] of codebooks that the logits want."""
    rows: list[list[int]] = []
    first = NUM_STEPS
    for step in itertools.count():
        row = [int(wanted[step, k]) if step >= k else BEGIN for k in range(NUM_CODEBOOKS)]
        for stream in range(NUM_CODEBOOKS):
            if step > first + stream or step >= limit + stream:
                row[stream] = END
        rows.append(row)
        if END in row:
            first = min(first, step)
        if row == [END] * NUM_CODEBOOKS:
            break
    num_frames = max(len(rows) - 1 - LAST, 0)
    codes = [[rows[t + k][k] for k in range(NUM_CODEBOOKS)] for t in range(num_frames)]
    found = np.array(codes, np.int64).reshape(-1, NUM_CODEBOOKS).clip(0, NUM_CODES - 1)
    return Made(np.array(rows) + OFFSETS, found, first < limit)


def _noise(seed: int) -> Rows:
    """Codes, and now and then the id that begins a stream, which means nothing later."""
    random = np.random.default_rng(seed)
    wanted = random.integers(NUM_CODES, size=(NUM_STEPS, NUM_CODEBOOKS))
    return np.where(random.random(wanted.shape) < 0.05, BEGIN, wanted)


def _endings() -> list[Ending]:
    endings = []

    def add(name: str, wanted: Rows, limit: int = 14) -> None:
        made = rule(wanted, limit)
        endings.append(Ending(name, "hi", limit, wanted + OFFSETS, list(OFFSETS), made))

    for stream, step in itertools.product(range(NUM_CODEBOOKS), range(NUM_CODEBOOKS + 2)):
        wanted = _noise(100 * stream + step)
        wanted[step, stream] = END
        add(f"stream {stream} ends at {step}", wanted)
    for step, more in itertools.product((2, 9), range(1, 9)):
        # The other streams say so too, some of them before it is their turn.
        wanted = _noise(1000 + more)
        wanted[step, 1] = END
        wanted[step + more, ::2] = END
        wanted[step + more :, LAST] = END
        add(f"ends at {step} and {step + more}", wanted)
    for step in (LAST, LAST + 3):
        wanted = _noise(2000 + step)
        wanted[step] = END
        add(f"all end at {step}", wanted)
        wanted = wanted.copy()
        wanted[step - 2, 3] = END
        add(f"all end at {step}, after one", wanted)
    for limit in range(1, NUM_CODEBOOKS + 3):
        add(f"limit {limit}", _noise(3000 + limit), limit)
    for limit in range(9, 20):
        wanted = _noise(4000 + limit)
        wanted[10, 4] = END
        add(f"end at 10, limit {limit}", wanted, limit)
    return endings


ENDINGS = _endings()


def test_the_endings_are_of_all_kinds() -> None:
    """Of the rule: its facts in numbers."""
    made = {ending.name: ending.made for ending in ENDINGS}
    for stream in range(NUM_CODEBOOKS):
        assert len(made[f"stream {stream} ends at 9"].rows) == 18
        assert len(made[f"stream {stream} ends at 9"].codes) == 10
    # Before a stream has begun, nothing is up to it.
    assert not made["stream 7 ends at 6"].stops and made["stream 7 ends at 7"].stops
    assert len(made["all end at 7"].rows) == 8 and not len(made["all end at 7"].codes)
    assert made["end at 10, limit 11"].stops and not made["end at 10, limit 10"].stops
    assert len(made["limit 1"].rows) == 9 and len(made["limit 1"].codes) == 1


@pytest.fixture(scope="module", params=[False, True], ids=["synchronous", "asynchronous"])
def engine(request: Any, folder: Path) -> Iterator[Scripted]:
    with open_scripted(folder, asynchronous=request.param) as scripted:
        yield scripted


class TestEnds(EngineEnds):
    endings = ENDINGS
