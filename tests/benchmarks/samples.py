# SPDX-License-Identifier: Apache-2.0
"""Reports as benchmarks write them, with made-up numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks.benchmark_scaling import Sizes, plan_points
from benchmarks.benchmark_scaling import summarize as summarize_scaling
from benchmarks.benchmark_speech_serving import max_streams
from benchmarks.benchmark_speech_serving import summarize as summarize_serving
from benchmarks.speech_client import Heard
from benchmarks.speech_server import Footprint

MACHINE = {
    "processor": "A processor",
    "cores": 3,
    "accelerator": "none",
    "python": "3.11.0",
    "date": "2001-02-03",
    "torch": "9.8.7",
    "vllm": "6.5.4",
    "transformers": "3.2.1",
}


def scaling() -> dict[str, Any]:
    """Steps of 2 ms and 0.1 ms per row, 0.05 ms per stream, two rounds."""
    sizes = Sizes()
    results = {}
    for point in plan_points(sizes):
        rows = point.requests * (1 + 0.9 * (point.lanes - 1))
        step = 2 + 0.1 * rows + 0.05 * point.streams + 0.001 * point.context
        results[point] = [step, 1.02 * step]
    return {
        "machine": MACHINE,
        "hidden_size": sizes.hidden_size,
        "num_layers": sizes.num_layers,
        "dtype": "bfloat16",
        "num_streams": sizes.streams,
        "lane_requests": sizes.lane_requests,
        "stream_requests": sizes.stream_requests,
        "length_requests": sizes.length_requests,
        "repeats": 2,
        **summarize_scaling(results, sizes),
    }


def _variant(guided: bool) -> dict[str, Any]:
    return {
        "avg_latency": 0.5 if guided else 0.4,
        "percentiles": {"10": 0.3, "25": 0.3, "50": 0.4, "75": 0.4, "90": 0.5, "99": 0.6},
        "requests_per_second": 11.0 if guided else 12.5,
        "steps_per_second": 200.0,
        "stream_tokens_per_second": 9000.0,
        "audio_seconds_per_second": 31.25,
        "real_time_factor": 0.032,
    }


def compared(parameters: dict[str, Any]) -> dict[str, Any]:
    """What throughput and latency have in common."""
    return {
        "machine": MACHINE,
        "model_id": "random weights",
        "model": {
            "dtype": "bfloat16",
            "hidden_size": 256,
            "num_layers": 6,
            "streams": 8,
        },
        "parameters": {"input_len": 32, "output_len": 128, "guidance_scale": 3.0} | parameters,
        "variant": "guided",
        **_variant(True),
        "unguided": _variant(False),
        "guided_over_unguided": {"ratio": 0.88, "range": [0.87, 0.89]},
    }


def side_by_side() -> dict[str, Any]:
    """One model beside transformers, another beside both; the fork is slower in one case."""

    def rows(other: str, unit: str) -> list[dict[str, Any]]:
        made = []
        for requests, guided in ((1, True), (1, False), (4, True), (4, False)):
            ratio = 0.9 if (requests, guided) == (1, False) else 1.5
            row = {
                "requests": requests,
                "guided": guided,
                f"fork_{unit}_per_second": 100.0 * ratio,
                f"{other}_{unit}_per_second": 100.0,
                f"fork_over_{other}": {"ratio": ratio, "range": [ratio - 0.1, ratio + 0.1]},
            }
            if other == "upstream" and guided:
                row |= {"pairs": 3 * requests, "pairs_apart": 2}
            made.append(row)
        return made

    models = [
        {"hidden_size": 256, "num_layers": 6, "upstream": rows("upstream", "tokens")},
        {"hidden_size": 1024, "num_layers": 16, "upstream": "not measured"},
    ]
    return {
        "machine": MACHINE,
        "parameters": {
            "dtype": "bfloat16",
            "streams": 8,
            "codebook": 1024,
            "prompt_tokens": 16,
            "length": 64,
            "guidance_scale": 3.0,
            "temperature": 0.8,
            "top_k": 30,
            "rounds": 3,
        },
        "models": [model | {"transformers": rows("transformers", "frames")} for model in models],
    }


def acoustic_decoding() -> dict[str, Any]:
    """One codec."""
    return {
        "machine": MACHINE,
        "rounds": 5,
        "results": [
            {
                "codec": "dac",
                "requests": requests,
                "frames": 150,
                "step_ratio": 1.01,
                "codec_ratio": 1.5,
                "codec_share": 0.2,
                "first_audio": 0.05,
                "first_audio_seconds": 0.04,
            }
            for requests in (1, 16)
        ],
    }


def speech_serving() -> dict[str, Any]:
    """Two loads, the heavier of them with a request that failed."""
    heard = Heard(
        sent=0.0, outcome="done", first=0.25, seconds=2.0, last=1.0, underruns=0, buffer=0.0
    )
    late = dataclasses.replace(heard, first=0.75, underruns=3)
    failed = dataclasses.replace(heard, outcome="failed", first=None)
    rows = [
        {"kind": "closed", "clients": 1, "guidance_scale": 1.0} | summarize_serving([heard], 4.0),
        {"kind": "closed", "clients": 2, "guidance_scale": 1.0}
        | summarize_serving([late, failed], 4.0),
        {"kind": "poisson", "requests_per_second": 2.0, "guidance_scale": 3.0}
        | summarize_serving([failed], 4.0),
    ]
    return {
        "machine": MACHINE,
        "model": "unison-default",
        "max_tokens": 150,
        "rows": rows,
        "max_clients_without_underrun": max_streams(rows),
    }


def speech_soak() -> dict[str, Any]:
    """A server that gave everything back."""
    held = dataclasses.asdict(Footprint(900.0, 70, 0.0, 0, 0))
    return {
        "machine": MACHINE,
        "model": "unison-default",
        "max_tokens": 150,
        "soak": {
            "minutes": 15.0,
            "clients": 8,
            "requests": {"done": 400, "cancelled": 100, "failed": 0},
            "blocks_free_at_end": True,
            "rows": 128,
            "rows_usable_at_end": 128,
            "memory_mib_growth_in_second_half": 1.5,
            "handles_median_in_first_and_second_half": [70, 70.5],
            "after": held,
            "samples": [{"seconds": 10.0 * index, **held} for index in range(4)],
        },
    }


def text_only() -> dict[str, Any]:
    """Two models, the fork slower than the target with the larger one at one request."""

    def row(requests: int, ratio: float) -> dict[str, Any]:
        return {
            "requests": requests,
            "fork_tokens_per_second": 100.0 * ratio,
            "upstream_tokens_per_second": 100.0,
            "fork_over_upstream": {"ratio": ratio, "range": [ratio - 0.02, ratio + 0.02]},
            "pairs": [ratio],
        }

    return {
        "machine": MACHINE,
        "parameters": {
            "dtype": "bfloat16",
            "prompt_tokens": 16,
            "length": 64,
            "pairs": 9,
            "rounds": 5,
        },
        "models": [
            {"hidden_size": 256, "num_layers": 6, "rows": [row(1, 0.99), row(32, 1.01)]},
            {"hidden_size": 1024, "num_layers": 16, "rows": [row(1, 0.97), row(32, 1.0)]},
        ],
    }


def all_reports() -> dict[str, dict[str, Any]]:
    """By the JSON's name."""
    return {
        "scaling.json": scaling(),
        "throughput.json": compared({"num_prompts": 64, "repeats": 3}),
        "latency.json": compared({"batch_size": 1, "num_iters": 30}),
        "side_by_side.json": side_by_side(),
        "text_only.json": text_only(),
        "acoustic_decoding.json": acoustic_decoding(),
        "speech_serving.json": speech_serving(),
        "speech_soak.json": speech_soak(),
    }
