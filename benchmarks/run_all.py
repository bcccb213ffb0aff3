# SPDX-License-Identifier: Apache-2.0
"""Run the benchmarks, and write docs/benchmarks.md and its plots from their JSON.

    python benchmarks/run_all.py --upstream-python PATH     measures everything: an hour or more
    python benchmarks/run_all.py --only guidance sampling   measures these
    python benchmarks/run_all.py --render-only              writes the page from the JSON at hand
    python benchmarks/run_all.py --list                     says what there is

Measurements run one after the other, each in its own process; use a machine that does nothing else.
A benchmark that fails does not stop the others, and its JSON stays what it was. PATH is the Python
of an environment with the unpatched upstream package; --without-upstream leaves out what needs it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import default_model_report, numerics_report
from benchmarks import report_plots as plots
from benchmarks import report_tables as tables
from benchmarks.report import (
    IMAGES,
    RESULTS,
    UPSTREAM_PYTHON,
    Report,
    Section,
    Target,
    percent,
    render_page,
)

ROOT = Path(__file__).resolve().parents[1]
PAGE = "docs/benchmarks.md"

INTRODUCTION = """\
# Benchmarks

This page is written by `python benchmarks/run_all.py --render-only` from the JSON in
`benchmarks/results/`. A test compares the two, so numbers are changed by measuring, not by hand.
Each section has the command that measures it, and the machine, versions and date of its JSON.

`python benchmarks/run_all.py --upstream-python UPSTREAM_PYTHON` measures everything and writes the
page again; `--only NAME` measures one section. UPSTREAM_PYTHON is the Python of an environment with
the unpatched upstream package.

