# SPDX-License-Identifier: Apache-2.0
"""Ends of Bagpiper by scripted logits, plain and guided: after every step, and by the limit.

The rule here is written from the facts: nothing is forced, so each stream emits its own pads where
it has no frame; either end id on stream 0 ends the audio at once, in the row of which nothing else
counts, and there are seven frames less than rows before it; a pad among the codes is code 0. Where
the limit cuts stream 0 off, the others get as many frames as it has.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.bagpiper.reference import ASSISTANT, AUDIO, EOS, EOT
from tests.support.bagpiper import (
    CODEBOOK_SIZE,
    DECODING,
    FIRST_CODE,
    FIRST_TEXT,
    NUM_CODEBOOKS,
    write_bagpiper,
)
from tests.support.ends import ANYTHING, Ending, EngineEnds, Made, Rows, Scripted, open_scripted

LAST = NUM_CODEBOOKS - 1
FIRST_END = 5
"""Steps of audio before which none may end."""
NUM_STEPS = 44
PADS = FIRST_CODE + (CODEBOOK_SIZE + 1) * np.arange(NUM_CODEBOOKS)
TEXT = [FIRST_TEXT + 40, FIRST_TEXT + 41, EOT]
GUIDED: dict[str, Any] = {"guidance_scale": 3.0}


def rule(wanted: Rows, limit: int) -> Made:
    """What comes of the ids [num_steps, 8] that the logits want, of audio alone."""
    rows: list[list[int]] = []
    num_frames, is_cut = NUM_STEPS, False
    for step in itertools.count():
        row = wanted[step].tolist()
        if is_cut:
            row = [int(PADS[k]) if step >= limit + k else row[k] for k in range(NUM_CODEBOOKS)]
        elif row[0] in (EOS, EOT) and step < FIRST_END:
            row[0] = int(PADS[0]) + 1
        elif row[0] in (EOS, EOT):
            rows.append([row[0], *[ANYTHING] * LAST])
            num_frames = max(step - LAST, 0)
            break
        rows.append(row)
        if step + 1 == limit:
            num_frames, is_cut = limit, True
        if is_cut and step + 1 == limit + LAST:
            break
    codes = [[rows[t + k][k] for k in range(NUM_CODEBOOKS)] for t in range(num_frames)]
    found = np.array(codes, np.int64).reshape(-1, NUM_CODEBOOKS) - PADS - 1
    return Made(np.array(rows), found.clip(0), not is_cut)


def after_text(made: Made) -> Made:
    """The same after a text, and what leads from there to audio."""
    before = [[token, *[0] * LAST] for token in (*TEXT, ASSISTANT, AUDIO)]
    rows = np.concatenate([np.array(before), made.rows])
    return Made(rows, made.codes, made.stops, len(before))


def _noise(seed: int, num_frames: int = NUM_STEPS) -> Rows:
    """Codes of as many frames between pads, and some pads among them."""
    random = np.random.default_rng(seed)
    wanted = 1 + random.integers(CODEBOOK_SIZE, size=(NUM_STEPS, NUM_CODEBOOKS))
    wanted = np.where(random.random(wanted.shape) < 0.1, 0, wanted)
    step, stream = np.indices(wanted.shape)
    return np.where((step >= stream) & (step < stream + num_frames), wanted, 0) + PADS


def _endings() -> list[Ending]:
    endings: list[Ending] = []

    def add(name: str, wanted: Rows, limit: int = 20, speaks: bool = False) -> None:
        made = rule(wanted, limit)
        task = "text_to_audio" if speaks else "caption_to_audio"
        if speaks:
            made = after_text(made)
            lead = np.zeros((made.num_before, NUM_CODEBOOKS), np.int64)
            lead[: len(TEXT), 0] = TEXT
            wanted = np.concatenate([lead, wanted])
        prompt = {"prompt": "hi", "mm_processor_kwargs": {"task": task}}
        options = GUIDED if len(endings) % 2 else {"guidance_scale": 1.0}
        max_tokens = made.num_before + limit
        endings.append(Ending(name, prompt, max_tokens, wanted, (PADS + 1).tolist(), made, options))

    for end in range(FIRST_END - 2, FIRST_END + NUM_CODEBOOKS + 4):
        # In the middle of codes, and after the tail that training rows have.
        for num_frames in (NUM_STEPS, max(end - LAST, 0)):
            wanted = _noise(end, num_frames)
            wanted[end, 0] = (EOS, EOT)[end % 2]
            add(f"{num_frames} frames, end at {end}", wanted)
        add(f"text, end at {end}", wanted, speaks=True)
    for limit in range(1, NUM_CODEBOOKS + 3):
        add(f"limit {limit}", _noise(100 + limit), limit, speaks=limit % 3 == 0)
    for limit in range(8, 20):
        # Nine frames, and their tail.
        wanted = _noise(200 + limit, 9)
        wanted[9 + LAST, 0] = EOS
        add(f"9 frames, limit {limit}", wanted, limit)
        add(f"text, 9 frames, limit {limit}", wanted, limit, speaks=True)
    return endings


ENDINGS = _endings()


def test_the_endings_are_of_all_kinds() -> None:
    """Of the rule: its facts in numbers."""
    made = {ending.name: ending.made for ending in ENDINGS}
    assert len(made["3 frames, end at 10"].codes) == 3
    assert len(made["3 frames, end at 10"].rows) == 11
    assert not len(made["0 frames, end at 5"].codes) and made["0 frames, end at 5"].stops
    assert not made["0 frames, end at 4"].stops
    # Cut off in its tail, of which stream 0's last pads are codes then.
    assert len(made["9 frames, limit 16"].codes) == 16 and not made["9 frames, limit 16"].stops
    assert len(made["9 frames, limit 17"].codes) == 9 and made["9 frames, limit 17"].stops
    assert len(made["limit 1"].rows) == 8
    assert {ending.options["guidance_scale"] for ending in ENDINGS} == {1.0, 3.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that may end soon, so that an end comes before all streams have begun."""
    path = tmp_path_factory.mktemp("ends")
    decoding = DECODING | {"audio": DECODING["audio"] | {"min_step": FIRST_END}}
    return write_bagpiper(path / "model", path / "sources", decoding=decoding)


@pytest.fixture(scope="module", params=[False, True], ids=["synchronous", "asynchronous"])
def engine(request: Any, folder: Path) -> Iterator[Scripted]:
    with open_scripted(folder, asynchronous=request.param) as scripted:
        yield scripted


class TestEnds(EngineEnds):
    endings = ENDINGS
