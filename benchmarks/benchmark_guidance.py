# SPDX-License-Identifier: Apache-2.0
"""What classifier-free guidance costs on this machine.

    python benchmarks/benchmark_guidance.py --output-json benchmarks/results/guidance.json

Three kinds of requests run on the same random model of 8 streams, interleaved in one engine:

- guided: requests with guidance_scale 3 and the model's constant null prompt of one token;
- plain: the same requests without guidance;
- naive: two loose requests per guided one, one with the request's prompt and one with the null
  prompt, which the engine knows nothing about. A hook around the worker's sampling step pairs rows
  by request id in a Python loop, and for each pair overwrites both rows of audio logits with the
  merged ones; both rows are then sampled, and the second is given the first one's tokens in another
  loop.
  This is guidance as a logits processor does it. It is the naive way at its best: here nothing ever
  separates a pair, and the logits are those of the streams only, not of the whole vocabulary.

Measured, for each model size:

- throughput (a): frames per second of N requests at once from the first to the last, prefill
  included, guided against plain. `plain_2n_over_n` is what plain decoding gives for the same: the
  frames per second and request of 2N plain requests over those of N.
- step (b): milliseconds of a decode step (`LLMEngine.step`, median over the steps, all requests
  running) of N guided requests against 2N plain ones.
- naive (c): the same against N pairs.
- null prompt: milliseconds from the arrival of one guided request to its first tokens, with a
  negative prompt of NULL_PROMPT_TOKENS tokens that is in the prefix cache (as a constant null
  prompt is after its first use) and with one that is not.

The kinds are interleaved, number of requests by number of requests, in one engine, so that
differences between processes are not taken for differences of the kinds. There are several rounds
in each of several launches, and each launch is a new process; steps of few groups are measured
several times in a round. A ratio is the median of the rounds' ratios; the JSON also holds its
range.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from hardware import describe_machine
from ratios import compare
from tqdm import tqdm
from variant_process import VariantProcess, serve

STREAMS = 8
CODEBOOK = 1024
SCALE = 3.0
PROMPT_TOKENS = 16
FRAMES = 32
WARM_UP_STEPS = 6
NULL_PROMPT_TOKENS = 385
STEP_GROUPS = (1, 2, 4, 8, 16, 32)
REPEATED_GROUPS = 8
THROUGHPUT_REQUESTS = (1, 2, 4, 8, 16)
SIZES = ((1024, 16), (256, 6))
KINDS = ("guided", "plain", "naive")


def write_model(
    folder: Path,
    hidden_size: int,
    num_layers: int,
    num_streams: int = STREAMS,
    max_positions: int = 2048,
) -> Path:
    """A multi-stream model with random weights and a null prompt, without a codec."""
    import torch

    from vllm.unison.testing.random_checkpoint import (
        BEGIN_AUDIO,
        stream_layout,
        write_random_speech_lm,
    )

    return write_random_speech_lm(
        folder,
        layout=stream_layout(num_streams, codebook_size=CODEBOOK),
        codec=None,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 64,
        max_positions=max_positions,
        initializer_range=0.02,
        guidance={"null_prompt": [BEGIN_AUDIO], "audio_only": False},
        dtype=torch.bfloat16,
    )


class Variant:
    """Requests of one kind at a time on an in-process bfloat16 engine.

    Args:
        kind: one of KINDS; `become` changes it.
        model: folder of the checkpoint.
        enforce_eager: run without torch.compile.
        max_model_len: maximum number of tokens of a lane.

    Attributes:
        kind: what `start` adds.
        engine: the LLMEngine.
    """

    def __init__(
        self, kind: str, model: str, enforce_eager: bool = True, max_model_len: int = 512
    ) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ["HF_HUB_OFFLINE"] = "1"
        from vllm import LLM

        self.kind = kind
        self.engine: Any = LLM(
            model,
            dtype="bfloat16",
            enforce_eager=enforce_eager,
            max_model_len=max_model_len,
            max_num_seqs=2 * max(STEP_GROUPS),
            disable_log_stats=True,
        ).llm_engine
        self._made = 0
        self._hooked: list[tuple[Any, str]] = []
        self.become(kind)

    def become(self, kind: str) -> None:
        """Run requests of another kind from now on; none may be running."""
        for owner, name in self._hooked:
            delattr(owner, name)
        self.kind, self._hooked = kind, []
        if kind == "naive":
            runner = self.engine.model_executor.driver_worker.worker.model_runner
            merge_pairs_by_hand(runner)
            self._hooked = [(runner.adapter.worker, "_sample"), (runner.model, "audio_logits")]

    def step(self, count: int, num_steps: int) -> float:
        """Median milliseconds of a decode step with `count` requests (or pairs) running."""
        ids = self.start(count, num_steps + WARM_UP_STEPS + 2)
        times = []
        for _ in range(num_steps + WARM_UP_STEPS):
            start = time.perf_counter()
            self.engine.step()
            times.append((time.perf_counter() - start) * 1e3)
        self._check_rows(count if self.kind == "plain" else 2 * count)
        self.end(ids)
        return statistics.median(times[WARM_UP_STEPS:])

    def throughput(self, count: int, num_frames: int) -> float:
        """Frames per second of `count` requests at once."""
        start = time.perf_counter()
        self.start(count, num_frames)
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                completion = output.outputs[0]
                if completion.finish_reason not in (None, "length"):
                    raise RuntimeError(f"a request ended with {completion.finish_reason}")
        return count * num_frames / (time.perf_counter() - start)

    def null_prompt(self, is_cached: int, num_tokens: int) -> float:
        """Milliseconds to the first tokens with a negative prompt that is or is not cached."""
        from vllm.unison.testing.random_checkpoint import FIRST_TEXT

        self._made += 1
        salt = 0 if is_cached else self._made
        text = [salt % 250, salt // 250, *((i * i) % 250 for i in range(num_tokens - 2))]
        negative = [FIRST_TEXT + token for token in text]
        for _ in range(1 + is_cached):
            start = time.perf_counter()
            ids = self.start(1, 4, negative)
            while not any(output.outputs[0].token_ids for output in self.engine.step()):
                pass
            milliseconds = (time.perf_counter() - start) * 1e3
            self.engine.abort_request(ids)
        return milliseconds

    def start(
        self,
        count: int,
        num_frames: int,
        negative_prompt: list[int] | None = None,
        is_streamed: bool = True,
    ) -> list[str]:
        """Add requests whose clients want each step's output, or the last only; returns ids."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind as OutputKind
        from vllm.unison.testing.random_checkpoint import BEGIN_AUDIO, BEGIN_TEXT, FIRST_TEXT

        output_kind = OutputKind.CUMULATIVE if is_streamed else OutputKind.FINAL_ONLY
        ids = []
        for index in range(count):
            self._made += 1
            text = [FIRST_TEXT + (7 * index + 3 * i) % 250 for i in range(PROMPT_TOKENS - 2)]
            prompts = {"": [BEGIN_TEXT, *text, BEGIN_AUDIO]}
            if self.kind == "naive":
                prompts = {"conditional": prompts[""], "null": [BEGIN_AUDIO]}
            for lane, token_ids in prompts.items():
                params = SamplingParams(
                    temperature=1.0,
                    seed=index,
                    max_tokens=num_frames,
                    ignore_eos=True,
                    detokenize=False,
                    output_kind=output_kind,
                    guidance_scale=SCALE if self.kind == "guided" else None,
                    negative_prompt_token_ids=negative_prompt,
                )
                request_id = f"{self._made}:{lane}:"
                self.engine.add_request(request_id, {"prompt_token_ids": token_ids}, params)
                ids.append(request_id)
        return ids

    def end(self, ids: list[str]) -> None:
        """Abort requests, and run the engine until it has nothing left."""
        self.engine.abort_request(ids)
        while self.engine.has_unfinished_requests():
            self.engine.step()

    def _check_rows(self, rows: int) -> None:
        """Raise unless the last step had so many rows: one for each lane of each request."""
        core = self.engine.engine_core.engine_core
        batch = core.model_executor.driver_worker.worker.model_runner.input_batch
        if batch.num_reqs != rows:
            raise RuntimeError(f"the step had {batch.num_reqs} rows instead of {rows}")


