# SPDX-License-Identifier: Apache-2.0
"""Contract 6 in the engine: streamed audio is the offline audio, however it is scheduled."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.audio.streams import (
    SMALL_CHUNKS,
    assert_stream_is,
    assert_streams_are,
    generate,
    num_pieces,
    stream,
)
from tests.engine.streams.cases import Case, comparable, noise_clip
from tests.engine.streams.conftest import open_engine
from vllm import LLM, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.unison.testing.random_checkpoint import (
    BEGIN_AUDIO,
    BEGIN_TEXT,
    FIRST_TEXT,
    stream_layout,
    write_random_speech_lm,
)

DELTA, CUMULATIVE = RequestOutputKind.DELTA, RequestOutputKind.CUMULATIVE
CHUNKED = {"max_num_batched_tokens": 16}
TINY_CACHE = {"num_gpu_blocks_override": 13}
CACHED = {"enable_prefix_caching": True}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "preemption, tokens 16, prefix cache": TINY_CACHE | CHUNKED | CACHED,
    "asynchronous, preemption, tokens 16, few rows": TINY_CACHE
    | CHUNKED
    | {"asynchronous": True, "max_num_seqs": 5},
}


MIXED = [
    Case(
        text=f"a request of some length, number {index}",
        options={"max_tokens": 130 - 9 * index, "min_tokens": 60, "seed": index}
        | ({"temperature": 0.8} if index % 2 else {"ignore_eos": True}),
    )
    for index in range(7)
] + [
    Case(clip=noise_clip(45, seed=1), options={"max_tokens": 40, "min_tokens": 40}),
    Case(text="say this", clip=noise_clip(60, seed=2), options={"max_tokens": 60}),
    Case(token_ids=(*range(FIRST_TEXT, FIRST_TEXT + 60), BEGIN_AUDIO), options={"max_tokens": 50}),
]


def _runner(llm: LLM) -> Any:
    core: Any = llm.llm_engine.engine_core
    return core.engine_core.model_executor.driver_worker.worker.model_runner


def _free_blocks(llm: LLM) -> int:
    core: Any = llm.llm_engine.engine_core
    return core.engine_core.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()


@pytest.mark.parametrize("configuration", list(CONFIGURATIONS))
def test_streams_are_the_audio_of_the_end(
    configuration: str,
    checkpoint: Callable[[str], Path],
    preempted: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = dict(CONFIGURATIONS[configuration])
    asynchronous = options.pop("asynchronous", False)
    monkeypatch.setenv("UNISON_CPU_ASYNC_SCHEDULING", str(int(asynchronous)))
    with open_engine(checkpoint("llama"), additional_config=SMALL_CHUNKS, **options) as llm:
        whole = generate(llm, MIXED)
        del preempted[:]
        for kind in (DELTA, CUMULATIVE):
            streams = stream(llm, MIXED, kind)
            assert_streams_are(streams, whole, kind)
            if kind == DELTA:
                assert max(num_pieces(outputs[0]) for outputs in streams) >= 7
        # In the middle of their audio, which had to go on.
        middle = [count for count in preempted if count]
        assert (len(middle) >= 2) == ("num_gpu_blocks_override" in options), preempted


@pytest.mark.parametrize("kind", ["encodec", "mimi"])
def test_codecs_that_carry_a_state_survive_preemption(
    kind: str, model_of_codec: Callable[[str], Path], preempted: list[int]
) -> None:
    cases = [
        Case(
            text=f"request {i}",
            options={"max_tokens": 140 - 5 * i, "ignore_eos": True, "seed": i, "temperature": 0.9},
        )
        for i in range(6)
    ]
    options = TINY_CACHE | {"additional_config": SMALL_CHUNKS}
    with open_engine(model_of_codec(kind), **options) as llm:
        whole = generate(llm, cases)
        del preempted[:]
        assert_streams_are(stream(llm, cases, DELTA), whole, DELTA)
        assert sum(count > 0 for count in preempted) >= 2, preempted


def test_audio_of_several_phases(checkpoint: Callable[[str], Path], preempted: list[int]) -> None:
    cases = [
        Case(text=f"request {i}", options={"max_tokens": 110, "min_tokens": 80 + i})
        for i in range(4)
    ]
    cases += [
        Case(
            token_ids=(BEGIN_TEXT, FIRST_TEXT + i),
            options={"max_tokens": 150, "seed": i, "ignore_eos": True, "temperature": 1.0},
        )
        for i in range(6)
    ]
    options = {"num_gpu_blocks_override": 10, "additional_config": SMALL_CHUNKS}
    with open_engine(checkpoint("switching"), **options) as llm:
        whole = generate(llm, cases)
        assert_streams_are(stream(llm, cases, DELTA), whole, DELTA)
        assert sum(count > 0 for count in preempted) >= 2, preempted


CROWD = [
    Case(text="one", options={"max_tokens": 30}),
    Case(text="two and two", options={"max_tokens": 45, "ignore_eos": True}),
    Case(clip=noise_clip(30, seed=1), options={"max_tokens": 20, "ignore_eos": True}),
    Case(text="four", options={"max_tokens": 40, "seed": 1, "temperature": 1.0}),
    Case(text="guided", options={"max_tokens": 40, "ignore_eos": True, "guidance_scale": 2.0}),
    Case(
        text="guided samples",
        options={
            "max_tokens": 50,
            "ignore_eos": True,
            "guidance_scale": 3.0,
            "seed": 5,
            "temperature": 0.8,
            "n": 3,
        },
    ),
    Case(text="samples", options={"max_tokens": 30, "seed": 7, "temperature": 0.8, "n": 2}),
]


@pytest.fixture(scope="module", params=[False, True], ids=["synchronous", "asynchronous"])
def llm(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[LLM]:
    layout = stream_layout(4, delays=[0, 3, 1, 5])
    folder = write_random_speech_lm(tmp_path_factory.mktemp("crowd"), layout=layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNISON_CPU_ASYNC_SCHEDULING", str(int(request.param)))
        with open_engine(folder, additional_config=SMALL_CHUNKS, max_num_seqs=32) as llm:
            yield llm


@pytest.fixture
def whole(llm: LLM) -> list[RequestOutput]:
    return generate(llm, CROWD)


def _assert_nothing_left(llm: LLM, free: int) -> None:
    # The worker learns with the next step what has ended.
    generate(llm, [Case(text="x", options={"max_tokens": 1})])
    executor = _runner(llm).adapter.worker._audio.executor
    assert executor.num_streams() == 0 and executor.num_bytes() == 0
    assert _free_blocks(llm) == free


@pytest.mark.parametrize("kind", [DELTA, CUMULATIVE])
def test_guided_requests_and_several_samples(
    llm: LLM, whole: list[RequestOutput], kind: RequestOutputKind
) -> None:
    free = _free_blocks(llm)
    assert [len(request.outputs) for request in whole] == [1, 1, 1, 1, 1, 3, 2]
    streams = stream(llm, CROWD, kind)
    assert_streams_are(streams, whole, kind)
    assert min(num_pieces(streams[5][index]) for index in range(3)) >= 5
    _assert_nothing_left(llm, free)


@pytest.mark.parametrize("num_step", [9, 18, 19])
def test_all_are_preempted_at_once(llm: LLM, whole: list[RequestOutput], num_step: int) -> None:
    """With asynchronous scheduling this drops the output that is on its way, audio included."""
    core: Any = llm.llm_engine.engine_core

    def reset(step: int) -> None:
        if step in (num_step, num_step + 1):
            assert core.engine_core.reset_prefix_cache(reset_running_requests=True)

    assert_streams_are(stream(llm, CROWD, DELTA, reset), whole, DELTA)


@pytest.mark.parametrize("num_steps", [1, 12, 25])
def test_aborted_requests_leave_nothing_behind(llm: LLM, num_steps: int) -> None:
    free = _free_blocks(llm)
    engine = llm.llm_engine
    names = [f"abort-{num_steps}-{index}" for index in range(len(CROWD))]
    for name, case in zip(names, CROWD, strict=True):
        engine.add_request(name, case.prompt, case.with_options(output_kind=DELTA).params)
    for _ in range(num_steps):
        engine.step()
    executor = _runner(llm).adapter.worker._audio.executor
    if num_steps > 1:
        assert executor.num_streams() > 0
    engine.abort_request(names)
    assert not engine.has_unfinished_requests()
    _assert_nothing_left(llm, free)


def test_a_failing_codec_fails_its_request_alone(
    llm: LLM, whole: list[RequestOutput], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second chunk, so that its first stays."""
    assert whole[1].outputs[0].audio is not None
    codes = whole[1].outputs[0].audio.codes[:16]
    codec = _runner(llm).adapter.worker._audio._decoder._codec
    plain = codec._decode

    def broken(batch: torch.Tensor) -> torch.Tensor:
        if any(np.array_equal(row[:16].numpy(), codes) for row in batch):
            raise RuntimeError("out of tune")
        return plain(batch)

    monkeypatch.setattr(codec, "_decode", broken)
    free = _free_blocks(llm)
    streams = stream(llm, CROWD, DELTA)
    monkeypatch.undo()
    last = streams[1][0][-1]
    assert last.finish_reason == "error" and "out of tune" in str(last.stop_reason)
    pieces = [output.audio for output in streams[1][0] if output.audio is not None]
    assert [len(piece.codes) for piece in pieces] == [2]
    del streams[1], whole[1]
    assert_streams_are(streams, whole, DELTA)
    _assert_nothing_left(llm, free)


