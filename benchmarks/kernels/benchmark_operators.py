# SPDX-License-Identifier: Apache-2.0
"""Time the step's operators against PyTorch operators and against their rooflines.

    python benchmarks/kernels/benchmark_operators.py --output-json operators.json

Each operator is compared with the composition of PyTorch operators that does the same, both called
alternately in one process; reported are medians, their ratio, the bytes and operations that the
operator must touch and compute, and the roofline that these give (see roofline.py). Sampling has a
script of its own, benchmark_sampling.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from hardware import describe_machine
from roofline import Machine, measure_machine

from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.phases import PhaseTable, StateKind
from vllm.unison.ops.cfg_merge import cfg_merge
from vllm.unison.ops.embed import embed_streams
from vllm.unison.ops.extension import load_extension
from vllm.unison.ops.phase_step import gather_ids, gather_ids_reference
from vllm.unison.sampler.phase_machine import PhaseMachine
from vllm.unison.sampler.slot_table import SlotTable
from vllm.unison.testing.random_checkpoint import stream_layout

STREAMS = 8
CODEBOOK = 1024


@dataclass(frozen=True)
class Case:
    """An operator on a size, and what it must touch and compute."""

    operator: str
    size: str
    num_bytes: int
    operations: int
    compiled: Callable[[], object]
    composed: Callable[[], object]


clock = time.perf_counter
"""What times are taken with: --cpu-time replaces it."""


def median_times(variants: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median milliseconds of each variant, calls interleaved."""
    times: list[list[float]] = [[] for _ in variants]
    for repeat in range(repeats + 3):
        for variant, samples in zip(variants, times, strict=True):
            start = clock()
            variant()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat >= 3:
                samples.append((clock() - start) * 1e3)
    return [statistics.median(samples) for samples in times]


