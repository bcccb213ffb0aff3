# SPDX-License-Identifier: Apache-2.0
"""Contracts 3 and 4: lanes stand and fall together, and no step drops guidance.

The tests with a name of their own in the section on regressions are about what loses guidance
elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.engine.guidance.cases import PLAIN, SAMPLED, THREE_LANES, Model, speech_prompt
from tests.engine.guidance.conftest import (
    LANE,
    Watch,
    assert_nothing_left,
    num_blocks,
    rows_of,
    run_steps,
    scheduler_of,
)
from tests.engine.streams.cases import BLOCK_SIZE, Case, assert_equals, comparable
from tests.engine.streams.conftest import open_engine
from vllm import LLM, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.unison.scheduler.group_kv_cache import GroupKVCacheManager

NAME = "constant"
GUIDED = PLAIN | {"guidance_scale": 3.0}


@pytest.fixture(scope="module")
def chunked(model: Callable[[str], Model]) -> Iterator[LLM]:
    """An engine that prefills in chunks of 16 tokens, with a prefix cache."""
    with open_engine(
        model(NAME).folder, max_num_batched_tokens=16, enable_prefix_caching=True
    ) as llm:
        yield llm


@pytest.fixture(scope="module", params=[False, True], ids=["synchronous", "asynchronous"])
def llm(model: Callable[[str], Model], request: pytest.FixtureRequest) -> Iterator[LLM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNISON_CPU_ASYNC_SCHEDULING", str(int(request.param)))
        with open_engine(
            model(NAME).folder, max_num_batched_tokens=48, enable_prefix_caching=False
        ) as llm:
            config = llm.llm_engine.vllm_config.scheduler_config
            assert config.async_scheduling is request.param
            yield llm


@pytest.fixture
def cached_hits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Per guidance lane that was looked up in the prefix cache, the tokens it need not compute."""
    hits: list[int] = []
    take = GroupKVCacheManager.take_cached_prefix

    def recording(self: Any, row: Any) -> int:
        is_new = not row.request.num_computed_tokens
        hit = take(self, row)
        if is_new:
            hits.append(hit)
        return hit

    monkeypatch.setattr(GroupKVCacheManager, "take_cached_prefix", recording)
    return hits


def _run(llm: LLM, model: Model, *cases: Case) -> list[RequestOutput]:
    """The outputs, which must be the reference's, of requests that leave nothing behind."""
    outputs = llm.generate([c.prompt for c in cases], [c.params for c in cases], use_tqdm=False)
    for case, output in zip(cases, outputs, strict=True):
        assert_equals(output, model.expected(case), str(case))
    return outputs


def _add(llm: LLM, name: str, case: Case) -> None:
    llm.llm_engine.add_request(name, case.prompt, case.params)


def _free(llm: LLM) -> int:
    return scheduler_of(llm).kv_cache_manager.block_pool.get_num_free_blocks()


# Lanes


def test_scale_one_makes_no_lane(llm: LLM, model: Callable[[str], Model], watch: Watch) -> None:
    guided = Case(text="no lane", options=PLAIN | {"guidance_scale": 1.0})
    more = guided.with_options(guidance_interval=(2, 5), negative_prompt="never read")
    plain = Case(text="no lane", options=PLAIN)
    outputs = _run(llm, model(NAME), guided, plain, more)
    assert comparable(outputs[0]) == comparable(outputs[1]) == comparable(outputs[2])
    assert not any(step.merged or step.computed for step in watch.steps)
    assert_nothing_left(llm)


def test_guidance_makes_one_lane_per_prompt_and_changes_the_tokens(
    llm: LLM, model: Callable[[str], Model], watch: Watch
) -> None:
    cases = [
        Case(text="lanes", options=PLAIN),
        Case(text="lanes", options=GUIDED),
        Case(text="lanes", options=PLAIN | {"guidance_lanes": THREE_LANES}),
    ]
    outputs = _run(llm, model(NAME), *cases)
    assert len({str(comparable(output)) for output in outputs}) == 3
    assert {len(rows) for step in watch.steps for rows in step.merged} == {2, 3}
    assert all(LANE not in output.request_id for output in outputs)
    watch.assert_merged_or_not_sampled()
    assert_nothing_left(llm)