def test_a_request_that_is_all_prompt_and_end(llm: LLM) -> None:
    """Audio without a frame is told, as it is at the end."""
    options = {"max_tokens": 30, "temperature": 1.0, "stream_temperature": 60.0}
    cases = [Case(text="stop", options=options | {"seed": seed}) for seed in range(40)]
    whole = generate(llm, cases)
    lengths = [len(request.outputs[0].audio.codes) for request in whole]  # type: ignore[union-attr]
    assert 0 in lengths
    assert_streams_are(stream(llm, cases, DELTA), whole, DELTA)


def test_audio_at_the_end_does_not_depend_on_streams_beside_it(llm: LLM) -> None:
    """Bit by bit, while streams need not be: a call for several may round in another way."""
    alone = [comparable(output) for output in generate(llm, CROWD[1:4])]
    engine = llm.llm_engine
    for index, case in enumerate(CROWD):
        params = case.with_options(output_kind=DELTA).params
        engine.add_request(f"beside-{index}", case.prompt, params)
    for index, case in enumerate(CROWD[1:4]):
        params = case.with_options(output_kind=RequestOutputKind.FINAL_ONLY).params
        engine.add_request(f"whole-{index}", case.prompt, params)
    found: dict[str, RequestOutput] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                found[output.request_id] = output  # type: ignore[assignment]
    assert [comparable(found[f"whole-{index}"]) for index in range(3)] == alone


