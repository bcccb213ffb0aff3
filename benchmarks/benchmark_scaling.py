# SPDX-License-Identifier: Apache-2.0
r"""How the decode step grows: with the batch, the lanes, the streams and the context.

    python benchmarks/benchmark_scaling.py --output-json benchmarks/results/scaling.json

Milliseconds of a decode step (`LLMEngine.step`, median over the steps, all requests decoding) of
random models of 256 wide states and 6 layers, bfloat16, eager:

- batch: N guided requests of two lanes, against N and against 2N plain ones;
- lanes: 8 requests of 1 to 6 lanes each, against as many plain requests as they have lanes. The
  second lane has the model's null prompt of one token, each further one a prompt of its own;
- streams: 16 plain requests on models of 1 to 32 streams of 1024 codes;
- length: 8 requests, guided and plain, at the end of a context of 128 to 2048 tokens. The guidance
  lane is as short as the null prompt.

Each model has an engine in a process of its own. All points are interleaved, back and forth. Given
are medians of the rounds, and their range; a ratio is the median of the rounds' ratios. The first
round of a launch is not counted: it fills the prefix cache with the long prompts. The six engines
take some 10 GiB of memory together.
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
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from benchmark_guidance import (
    PROMPT_TOKENS,
    SCALE,
    WARM_UP_STEPS,
    Variant,
    open_variant,
    write_model,
)
from hardware import describe_machine
from ratios import compare
from tqdm import tqdm
from variant_process import serve


@dataclass(frozen=True)
class Point:
    """What one measurement runs.

    Attributes:
        streams: of the model.
        requests: that decode at once.
        lanes: of each request; 1 is plain.
        context: tokens that the conditional lane has at the last step; 0 for a prompt of
            PROMPT_TOKENS.
    """

    streams: int
    requests: int
    lanes: int = 1
    context: int = 0


@dataclass(frozen=True)
class Sizes:
    """The points of each curve.

    Attributes:
        hidden_size, num_layers: of all models.
        streams: of the model of the curves over batch, lanes and length.
        groups: requests of the batch's curve.
        lanes: lanes of the lanes' curve, without 1.
        lane_requests: requests of the lanes' curve.
        num_streams: models of the streams' curve.
        stream_requests: requests of the streams' curve.
        contexts: tokens of the length's curve.
        length_requests: requests of the length's curve.
    """

    hidden_size: int = 256
    num_layers: int = 6
    streams: int = 8
    groups: Sequence[int] = (1, 2, 4, 8, 16, 32)
    lanes: Sequence[int] = (2, 3, 4, 5, 6)
    lane_requests: int = 8
    num_streams: Sequence[int] = (1, 2, 4, 8, 16, 32)
    stream_requests: int = 16
    contexts: Sequence[int] = (128, 512, 1024, 2048)
    length_requests: int = 8


QUICK = Sizes(
    hidden_size=64,
    num_layers=1,
    streams=2,
    groups=(1, 2),
    lanes=(2, 3),
    lane_requests=2,
    num_streams=(2,),
    stream_requests=2,
    contexts=(64, 128),
    length_requests=2,
)

Results = dict[Point, list[float]]


def plan_points(sizes: Sizes) -> list[Point]:
    """All points, each once, those compared in a row."""
    streams = sizes.streams
    points = []
    for count in sizes.groups:
        points += [Point(streams, count, 2), Point(streams, count), Point(streams, 2 * count)]
    points.append(Point(streams, sizes.lane_requests))
    for lanes in sizes.lanes:
        points.append(Point(streams, sizes.lane_requests, lanes))
        points.append(Point(streams, sizes.lane_requests * lanes))
    points += [Point(count, sizes.stream_requests) for count in sizes.num_streams]
    for context in sizes.contexts:
        points += [Point(streams, sizes.length_requests, lanes, context) for lanes in (2, 1)]
    return list(dict.fromkeys(points))


class ScalingVariant(Variant):
    """Requests of any number of lanes and any length on an in-process engine.

    Args:
        model: folder of the checkpoint.
        max_model_len: maximum number of tokens of a lane.
    """

    def __init__(self, model: str, max_model_len: int) -> None:
        # Engines of all models are open at once.
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        super().__init__("plain", model, max_model_len=max_model_len)

    def decode(self, requests: int, lanes: int, context: int, num_steps: int) -> float:
        """Median milliseconds of a decode step; see Point for the arguments."""
        prompt_tokens = context - num_steps - WARM_UP_STEPS if context else PROMPT_TOKENS
        ids = self._start(requests, lanes, prompt_tokens)
        without_token = set(ids)
        while without_token:
            for output in self.engine.step():
                if output.outputs[0].token_ids:
                    without_token.discard(output.request_id)
        times = []
        for _ in range(num_steps + WARM_UP_STEPS):
            start = time.perf_counter()
            self.engine.step()
            times.append((time.perf_counter() - start) * 1e3)
        self._check_rows(requests * lanes)
        self.end(ids)
        return statistics.median(times[WARM_UP_STEPS:])

    def _start(self, requests: int, lanes: int, prompt_tokens: int) -> list[str]:
        from vllm import SamplingParams
        from vllm.unison.testing.random_checkpoint import BEGIN_AUDIO, BEGIN_TEXT, FIRST_TEXT

        def prompt(number: int, length: int) -> list[int]:
            text = [FIRST_TEXT + (7 * number + 3 * i) % 250 for i in range(length - 2)]
            return [BEGIN_TEXT, *text, BEGIN_AUDIO]

        # What the guidance lanes weigh together is 1 - SCALE, as with guidance_scale.
        weight = (1 - SCALE) / max(1, lanes - 1)
        guidance: list[dict[str, Any]] = [{"weight": SCALE}, {"weight": weight}]
        for lane in range(2, lanes):
            negative = prompt(100 + lane, PROMPT_TOKENS)
            guidance.append({"weight": weight, "prompt_token_ids": negative})
        ids = []
        for index in range(requests):
            self._made += 1
            params = SamplingParams(
                temperature=1.0,
                seed=index,
                max_tokens=None,
                ignore_eos=True,
                detokenize=False,
                guidance_lanes=guidance if lanes > 1 else None,
            )
            request_id = str(self._made)
            prompts = {"prompt_token_ids": prompt(index, prompt_tokens)}
            self.engine.add_request(request_id, prompts, params)
            ids.append(request_id)
        return ids


def max_model_len(sizes: Sizes) -> int:
    """Room for the longest context, and for the steps until the last request decodes."""
    return max(512, *sizes.contexts) + 256


def measure(folder: Path, sizes: Sizes, launches: int, rounds: int, steps: int) -> Results:
    """All launches and rounds; per point its milliseconds."""
    points = plan_points(sizes)
    length = max_model_len(sizes)
    models = {
        streams: write_model(
            folder / str(streams), sizes.hidden_size, sizes.num_layers, streams, length
        )
        for streams in dict.fromkeys(point.streams for point in points)
    }
    results: Results = {point: [] for point in points}
    total = launches * ((rounds + 1) * len(points) + len(models))
    with tqdm(total=total, unit=" measurements", desc="starting engines") as bar:
        for launch in range(launches):
            with ExitStack() as stack:
                variants = {}
                for streams, model in models.items():
                    variants[streams] = variant = open_variant(model, Path(__file__))
                    stack.callback(variant.end)
                for variant in variants.values():
                    variant.wait_until_ready()
                    bar.update()
                for number in range(rounds + 1):
                    bar.set_description(f"launch {launch + 1}, round {number}")
                    # Back and forth, so that none is always the one after the same other.
                    for point in points[:: -1 if number % 2 else 1]:
                        arguments = (point.requests, point.lanes, point.context, steps)
                        value = variants[point.streams].call("decode", *arguments)
                        if number:
                            results[point].append(value)
                        bar.update()
    return results


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median and range of the rounds' milliseconds."""
    return {
        "median": round(statistics.median(values), 3),
        "range": [round(min(values), 3), round(max(values), 3)],
    }