Ratios are of two variants measured in interleaved rounds of one run: the median of the rounds'
ratios, with their range in parentheses. Times are medians unless stated otherwise. In plots, lines
are medians and bands are ranges."""


def _count(value: float) -> str:
    return f"{value:g}"


SECTIONS = (
    Section(
        name="multistream",
        title="What several streams cost",
        text="The step of a multi-stream model against that of a text model with the same "
        "backbone, and how fast one request at a time speaks. Each variant has processes of its "
        "own; rounds are interleaved.",
        script=("benchmarks/benchmark_multistream.py",),
        result="multistream.json",
        body=tables.multistream,
        targets=(
            Target(
                "step of 8 streams / step of 1 stream at 32 rows", 1.25, True, tables.step_ratios
            ),
        ),
    ),
    Section(
        name="guidance",
        title="Guidance",
        text="Guided requests against plain ones, and against pairs of loose requests whose logits "
        "a hook merges in Python. All kinds are interleaved in one engine, so that what differs "
        "between processes is not taken for a difference of the kinds. See [guidance](guidance.md) "
        "for what is computed.",
        script=("benchmarks/benchmark_guidance.py",),
        result="guidance.json",
        body=tables.guidance,
        targets=(
            Target(
                "(a) throughput, guided / plain, at one request",
                0.8,
                False,
                tables.guided_throughput_at_one,
            ),
            Target(
                "(a) throughput, guided / plain, over what plain decoding gives for 2N against N",
                1.0,
                False,
                tables.guided_against_plain_rows,
            ),
            tables.GUIDED_STEP,
        ),
        plot=plots.guidance,
    ),
    Section(
        name="scaling",
        title="How the step grows",
        text="Milliseconds of a decode step of the whole engine, all requests decoding, over the "
        "batch, the lanes of a request, the streams of the model and the length of the context.",
        script=("benchmarks/benchmark_scaling.py",),
        result="scaling.json",
        body=tables.scaling,
        targets=(tables.SCALING_STEP, tables.SCALING_LANES),
        plot=plots.scaling,
    ),
    Section(
        name="profile",
        title="Where the step's time goes",
        text="The engine's methods are timed from outside; time counts for the innermost part that "
        "runs, so the parts add up to the step. Guided requests, and twice as many plain ones, "
        "which have as many rows in the backbone. Embedding, phases, merging, heads and sampling "
        "are the fork's own parts; the others outside the backbone are preparation, scheduling and "
        "outputs in Python. Requests run as `LLM.generate` runs "
        "them, whose callers want the final output only, and streamed, with an output per step.",
        script=(
            "benchmarks/profile_step.py",
            *("--groups", "32", "--hidden-size", "1024", "--num-layers", "16"),
        ),
        result="profile_step.json",
        body=tables.profile,
        targets=(
            Target(
                "share of the step outside the backbone, 32 groups of the 1024-wide model",
                0.15,
                True,
                tables.outside_backbone,
                percent,
            ),
        ),
        plot=plots.profile,
    ),
    Section(
        name="profile_small",
        title="The same for a small model",
        text="6 layers, 256 wide, where Python weighs most. Up to November 2026 the fork had a "
        "second scheduler for such steps on the CPU (steady steps), which skipped upstream's "
        "scheduling and input preparation while nobody came or went. With it the step of 32 guided "
        "requests took 5.83 ms, 14.9 % of it outside the backbone "
        "([JSON](../benchmarks/results/removed/profile_step_steady.json), before the removal); "
        "streamed through the general scheduler it took 8.16 ms, 34.7 % outside. It was removed: "
        "it rebuilt upstream's bookkeeping and broke with every release, for what is little in a "
        "step of a model of a usual size (above).",
        script=("benchmarks/profile_step.py", "--groups", "32"),
        result="profile_step_small.json",
        body=tables.profile,
    ),
    Section(
        name="profile_compiled",
        title="The same with torch.compile",
        text="The small model, with `enforce_eager=False`.",
        script=("benchmarks/profile_step.py", "--groups", "32", "--compile"),
        result="profile_step_compiled.json",
        body=tables.profile,
    ),
    Section(
        name="sampling",
        title="Sampling",
        text="The sampling operator against the same sampling composed of PyTorch operators, with "
        "the time that reading its inputs and drawing its random numbers take at least (the "
        "roofline; the work of top-k and top-p is not in it).",
        script=("benchmarks/kernels/benchmark_sampling.py",),
        result="sampling_cpu.json",
        body=tables.sampling,
        targets=(tables.SAMPLING_SPEEDUP,),
        cuda_result="sampling_cuda.json",
    ),
    Section(
        name="operators",
        title="The step's operators",
        text="Each operator against the composition of PyTorch operators that does the same, and "
        "against its roofline: the bytes it must touch over the machine's bandwidth, or its "
        "operations over their rate, whichever takes longer.",
        script=("benchmarks/kernels/benchmark_operators.py",),
        result="operators_cpu.json",
        body=tables.operators,
        cuda_result="operators_cuda.json",
    ),
    Section(
        name="throughput",
        title="Throughput",
        text="Requests that all come at once, guided and unguided in interleaved rounds on one "
        "engine, with the flags of upstream's benchmark. Waveforms are decoded within the time. "
        "The real-time factor is the time per second of audio, all requests together. What was "
        "measured on CUDA is a larger model, by the commands of `benchmarks/gpu/run.sh` (see "
        "[on a GPU](gpu.md)).",
        script=(
            "benchmarks/benchmark_throughput.py",
            *("--input-len", "32", "--output-len", "128", "--num-prompts", "64"),
            *("--max-num-seqs", "64", "--max-model-len", "512", "--enforce-eager"),
            *("--guidance-scale", "3", "--compare"),
        ),
        result="throughput.json",
        body=tables.throughput,
        cuda_result="throughput_cuda.json",
    ),
    Section(
        name="latency",
        title="Latency",
        text="The time until one batch of requests has ended, waveforms included, guided and "
        "unguided in interleaved rounds on one engine, with the flags of upstream's benchmark. The "
        "real-time factor is that time over the length of one request's audio.",
        script=(
            "benchmarks/benchmark_latency.py",
            *("--input-len", "32", "--output-len", "128", "--batch-size", "1"),
            *("--max-model-len", "512", "--enforce-eager"),
            *("--guidance-scale", "3", "--compare"),
        ),
        result="latency.json",
        body=tables.latency,
    ),
    Section(
        name="side_by_side",
        title="Side by side with other ways",
        text="The fork against what a user would take instead, with the same weights on the same "
        "machine: transformers' own `generate` on a static batch, and on the unpatched upstream "
        "package two requests per guided one, merged by a logits processor.",
        script=("benchmarks/benchmark_side_by_side.py", "--upstream-python", UPSTREAM_PYTHON),
        result="side_by_side.json",
        body=tables.side_by_side,
        plot=plots.side_by_side,
    ),
    Section(
        name="musicgen",
        title="MusicGen",
        text="A model of musicgen-small's sizes in the published layout, through the fork and "
        "through transformers' own `generate`, text encoder and codec included. Requests of one "
        "length at once are a static batch's best case; of uneven ones, a static batch waits for "
        "its longest.",
        script=("benchmarks/benchmark_musicgen.py", "--rounds", "2", "--frames", "60"),
        result="musicgen.json",
        body=tables.musicgen,
        targets=(
            Target("one request, fork / transformers", 1.3, False, tables.musicgen_single),
            Target("16 uneven requests, fork / transformers", 2.0, False, tables.musicgen_uneven),
        ),
    ),
    Section(
        name="loading",
        title="Loading a large checkpoint",
        text="A checkpoint of OpusLM 7B's sizes as ESPnet publishes it, with random weights: one "
        "file of torch.save's. Its tensors are mapped, copied one after another, and their pages "
        "given back. What a processor's own packing of the weights takes is in the peak, too.",
        script=("benchmarks/benchmark_loading.py",),
        result="loading.json",
        body=tables.loading,
        targets=(Target("peak memory / weights", 1.2, True, tables.loading_peak),),
    ),
    Section(
        name="batch",
        title="Batches on one engine and on two",
        text="Rows of `vllm speak-batch` for the packaged model, in float32, every other one "
        "guided: one engine, and two beside each other, each a process of one thread, in "
        "interleaved rounds. [From one machine to many](scaling.md) says what follows from it.",
        script=("benchmarks/benchmark_batch.py",),
        result="batch.json",
        body=tables.batch,
    ),
    Section(
        name="text_only",
        title="Text-only models",
        text="A text-only model on the fork against the unpatched upstream package, in one "
        "environment: the same interpreter and packages, only the folder `vllm` differs. The same "
        "code differs by some per cent from process to process, and of two equal processes the "
        "one that starts first can be a tenth slower. So each pair is of new processes, the sides "
        "start first in turn, and a ratio is the median of neighbouring pairs' geometric means, "
        "with their range.",
        script=("benchmarks/benchmark_text_only.py",),
        result="text_only.json",
        body=tables.text_only,
        targets=(
            Target(
                "text-only throughput, fork / upstream package",
                0.98,
                False,
                tables.text_only_ratios,
            ),
        ),
    ),
    Section(
        name="acoustic_decoding",
        title="Streamed audio",
        text="The same requests with their audio streamed and with it decoded at the end, in "
        "interleaved rounds. Steps are timed without the codec's calls. The random codecs are "
        "small, so that the codec's share says little of a trained one's. See [acoustic decoding]"
        "(acoustic_decoding.md).",
        script=("benchmarks/benchmark_acoustic_decoding.py",),
        result="acoustic_decoding.json",
        body=tables.acoustic_decoding,
    ),
    Section(
        name="audio_transport",
        title="Audio between processes",
        text="What it costs to bring audio from the engine's process to the front end's: as raw "
        "buffers beside the message, as the engine sends it, and as lists of numbers.",
        script=("benchmarks/benchmark_audio_transport.py",),
        result="audio_transport.json",
        body=tables.audio_transport,
    ),
    Section(
        name="speech_serving",
        title="Serving speech under load",
        text="A server and its clients on the same cores: clients that ask again when their answer "
        "has ended (closed loop), and requests that come at a rate (Poisson). An underrun is a "
        "piece of audio that came later than a player needed it that starts with the first piece.",
        script=(
            "benchmarks/benchmark_speech_serving.py",
            *("--model", "unison-default", "--guidance-scale", "1.5"),
            *("--requests", "32", "--rates", "1", "2", "4", "8", "16"),
        ),
        result="speech_serving.json",
        body=tables.speech_serving,
        plot=plots.speech_serving,
    ),
    Section(
        name="speech_soak",
        title="Serving speech for long",
        text="The server is kept busy with clients of which some leave at random, and watched for "
        "what it does not give back.",
        script=(
            "benchmarks/benchmark_speech_serving.py",
            *("--model", "unison-default", "--guidance-scale", "1.5", "--soak-minutes", "15"),
        ),
        result="speech_soak.json",
        body=tables.speech_soak,
        targets=(
            Target("requests that fail", 0, True, tables.soak_failures, _count),
            Target("KV blocks still held at the end", 0, True, tables.soak_blocks, _count),
            Target("rows of the batch usable at the end", 1, False, tables.soak_rows, percent),
        ),
        plot=plots.speech_soak,
    ),
    Section(
        name="numerics",
        title="The same words on every processor",
        text="The packaged model speaks greedily and transcribes in float32 and in bfloat16, on "
        "this processor and with what others lack switched off. Its "
        "[page](default_model.md#the-same-words-on-every-processor) says what follows from it.",
        script=("benchmarks/benchmark_numerics.py",),
        result="numerics.json",
        body=numerics_report.body,
        targets=numerics_report.TARGETS,
    ),
    Section(
        name="default_model",
        title="The default model",
        text="What the packaged model says and hears, on sentences held out from its training, "
        "judged by models that know nothing of it. Its [page](default_model.md) says how it was "
        "made.",
        script=(
            "benchmarks/evaluate_default_model.py",
            *("--output-plot", f"{IMAGES}/default_model_guidance.png"),
            *("--output-spectrograms", f"{IMAGES}/default_model_spectrograms.png"),
        ),
        result="default_model.json",
        body=default_model_report.body,
        targets=default_model_report.TARGETS,
    ),
)


def load_reports(folder: Path, sections: Sequence[Section] = SECTIONS) -> dict[str, Report]:
    """The JSON of all sections that is there, by its name."""
    names = [name for section in sections for name in (section.result, section.cuda_result)]
    return {
        name: json.loads((folder / name).read_text())
        for name in names
        if name is not None and (folder / name).is_file()
    }


def page(reports: Mapping[str, Report]) -> str:
    """docs/benchmarks.md."""
    return render_page(INTRODUCTION, SECTIONS, reports)


def render(root: Path) -> None:
    """Write the page and its plots under a repository's root."""
    reports = load_reports(root / RESULTS)
    (root / PAGE).write_text(page(reports), encoding="utf-8")
    print(f"wrote {PAGE}")
    for section in SECTIONS:
        if section.plot is not None and section.result in reports:
            section.plot(reports[section.result], root / IMAGES / section.image)
            print(f"wrote {IMAGES}/{section.image}")


