# SPDX-License-Identifier: Apache-2.0
"""Requests that move through the phases of a layout, as the worker sees them step by step."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.support.random_layouts import likely_token
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.phases import (
    NO_TOKEN,
    Finish,
    PhaseTable,
    Progress,
    Replay,
    StateKind,
    advance,
    replay,
    start_of_generation,
)


@dataclass
class Request:
    """A request's tokens, all known beforehand.

    Attributes:
        num_prompt: length of the prompt.
        limit: position at which stream 0 may emit no more.
        tokens: [num_steps, num_streams] ids, prompt and output.
        state, segment_start, finish: [num_output] of each step.
    """

    num_prompt: int
    limit: int
    tokens: NDArray[np.int32]
    state: NDArray[np.int64]
    segment_start: NDArray[np.int64]
    finish: NDArray[np.int64]

    @property
    def num_output(self) -> int:
        return len(self.state)

    def replayed(self, table: PhaseTable, num_output: int) -> Replay:
        """What its prompt and first outputs say."""
        ids = self.tokens[: self.num_prompt + num_output]
        prompt = ids[: self.num_prompt, 0].tolist()
        return replay(table, prompt, ids[self.num_prompt :], self.limit)


def make_request(
    layout: StreamLayout, table: PhaseTable, source: random.Random, max_steps: int = 40
) -> Request:
    """A request whose tokens are drawn at random as its phases allow."""
    num_prompt = source.randint(1, 8)
    specials = [token for phase in layout.phases for token in phase.begin_tokens] or [0]
    prompt = [source.choice([*specials, layout.slices[0][0]]) for _ in range(num_prompt)]
    limit = num_prompt + source.randint(1, max_steps)
    state, segment_start = start_of_generation(layout, prompt)
    rows = [_row(layout, token, source) for token in prompt]
    states, starts, finishes = [], [], []
    progress = Progress(np.int64(state), np.int64(segment_start), np.int64(0))
    while True:
        kind = table.kind[progress.state]
        if kind in (StateKind.FORCED, StateKind.FLUSH):
            token = int(table.forced_token[progress.state])
            token = layout.slices[0][0] if token == NO_TOKEN else token
        else:
            token = likely_token(layout, layout.phases[int(progress.state)], source)
        position = len(rows)
        rows.append(_row(layout, token, source))
        if table.any_ends[progress.state]:
            ended = source.choice([0.0, 0.1, 0.7, 1.0])
            for stream in range(1, layout.num_streams):
                if source.random() < ended:
                    rows[-1][stream] = layout.tail.token_ids[stream]
        progress = advance(
            table.on_host,
            progress,
            np.int64(position),
            np.array(rows[-1], np.int64),
            np.int64(limit),
            np.int64(num_prompt),
        )
        states.append(int(progress.state))
        starts.append(int(progress.segment_start))
        finishes.append(int(table.finish[progress.state]))
        if finishes[-1] != Finish.NOT_FINISHED or len(rows) > limit + layout.num_flush_steps + 8:
            break
    return Request(
        num_prompt,
        limit,
        np.array(rows, np.int32),
        np.array(states, np.int64),
        np.array(starts, np.int64),
        np.array(finishes, np.int64),
    )


def _row(layout: StreamLayout, token: int, source: random.Random) -> list[int]:
    """Auxiliary streams carry codes everywhere: whoever takes a wrong step's is found out."""
    return [token, *(source.randrange(*pair) for pair in layout.slices[1:])]
