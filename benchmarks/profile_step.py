# SPDX-License-Identifier: Apache-2.0
"""Where the time of a decode step goes, part by part.

    python benchmarks/profile_step.py --groups 1 32 --output-json profile.json

Guided requests decode on a random model of 8 streams, and plain ones, two per guided request, for
comparison: first as `LLM.generate` runs them, whose callers want the final output only; then
streamed, with an output per step. Every part is a method of the engine that is timed from outside;
time counts for the innermost part that runs, so the parts add up to the step. A step more counts
the PyTorch operators that each part calls. The timers themselves cost about a microsecond per call,
and count for the parts that they time. The kinds are interleaved in several rounds; given are
medians of the rounds, and the range of the shares.

"Outside" is all but the backbone's forward: heads, sampling, preparation, scheduling and outputs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from benchmark_guidance import WARM_UP_STEPS, Variant, write_model
from hardware import describe_machine
from tqdm import tqdm

BACKBONE = "backbone"
"""The part whose share is what is left when everything else costs nothing."""

VARIANTS = (("", False), (", streamed", True))
"""How requests run: suffix of the kind, and whether they are streamed."""


class PartTimer:
    """Times nested parts of a step; time counts for the innermost one.

    Args:
        clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self.operators: Counter[str] = Counter()
        self._stack: list[str] = []
        self._since = 0.0

    @property
    def current(self) -> str:
        """The innermost part that runs."""
        return self._stack[-1] if self._stack else "other"

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Time a method of an object as a part."""
        method: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._enter(part)
            try:
                return method(*args, **kwargs)
            finally:
                self._leave()

        # A module's forward is looked up on the instance, too.
        setattr(owner, name, timed)

    def reset(self) -> None:
        """Forget what was measured."""
        self.seconds.clear()
        self.calls.clear()
        self.operators.clear()

    def _enter(self, part: str) -> None:
        now = self._clock()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._stack.append(part)
        self.calls[part] += 1
        self._since = self._clock()

    def _leave(self) -> None:
        now = self._clock()
        self.seconds[self._stack.pop()] += now - self._since
        self._since = self._clock()


def instrument(engine: Any, timer: PartTimer) -> None:
    """Time the parts of an in-process engine's step."""
    core = engine.engine_core.engine_core
    runner = core.model_executor.driver_worker.worker.model_runner
    model = runner.model
    timer.wrap(engine, "step", "engine loop")
    timer.wrap(engine.output_processor, "process_outputs", "output processing")
    timer.wrap(core.scheduler, "schedule", "schedule")
    timer.wrap(core.scheduler, "update_from_output", "update from output")
    timer.wrap(runner, "execute_model", "input preparation")
    timer.wrap(runner, "_update_states", "batch update")
    timer.wrap(runner.adapter, "begin_step", "batch update")
    timer.wrap(runner.adapter, "prepare_inputs", "input streams")
    timer.wrap(model, "embed_input_ids", "embedding")
    timer.wrap(model.backbone, "forward", BACKBONE)
    timer.wrap(runner, "sample_tokens", "output rows")
    timer.wrap(runner.adapter.worker, "sample", "phases")
    timer.wrap(model, "audio_logits", "heads")
    timer.wrap(model, "text_logits", "heads")
    timer.wrap(runner.adapter.worker, "collect", "output rows")
    import vllm.unison.sampler.sampling_plan as sampling_plan
    import vllm.unison.sampler.stream_sampler as stream_sampler

    for module in (stream_sampler, sampling_plan):
        timer.wrap(module, "cfg_merge", "CFG merge")
        timer.wrap(module, "sample_streams", "sampling")


