# SPDX-License-Identifier: Apache-2.0
"""Both benchmarks count exactly what their requests made, and guide what they say they guide."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks import benchmark_latency, benchmark_throughput
from tests.engine.streams.text_model import write_text_model

ENGINE = ["--enforce-eager", "--dtype", "float32", "--block-size", "32", "--max-model-len", "128"]
TINY = ["--streams", "3", "--hidden-size", "64", "--num-layers", "1"]
STREAMS, FLUSH = 3, 2
FRAMES_PER_SECOND = 16000 / 320
"""Of the random DAC."""
RATES = {
    "requests_per_second": "num_requests",
    "tokens_per_second": "total_num_tokens",
    "output_tokens_per_second": "total_output_tokens",
    "stream_tokens_per_second": "total_stream_tokens",
    "steps_per_second": "num_steps",
}


def check_rates(measured: dict[str, Any]) -> None:
    for rate, count in RATES.items():
        assert measured[rate] == pytest.approx(measured[count] / measured["elapsed_time"])


def check_audio(measured: dict[str, Any], frames: int) -> None:
    assert measured["num_frames"] == frames
    assert measured["audio_seconds"] == pytest.approx(frames / FRAMES_PER_SECOND)
    rate = measured["audio_seconds"] / measured["elapsed_time"]
    assert measured["audio_seconds_per_second"] == pytest.approx(rate)


def check_ratio(reported: dict[str, Any], ratios: list[float]) -> None:
    assert reported["ratio"] == round(statistics.median(ratios), 3)
    assert reported["range"] == [round(min(ratios), 3), round(max(ratios), 3)]


def test_throughput_guided_and_unguided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    requests, prompt, output, repeats = 5, 12, 9, 2
    report = benchmark_throughput.main(
        [
            *ENGINE,
            *TINY,
            *f"--num-prompts {requests} --input-len {prompt} --output-len {output}".split(),
            *f"--max-num-seqs 8 --num-warmups 1 --repeats {repeats}".split(),
            *f"--guidance-scale 2.5 --compare --output-json {tmp_path / 'report.json'}".split(),
        ]
    )
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert str(tmp_path) not in json.dumps(report)
    assert report["model_id"] == "random weights"
    assert report["model"]["streams"] == STREAMS
    assert report["model"]["dtype"] == "float32"
    assert report["machine"]["cores"] >= 1
    assert report["parameters"]["guidance_scale"] == 2.5
    assert report["engine_arguments"]["max_num_seqs"] == 8
    assert report["variant"] == "guided"

    steps = output + FLUSH
    # Eight rows hold four groups; the fifth begins when they have ended.
    expected = {
        "guided": (report, 2 * steps, 2 * requests * steps, requests * steps),
        "unguided": (report["unguided"], steps, requests * steps, 0),
    }
    for variant, num_steps, num_rows, num_guided in expected.values():
        assert len(variant["rounds"]) == repeats
        for measured in [variant, *variant["rounds"]]:
            assert measured["num_requests"] == requests
            assert measured["total_prompt_tokens"] == requests * prompt
            assert measured["total_output_tokens"] == requests * output
            assert measured["total_num_tokens"] == requests * (prompt + output)
            assert measured["total_stream_tokens"] == requests * output * STREAMS
            assert measured["num_steps"] == num_steps
            assert measured["num_rows"] == num_rows
            assert measured["num_guided_samples"] == num_guided
        for measured in variant["rounds"]:
            check_rates(measured)
            check_audio(measured, requests * output)
            factor = measured["elapsed_time"] / measured["audio_seconds"]
            assert measured["real_time_factor"] == pytest.approx(factor)
        times = [measured["elapsed_time"] for measured in variant["rounds"]]
        assert variant["elapsed_time"] == statistics.median(times)
    check_ratio(
        report["guided_over_unguided"],
        [
            guided["requests_per_second"] / unguided["requests_per_second"]
            for guided, unguided in zip(report["rounds"], report["unguided"]["rounds"], strict=True)
        ],
    )
    printed = capsys.readouterr().out
    assert printed.count("Throughput: ") == 2
    assert f"Throughput: {report['requests_per_second']:.2f} requests/s, " in printed
    assert f"Total num prompt tokens:  {requests * prompt}\n" in printed
    assert f"Total num output tokens:  {requests * output}\n" in printed
    assert f"guided / unguided: {report['guided_over_unguided']['ratio']} (" in printed


def test_latency_with_a_guidance_interval(capsys: pytest.CaptureFixture[str]) -> None:
    batch, output, iterations = 2, 9, 3
    report = benchmark_latency.main(
        [
            *ENGINE,
            *TINY,
            *f"--batch-size {batch} --input-len 12 --output-len {output}".split(),
            *f"--num-iters-warmup 1 --num-iters {iterations} --compare".split(),
            *["--guidance-scale", "3", "--guidance-interval", "2", "4"],
        ]
    )
    assert report["engine_arguments"]["enable_prefix_caching"] is False
    # Stream k is guided in steps 2 + k to 4 + k.
    guided_steps = 5
    for variant, num_guided in ((report, batch * guided_steps), (report["unguided"], 0)):
        assert len(variant["latencies"]) == len(variant["rounds"]) == iterations
        assert variant["avg_latency"] == pytest.approx(statistics.mean(variant["latencies"]))
        assert variant["percentiles"]["50"] == pytest.approx(
            statistics.median(variant["latencies"])
        )
        assert list(variant["percentiles"]) == ["10", "25", "50", "75", "90", "99"]
        for measured in variant["rounds"]:
            assert measured["num_steps"] == output + FLUSH
            assert measured["num_guided_samples"] == num_guided
            assert measured["num_rows"] == batch * (output + FLUSH) + num_guided
            check_rates(measured)
            check_audio(measured, batch * output)
            factor = measured["elapsed_time"] / (output / FRAMES_PER_SECOND)
            assert measured["real_time_factor"] == pytest.approx(factor)
    check_ratio(
        report["guided_over_unguided"],
        [g / u for g, u in zip(report["latencies"], report["unguided"]["latencies"], strict=True)],
    )
    printed = capsys.readouterr().out
    assert f"Avg latency: {report['avg_latency']} seconds\n" in printed
    assert f"99% percentile latency: {report['percentiles']['99']} seconds\n" in printed


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("text_only"), num_layers=1)


def test_throughput_of_a_text_model_on_a_file_of_prompts(text_model: Path, tmp_path: Path) -> None:
    requests, n, scale = 5, 2, 1.5
    lines = [("hello", 5), ("a text", 8), ("x", 3)]
    file = tmp_path / "prompts.jsonl"
    entries = [json.dumps({"prompt": text, "output_tokens": length}) for text, length in lines]
    file.write_text("\n".join(entries) + "\n")
    report = benchmark_throughput.main(
        [
            *ENGINE,
            *f"--model {text_model} --dataset-name custom --dataset-path {file}".split(),
            *f"--num-prompts {requests} --n {n} --repeats 1".split(),
            *f"--guidance-scale {scale} --negative-prompt no".split(),
        ]
    )
    chosen = [lines[index % len(lines)] for index in range(requests)]
    output = n * sum(length for _, length in chosen)
    assert report["total_prompt_tokens"] == sum(len(text) for text, _ in chosen)
    assert report["total_output_tokens"] == report["total_stream_tokens"] == output
    assert report["num_guided_samples"] == output
    assert report["num_rows"] == 2 * output
    assert report["num_steps"] == max(length for _, length in chosen)
    assert report["num_frames"] == 0
    assert report["model"]["streams"] == 1
    assert report["parameters"]["dataset_path"] == "prompts.jsonl"
    for key in ("audio_seconds", "audio_seconds_per_second", "real_time_factor"):
        assert report[key] is None
    assert "guided_over_unguided" not in report
    assert "unguided" not in report


def test_a_text_model_needs_a_negative_prompt(
    text_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        benchmark_latency.main(["--model", str(text_model), "--guidance-scale", "2"])
    assert "--negative-prompt must be given" in capsys.readouterr().err
