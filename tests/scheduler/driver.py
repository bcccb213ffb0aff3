# SPDX-License-Identifier: Apache-2.0
"""Drives the real scheduler through a scenario and checks every step of it."""

from __future__ import annotations

import functools
import json
import os
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from tests.scheduler.fake_worker import (
    VOCABULARY_SIZE,
    FakeV2Worker,
    FakeWorker,
    digest_of,
    sampled_token,
)
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.unison.conditioning.states_kv_cache import EncoderStatesSpec
from vllm.unison.messages.conditioning import EncoderInput
from vllm.unison.messages.guidance import StepGuidance
from vllm.unison.messages.guidance_inputs import GuidanceInputs, LaneInputs
from vllm.unison.messages.streams import StreamInputs
from vllm.unison.scheduler.sequence_group import SequenceGroup
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

BLOCK_SIZE = 16
MAX_MODEL_LEN = 96
MAX_STATES = 40
END_TOKEN = 0
_ARCHITECTURE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": VOCABULARY_SIZE,
    "max_position_embeddings": MAX_MODEL_LEN,
    "torch_dtype": "float32",
}


def write_config(folder: Path) -> Path:
    """The config.json of a small text model."""
    (folder / "config.json").write_text(json.dumps(_ARCHITECTURE))
    return folder


@dataclass(frozen=True)
class Engine:
    """Limits and options of a scheduler."""

    num_blocks: int = 64
    budget: int = 32
    max_rows: int = 8
    caches_prefixes: bool = True
    policy: str = "fcfs"
    is_async: bool = False
    is_v2: bool = False
    attends: bool = False
    """Whether its layers attend to encoder states as well."""


