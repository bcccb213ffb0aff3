# SPDX-License-Identifier: Apache-2.0
"""Ends of OpusLM by scripted logits: wherever stream 0 says so, and wherever the limit does.

The rule here is written from the facts: the delays run through the whole sequence, so stream k
first emits what is left of the prompt; stream 0 may say the end from its fourth step on, and then
eight more steps follow, in which all streams are sampled: stream 0 among its units and the end, the
others among their codes and the pad.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.opuslm.cases import MAX_MODEL_LEN, OpusCase
from tests.support import opuslm as model
from tests.support.ends import Ending, EngineEnds, Made, Rows, Scripted, open_scripted

NUM_STREAMS, LAST = model.NUM_STREAMS, model.NUM_STREAMS - 1
FIRST_END = 3
NUM_STEPS = 40
FIRSTS = np.array([model.FIRST_UNIT, *(model.FIRST_CODE + model.NUM_CODES * k for k in range(8))])
SPOKEN = OpusCase("text_to_speech", "hi")
CONTINUED = OpusCase("audio_lm", clip=(11, 5))


def rule(wanted: Rows, limit: int, prompt: list[list[int]]) -> Made:
    """What comes of the ids [num_steps, 9] that the logits want, after a prompt's frames."""
    rows: list[list[int]] = []
    end, is_cut = NUM_STEPS, False
    for step in itertools.count():
        row = []
        for stream in range(NUM_STREAMS):
            token = int(wanted[step, stream])
            if step < stream:
                token = prompt[step - stream][stream]
            elif is_cut and step >= limit + stream:
                token = model.PAD if stream else model.END
            elif token == model.END and step < FIRST_END:
                token = int(FIRSTS[0])
            row.append(token)
        rows.append(row)
        if end == NUM_STEPS and row[0] == model.END:
            end = step
        elif end == NUM_STEPS and step + 1 == limit:
            end, is_cut = limit, True
        if step == end + LAST:
            break
    codes = [[rows[t + k][k] - FIRSTS[k] for k in range(1, NUM_STREAMS)] for t in range(end)]
    found = np.array(codes, np.int64).reshape(-1, LAST)
    return Made(np.array(rows), found.clip(0), not is_cut)


def _noise(seed: int) -> Rows:
    """Units and codes, pads among the latter."""
    random = np.random.default_rng(seed)
    units = random.integers(model.NUM_UNITS, size=(NUM_STEPS, 1))
    codes = random.integers(model.NUM_CODES, size=(NUM_STEPS, LAST))
    wanted = np.concatenate([units, codes], axis=1) + FIRSTS
    is_pad = random.random(wanted.shape) < 0.1
    is_pad[:, 0] = False
    return np.where(is_pad, model.PAD, wanted)


def _endings() -> list[Ending]:
    endings = []

    def add(name: str, wanted: Rows, limit: int = 18, case: OpusCase = SPOKEN) -> None:
        made = rule(wanted, limit, case.frames)
        endings.append(Ending(name, case.prompt, limit, wanted, FIRSTS.tolist(), made))

    for end in range(FIRST_END + NUM_STREAMS + 2):
        for case in (SPOKEN, CONTINUED):
            wanted = _noise(end)
            wanted[end, 0] = model.END
            add(f"{case.task} ends at {end}", wanted, case=case)
        # As training rows are: the end once, then pads, which stream 0 cannot emit.
        trained = wanted.copy()
        for stream in range(NUM_STREAMS):
            trained[end + stream + (stream == 0) :, stream] = model.PAD
        trained[end + 1 :, 0] = FIRSTS[0]
        add(f"ends at {end}, then pads", trained)
        wanted = wanted.copy()
        wanted[end:, 0] = model.END
        add(f"ends at {end}, and on", wanted)
    for limit in range(1, NUM_STREAMS + 3):
        add(f"limit {limit}", _noise(100 + limit), limit, (SPOKEN, CONTINUED)[limit % 2])
    for limit in range(8, 20):
        wanted = _noise(200 + limit)
        wanted[9, 0] = model.END
        add(f"end at 9, limit {limit}", wanted, limit)
    return endings


ENDINGS = _endings()


def test_the_endings_are_of_all_kinds() -> None:
    """Of the rule: its facts in numbers."""
    made = {ending.name: ending.made for ending in ENDINGS}
    assert len(made["text_to_speech ends at 3"].rows) == 12
    assert len(made["audio_lm ends at 3"].codes) == 3
    assert not made["text_to_speech ends at 2"].stops
    # The first of them that counts.
    assert len(made["ends at 0, and on"].codes) == 3
    assert made["end at 9, limit 10"].stops and not made["end at 9, limit 9"].stops
    assert len(made["limit 1"].rows) == 10 and len(made["limit 1"].codes) == 1


@pytest.fixture(scope="module", params=[False, True], ids=["synchronous", "asynchronous"])
def engine(request: Any, published: Callable[[str], Path]) -> Iterator[Scripted]:
    folder, options = published("llama"), {"max_model_len": MAX_MODEL_LEN}
    with open_scripted(folder, asynchronous=request.param, **options) as scripted:
        yield scripted


class TestEnds(EngineEnds):
    endings = ENDINGS
