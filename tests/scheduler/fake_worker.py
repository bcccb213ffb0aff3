# SPDX-License-Identifier: Apache-2.0
"""A worker without a model, which believes nothing but what a SchedulerOutput says.

It keeps rows, tokens and block tables by the rules of upstream's V1 runner, or of its V2 runner,
and a KV cache whose entries are digests of a whole prefix. In every step each row reads all that it
has computed through its block table, so a block that is freed too early, shared wrongly or missing
from a table is found. What is sampled is a function of the digests of all lanes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from vllm.unison.messages.conditioning import AudioInput
from vllm.unison.messages.streams import StreamOutput
from vllm.unison.model.phases import Finish
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput

VOCABULARY_SIZE = 61
"""Small, so that wrong tokens are also found where only some of them differ."""
IN_FLIGHT = -1
_MASK = (1 << 61) - 1


class WorkerFault(AssertionError):
    """The scheduler asked for something that a worker cannot do, or that is wrong."""


def check(condition: bool, message: str) -> None:
    """Raise WorkerFault unless `condition`."""
    if not condition:
        raise WorkerFault(message)


def next_digest(digest: int, token: int) -> int:
    """Digest of a prefix that is one token longer."""
    return ((digest ^ (token + 1)) * 0x9E3779B97F4A7C15 + 0x632BE5AB) & _MASK


def digest_of(tokens: Iterable[int], text: Iterable[int] = ()) -> int:
    """Digest of a sequence, and of the text that it attends to."""
    digest = 0
    for token in (*text, *tokens):
        digest = next_digest(digest, token)
    return digest


def sampled_token(digests: Sequence[int], weights: Sequence[float]) -> int:
    """The token that lanes with these digests sample, the conditional lane first."""
    mixed = 0
    for digest, weight in zip(digests, weights, strict=True):
        mixed = next_digest(mixed ^ digest, round(weight * 64))
    return (mixed >> 20) % VOCABULARY_SIZE


@dataclass
class WorkerRow:
    """A row's state: what the runner caches of a request.

    Attributes:
        prompt_length: of the prompt that it was told.
        tokens: prompt and output as the host knows them; IN_FLIGHT where it does not.
        truth: the same with all tokens.
        blocks: block ids.
        computed: tokens that are in the KV cache.
        blocks_of_states: block ids of the text's states.
        text: what the row attends to.
        max_tokens: that the request may emit.
    """

    prompt_length: int
    tokens: list[int]
    truth: list[int]
    blocks: list[int]
    computed: int
    blocks_of_states: list[int] = field(default_factory=list)
    text: list[int] = field(default_factory=list)
    max_tokens: int = 0


@dataclass
class FakeWorker:
    """Executes steps.

    Args:
        block_size: tokens per block.
        num_blocks: blocks of the cache, the null block included.
        max_rows: rows of the batch.
        max_length: most tokens of a row.
        is_async: whether sampled tokens stay on the device.
        end_token: what ends a request of a model with streams, of which the worker says when they
            have ended; None for a model without.
    """

    block_size: int
    num_blocks: int
    max_rows: int
    max_length: int
    is_async: bool
    end_token: int | None = None
    rows: dict[str, WorkerRow] = field(default_factory=dict)
    batch: set[str] = field(default_factory=set)
    previous: dict[str, int] = field(default_factory=dict)
    """What rows of the last step sampled."""

    def __post_init__(self) -> None:
        self._cache = [-1] * (self.num_blocks * self.block_size)

    def execute(self, output: SchedulerOutput) -> ModelRunnerOutput:
        """Run a step."""
        self._update_rows(output)
        self._write_states(output)
        check(self.batch == set(output.num_scheduled_tokens), "batch and scheduled rows differ")
        check(len(self.batch) <= self.max_rows, f"{len(self.batch)} rows > {self.max_rows}")
        written: set[int] = set()
        for lane_id, count in output.num_scheduled_tokens.items():
            self._compute(lane_id, count, written)
        # As in a model, a row may read what another one writes in the same step.
        ending = {lane_id: self._attend(lane_id) for lane_id in output.num_scheduled_tokens}
        sampled = {lane_id: digest for lane_id, digest in ending.items() if digest is not None}
        tokens = self._sample(output, sampled)
        for lane_id, token in tokens.items():
            row = self.rows[lane_id]
            row.tokens.append(IN_FLIGHT if self.is_async else token)
            row.truth.append(token)
            check(len(row.tokens) <= self.max_length, f"{lane_id} is longer than the context")
        self.previous = tokens if self.is_async else {}
        lane_ids = list(output.num_scheduled_tokens)
        return ModelRunnerOutput(
            req_ids=lane_ids,
            req_id_to_index={lane_id: i for i, lane_id in enumerate(lane_ids)},
            sampled_token_ids=[[tokens[r]] if r in tokens else [] for r in lane_ids],
            streams=None if self.end_token is None else self._streams(lane_ids, tokens),
        )

    def _streams(self, lane_ids: list[str], tokens: dict[str, int]) -> StreamOutput:
        """What a step of a model with one stream emitted, and which requests have ended."""
        finish = np.full(len(lane_ids), Finish.NOT_FINISHED)
        for index, lane_id in enumerate(lane_ids):
            row = self.rows[lane_id]
            if lane_id not in tokens:
                continue
            num_output = len(row.truth) - row.prompt_length
            if tokens[lane_id] == self.end_token:
                finish[index] = Finish.STOP
            elif num_output >= row.max_tokens or len(row.truth) >= self.max_length:
                finish[index] = Finish.LENGTH
        ids = np.array([[tokens.get(lane_id, 0)] for lane_id in lane_ids], np.int32)
        zeros = np.zeros(len(lane_ids), np.int64)
        return StreamOutput(ids, finish, zeros, zeros)

    def _write_states(self, output: SchedulerOutput) -> None:
        """Write the states of the texts of rows that enter, as a worker does before its forward."""
        update = output.streams
        if update is None:
            return
        for lane_id in update.auxiliary_ids:
            row = self.rows[lane_id]
            encoder_input = update.encoder_inputs.get(lane_id)
            assert not isinstance(encoder_input, AudioInput)
            row.text = [] if encoder_input is None else list(encoder_input.token_ids)
            needed = -(-len(row.text) // self.block_size)
            held = row.blocks_of_states
            check(len(held) == needed, f"{lane_id} has {len(held)} blocks for {len(row.text)} ids")
            check(0 not in held, f"{lane_id} has the null block for its states")
            for position in range(len(row.text)):
                self._cache[self._slot_of_state(row, position)] = self._state(row, position)

    def _state(self, row: WorkerRow, position: int) -> int:
        return digest_of(row.text, [position])

    def _slot_of_state(self, row: WorkerRow, position: int) -> int:
        block = row.blocks_of_states[position // self.block_size]
        return block * self.block_size + position % self.block_size

    def _leave_batch(self, lane_id: str) -> None:
        self.batch.discard(lane_id)
        self.previous.pop(lane_id, None)

    def _update_rows(self, output: SchedulerOutput) -> None:
        for lane_id in output.finished_req_ids:
            self.rows.pop(lane_id, None)
            self._leave_batch(lane_id)
        cached = output.scheduled_cached_reqs
        for lane_id in self.batch - (set(output.num_scheduled_tokens) - cached.resumed_req_ids):
            self._leave_batch(lane_id)
        for new in output.scheduled_new_reqs:
            check(new.req_id not in self.rows, f"{new.req_id} is new, but known already")
            assert new.prompt_token_ids is not None
            prompt = list(new.prompt_token_ids)
            blocks = list(new.block_ids[0])
            self.rows[new.req_id] = WorkerRow(
                len(prompt), prompt, list(prompt), blocks, new.num_computed_tokens
            )
            self._note_new(new)
            self.batch.add(new.req_id)
        for index, lane_id in enumerate(cached.req_ids):
            check(lane_id in self.rows, f"{lane_id} is not known")
            self._update_cached(output, index, lane_id)
            self.batch.add(lane_id)

    def _note_new(self, new: NewRequestData) -> None:
        row, params = self.rows[new.req_id], new.sampling_params
        row.blocks_of_states = [block for of_cache in new.block_ids[1:] for block in of_cache]
        assert params is not None and params.max_tokens is not None
        row.max_tokens = params.max_tokens

    def _take_blocks(self, row: WorkerRow, fresh: tuple[list[int], ...]) -> None:
        """Blocks that a row gets in addition."""
        row.blocks += fresh[0]
        for of_cache in fresh[1:]:
            row.blocks_of_states += of_cache

    def _update_cached(self, output: SchedulerOutput, index: int, lane_id: str) -> None:
        cached, row = output.scheduled_cached_reqs, self.rows[lane_id]
        row.computed = cached.num_computed_tokens[index]
        num_output = cached.num_output_tokens[index]
        check(num_output >= 0, f"{lane_id} has {num_output} output tokens")
        keep = row.prompt_length + num_output
        del row.tokens[keep:], row.truth[keep:]
        fresh = cached.new_block_ids[index]
        if lane_id in cached.resumed_req_ids:
            check(fresh is not None, f"{lane_id} is resumed without blocks")
            assert fresh is not None
            row.blocks, row.blocks_of_states = [], []
            self._take_blocks(row, fresh)
        elif fresh is not None:
            self._take_blocks(row, fresh)
        if lane_id not in self.batch and self.is_async and num_output > 0:
            check(lane_id in cached.all_token_ids, f"{lane_id} enters the batch without its tokens")
            row.tokens[row.prompt_length :] = cached.all_token_ids[lane_id][-num_output:]
            row.truth = list(row.tokens)
        if lane_id in cached.all_token_ids:
            check(row.truth == cached.all_token_ids[lane_id], f"{lane_id}: other tokens than sent")
        check(len(row.tokens) == keep, f"{lane_id} holds {len(row.tokens)} tokens, not {keep}")

    def _compute(self, lane_id: str, count: int, written: set[int]) -> None:
        """Write the KV of `count` tokens."""
        row = self.rows[lane_id]
        start, end = row.computed, row.computed + count
        check(count > 0, f"{lane_id} computes {count} tokens")
        check(end <= len(row.tokens), f"{lane_id} is fed a token that nobody has sampled")
        check(len(set(row.blocks)) == len(row.blocks), f"{lane_id} has a block twice")
        check(0 not in row.blocks, f"{lane_id} has the null block")
        check(end <= len(row.blocks) * self.block_size, f"{lane_id} lacks blocks")
        for position in range(start, end):
            token = row.tokens[position]
            is_last = position == end - 1
            if is_last and lane_id in self.previous:
                check(token in (IN_FLIGHT, self.previous[lane_id]), f"{lane_id}: token overwritten")
                token = self.previous[lane_id]
            check(token != IN_FLIGHT, f"{lane_id} is fed a token that the device has no more")
            check(token == row.truth[position], f"{lane_id} is fed another token")
            slot = self._slot(row, position)
            check(slot not in written, f"{lane_id} writes a slot that another row writes")
            written.add(slot)
            self._cache[slot] = digest_of(row.truth[: position + 1], row.text)
        row.computed = end

    def _attend(self, lane_id: str) -> int | None:
        """Read all that a row has computed; its digest if it samples."""
        row = self.rows[lane_id]
        for position in range(len(row.text)):
            found = self._cache[self._slot_of_state(row, position)]
            check(found == self._state(row, position), f"{lane_id}: wrong state {position}")
        digest = digest_of(row.text)
        for position in range(row.computed):
            digest = next_digest(digest, row.truth[position])
            found = self._cache[self._slot(row, position)]
            check(found == digest, f"{lane_id}: wrong KV at position {position}")
        return digest if row.computed == len(row.tokens) else None

    def _slot(self, row: WorkerRow, position: int) -> int:
        block = row.blocks[position // self.block_size]
        return block * self.block_size + position % self.block_size

    def _sample(self, output: SchedulerOutput, sampled: dict[str, int]) -> dict[str, int]:
        tokens: dict[str, int] = {}
        lanes: set[str] = set()
        for group in () if output.guidance is None else output.guidance.groups:
            missing = [lane_id for lane_id in group.lane_ids if lane_id not in sampled]
            check(not missing, f"{missing} of a group are not level")
            check(lanes.isdisjoint(group.lane_ids), f"{group.lane_ids} in two groups")
            lanes.update(group.lane_ids)
            token = sampled_token([sampled[r] for r in group.lane_ids], group.weights)
            tokens |= dict.fromkeys(group.lane_ids, token)
        for lane_id, digest in sampled.items():
            if lane_id not in lanes:
                check("#lane" not in lane_id, f"{lane_id} samples without its group")
                tokens[lane_id] = sampled_token([digest], [1.0])
        return tokens


@dataclass
class FakeV2Worker(FakeWorker):
    """Executes steps by the rules of upstream's V2 runner.

    A row stays until its request has ended or is preempted, and the device has all its tokens, so
    that a row which sits out a step needs nothing. A resumed request comes like a new one.
    """

    def _update_rows(self, output: SchedulerOutput) -> None:
        for lane_id in output.finished_req_ids | (output.preempted_req_ids or set()):
            self.rows.pop(lane_id, None)
        self.batch = set(output.num_scheduled_tokens)
        # Tokens in flight are on the device, where the next step reads them.
        for row in self.rows.values():
            row.tokens = list(row.truth)
        self.previous = {}
        for new in output.scheduled_new_reqs:
            check(new.prefill_token_ids is not None, f"{new.req_id} comes without its tokens")
            assert new.prefill_token_ids is not None and new.prompt_token_ids is not None
            known, prompt = list(new.prefill_token_ids), list(new.prompt_token_ids)
            check(known[: len(prompt)] == prompt, f"{new.req_id}: the prompt is another one")
            self.rows[new.req_id] = WorkerRow(
                len(prompt), known, list(known), list(new.block_ids[0]), new.num_computed_tokens
            )
            self._note_new(new)
        check(len(self.rows) <= self.max_rows, f"{len(self.rows)} rows > {self.max_rows}")
        cached = output.scheduled_cached_reqs
        check(not cached.resumed_req_ids and not cached.all_token_ids, "V2 resumes as new")
        for index, lane_id in enumerate(cached.req_ids):
            check(lane_id in self.rows, f"{lane_id} is not known")
            row, fresh = self.rows[lane_id], cached.new_block_ids[index]
            check(
                row.computed == cached.num_computed_tokens[index],
                f"{lane_id} has computed {row.computed} tokens",
            )
            if fresh is not None:
                self._take_blocks(row, fresh)
        missing = self.batch - self.rows.keys()
        check(not missing, f"{missing} are scheduled, but not known")
