# SPDX-License-Identifier: Apache-2.0
"""Steady steps emit what general ones do, whatever happens between them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vllm.steady.scheduling as steady_scheduling
import vllm.steady.worker as steady_worker
from tests.guidance.engine.cases import Model, speech_prompt
from tests.guidance.engine.conftest import assert_nothing_left, runner_of, scheduler_of
from tests.multistream.engine.cases import BLOCK_SIZE, MAX_MODEL_LEN, Case
from tests.multistream.engine.conftest import open_engine
from vllm import LLM, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

Emitted = dict[str, tuple[list[int], str | None, bytes, int]]


def _traffic(seed: int, count: int = 14) -> list[tuple[int, Case, int | None]]:
    """Requests of every kind: the step before which each comes, and before which it is aborted."""
    source = random.Random(seed)
    traffic = []
    step = 0
    for number in range(count):
        step += source.choice([0, 0, 1, 9, 25])
        options: dict[str, Any] = {
            "max_tokens": source.choice([2, 20, 45, 60]),
            "seed": number,
            "temperature": source.choice([0.0, 1.0]),
            "ignore_eos": source.random() < 0.6,
        }
        options |= source.choice(
            [
                {},
                {"guidance_scale": 3.0},
                {"guidance_scale": 2.0, "guidance_interval": (5, 16)},
                {"guidance_scale": 2.0, "negative_prompt": "something else"},
            ]
        )
        options["output_kind"] = source.choice(list(RequestOutputKind))
        text = "".join(source.choices("abcdefgh ", k=source.choice([1, 8, 30])))
        aborted = step + source.randint(1, 30) if source.random() < 0.15 else None
        traffic.append((step, Case(text=text, options=options), aborted))
    return traffic


def _run(llm: LLM, traffic: list[tuple[int, Case, int | None]]) -> Emitted:
    """Everything that the requests of `traffic` emit, until they end or are aborted."""
    engine = llm.llm_engine
    waiting = {f"r{n}": entry for n, entry in enumerate(traffic)}
    tokens: dict[str, list[int]] = {name: [] for name in waiting}
    samples: dict[str, list[np.ndarray]] = {name: [] for name in waiting}
    emitted: Emitted = {}
    left = dict(waiting)
    step = 0
    while left or engine.has_unfinished_requests():
        for name, (comes, case, _) in list(left.items()):
            if comes <= step:
                engine.add_request(name, case.prompt, case.params)
                del left[name]
        gone = [name for name, entry in waiting.items() if entry[2] == step and name not in left]
        engine.abort_request([name for name in gone if name not in emitted])
        for output in engine.step():
            assert isinstance(output, RequestOutput)
            name, completion = output.request_id, output.outputs[0]
            is_delta = waiting[name][1].params.output_kind == RequestOutputKind.DELTA
            tokens[name] = [*(tokens[name] if is_delta else ()), *completion.token_ids]
            if completion.audio is not None:
                samples[name].append(completion.audio.codes)
            if output.finished:
                codes = samples[name] if is_delta else samples[name][-1:]
                whole = np.concatenate(codes) if codes else np.empty(0)
                reason = completion.finish_reason
                emitted[name] = (tokens[name], reason, whole.tobytes(), len(whole))
        step += 1
    return emitted


def _engine(folder: Path, steady: bool, **options: Any) -> Any:
    return open_engine(folder, additional_config={"steady_decoding": steady}, **options)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_is_emitted_without_steady_steps(
    seed: int, model: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With little memory too, where requests are preempted between steady steps."""
    # What waits to be settled is settled by its number as well as by what happens.
    monkeypatch.setattr(steady_scheduling, "MOST_UNSETTLED", 1 + 4 * seed)
    monkeypatch.setattr(steady_worker, "MOST_STEPS", 2 + seed)
    folder = model("constant").folder
    traffic = _traffic(seed)
    options: dict[str, Any] = {"max_num_seqs": 6 if seed == 1 else 16}
    if seed == 2:
        options["num_gpu_blocks_override"] = MAX_MODEL_LEN // BLOCK_SIZE + 2
    with _engine(folder, False, **options) as llm:
        expected = _run(llm, traffic)
        assert scheduler_of(llm).steady.num_steps == 0
    preempted = []
    preempt = Scheduler._preempt_request

    def counting(self: Scheduler, request: Request, *args: Any, **kwargs: Any) -> None:
        preempted.append(request.request_id)
        preempt(self, request, *args, **kwargs)

    with _engine(folder, True, **options) as llm:
        monkeypatch.setattr(Scheduler, "_preempt_request", counting)
        emitted = _run(llm, traffic)
        steady = scheduler_of(llm).steady
        assert steady.num_steps > 30
        assert_nothing_left(llm)
    assert bool(preempted) == (seed == 2)
    assert emitted.keys() == expected.keys()
    for name in expected:
        assert emitted[name] == expected[name], (name, traffic[int(name[1:])])
    assert sum(entry[3] for entry in emitted.values()) > 50  # frames


