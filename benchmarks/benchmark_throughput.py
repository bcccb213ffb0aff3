# SPDX-License-Identifier: Apache-2.0
"""Throughput of many requests at once, guided or not, with the flags of upstream's benchmark.

    python benchmarks/benchmark_throughput.py --input-len 32 --output-len 128 --num-prompts 64
    python benchmarks/benchmark_throughput.py --model unison-default --input-len 16 \\
        --output-len 100 --num-prompts 64 --guidance-scale 3 --compare --output-json FILE

Without --model, a random model of 8 streams with a DAC is written and measured. Every request
decodes exactly its output length, whatever the model says; waveforms are decoded within the time.
All of the engine's flags are upstream's. The engine runs in this process.

Printed and written, at the median of the rounds' times:

- requests/s; total tokens/s (prompt and output) and output tokens/s of stream 0, as upstream has
  them;
- steps/s: passes of the decoder; tokens/s over all streams, pads left out;
- audio seconds/s, and the real-time factor: seconds per second of audio, all requests together.

With --compare the requests run guided and unguided in interleaved rounds on one engine, with an
empty prefix cache before each; `guided_over_unguided` is the median of the rounds' ratios of
requests/s, with their range.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from engine_rounds import Round, RoundEngine, median_round, stream_line
from guidance_comparison import Benchmark, Rounds, interleaved, run_benchmark
from tqdm import tqdm
from workload import (
    DATASETS,
    RANDOM_INPUT_LEN,
    RANDOM_OUTPUT_LEN,
    Request,
    whole_number,
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this benchmark alone."""
    parser.add_argument("--dataset-name", choices=DATASETS, default="random")
    parser.add_argument("--dataset-path", type=Path, help="of sharegpt and custom")
    parser.add_argument(
        "--input-len",
        type=whole_number(1),
        help=f"tokens of a random prompt (default: {RANDOM_INPUT_LEN})",
    )
    parser.add_argument(
        "--output-len",
        type=whole_number(1),
        help="tokens of stream 0 that a request emits (default: the dataset's; "
        f"random: {RANDOM_OUTPUT_LEN})",
    )
    parser.add_argument("--num-prompts", type=whole_number(1), default=1000)
    parser.add_argument(
        "--num-warmups", type=whole_number(0), default=4, help="requests before the first round"
    )
    parser.add_argument(
        "--repeats",
        type=whole_number(1),
        help="rounds (default: 1; with --compare 3 of each variant)",
    )


def progress_bar(name: str, *args: Any, **kwargs: Any) -> Any:
    """The engine's own progress bar, with the round's name before what it says."""
    return tqdm(*args, **(kwargs | {"desc": f"{name}: {kwargs.get('desc', '')}"}))


def run(
    engine: RoundEngine,
    requests: Sequence[Request],
    variants: Sequence[str],
    options: argparse.Namespace,
) -> Rounds:
    """The rounds of each variant, after a warm-up."""
    if warm_up := requests[: options.num_warmups]:
        for variant in variants:
            engine.run(warm_up, variant == "guided")
    rounds: Rounds = {variant: [] for variant in variants}
    for number in range(options.repeats):
        for variant in interleaved(variants, number):
            name = f"{variant}, round {number + 1} of {options.repeats}"
            bar = functools.partial(progress_bar, name)
            rounds[variant].append(engine.run(requests, variant == "guided", use_tqdm=bar))
    return rounds


def summarize(rounds: Sequence[Round]) -> dict[str, Any]:
    """The figures of a variant."""
    return median_round(rounds).report() | {"rounds": [measured.report() for measured in rounds]}


def show(figures: dict[str, Any]) -> None:
    """Print the figures of a variant."""
    print(
        f"Throughput: {figures['requests_per_second']:.2f} requests/s, "
        f"{figures['tokens_per_second']:.2f} total tokens/s, "
        f"{figures['output_tokens_per_second']:.2f} output tokens/s"
    )
    print(stream_line(figures))
    print(f"Total num prompt tokens:  {figures['total_prompt_tokens']}")
    print(f"Total num output tokens:  {figures['total_output_tokens']}", flush=True)


def complete(
    parser: argparse.ArgumentParser, options: argparse.Namespace, settings: dict[str, Any]
) -> None:
    """Check the dataset's flags, and fill in the number of rounds."""
    if options.dataset_name == "random" and options.dataset_path is not None:
        parser.error("--dataset-path must not be given with --dataset-name random")
    options.repeats = options.repeats or (3 if options.compare else 1)
    settings["parameters"]["repeats"] = options.repeats


BENCHMARK = Benchmark(
    description=(__doc__ or "").splitlines()[0],
    add_flags=add_flags,
    complete=complete,
    num_requests=lambda options: options.num_prompts,
    run=run,
    summarize=summarize,
    show=show,
    figure=lambda measured: measured.num_requests / measured.seconds,
    figure_name="requests/s",
)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the command line, measure, print and write JSON; returns what the JSON holds."""
    return run_benchmark(BENCHMARK, arguments)


if __name__ == "__main__":
    main()