def test_frames_with_codes_outside_the_codebook(tmp_path: Path) -> None:
    """A prompt's suffix may put pads into the first generated frames."""
    folder = write_random_speech_lm(tmp_path, layout=stream_layout(3, delays=[0, 0, 4]))
    config = json.loads((folder / "config.json").read_text())
    # Stream 1 is not delayed, but the suffix is as long as the longest delay.
    suffix = np.full((4, 2), -1, np.int32)
    suffix[1:3, 0] = 0
    prompt = np.zeros((2, 2), np.int32)
    case = Case(
        token_ids=(FIRST_TEXT, BEGIN_AUDIO),
        auxiliary_ids=np.concatenate([prompt, suffix]),
        options={"max_tokens": 20, "ignore_eos": True},
    )
    for rule, num_frames in (("fail", None), ("drop", 18), (7, 20)):
        config["stream_layout"]["outside_codebook"] = rule
        (folder / "config.json").write_text(json.dumps(config))
        with open_engine(folder, additional_config=SMALL_CHUNKS) as llm:
            (whole,) = generate(llm, [case])
            (streamed,) = stream(llm, [case], DELTA)
        completion = whole.outputs[0]
        if num_frames is None:
            for last in (completion, streamed[0][-1]):
                assert last.finish_reason == "error" and last.audio is None
                assert "code -336 in codebook 1, which must be in [0, 63]" in str(last.stop_reason)
            continue
        assert completion.audio is not None
        assert len(completion.audio.codes) == num_frames
        if rule == 7:
            assert completion.audio.codes[1:3, 1].tolist() == [7, 7]
        assert_stream_is(streamed[0], completion, DELTA)
