# SPDX-License-Identifier: Apache-2.0
"""Rounds of requests on an engine in this process: how long they take, and what they made."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workload import Model, Request

    from vllm import LLM, RequestOutput, SamplingParams


@dataclass(frozen=True)
class Round:
    """What one round of requests took and made.

    Attributes:
        seconds: from the first request's arrival to the last one's end, its waveform included.
        num_requests: prompts.
        num_sequences: completions, `n` per prompt.
        num_prompt_tokens: of stream 0.
        num_output_tokens: that stream 0 emitted, without the pads beside the last delayed tokens.
        num_frames: frames of all streams.
        num_stream_tokens: tokens of all streams: those of stream 0, and one per frame of each other
            stream. Pads do not count.
        num_steps: passes of the decoder, whatever the batch.
        num_rows: rows of its batch, over all passes; a guided request has one per lane.
        num_guided_samples: times that a request was sampled with guidance.
        audio_seconds: of all waveforms; None without any.
    """

    seconds: float
    num_requests: int
    num_sequences: int
    num_prompt_tokens: int
    num_output_tokens: int
    num_frames: int
    num_stream_tokens: int
    num_steps: int
    num_rows: int
    num_guided_samples: int
    audio_seconds: float | None

    def report(self) -> dict[str, Any]:
        """The round in a benchmark's JSON, with what it made per second."""
        audio = self.audio_seconds
        total = self.num_prompt_tokens + self.num_output_tokens
        return {
            "elapsed_time": self.seconds,
            "num_requests": self.num_requests,
            "total_num_tokens": total,
            "total_prompt_tokens": self.num_prompt_tokens,
            "total_output_tokens": self.num_output_tokens,
            "total_stream_tokens": self.num_stream_tokens,
            "num_frames": self.num_frames,
            "num_steps": self.num_steps,
            "num_rows": self.num_rows,
            "num_guided_samples": self.num_guided_samples,
            "audio_seconds": audio,
            "requests_per_second": self.num_requests / self.seconds,
            "tokens_per_second": total / self.seconds,
            "output_tokens_per_second": self.num_output_tokens / self.seconds,
            "stream_tokens_per_second": self.num_stream_tokens / self.seconds,
            "steps_per_second": self.num_steps / self.seconds,
            "audio_seconds_per_second": None if audio is None else audio / self.seconds,
            "real_time_factor": None if audio is None else self.seconds / audio,
        }


class StepCounter:
    """Counts what the scheduler of an in-process engine sends to the worker.

    Args:
        llm: the engine.
    """

    def __init__(self, llm: LLM) -> None:
        self.reset()
        core: Any = llm.llm_engine.engine_core
        scheduler = core.engine_core.scheduler
        schedule: Callable[..., Any] = scheduler.schedule

        def counting(*args: Any, **kwargs: Any) -> Any:
            planned = schedule(*args, **kwargs)
            # A step without tokens runs no model.
            if planned.total_num_scheduled_tokens > 0:
                self.num_steps += 1
                self.num_rows += len(planned.num_scheduled_tokens)
                if planned.guidance is not None:
                    self.num_guided_samples += len(planned.guidance.groups)
            return planned

        scheduler.schedule = counting

    def reset(self) -> None:
        """Start at nothing."""
        self.num_steps = self.num_rows = self.num_guided_samples = 0


