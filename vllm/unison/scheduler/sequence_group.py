# SPDX-License-Identifier: Apache-2.0
"""The sequence group: the lanes of one request, and how many tokens each computes in a step.

The scheduler keeps one upstream Request per group, its conditional lane; every guidance lane is a
Request of its own that no queue knows. All lanes receive the same emitted tokens. The *barrier*:
the last known token of a lane is computed only in a step in which all active lanes compute theirs,
so a group samples with all its lanes or not at all.

What the worker is told of a lane that computes tokens in a step follows from what it has of the
lane already (`LaneState.entry_kind`):

| on the worker | blocks | all its tokens there, and in the last step | entry |
|---|---|---|---|
| no | | | NEW |
| yes | freed by preemption | | RESUMED |
| yes | its own still | no | RESUMED |
| yes | its own still | yes | CONTINUED |

Upstream's V2 runner keeps a row that sits out a step, so there the last column asks only for the
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from vllm.unison.messages.guidance_inputs import GuidanceInputs, LaneInputs
from vllm.unison.messages.streams import StreamInputs

if TYPE_CHECKING:
    from vllm.v1.request import Request


class EntryKind(Enum):
    """What a step's output tells the worker of a lane."""

    NEW = "all its tokens and blocks; the worker has nothing of it"
    RESUMED = "all its tokens and blocks; the worker drops what it has of it"
    CONTINUED = "its new blocks; the worker has everything else"


@dataclass(eq=False)
class LaneState:
    """A lane, and what the worker has of it.

    Attributes:
        request: the lane's tokens and counters; for the conditional lane the group's own Request.
        weight: of the lane's logits.
        is_conditional: whether it is the conditional lane.
        is_on_worker: whether the worker has the lane at all.
        num_prompt_on_worker: prompt length that the worker was told.
        num_blocks_on_worker: per KV cache group the blocks that the worker was told of; None once
            they were freed.
        num_tokens_on_worker: tokens of the lane that the worker has, those in flight included. A
            lane that computed a chunk of its prompt while a token was in flight lacks that token.
        num_tokens_last_step: tokens scheduled in the lane's newest step.
        num_cached_tokens: tokens that the prefix cache gave the lane and that no step has reported.
    """

    request: Request
    weight: float
    is_conditional: bool = False
    is_on_worker: bool = False
    num_prompt_on_worker: int = 0
    num_blocks_on_worker: list[int] | None = None
    num_tokens_on_worker: int = 0
    num_tokens_last_step: int = 0
    num_cached_tokens: int = 0

    def __post_init__(self) -> None:
        self.lane_id: str = self.request.request_id
        """Id under which the worker knows the lane."""

    def entry_kind(self, placed_lanes: AbstractSet[str] | None) -> EntryKind:
        """What the worker is told of the lane in this step; see the module's table.

        Args:
            placed_lanes: ids of the lanes that have a row in the worker's batch; None if every
                lane that the worker knows has.
        """
        if not self.is_on_worker:
            return EntryKind.NEW
        has_all = (
            self.num_blocks_on_worker is not None
            and self.is_placed(placed_lanes)
            and self.num_tokens_on_worker >= self.request.num_tokens
        )
        return EntryKind.CONTINUED if has_all else EntryKind.RESUMED

    def is_placed(self, placed_lanes: AbstractSet[str] | None) -> bool:
        """Whether the lane has a row in the worker's batch; see `entry_kind`."""
        return placed_lanes is None or self.lane_id in placed_lanes

    def note_entry(self, kind: EntryKind, num_blocks: list[int], samples: bool) -> None:
        """The worker is told of the lane.

        Args:
            kind: how.
            num_blocks: per KV cache group the blocks that it knows now.
            samples: whether it samples a token in this step.
        """
        if kind is EntryKind.NEW:
            # A lane that joined late is new with all that it has; outputs are counted from there.
            self.is_on_worker, self.num_prompt_on_worker = True, self.request.num_tokens
        if kind is not EntryKind.CONTINUED:
            self.num_tokens_on_worker = self.request.num_tokens
        self.num_blocks_on_worker = num_blocks
        self.num_cached_tokens = 0
        self.num_tokens_on_worker += samples

    def note_freed(self) -> None:
        """The lane's blocks are freed; the worker's copy is void."""
        self.num_blocks_on_worker = None
        self.num_cached_tokens = 0


