# SPDX-License-Identifier: Apache-2.0
"""One request after another from HTTP to the engine: prompt, parameters, outputs, usage."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any, cast

from starlette.requests import HTTPConnection, Request

from vllm.engine.protocol import EngineClient
from vllm.entrypoints.generate.base.serving import GenerateBaseServing
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.utils.request_logger import RequestLogger
from vllm.entrypoints.speech.encoding import Encoder, make_encoder
from vllm.entrypoints.speech.media import AudioLimits, Clip, MediaDecoder
from vllm.entrypoints.speech.outcome import failure, incomplete
from vllm.entrypoints.speech.parameters import (
    RecordedVoice,
    SpeechInput,
    plan_request,
    prompt_seconds,
)
from vllm.entrypoints.speech.server.errors import bounded
from vllm.entrypoints.speech.server.parts import split_request
from vllm.entrypoints.speech.server.traces import RequestTrace
from vllm.exceptions import VLLMNotFoundError
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.sampling_params import SamplingParams
from vllm.unison.codecs.of_model import codec_of
from vllm.unison.frontend.defaults import task_defaults
from vllm.unison.frontend.errors import InvalidRequestError
from vllm.unison.frontend.prompts import EXTEND_STRIDE, stream_prompt_builder
from vllm.unison.frontend.streamed_windows import stream_windows
from vllm.unison.frontend.windows import LongRequest, long_request
from vllm.unison.model.spec import SpeechSpec, multistream_spec


@dataclass
class Usage:
    """What a request took.

    Attributes:
        prompt_tokens, completion_tokens: ids of stream 0, and of a text that the model attends to.
        prompt_text_tokens, text_tokens: those that are text.
        prompt_frames, frames: frames of audio.
        prompt_seconds, seconds: length of that audio.
    """

    prompt_tokens: int = 0
    prompt_text_tokens: int = 0
    prompt_frames: int = 0
    prompt_seconds: float = 0.0
    completion_tokens: int = 0
    text_tokens: int = 0
    frames: int = 0
    seconds: float = 0.0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        mine, its = astuple(self), astuple(other)
        return Usage(*(a + b for a, b in zip(mine, its, strict=True)))


class Generation:
    """A request that runs in the engine; iterate over its outputs, deltas of text and audio.

    Closing or cancelling the iteration ends the request in the engine.

    Attributes:
        request_id: as clients see it.
        usage: grows with the outputs.
        temperature: at which text is sampled.
    """

    def __init__(
        self,
        outputs: AsyncGenerator[RequestOutput, None],
        request_id: str,
        spec: SpeechSpec,
        usage: Usage,
        temperature: float = 0.0,
        trace: RequestTrace | None = None,
    ) -> None:
        self.request_id = request_id
        self.usage = usage
        self.temperature = temperature
        self._outputs = outputs
        self._spec = spec
        self._trace = trace
        self._first: RequestOutput | None = None

    async def begin(self) -> None:
        """Wait for the first output, so that what is refused is refused before an answer begins."""
        self._first = await anext(self._outputs)
        _checked(self._first.outputs[0])

    def text_ids(self, completion: CompletionOutput) -> list[int]:
        """The ids of an output that are text."""
        return [token for token in completion.token_ids if self._spec.layout.is_text(token)]

    async def aclose(self) -> None:
        """End the request, if it runs."""
        await self._outputs.aclose()

    async def __aiter__(self) -> AsyncIterator[CompletionOutput]:
        assert self._first is not None, "begin() comes first"
        try:
            last = self._count(self._first)
            yield last
            async for output in self._outputs:
                last = _checked(self._count(output))
                yield last
            if last.finish_reason is None:
                raise incomplete()
        finally:
            if self._trace is not None:
                self._trace.end(self.usage.seconds)
            await self._outputs.aclose()

    def _count(self, output: RequestOutput) -> CompletionOutput:
        completion = output.outputs[0]
        usage, layout = self.usage, self._spec.layout
        usage.completion_tokens += len(completion.token_ids)
        usage.text_tokens += sum(map(layout.is_text, completion.token_ids))
        if completion.audio is not None:
            usage.frames += len(completion.audio.codes)
            usage.seconds += completion.audio.seconds
            if self._trace is not None and len(completion.audio.samples):
                self._trace.note_audio()
        return completion


def _checked(completion: CompletionOutput) -> CompletionOutput:
    if error := failure(completion):
        raise error
    return completion


class SpeechService(GenerateBaseServing):
    """What the routes of a multi-stream model share.

    Attributes:
        spec: the model's specification.
        media: decodes audio files, of any length that the server takes.
        sample_rate: Hz of the model's audio; 0 for a model without a codec.
        num_channels: of the model's audio.
        recorded_voices: by name, those that the operator adds to the model's.
        voice_aliases: names that stand for voices.
    """

    def __init__(
        self,
        engine_client: EngineClient,
        models: OpenAIServingModels,
        *,
        request_logger: RequestLogger | None = None,
        voice_aliases: Mapping[str, str] | None = None,
        recorded_voices: Mapping[str, RecordedVoice] | None = None,
    ) -> None:
        super().__init__(engine_client, models, request_logger=request_logger)
        spec = multistream_spec(self.model_config)
        assert spec is not None
        self.spec = spec
        self.voice_aliases = dict(voice_aliases or {})
        self.recorded_voices = dict(recorded_voices or {})
        self._frame_seconds = 0.0
        self.sample_rate, self.num_channels = 0, 1
        if spec.has_codec:
            codec = codec_of(spec, "cpu")
            self.sample_rate, self.num_channels = codec.sample_rate, codec.num_channels
            self._frame_seconds = codec.samples_per_frame / codec.sample_rate
        self.media = MediaDecoder(AudioLimits.from_environment(math.inf))
        self._defaults = task_defaults(self.model_config)

    @property
    def context_seconds(self) -> float:
        """Length of the audio that the model's context has room for, with nothing beside it."""
        return self.model_config.max_model_len * self._frame_seconds

    async def clip(self, data: bytes | str, field: str) -> Clip:
        """Decode a file, or base64, of audio that is to be laid into a prompt.

        Raises:
            InvalidRequestError: naming the field.
        """
        clip = await self.media.decode(data, field)
        if clip.seconds > self.context_seconds:
            raise InvalidRequestError(
                f"{field} must be at most {self.context_seconds:g} seconds long, which the model's "
                f"context holds, not {clip.seconds:g}"
            )
        return clip

    def encoder(self, audio_format: str, is_whole: bool = False) -> Encoder:
        """Writes the model's audio; see `make_encoder`."""
        return make_encoder(audio_format, self.sample_rate, is_whole, self.num_channels)

    def check_model(self, model: str | None) -> str:
        """The name of the model that serves a request.

        Raises:
            VLLMNotFoundError: if it asks for another model.
        """
        if not self._is_model_supported(model):
            served = ", ".join(path.name for path in self.models.base_model_paths)
            raise VLLMNotFoundError(bounded(f"model must be one of {served}, not {model!r}"))
        return model or self.models.base_model_paths[0].name

    def check(self, model: str | None) -> str:
        """As `check_model`, for a request that is to start now.

        Raises:
            GracefulHTTPError: if the server has as many requests as it may.
        """
        name = self.check_model(model)
        self._preflight()
        return name

    def plan(self, request: SpeechInput) -> tuple[dict[str, Any], SamplingParams]:
        """The prompt and the sampling parameters of a request; see `plan_request`.

        Raises:
            InvalidRequestError: naming the field.
        """
        try:
            return self._plan(request)
        except InvalidRequestError as error:
            raise request.fields.rename(error) from error

    def _plan(self, request: SpeechInput) -> tuple[dict[str, Any], SamplingParams]:
        return plan_request(
            self.spec, self._defaults, request, self.voice_aliases, self.recorded_voices
        )

    async def start(
        self, raw_request: HTTPConnection, prefix: str, request: SpeechInput
    ) -> Generation:
        """Start a request and wait for its first output.

        Args:
            raw_request: for its headers.
            prefix: of the request's id.
            request: what the client asks for.

        Raises:
            InvalidRequestError: naming the field.
        """
        try:
            return await self._start(raw_request, prefix, request)
        except InvalidRequestError as error:
            raise request.fields.rename(error) from error

    async def start_all(
        self, raw_request: HTTPConnection, prefix: str, requests: Sequence[SpeechInput]
    ) -> list[Generation]:
        """Start requests that run at once; all of them, or none.

        Raises:
            InvalidRequestError: naming the field.
        """
        prefixes = [f"{prefix}-{index}" for index in range(len(requests))]
        if len(requests) == 1:
            prefixes = [prefix]
        starts = [
            asyncio.ensure_future(self.start(raw_request, *item))
            for item in zip(prefixes, requests, strict=True)
        ]
        try:
            return list(await asyncio.gather(*starts))
        except BaseException:
            for start in starts:
                start.cancel()
            for made in await asyncio.gather(*starts, return_exceptions=True):
                if isinstance(made, Generation):
                    await made.aclose()
            raise

    def parts(self, request: SpeechInput) -> list[SpeechInput]:
        """See `split_request`."""
        context = self.model_config.max_model_len
        return split_request(self.spec, self._defaults, request, context)

    async def _start(
        self, raw_request: HTTPConnection, prefix: str, request: SpeechInput
    ) -> Generation:
        # It reads the headers alone, which a WebSocket has, too.
        request_id = f"{prefix}-{self._base_request_id(cast(Request, raw_request))}"
        headers = await self._get_trace_headers(raw_request.headers)
        is_traced = await self.engine_client.is_tracing_enabled()
        trace = RequestTrace(request_id, headers) if is_traced else None
        prompt, params = self._plan(request)
        seconds = prompt_seconds(prompt)
        windows: LongRequest | None = None
        if EXTEND_STRIDE in prompt["mm_processor_kwargs"]:
            windows = await self._in_windows(prompt, params)
            prompt, params = windows.window(0, 0)
        engine_input = await self._render(prompt)
        if trace is not None:
            trace.note_admission()
        self._log_inputs(request_id, engine_input, params=params, lora_request=None)
        if windows is None:
            outputs = self.engine_client.generate(
                engine_input, params, request_id, trace_headers=headers
            )
        else:
            outputs = stream_windows(
                windows, partial(self._window, request_id, headers), codec_of(self.spec, "cpu")
            )
        generation = Generation(
            outputs,
            request_id,
            self.spec,
            self._prompt_usage(
                engine_input["prompt_token_ids"],
                engine_input.get("encoder_token_ids", []),
                seconds,
            ),
            params.temperature,
            trace,
        )
        await generation.begin()
        return generation

    async def _render(self, prompt: Mapping[str, Any]) -> Any:
        (engine_input,) = await self.renderer.render_cmpl_async(
            [parse_model_prompt(self.model_config, prompt)]
        )
        return engine_input

    async def _in_windows(self, prompt: dict[str, Any], params: SamplingParams) -> LongRequest:
        """A request with `extend_stride`."""
        builder = stream_prompt_builder(self.renderer)
        assert builder is not None
        context = self.model_config.max_model_len
        return await asyncio.to_thread(long_request, builder, self.spec, context, prompt, params)

    async def _window(
        self,
        request_id: str,
        headers: Mapping[str, str] | None,
        prompt: dict[str, Any],
        params: SamplingParams,
        number: int,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Start the request for a window of a longer one."""
        engine_input = await self._render(prompt)
        outputs = self.engine_client.generate(
            engine_input, params, f"{request_id}-window{number}", trace_headers=headers
        )
        async with aclosing(outputs):
            async for output in outputs:
                yield output

    def _prompt_usage(self, token_ids: list[int], encoder_ids: list[int], seconds: float) -> Usage:
        layout = self.spec.layout
        begin, end = layout.slices[0]
        return Usage(
            prompt_tokens=len(token_ids) + len(encoder_ids),
            prompt_text_tokens=sum(map(layout.is_text, token_ids)) + len(encoder_ids),
            prompt_frames=sum(begin <= token < end for token in token_ids),
            prompt_seconds=seconds,
        )
