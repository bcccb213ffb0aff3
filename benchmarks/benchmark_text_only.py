# SPDX-License-Identifier: Apache-2.0
"""Text-only models on the fork beside the unpatched upstream package, in one environment.

    python benchmarks/benchmark_text_only.py --output-json benchmarks/results/text_only.json

Both sides run with the same interpreter and the same other packages; only the folder `vllm` that
Python imports differs. Upstream's is the release's own wheel for CPUs, unpacked (its files are
checked against upstream.toml, and downloaded if they are not there).

A pair is a process of each side, both made anew, since the same code differs by some per cent from
process to process. Within a pair rounds are interleaved, and the pair's ratio is the median of its
rounds' ratios. Of two equal processes the one that starts first can be a tenth slower, so which
side starts first alternates, and neighbouring pairs are taken together by their geometric mean, in
which each side has been first once. A row's ratio is the median of those means, beside their range;
below 1 the fork is slower. Tokens per second of `LLM.generate`, requests of one length that come at
once, in bfloat16, with `enforce_eager`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from benchmark_side_by_side import (
    LENGTH,
    PROMPT_TOKENS,
    REQUESTS,
    SIZES,
    WARM_UP_LENGTH,
    EngineVariant,
    positive,
    sampling,
    size_of,
    text_prompts,
    write_text_model,
)
from hardware import describe_machine
from ratios import median_and_range
from tqdm import tqdm
from variant_process import VariantProcess, serve

SIDES = ("fork", "upstream")
PAIRS = 9
ROUNDS = 5


class TextVariant(EngineVariant):
    """An engine of a text-only model, of whichever package Python imports."""

    def describe(self) -> dict[str, Any]:
        """Version, threads, and whether the package is the fork."""
        from vllm import SamplingParams

        return super().describe() | {"is_fork": hasattr(SamplingParams, "guidance_scale")}

    def run(self, count: int, length: int) -> float:
        """Tokens per second of `count` requests at once."""
        from vllm import SamplingParams

        params = [SamplingParams(**sampling(row, length)) for row in range(count)]
        _, seconds = self.generate(text_prompts(count), params, length)
        return count * length / seconds


def unpack_upstream(folder: Path) -> Path:
    """The unpatched package of the default release, below `folder`; what to put on PYTHONPATH."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tools.fork.fetch import fetch
    from tools.fork.package import machine
    from tools.fork.project import load_project

    project = load_project()
    wheel = fetch(project, project.release().wheel("cpu", machine()))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def open_pair(model: Path, upstream: Path, rows: int, first: str) -> dict[str, VariantProcess]:
    """A new process of each side, `first` started first.

    Raises:
        RuntimeError: a side failed, or is not what it has to be.
    """
    opened: dict[str, VariantProcess] = {}
    said: dict[str, Any] = {}
    for side in sorted(SIDES, key=lambda name: name != first):
        path = {"PYTHONPATH": str(upstream)} if side == "upstream" else {}
        opened[side] = VariantProcess(
            sys.executable,
            Path(__file__),
            ["--variant", str(model), str(rows)],
            environment=os.environ | path,
        )
        opened[side].wait_until_ready()
        said[side] = opened[side].call("describe")
        if said[side]["is_fork"] != (side == "fork"):
            raise RuntimeError(f"{side} has imported {said[side]}")
    if said["fork"]["threads"] != said["upstream"]["threads"]:
        raise RuntimeError(f"the sides have different threads: {said}")
    return opened


def measure_pair(
    pair: dict[str, VariantProcess], requests: Sequence[int], length: int, rounds: int
) -> dict[int, dict[str, list[float]]]:
    """Tokens per second by number of requests and side, after a warm-up."""
    for process in pair.values():
        for count in requests:
            process.call("run", count, min(length, WARM_UP_LENGTH))
    measured: dict[int, dict[str, list[float]]] = {n: {s: [] for s in SIDES} for n in requests}
    for number in range(rounds):
        for count in requests:
            for side in SIDES[:: -1 if number % 2 else 1]:
                measured[count][side].append(pair[side].call("run", count, length))
    return measured


