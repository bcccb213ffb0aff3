# SPDX-License-Identifier: Apache-2.0
"""An engine in this process for one request at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.speech.encoding import Encoder, make_encoder
from vllm.entrypoints.speech.media import AudioLimits, Clip, decode_file
from vllm.entrypoints.speech.outcome import failure, incomplete
from vllm.entrypoints.speech.parameters import RecordedVoice, SpeechInput, plan_request
from vllm.entrypoints.speech.server.parts import join_texts, split_request
from vllm.entrypoints.speech.voice_folder import read_voices
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.unison.codecs.of_model import codec_of
from vllm.unison.frontend.defaults import task_defaults
from vllm.unison.frontend.errors import InvalidRequestError
from vllm.unison.model.spec import multistream_spec
from vllm.usage.usage_lib import UsageContext
from vllm.utils.mem_constants import GiB_bytes
from vllm.v1.engine.llm_engine import LLMEngine

MAX_LANES = 4
"""Rows of the batch; a guided request takes one per lane."""


def kv_cache_bytes(config: VllmConfig, num_lanes: int) -> int:
    """Memory of the KV cache in which this many sequences of the model's context fit, each with a
    text to attend to if the model has an encoder."""
    model, parallel = config.model_config, config.parallel_config
    dtype: Any = model.dtype
    block_size = config.cache_config.block_size or 1
    spec = multistream_spec(model)
    encoder = None if spec is None or spec.melody is not None else spec.text_encoder
    states = 0 if encoder is None else -(-encoder.max_ids // block_size)
    blocks = num_lanes * (-(-model.max_model_len // block_size) + 1 + states) + 1
    per_token = 2 * model.get_num_kv_heads(parallel) * model.get_head_size() * dtype.itemsize
    return int(blocks * block_size * per_token * model.get_num_layers(parallel))


def bounded_kv_cache_bytes(config: VllmConfig, num_lanes: int, limit: int) -> int:
    """As `kv_cache_bytes`, up to a limit, but never less than two sequences need."""
    return max(min(kv_cache_bytes(config, num_lanes), limit), kv_cache_bytes(config, 2))


class LocalEngine:
    """A multi-stream model in this process.

    Args:
        model: folder or hub id.
        dtype: of the weights, as vLLM names it.

    Raises:
        ValueError: if it is another kind of model.
    """

    def __init__(self, model: str, dtype: str = "auto") -> None:
        args = EngineArgs(
            model,
            dtype=dtype,  # type: ignore[arg-type]
            max_num_seqs=MAX_LANES,
            enforce_eager=True,  # a single sentence does not earn the time that compiling takes
            disable_log_stats=True,
            use_tqdm_on_load=False,
        )
        usage = UsageContext.LLM_CLASS
        config = args.create_engine_config(usage)
        spec = multistream_spec(config.model_config)
        if spec is None:
            raise ValueError(f"model must be a multi-stream model, which {model} is not")
        if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
            # No more than one request needs: all of it is written once, which takes its time.
            enough = bounded_kv_cache_bytes(config, MAX_LANES, GiB_bytes)
            config.cache_config.kv_cache_memory_bytes = enough
        self.spec = spec
        self._engine = LLMEngine.from_vllm_config(config, usage, disable_log_stats=True)
        self._defaults = task_defaults(config.model_config)

    def encoder(self, audio_format: str, is_whole: bool) -> Encoder:
        """Writes the model's audio; see `make_encoder`."""
        codec = codec_of(self.spec, "cpu")
        return make_encoder(audio_format, codec.sample_rate, is_whole, codec.num_channels)

    def read(self, path: Path) -> Clip:
        """Decode an audio file.

        Raises:
            OSError, ValueError: if it cannot be read or is too long.
        """
        return decode_file(path.read_bytes(), AudioLimits.from_environment(math.inf), str(path))

    def read_voices(self, folder: Path) -> dict[str, RecordedVoice]:
        """See `voice_folder.read_voices`."""
        return read_voices(folder, self.spec, self._engine.model_config.max_model_len)

    def transcribe(self, request: SpeechInput) -> Iterator[str]:
        """The text of a clip of any length, as it is made.

        Raises:
            ValueError: naming the field.
            RuntimeError: if a request fails.
        """
        context = self._engine.model_config.max_model_len
        parts = split_request(self.spec, self._defaults, request, context)
        texts = [""] * len(parts)
        sent = 0
        for index, part in enumerate(parts):
            for completion in self.generate(part):
                texts[index] += completion.text
                text = join_texts(texts)
                yield text[sent:]
                sent = len(text)

    def generate(
        self, request: SpeechInput, voices: Mapping[str, RecordedVoice] | None = None
    ) -> Iterator[CompletionOutput]:
        """Run a request to its end; yields deltas of text and audio.

        Args:
            request: what is asked for.
            voices: by name, those that it may name beside the model's.

        Raises:
            ValueError: naming the field.
            RuntimeError: if the request fails.
        """
        try:
            yield from self._generate(request, voices)
        except InvalidRequestError as error:
            raise request.fields.rename(error) from error

    def _generate(
        self, request: SpeechInput, voices: Mapping[str, RecordedVoice] | None
    ) -> Iterator[CompletionOutput]:
        engine = self._engine
        prompt, params = plan_request(self.spec, self._defaults, request, recorded_voices=voices)
        (engine_input,) = engine.renderer.render_cmpl(
            [parse_model_prompt(self._engine.model_config, prompt)]
        )
        request_id = engine.add_request("0", engine_input, params)
        finish_reason: str | None = None
        try:
            while engine.has_unfinished_requests():
                for output in engine.step():
                    assert isinstance(output, RequestOutput)
                    completion = output.outputs[0]
                    if error := failure(completion):
                        raise RuntimeError(str(error))
                    finish_reason = completion.finish_reason
                    yield completion
            if finish_reason is None:
                raise RuntimeError(str(incomplete()))
        finally:
            engine.abort_request([request_id], internal=True)

    def close(self) -> None:
        """Free what the engine holds."""
        self._engine.engine_core.shutdown()
