# SPDX-License-Identifier: Apache-2.0
"""What multi-stream generation costs on this machine.

    python benchmarks/benchmark_multistream.py --output-json benchmarks/results/multistream.json

Two measurements, each in processes of its own, the variants of a ratio interleaved:

- step: milliseconds of a decode step with 8 streams against the same backbone as a plain text
  model, at 1, 8 and 32 rows;
- speech: seconds of audio per second, one request at a time, with the demonstration's model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from hardware import describe_machine

STREAMS = 8
CODEBOOK = 1024


def write_models(folder: Path, hidden_size: int, num_layers: int) -> None:
    """A multi-stream model and a plain text model with the same backbone and vocabulary."""
    from transformers import AutoModelForCausalLM

    from vllm.unison.testing.random_checkpoint import (
        byte_tokenizer,
        stream_layout,
        write_random_speech_lm,
    )

    layout = stream_layout(STREAMS, codebook_size=CODEBOOK)
    speech = write_random_speech_lm(
        folder / "speech",
        layout=layout,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 64,
        initializer_range=0.02,
    )
    from transformers import CONFIG_MAPPING

    config = json.loads((speech / "config.json").read_text())["backbone_config"]
    text = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**config))
    text.save_pretrained(folder / "text")
    byte_tokenizer().save_pretrained(folder / "text")


def start_engine(model: Path, rows: int) -> Any:
    """An in-process bfloat16 engine."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ["HF_HUB_OFFLINE"] = "1"
    from vllm import LLM

    return LLM(
        str(model),
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=rows,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )


def measure_step(model: Path, rows: int, steps: int) -> dict[str, float]:
    """Median milliseconds of a decode step with `rows` requests running."""
    llm = start_engine(model, rows)
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=1.0, max_tokens=steps + 40, ignore_eos=True, seed=1, detokenize=False
    )
    engine = llm.llm_engine
    for index in range(rows):
        prompt = {"prompt_token_ids": [2 if model.name == "speech" else 20] * 8}
        engine.add_request(str(index), prompt, params)
    times = []
    for step in range(steps + 16):
        start = time.perf_counter()
        engine.step()
        if step >= 16:
            times.append((time.perf_counter() - start) * 1e3)
    return {"milliseconds": statistics.median(times)}


def measure_speech(model: Path, repeats: int) -> dict[str, float]:
    """Median seconds of audio per second of one request at a time, its waveform included."""
    llm = start_engine(model, 1)
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=0.8, stream_top_k=30, max_tokens=200, ignore_eos=True, seed=1
    )
    factors, steps = [], []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        (output,) = llm.generate(["the quick brown fox"], params, use_tqdm=False)
        seconds = time.perf_counter() - start
        completion = output.outputs[0]
        factors.append(completion.audio.seconds / seconds)
        steps.append(len(completion.token_ids) / seconds)
    return {
        "audio_seconds_per_second": statistics.median(factors[1:]),
        "steps_per_second": statistics.median(steps[1:]),
    }


def run_variant(python: str, *arguments: str) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [python, str(Path(__file__).resolve()), "--variant", *arguments]
    # A neutral folder keeps another environment from finding this repository's packages.
    done = subprocess.run(command, capture_output=True, text=True, cwd=tempfile.gettempdir())
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_interleaved(
    variants: Sequence[Sequence[str]], repeats: int
) -> list[list[dict[str, float]]]:
    """Per variant its results of interleaved rounds, each as often first as the others."""
    results: list[list[dict[str, float]]] = [[] for _ in variants]
    for number in range(repeats):
        pairs = list(zip(variants, results, strict=True))
        for variant, collected in pairs[:: -1 if number % 2 else 1]:
            collected.append(run_variant(*variant))
    return results


def kept_sections(file: Path | None, machine: dict[str, str | int]) -> dict[str, Any]:
    """What a file holds that was measured on this very machine, with these versions.

    Raises:
        ValueError: if it comes from another one; its numbers must not stand beside new ones.
    """
    if file is None or not file.is_file():
        return {}
    report: dict[str, Any] = json.loads(file.read_text())
    if report.pop("machine") | {"date": ""} != machine | {"date": ""}:
        raise ValueError(f"--output-json: {file} is from another machine; measure all, not --only")
    return report


def median_of(results: list[dict[str, float]], key: str) -> float:
    """Median of one value over a variant's results."""
    return statistics.median(result[key] for result in results)


def main() -> None:
    """Parse the command line, measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--output-json", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument(
        "--only",
        choices=["step", "speech"],
        nargs="*",
        help="leave the rest of --output-json as it is",
    )
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--num-layers", type=int, default=16)
    arguments = parser.parse_args()
    if arguments.variant:
        what, model, number, *rest = arguments.variant
        if what == "step":
            result = measure_step(Path(model), int(number), int(rest[0]))
        else:
            result = measure_speech(Path(model), int(number))
        print(json.dumps(result))
        return

    parts = arguments.only or ["step", "speech"]
    machine = describe_machine()
    report: dict[str, Any] = {"machine": machine}
    if arguments.only:
        report |= kept_sections(arguments.output_json, machine)
    with tempfile.TemporaryDirectory() as temporary:
        folder, repeats = Path(temporary), arguments.repeats
        if "step" in parts:
            write_models(folder / "step", arguments.hidden_size, arguments.num_layers)
            report["step"] = {
                "hidden_size": arguments.hidden_size,
                "num_layers": arguments.num_layers,
                "streams": STREAMS,
                "rows": [],
            }
            for rows in (1, 8, 32):
                step_variants = [
                    (
                        sys.executable,
                        "step",
                        str(folder / "step" / kind),
                        str(rows),
                        str(arguments.steps),
                    )
                    for kind in ("speech", "text")
                ]
                streams, plain = run_interleaved(step_variants, repeats)
                entry = {
                    "rows": rows,
                    "multi_stream_ms": round(median_of(streams, "milliseconds"), 2),
                    "single_stream_ms": round(median_of(plain, "milliseconds"), 2),
                }
                entry["ratio"] = round(entry["multi_stream_ms"] / entry["single_stream_ms"], 3)
                report["step"]["rows"].append(entry)
                print(f"step at {rows} rows: {entry}", flush=True)
        if "speech" in parts:
            write_models(folder / "demo", 256, 6)
            variant = [sys.executable, "speech", str(folder / "demo" / "speech"), "5"]
            (results,) = run_interleaved([variant], repeats)
            report["speech"] = {"hidden_size": 256, "num_layers": 6} | {
                key: round(median_of(results, key), 2) for key in results[0]
            }
            print(f"speech: {report['speech']}", flush=True)
    if arguments.output_json:
        arguments.output_json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