def summarize(pairs: Sequence[dict[int, dict[str, list[float]]]]) -> list[dict[str, Any]]:
    """A row per number of requests."""
    rows = []
    for count in pairs[0]:
        ratios = [
            statistics.median(
                f / u for f, u in zip(pair[count]["fork"], pair[count]["upstream"], strict=True)
            )
            for pair in pairs
        ]
        row: dict[str, Any] = {"requests": count}
        for side in SIDES:
            medians = [statistics.median(pair[count][side]) for pair in pairs]
            row[f"{side}_tokens_per_second"] = round(statistics.median(medians), 1)
        row["fork_over_upstream"] = over_both_orders(ratios)
        row["pairs"] = [round(ratio, 3) for ratio in ratios]
        rows.append(row)
    return rows


def over_both_orders(ratios: Sequence[float]) -> dict[str, Any]:
    """Median and range of the neighbouring pairs' geometric means; of a lone pair its ratio."""
    means = [statistics.geometric_mean(two) for two in itertools.pairwise(ratios)]
    return median_and_range(means or ratios)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; `--quick` sets what makes a run short, unless it is given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variant", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--output-json", type=Path)
    parser.add_argument(
        "--sizes", type=size_of, nargs="+", help=f"<hidden size>x<layers> (default: {SIZES})"
    )
    parser.add_argument(
        "--requests", type=positive, nargs="+", help=f"at once (default: {REQUESTS})"
    )
    parser.add_argument("--length", type=positive, help=f"tokens (default: {LENGTH})")
    parser.add_argument("--pairs", type=positive, help=f"of processes (default: {PAIRS})")
    parser.add_argument("--rounds", type=positive, help=f"of a pair (default: {ROUNDS})")
    parser.add_argument(
        "--quick", action="store_true", help="a small model and few steps: shows that it runs"
    )
    options = parser.parse_args(arguments)
    sizes, requests, length, pairs, rounds = (
        (("64x2",), [1, 2], 8, 1, 2)
        if options.quick
        else (SIZES, list(REQUESTS), LENGTH, PAIRS, ROUNDS)
    )
    options.sizes = options.sizes or [size_of(size) for size in sizes]
    options.requests = options.requests or requests
    options.length = options.length or length
    options.pairs = options.pairs or pairs
    options.rounds = options.rounds or rounds
    return options


def main() -> None:
    """Parse the command line, measure, print and write JSON."""
    options = parse_arguments()
    if options.variant:
        model, rows = options.variant
        serve(lambda: TextVariant(model, int(rows)))
        return
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "parameters": {
            "dtype": "bfloat16",
            "prompt_tokens": PROMPT_TOKENS,
            "length": options.length,
            "pairs": options.pairs,
            "rounds": options.rounds,
        },
        "models": [],
    }
    start = time.perf_counter()
    total = len(options.sizes) * options.pairs
    with tempfile.TemporaryDirectory() as scratch, tqdm(total=total, unit=" pairs") as bar:
        upstream = unpack_upstream(Path(scratch) / "upstream")
        for hidden_size, num_layers in options.sizes:
            name = f"{hidden_size}x{num_layers}"
            bar.set_description(name)
            model = write_text_model(Path(scratch) / name, hidden_size, num_layers)
            measured = []
            for number in range(options.pairs):
                pair = open_pair(model, upstream, max(options.requests), SIDES[number % 2])
                try:
                    measured.append(
                        measure_pair(pair, options.requests, options.length, options.rounds)
                    )
                finally:
                    for process in pair.values():
                        process.end()
                bar.update()
            rows = summarize(measured)
            report["models"].append(
                {"hidden_size": hidden_size, "num_layers": num_layers, "rows": rows}
            )
            bar.clear()
            for row in rows:
                print(f"{name}: {json.dumps(row)}", flush=True)
    report["seconds"] = round(time.perf_counter() - start)
    if options.output_json:
        options.output_json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
