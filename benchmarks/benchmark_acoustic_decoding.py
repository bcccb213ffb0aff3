# SPDX-License-Identifier: Apache-2.0
r"""What streaming audio costs on this machine, and what it does to the model's steps.

    python benchmarks/benchmark_acoustic_decoding.py \
        --output-json benchmarks/results/acoustic_decoding.json

One engine in this process, on a random model, gets the same requests with their audio streamed and
with it decoded at the end, interleaved. Of each round are measured the time of all steps, and the
time within the codec's own calls. Reported per codec and number of requests:

- `step_ratio`: time of all steps without the codec's calls, streamed over at the end: what
  streaming adds to the steps beyond the codec's own compute. 1 is nothing.
- `codec_ratio`: time of the codec's calls, streamed over at the end: what the context of the
  windows costs, less what calls for several requests at once save.
- `first_audio`: time of the first audio of a request over the time of all of it, both from the
  start of the round; and in seconds.

A ratio is the median of the rounds' ratios. The random codecs are small, so that `codec_ratio` and
shares say little of a trained one's times; `step_ratio` does not depend on that.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from hardware import describe_machine

CODECS = {"dac": 64, "encodec": 1024, "mimi": 2048}
"""Kinds, and the codebook sizes of their random checkpoints."""
REQUESTS = (1, 16)
FRAMES = 150


class CodecClock:
    """Time within the codec's calls."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def timed(self, function: Any) -> Any:
        """The function, its time added."""

        def run(*args: Any, **kwargs: Any) -> Any:
            begin, self._depth = time.perf_counter(), self._depth + 1
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += time.perf_counter() - begin

        return run


def time_codec(llm: Any, clock: CodecClock) -> None:
    """Have a clock time the codec's calls of an in-process engine."""
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    audio = worker.model_runner.adapter.worker._audio
    codec = audio._decoder._codec
    codec.decode = clock.timed(codec.decode)
    pipeline = audio.executor._pipeline
    pipeline.decode = clock.timed(pipeline.decode)


def run_requests(
    llm: Any, count: int, kind: Any, clock: CodecClock, name: str, frames: int = FRAMES
) -> dict[str, float]:
    """Seconds of `count` requests at once: of all steps without the codec's calls, of those, until
    the first audio, and of everything.

    Args:
        llm: an in-process engine.
        count: number of requests.
        kind: RequestOutputKind of the requests.
        clock: times the codec's calls.
        name: prefix of the requests' ids.
        frames: of each request.
    """
    from vllm import SamplingParams

    engine = llm.llm_engine
    for index in range(count):
        params = SamplingParams(
            temperature=0.8, seed=index, max_tokens=frames, ignore_eos=True, output_kind=kind
        )
        engine.add_request(f"{name}-{index}", f"hello {index}", params)
    clock.seconds, first = 0.0, 0.0
    begin = time.perf_counter()
    while engine.has_unfinished_requests():
        for output in engine.step():
            if not first and output.outputs[0].audio is not None:
                first = time.perf_counter() - begin
    total = time.perf_counter() - begin
    return {"steps": total - clock.seconds, "codec": clock.seconds, "first": first, "total": total}


def measure(
    kind: str, rounds: int, requests: Sequence[int] = REQUESTS, frames: int = FRAMES
) -> list[dict[str, Any]]:
    """One result per number of requests."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.sampling_params import RequestOutputKind
    from vllm.unison.testing.random_checkpoint import stream_layout, write_random_speech_lm

    with tempfile.TemporaryDirectory() as folder:
        layout = stream_layout(8, codebook_size=CODECS[kind])
        model = write_random_speech_lm(
            Path(folder), layout=layout, codec=kind, hidden_size=256, num_layers=6, num_heads=4
        )
        llm = LLM(
            str(model),
            dtype="float32",
            enforce_eager=True,
            block_size=32,
            max_model_len=256,
            max_num_seqs=max(requests),
            disable_log_stats=True,
        )
        clock = CodecClock()
        time_codec(llm, clock)
        results = []
        for count in requests:
            rows = []
            for number in range(rounds + 1):
                pair = {
                    name: run_requests(
                        llm, count, output_kind, clock, f"{count}-{number}-{name}", frames
                    )
                    for name, output_kind in (
                        ("streamed", RequestOutputKind.DELTA),
                        ("whole", RequestOutputKind.FINAL_ONLY),
                    )
                }
                if number:
                    rows.append(pair)

            def ratio(part: str, rows: list[Any] = rows) -> float:
                return statistics.median(r["streamed"][part] / r["whole"][part] for r in rows)

            streamed = [row["streamed"] for row in rows]
            results.append(
                {
                    "codec": kind,
                    "requests": count,
                    "frames": frames,
                    "step_ratio": ratio("steps"),
                    "codec_ratio": ratio("codec"),
                    "codec_share": statistics.median(s["codec"] / s["total"] for s in streamed),
                    "first_audio": statistics.median(s["first"] / s["total"] for s in streamed),
                    "first_audio_seconds": statistics.median(s["first"] for s in streamed),
                }
            )
        llm.llm_engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()
    return results


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, nargs="+", default=REQUESTS, help="at once")
    parser.add_argument("--frames", type=int, default=FRAMES, help="of each request")
    parser.add_argument("--codecs", nargs="+", default=list(CODECS), choices=list(CODECS))
    parser.add_argument("--output-json", type=Path)
    arguments = parser.parse_args()
    results = []
    for kind in arguments.codecs:
        for result in measure(kind, arguments.rounds, arguments.requests, arguments.frames):
            print(
                f"{kind}, {result['requests']} requests: steps {result['step_ratio']:.2f}, "
                f"codec {result['codec_ratio']:.2f} (share {result['codec_share']:.2f}), first "
                f"audio after {result['first_audio']:.2f} of the time"
            )
            results.append(result)
    if arguments.output_json:
        report = {"machine": describe_machine(), "rounds": arguments.rounds, "results": results}
        arguments.output_json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
