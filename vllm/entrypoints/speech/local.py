# SPDX-License-Identifier: Apache-2.0
"""An engine in this process for one request at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vllm.entrypoints.speech.media import AudioLimits, Clip, decode_file
from vllm.entrypoints.speech.parameters import SpeechInput, plan_request, task_defaults
from vllm.entrypoints.speech.process import prepare_process
from vllm.multistream.spec import multistream_spec
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.renderers.inputs.preprocess import parse_model_prompt


class LocalEngine:
    """A multi-stream model in this process.

    Args:
        model: folder or hub id.
        dtype: of the weights, as vLLM names it.

    Raises:
        ValueError: if it is another kind of model.
    """

    def __init__(self, model: str, dtype: str = "auto") -> None:
        prepare_process()
        from vllm import LLM

        self._llm = LLM(
            model,
            dtype=dtype,  # type: ignore[arg-type]
            max_num_seqs=4,  # a guided request takes a row of the batch per lane
            enforce_eager=True,  # a single sentence does not earn the time that compiling takes
            disable_log_stats=True,
            use_tqdm_on_load=False,
        )
        spec = multistream_spec(self._llm.model_config)
        if spec is None:
            raise ValueError(f"model must be a multi-stream model, which {model} is not")
        self.spec = spec
        self._defaults = task_defaults(self._llm.model_config)

    @property
    def sample_rate(self) -> int:
        """Hz of the model's audio."""
        return self.spec.load_codec("cpu").sample_rate

    def read(self, path: Path) -> Clip:
        """Decode an audio file that fits the model's context.

        Raises:
            OSError, ValueError: if it cannot be read or is too long.
        """
        codec = self.spec.load_codec("cpu")
        frames = self._llm.model_config.max_model_len
        seconds = frames * codec.samples_per_frame / codec.sample_rate
        return decode_file(path.read_bytes(), AudioLimits.from_environment(seconds), str(path))

    def generate(self, asked: SpeechInput) -> Iterator[CompletionOutput]:
        """Run a request to its end; yields deltas of text and audio.

        Raises:
            ValueError: naming the field.
            RuntimeError: if the request fails.
        """
        engine = self._llm.llm_engine
        prompt, params = plan_request(self.spec, self._defaults, asked)
        (engine_input,) = engine.renderer.render_cmpl(
            [parse_model_prompt(self._llm.model_config, prompt)]
        )
        request_id = engine.add_request("0", engine_input, params)
        try:
            while engine.has_unfinished_requests():
                for output in engine.step():
                    assert isinstance(output, RequestOutput)
                    completion = output.outputs[0]
                    if completion.finish_reason == "error":
                        raise RuntimeError(str(completion.stop_reason or "the request failed"))
                    yield completion
        finally:
            engine.abort_request([request_id])

    def close(self) -> None:
        """Free what the engine holds."""
        self._llm.llm_engine.engine_core.shutdown()