def test_steady_steps_settle_what_they_leave_open(model: Callable[[str], Model]) -> None:
    """After steadiness the scheduler, the worker and their history agree on every token."""
    with _engine(model("constant").folder, True) as llm:
        engine, scheduler, runner = llm.llm_engine, scheduler_of(llm), runner_of(llm)
        options = {"max_tokens": 60, "ignore_eos": True, "temperature": 1.0}
        for number, more in enumerate([{}, {"guidance_scale": 3.0}, {}]):
            case = Case(text="abc" * (1 + number), options=options | {"seed": number} | more)
            engine.add_request(f"r{number}", case.prompt, case.params)
        for _ in range(40):
            engine.step()
        assert scheduler.steady.num_steps > 20
        running = list(scheduler.running)
        rows = {r.request_id: r for r in running}
        rows |= {row.row_id: row.request for r in running if r.group for row in r.group.lanes}
        assert len(rows) == 4
        scheduler.steady.end()
        runner._steady.forget()
        for row_id, request in rows.items():
            known = request.num_tokens
            state = runner.requests[row_id]
            assert state.output_token_ids[-20:] == list(request.all_token_ids)[-20:]
            batch_row = runner.input_batch.req_id_to_index[row_id]
            held = runner.input_batch.token_ids_cpu[batch_row, :known].tolist()
            assert held == list(request.all_token_ids)
            assert runner.input_batch.num_tokens_no_spec[batch_row] == known
            slot = runner._streams.slot_of(row_id)
            history = runner._streams.history[slot, known - 20 : known].numpy()
            assert request.streams is not None
            assert (history[:, 1:] == request.streams.ids()[known - 20 : known]).all()
            assert len(request.block_hashes) == known // BLOCK_SIZE
        engine.abort_request(["r0", "r1", "r2"])
        assert_nothing_left(llm)


def _told_per_step(llm: LLM, num_steps: int, **options: Any) -> dict[int, list[int]]:
    """For two requests, streamed and not, how many tokens the front end is told of, by step."""
    engine: Any = llm.llm_engine
    told: dict[int, list[int]] = {0: [], 1: []}
    process = engine.output_processor.process_outputs

    def watching(outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        counts = {int(o.request_id[1]): len(o.new_token_ids) for o in outputs}
        for number in told:
            told[number].append(counts.get(number, 0))
        return process(outputs, *args, **kwargs)

    engine.output_processor.process_outputs = watching
    for number, kind in enumerate([RequestOutputKind.CUMULATIVE, RequestOutputKind.FINAL_ONLY]):
        more = {"max_tokens": num_steps, "ignore_eos": True, "output_kind": kind}
        case = Case(text="abc", options=more | options)
        engine.add_request(f"r{number}", case.prompt, case.params)
    finished = []
    while engine.has_unfinished_requests():
        finished += [output for output in engine.step() if output.finished]
    del engine.output_processor.process_outputs
    assert len(finished) == 2
    for output in finished:
        number = int(output.request_id[1])
        assert isinstance(output, RequestOutput)
        assert sum(told[number]) == len(output.outputs[0].token_ids)
    return told


def test_clients_that_wait_for_the_end_are_told_of_several_tokens(
    model: Callable[[str], Model],
) -> None:
    with _engine(model("constant").folder, True) as llm:
        told = _told_per_step(llm, 50)
        # The prompt's step and the one in which requests end are general ones.
        assert set(told[0]) <= {0, 1}
        assert [count for count in told[1] if count][:3] == [1, 16, 16]
        assert sum(told[0]) == sum(told[1])
        told = _told_per_step(llm, 50, stop=["no such text"], detokenize=True)
        assert told[1] == told[0]
    with _engine(model("constant").folder, True, disable_log_stats=False) as llm:
        told = _told_per_step(llm, 20)
        assert told[1] == told[0]
        assert scheduler_of(llm).steady.num_steps > 10


def test_a_request_that_comes_meets_steady_ones(model: Callable[[str], Model]) -> None:
    """Who waits for a row does not end steadiness; who can enter does."""
    with _engine(model("constant").folder, True, max_num_seqs=2) as llm:
        engine, steady = llm.llm_engine, scheduler_of(llm).steady
        options = {"max_tokens": 40, "ignore_eos": True, "temperature": 0.0}
        for number in range(3):
            case = Case(text="abc", options=options)
            engine.add_request(f"r{number}", case.prompt, case.params)
        for _ in range(10):
            engine.step()
        before = steady.num_steps
        for _ in range(10):
            engine.step()
        assert steady.num_steps == before + 10
        assert len(scheduler_of(llm).waiting) == 1
        engine.abort_request(["r0"])
        engine.step()
        assert steady.num_steps == before + 10
        while engine.has_unfinished_requests():
            engine.step()
        assert steady.num_steps > before + 20


def test_a_prompt_whose_last_chunk_is_one_token(model: Callable[[str], Model]) -> None:
    """That chunk looks like a token that was sampled; its step tells of the prompt's cache hits."""
    case = Case(token_ids=tuple(speech_prompt(33)), options={"max_tokens": 20, "ignore_eos": True})
    with _engine(model("constant").folder, True, max_num_batched_tokens=16) as llm:
        engine, steady = llm.llm_engine, scheduler_of(llm).steady
        engine.add_request("r", case.prompt, case.params)
        outputs = [engine.step() for _ in range(3)]
        assert [len(output) for output in outputs] == [0, 0, 1]
        assert outputs[2][0].num_cached_tokens == 0
        assert steady.num_steps == 0
        engine.step()
        assert steady.num_steps == 1
        engine.abort_request(["r"])
