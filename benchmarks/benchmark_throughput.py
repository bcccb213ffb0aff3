# SPDX-License-Identifier: Apache-2.0
"""Throughput of many requests at once, guided or not, with the flags of upstream's benchmark.

    python benchmarks/benchmark_throughput.py --input-len 32 --output-len 128 --num-prompts 64
    python benchmarks/benchmark_throughput.py --model unison-default --input-len 16 \\
        --output-len 100 --num-prompts 64 --guidance-scale 3 --compare --output-json FILE

Without --model, a random model of 8 streams with a DAC is written and measured. Every request
decodes exactly its output length, whatever the model says; waveforms are decoded within the time.
All of the engine's flags are upstream's. The engine runs in this process.

Printed and written, at the median of the turns' times:

- requests/s; total tokens/s (prompt and output) and output tokens/s of stream 0, as upstream has
  them;
- steps/s: passes of the decoder; tokens/s over all streams, pads left out;
- audio seconds/s, and the real-time factor: seconds per second of audio, all requests together.

With --compare the requests run guided and unguided in turns on the same engine, with an empty
prefix cache before each; `guided_over_unguided` is the median of the turns' ratios of requests/s,
with their range.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from engine_turns import Turn, TurnEngine, middle, open_engine, stream_line
from hardware import describe_machine
from ratios import compare
from tqdm import tqdm
from workload import (
    DATASETS,
    RANDOM_INPUT_LEN,
    RANDOM_OUTPUT_LEN,
    Request,
    make_params,
    make_requests,
    open_model,
    parse_command_line,
    prepare_environment,
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
        "--num-warmups", type=whole_number(0), default=4, help="requests before the first turn"
    )
    parser.add_argument(
        "--repeats", type=whole_number(1), help="turns (default: 1; with --compare 3 of each side)"
    )


def progress_bar(name: str, *args: Any, **kwargs: Any) -> Any:
    """The engine's own progress bar, with the turn's name before what it says."""
    return tqdm(*args, **(kwargs | {"desc": f"{name}: {kwargs.get('desc', '')}"}))


def run_turns(
    engine: TurnEngine,
    requests: Sequence[Request],
    warm_up: Sequence[Request],
    sides: Sequence[str],
    repeats: int,
) -> dict[str, list[Turn]]:
    """The turns of each of `sides`, "guided" or "unguided"."""
    turns: dict[str, list[Turn]] = {side: [] for side in sides}
    if warm_up:
        for side in sides:
            engine.run(warm_up, side == "guided")
    for repeat in range(repeats):
        # Back and forth, so that none is always the one after the other.
        for side in sides[:: -1 if repeat % 2 else 1]:
            bar = functools.partial(progress_bar, f"{side}, turn {repeat + 1} of {repeats}")
            turn = engine.run(requests, side == "guided", use_tqdm=bar)
            turns[side].append(turn)
    return turns


def summarize(turns: Sequence[Turn]) -> dict[str, Any]:
    """The figures of a side."""
    return middle(turns).report() | {"turns": [turn.report() for turn in turns]}


def show(figures: dict[str, Any]) -> None:
    """Print the figures of a side."""
    print(
        f"Throughput: {figures['requests_per_second']:.2f} requests/s, "
        f"{figures['tokens_per_second']:.2f} total tokens/s, "
        f"{figures['output_tokens_per_second']:.2f} output tokens/s"
    )
    print(stream_line(figures))
    print(f"Total num prompt tokens:  {figures['total_prompt_tokens']}")
    print(f"Total num output tokens:  {figures['total_output_tokens']}", flush=True)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse the command line, measure, print and write JSON; returns what the JSON holds."""
    prepare_environment()
    description = (__doc__ or "").splitlines()[0]
    parser, options, told = parse_command_line(description, add_flags, arguments)
    if options.dataset_name == "random" and options.dataset_path is not None:
        parser.error("--dataset-path must not be given with --dataset-name random")
    repeats = options.repeats or (3 if options.compare else 1)
    told["parameters"]["repeats"] = repeats
    main_side = "unguided" if options.guidance_scale is None else "guided"
    sides = ["guided", "unguided"] if options.compare else [main_side]
    with tempfile.TemporaryDirectory() as folder:
        model = open_model(parser, options, Path(folder))
        requests = make_requests(parser, options, model, options.num_prompts, options.seed)
        warm_up = requests[: options.num_warmups]

        def params(output_len: int, index: int, guided: bool) -> Any:
            is_multistream = model.spec is not None
            return make_params(
                options, output_len, index, is_multistream=is_multistream, guided=guided
            )

        with open_engine(model, params) as engine:
            turns = run_turns(engine, requests, warm_up, sides, repeats)
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
            *([turn.num_requests / turn.seconds for turn in turns[side]] for side in sides)
        )
    for side in sides:
        if options.compare:
            print(f"{side}:")
        show(report if side == main_side else report[side])
    if options.compare:
        ratio = report["guided_over_unguided"]
        low, high = ratio["range"]
        print(f"guided / unguided: {ratio['ratio']} ({low} to {high}) in requests/s")
    if options.output_json:
        options.output_json.write_text(json.dumps(report, indent=2, default=str) + "\n")
    return report


if __name__ == "__main__":
    main()