def merge_pairs_by_hand(runner: Any) -> None:
    """Guidance as a hook around sampling, for pairs of requests named `<number>:<lane>:`."""
    worker = runner.adapter.worker
    sample, audio_logits = worker._sample, runner.model.audio_logits

    def pairs() -> Iterator[tuple[int, int]]:
        rows = {
            tuple(request_id.split(":")[:2]): row
            for row, request_id in enumerate(runner.input_batch.req_ids)
        }
        for (number, lane), row in rows.items():
            if lane == "conditional":
                yield row, rows[number, "null"]

    def merged_logits(hidden_states: Any) -> Any:
        logits = audio_logits(hidden_states)
        for conditional, null in pairs():
            merged = SCALE * logits[conditional].float() + (1 - SCALE) * logits[null].float()
            logits[conditional] = merged
            logits[null] = merged
        return logits

    def sample_pairs(hidden_states: Any, position: Any, *more: Any) -> Any:
        step, slots = sample(hidden_states, position, *more), worker.slots
        for conditional, null in pairs():
            step.tokens[null] = step.tokens[conditional]
            slots.history[slots.row_slots[null], position[null]] = step.tokens[null]
        return step

    worker._sample = sample_pairs
    runner.model.audio_logits = merged_logits


def open_variant(model: Path, script: Path = Path(__file__)) -> VariantProcess:
    """A process with an engine on a checkpoint; `script --variant MODEL` serves it."""
    return VariantProcess(sys.executable, script, ["--variant", str(model)])


