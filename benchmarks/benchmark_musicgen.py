# SPDX-License-Identifier: Apache-2.0
"""MusicGen through the fork beside transformers' own `generate`: same weights, machine and run.

    python benchmarks/benchmark_musicgen.py --output-json benchmarks/results/musicgen.json

A checkpoint of musicgen-small's sizes (24 layers of 1024, T5-base, EnCodec at 32 kHz) with random
weights, written by transformers in the published layout and read by both. Both run in bfloat16
with as many threads, sample with the checkpoint's settings, guided at 3.0 and not, and give audio:
the fork's codec and text encoder compute in float32, transformers' in the model's type. The fork
compiles, as it does by default; transformers runs as it comes.

- equal: requests of one length that come at once, which is a static batch's best case. Frames per
  second of audio.
- uneven: requests that come one after another and are of different lengths. transformers' static
  batches take all that wait when the batch before is done, and run until their longest is: a
  request waits for its mates. Seconds until all are done, and the mean time from a request's
  arrival to its audio.

Each variant has a process that stays open and warm; the variants take turns, and a ratio is the
median of the rounds' ratios, beside their range; above 1 the fork is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from hardware import describe_engine, describe_machine, describe_transformers
from ratios import compare
from tqdm import tqdm
from variant_process import VariantProcess, serve

SCALE = 3.0
TOP_K = 250
REQUESTS = (1, 4, 8, 16, 32)
FRAMES = 100
TEXTS = (
    "an 80s driving pop song with heavy drums and synth pads in the background",
    "lo-fi beat",
    "a cheerful country song with acoustic guitars",
    "slow piano, rain outside, a little sad",
)
WARM_UP_FRAMES = 8
UNEVEN_FRAMES = (25, 150)
"""A tenth of 5 and of 30 seconds."""
UNEVEN_SECONDS = 8.0
"""Within which the uneven requests come."""


def write_checkpoint(folder: Path, hidden_size: int, num_layers: int) -> Path:
    """A model of the published layout with random weights, as transformers saves it."""
    import torch
    from transformers import (
        EncodecConfig,
        GenerationConfig,
        MusicgenConfig,
        MusicgenForConditionalGeneration,
        T5Config,
        T5Tokenizer,
    )
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    text = T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12, vocab_size=32128)
    codec = EncodecConfig(
        sampling_rate=32000, upsampling_ratios=[8, 5, 4, 4], codebook_size=2048,
        target_bandwidths=[2.2], use_causal_conv=False, num_filters=64, normalize=False,
    )  # fmt: skip
    decoder = {
        "vocab_size": 2048, "hidden_size": hidden_size, "ffn_dim": 4 * hidden_size,
        "num_hidden_layers": num_layers, "num_attention_heads": hidden_size // 64,
        "num_codebooks": 4, "pad_token_id": 2048, "bos_token_id": 2048,
        "max_position_embeddings": 2048,
    }  # fmt: skip
    config = MusicgenConfig(
        text_encoder=text.to_dict(), audio_encoder=codec.to_dict(), decoder=decoder
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        MusicgenForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *(chr(code) for code in range(33, 127))]
    vocabulary = [(piece, -float(rank > 2) * rank) for rank, piece in enumerate(pieces)]
    T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512).save_pretrained(folder)
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "decoder_start_token_id"), 2048)
    GenerationConfig(
        do_sample=True, guidance_scale=SCALE, max_length=1500, top_k=TOP_K, **ids
    ).save_pretrained(folder)
    return folder


def texts(count: int) -> list[str]:
    """Descriptions of so many requests."""
    return [TEXTS[i % len(TEXTS)] for i in range(count)]


class ForkVariant:
    """The fork's engine, in this process.

    Args:
        model: folder of the checkpoint.
        rows: maximum number of requests at once.
    """

    def __init__(self, model: str, rows: int) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ["HF_HUB_OFFLINE"] = "1"
        from vllm import LLM

        self._llm: Any = LLM(
            model,
            dtype="bfloat16",
            max_num_seqs=2 * rows,
            max_num_batched_tokens=2048,
            disable_log_stats=True,
        )

    def describe(self) -> dict[str, Any]:
        """Version and threads."""
        return describe_engine()

    def _params(self, row: int, num_frames: int, guided: bool) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        scale: dict[str, Any] = {"guidance_scale": SCALE} if guided else {}
        return SamplingParams(
            temperature=1.0,
            top_k=TOP_K,
            seed=row,
            max_tokens=num_frames,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **scale,
        )

    def equal(self, count: int, guided: bool, num_frames: int) -> float:
        """Frames per second of requests that come at once."""
        params = [self._params(row, num_frames, guided) for row in range(count)]
        start = time.perf_counter()
        outputs = self._llm.generate(texts(count), params, use_tqdm=False)
        seconds = time.perf_counter() - start
        if any(len(output.outputs[0].audio.codes) != num_frames for output in outputs):
            raise RuntimeError("a request has another number of frames")
        return count * num_frames / seconds

    def uneven(self, frames: list[int], arrivals: list[float], guided: bool) -> tuple[float, float]:
        """Seconds until all are done, and the mean seconds from arrival to audio."""
        engine = self._llm.llm_engine
        waiting = list(enumerate(zip(arrivals, frames, strict=True)))
        start, latencies = time.perf_counter(), []
        while waiting or engine.has_unfinished_requests():
            now = time.perf_counter() - start
            while waiting and waiting[0][1][0] <= now:
                row, (_, num_frames) = waiting.pop(0)
                params = self._params(row, num_frames, guided)
                (prompt,) = texts(row + 1)[-1:]
                engine.add_request(f"uneven-{row}", prompt, params)
            for output in engine.step() if engine.has_unfinished_requests() else ():
                if output.finished:
                    row = int(output.request_id.split("-")[1])
                    latencies.append(time.perf_counter() - start - arrivals[row])
        return time.perf_counter() - start, statistics.mean(latencies)


class TransformersVariant:
    """transformers' generate on static batches.

    Args:
        model: folder of the checkpoint.
        threads: of PyTorch.
    """

    def __init__(self, model: str, threads: int) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch
        from transformers import AutoTokenizer, MusicgenForConditionalGeneration

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
        loaded = MusicgenForConditionalGeneration.from_pretrained(model, dtype=torch.bfloat16)
        self._model: Any = loaded.eval()

    def describe(self) -> dict[str, Any]:
        """Version and threads."""
        return describe_transformers()

    def _generate(self, prompts: list[str], num_frames: int, guided: bool) -> None:
        import torch

        inputs = self._tokenizer(prompts, padding=True, return_tensors="pt")
        with torch.inference_mode():
            audio = self._model.generate(
                **inputs,
                do_sample=True,
                top_k=TOP_K,
                guidance_scale=SCALE if guided else 1.0,
                max_new_tokens=num_frames + 3,
            )
        if audio.shape != (len(prompts), 1, 640 * num_frames):
            raise RuntimeError(f"audio has the shape {list(audio.shape)}")

    def equal(self, count: int, guided: bool, num_frames: int) -> float:
        """Frames per second of a static batch."""
        start = time.perf_counter()
        self._generate(texts(count), num_frames, guided)
        return count * num_frames / (time.perf_counter() - start)

    def uneven(self, frames: list[int], arrivals: list[float], guided: bool) -> tuple[float, float]:
        """Seconds until all are done, and the mean seconds from arrival to audio."""
        waiting = list(range(len(frames)))
        start, latencies = time.perf_counter(), []
        while waiting:
            now = time.perf_counter() - start
            batch = [row for row in waiting if arrivals[row] <= now]
            if not batch:
                time.sleep(arrivals[waiting[0]] - now)
                continue
            waiting = [row for row in waiting if row not in batch]
            prompts = texts(len(frames))
            self._generate(
                [prompts[row] for row in batch], max(frames[row] for row in batch), guided
            )
            now = time.perf_counter() - start
            latencies += [now - arrivals[row] for row in batch]
        return time.perf_counter() - start, statistics.mean(latencies)


VARIANTS: dict[str, Any] = {"fork": ForkVariant, "transformers": TransformersVariant}


def open_variants(
    model: Path, rows: int, stack: ExitStack
) -> tuple[dict[str, VariantProcess], dict[str, Any]]:
    """Processes of both variants, ready to be called, and what they say of themselves."""
    variants: dict[str, VariantProcess] = {}
    described: dict[str, Any] = {}
    number = rows
    for name in VARIANTS:
        arguments = ["--variant", name, str(model), str(number)]
        variants[name] = VariantProcess(sys.executable, Path(__file__), arguments)
        stack.callback(variants[name].end)
        variants[name].wait_until_ready()
        described[name] = variants[name].call("describe")
        number = described["fork"]["threads"]
    return variants, described


def uneven_requests(count: int) -> tuple[list[int], list[float]]:
    """Lengths and arrivals, the same in every run: lengths go up and down, arrivals are even."""
    shortest, longest = UNEVEN_FRAMES
    frames = [
        shortest + (longest - shortest) * ((7 * i) % count) // max(count - 1, 1)
        for i in range(count)
    ]
    return frames, [UNEVEN_SECONDS * i / count for i in range(count)]


def measure(
    variants: dict[str, VariantProcess], options: argparse.Namespace, bar: Any
) -> dict[str, Any]:
    """Both parts, interleaved."""
    cases = [(count, guided) for count in options.requests for guided in (True, False)]
    uneven = uneven_requests(options.uneven)
    speeds: dict[Any, dict[str, list[float]]] = {
        case: {name: [] for name in variants} for case in cases
    }
    times: dict[bool, dict[str, list[Any]]] = {
        guided: {name: [] for name in variants} for guided in (True, False)
    }
    for variant in variants.values():
        for count, guided in cases:
            variant.call("equal", count, guided, min(WARM_UP_FRAMES, options.frames))
    for number in range(options.rounds):
        names = list(variants)[:: -1 if number % 2 else 1]
        for count, guided in cases:
            for name in names:
                speed = variants[name].call("equal", count, guided, options.frames)
                speeds[count, guided][name].append(speed)
                bar.update()
        for guided in times:
            for name in names:
                times[guided][name].append(variants[name].call("uneven", *uneven, guided))
                bar.update()
    return {
        "equal": [
            {
                "requests": count,
                "guided": guided,
                **{
                    f"{name}_frames_per_second": round(statistics.median(values), 1)
                    for name, values in measured.items()
                },
                "fork_over_transformers": compare(measured["fork"], measured["transformers"]),
            }
            for (count, guided), measured in speeds.items()
        ],
        "uneven": [
            {
                "requests": options.uneven,
                "guided": guided,
                **{
                    f"{name}_{what}": round(statistics.median(one[i] for one in values), 2)
                    for name, values in measured.items()
                    for i, what in enumerate(("seconds", "mean_latency"))
                },
                "fork_over_transformers": compare(
                    [one[0] for one in measured["transformers"]],
                    [one[0] for one in measured["fork"]],
                ),
                "latency_transformers_over_fork": compare(
                    [one[1] for one in measured["transformers"]],
                    [one[1] for one in measured["fork"]],
                ),
            }
            for guided, measured in times.items()
        ],
        "guided_over_unguided": [
            {
                "requests": count,
                "fork": compare(speeds[count, True]["fork"], speeds[count, False]["fork"]),
            }
            for count in options.requests
        ],
    }


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variant", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--output-json", type=Path)
    parser.add_argument("--requests", type=int, nargs="+", help=f"at once (default: {REQUESTS})")
    parser.add_argument("--uneven", type=int, help="uneven requests (default: 16)")
    parser.add_argument("--frames", type=int, help=f"of equal requests (default: {FRAMES})")
    parser.add_argument("--rounds", type=int, help="of both variants (default: 3)")
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--num-layers", type=int, default=24)
    parser.add_argument(
        "--quick", action="store_true", help="a small model and few frames: shows that it runs"
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.hidden_size, options.num_layers = 64, 2
    options.requests = options.requests or ([1, 2] if options.quick else list(REQUESTS))
    options.uneven = options.uneven or (3 if options.quick else 16)
    options.frames = options.frames or (8 if options.quick else FRAMES)
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


def main() -> None:
    options = parse_arguments()
    if options.variant:
        name, model, number = options.variant
        serve(lambda: VARIANTS[name](model, int(number)))
        return
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model = write_checkpoint(Path(folder) / "model", options.hidden_size, options.num_layers)
        rows = max(*options.requests, options.uneven)
        variants, described = open_variants(model, rows, stack)
        runs = options.rounds * 2 * 2 * (len(options.requests) + 1)
        with tqdm(total=runs, desc="MusicGen", disable=None) as bar:
            results = measure(variants, options, bar)
    report = {
        "machine": describe_machine(),
        "variants": described,
        "parameters": {
            "hidden_size": options.hidden_size,
            "num_layers": options.num_layers,
            "frames": options.frames,
            "uneven_frames": list(UNEVEN_FRAMES),
            "uneven_seconds": UNEVEN_SECONDS,
            "rounds": options.rounds,
            "guidance_scale": SCALE,
            "top_k": TOP_K,
        },
        **results,
    }
    for part in ("equal", "uneven", "guided_over_unguided"):
        for row in results[part]:
            print(f"{part}: {json.dumps(row)}", flush=True)
    if options.output_json:
        options.output_json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