class RoundEngine:
    """Runs rounds of requests.

    Args:
        llm: an engine in this process.
        model: its model.
        make_params: sampling parameters of a request, by output_len and index, guided or not.
    """

    def __init__(
        self, llm: LLM, model: Model, make_params: Callable[[int, int, bool], SamplingParams]
    ) -> None:
        self._llm = llm
        self._model = model
        self._make_params = make_params
        self._counter = StepCounter(llm)

    def run(self, requests: Sequence[Request], guided: bool, use_tqdm: Any = False) -> Round:
        """Run requests that all come at once, from an empty prefix cache.

        Args:
            requests: the requests.
            guided: whether with the guidance of the command line.
            use_tqdm: as in `LLM.generate`.

        Raises:
            RuntimeError: if a request did not make what it should, or was not guided as it should.
        """
        from vllm.unison.messages.guidance_inputs import is_guided

        prompts: list[Any] = [request.prompt for request in requests]
        params = [self._make_params(r.output_len, i, guided) for i, r in enumerate(requests)]
        expected = any(is_guided(one) for one in params)
        # Or the second of two variants would find the prompts of the first.
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache could not be emptied")
        self._counter.reset()
        start = time.perf_counter()
        outputs = self._llm.generate(prompts, params, use_tqdm=use_tqdm)
        seconds = time.perf_counter() - start
        if (self._counter.num_guided_samples > 0) is not expected:
            raise RuntimeError(
                f"{self._counter.num_guided_samples} samples were guided, where guidance was "
                f"{'on' if expected else 'off'}"
            )
        return self._measure(seconds, requests, outputs)

    def _measure(
        self, seconds: float, requests: Sequence[Request], outputs: Sequence[RequestOutput]
    ) -> Round:
        num_prompt_tokens = num_output_tokens = num_frames = num_sequences = 0
        clips: list[float] = []
        for request, output in zip(requests, outputs, strict=True):
            length = len(output.prompt_token_ids or ())
            if request.prompt_len not in (None, length):
                raise RuntimeError(f"a prompt had {length} tokens, not {request.prompt_len}")
            num_prompt_tokens += length
            for completion in output.outputs:
                extra = len(completion.token_ids) - request.output_len
                if completion.finish_reason != "length" or not (
                    0 <= extra <= self._model.num_flush_steps
                ):
                    raise RuntimeError(
                        f"a request ended with {completion.finish_reason} after "
                        f"{len(completion.token_ids)} steps, of which {request.output_len} were due"
                    )
                num_sequences += 1
                num_output_tokens += request.output_len
                num_frames += self._count_frames(completion.token_ids[: request.output_len])
                if completion.audio is not None:
                    clips.append(completion.audio.seconds)
        other_streams = self._model.num_streams - 1
        return Round(
            seconds=seconds,
            num_requests=len(requests),
            num_sequences=num_sequences,
            num_prompt_tokens=num_prompt_tokens,
            num_output_tokens=num_output_tokens,
            num_frames=num_frames,
            num_stream_tokens=num_output_tokens + other_streams * num_frames,
            num_steps=self._counter.num_steps,
            num_rows=self._counter.num_rows,
            num_guided_samples=self._counter.num_guided_samples,
            audio_seconds=sum(clips) if clips else None,
        )

    def _count_frames(self, token_ids: Sequence[int]) -> int:
        """Frames that begin with ids of stream 0; the other streams complete them."""
        if self._model.spec is None:
            return 0
        begin, end = self._model.spec.layout.slices[0]
        return sum(begin <= token < end for token in token_ids)


@contextmanager
def open_engine(
    model: Model, make_params: Callable[[int, int, bool], SamplingParams]
) -> Iterator[RoundEngine]:
    """An engine, gone with the context."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    llm = LLM.from_engine_args(model.engine_args)
    try:
        yield RoundEngine(llm, model, make_params)
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def median_round(rounds: Sequence[Round]) -> Round:
    """What stands for several rounds: the median time, and the counts of the round next to it.

    One time for all, so that the figures of a variant agree with each other.
    """
    seconds = statistics.median(measured.seconds for measured in rounds)
    nearest = min(rounds, key=lambda measured: abs(measured.seconds - seconds))
    return replace(nearest, seconds=seconds)


def stream_line(figures: dict[str, Any]) -> str:
    """What a round made of steps, streams and audio, to print."""
    parts = [
        f"{figures['steps_per_second']:.2f} steps/s",
        f"{figures['stream_tokens_per_second']:.2f} tokens/s over all streams",
    ]
    if figures["audio_seconds"] is not None:
        parts += [
            f"{figures['audio_seconds_per_second']:.2f} audio seconds/s",
            f"real-time factor {figures['real_time_factor']:.4f}",
        ]
    return "Decoding: " + ", ".join(parts)