def count_operators(timer: PartTimer) -> Any:
    """A context in which the PyTorch operators of each part are counted."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            timer.operators[timer.current] += 1
            return func(*args, **(kwargs or {}))

    return Counting()


def profile(
    variant: Variant,
    timer: PartTimer,
    count: int,
    num_steps: int,
    statistic: Callable[[Iterable[float]], float],
    is_streamed: bool,
) -> dict[str, Any]:
    """Milliseconds and operators per step of each part, `count` requests running."""
    engine = variant.engine
    ids = variant.start(count, num_steps + WARM_UP_STEPS + 6, is_streamed=is_streamed)
    for _ in range(WARM_UP_STEPS):
        engine.step()
    steps: list[dict[str, float]] = []
    for _ in range(num_steps):
        timer.reset()
        engine.step()
        steps.append(dict(timer.seconds))
    timer.reset()
    with count_operators(timer):
        engine.step()
    operators = dict(timer.operators)
    engine.abort_request(ids)
    while engine.has_unfinished_requests():
        engine.step()
    parts = sorted({part for step in steps for part in step})
    total = statistic(sum(step.values()) for step in steps) * 1e3
    seconds = {part: statistic(step.get(part, 0.0) for step in steps) for part in parts}
    outside = 1 - seconds[BACKBONE] / sum(seconds.values())
    return {
        "requests": count,
        "step_ms": round(total, 3),
        "outside_backbone": round(outside, 4),
        "parts_ms": {part: round(seconds[part] * 1e3, 4) for part in parts},
        "operators": operators,
    }


def middle(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What stands for the rounds: medians of times and shares, and the range of the shares."""
    shares = [row["outside_backbone"] for row in rows]
    parts = sorted({part for row in rows for part in row["parts_ms"]})

    def median(values: Iterable[float]) -> float:
        return round(statistics.median(values), 4)

    return rows[0] | {
        "step_ms": median(row["step_ms"] for row in rows),
        "outside_backbone": median(shares),
        "outside_backbone_range": [min(shares), max(shares)],
        "parts_ms": {
            part: median(row["parts_ms"].get(part, 0.0) for row in rows) for part in parts
        },
    }


def show(kind: str, row: dict[str, Any]) -> None:
    """Print one profile as a table."""
    low, high = row["outside_backbone_range"]
    print(
        f"\n{kind}, {row['requests']} requests: {row['step_ms']:.2f} ms, outside the backbone "
        f"{row['outside_backbone']:.1%} ({low:.1%} to {high:.1%})"
    )
    for part, milliseconds in sorted(row["parts_ms"].items(), key=lambda item: -item[1]):
        operators = row["operators"].get(part, 0)
        share = milliseconds / row["step_ms"]
        print(f"  {part:<20} {milliseconds:>8.3f} ms {share:>6.1%} {operators:>5} operators")


def main() -> None:
    """Parse the command line, profile, print and write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--num-layers", type=int, default=6)
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 4, 32])
    parser.add_argument("--steps", type=int, default=40, help="per round and kind")
    parser.add_argument("--rounds", type=int, default=9, help="of all kinds, interleaved")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    parser.add_argument(
        "--fastest",
        action="store_true",
        help="each part's fastest time instead of its median: for machines that others use too",
    )
    parser.add_argument("--output-json", type=Path)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="one thread, and the process's own processor time: as above",
    )
    options = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    clock = time.perf_counter
    if options.cpu_time:
        # Threads that wait for each other would spend processor time.
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0"
        os.environ["OMP_NUM_THREADS"] = "1"
        clock = time.process_time
    statistic = min if options.fastest else statistics.median
    report: dict[str, Any] = {
        "statistic": statistic.__name__,
        "clock": clock.__name__,
        "machine": describe_machine(),
        "hidden_size": options.hidden_size,
        "num_layers": options.num_layers,
        "compiled": options.compile,
        "rounds": options.rounds,
        "profiles": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder), options.hidden_size, options.num_layers)
        variant = Variant("guided", str(model), enforce_eager=not options.compile)
        timer = PartTimer(clock)
        instrument(variant.engine, timer)
        for count in options.groups:
            found: dict[str, list[dict[str, Any]]] = defaultdict(list)
            for _ in tqdm(range(options.rounds), desc=f"{count} groups", unit=" rounds"):
                for suffix, is_streamed in VARIANTS:
                    for kind, requests in (("guided", count), ("plain", 2 * count)):
                        variant.kind = kind
                        row = profile(
                            variant, timer, requests, options.steps, statistic, is_streamed
                        )
                        found[kind + suffix].append(row)
            for name, rows in found.items():
                row = middle(rows)
                show(name, row)
                report["profiles"].append({"kind": name} | row)
    if options.output_json:
        options.output_json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
