# SPDX-License-Identifier: Apache-2.0
"""The engine of a batch, in this process: rows go in as there is room, results come out as they
are ready, in any order."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.speech.batch.requests import (
    RowRequest,
    RowRules,
    read_request,
    row_id,
    row_seed,
)
from vllm.entrypoints.speech.batch.results import SPOKEN, WRITTEN, Result
from vllm.entrypoints.speech.batch.rows import Row
from vllm.entrypoints.speech.batch.settings import EngineSettings
from vllm.entrypoints.speech.cli.local import bounded_kv_cache_bytes
from vllm.entrypoints.speech.encoding import encode_whole
from vllm.entrypoints.speech.outcome import failure
from vllm.entrypoints.speech.parameters import RecordedVoice, SpeechInput, plan_request
from vllm.entrypoints.speech.server.errors import bounded
from vllm.entrypoints.speech.server.parts import join_texts, split_request
from vllm.entrypoints.speech.voice_folder import read_voices
from vllm.exceptions import VLLMError
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.platforms import current_platform
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.unison.codecs.of_model import codec_of
from vllm.unison.frontend.defaults import task_defaults
from vllm.unison.frontend.errors import InvalidRequestError
from vllm.unison.frontend.prompts import EXTEND_STRIDE, stream_prompt_builder
from vllm.unison.frontend.windows import LongRequest, long_request
from vllm.unison.model.spec import multistream_spec
from vllm.usage.usage_lib import UsageContext
from vllm.utils.mem_constants import GiB_bytes
from vllm.v1.engine.llm_engine import LLMEngine

MAX_CPU_CACHE = 4 * GiB_bytes
"""Of an engine on a CPU that is told nothing of memory: several may share a machine."""


@dataclass
class _Running:
    """A row in the engine.

    Attributes:
        row: the row.
        request: what it asks for.
        seed: of its sampling.
        completions: by part, those that have ended.
        num_parts: requests that make it up, side by side.
        windows: requests that make it up, one after another, if there are several.
        number: of the window that runs.
    """

    row: Row
    request: RowRequest
    seed: int | None = None
    completions: dict[int, CompletionOutput] = field(default_factory=dict)
    request_ids: set[str] = field(default_factory=set)
    num_parts: int = 1
    windows: LongRequest | None = None
    number: int = 0


class BatchEngine:
    """A multi-stream model in this process that works off rows.

    A row's result is a function of the row, the rules and the seed alone, whatever else is in the
    batch.

    Args:
        settings: of the engine.
        rules: of the rows.
        seed: of rows that give none; see `row_seed`.

    Raises:
        ValueError: if the model is of another kind, or a voice's file is wrong.
    """

    def __init__(self, settings: EngineSettings, rules: RowRules, seed: int) -> None:
        args = EngineArgs(disable_log_stats=True, use_tqdm_on_load=False, **settings.options)
        usage = UsageContext.LLM_CLASS
        config = args.create_engine_config(usage)
        model = config.model_config
        spec = multistream_spec(model)
        if spec is None:
            raise ValueError(f"--model must be a multi-stream model, which {model.model} is not")
        cache = config.cache_config
        says_memory = cache.kv_cache_memory_bytes or "VLLM_CPU_KVCACHE_SPACE" in os.environ
        if current_platform.is_cpu() and not says_memory:
            lanes = config.scheduler_config.max_num_seqs
            cache.kv_cache_memory_bytes = bounded_kv_cache_bytes(config, lanes, MAX_CPU_CACHE)
        self._spec, self._rules, self._seed = spec, rules, seed
        self._context = model.max_model_len
        self._defaults = task_defaults(model)
        self._engine = LLMEngine.from_vllm_config(config, usage, disable_log_stats=True)
        self._voices: Mapping[str, RecordedVoice] = {}
        if settings.voices is not None:
            self._voices = read_voices(settings.voices, spec, self._context)
        self._context_seconds = 0.0
        if spec.has_codec:
            codec = codec_of(spec, "cpu")
            self._context_seconds = self._context * codec.samples_per_frame / codec.sample_rate
        # Twice what runs at once, so that a place that falls free is taken in the next step.
        self._max_requests = 2 * config.scheduler_config.max_num_seqs
        self._running: dict[str, tuple[_Running, int]] = {}
        self._numbers = itertools.count()

    @property
    def is_full(self) -> bool:
        """Whether the engine has all the rows that it has use for."""
        return len(self._running) >= self._max_requests

    @property
    def is_idle(self) -> bool:
        """Whether it has no rows."""
        return not self._running

    def run(self, rows: Iterable[Row]) -> Iterator[Result]:
        """Work off rows, which are read as there is room for them; yields each one's result."""
        waiting = iter(rows)
        row = next(waiting, None)
        while row is not None or not self.is_idle:
            while row is not None and not self.is_full:
                result = self.add(row)
                if result is not None:
                    yield result
                row = next(waiting, None)
            yield from self.step()

    def add(self, row: Row) -> Result | None:
        """Begin with a row; returns its result if it is refused."""
        try:
            request = read_request(self._rules, row, self._context_seconds)
            self._start(_Running(row, request))
        except InvalidRequestError as error:
            return self._failed(row, str(error))
        except Exception as error:  # of any kind, by what the row holds: the others go on
            return self._failed(row, _message(error))
        return None

    def step(self) -> list[Result]:
        """Advance all rows by a step; returns the results of those that ended.

        Raises:
            Exception: if the engine failed, and all its rows with it.
        """
        if not self._running:
            return []
        results = []
        for output in self._engine.step():
            assert isinstance(output, RequestOutput)
            # Parts of a row that failed are aborted, and not looked at again.
            if output.finished and (found := self._running.pop(output.request_id, None)):
                results += self._ended(*found, output)
        return results

    def close(self) -> None:
        """Free what the engine holds."""
        self._engine.engine_core.shutdown()

    def _start(self, running: _Running) -> None:
        """Give the engine a row's requests; all of them, or none."""
        inputs = running.request.inputs
        try:
            parts = split_request(self._spec, self._defaults, inputs, self._context)
            running.num_parts = len(parts)
            started = [self._planned(running, part) for part in parts]
            for part, (prompt, params) in enumerate(started):
                self._add_request(running, part, prompt, params)
        except InvalidRequestError as error:
            self._abort(running)
            raise inputs.fields.rename(error) from error
        except BaseException:
            self._abort(running)
            raise

    def _planned(
        self, running: _Running, part: SpeechInput
    ) -> tuple[Mapping[str, Any], SamplingParams]:
        prompt, params = plan_request(
            self._spec, self._defaults, part, recorded_voices=self._voices
        )
        if params.seed is None:
            params.seed = row_seed(self._seed, running.row)
        running.seed = params.seed
        if EXTEND_STRIDE in prompt["mm_processor_kwargs"]:
            builder = stream_prompt_builder(self._engine.renderer)
            assert builder is not None
            running.windows = long_request(builder, self._spec, self._context, prompt, params)
            prompt, params = running.windows.window(0, 0)
        return prompt, params

    def _add_request(
        self, running: _Running, part: int, prompt: Mapping[str, Any], params: SamplingParams
    ) -> None:
        params.output_kind = RequestOutputKind.FINAL_ONLY
        engine = self._engine
        (engine_input,) = engine.renderer.render_cmpl(
            [parse_model_prompt(engine.model_config, prompt)]
        )
        request_id = str(next(self._numbers))
        engine.add_request(request_id, engine_input, params)
        self._running[request_id] = running, part
        running.request_ids.add(request_id)

    def _abort(self, running: _Running) -> None:
        """End all that is left of a row."""
        left = [name for name in running.request_ids if self._running.pop(name, None)]
        if left:
            self._engine.abort_request(left)

    def _ended(self, running: _Running, part: int, output: RequestOutput) -> list[Result]:
        completion = output.outputs[0]
        if error := failure(completion):
            self._abort(running)
            return [self._failed(running.row, str(error))]
        try:
            windows = running.windows
            if windows is not None:
                (made,) = windows.completions
                made.take(completion)
                running.number += 1
                if running.number < len(windows.windows):
                    self._add_request(running, part, *windows.window(running.number, 0))
                    return []
                if running.number > 1:
                    windows.first = output
                    completion = windows.output(self._spec).outputs[0]
            running.completions[part] = completion
            if len(running.completions) < running.num_parts:
                return []
            spoken = self._rules.command == "speak"
            return [self._spoken(running) if spoken else self._written(running)]
        except Exception as caught:
            self._abort(running)
            return [self._failed(running.row, _message(caught))]

    def _spoken(self, running: _Running) -> Result:
        completion = running.completions[0]
        audio, name = completion.audio, running.request.audio_format
        if audio is None:
            return self._failed(running.row, "the request made no audio")
        entry = {
            "seconds": audio.seconds,
            "sample_rate": audio.sample_rate,
            "channels": audio.num_channels,
            "codes_sha256": hashlib.sha256(audio.codes.astype("<i4").tobytes()).hexdigest(),
            "finish_reason": completion.finish_reason,
            "seed": running.seed,
        }
        data = encode_whole(name, audio.samples, audio.sample_rate)
        return Result(running.row.index, self._entry(running.row, entry), data, f".{name}")

    def _written(self, running: _Running) -> Result:
        parts = [running.completions[part] for part in range(running.num_parts)]
        clip = running.request.inputs.clip
        assert clip is not None
        reasons = {part.finish_reason for part in parts}
        entry = {
            "text": join_texts([part.text for part in parts]),
            "seconds": clip.seconds,
            "finish_reason": "length" if "length" in reasons else "stop",
            "seed": running.seed,
        }
        return Result(running.row.index, self._entry(running.row, entry))

    def _failed(self, row: Row, message: str) -> Result:
        return Result(row.index, self._entry(row, {"error": bounded(message)}))

    def _entry(self, row: Row, values: Mapping[str, Any]) -> dict[str, Any]:
        """An entry of the manifest, with all fields of all rows."""
        try:
            name = row_id(row)
        except InvalidRequestError:
            name = None
        if self._rules.command == "speak":
            fields, field_name = SPOKEN, "text"
            given = row.values.get("text", row.values.get("input"))
        else:
            fields, field_name = WRITTEN, "source"
            given = row.values.get("path")
        # Of a row that is refused it may be anything.
        shown = bounded(given) if isinstance(given, str) and "error" in values else given
        text = {field_name: _unicode(shown)} if isinstance(shown, str) else {}
        return {"index": row.index, "id": name, **dict.fromkeys(fields), **text, **values}


def _message(error: Exception) -> str:
    """As upstream's errors say it, without the field in brackets that some repeat."""
    text = str(next(iter(error.args), error)) if isinstance(error, VLLMError) else str(error)
    return text or type(error).__name__


def _unicode(text: str) -> str:
    """The text without halves of characters, which JSON may hold and UTF-8 may not."""
    return text.encode(errors="replace").decode()