def plan_round(groups: Sequence[int], requests: Sequence[int]) -> list[tuple[str, str, int]]:
    """One round: what is measured of which kind with how many requests, those compared in a row.

    Steps of few groups are measured several times: they are short, and their ratios scatter most.
    """
    plan = []
    for count in groups:
        kinds = [("step", "guided", count), ("step", "plain", 2 * count), ("step", "naive", count)]
        plan += kinds * max(1, REPEATED_GROUPS // count)
    for count in requests:
        plan += [("throughput", kind, count) for kind in ("guided", "plain")]
    # What plain decoding gives for N against 2N needs one number more.
    plan.append(("throughput", "plain", 2 * max(requests)))
    return [*plan, ("null_prompt", "guided", 0), ("null_prompt", "guided", 1)]


def measure(
    model: Path, options: argparse.Namespace, plan: list[tuple[str, str, int]], bar: Any
) -> dict[tuple[str, str, int], list[float]]:
    """All launches and rounds of one model; per entry of `plan` its values."""
    results: dict[tuple[str, str, int], list[float]] = {entry: [] for entry in plan}
    amounts = {
        "step": options.steps,
        "throughput": options.frames,
        "null_prompt": NULL_PROMPT_TOKENS,
    }
    for _ in range(options.launches):
        with ExitStack() as stack:
            variant = open_variant(model)
            stack.callback(variant.end)
            variant.wait_until_ready()
            for kind in KINDS:
                variant.call("become", kind)
                variant.call("step", 2, 4)
                if kind != "naive":
                    variant.call("throughput", 2, 4)
            for number in range(options.rounds):
                # Back and forth, so that none is always the one after the same other.
                for name, kind, count in plan[:: -1 if number % 2 else 1]:
                    variant.call("become", kind)
                    value = variant.call(name, count, amounts[name])
                    results[name, kind, count].append(value)
                    bar.update()
    return results


def summarize(
    results: dict[tuple[str, str, int], list[float]],
    groups: Sequence[int],
    requests: Sequence[int],
) -> dict[str, list[dict[str, Any]]]:
    """The report of one model: rows of the tables "throughput", "step" and "null_prompt"."""

    def median(*key: Any) -> float:
        return round(statistics.median(results[key]), 3)

    step = [
        {
            "groups": n,
            "guided_ms": median("step", "guided", n),
            "plain_2n_ms": median("step", "plain", 2 * n),
            "naive_ms": median("step", "naive", n),
            "guided_over_plain_2n": compare(
                results["step", "guided", n], results["step", "plain", 2 * n]
            ),
            "guided_over_naive": compare(results["step", "guided", n], results["step", "naive", n]),
        }
        for n in groups
    ]
    throughput = []
    for n in requests:
        plain = results["throughput", "plain", n]
        twice = [value / 2 for value in results["throughput", "plain", 2 * n]]
        throughput.append(
            {
                "requests": n,
                "guided_frames_per_second": median("throughput", "guided", n),
                "plain_frames_per_second": median("throughput", "plain", n),
                "guided_over_plain": compare(results["throughput", "guided", n], plain),
                "plain_2n_over_n": compare(twice, plain),
            }
        )
    null_prompt = {
        "tokens": NULL_PROMPT_TOKENS,
        "uncached_ms": median("null_prompt", "guided", 0),
        "cached_ms": median("null_prompt", "guided", 1),
        "cached_over_uncached": compare(
            results["null_prompt", "guided", 1], results["null_prompt", "guided", 0]
        ),
    }
    return {"throughput": throughput, "step": step, "null_prompt": [null_prompt]}


def main() -> None:
    """Parse the command line, measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--output-json", type=Path)
    parser.add_argument("--hidden-size", type=int, help="of one model (default: both models)")
    parser.add_argument("--num-layers", type=int, help="of one model, with --hidden-size")
    parser.add_argument("--launches", type=int, default=3, help="new processes")
    parser.add_argument("--rounds", type=int, default=3, help="per launch")
    parser.add_argument("--steps", type=int, default=24, help="decode steps per round and kind")
    parser.add_argument("--frames", type=int, default=FRAMES, help="per request of throughput")
    parser.add_argument(
        "--quick", action="store_true", help="a small model and few steps: shows that it runs"
    )
    options = parser.parse_args()
    if options.variant:
        serve(lambda: Variant("plain", options.variant))
        return
    if (options.hidden_size is None) != (options.num_layers is None):
        parser.error("--hidden-size and --num-layers must be given together")
    sizes: Sequence[tuple[int, int]] = SIZES
    groups: Sequence[int] = STEP_GROUPS
    requests: Sequence[int] = THROUGHPUT_REQUESTS
    if options.quick:
        sizes, groups, requests = ((256, 2),), (1, 4), (1, 2)
        options.launches, options.rounds, options.steps, options.frames = 1, 2, 8, 8
    if options.hidden_size is not None:
        sizes = ((options.hidden_size, options.num_layers),)
    plan = plan_round(groups, requests)
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "streams": STREAMS,
        "dtype": "bfloat16",
        "repeats": options.launches * options.rounds,
        "models": [],
    }
    total = len(sizes) * options.launches * options.rounds * len(plan)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, tqdm(total=total, unit=" measurements") as bar:
        for hidden_size, num_layers in sizes:
            bar.set_description(f"{num_layers} layers of {hidden_size}")
            model = write_model(Path(folder) / f"{hidden_size}", hidden_size, num_layers)
            results = measure(model, options, plan, bar)
            tables = summarize(results, groups, requests)
            size = {"hidden_size": hidden_size, "num_layers": num_layers}
            report["models"].append(size | tables)
            bar.clear()
            for name, rows in tables.items():
                for row in rows:
                    print(f"{num_layers} x {hidden_size} {name}: {json.dumps(row)}", flush=True)
    report["seconds"] = round(time.perf_counter() - start)
    if options.output_json:
        options.output_json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
