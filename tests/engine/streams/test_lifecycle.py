# SPDX-License-Identifier: Apache-2.0
"""How requests end: by themselves, at a limit, aborted, or failed alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.streams.cases import (
    MAX_MODEL_LEN,
    SAMPLES_PER_FRAME,
    Case,
    assert_equals,
    comparable,
    noise_clip,
)
from tests.engine.streams.conftest import open_engine
from tests.engine.streams.reference import Reference
from vllm import LLM, RequestOutput
from vllm.unison.testing.random_checkpoint import BEGIN_AUDIO, END_TOKEN, FIRST_TEXT

NAME = "llama"
CROWD = [
    Case(text="one", options={"max_tokens": 30}),
    Case(text="two and two", options={"max_tokens": 25, "ignore_eos": True}),
    Case(clip=noise_clip(30, seed=1), options={"max_tokens": 20, "ignore_eos": True}),
    Case(text="four", options={"max_tokens": 40, "seed": 1, "temperature": 1.0}),
    Case(text="five", clip=noise_clip(20, seed=2), options={"max_tokens": 30, "min_tokens": 20}),
]


@pytest.fixture(scope="module", params=[False, True], ids=["synchronous", "asynchronous"])
def llm(checkpoint: Callable[[str], Path], request: pytest.FixtureRequest) -> Iterator[LLM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNISON_CPU_ASYNC_SCHEDULING", str(int(request.param)))
        with open_engine(checkpoint(NAME), max_num_batched_tokens=64) as llm:
            scheduler_config = llm.llm_engine.vllm_config.scheduler_config
            assert scheduler_config.async_scheduling is request.param
            yield llm


@pytest.fixture
def delays(reference: Callable[[str], Reference]) -> list[int]:
    return reference(NAME).delays


def _core(llm: LLM) -> Any:
    return llm.llm_engine.engine_core.engine_core  # type: ignore[attr-defined]


def _runner(llm: LLM) -> Any:
    return _core(llm).model_executor.driver_worker.worker.model_runner


def _free_blocks(llm: LLM) -> int:
    return _core(llm).scheduler.kv_cache_manager.block_pool.get_num_free_blocks()


def _generate(llm: LLM, cases: list[Case]) -> list[RequestOutput]:
    return llm.generate([c.prompt for c in cases], [c.params for c in cases], use_tqdm=False)


def _assert_serves(llm: LLM, reference: Callable[[str], Reference]) -> None:
    """The engine gives right answers, and nothing of earlier requests is left."""
    for case, output in zip(CROWD[:2], _generate(llm, CROWD[:2]), strict=True):
        assert_equals(output, case.expected(reference(NAME)))
    assert not llm.llm_engine.has_unfinished_requests()
    blocks = _core(llm).scheduler.kv_cache_manager.block_pool
    assert blocks.get_num_free_blocks() == blocks.num_gpu_blocks - 1  # without the null block
    assert _runner(llm).adapter.worker.slots.num_slots_in_use() <= 2


@pytest.mark.parametrize("num_steps", [0, 1, 2, 5, 14])
def test_aborted_requests_leave_nothing_behind(
    llm: LLM, reference: Callable[[str], Reference], num_steps: int
) -> None:
    _assert_serves(llm, reference)
    free = _free_blocks(llm)
    engine = llm.llm_engine
    for index, case in enumerate(CROWD):
        engine.add_request(f"{num_steps}-{index}", case.prompt, case.params)
    finished: dict[str, RequestOutput] = {}

    def step() -> None:
        for output in engine.step():
            assert isinstance(output, RequestOutput)
            if output.finished:
                finished[output.request_id] = output

    for _ in range(num_steps):
        step()
    if num_steps > 1:
        assert _free_blocks(llm) < free
        assert _runner(llm).adapter.worker.slots.num_slots_in_use() > 0
    engine.abort_request([f"{num_steps}-{index}" for index in (0, 2, 4)])
    while engine.has_unfinished_requests():
        step()
    assert set(finished) - {f"{num_steps}-{i}" for i in (0, 2, 4)} == {
        f"{num_steps}-{i}" for i in (1, 3)
    }
    for index in (1, 3):
        assert_equals(finished[f"{num_steps}-{index}"], CROWD[index].expected(reference(NAME)))
    # All at once, in the middle of generation.
    for index, case in enumerate(CROWD):
        engine.add_request(f"{num_steps}-all-{index}", case.prompt, case.params)
    for _ in range(num_steps):
        step()
    engine.abort_request([f"{num_steps}-all-{index}" for index in range(len(CROWD))])
    assert not engine.has_unfinished_requests()
    _assert_serves(llm, reference)
    assert _free_blocks(llm) == free


@pytest.mark.parametrize("num_steps", [1, 3, 6, 11])
def test_requests_go_on_when_all_are_preempted_at_once(
    llm: LLM, reference: Callable[[str], Reference], num_steps: int
) -> None:
    """With asynchronous scheduling this drops the output that is on its way."""
    engine = llm.llm_engine
    for index, case in enumerate(CROWD):
        engine.add_request(f"reset-{num_steps}-{index}", case.prompt, case.params)
    finished: dict[str, Any] = {}
    for step in range(1000):
        if step in (num_steps, num_steps + 1):
            assert _core(llm).reset_prefix_cache(reset_running_requests=True)
        finished |= {output.request_id: output for output in engine.step() if output.finished}
        if not engine.has_unfinished_requests():
            break
    assert step > num_steps + 1
    for index, case in enumerate(CROWD):
        expected = case.expected(reference(NAME))
        assert_equals(finished[f"reset-{num_steps}-{index}"], expected, str(case))
    _assert_serves(llm, reference)


def test_ignoring_the_end_gives_exactly_max_tokens_frames(llm: LLM, delays: list[int]) -> None:
    lengths = [1, 2, 7, 31]
    cases = [Case(text="on", options={"max_tokens": n, "ignore_eos": True}) for n in lengths]
    for length, output in zip(lengths, _generate(llm, cases), strict=True):
        completion = output.outputs[0]
        assert completion.finish_reason == "length"
        assert completion.audio is not None
        assert completion.audio.codes.shape == (length, len(delays))
        assert completion.audio.samples.shape == (length * SAMPLES_PER_FRAME,)
        assert completion.audio.seconds == pytest.approx(length * SAMPLES_PER_FRAME / 16000)
        assert len(completion.token_ids) == length + max(delays)
        assert END_TOKEN not in completion.token_ids


def test_an_ended_request_runs_on_until_its_last_stream_has_ended(
    llm: LLM, delays: list[int]
) -> None:
    """Also when the first token is the end: then there is audio without frames."""
    options = {"max_tokens": 200, "temperature": 1.0, "stream_temperature": 40.0}
    cases = [Case(text="stop", options=options | {"seed": seed}) for seed in range(150)]
    num_frames = set()
    for output in _generate(llm, cases):
        completion = output.outputs[0]
        ids = list(completion.token_ids)
        assert completion.audio is not None
        codes, samples = completion.audio.codes, completion.audio.samples
        if completion.finish_reason == "stop":
            end = ids.index(END_TOKEN)
            assert len(ids) == end + max(delays)
            assert codes.shape == (end, len(delays))
        num_frames.add(len(codes))
        assert samples.shape == (len(codes) * SAMPLES_PER_FRAME,)
        assert ((codes >= 0) & (codes < 64)).all()
    assert 0 in num_frames and max(num_frames) > 50


def test_min_tokens_keeps_requests_from_ending(llm: LLM) -> None:
    options = {"max_tokens": 200, "temperature": 1.0, "stream_temperature": 40.0}
    cases = [
        Case(text="stop", options=options | {"seed": seed, "min_tokens": 12}) for seed in range(60)
    ]
    ends = []
    for output in _generate(llm, cases):
        ids = list(output.outputs[0].token_ids)
        if output.outputs[0].finish_reason == "stop":
            ends.append(ids.index(END_TOKEN))
    # With nothing that keeps it, about one request in six would have ended by then.
    assert 12 <= min(ends) <= 30


@pytest.mark.parametrize("max_tokens", [None, 1, 2, 1000])
def test_requests_end_at_the_edge_of_the_context(
    llm: LLM, reference: Callable[[str], Reference], delays: list[int], max_tokens: int | None
) -> None:
    room = MAX_MODEL_LEN - max(delays)
    cases = []
    for missing in (1, 2, 20):
        ids = (*range(FIRST_TEXT, FIRST_TEXT + 200), *[FIRST_TEXT] * 60)[: room - missing - 1]
        options = {"max_tokens": max_tokens, "ignore_eos": True}
        cases.append(Case(token_ids=(*ids, BEGIN_AUDIO), options=options))
    for missing, case, output in zip((1, 2, 20), cases, _generate(llm, cases), strict=True):
        limit = missing if max_tokens is None else min(missing, max_tokens)
        completion = output.outputs[0]
        assert completion.audio is not None
        assert len(completion.audio.codes) == limit
        assert completion.finish_reason == "length"
        expected = case.with_options(max_tokens=limit).expected(reference(NAME))
        assert_equals(output, expected)


def test_the_waveform_is_the_codecs(llm: LLM, checkpoint: Callable[[str], Path]) -> None:
    from transformers import AutoModel

    output = _generate(llm, CROWD[:1])[0]
    audio = output.outputs[0].audio
    assert audio is not None
    codec = AutoModel.from_pretrained(checkpoint(NAME) / "codec").eval()
    with torch.inference_mode():
        codes = torch.from_numpy(audio.codes.T[None]).long()
        samples = codec.decode(audio_codes=codes).audio_values[0].numpy()
    length = min(len(samples), len(audio.samples))
    assert len(audio.samples) - length < SAMPLES_PER_FRAME
    np.testing.assert_allclose(audio.samples[:length], samples[:length], atol=1e-5)


def _assert_one_fails(llm: LLM, expected: list[Any], words: str) -> int:
    """Index of the one request that fails; all others give what they always do."""
    failed = []
    for index, output in enumerate(_generate(llm, CROWD)):
        completion = output.outputs[0]
        if completion.finish_reason == "error":
            failed.append(index)
            assert words in str(completion.stop_reason)
            assert completion.audio is None
        else:
            assert comparable(output) == expected[index], CROWD[index]
    (index,) = failed
    return index


@pytest.mark.parametrize("head", ["audio_logits", "text_logits"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_unusable_logits_fail_their_request_alone(
    llm: LLM,
    reference: Callable[[str], Reference],
    monkeypatch: pytest.MonkeyPatch,
    head: str,
    value: float,
) -> None:
    expected = [comparable(output) for output in _generate(llm, CROWD)]
    model = _runner(llm).model
    plain = getattr(model, head)
    calls = 0

    def broken(hidden_states: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        logits = plain(hidden_states)
        if calls == 9:
            # In the audio head a candidate of the last stream; its very last may be padding.
            logits[0, -3 if head == "audio_logits" else logits.shape[1] // 2] = value
        return logits

    monkeypatch.setattr(model, head, broken)
    failed = _assert_one_fails(llm, expected, "logits")
    assert (CROWD[failed].text is None) == (head == "text_logits")
    monkeypatch.undo()
    _assert_serves(llm, reference)


def test_a_failing_codec_fails_its_request_alone(
    llm: LLM, reference: Callable[[str], Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [comparable(output) for output in _generate(llm, CROWD)]
    codec = _runner(llm).adapter.worker._audio._decoder._codec
    plain = codec.decode

    def broken(codes: torch.Tensor) -> torch.Tensor:
        if len(codes) == 25:
            raise RuntimeError("out of tune")
        return plain(codes)

    monkeypatch.setattr(codec, "decode", broken)
    assert _assert_one_fails(llm, expected, "out of tune") == 1
    monkeypatch.undo()
    _assert_serves(llm, reference)
