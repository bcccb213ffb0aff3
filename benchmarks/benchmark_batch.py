# SPDX-License-Identifier: Apache-2.0
r"""Seconds of audio a second of `speak-batch`'s engine: one engine, and two beside each other.

    python benchmarks/benchmark_batch.py --output-json benchmarks/results/batch.json

The rows are sentences for the packaged model, float32, eager, guided every other one. Two engines,
each a process of one thread, have half of them each. Rounds of one and of two engines are
interleaved; a ratio is the median of the rounds' ratios. Each row's codes are compared: they must
not depend on how many engines there are.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from hardware import describe_machine
from variant_process import VariantProcess, serve

WORDS = ("please", "open", "blue", "door", "seven", "november", "stop", "four", "green", "lamp")


def rows(count: int) -> list[dict[str, Any]]:
    """Sentences of 2 to 6 words."""
    chosen = random.Random(0)
    return [
        {
            "text": " ".join(chosen.choices(WORDS, k=chosen.randint(2, 6))),
            "guidance_scale": 1.5 if index % 2 else 1.0,
            "max_tokens": 200,
        }
        for index in range(count)
    ]


class Engine:
    """An engine in this process."""

    def __init__(self, max_num_seqs: int) -> None:
        from vllm.entrypoints.speech.batch.engine import BatchEngine
        from vllm.entrypoints.speech.batch.requests import RowRules
        from vllm.entrypoints.speech.batch.settings import EngineSettings

        settings = EngineSettings(
            {
                "model": "unison-default",
                "dtype": "float32",
                "enforce_eager": True,
                "max_num_seqs": max_num_seqs,
            }
        )
        self._engine = BatchEngine(settings, RowRules("speak", Path()), seed=0)

    def run(self, first: int, count: int, step: int) -> dict[str, Any]:
        """Work off every `step`-th of the rows; returns seconds of audio, and hashes by row."""
        from vllm.entrypoints.speech.batch.rows import Row

        chosen = [Row(i, row) for i, row in enumerate(rows(count)) if i % step == first]
        entries = [result.entry for result in self._engine.run(chosen)]
        errors = [entry["error"] for entry in entries if entry["error"]]
        if errors:
            raise RuntimeError(errors[0])
        return {
            "seconds": sum(entry["seconds"] for entry in entries),
            "codes": {str(entry["index"]): entry["codes_sha256"] for entry in entries},
        }


def measure(engines: list[VariantProcess], count: int) -> tuple[float, dict[str, str]]:
    """Seconds of audio a second of some engines at once, and the rows' hashes."""
    begin = time.monotonic()
    with ThreadPoolExecutor(len(engines)) as pool:
        calls = [
            pool.submit(engine.call, "run", index, count, len(engines))
            for index, engine in enumerate(engines)
        ]
        found = [call.result() for call in calls]
    taken = time.monotonic() - begin
    codes = {name: code for part in found for name, code in part["codes"].items()}
    return sum(part["seconds"] for part in found) / taken, codes


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-num-seqs", type=int, default=16)
    parser.add_argument("--output-json", type=Path)
    parser.add_argument("--engine", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        serve(lambda: Engine(args.max_num_seqs))
        return
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    arguments = ["--engine", "--max-num-seqs", str(args.max_num_seqs)]
    engines = [
        VariantProcess(sys.executable, Path(__file__), arguments, environment) for _ in range(2)
    ]
    rates: dict[int, list[float]] = {1: [], 2: []}
    seen: list[dict[str, str]] = []
    try:
        for engine in engines:
            engine.wait_until_ready()
        measure(engines, args.rows)  # not counted
        for number in range(args.rounds):
            for count in (1, 2) if number % 2 == 0 else (2, 1):
                rate, codes = measure(engines[:count], args.rows)
                rates[count].append(rate)
                seen.append(codes)
    finally:
        for engine in engines:
            engine.end()
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    result = {
        "machine": describe_machine(),
        "load of the machine, 5 minutes": os.getloadavg()[1],
        "rows": args.rows,
        "seconds of audio a second, one engine": rates[1],
        "seconds of audio a second, two engines": rates[2],
        "two over one": ratios,
        "codes are equal": all(codes == seen[0] for codes in seen),
    }
    for count, values in rates.items():
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"{count} engines: {statistics.median(values):.2f} s of audio a second ({spread})")
    print(f"two over one: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"equal codes: {result['codes are equal']}")
    if args.output_json:
        args.output_json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