def summarize(results: Results, sizes: Sizes) -> dict[str, list[dict[str, Any]]]:
    """The report's tables "batch", "lanes", "streams" and "length"."""
    streams = sizes.streams
    batch = []
    for count in sizes.groups:
        guided = results[Point(streams, count, 2)]
        plain, twice = results[Point(streams, count)], results[Point(streams, 2 * count)]
        batch.append(
            {
                "groups": count,
                "guided_ms": spread(guided),
                "plain_ms": spread(plain),
                "plain_2n_ms": spread(twice),
                "guided_over_plain": compare(guided, plain),
                "guided_over_plain_2n": compare(guided, twice),
            }
        )
    lanes = []
    one_lane = results[Point(streams, sizes.lane_requests)]
    for count in (1, *sizes.lanes):
        guided = results[Point(streams, sizes.lane_requests, count)]
        rows = results[Point(streams, sizes.lane_requests * count)]
        lanes.append(
            {
                "lanes": count,
                "guided_ms": spread(guided),
                "plain_rows_ms": spread(rows),
                "over_one_lane": compare(guided, one_lane),
                "over_plain_rows": compare(guided, rows),
            }
        )
    fewest = results[Point(min(sizes.num_streams), sizes.stream_requests)]
    by_streams = [
        {
            "streams": count,
            "step_ms": spread(results[Point(count, sizes.stream_requests)]),
            "over_fewest": compare(results[Point(count, sizes.stream_requests)], fewest),
        }
        for count in sizes.num_streams
    ]
    length = []
    for context in sizes.contexts:
        guided, plain = (
            results[Point(streams, sizes.length_requests, count, context)] for count in (2, 1)
        )
        shortest = min(sizes.contexts)
        length.append(
            {
                "context": context,
                "guided_ms": spread(guided),
                "plain_ms": spread(plain),
                "guided_over_plain": compare(guided, plain),
                "guided_over_shortest": compare(
                    guided, results[Point(streams, sizes.length_requests, 2, shortest)]
                ),
                "plain_over_shortest": compare(
                    plain, results[Point(streams, sizes.length_requests, 1, shortest)]
                ),
            }
        )
    return {"batch": batch, "lanes": lanes, "streams": by_streams, "length": length}


