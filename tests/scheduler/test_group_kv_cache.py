# SPDX-License-Identifier: Apache-2.0
"""Admission by the blocks of all lanes, and what the metrics are told of each step."""

from __future__ import annotations

import pytest

from tests.scheduler.driver import (
    BLOCK_SIZE,
    MAX_MODEL_LEN,
    Arrival,
    Engine,
    Lane,
    make_request,
    make_scheduler,
)
from tests.scheduler.fake_worker import FakeWorker
from vllm.unison.messages.guidance import GuidanceStats
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

# One block of the pool is never given out.
NULL_BLOCK = 1


def prompt(first: int, num_blocks: int) -> tuple[int, ...]:
    """A prompt that fills blocks to the last token."""
    return tuple(1 + (first + i) % 40 for i in range(num_blocks * BLOCK_SIZE))


GUIDED = Arrival(0, prompt(0, 3), 8, (Lane(-0.5, prompt(5, 2)), Lane(-0.5, prompt(9, 2))))


def admits(scheduler: Scheduler, name: str, arrival: Arrival) -> bool:
    """Whether a request runs after the next step."""
    scheduler.add_request(make_request(name, arrival))
    scheduler.schedule()
    return any(request.request_id == name for request in scheduler.running)


@pytest.mark.parametrize(("free_blocks", "fits"), [(6, False), (7, True)])
def test_a_group_is_admitted_if_all_its_lanes_fit(
    free_blocks: int, fits: bool, text_model: str
) -> None:
    """Its first chunk alone would fit in any case."""
    engine = Engine(num_blocks=free_blocks + NULL_BLOCK, budget=BLOCK_SIZE)
    scheduler = make_scheduler(text_model, engine)
    assert admits(scheduler, "guided", GUIDED) == fits
    free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    assert (free == free_blocks) != fits


class Stepped:
    """A scheduler with its fake worker, one step at a time."""

    def __init__(self, model: str, engine: Engine) -> None:
        self.scheduler = make_scheduler(model, engine)
        self._worker = FakeWorker(
            BLOCK_SIZE, engine.num_blocks, engine.max_rows, MAX_MODEL_LEN, False
        )

    def step(self) -> None:
        output = self.scheduler.schedule()
        self.scheduler.update_from_output(output, self._worker.execute(output))


@pytest.mark.parametrize(
    ("num_blocks", "is_held", "fits"),
    [(6, False, False), (7, False, True), (7, True, False), (8, True, True)],
)
def test_cached_blocks_that_nobody_holds_have_to_be_taken(
    num_blocks: int, is_held: bool, fits: bool, text_model: str
) -> None:
    """The lanes need 7 blocks, of which the conditional one finds 2 cached.

    Another request that holds these two has one more for itself.
    """
    engine = Engine(num_blocks=num_blocks + NULL_BLOCK, budget=BLOCK_SIZE)
    stepped = Stepped(text_model, engine)
    scheduler = stepped.scheduler
    first = Arrival(0, prompt(0, 2), 20)
    scheduler.add_request(make_request("first", first))
    for _ in range(3):
        stepped.step()
    if not is_held:
        scheduler.finish_requests("first", RequestStatus.FINISHED_ABORTED)
        stepped.step()
    pool = scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == num_blocks - 3 * is_held
    assert admits(scheduler, "guided", GUIDED) == fits


def test_lanes_cache_what_they_have_computed_and_no_more(
    text_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane that lags behind must not offer a block that it has not computed."""
    scheduler = make_scheduler(text_model, Engine(num_blocks=32, budget=96))
    assert admits(scheduler, "guided", GUIDED)
    request = scheduler.requests["guided"]
    assert request.group is not None
    behind, level = (lane.request for lane in request.group.guidance_lanes)
    behind.num_computed_tokens, level.num_computed_tokens = BLOCK_SIZE, 2 * BLOCK_SIZE + 1
    request.num_output_placeholders = 1
    cached: dict[str, int] = {}
    manager = scheduler.kv_cache_manager
    monkeypatch.setattr(
        manager, "_cache_lane", lambda lane, count: cached.update({lane.request_id: count})
    )
    manager.cache_blocks(request, 40)
    names = request.group.lane_ids
    assert cached == dict(zip(names, [40, BLOCK_SIZE - 1, 2 * BLOCK_SIZE], strict=True))


def test_all_lanes_go_on_while_a_token_is_in_flight(text_model: str) -> None:
    scheduler = make_scheduler(text_model, Engine(num_blocks=32, budget=128, is_async=True))
    scheduler.add_request(make_request("guided", GUIDED))
    computed = [scheduler.schedule().num_scheduled_tokens for _ in range(3)]
    group = scheduler.requests["guided"].group
    assert group is not None
    names = group.lane_ids
    prompts = dict(zip(names, [3 * BLOCK_SIZE, 2 * BLOCK_SIZE, 2 * BLOCK_SIZE], strict=True))
    assert computed == [prompts, dict.fromkeys(names, 1), dict.fromkeys(names, 1)]


def test_counters_are_told_once_and_gauges_each_time(text_model: str) -> None:
    stepped = Stepped(text_model, Engine(num_blocks=32, budget=96))
    scheduler = stepped.scheduler
    take = scheduler.groups.pop_stats
    assert take() == GuidanceStats()
    scheduler.add_request(make_request("first", GUIDED))
    stepped.step()
    assert take() == GuidanceStats(running_groups=1, lanes=2, guidance_rows=2)
    # The lanes of a second request of the same prompts find one block each in the cache: the last
    # token of a prompt is always computed.
    scheduler.add_request(make_request("second", GUIDED))
    stepped.step()
    told = take()
    assert told == GuidanceStats(2, 4, guidance_rows=4, cached_tokens=2 * BLOCK_SIZE)
    assert take() == GuidanceStats(2, 4, guidance_rows=4)
    stepped.step()
    assert take() == GuidanceStats(2, 4, guidance_rows=4)
    scheduler.reset_prefix_cache(reset_running_requests=True)
    assert take() == GuidanceStats(guidance_rows=4, preempted_groups=2)
    assert take() == GuidanceStats(guidance_rows=4)
    scheduler.finish_requests(["first", "second"], RequestStatus.FINISHED_ABORTED)
    stepped.step()
    assert take() == GuidanceStats()


def test_what_was_told_is_not_changed_later(text_model: str) -> None:
    stepped = Stepped(text_model, Engine(num_blocks=32, budget=96))
    told = stepped.scheduler.groups.pop_stats()
    stepped.scheduler.add_request(make_request("first", GUIDED))
    stepped.step()
    stepped.scheduler.groups.pop_stats()
    assert told == GuidanceStats()
