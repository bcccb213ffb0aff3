# SPDX-License-Identifier: Apache-2.0
"""Requests whose audio is streamed, and what must hold of what they give."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from vllm import LLM, CompletionOutput, RequestOutput, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.unison.audio_decoder.pipeline import TOLERANCE

SMALL_CHUNKS = {"acoustic_decoding": {"first_chunk_frames": 2, "chunk_frames": 7}}
"""Engine option `additional_config` with which short requests have many chunks."""

_numbers = itertools.count()

Outputs = dict[int, list[CompletionOutput]]
"""Per index of a completion its outputs, in order."""


class Request(Protocol):
    """A Case or a MusicCase."""

    @property
    def prompt(self) -> Any:
        """As LLM.generate takes it."""
        ...

    @property
    def params(self) -> SamplingParams:
        """The sampling parameters, which the caller may change."""
        ...


def stream(
    llm: LLM,
    cases: Sequence[Request],
    kind: RequestOutputKind,
    after_step: Callable[[int], None] = lambda step: None,
) -> list[Outputs]:
    """Run requests to their ends; of each its outputs by completion.

    On a GPU the samples of a chunk leave with the step after which they have arrived, so each step
    waits for them: which output holds which chunk then depends on no clock.
    """
    engine, first = llm.llm_engine, next(_numbers) * 1000
    for index, case in enumerate(cases):
        params = case.params
        params.output_kind = kind
        engine.add_request(str(first + index), case.prompt, params)
    found: list[Outputs] = [{} for _ in cases]
    step = 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            assert isinstance(output, RequestOutput)
            for completion in output.outputs:
                own = found[int(output.request_id) - first]
                own.setdefault(completion.index, []).append(completion)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        step += 1
        after_step(step)
    return found


def generate(llm: LLM, cases: Sequence[Request]) -> list[RequestOutput]:
    """The same requests, with all their audio at the end."""
    return llm.generate([c.prompt for c in cases], [c.params for c in cases], use_tqdm=False)


def assert_streams_are(
    streams: Sequence[Outputs], whole: Sequence[RequestOutput], kind: RequestOutputKind
) -> None:
    """Every completion's outputs add up to what its request gives at the end."""
    for outputs, request in zip(streams, whole, strict=True):
        for completion in request.outputs:
            assert_stream_is(outputs[completion.index], completion, kind)


def assert_stream_is(
    outputs: Sequence[CompletionOutput], whole: CompletionOutput, kind: RequestOutputKind
) -> None:
    """One completion's outputs add up to what it gives at the end."""
    last = outputs[-1]
    assert last.finish_reason == whole.finish_reason
    audio = [output.audio for output in outputs if output.audio is not None]
    if kind == RequestOutputKind.DELTA:
        assert [i for output in outputs for i in output.token_ids] == list(whole.token_ids)
        assert "".join(output.text for output in outputs) == whole.text
    else:
        assert list(last.token_ids) == list(whole.token_ids) and last.text == whole.text
    if whole.audio is None:
        assert not audio
        return
    if kind == RequestOutputKind.CUMULATIVE:
        assert last.audio is not None
        for before, after in itertools.pairwise(audio):
            np.testing.assert_array_equal(after.samples[: len(before.samples)], before.samples)
            np.testing.assert_array_equal(after.codes[: len(before.codes)], before.codes)
        audio = audio[-1:]
    codes = np.concatenate([piece.codes for piece in audio])
    samples = np.concatenate([piece.samples for piece in audio])
    np.testing.assert_array_equal(codes, whole.audio.codes)
    assert samples.dtype == np.float32 and samples.shape == whole.audio.samples.shape
    assert {piece.sample_rate for piece in audio} == {whole.audio.sample_rate}
    assert largest_difference(samples, whole.audio.samples) <= TOLERANCE


def largest_difference(samples: Any, expected: Any) -> float:
    """Of two waveforms of one length; 0 for empty ones."""
    return float(np.abs(samples - expected).max(initial=0.0))


def num_pieces(outputs: Sequence[CompletionOutput]) -> int:
    """Outputs that hold audio."""
    return sum(output.audio is not None for output in outputs)