@dataclass
class StepPlan:
    """A group's step.

    Attributes:
        lanes, tokens: the active lanes and how many tokens each computes.
        samples: whether all lanes compute their last token.
        frame: steps since the guided stretch began, of the token that the step emits.
    """

    lanes: Sequence[LaneState]
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

    Attributes:
        guidance_lanes: those that have joined.
        conditional_lane: the other one.
        active_lanes: all of them, the conditional lane first.
        lane_ids, weights: theirs.
        plan: the newest step's plan; None if the group waits in it.
    """

    main: Request
    inputs: GuidanceInputs
    num_streams: int = 1
    max_delay: int = 0
    guidance_lanes: list[LaneState] = field(default_factory=list)
    plan: StepPlan | None = None

    def __post_init__(self) -> None:
        self.conditional_lane = LaneState(self.main, self.inputs.weight, is_conditional=True)
        self._guided_from = 0
        self._set_active_lanes()

    def _set_active_lanes(self) -> None:
        self.active_lanes: list[LaneState] = [self.conditional_lane, *self.guidance_lanes]
        self.lane_ids = [lane.lane_id for lane in self.active_lanes]
        self.weights = [lane.weight for lane in self.active_lanes]

    @property
    def max_guidance_lanes(self) -> int:
        """Guidance lanes that the group may have at any time."""
        return len(self.inputs.lanes)

    def join(self, guided_from: int) -> None:
        """Make the guidance lanes.

        Each starts with its own prompt and continues with what the request has emitted since
        position `guided_from` of its conditional lane.
        """
        assert not self.guidance_lanes
        self._guided_from = guided_from
        for number, lane in enumerate(self.inputs.lanes, start=1):
            request = self._make_request(lane, number, guided_from)
            self.guidance_lanes.append(LaneState(request, lane.weight))
        self._set_active_lanes()

    def leave(self) -> list[LaneState]:
        """Drop the guidance lanes; returns them, so that their blocks can be freed."""
        gone, self.guidance_lanes = self.guidance_lanes, []
        self._set_active_lanes()
        return gone

    def append(self, token_ids: int | list[int]) -> None:
        """Give the guidance lanes what the conditional lane has just got.

        Lanes may join while the last tokens before `guided_from` are in flight; those are not
        theirs.
        """
        emitted = [token_ids] if isinstance(token_ids, int) else token_ids
        count = min(len(emitted), self.main.num_tokens - self._guided_from)
        if count <= 0:
            return
        for lane in self.guidance_lanes:
            streams = lane.request.streams
            if streams is not None:
                assert self.main.streams is not None
                streams.append_ids(self.main.streams.last_ids(count))
            lane.request.append_output_token_ids(emitted[-count:])

    def _make_request(self, lane: LaneInputs, number: int, guided_from: int) -> Request:
        from vllm.v1.request import Request

        main = self.main
        token_ids, auxiliary = lane.prompt_token_ids, lane.auxiliary_ids
        pads = self.inputs.pad_token_ids
        if token_ids is None:
            ending = self.inputs.null_ending[:guided_from]
            token_ids = [pads[0]] * (guided_from - len(ending)) + ending
        if main.streams is not None and auxiliary is None:
            auxiliary = np.empty((len(token_ids), self.num_streams - 1), np.int32)
            auxiliary[:] = pads[1:]
        emitted = main.all_token_ids[guided_from:]
        streams = None
        if main.streams is not None:
            assert auxiliary is not None
            since = main.streams.ids()[guided_from : main.num_tokens]
            streams = StreamInputs(
                np.concatenate([auxiliary, since]), None, encoder_input=lane.encoder_input
            )
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


def plan_step(
    remaining: Sequence[int], budget: int, all_lanes_synced: bool
) -> tuple[list[int], bool]:
    """How many tokens each lane computes in a step, and whether the group samples.

    Args:
        remaining: per lane the tokens that it has not computed, at least 0.
        budget: maximum number of tokens in all.
        all_lanes_synced: whether the worker has all tokens of every lane, those in flight included
            (with asynchronous scheduling a lane that was not in the last step lacks them).

    Returns:
        Tokens per lane and whether all lanes reach their last token. Where they do not, every lane
        keeps its last token back, and the budget goes to the lanes in order.
    """
    if all_lanes_synced and sum(remaining) <= budget and min(remaining) >= 1:
        return list(remaining), True
    tokens = []
    for count in remaining:
        share = max(min(count - 1, budget), 0)
        tokens.append(share)
        budget -= share
    return tokens, False