def command(section: Section, upstream_python: str | None) -> list[str]:
    """The command line that measures a section; without a Python, without what needs it."""
    arguments = section.arguments
    if UPSTREAM_PYTHON in arguments:
        at = arguments.index(UPSTREAM_PYTHON)
        # The option before it goes with it.
        arguments[at - 1 : at + 1] = (
            []
            if upstream_python is None
            else [
                arguments[at - 1],
                upstream_python,
            ]
        )
    return [sys.executable, *arguments]


def measure(sections: Sequence[Section], upstream_python: str | None) -> list[str]:
    """Run benchmarks one after the other; returns the names of those that failed."""
    failed = []
    begin = time.monotonic()
    for number, section in enumerate(sections, 1):
        line = command(section, upstream_python)
        minutes = (time.monotonic() - begin) / 60
        print(f"\n== {number} of {len(sections)}: {section.name} (after {minutes:.1f} minutes)")
        print(" ".join(["python", *line[1:]]), flush=True)
        (ROOT / RESULTS).mkdir(exist_ok=True)
        if subprocess.run(line, cwd=ROOT).returncode != 0:
            failed.append(section.name)
            print(f"{section.name} failed; its JSON stays what it was", flush=True)
    minutes = (time.monotonic() - begin) / 60
    print(f"\n{len(sections) - len(failed)} of {len(sections)} measured in {minutes:.1f} minutes")
    return failed


def main() -> None:
    """Parse the command line, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [section.name for section in SECTIONS]
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    what.add_argument("--render-only", action="store_true", help="measure nothing")
    what.add_argument("--list", action="store_true", help="print each section's command line")
    upstream = parser.add_mutually_exclusive_group()
    upstream.add_argument("--upstream-python", help="Python with the unpatched upstream package")
    upstream.add_argument(
        "--without-upstream", action="store_true", help="leave out what needs that package"
    )
    options = parser.parse_args()
    if options.list:
        for section in SECTIONS:
            print(f"{section.name}: python {' '.join(section.arguments)}")
        return
    failed: list[str] = []
    if not options.render_only:
        sections = [s for s in SECTIONS if options.only is None or s.name in options.only]
        needing = [s.name for s in sections if UPSTREAM_PYTHON in s.arguments]
        if needing and not (options.upstream_python or options.without_upstream):
            parser.error(f"{', '.join(needing)}: --upstream-python or --without-upstream is needed")
        failed = measure(sections, options.upstream_python)
    render(ROOT)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
