# SPDX-License-Identifier: Apache-2.0
"""The sequence group: the lanes of one request, and how many tokens each computes in a step.

The scheduler keeps one upstream Request per group, its conditional lane; every guidance lane is a
Request of its own that no queue knows. All lanes receive the same emitted tokens. The *barrier*:
the last known token of a lane is computed only in a step in which all active lanes compute theirs,
so a group samples with all its lanes or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vllm.guidance.inputs import GuidanceInputs, LaneInputs
from vllm.multistream.messages import StreamInputs

if TYPE_CHECKING:
    from vllm.v1.request import Request


@dataclass(eq=False)
class Row:
    """What the worker knows of one lane.

    Attributes:
        request: the lane's tokens and counters; for the conditional lane the group's own Request.
        weight: of the lane's logits.
        is_known: whether the worker has the lane's state.
        num_prompt_sent: prompt length that the worker was told.
        num_blocks_sent: per KV cache group the blocks that it was told; None after they were freed.
        num_held: tokens of the lane that the worker holds, those in flight included. A lane that
            computed a chunk of its prompt while a token was in flight lacks that token.
        num_last: tokens scheduled in the lane's newest step.
        num_adopted: tokens that the prefix cache gave the lane and that no step has counted yet.
        is_main: whether it is the conditional lane.
    """

    request: Request
    weight: float
    is_known: bool = False
    num_prompt_sent: int = 0
    num_blocks_sent: list[int] | None = None
    num_held: int = 0
    num_last: int = 0
    num_adopted: int = 0
    is_main: bool = False

    def __post_init__(self) -> None:
        self.row_id: str = self.request.request_id
        """Id of the lane's row in the worker's batch."""


@dataclass
class StepPlan:
    """A group's step: tokens of each active lane, in the order of SequenceGroup.rows.

    Attributes:
        rows, tokens: the lanes and how many tokens each computes.
        samples: whether all lanes compute their last token.
        frame: steps since the guided stretch began, of the token that the step emits.
    """

    rows: list[Row]
    tokens: list[int]
    samples: bool
    frame: int

    @property
    def total(self) -> int:
        """Tokens of all lanes."""
        return sum(self.tokens)


@dataclass(eq=False)
class SequenceGroup:
    """The lanes of one guided request.

    Args:
        main: the conditional lane's Request, which the scheduler's queues hold.
        inputs: the request's guidance.
        num_streams: streams of the model.
        max_delay: of the model's delay pattern.
    """

    main: Request
    inputs: GuidanceInputs
    num_streams: int = 1
    max_delay: int = 0
    lanes: list[Row] = field(default_factory=list)
    plan: StepPlan | None = None
    """The newest step's plan; None if the group waits in it."""

    def __post_init__(self) -> None:
        self.main_row = Row(self.main, self.inputs.weight, is_main=True)
        self._set_rows()

    def _set_rows(self) -> None:
        self.rows: list[Row] = [self.main_row, *self.lanes]
        """The active lanes, the conditional one first."""
        self.row_ids = [row.row_id for row in self.rows]
        self.weights = [row.weight for row in self.rows]

    @property
    def most_lanes(self) -> int:
        """Guidance lanes that the group may have at any time."""
        return len(self.inputs.lanes)

    def join(self, guided_from: int) -> None:
        """Make the guidance lanes.

        Each starts with its own prompt and goes on with what the request has emitted since position
        `guided_from` of its conditional lane.
        """
        assert not self.lanes
        for number, lane in enumerate(self.inputs.lanes, start=1):
            self.lanes.append(Row(self._make_request(lane, number, guided_from), lane.weight))
        self._set_rows()

    def leave(self) -> list[Row]:
        """Drop the guidance lanes; returns them, so that their blocks can be freed."""
        gone, self.lanes = self.lanes, []
        self._set_rows()
        return gone

    def append(self, token_ids: int | list[int]) -> None:
        """Give the lanes what the conditional lane has just taken in."""
        count = 1 if isinstance(token_ids, int) else len(token_ids)
        for row in self.lanes:
            streams = row.request.streams
            if streams is not None:
                assert self.main.streams is not None
                streams.append_ids(self.main.streams.last_ids(count))
            row.request.append_output_token_ids(token_ids)

    def _make_request(self, lane: LaneInputs, number: int, guided_from: int) -> Request:
        from vllm.v1.request import Request

        main = self.main
        token_ids, auxiliary = lane.prompt_token_ids, lane.auxiliary_ids
        pads = self.inputs.pad_token_ids
        if token_ids is None:
            token_ids = [pads[0]] * guided_from
        if main.streams is not None and auxiliary is None:
            auxiliary = np.empty((len(token_ids), self.num_streams - 1), np.int32)
            auxiliary[:] = pads[1:]
        emitted = main.all_token_ids[guided_from:]
        streams = None
        if main.streams is not None:
            assert auxiliary is not None
            since = main.streams.ids()[guided_from : main.num_tokens]
            streams = StreamInputs(np.concatenate([auxiliary, since]), None, 0)
        request = Request(
            request_id=f"{main.request_id}#lane{number}",
            prompt_token_ids=[*token_ids, *emitted],
            sampling_params=main.sampling_params,
            pooling_params=None,
            client_index=main.client_index,
            arrival_time=main.arrival_time,
            lora_request=main.lora_request,
            cache_salt=main.cache_salt,
            priority=main.priority,
            block_hasher=main._block_hasher,
            streams=streams,
        )
        request.status = main.status
        return request


def plan_step(remaining: list[int], budget: int, can_level: bool) -> tuple[list[int], bool]:
    """How many tokens each lane computes in a step, and whether the group samples.

    Args:
        remaining: per lane the tokens that it has not computed, at least 0.
        budget: most tokens in all.
        can_level: whether every lane knows all its tokens (with asynchronous scheduling a lane that
            was not in the last step lacks those in flight).

    Returns:
        Tokens per lane and whether all lanes reach their last token. Where they do not, every lane
        keeps its last token back, and the budget goes to the lanes in order.
    """
    if can_level and sum(remaining) <= budget and min(remaining) >= 1:
        return list(remaining), True
    tokens = []
    for count in remaining:
        share = max(min(count - 1, budget), 0)
        tokens.append(share)
        budget -= share
    return tokens, False