def test_children_of_one_guided_request_have_consecutive_seeds(
    llm: LLM, model: Callable[[str], Model]
) -> None:
    case = Case(text="two", options=SAMPLED | {"max_tokens": 20, "guidance_scale": 2.0, "seed": 11})
    params = case.with_options(n=2).params
    (both,) = llm.generate(case.prompt, params, use_tqdm=False)
    for index, child in enumerate(comparable(both)):
        (alone,) = _run(llm, model(NAME), case.with_options(seed=11 + index))
        assert comparable(alone) == [child]
    assert comparable(both)[0] != comparable(both)[1]
    assert_nothing_left(llm)


def test_streamed_tokens_are_the_whole_outputs(llm: LLM, model: Callable[[str], Model]) -> None:
    case = Case(text="in pieces", options=GUIDED)
    streamed = case.with_options(output_kind=RequestOutputKind.DELTA)
    _add(llm, "streamed", streamed)
    pieces: list[RequestOutput] = []
    while llm.llm_engine.has_unfinished_requests():
        pieces += llm.llm_engine.step()  # type: ignore[arg-type]
    assert len(pieces) > 10
    token_ids = [token for piece in pieces for token in piece.outputs[0].token_ids]
    assert token_ids == model(NAME).expected(case).primary
    assert_nothing_left(llm)


# The prefix cache


def test_the_null_prompt_is_computed_once(
    chunked: LLM, model: Callable[[str], Model], cached_hits: list[int]
) -> None:
    assert chunked.reset_prefix_cache()
    null = {"negative_prompt_token_ids": speech_prompt(3 * BLOCK_SIZE + 5, seed=8)}
    for text, hit in (("first", 0), ("second", 3 * BLOCK_SIZE), ("third", 3 * BLOCK_SIZE)):
        cached_hits.clear()
        (output,) = _run(chunked, model(NAME), Case(text=text, options=GUIDED | null))
        assert cached_hits[0] == hit
        # What is cached of a guidance lane is no part of the request's own prompt.
        assert not output.num_cached_tokens
    assert_nothing_left(chunked)


def test_the_null_prompts_of_one_batch_share_their_blocks(
    chunked: LLM, model: Callable[[str], Model]
) -> None:
    assert chunked.reset_prefix_cache()
    options = GUIDED | {"negative_prompt_token_ids": speech_prompt(2 * BLOCK_SIZE + 1, seed=9)}
    _run(chunked, model(NAME), Case(text="first", options=options))
    for name in ("a", "b"):
        _add(chunked, name, Case(text=name, options=options))
    for _ in range(3):
        chunked.llm_engine.step()
    scheduler = scheduler_of(chunked)
    manager = scheduler.kv_cache_manager
    tables = [
        manager.get_block_ids(lane.lane_id)[0][:2]
        for request in scheduler.requests.values()
        for lane in request.group.guidance_lanes
    ]
    assert len(tables) == 2
    assert tables[0] == tables[1]
    run_steps(chunked)
    assert_nothing_left(chunked)


# Regressions


def test_a_cache_hit_on_the_guidance_lane_only(
    chunked: LLM, model: Callable[[str], Model], watch: Watch, cached_hits: list[int]
) -> None:
    assert chunked.reset_prefix_cache()
    long, other = speech_prompt(2 * BLOCK_SIZE + 9, 4), speech_prompt(2 * BLOCK_SIZE + 3, 5)
    _run(chunked, model(NAME), Case(token_ids=tuple(long), options={"max_tokens": 1}))
    options = GUIDED | {"negative_prompt_token_ids": long}
    case = Case(token_ids=tuple(other), options=options)
    (output,) = _run(chunked, model(NAME), case)
    assert not output.num_cached_tokens
    assert cached_hits[0] == 2 * BLOCK_SIZE
    watch.assert_merged_or_not_sampled()
    assert_nothing_left(chunked)


