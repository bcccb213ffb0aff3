# SPDX-License-Identifier: Apache-2.0
"""Audio longer than a window, streamed: what `windows` does for `LLM.generate`, for a server.

The engine's own samples of a window begin anew with it, so they are dropped, and the codes of all
windows are decoded here, in the chunks in which they come.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from vllm.sampling_params import RequestOutputKind
from vllm.unison.audio_decoder.codec_stream import HostCodecStream
from vllm.unison.audio_decoder.decode_state import RequestDecodeState
from vllm.unison.audio_decoder.pipeline import StagePipeline
from vllm.unison.audio_decoder.windows import frames_needed
from vllm.unison.codecs.base import Codec
from vllm.unison.frontend.windows import LongRequest
from vllm.unison.messages.streams import AudioOutput

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams

Start = Callable[[dict[str, Any], "SamplingParams", int], AsyncGenerator["RequestOutput", None]]
"""Starts the request for a window, given its prompt, its parameters and its number."""


class ClipDecoder:
    """Decodes one clip's frames as they come, on the CPU.

    Args:
        codec: the model's codec, on the CPU.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._no_codes = np.empty((0, codec.num_codebooks), np.int32)
        stages = codec.decoder_stages()
        self._pipeline: StagePipeline | None = None
        self._held = self._no_codes
        if stages is not None:
            self._stream = HostCodecStream()
            self._pipeline = StagePipeline(stages, self._stream)
            contexts, has_state = self._pipeline.contexts, self._pipeline.has_state
            self._state = RequestDecodeState("", contexts, has_state, self._no_codes, 0)

    def push(self, codes: NDArray[np.int32], ends: bool) -> AudioOutput:
        """The audio that is complete with some more frames; all that is left, if it ends.

        Raises:
            RuntimeError: the codec failed.
        """
        if self._pipeline is None:
            self._held = np.concatenate([self._held, codes])
            if not ends:
                return self._output(self._codec.no_samples(), self._no_codes)
            return self._output(self._codec.decode(torch.from_numpy(self._held)), self._held)
        state = self._state
        state.feed(codes)
        done = stop = state.num_emitted
        if ends:
            stop = state.num_frames
        else:
            while frames_needed(self._pipeline.contexts, stop + 1) <= state.num_frames:
                stop += 1
        if stop == done:
            return self._output(self._codec.no_samples(), self._no_codes)
        with self._stream.running():
            self._pipeline.decode([(state, [stop])])
        if state.error is not None:
            raise RuntimeError(state.error)
        samples, state.samples = torch.cat(state.samples).flatten(0, 1), []
        return self._output(samples, state.take_codes(stop - done))

    def _output(self, samples: torch.Tensor, codes: NDArray[np.int32]) -> AudioOutput:
        return AudioOutput(samples.numpy(), self._codec.sample_rate, codes)


async def stream_windows(
    request: LongRequest, start: Start, codec: Codec
) -> AsyncGenerator[RequestOutput, None]:
    """The outputs of a long request of one completion, deltas as of a request of one window.

    Args:
        request: in windows.
        start: starts each of them.
        codec: the model's codec, on the CPU.
    """
    (made,) = request.completions
    decoder, last = ClipDecoder(codec), len(request.windows) - 1
    for number in range(len(request.windows)):
        prompt, params = request.window(number, 0)
        params.output_kind = RequestOutputKind.DELTA
        async with aclosing(start(prompt, params, number)) as outputs:
            async for output in outputs:
                (completion,) = output.outputs
                made.take(completion)
                fails = completion.finish_reason not in (None, "length")
                ends = number == last and completion.finish_reason is not None
                new = None if completion.audio is None else completion.audio.codes
                if not fails and (ends or new is not None):
                    codes = made.codes[:0] if new is None else new
                    completion.audio = await asyncio.to_thread(decoder.push, codes, ends)
                elif fails:
                    completion.audio = None
                if completion.finish_reason == "length" and not ends:
                    completion.finish_reason, output.finished = None, False
                yield output
                if fails:
                    return
