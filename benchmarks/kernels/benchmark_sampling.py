# SPDX-License-Identifier: Apache-2.0
"""Time the multi-stream sampling operator against the same sampling composed of PyTorch operators.

    python benchmarks/kernels/benchmark_sampling.py --output-json sampling.json

The composition is the usual one: mask, divide by the temperature, topk, sort and cumulative softmax
for top-p, softmax, and argmax of probability over exponential noise. It is written in its favour:
filters that are off are not run, and its noise is not seeded per row. Both variants run interleaved
in one process; reported are medians and their ratio.

The roofline (see roofline.py) counts what every item must touch and compute: its logits, candidate
ids and mask read once; per candidate the noise's random word (Philox4x32-10: 10 rounds of 10
operations for four words), a bound of the noise, the mask, the temperature and two comparisons.
With top-k the words of k candidates suffice. Filters' own work is not counted: no fixed number of
operations finds a threshold.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from hardware import describe_machine
from roofline import Machine, measure_machine

from vllm.unison.ops.sample import SampleArguments, sample_streams


@dataclass(frozen=True)
class Case:
    """One shape and one setting of the filters, the same for every row and stream."""

    rows: int
    streams: int
    candidates: int
    dtype: str
    top_k: int
    top_p: float


@dataclass(frozen=True)
class Result:
    """Median milliseconds of one call of both variants."""

    case: Case
    operator_ms: float
    composition_ms: float
    ratio: float
    num_bytes: int
    operations: int
    roofline_ms: float


CASES = tuple(
    Case(rows, streams, candidates, dtype, top_k, top_p)
    for rows, streams, candidates in ((32, 9, 1024), (1, 9, 1024), (1, 1, 151936), (8, 1, 151936))
    for dtype in ("float32", "bfloat16")
    for top_k, top_p in ((0, 1.0), (30, 1.0), (0, 0.9), (30, 0.9))
)


def composition(
    logits: torch.Tensor,
    candidate_ids: torch.Tensor,
    mask: torch.Tensor,
    temperature: torch.Tensor,
    top_k: int,
    top_p: float,
) -> torch.Tensor:
    """[R, K] tokens by PyTorch operators; filters are the same for all items."""
    scores = logits.float().masked_fill(~mask, -torch.inf) / temperature.unsqueeze(-1)
    if top_k > 0:
        kth = scores.topk(top_k, dim=-1).values[..., -1:]
        scores = scores.masked_fill(scores < kth, -torch.inf)
    if top_p < 1.0:
        ascending, order = scores.sort(dim=-1)
        cumulative = ascending.softmax(-1).cumsum(-1)
        drop = cumulative <= 1 - top_p
        drop[..., -1] = False
        scores = scores.masked_fill(drop.scatter(-1, order, drop), -torch.inf)
    probabilities = scores.softmax(-1)
    noise = torch.empty_like(probabilities).exponential_()
    choice = (probabilities / noise).argmax(-1)
    return candidate_ids.expand(len(logits), -1, -1).gather(-1, choice.unsqueeze(-1)).squeeze(-1)


def median_times(variants: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median milliseconds of each variant, calls interleaved."""
    times: list[list[float]] = [[] for _ in variants]
    for repeat in range(repeats + 3):
        for variant, samples in zip(variants, times, strict=True):
            start = time.perf_counter()
            variant()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat >= 3:
                samples.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(samples) for samples in times]


WORD_OPERATIONS = 25
CANDIDATE_OPERATIONS = 8
BOUND_OPERATIONS = 6


def amounts(case: Case) -> tuple[int, int]:
    """Bytes and operations that sampling a case takes at least."""
    items = case.rows * case.streams
    size = 4 if case.dtype == "float32" else 2
    # Candidate ids and masks are the same for all rows, and stay in the cache.
    num_bytes = items * (case.candidates * size + 40) + case.streams * case.candidates * 5
    drawn = case.top_k or case.candidates
    operations = case.candidates * CANDIDATE_OPERATIONS
    operations += drawn * (WORD_OPERATIONS + BOUND_OPERATIONS)
    return num_bytes, items * operations


def run(case: Case, repeats: int, device: str, machine: Machine) -> Result:
    """Measure one case on random logits of standard deviation 3, a tenth of them masked."""
    generator = torch.Generator().manual_seed(0)
    shape = (case.rows, case.streams, case.candidates)
    items = shape[:2]
    logits = (torch.randn(shape, generator=generator) * 3).to(getattr(torch, case.dtype))
    logits = logits.to(device)
    candidate_ids = torch.arange(case.streams * case.candidates, dtype=torch.int32, device=device)
    candidate_ids = candidate_ids.view(case.streams, case.candidates)
    masks = (torch.rand((1, *shape[1:]), generator=generator) < 0.9).to(device)
    temperature = torch.full(items, 0.8, device=device)
    arguments = SampleArguments(
        candidate_ids=candidate_ids,
        masks=masks,
        mask_index=torch.zeros(case.rows, dtype=torch.int32, device=device),
        temperature=temperature,
        top_k=torch.full(items, case.top_k, dtype=torch.int32, device=device),
        top_p=torch.full(items, case.top_p, device=device),
        seed=torch.arange(case.rows, device=device),
        position=torch.arange(case.rows, device=device) + 100,
        first_stream=0,
        forced=torch.full(items, -1, dtype=torch.int32, device=device),
        tokens=torch.empty(items, dtype=torch.int32, device=device),
    )
    operator_ms, composition_ms = median_times(
        [
            lambda: sample_streams(logits, arguments),
            lambda: composition(
                logits, candidate_ids, masks[0], temperature, case.top_k, case.top_p
            ),
        ],
        repeats,
    )
    num_bytes, operations = amounts(case)
    return Result(
        case,
        operator_ms,
        composition_ms,
        composition_ms / operator_ms,
        num_bytes,
        operations,
        machine.roofline_ms(num_bytes, operations),
    )


def main() -> None:
    """Run all cases, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output-json", type=Path)
    arguments = parser.parse_args()

    described = describe_machine() | {"threads": torch.get_num_threads()}
    if arguments.device == "cuda":
        described["accelerator"] = torch.cuda.get_device_name()
    print(f"{described['processor']}, accelerator: {described['accelerator']}")
    print(
        f"{'R x K x C':>16} {'dtype':>9} {'top-k':>5} {'top-p':>5} "
        f"{'operator ms':>12} {'PyTorch ms':>11} {'ratio':>6} {'roofline ms':>9}"
    )
    results = []
    machine = measure_machine(arguments.device)
    for case in CASES:
        result = run(case, arguments.repeats, arguments.device, machine)
        results.append(result)
        shape = f"{case.rows} x {case.streams} x {case.candidates}"
        print(
            f"{shape:>16} {case.dtype:>9} {case.top_k:>5} {case.top_p:>5} "
            f"{result.operator_ms:>12.3f} {result.composition_ms:>11.3f} {result.ratio:>6.1f} "
            f"{result.roofline_ms:>9.3f}"
        )
    if arguments.output_json:
        report = {
            "machine": described,
            "roofline": asdict(machine),
            "results": [asdict(result) for result in results],
        }
        arguments.output_json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