def compose_merge(
    values: torch.Tensor, members: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """cfg_merge by PyTorch operators."""
    merged = values[members[:, 0]].float() * weights[:, :1]
    for lane in range(1, members.shape[1]):
        merged += values[members[:, lane]].float() * weights[:, lane, None]
    return merged.to(values.dtype)


def compose_embedding(
    table: torch.Tensor,
    ids: torch.Tensor,
    auxiliary: torch.Tensor,
    row_of: torch.Tensor,
    others: torch.Tensor,
) -> torch.Tensor:
    """embed_streams by PyTorch operators: the bag gathers no intermediate either."""
    rows = row_of[others.long()]
    bag = F.embedding_bag(rows, auxiliary, mode="sum", padding_idx=0)
    return F.embedding(ids, table) + bag


def merge_cases(device: str) -> Iterator[Case]:
    """The CFG merge of hidden states."""
    for groups, lanes, width in ((1, 2, 1024), (32, 2, 256), (32, 2, 1024), (32, 3, 4096)):
        for dtype in (torch.bfloat16, torch.float32):
            values = torch.randn(groups * lanes, width, device=device).to(dtype)
            members = torch.arange(groups * lanes, device=device).view(groups, lanes)
            weights = torch.randn(groups, lanes, device=device)

            yield Case(
                "cfg_merge",
                f"{groups} groups x {lanes} lanes x {width}, {str(dtype)[6:]}",
                groups * (lanes + 1) * width * values.element_size(),
                2 * groups * lanes * width,
                partial(cfg_merge, values, members, weights),
                partial(compose_merge, values, members, weights),
            )


def embedding_cases(device: str) -> Iterator[Case]:
    """Embeddings of all streams, summed."""
    vocabulary = STREAMS * CODEBOOK + 512
    for tokens, width in ((1, 1024), (64, 256), (64, 1024), (512, 1024), (64, 4096)):
        table = torch.randn(vocabulary, width, device=device).bfloat16()
        auxiliary = torch.randn(vocabulary + 1, width, device=device).bfloat16()
        auxiliary[0] = 0
        row_of = torch.arange(1, vocabulary + 1, dtype=torch.int32, device=device)
        ids = torch.randint(0, vocabulary, (tokens,), device=device).int()
        others = torch.randint(0, vocabulary, (tokens, STREAMS - 1), device=device).int()

        yield Case(
            "embed_streams",
            f"{tokens} tokens x {STREAMS} streams x {width}, bfloat16",
            tokens * ((STREAMS + 1) * width * 2 + STREAMS * 4 + (STREAMS - 1) * 4),
            tokens * STREAMS * width,
            partial(embed_streams, table, ids, None, auxiliary, row_of, others),
            partial(compose_embedding, table, ids, auxiliary, row_of, others),
        )


def phase_cases(device: str) -> Iterator[Case]:
    """The operators of the phase step."""
    layout = StreamLayout.from_dict(stream_layout(STREAMS, codebook_size=CODEBOOK))
    table = PhaseTable(layout)
    for rows in (2, 64):
        state = SlotTable(layout, table, rows, 512, torch.device(device))
        audio = int((table.kind == StateKind.AUDIO).argmax())
        state.progress.state.fill_(audio)
        state.row_slots = torch.arange(rows, device=device)
        rule = PhaseMachine(layout, table, state)
        position = torch.full((rows,), 40, device=device)
        discard = torch.zeros(rows, dtype=torch.bool, device=device)
        tokens = torch.randint(300, 900, (rows, STREAMS), device=device).int()
        ids = torch.empty((rows, STREAMS - 1), dtype=torch.int32, device=device)
        index = torch.arange(rows, device=device).int()
        size = f"{rows} rows x {STREAMS} streams"
        # Row: slot, position, six numbers of the slot; forced, tokens and mask index are written.
        constrain_bytes = rows * (8 * 8 + (2 * STREAMS + 2) * 4)
        yield Case(
            "constrain_streams",
            size,
            constrain_bytes,
            rows * STREAMS * 8,
            partial(rule.constrain, position),
            partial(rule.constrain_reference, position),
        )
        # Row: slot, position, discard; five numbers of the slot, three of them written; tokens read
        # and written to the history; the outcome written.
        commit_bytes = rows * (2 * 8 + 1 + 8 * 8 + 2 * STREAMS * 4 + 3 * 8)
        yield Case(
            "commit_streams",
            size,
            commit_bytes,
            rows * (STREAMS * 2 + 30),
            partial(rule.commit, position, discard, tokens, None),
            partial(rule.commit_reference, position, discard, tokens, None),
        )
        gather_bytes = rows * (4 + 2 * 8 + 2 * (STREAMS - 1) * 4)
        arguments = (state.history, state.row_slots, index, position, ids)
        yield Case(
            "gather_streams",
            size,
            gather_bytes,
            rows * STREAMS,
            partial(gather_ids, *arguments),
            partial(gather_ids_reference, *arguments),
        )


def measure_case(case: Case, machine: Machine, repeats: int) -> dict[str, Any]:
    """The report's row of a case."""
    compiled, composed = median_times([case.compiled, case.composed], repeats)
    return {
        "operator": case.operator,
        "size": case.size,
        "bytes": case.num_bytes,
        "operations": case.operations,
        "roofline_ms": round(machine.roofline_ms(case.num_bytes, case.operations), 5),
        "operator_ms": round(compiled, 5),
        "composition_ms": round(composed, 5),
        "times_faster": round(composed / compiled, 2),
    }


def main() -> None:
    """Run all cases, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=51)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output-json", type=Path)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="one thread, and its own processor time: for machines that others use too",
    )
    options = parser.parse_args()
    global clock
    if options.cpu_time:
        torch.set_num_threads(1)
        clock = time.thread_time
    load_extension()
    machine = measure_machine(options.device, clock)
    report: dict[str, Any] = {
        "machine": describe_machine() | {"threads": torch.get_num_threads()},
        "clock": clock.__name__,
        "roofline": asdict(machine),
        "operators": [],
    }
    if options.device == "cuda":
        report["machine"]["accelerator"] = torch.cuda.get_device_name()
    gigabytes, gigaoperations = (value / 1e9 for value in asdict(machine).values())
    print(f"{gigabytes:.1f} GB/s, {gigaoperations:.0f} Gop/s")
    print(f"{'operator, size':<62} {'roofline':>8} {'operator':>9} {'PyTorch':>8} {'faster':>7}")
    for cases in (merge_cases, embedding_cases, phase_cases):
        for case in cases(options.device):
            row = measure_case(case, machine, options.repeats)
            report["operators"].append(row)
            print(
                f"{row['operator'] + ', ' + row['size']:<62} {row['roofline_ms'] * 1e3:>6.1f}us "
                f"{row['operator_ms'] * 1e3:>7.1f}us {row['composition_ms'] * 1e3:>6.1f}us "
                f"{row['times_faster']:>6.1f}x"
            )
    if options.output_json:
        options.output_json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
