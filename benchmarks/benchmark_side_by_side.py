# SPDX-License-Identifier: Apache-2.0
"""The fork beside what a user would take instead: same weights, same machine, one run.

    python benchmarks/benchmark_side_by_side.py \\
        --output-json benchmarks/results/side_by_side.json [--upstream-python PATH]

Two comparisons, each guided and unguided, at several numbers of requests:

- transformers: frames per second of a multi-stream model, the fork's `LLM` against transformers'
  own `generate` on a static batch, with guidance by a doubled batch (transformers_speech_lm.py).
  All requests are of the same length and come at once, which is a static batch's best case.
  The checkpoint has no codec: what is measured are codes.
- upstream: tokens per second of a text-only model, the fork's `guidance_scale` against the naive
  way on the unpatched package (`--upstream-python`: a Python in whose environment that package is
  installed): two requests per guided one and a logits processor that merges them
  (naive_guidance.py). `pairs_apart` counts pairs whose two requests got different tokens. The
  unguided rows are ordinary requests on both.

Both variants run in bfloat16 with as many threads, sample with the same temperature and top-k, and
run without compilation: the engines with `enforce_eager`, each in its process. Each variant has a
process that stays open and warm for all rounds; the variants are interleaved, the first of a round
being the second in the next one. A ratio is the median of the rounds' ratios, beside their range;
above 1 the fork is faster. It includes prefill, and all of what `LLM.generate` does.
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
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

from hardware import describe_engine, describe_machine, describe_transformers
from ratios import compare
from tqdm import tqdm
from variant_process import VariantProcess, serve

STREAMS = 8
CODEBOOK = 1024
TEXT_VOCABULARY = 8192
TEXT_NULL_PROMPT = [1]
SCALE = 3.0
TEMPERATURE = 0.8
TOP_K = 30
PROMPT_TOKENS = 16
LENGTH = 64
WARM_UP_LENGTH = 8
REQUESTS = (1, 4, 16, 32)
SIZES = ("256x6", "1024x16")
UNITS = {"transformers": "frames", "upstream": "tokens"}


class Case(NamedTuple):
    """What one measurement runs: so many requests, guided or not."""

    requests: int
    guided: bool


class Measurement(NamedTuple):
    """Of one variant and case: frames or tokens per second, and pairs that came apart."""

    per_second: float
    pairs_apart: int


def write_speech_model(folder: Path, hidden_size: int, num_layers: int) -> Path:
    """A multi-stream model with random weights and a null prompt of pads, without a codec."""
    import torch

    from vllm.unison.testing.random_checkpoint import stream_layout, write_random_speech_lm

    return write_random_speech_lm(
        folder,
        layout=stream_layout(STREAMS, codebook_size=CODEBOOK),
        codec=None,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 64,
        initializer_range=0.02,
        guidance={"null_prompt": "pads", "audio_only": False},
        dtype=torch.bfloat16,
    )


def write_text_model(folder: Path, hidden_size: int, num_layers: int) -> Path:
    """A text-only model with random weights and the same backbone."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from vllm.unison.testing.random_checkpoint import byte_tokenizer

    disable_progress_bar()
    config = LlamaConfig(
        vocab_size=TEXT_VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 64,
        head_dim=64,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def speech_prompts(count: int) -> list[list[int]]:
    """[count][PROMPT_TOKENS] ids of stream 0: text, and what begins audio."""
    from vllm.unison.testing.random_checkpoint import BEGIN_AUDIO, BEGIN_TEXT, FIRST_TEXT

    return [
        [
            BEGIN_TEXT,
            *(FIRST_TEXT + (7 * row + 3 * i) % 250 for i in range(PROMPT_TOKENS - 2)),
            BEGIN_AUDIO,
        ]
        for row in range(count)
    ]


def text_prompts(count: int) -> list[list[int]]:
    """[count][PROMPT_TOKENS] ids of text."""
    return [[16 + (7 * row + 3 * i) % 250 for i in range(PROMPT_TOKENS)] for row in range(count)]


class EngineVariant:
    """An in-process bfloat16 engine, of whichever package this Python has.

    Args:
        model: folder of the checkpoint.
        rows: maximum number of requests at once.
        options: further ones of `LLM`.
    """

    def __init__(self, model: str, rows: int, **options: Any) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ["HF_HUB_OFFLINE"] = "1"
        from vllm import LLM

        self.llm: Any = LLM(
            model,
            dtype="bfloat16",
            enforce_eager=True,
            max_model_len=512,
            max_num_seqs=rows,
            disable_log_stats=True,
            **options,
        )

    def describe(self) -> dict[str, Any]:
        """Version and threads."""
        return describe_engine()

    def generate(self, prompts: list[list[int]], params: list[Any], length: int) -> tuple[Any, Any]:
        """Outputs and seconds; RuntimeError unless each request has `length` tokens."""
        given = [{"prompt_token_ids": prompt} for prompt in prompts]
        start = time.perf_counter()
        outputs = self.llm.generate(given, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        tokens = [list(output.outputs[0].token_ids) for output in outputs]
        if any(len(ids) != length for ids in tokens):
            raise RuntimeError(f"requests have {sorted(map(len, tokens))} tokens, not {length}")
        return tokens, seconds


def sampling(row: int, length: int) -> dict[str, Any]:
    """SamplingParams of request `row`, the same in all engines."""
    return {
        "temperature": TEMPERATURE,
        "top_k": TOP_K,
        "seed": row,
        "max_tokens": length,
        "ignore_eos": True,
        "detokenize": False,
    }


class ForkSpeechVariant(EngineVariant):
    """The fork on the multi-stream model."""

    def run(self, count: int, guided: bool, length: int) -> Measurement:
        """Frames per second of `count` requests at once."""
        from vllm import SamplingParams

        scale: dict[str, Any] = {"guidance_scale": SCALE} if guided else {}
        params = [SamplingParams(**sampling(row, length), **scale) for row in range(count)]
        steps = length + STREAMS - 1
        _, seconds = self.generate(speech_prompts(count), params, steps)
        return Measurement(count * length / seconds, 0)


class TransformersVariant:
    """transformers' own generate on the multi-stream model.

    Args:
        model: folder of the checkpoint.
        threads: of PyTorch.
    """

    def __init__(self, model: str, threads: int) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch
        from transformers_speech_lm import TransformersSpeechLM

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self._model = TransformersSpeechLM.load(model, torch.bfloat16)

    def describe(self) -> dict[str, Any]:
        """Version and threads."""
        return describe_transformers()

    def run(self, count: int, guided: bool, length: int) -> Measurement:
        """Frames per second of a static batch of `count` requests."""
        prompts = speech_prompts(count)
        start = time.perf_counter()
        codes = self._model.generate_codes(
            prompts, length, SCALE if guided else None, temperature=TEMPERATURE, top_k=TOP_K
        )
        seconds = time.perf_counter() - start
        if codes.shape != (count, length, STREAMS):
            raise RuntimeError(f"codes have the shape {list(codes.shape)}")
        return Measurement(count * length / seconds, 0)


class ForkTextVariant(EngineVariant):
    """The fork on the text-only model, guided by `guidance_scale`."""

    def run(self, count: int, guided: bool, length: int) -> Measurement:
        """Tokens per second of `count` requests at once."""
        from vllm import SamplingParams

        guidance: dict[str, Any] = {}
        if guided:
            guidance = {"guidance_scale": SCALE, "negative_prompt_token_ids": TEXT_NULL_PROMPT}
        params = [SamplingParams(**sampling(row, length), **guidance) for row in range(count)]
        _, seconds = self.generate(text_prompts(count), params, length)
        return Measurement(count * length / seconds, 0)


class UpstreamTextVariant(EngineVariant):
    """The unpatched package on the text-only model, guided by pairs of requests."""

    def __init__(self, model: str, rows: int) -> None:
        from naive_guidance import PairedGuidance

        from vllm import SamplingParams

        if hasattr(SamplingParams, "guidance_scale"):
            raise RuntimeError("--upstream-python has a patched package, not the upstream one")
        super().__init__(model, rows, logits_processors=[PairedGuidance])

    def run(self, count: int, guided: bool, length: int) -> Measurement:
        """Tokens per second of `count` requests at once, a pair being one request."""
        from naive_guidance import pair_params, tokens_apart

        from vllm import SamplingParams

        prompts = text_prompts(count)
        if not guided:
            plain = [SamplingParams(**sampling(row, length)) for row in range(count)]
            _, seconds = self.generate(prompts, plain, length)
            return Measurement(count * length / seconds, 0)
        pairs = [lane for prompt in prompts for lane in (prompt, TEXT_NULL_PROMPT)]
        params = [
            lane
            for row in range(count)
            for lane in pair_params(row, SCALE, **sampling(row, length))
        ]
        tokens, seconds = self.generate(pairs, params, length)
        apart = sum(map(tokens_apart, tokens[::2], tokens[1::2]))
        return Measurement(count * length / seconds, apart)


VARIANTS: dict[str, Any] = {
    "fork-speech": ForkSpeechVariant,
    "transformers": TransformersVariant,
    "fork-text": ForkTextVariant,
    "upstream": UpstreamTextVariant,
}


def open_variants(
    part: str, model: Path, rows: int, upstream_python: str, stack: ExitStack
) -> tuple[dict[str, VariantProcess], dict[str, Any]]:
    """Processes of a part's two variants, warm to be called, and what they say of themselves.

    Raises:
        RuntimeError: a variant failed, or the two have different numbers of threads.
    """
    script = Path(__file__)

    def start(name: str, kind: str, number: int, python: str = sys.executable) -> dict[str, Any]:
        arguments = ["--variant", kind, str(model), str(number)]
        environment = dict(os.environ)
        if python != sys.executable:
            # It imports the packages that it has itself.
            environment.pop("PYTHONPATH", None)
        variant = VariantProcess(python, script, arguments, environment)
        stack.callback(variant.end)
        variant.wait_until_ready()
        variants[name] = variant
        return variant.call("describe")

    variants: dict[str, VariantProcess] = {}
    if part == "transformers":
        fork = start("fork", "fork-speech", rows)
        other = start("transformers", "transformers", fork["threads"])
    else:
        fork = start("fork", "fork-text", rows)
        other = start("upstream", "upstream", rows, upstream_python)
    if fork["threads"] != other["threads"]:
        raise RuntimeError(
            f"the variants have {fork['threads']} and {other['threads']} threads; set "
            "VLLM_CPU_OMP_THREADS_BIND"
        )
    return variants, {"fork": fork, part: other}


def measure(
    variants: dict[str, VariantProcess], cases: Sequence[Case], length: int, rounds: int, bar: Any
) -> dict[Case, dict[str, list[Measurement]]]:
    """Per case and variant its interleaved rounds, after a warm-up of every case."""
    results: dict[Case, dict[str, list[Measurement]]] = {
        case: {name: [] for name in variants} for case in cases
    }
    for variant in variants.values():
        for case in cases:
            variant.call("run", *case, min(length, WARM_UP_LENGTH))
    for number in range(rounds):
        for case in cases:
            for name in list(variants)[:: -1 if number % 2 else 1]:
                measured = Measurement(*variants[name].call("run", *case, length))
                results[case][name].append(measured)
                bar.update()
    return results


def summarize(part: str, results: dict[Case, dict[str, list[Measurement]]]) -> list[dict[str, Any]]:
    """One row per case: each variant's median and rounds, and the ratio."""
    rows = []
    for case, measured in results.items():
        speeds = {name: [one.per_second for one in rounds] for name, rounds in measured.items()}
        row: dict[str, Any] = {"requests": case.requests, "guided": case.guided}
        for name, values in speeds.items():
            row[f"{name}_{UNITS[part]}_per_second"] = round(statistics.median(values), 1)
        row[f"fork_over_{part}"] = compare(speeds["fork"], speeds[part])
        if part == "upstream" and case.guided:
            row["pairs"] = case.requests * len(measured[part])
            row["pairs_apart"] = sum(one.pairs_apart for one in measured[part])
        row["rounds"] = {
            name: [round(value, 1) for value in values] for name, values in speeds.items()
        }
        rows.append(row)
    return rows


def size_of(text: str) -> tuple[int, int]:
    """Hidden size and number of layers of "<hidden size>x<layers>"."""
    hidden_size, separator, num_layers = text.partition("x")
    if not (separator and hidden_size.isdigit() and num_layers.isdigit()):
        raise argparse.ArgumentTypeError(f"must be <hidden size>x<layers>, not {text!r}")
    if int(hidden_size) == 0 or int(hidden_size) % 64 or int(num_layers) == 0:
        raise argparse.ArgumentTypeError(
            f"the hidden size must be a multiple of 64, with at least one layer, not {text!r}"
        )
    return int(hidden_size), int(num_layers)


def positive(text: str) -> int:
    """An integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; `--quick` sets what makes a run short, unless it is given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variant", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--output-json", type=Path)
    parser.add_argument("--upstream-python", help="Python with the unpatched upstream package")
    parser.add_argument("--only", choices=sorted(UNITS), help="one of the two comparisons")
    parser.add_argument(
        "--sizes", type=size_of, nargs="+", help=f"<hidden size>x<layers> (default: {SIZES})"
    )
    parser.add_argument(
        "--requests", type=positive, nargs="+", help=f"at once (default: {REQUESTS})"
    )
    parser.add_argument("--length", type=positive, help=f"frames or tokens (default: {LENGTH})")
    parser.add_argument("--rounds", type=positive, help="of both variants (default: 3)")
    parser.add_argument(
        "--quick", action="store_true", help="a small model and few steps: shows that it runs"
    )
    options = parser.parse_args(arguments)
    sizes, requests, length, rounds = (
        (("64x2",), [1, 2], 8, 2) if options.quick else (SIZES, list(REQUESTS), LENGTH, 3)
    )
    options.sizes = options.sizes or [size_of(size) for size in sizes]
    options.requests = options.requests or requests
    options.length = options.length or length
    options.rounds = options.rounds or rounds
    return options


def measure_size(
    size: tuple[int, int], options: argparse.Namespace, folder: Path, bar: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model's tables, and what the variants say of themselves."""
    cases = [Case(count, guided) for count in options.requests for guided in (True, False)]
    tables: dict[str, Any] = {"hidden_size": size[0], "num_layers": size[1]}
    described: dict[str, Any] = {}
    for part, write in (("transformers", write_speech_model), ("upstream", write_text_model)):
        if part not in parts_of(options):
            tables[part] = "not measured"
            continue
        bar.set_description(f"{size[1]} layers of {size[0]}, {part}")
        model = write(folder / f"{size[0]}x{size[1]}-{part}", *size)
        with ExitStack() as stack:
            rows = 2 * max(options.requests)
            variants, said = open_variants(part, model, rows, options.upstream_python, stack)
            described |= said
            results = measure(variants, cases, options.length, options.rounds, bar)
        tables[part] = summarize(part, results)
        bar.clear()
        for row in tables[part]:
            print(f"{size[1]} x {size[0]} {part}: {json.dumps(row)}", flush=True)
    return tables, described


def parts_of(options: argparse.Namespace) -> list[str]:
    """The comparisons that are to be made and can be."""
    parts = [options.only] if options.only else list(UNITS)
    return [part for part in parts if part != "upstream" or options.upstream_python]


def main() -> None:
    """Parse the command line, measure, print and write JSON."""
    options = parse_arguments()
    if options.variant:
        kind, model, number = options.variant
        serve(lambda: VARIANTS[kind](model, int(number)))
        return
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "parameters": {
            "dtype": "bfloat16",
            "streams": STREAMS,
            "codebook": CODEBOOK,
            "text_vocabulary": TEXT_VOCABULARY,
            "prompt_tokens": PROMPT_TOKENS,
            "length": options.length,
            "guidance_scale": SCALE,
            "temperature": TEMPERATURE,
            "top_k": TOP_K,
            "rounds": options.rounds,
        },
        "variants": {},
        "models": [],
    }
    per_size = len(parts_of(options)) * 2 * len(options.requests) * 2 * options.rounds
    start = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=len(options.sizes) * per_size, unit=" measurements") as bar,
    ):
        for size in options.sizes:
            tables, described = measure_size(size, options, Path(folder), bar)
            report["models"].append(tables)
            report["variants"] |= described
    report["seconds"] = round(time.perf_counter() - start)
    if options.output_json:
        options.output_json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
