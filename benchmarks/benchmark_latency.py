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
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from engine_turns import Turn, TurnEngine, middle, open_engine, stream_line
from hardware import describe_machine
from ratios import compare
from tqdm import tqdm
from workload import (
    Request,
    make_params,
    make_requests,
    open_model,
    parse_command_line,
    prepare_environment,
    whole_number,
)

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


def run_iterations(
    engine: TurnEngine, requests: Sequence[Request], sides: Sequence[str], count: int, name: str
) -> dict[str, list[Turn]]:
    """The turns of each of `sides`, "guided" or "unguided"."""
    turns: dict[str, list[Turn]] = {side: [] for side in sides}
    for iteration in tqdm(range(count), desc=name):
        # Back and forth, so that none is always the one after the other.
        for side in sides[:: -1 if iteration % 2 else 1]:
            turns[side].append(engine.run(requests, side == "guided"))
    return turns


def report_turn(turn: Turn) -> dict[str, Any]:
    """A turn's report, with the real-time factor of one request instead of all together."""
    report = turn.report()
    if turn.audio_seconds is not None:
        report["real_time_factor"] = turn.seconds * turn.num_sequences / turn.audio_seconds
    return report


def summarize(turns: Sequence[Turn]) -> dict[str, Any]:
    """The figures of a side."""
    latencies = [turn.seconds for turn in turns]
    percentiles = np.percentile(latencies, PERCENTILES).tolist()
    return {
        "avg_latency": float(np.mean(latencies)),
        "latencies": latencies,
        "percentiles": {str(p): value for p, value in zip(PERCENTILES, percentiles, strict=True)},
        **report_turn(middle(turns)),
        "turns": [report_turn(turn) for turn in turns],
    }


def show(figures: dict[str, Any]) -> None:
    """Print the figures of a side."""
    print(f"Avg latency: {figures['avg_latency']} seconds")
    for percentage, value in figures["percentiles"].items():
        print(f"{percentage}% percentile latency: {value} seconds")
    print(stream_line(figures), flush=True)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the command line, measure, print and write JSON; returns what the JSON holds."""
    prepare_environment()
    description = (__doc__ or "").splitlines()[0]
    parser, options, told = parse_command_line(description, add_flags, arguments)
    if options.enable_prefix_caching is None:
        options.enable_prefix_caching = False
        told["engine_arguments"]["enable_prefix_caching"] = False
    main_side = "unguided" if options.guidance_scale is None else "guided"
    sides = ["guided", "unguided"] if options.compare else [main_side]
    with tempfile.TemporaryDirectory() as folder:
        model = open_model(parser, options, Path(folder))
        requests = make_requests(parser, options, model, options.batch_size, options.seed)

        def params(output_len: int, index: int, guided: bool) -> Any:
            is_multistream = model.spec is not None
            return make_params(
                options, output_len, index, is_multistream=is_multistream, guided=guided
            )

        with open_engine(model, params) as engine:
            print("Warming up...", flush=True)
            run_iterations(engine, requests, sides, options.num_iters_warmup, "Warmup iterations")
            turns = run_iterations(engine, requests, sides, options.num_iters, "Bench iterations")
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "model_id": options.model or "random weights",
        "model": model.describe(),
        **told,
        "side": main_side,
        **summarize(turns[main_side]),
    }
    if options.compare:
        report["unguided"] = summarize(turns["unguided"])
        report["guided_over_unguided"] = compare(
            *([turn.seconds for turn in turns[side]] for side in sides)
        )
    for side in sides:
        if options.compare:
            print(f"{side}:")
        show(report if side == main_side else report[side])
    if options.compare:
        ratio = report["guided_over_unguided"]
        low, high = ratio["range"]
        print(f"guided / unguided: {ratio['ratio']} ({low} to {high}) in latency")
    if options.output_json:
        options.output_json.write_text(json.dumps(report, indent=2, default=str) + "\n")
    return report


if __name__ == "__main__":
    main()