@dataclass(frozen=True)
class Lane:
    """A guidance lane, with the text that it attends to (empty: none)."""

    weight: float
    prompt: tuple[int, ...]
    text: tuple[int, ...] = ()

    @property
    def max_blocks_of_states(self) -> int:
        """Blocks for its encoder states."""
        return -(-len(self.text) // BLOCK_SIZE)


@dataclass(frozen=True)
class Arrival:
    """A request and the steps in which it comes and, perhaps, is aborted."""

    step: int
    prompt: tuple[int, ...]
    max_tokens: int
    lanes: tuple[Lane, ...] = ()
    first: int = 0
    last: int | None = None
    priority: int = 0
    aborted_at: int | None = None
    text: tuple[int, ...] = ()

    @property
    def weights(self) -> list[float]:
        """Of all lanes, the conditional one first."""
        return [1.0 - sum(lane.weight for lane in self.lanes), *(x.weight for x in self.lanes)]

    @property
    def num_generated(self) -> int:
        """Most tokens that it emits."""
        return min(self.max_tokens, MAX_MODEL_LEN - len(self.prompt))

    @property
    def max_blocks(self) -> int:
        """Blocks of all lanes at their greatest length."""
        lengths = [len(self.prompt), *(len(lane.prompt) for lane in self.lanes)]
        of_states = -(-len(self.text) // BLOCK_SIZE)
        of_states += sum(lane.max_blocks_of_states for lane in self.lanes)
        return of_states + sum(-(-(n + self.num_generated) // BLOCK_SIZE) for n in lengths)

    def expected(self) -> list[int]:
        """What it emits in any company: the fake model's tokens, without a scheduler."""
        emitted: list[int] = []
        last = len(emitted) + self.num_generated if self.last is None else self.last
        while len(emitted) < self.num_generated:
            digests = [digest_of((*self.prompt, *emitted), self.text)]
            weights = [1.0]
            if self.lanes and self.first <= len(emitted) <= last:
                digests += [digest_of((*x.prompt, *emitted), x.text) for x in self.lanes]
                weights = self.weights
            emitted.append(sampled_token(digests, weights))
            if emitted[-1] == END_TOKEN:
                break
        return emitted


@dataclass(frozen=True)
class Scenario:
    """An engine, its requests, and the steps before which all running requests are preempted."""

    engine: Engine
    arrivals: tuple[Arrival, ...]
    resets: frozenset[int] = frozenset()


def random_scenario(source: random.Random, attends: bool = False) -> Scenario:
    """Any scenario whose requests would be admitted, tight in every respect.

    Args:
        source: of everything.
        attends: whether lanes have encoder states, or not, like everything else.
    """
    is_crowd = source.random() < 0.5
    budget = source.choice([16, 40, 128] if is_crowd else [2, 3, 4, 5, 8, 16, 40, 128])
    max_rows = source.randint(4, 10) if is_crowd else source.randint(1, 6)
    max_guidance_lanes = min(3, budget, max_rows)
    shared = tuple(source.randrange(1, VOCABULARY_SIZE) for _ in range(70))

    def prompt() -> tuple[int, ...]:
        length = source.choice([1, 2, 15, 16, 17, 33, source.randint(1, 60)])
        if is_crowd:
            length = source.randint(1, 17)
        if source.random() < 0.6:
            return shared[:length]
        return tuple(source.randrange(1, VOCABULARY_SIZE) for _ in range(length))

    def text() -> tuple[int, ...]:
        if not attends or source.random() < 0.3:
            return ()
        length = source.choice([1, 15, 16, 17, source.randint(1, MAX_STATES)])
        return tuple(source.randrange(1, 4) for _ in range(length))

    arrivals: list[Arrival] = []
    step = 0
    for _ in range(source.randint(1, 9) + 3 * is_crowd):
        step += source.choice([0, 1] if is_crowd else [0, 0, 1, 2, 7])
        lanes = tuple(
            Lane(source.choice([-2.0, -0.5, 0.25]), prompt(), text())
            for _ in range(source.randint(0, max_guidance_lanes - 1))
        )
        own = prompt()
        longest = max(len(own), *(len(lane.prompt) for lane in lanes), 0)
        generated = source.choice([40, 75] if is_crowd else [1, 2, 5, 20, 40])
        if not lanes or len(own) == longest:
            # Beyond the context, which ends the request.
            generated = source.choice([generated, 200])
        else:
            generated = min(generated, MAX_MODEL_LEN - longest)
        first = source.choice([0, 0, 0, 1, 5])
        arrivals.append(
            Arrival(
                step=step,
                prompt=own,
                max_tokens=generated,
                lanes=lanes,
                first=first,
                last=source.choice([None, None, first, first + 6]),
                priority=source.randint(0, 2),
                aborted_at=step + source.randint(0, 30) if source.random() < 0.15 else None,
                text=text(),
            )
        )
    engine = Engine(
        num_blocks=max(a.max_blocks for a in arrivals) + 1 + source.choice([0, 0, 1, 4]),
        budget=budget,
        max_rows=max_rows,
        caches_prefixes=source.random() < 0.6,
        policy=source.choice(["fcfs", "priority"]),
        is_async=source.random() < 0.6,
        is_v2=source.random() < 0.5,
        attends=attends,
    )
    resets = frozenset(source.randint(1, 60) for _ in range(source.choice([0, 0, 1, 3])))
    return Scenario(engine, tuple(arrivals), resets)


@functools.cache
def _model_config(model: str) -> ModelConfig:
    return ModelConfig(
        model=model, dtype="float32", skip_tokenizer_init=True, max_model_len=MAX_MODEL_LEN
    )


@functools.cache
def _vllm_config(model: str, engine: Engine) -> VllmConfig:
    cache_config = CacheConfig(
        block_size=BLOCK_SIZE,
        enable_prefix_caching=engine.caches_prefixes,
    )
    config = VllmConfig(
        model_config=_model_config(model),
        cache_config=cache_config,
        scheduler_config=SchedulerConfig(
            max_num_seqs=engine.max_rows,
            # Upstream wants at least one per row here, and allows any number below.
            max_num_batched_tokens=max(engine.budget, engine.max_rows),
            max_num_scheduled_tokens=engine.budget,
            max_model_len=MAX_MODEL_LEN,
            enable_chunked_prefill=True,
            async_scheduling=engine.is_async,
            is_encoder_decoder=False,
            policy=engine.policy,  # type: ignore[arg-type]
        ),
    )
    config.cache_config.num_gpu_blocks = engine.num_blocks
    return config


def make_scheduler(model: str, engine: Engine) -> Scheduler:
    """A scheduler of the installed engine, for one attention layer, or one of each kind."""
    config = _vllm_config(model, engine)
    register_all_kvcache_specs(config)
    spec = FullAttentionSpec(
        block_size=BLOCK_SIZE, num_kv_heads=1, head_size=1, dtype=torch.float32
    )
    groups = [KVCacheGroupSpec(["layer"], spec)]
    if engine.attends:
        states = EncoderStatesSpec(
            block_size=BLOCK_SIZE,
            num_kv_heads=1,
            head_size=1,
            dtype=torch.float32,
            max_states=MAX_STATES,
        )
        groups.append(KVCacheGroupSpec(["cross"], states))
    scheduler_class = AsyncScheduler if engine.is_async else Scheduler
    with mock.patch.dict(os.environ, VLLM_USE_V2_MODEL_RUNNER=str(int(engine.is_v2))):
        return scheduler_class(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(
                num_blocks=engine.num_blocks,
                kv_cache_tensors=[],
                kv_cache_groups=groups,
            ),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK_SIZE,
            hash_block_size=BLOCK_SIZE,
            log_stats=False,
        )


@functools.cache
def _block_hasher() -> Any:
    init_none_hash(sha256)
    return get_request_block_hasher(BLOCK_SIZE, sha256)


def _encoder_input(text: tuple[int, ...]) -> EncoderInput | None:
    return EncoderInput(list(text)) if text else None


def _no_auxiliary_streams(prompt: tuple[int, ...]) -> np.ndarray:
    return np.empty((len(prompt), 0), np.int32)


def make_request(name: str, arrival: Arrival, attends: bool = False) -> Request:
    """The request as the scheduler gets it; of an engine that attends, with one stream."""
    params = SamplingParams(max_tokens=arrival.max_tokens, temperature=0.0)
    params.update_from_generation_config({}, END_TOKEN)
    guidance = None
    if arrival.lanes:
        lanes = [
            LaneInputs(
                lane.weight,
                list(lane.prompt),
                _no_auxiliary_streams(lane.prompt) if attends else None,
                _encoder_input(lane.text),
            )
            for lane in arrival.lanes
        ]
        guidance = GuidanceInputs(arrival.weights[0], lanes, arrival.first, arrival.last)
    streams = None
    if attends:
        streams = StreamInputs(
            _no_auxiliary_streams(arrival.prompt),
            None,
            encoder_input=_encoder_input(arrival.text),
        )
    return Request(
        request_id=name,
        prompt_token_ids=list(arrival.prompt),
        sampling_params=params,
        pooling_params=None,
        arrival_time=float(arrival.step),
        priority=arrival.priority,
        block_hasher=_block_hasher(),
        guidance=guidance,
        streams=streams,
    )


@dataclass
class Driver:
    """Runs a scenario.

    Args:
        model: folder of write_config.
        scenario: what happens.

    Attributes:
        emitted: per request id what it has emitted.
        happened: how often each kind of event has happened.
        requests: per request id the scheduler's request.
    """

    model: str
    scenario: Scenario
    emitted: dict[str, list[int]] = field(default_factory=dict)
    happened: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        engine = self.scenario.engine
        self.scheduler = make_scheduler(self.model, engine)
        worker_class = FakeV2Worker if engine.is_v2 else FakeWorker
        self.worker = worker_class(
            BLOCK_SIZE,
            engine.num_blocks,
            engine.max_rows,
            MAX_MODEL_LEN,
            engine.is_async,
            END_TOKEN if engine.attends else None,
        )
        self._arrivals = {f"r{i}": a for i, a in enumerate(self.scenario.arrivals)}
        self.requests: dict[str, Request] = {}
        self._in_flight: deque[tuple[SchedulerOutput, ModelRunnerOutput]] = deque()
        self._aborted: set[str] = set()
        self._steps_without_token = 0

    def run(self) -> Counter[str]:
        """Run to the end; AssertionError where anything is wrong."""
        last = max((a.step for a in self._arrivals.values()), default=0)
        step = 0
        while step <= last or self.scheduler.has_requests() or self._in_flight:
            self._happen(step)
            self._step()
            step += 1
        self.happened["steps"] += step
        self._check_end()
        return self.happened

    def _happen(self, step: int) -> None:
        for name, arrival in self._arrivals.items():
            if arrival.step == step:
                self.requests[name] = make_request(name, arrival, self.scenario.engine.attends)
                self.emitted[name] = []
                self.scheduler.add_request(self.requests[name])
            if arrival.aborted_at == step and name in self.scheduler.requests:
                self._aborted.add(name)
                self.happened["aborts"] += 1
                self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
        if step in self.scenario.resets:
            self.happened["resets"] += bool(self.scheduler.running)
            self.scheduler.reset_prefix_cache(reset_running_requests=True)

    def _step(self) -> None:
        """A step as the engine's core does it: with asynchronous scheduling one is in flight."""
        depth = 2 if self.scenario.engine.is_async else 1
        if self.scheduler.has_requests():
            held = self._prefills_and_tokens()
            output = self.scheduler.schedule()
            self._count_preemptions(held)
            self._check_step(output)
            self._in_flight.append((output, self.worker.execute(output)))
            self._check_tables(output)
            more = output.total_num_scheduled_tokens > 0 or self.scheduler.has_requests()
            if len(self._in_flight) < depth and more:
                return
        if self._in_flight:
            self._take_in(*self._in_flight.popleft())

    def _take_in(self, output: SchedulerOutput, result: ModelRunnerOutput) -> None:
        self._steps_without_token += 1
        for outputs in self.scheduler.update_from_output(output, result).values():
            for one in outputs.outputs:
                self.emitted[one.request_id] += one.new_token_ids
                self._steps_without_token = 0
        # Whoever is first computes at least one token per step, and all that it knows at worst.
        most = sum(
            a.max_blocks * BLOCK_SIZE + 8 for n, a in self._arrivals.items() if n in self.emitted
        )
        assert self._steps_without_token <= most, "no request makes progress"
        self._check_groups()
        self._check_blocks()

    # What is counted, so that a test can ask whether it happened.

    def _prefills_and_tokens(self) -> dict[str, tuple[int, int]]:
        return {
            r.request_id: (r.num_preemptions, r.num_output_tokens)
            for r in self.scheduler.requests.values()
            if r.group is not None and r.group.guidance_lanes
        }

    def _count_preemptions(self, held: dict[str, tuple[int, int]]) -> None:
        for name, (preemptions, num_output) in held.items():
            request = self.scheduler.requests[name]
            if request.num_preemptions > preemptions:
                where = "generating" if num_output else "prefilling"
                self.happened[f"groups preempted while {where}"] += 1
                if request.num_stale_output_tokens:
                    self.happened["groups preempted with a token in flight"] += 1

    # What must hold.

    @property
    def _groups(self) -> list[SequenceGroup]:
        requests = self.scheduler.requests.values()
        return [request.group for request in requests if request.group is not None]

    def _check_step(self, output: SchedulerOutput) -> None:
        scheduled = output.num_scheduled_tokens
        engine = self.scenario.engine
        assert sum(scheduled.values()) == output.total_num_scheduled_tokens <= engine.budget
        assert len(scheduled) <= engine.max_rows, "more rows than the batch has"
        guidance = output.guidance or StepGuidance()
        guided = zip(guidance.groups, guidance.frames, strict=True)
        sampling = {group.lane_ids[0]: (group, frame) for group, frame in guided}
        assert len(sampling) == len(guidance.groups), "a group samples twice"
        for group in self._groups:
            self._check_group_step(group, scheduled, sampling)
        for name in output.finished_req_ids:
            if name in self.requests:
                left = [row for row in self.worker.rows if row.startswith(f"{name}#")]
                assert set(left) <= output.finished_req_ids, "a group leaves in parts"
        self._check_blocks()

    def _check_tables(self, output: SchedulerOutput) -> None:
        """The worker's block tables are the scheduler's."""
        for lane_id in output.num_scheduled_tokens:
            blocks = [block.block_id for block in self._blocks_of(lane_id)]
            row = self.worker.rows[lane_id]
            assert row.blocks == blocks, f"{lane_id} has another table"
            if self.scenario.engine.attends:
                of_states = [block.block_id for block in self._blocks_of(lane_id, 1)]
                assert row.blocks_of_states == of_states, f"{lane_id} has another table of states"
                self.happened["rows with states"] += bool(of_states)
                self.happened["rows without states"] += not of_states

    def _check_group_step(
        self, group: SequenceGroup, scheduled: dict[str, int], sampling: dict[str, Any]
    ) -> None:
        """All active lanes compute their last known token in this step, or none does."""
        name = group.conditional_lane.lane_id
        in_flight = group.main.num_output_placeholders
        known, levels = [], []
        for lane in group.active_lanes:
            tokens = lane.request.num_tokens + in_flight
            # The conditional lane's placeholder of this very step is not known to anyone yet.
            if self.scenario.engine.is_async and name in scheduled:
                tokens -= not group.main.is_prefill_chunk
            known.append(tokens)
            levels.append(lane.lane_id in scheduled and lane.request.num_computed_tokens >= tokens)
            assert lane.request.num_computed_tokens <= tokens, "computes what nobody knows"
        assert all(levels) or not any(levels), f"{name}: lanes {levels} pass the barrier"
        if group.guidance_lanes:
            assert all(levels) == (name in sampling), f"{name} is level, but not guided"
            self.happened["guided steps"] += all(levels)
            counts = [scheduled.get(lane.lane_id, 0) for lane in group.active_lanes]
            self.happened["one lane waits for another"] += min(counts) == 0 < max(counts)
        else:
            assert name not in sampling
        if name in sampling:
            rows, frame = sampling[name]
            assert rows.lane_ids == [lane.lane_id for lane in group.active_lanes]
            assert rows.weights == self._arrivals[name].weights
            assert frame == known[0] - group.main.num_prompt_tokens
            assert frame >= rows.first
            assert rows.last is None or frame <= rows.last

    def _check_groups(self) -> None:
        for group in self._groups:
            arrival = self._arrivals[group.conditional_lane.lane_id]
            emitted = list(group.main.output_token_ids)
            assert len(group.guidance_lanes) in (0, len(arrival.lanes)), (
                "a group has some of its lanes"
            )
            for row, lane in zip(group.guidance_lanes, arrival.lanes, strict=False):
                tokens = list(row.request.all_token_ids)
                assert tokens == [*lane.prompt, *emitted], f"{row.lane_id} has other tokens"
            if group.main.status != RequestStatus.RUNNING:
                for number in range(len(self._managers)):
                    lanes = group.active_lanes
                    assert not any(self._blocks_of(lane.lane_id, number) for lane in lanes)
                assert all(lane.request.num_computed_tokens == 0 for lane in group.active_lanes)
                if self.scenario.engine.is_v2:
                    left = [lane.lane_id for lane in group.active_lanes]
                    assert self.worker.rows.keys().isdisjoint(left), "a preempted lane has a row"

    @property
    def _managers(self) -> Any:
        return self.scheduler.kv_cache_manager.coordinator.single_type_managers

    def _blocks_of(self, lane_id: str, group: int = 0) -> list[Any]:
        return list(self._managers[group].req_to_blocks.get(lane_id, ()))

    def _check_blocks(self) -> None:
        """Every block is held by as many live rows as its reference count says."""
        live = set(self.scheduler.requests)
        live |= {lane.lane_id for group in self._groups for lane in group.active_lanes}
        held: Counter[int] = Counter()
        for manager in self._managers:
            for lane_id, blocks in manager.req_to_blocks.items():
                assert lane_id in live or not blocks, f"{lane_id} is gone, but holds blocks"
                held.update(block.block_id for block in blocks)
        pool = self.scheduler.kv_cache_manager.block_pool
        for block in pool.blocks:
            if not block.is_null:
                assert block.ref_cnt == held[block.block_id], f"block {block.block_id}"
        assert pool.get_num_free_blocks() == len(pool.blocks) - 1 - len(held)

    def _check_end(self) -> None:
        assert not self.scheduler.requests and not self.scheduler.running
        pool = self.scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == len(pool.blocks) - 1, "blocks are lost"
        assert all(block.ref_cnt == 0 for block in pool.blocks if not block.is_null)
        assert not self.worker.rows, "the worker keeps rows of requests that have ended"
        for name, arrival in self._arrivals.items():
            expected = arrival.expected()
            if name in self._aborted:
                expected = expected[: len(self.emitted[name])]
            assert self.emitted[name] == expected, f"{name} emitted other tokens than alone"
