# SPDX-License-Identifier: Apache-2.0
"""How a server of a speech model does under load.

    python benchmarks/benchmark_speech_serving.py --model MODEL --output-json FILE --plot FILE
    python benchmarks/benchmark_speech_serving.py --model MODEL --transcriptions
    python benchmarks/benchmark_speech_serving.py --model MODEL --soak-minutes 15

Starts `vllm serve` on the model (default: one with random weights that speaks up to --max-tokens),
or uses the server at --url, and asks it for streamed speech:

- closed loop: 1 to 64 clients, each asking again when its last answer has ended;
- Poisson: requests come at given rates, whether or not others have ended.

Each is done unguided and guided; the runs of both alternate. Clients run in this process, beside
the server's. Of each request is noted when each piece of audio came: time to the first audio,
real-time factor (seconds until the last piece per second of audio), underruns (pieces that came
later than a player needs them that starts with the first piece), the seconds by which a player must
start later to have none, and over all of them the seconds of audio per second.

With --transcriptions, the same numbers of clients send speech that the server has made before,
and wait for its text: seconds until the answer, and over all of them the requests and the seconds
of audio per second. No clip is sent twice, as the server keeps the codes of the last ones.

With --soak-minutes the server is kept busy, with clients that leave at random, and watched: memory,
open files, KV blocks, and whether all rows of its batch can still be used at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from hardware import describe_machine
from speech_client import Heard, Listener, closed_loop, poisson
from speech_server import SpeechServer, running_server
from tqdm import tqdm
from transcription_client import Transcribed, Transcriber, spoken_clips

CLIENTS = (1, 2, 4, 8, 16, 32, 64)
SCALE = 3.0
PERCENTILES = (50, 90, 99)


def write_model(folder: Path, hidden_size: int, num_layers: int) -> Path:
    """A guided model of 8 streams with random weights and a DAC, which speaks until its limit."""
    import torch

    from vllm.unison.testing.random_checkpoint import stream_layout, write_random_speech_lm

    layout = stream_layout(8, codebook_size=1024)
    for phase in layout["phases"]:
        phase["transitions"] = []
    return write_random_speech_lm(
        folder,
        layout=layout,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 64,
        dtype=torch.bfloat16,
        initializer_range=0.05,
    )


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """By name, "p50" and so on; nearest rank."""
    ordered = sorted(values)
    if not ordered:
        return {}
    last = len(ordered) - 1
    return {f"p{p}": round(ordered[min(last, len(ordered) * p // 100)], 4) for p in PERCENTILES}


def summarize(heard: Sequence[Heard], seconds: float) -> dict[str, Any]:
    """The figures of one run."""
    done = [one for one in heard if one.outcome == "done"]
    factors = [one.real_time_factor for one in done if one.real_time_factor is not None]
    audio = sum(one.seconds for one in heard)
    return {
        "requests": len(heard),
        "failed": len(heard) - len(done),
        "first_audio_seconds": percentiles([o.first for o in done if o.first is not None]),
        "real_time_factor": percentiles(factors),
        "underruns": sum(one.underruns for one in done),
        "requests_with_underruns": sum(one.underruns > 0 for one in done),
        "buffer_seconds": percentiles([one.buffer for one in done]),
        "audio_seconds_per_second": round(audio / seconds, 3),
        "audio_seconds": round(audio, 2),
        "seconds": round(seconds, 2),
    }


async def measure(server: SpeechServer, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs: a row each."""
    loads: list[tuple[str, float]] = [("closed", clients) for clients in options.clients]
    loads += [("poisson", rate) for rate in options.rates]
    scales = [1.0] if options.unguided_only else [1.0, options.guidance_scale]
    rows = []
    with tqdm(total=len(loads) * len(scales), unit=" runs") as bar:
        for number, (kind, load) in enumerate(loads):
            for scale in scales:
                body = {"guidance_scale": scale, "max_tokens": options.max_tokens}
                listener = Listener(server.url, body, seed=number)
                if number == 0:
                    await closed_loop(listener, 2, 2)
                if kind == "closed":
                    count = max(options.requests, int(load) * options.rounds)
                    heard, seconds = await closed_loop(listener, int(load), count)
                else:
                    heard, seconds = await poisson(listener, load, options.requests, number)
                await listener.close()
                name = "clients" if kind == "closed" else "requests_per_second"
                row = {"kind": kind, name: load, "guidance_scale": scale}
                rows.append(row | summarize(heard, seconds))
                bar.clear()
                print(json.dumps(rows[-1]), flush=True)
                bar.update()
    return rows


def summarize_transcriptions(done: Sequence[Transcribed], seconds: float) -> dict[str, Any]:
    """The figures of one run."""
    good = [one for one in done if one.outcome == "done"]
    audio = sum(one.seconds for one in good)
    return {
        "requests": len(done),
        "failed": len(done) - len(good),
        "answer_seconds": percentiles([one.took for one in good]),
        "words": sum(one.words for one in good),
        "requests_per_second": round(len(good) / seconds, 3),
        "audio_seconds_per_second": round(audio / seconds, 3),
        "audio_seconds": round(audio, 2),
        "seconds": round(seconds, 2),
    }