def test_a_cache_hit_on_the_conditional_lane_only(
    chunked: LLM, model: Callable[[str], Model], watch: Watch, cached_hits: list[int]
) -> None:
    assert chunked.reset_prefix_cache()
    long, other = speech_prompt(2 * BLOCK_SIZE + 9, 6), speech_prompt(2 * BLOCK_SIZE + 3, 7)
    _run(chunked, model(NAME), Case(token_ids=tuple(long), options={"max_tokens": 1}))
    options = GUIDED | {"negative_prompt_token_ids": other}
    (output,) = _run(chunked, model(NAME), Case(token_ids=tuple(long), options=options))
    assert output.num_cached_tokens == 2 * BLOCK_SIZE
    assert cached_hits[0] == 0
    watch.assert_merged_or_not_sampled()
    assert_nothing_left(chunked)


def test_a_partner_that_comes_late(
    chunked: LLM, model: Callable[[str], Model], watch: Watch
) -> None:
    """The guidance lane's prompt takes ten steps more than the conditional lane's."""
    assert chunked.reset_prefix_cache()
    options = GUIDED | {"negative_prompt_token_ids": speech_prompt(150, seed=10)}
    crowd = Case(text="others go on", options=GUIDED | {"max_tokens": 40})
    _run(chunked, model(NAME), Case(token_ids=(3, 40, 2), options=options), crowd)
    waits = [step for step in watch.steps if step.computed and not step.merged]
    assert len(waits) >= 1
    assert sum(any(LANE in lane_id for lane_id in step.computed) for step in watch.steps) > 10
    watch.assert_merged_or_not_sampled()
    assert_nothing_left(chunked)


def test_one_prompt_in_chunks_and_the_other_whole(
    chunked: LLM, model: Callable[[str], Model], watch: Watch
) -> None:
    assert chunked.reset_prefix_cache()
    case = Case(token_ids=tuple(speech_prompt(100, seed=11)), options=GUIDED)
    _run(chunked, model(NAME), case)
    before = next(i for i, step in enumerate(watch.steps) if step.merged)
    assert before >= 100 // 16
    parts = [
        tokens
        for step in watch.steps[: before + 1]
        for lane_id, tokens in step.computed.items()
        if LANE in lane_id
    ]
    # The null prompt has two tokens, the last of which waits for the conditional lane's.
    assert sum(parts) == 2
    assert any(LANE in lane_id for lane_id in watch.steps[before].computed)
    watch.assert_merged_or_not_sampled()
    assert_nothing_left(chunked)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
def test_a_pair_is_not_split_by_preemption(
    model: Callable[[str], Model],
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
    asynchronous: bool,
) -> None:
    """Groups are preempted in the middle of generation, and in the middle of a lane's prompt."""
    monkeypatch.setenv("UNISON_CPU_ASYNC_SCHEDULING", str(int(asynchronous)))
    short = GUIDED | {
        "max_tokens": 50,
        "negative_prompt_token_ids": speech_prompt(16, seed=12),
    }
    cases = {str(i): Case(token_ids=tuple(speech_prompt(16, i)), options=short) for i in range(4)}
    late = GUIDED | {"negative_prompt_token_ids": speech_prompt(150, seed=13)}
    growing = {f"g{i}": Case(text=f"grow {i}", options=GUIDED | {"max_tokens": 70}) for i in "ab"}
    with open_engine(
        model(NAME).folder,
        max_num_batched_tokens=16,
        enable_prefix_caching=False,
        num_gpu_blocks_override=17,
    ) as llm:
        for name, case in cases.items():
            _add(llm, name, case)
        for _ in range(20):
            llm.llm_engine.step()
        # It is admitted with room for all its prompts, which the others then grow into.
        cases["late"] = Case(token_ids=(3, 50, 2), options=late)
        _add(llm, "late", cases["late"])
        for name, case in growing.items():
            _add(llm, name, case)
        outputs = run_steps(llm)
        for name, case in (cases | growing).items():
            assert_equals(outputs[name], model(NAME).expected(case), name)
        assert_nothing_left(llm)
    assert watch.guided_mid_prefill, watch.preemptions
    assert watch.guided_mid_generation, watch.preemptions
    assert not any(preemption.num_blocks_left for preemption in watch.preemptions)
    watch.assert_merged_or_not_sampled()


# The end of a lane