def main() -> None:
    """Parse the command line, measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--output-json", type=Path)
    parser.add_argument("--launches", type=int, default=2, help="of all processes")
    parser.add_argument("--rounds", type=int, default=10, help="per launch, at least 1")
    parser.add_argument("--steps", type=int, default=24, help="decode steps per round and point")
    parser.add_argument(
        "--quick", action="store_true", help="small models and few steps: shows that it runs"
    )
    options = parser.parse_args()
    if options.variant:
        # All models take as long requests, so that engines differ in nothing but the streams.
        config = json.loads((Path(options.variant) / "config.json").read_text())
        longest = config["backbone_config"]["max_position_embeddings"]
        serve(lambda: ScalingVariant(options.variant, longest))
        return
    if min(options.launches, options.rounds, options.steps) < 1:
        parser.error("--launches, --rounds and --steps must be at least 1")
    sizes = Sizes()
    if options.quick:
        sizes, options.launches, options.rounds, options.steps = QUICK, 1, 1, 4
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), sizes, options.launches, options.rounds, options.steps)
    tables = summarize(results, sizes)
    for name, rows in tables.items():
        for row in rows:
            print(f"{name}: {json.dumps(row)}")
    report = {
        "machine": describe_machine(),
        "hidden_size": sizes.hidden_size,
        "num_layers": sizes.num_layers,
        "dtype": "bfloat16",
        "num_streams": sizes.streams,
        "lane_requests": sizes.lane_requests,
        "stream_requests": sizes.stream_requests,
        "length_requests": sizes.length_requests,
        "repeats": options.launches * options.rounds,
        **tables,
        "seconds": round(time.perf_counter() - start),
    }
    if options.output_json:
        options.output_json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