async def measure_transcriptions(
    server: SpeechServer, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """A run for each number of clients: a row each."""
    clips = await spoken_clips(server.url, options.max_tokens)
    rows = []
    transcriber = Transcriber(server.url, clips, options.max_tokens)
    await closed_loop(transcriber, 2, 2)
    for clients in tqdm(options.clients, unit=" runs"):
        count = max(options.requests, clients * options.rounds)
        done, seconds = await closed_loop(transcriber, clients, count)
        row = {"kind": "transcription", "clients": clients}
        rows.append(row | summarize_transcriptions(done, seconds))
        tqdm.write(json.dumps(rows[-1]))
    await transcriber.close()
    return rows


def max_streams(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """By guidance scale, up to how many clients no request has an underrun or fails."""
    counts: dict[str, int] = {}
    stopped: set[str] = set()
    for row in sorted(
        (row for row in rows if row["kind"] == "closed"), key=lambda row: row["clients"]
    ):
        scale = f"{row['guidance_scale']:g}"
        if row["underruns"] or row["failed"]:
            stopped.add(scale)
        if scale not in stopped:
            counts[scale] = int(row["clients"])
        counts.setdefault(scale, 0)
    return counts


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Time to first audio, real-time factor, underruns and throughput over the load."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = [kind for kind in ("closed", "poisson") if any(row["kind"] == kind for row in rows)]
    figure, axes = pyplot.subplots(
        len(kinds), 4, figsize=(18, 4.2 * len(kinds)), squeeze=False, layout="constrained"
    )
    for line, kind in zip(axes, kinds, strict=True):
        load = "clients" if kind == "closed" else "requests_per_second"
        panels = (
            ("time to first audio, p50 and p90 (s)", "first_audio_seconds"),
            ("real-time factor, p50 and p90", "real_time_factor"),
            ("requests with underruns (%)", None),
            ("seconds of audio per second", "audio_seconds_per_second"),
        )
        for axis, (title, key) in zip(line, panels, strict=True):
            for scale in sorted({row["guidance_scale"] for row in rows}):
                shown = [r for r in rows if r["kind"] == kind and r["guidance_scale"] == scale]
                name = "unguided" if scale == 1.0 else f"guided, scale {scale:g}"
                _line(axis, shown, load, key, name)
            axis.set_title(title)
            axis.set_xlabel(load.replace("_", " "))
            axis.set_xscale("log", base=2)
            loads = sorted({row[load] for row in rows if row["kind"] == kind})
            axis.set_xticks(loads, [f"{value:g}" for value in loads])
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
            axis.legend()
            if key == "real_time_factor":
                axis.axhline(1.0, color="black", linewidth=0.8)
    figure.savefig(path, dpi=110)


def _line(axis: Any, rows: Sequence[dict[str, Any]], load: str, key: str | None, name: str) -> None:
    loads = [row[load] for row in rows]
    if key is None:
        shares = [100 * row["requests_with_underruns"] / row["requests"] for row in rows]
        axis.plot(loads, shares, marker="o", label=name)
    elif key == "audio_seconds_per_second":
        axis.plot(loads, [row[key] for row in rows], marker="o", label=name)
    else:
        values = [[row[key].get(p, float("nan")) for row in rows] for p in ("p50", "p90")]
        (drawn,) = axis.plot(loads, values[0], marker="o", label=name)
        axis.plot(loads, values[1], linestyle=":", color=drawn.get_color())


async def soak(server: SpeechServer, options: argparse.Namespace) -> dict[str, Any]:
    """Keep the server busy with clients of which some leave, and watch what it holds."""
    source = random.Random(options.seed)
    start = time.perf_counter()
    end = start + 60 * options.soak_minutes
    counts = {"done": 0, "cancelled": 0, "failed": 0}
    samples: list[dict[str, Any]] = []

    def leave() -> float | None:
        if source.random() >= options.cancel_share:
            return None
        return source.expovariate(1 / options.cancel_seconds)

    async def client(number: int) -> None:
        body = {
            "guidance_scale": options.guidance_scale if number % 2 else 1.0,
            "max_tokens": options.max_tokens,
        }
        listener = Listener(server.url, body, seed=number)
        while time.perf_counter() < end:
            heard = await listener.listen(0.0, leave())
            counts[heard.outcome if heard.outcome in counts else "failed"] += 1
        await listener.close()

    async def watch() -> None:
        while time.perf_counter() < end:
            held = await asyncio.to_thread(server.footprint)
            seconds = round(time.perf_counter() - start, 1)
            samples.append({"seconds": seconds, **dataclasses.asdict(held)})
            print(json.dumps(samples[-1]), flush=True)
            await asyncio.sleep(min(10.0, 6 * options.soak_minutes))

    await asyncio.gather(watch(), *(client(number) for number in range(options.soak_clients)))
    await asyncio.sleep(1.0)
    free = server.blocks_are_free()
    rows = await _rows_in_use(server, options)
    await asyncio.sleep(1.0)
    after = server.footprint()
    half = samples[len(samples) // 2 :] or samples
    return {
        "minutes": options.soak_minutes,
        "clients": options.soak_clients,
        "requests": counts,
        "blocks_free_at_end": free,
        "rows": options.max_num_seqs,
        "rows_usable_at_end": rows,
        "memory_mib_growth_in_second_half": round(
            half[-1]["memory_mib"] - half[0]["memory_mib"], 1
        ),
        "handles_median_in_first_and_second_half": [
            statistics.median(s["handles"] for s in part)
            for part in (samples[: len(samples) // 2] or samples, half)
        ],
        "after": dataclasses.asdict(after),
        "samples": samples,
    }


async def _rows_in_use(server: SpeechServer, options: argparse.Namespace) -> int:
    """The largest number of requests that run at once when all rows of the batch are asked for."""
    body = {"guidance_scale": 1.0, "max_tokens": options.max_tokens}
    listener = Listener(server.url, body)
    count = options.max_num_seqs
    task = asyncio.create_task(closed_loop(listener, count, count))
    peak = 0
    while not task.done():
        held = await asyncio.to_thread(server.footprint)
        peak = max(peak, held.running)
        await asyncio.sleep(0.05)
    heard, _ = await task
    await listener.close()
    assert all(one.outcome == "done" for one in heard), heard
    return peak


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="default: random weights")
    parser.add_argument("--hidden-size", type=int, default=256, help="of the random model")
    parser.add_argument("--num-layers", type=int, default=6, help="of the random model")
    parser.add_argument("--url", help="a server that runs already, instead of --model")
    parser.add_argument("--clients", type=int, nargs="*", default=list(CLIENTS))
    parser.add_argument("--rates", type=float, nargs="*", default=[], help="requests per second")
    parser.add_argument("--requests", type=int, default=16, help="least of a run")
    parser.add_argument("--rounds", type=int, default=3, help="requests per client, at least")
    parser.add_argument("--max-tokens", type=int, default=150, help="frames per request, at most")
    parser.add_argument("--guidance-scale", type=float, default=SCALE)
    parser.add_argument("--unguided-only", action="store_true")
    parser.add_argument("--max-num-seqs", type=int, default=128, help="rows of the server's batch")
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--serve-options", nargs="*", default=[], help="more, without the dashes")
    parser.add_argument(
        "--transcriptions", action="store_true", help="clients send speech and want its text"
    )
    parser.add_argument("--soak-minutes", type=float)
    parser.add_argument("--soak-clients", type=int, default=8)
    parser.add_argument("--cancel-share", type=float, default=0.4, help="of requests")
    parser.add_argument("--cancel-seconds", type=float, default=1.0, help="mean time to leaving")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-json", type=Path)
    parser.add_argument("--plot", type=Path, help="PNG or SVG")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model and few requests: shows that it runs"
    )
    options = parser.parse_args()
    if options.quick:
        options.hidden_size, options.num_layers, options.max_tokens = 64, 2, 20
        options.clients, options.requests, options.rounds = [1, 2], 2, 1
        options.rates, options.max_num_seqs = [2.0], 8
    if options.soak_minutes is not None and options.url is not None:
        parser.error("--soak-minutes watches the server's processes: it needs --model, not --url")
    return options


def run(server: SpeechServer, options: argparse.Namespace, report: dict[str, Any]) -> None:
    """Measure and add to the report."""
    if options.soak_minutes is not None:
        report["soak"] = asyncio.run(soak(server, options))
        shown = {name: value for name, value in report["soak"].items() if name != "samples"}
        print(json.dumps(shown, indent=2))
        return
    if options.transcriptions:
        report["rows"] = asyncio.run(measure_transcriptions(server, options))
        return
    report["rows"] = asyncio.run(measure(server, options))
    report["max_clients_without_underrun"] = max_streams(report["rows"])
    print(f"most clients without underrun: {report['max_clients_without_underrun']}")
    if options.plot:
        plot(report["rows"], options.plot)


def main() -> None:
    """Parse the command line, serve, measure, print and write."""
    options = parse()
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "model": str(options.model.name if options.model else "random"),
        "max_tokens": options.max_tokens,
    }
    with tempfile.TemporaryDirectory() as folder:
        if options.url:
            run(SpeechServer(options.url), options, report)
        else:
            model = options.model
            if model is None:
                report["hidden_size"] = options.hidden_size
                report["num_layers"] = options.num_layers
                model = write_model(Path(folder) / "model", options.hidden_size, options.num_layers)
            serve = ["--max-num-seqs", str(options.max_num_seqs), "--enforce-eager"]
            serve += ["--max-model-len", str(options.max_model_len), "--block-size", "32"]
            serve += [f"--{option}" for option in options.serve_options]
            with running_server(model, serve, Path(folder) / "server.log") as server:
                run(server, options, report)
    if options.output_json:
        options.output_json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
