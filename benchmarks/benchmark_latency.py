# SPDX-License-Identifier: Apache-2.0
"""Latency of one batch of requests, guided or not, with the flags of upstream's benchmark.

    python benchmarks/benchmark_latency.py --input-len 32 --output-len 128 --batch-size 1
    python benchmarks/benchmark_latency.py --model unison-default --input-len 16 --output-len 100 \\
        --batch-size 1 --guidance-scale 3 --compare --output-json FILE

Without --model, a random model of 8 streams with a DAC is written and measured. Every request
decodes exactly --output-len tokens on stream 0, whatever the model says. A batch's latency is the
time until its last request has ended, waveforms included. All of the engine's flags are upstream's,
and prefix caching is off unless it is asked for. The engine runs in this process.

Beside the latency and its percentiles, per second of the batch: steps (passes of the decoder),
tokens over all streams without pads, and seconds of audio, at the median latency. The real-time
factor is the latency over the length of one request's audio: below 1, all requests of the
batch are faster than they play.

With --compare every iteration runs the same batch guided and unguided, on the same engine;
`guided_over_unguided` is the median of the iterations' ratios of latencies, with their range.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from engine_rounds import Round, RoundEngine, median_round, stream_line
from guidance_comparison import Benchmark, Rounds, interleaved, run_benchmark
from tqdm import tqdm
from workload import Request, whole_number

PERCENTILES = (10, 25, 50, 75, 90, 99)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this benchmark alone."""
    parser.add_argument(
        "--dataset-name", choices=("random",), default="random", help="prompts of one length only"
    )
    parser.add_argument("--input-len", type=whole_number(1), default=32, help="tokens of a prompt")
    parser.add_argument(
        "--output-len",
        type=whole_number(1),
        default=128,
        help="tokens of stream 0 that a request emits",
    )
    parser.add_argument("--batch-size", type=whole_number(1), default=8)
    parser.add_argument(
        "--num-iters-warmup", type=whole_number(0), default=10, help="iterations for warm-up"
    )
    parser.add_argument("--num-iters", type=whole_number(1), default=30, help="iterations")


def run(
    engine: RoundEngine,
    requests: Sequence[Request],
    variants: Sequence[str],
    options: argparse.Namespace,
) -> Rounds:
    """The iterations of each variant."""
    phases = (
        ("Warmup iterations", options.num_iters_warmup),
        ("Bench iterations", options.num_iters),
    )
    for name, count in phases:
        rounds: Rounds = {variant: [] for variant in variants}
        for iteration in tqdm(range(count), desc=name):
            for variant in interleaved(variants, iteration):
                rounds[variant].append(engine.run(requests, variant == "guided"))
    return rounds


def report_round(measured: Round) -> dict[str, Any]:
    """A round's report, with the real-time factor of one request instead of all together."""
    report = measured.report()
    if measured.audio_seconds is not None:
        report["real_time_factor"] = (
            measured.seconds * measured.num_sequences / measured.audio_seconds
        )
    return report


def summarize(rounds: Sequence[Round]) -> dict[str, Any]:
    """The figures of a variant."""
    latencies = [measured.seconds for measured in rounds]
    percentiles = np.percentile(latencies, PERCENTILES).tolist()
    return {
        "avg_latency": float(np.mean(latencies)),
        "latencies": latencies,
        "percentiles": {str(p): value for p, value in zip(PERCENTILES, percentiles, strict=True)},
        **report_round(median_round(rounds)),
        "rounds": [report_round(measured) for measured in rounds],
    }


def show(figures: dict[str, Any]) -> None:
    """Print the figures of a variant."""
    print(f"Avg latency: {figures['avg_latency']} seconds")
    for percentage, value in figures["percentiles"].items():
        print(f"{percentage}% percentile latency: {value} seconds")
    print(stream_line(figures), flush=True)


def complete(
    parser: argparse.ArgumentParser, options: argparse.Namespace, settings: dict[str, Any]
) -> None:
    """Have prefix caching off unless it is asked for."""
    if options.enable_prefix_caching is None:
        options.enable_prefix_caching = False
        settings["engine_arguments"]["enable_prefix_caching"] = False


BENCHMARK = Benchmark(
    description=(__doc__ or "").splitlines()[0],
    add_flags=add_flags,
    complete=complete,
    num_requests=lambda options: options.batch_size,
    run=run,
    summarize=summarize,
    show=show,
    figure=lambda measured: measured.seconds,
    figure_name="latency",
)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the command line, measure, print and write JSON; returns what the JSON holds."""
    return run_benchmark(BENCHMARK, arguments)


if __name__ == "__main__":
    main()
