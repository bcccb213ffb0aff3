# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of throughput and latency share: one engine, guided or not, and a report."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine_rounds import Round, RoundEngine, open_engine
from hardware import describe_machine
from ratios import compare
from workload import (
    Request,
    make_params,
    make_requests,
    open_model,
    parse_command_line,
    prepare_environment,
)

Rounds = dict[str, list[Round]]
"""By variant, "guided" or "unguided"."""


@dataclass(frozen=True)
class Benchmark:
    """What one of the benchmarks does its own way.

    Attributes:
        description: of the command.
        add_flags: adds its flags to the parser.
        complete: given the parser, the options and the report's settings, checks the flags and
            fills in defaults.
        num_requests: requests that it runs, from the options.
        run: rounds of every variant: the engine, the requests, the variants and the options.
        summarize: a variant's part of the report.
        show: prints that part.
        figure: of a round; its ratio is the comparison.
        figure_name: what to print of it.
    """

    description: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    complete: Callable[[argparse.ArgumentParser, argparse.Namespace, dict[str, Any]], None]
    num_requests: Callable[[argparse.Namespace], int]
    run: Callable[
        [RoundEngine, Sequence[Request], Sequence[str], argparse.Namespace],
        Rounds,
    ]
    summarize: Callable[[Sequence[Round]], dict[str, Any]]
    show: Callable[[dict[str, Any]], None]
    figure: Callable[[Round], float]
    figure_name: str


def interleaved(variants: Sequence[str], number: int) -> Sequence[str]:
    """Variants in the order of round `number`: back and forth, so that none is always second."""
    return variants[:: -1 if number % 2 else 1]


def run_benchmark(benchmark: Benchmark, arguments: Sequence[str] | None) -> dict[str, Any]:
    """Parse the command line, measure, print and write JSON; returns what the JSON holds."""
    prepare_environment()
    parser, options, settings = parse_command_line(
        benchmark.description, benchmark.add_flags, arguments
    )
    benchmark.complete(parser, options, settings)
    main_variant = "unguided" if options.guidance_scale is None else "guided"
    variants = ["guided", "unguided"] if options.compare else [main_variant]
    with tempfile.TemporaryDirectory() as folder:
        model = open_model(parser, options, Path(folder))
        count = benchmark.num_requests(options)
        requests = make_requests(parser, options, model, count, options.seed)

        def params(output_len: int, index: int, guided: bool) -> Any:
            is_multistream = model.spec is not None
            return make_params(
                options, output_len, index, is_multistream=is_multistream, guided=guided
            )

        with open_engine(model, params) as engine:
            rounds = benchmark.run(engine, requests, variants, options)
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "model_id": options.model or "random weights",
        "model": model.describe(),
        **settings,
        "variant": main_variant,
        **benchmark.summarize(rounds[main_variant]),
    }
    if options.compare:
        report["unguided"] = benchmark.summarize(rounds["unguided"])
        report["guided_over_unguided"] = compare(
            *([benchmark.figure(measured) for measured in rounds[variant]] for variant in variants)
        )
    for variant in variants:
        if options.compare:
            print(f"{variant}:")
        benchmark.show(report if variant == main_variant else report[variant])
    if options.compare:
        ratio = report["guided_over_unguided"]
        low, high = ratio["range"]
        print(f"guided / unguided: {ratio['ratio']} ({low} to {high}) in {benchmark.figure_name}")
    if options.output_json:
        options.output_json.write_text(json.dumps(report, indent=2, default=str) + "\n")
    return report
