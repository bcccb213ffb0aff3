# SPDX-License-Identifier: Apache-2.0
"""The windows of a long request as one stream of outputs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.support.musicgen import write_musicgen
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.unison.codecs.base import Codec
from vllm.unison.codecs.of_model import codec_of
from vllm.unison.formats.musicgen import read_musicgen
from vllm.unison.formats.musicgen_spec import spec_of_format
from vllm.unison.frontend.streamed_windows import ClipDecoder, stream_windows
from vllm.unison.frontend.windows import LongRequest, plan_windows, window_seed
from vllm.unison.messages.streams import AudioOutput

BOOKS = 4
GIVEN = np.full((3, BOOKS), 9, np.int32)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    folder: Path = tmp_path_factory.mktemp("musicgen")
    write_musicgen(folder)
    return codec_of(spec_of_format(read_musicgen(folder), str(folder)), "cpu")


def random_codes(count: int) -> NDArray[np.int32]:
    return np.random.default_rng(count).integers(0, 64, (count, BOOKS), np.int32)


@pytest.mark.parametrize("has_stages", [True, False])
@pytest.mark.parametrize("size", [1, 7, 60])
def test_a_clip_in_pieces_is_the_clip_as_a_whole(
    codec: Codec, monkeypatch: pytest.MonkeyPatch, has_stages: bool, size: int
) -> None:
    if not has_stages:
        monkeypatch.setattr(codec, "decoder_stages", lambda: None)
    decoder, codes = ClipDecoder(codec), random_codes(60)
    pieces = [decoder.push(codes[i : i + size], i + size >= 60) for i in range(0, 60, size)]
    assert np.array_equal(np.concatenate([piece.codes for piece in pieces]), codes)
    for piece in pieces:
        assert len(piece.samples) == len(piece.codes) * codec.samples_per_frame
    samples = np.concatenate([piece.samples for piece in pieces])
    np.testing.assert_allclose(samples, codec.decode(torch.from_numpy(codes)), atol=1e-5)
    if has_stages and size == 7:
        assert len(pieces[3].samples) > 0


def piece(codes: NDArray[np.int32] | None, reason: str | None) -> RequestOutput:
    # The engine's own samples of a window, which are not those of the whole.
    audio = None if codes is None else AudioOutput(np.full(5, np.nan, np.float32), 8000, codes)
    completion = CompletionOutput(0, "", [7], None, None, finish_reason=reason, audio=audio)
    return RequestOutput("window", None, [64], None, [completion], finished=reason is not None)


class Engine:
    """Makes codes in pieces of 10 frames; the last window's end may be another one.

    Attributes:
        asked: codes and parameters of every window.
    """

    def __init__(self, codes: NDArray[np.int32], reasons: dict[int, str] | None = None) -> None:
        self._codes, self._reasons = codes, reasons or {}
        self.asked: list[tuple[NDArray[np.int32] | None, SamplingParams]] = []
        self.closed = 0

    async def start(
        self, prompt: dict[str, Any], params: SamplingParams, number: int
    ) -> AsyncGenerator[RequestOutput, None]:
        assert number == len(self.asked) and prompt["prompt"] == "a beat"
        assert params.output_kind is RequestOutputKind.DELTA and params.max_tokens is not None
        self.asked.append((prompt.get("multi_modal_data", {}).get("codes"), params))
        made, self._codes = self._codes[: params.max_tokens], self._codes[params.max_tokens :]
        try:
            for first in range(0, len(made), 10):
                yield piece(made[first : first + 10], None)
            yield piece(None, self._reasons.get(number, "length"))
        finally:
            self.closed += 1


def stream(engine: Engine, codec: Codec, num_new: int, at_most: int = 999) -> list[RequestOutput]:
    request = LongRequest(
        {"prompt": "a beat"}, SamplingParams(seed=3), GIVEN, plan_windows(3, num_new, 30, 20)
    )

    async def collect() -> list[RequestOutput]:
        found: list[RequestOutput] = []
        outputs = stream_windows(request, engine.start, codec)
        async for output in outputs:
            found.append(output)
            if len(found) == at_most:
                await outputs.aclose()
                # At once, not when the garbage is collected.
                assert engine.closed == len(engine.asked)
        return found

    return asyncio.run(collect())


def test_windows_are_one_stream(codec: Codec) -> None:
    codes = random_codes(62)
    engine = Engine(codes)
    outputs = stream(engine, codec, 62)
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    reasons = [output.outputs[0].finish_reason for output in outputs]
    assert reasons == [None] * (len(outputs) - 1) + ["length"]
    audio = [output.outputs[0].audio for output in outputs]
    assert np.array_equal(np.concatenate([a.codes for a in audio if a is not None]), codes)
    samples = np.concatenate([a.samples for a in audio if a is not None])
    np.testing.assert_allclose(samples, codec.decode(torch.from_numpy(codes)), atol=1e-5)
    known = np.concatenate([GIVEN, codes])
    windows = plan_windows(3, 62, 30, 20)
    for number, ((prompt, params), window) in enumerate(zip(engine.asked, windows, strict=True)):
        assert prompt is not None
        assert np.array_equal(prompt, known[window.start : window.start + window.num_prompt])
        assert (params.max_tokens, params.seed) == (window.num_new, window_seed(3, number))
    assert engine.closed == len(windows) == 3


def test_a_window_that_fails_is_the_last(codec: Codec) -> None:
    engine = Engine(random_codes(62), {1: "error"})
    outputs = stream(engine, codec, 62)
    assert outputs[-1].outputs[0].finish_reason == "error" and outputs[-1].finished
    assert outputs[-1].outputs[0].audio is None
    assert len(engine.asked) == engine.closed == 2


def test_leaving_ends_the_window_that_runs(codec: Codec) -> None:
    engine = Engine(random_codes(62))
    assert len(stream(engine, codec, 62, at_most=2)) == 2
    assert len(engine.asked) == engine.closed == 1