def test_a_lane_that_leaves_early_frees_its_blocks_at_once(
    llm: LLM, model: Callable[[str], Model]
) -> None:
    last = 9
    options = GUIDED | {
        "max_tokens": 60,
        "guidance_interval": (0, last),
        "negative_prompt_token_ids": speech_prompt(120, seed=14),
    }
    case = Case(text="leaves", options=options)
    _add(llm, "leaves", case)
    engine, scheduler = llm.llm_engine, scheduler_of(llm)
    total = scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1
    held = 0
    lane = ""
    finished: dict[str, RequestOutput] = {}
    while engine.has_unfinished_requests():
        finished |= {o.request_id: o for o in engine.step() if o.finished}  # type: ignore[misc]
        if not scheduler.requests:
            continue
        (request,) = scheduler.requests.values()
        assert total - _free(llm) == num_blocks(
            scheduler,
            [request.request_id, *(lane.lane_id for lane in request.group.guidance_lanes)],
        )
        if request.group.guidance_lanes:
            lane = request.group.guidance_lanes[0].lane_id
            held = num_blocks(scheduler, [lane])
            delays = max(model(NAME).reference.delays)
            assert request.num_output_tokens <= last + delays + 2
        elif lane:
            assert num_blocks(scheduler, [lane]) == 0
            assert lane not in rows_of(llm)
    assert held >= 120 // BLOCK_SIZE
    assert_equals(finished["leaves"], model(NAME).expected(case))
    assert_nothing_left(llm)


@pytest.mark.parametrize("num_steps", [0, 1, 2, 5, 12])
def test_aborted_groups_leave_nothing_behind(
    llm: LLM, model: Callable[[str], Model], num_steps: int
) -> None:
    free = _free(llm)
    long = {"negative_prompt_token_ids": speech_prompt(150, seed=15)}
    crowd = {
        "a": Case(text="aborted", options=GUIDED | long),
        "b": Case(text="goes on", options=GUIDED),
        "c": Case(text="aborted too", options=PLAIN | {"guidance_lanes": THREE_LANES}),
        "d": Case(text="not guided", options=PLAIN),
    }
    for name, case in crowd.items():
        _add(llm, f"{num_steps}{name}", case)
    for _ in range(num_steps):
        llm.llm_engine.step()
    if num_steps > 1:
        assert _free(llm) < free
        assert any(LANE in request_id for request_id in rows_of(llm))
    llm.llm_engine.abort_request([f"{num_steps}a", f"{num_steps}c"])
    outputs = run_steps(llm)
    for name in "bd":
        assert_equals(outputs[f"{num_steps}{name}"], model(NAME).expected(crowd[name]), name)
    assert_nothing_left(llm)
    assert _free(llm) == free


def test_abort_frees_the_blocks_of_all_lanes_before_the_next_step(llm: LLM) -> None:
    options = PLAIN | {"guidance_lanes": THREE_LANES}
    free = _free(llm)
    _add(llm, "alone", Case(text="alone", options=options))
    for _ in range(6):
        llm.llm_engine.step()
    assert _free(llm) <= free - 3
    llm.llm_engine.abort_request(["alone"])
    assert _free(llm) == free
    assert_nothing_left(llm)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 8, 20])
def test_groups_go_on_when_all_are_preempted_at_once(
    llm: LLM, model: Callable[[str], Model], num_steps: int
) -> None:
    """With asynchronous scheduling this drops the output that is on its way."""
    core: Any = llm.llm_engine.engine_core
    long = {"negative_prompt_token_ids": speech_prompt(100, seed=16)}
    crowd = {
        "a": Case(text="one", options=GUIDED | long),
        "b": Case(text="two", options=GUIDED | {"guidance_interval": (1, 12)}),
        "c": Case(text="three", options=SAMPLED | {"seed": 1, "guidance_lanes": THREE_LANES}),
        "d": Case(text="not guided", options=PLAIN),
    }
    for name, case in crowd.items():
        _add(llm, f"reset-{num_steps}-{name}", case)
    finished: dict[str, Any] = {}
    step = 0
    while llm.llm_engine.has_unfinished_requests():
        if step in (num_steps, num_steps + 1):
            assert core.engine_core.reset_prefix_cache(reset_running_requests=True)
        finished |= {output.request_id: output for output in llm.llm_engine.step()}
        step += 1
    assert step > num_steps + 1
    for name, case in crowd.items():
        expected = model(NAME).expected(case)
        assert_equals(finished[f"reset-{num_steps}-{name}"], expected, str(case))
    assert_nothing_left(llm)
