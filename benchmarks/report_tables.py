# SPDX-License-Identifier: Apache-2.0
"""What each benchmark's JSON shows on the page: tables, and the numbers that targets bound.

A body takes the report and that of a CUDA machine, or None, and gives Markdown. A function that
gives the numbers of a target leaves out what the report does not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.report import NOT_MEASURED, Report, Target, percent, ratio, table

Values = Mapping[str, float]


def _times(value: float) -> str:
    return f"{value:.1f} times"


# What several streams cost


def step_ratios(report: Report) -> Values:
    """Multi-stream over single-stream step at 32 rows."""
    rows = report.get("step", {}).get("rows", ())
    return {f"{row['rows']} rows": row["ratio"] for row in rows if row["rows"] == 32}


def multistream(report: Report, cuda: Report | None) -> str:
    """Step and speech."""
    parts = []
    if "step" in report:
        step = report["step"]
        parts += [
            f"A decode step of the whole engine, bfloat16, eager, {step['num_layers']} layers of "
            f"{step['hidden_size']}: {step['streams']} streams of 1024 codes against the same "
            "backbone as a plain text model.",
            table(
                ["rows", f"{step['streams']} streams, ms", "1 stream, ms", "ratio"],
                [
                    (
                        row["rows"],
                        f"{row['multi_stream_ms']:.2f}",
                        f"{row['single_stream_ms']:.2f}",
                        f"{row['ratio']:.3f}",
                    )
                    for row in step["rows"]
                ],
            ),
        ]
    if "speech" in report:
        speech = report["speech"]
        parts.append(
            f"Speech, one request at a time: {speech['num_layers']} layers of "
            f"{speech['hidden_size']}, 8 streams, a small random DAC at 16 kHz (50 frames/s), "
            f"decoding to the waveform included: "
            f"**{speech['audio_seconds_per_second']:.2f} seconds of audio per second**, "
            f"{speech['steps_per_second']:.2f} steps/s."
        )
    return "\n\n".join(parts)


# Guidance


def _wide(model: Mapping[str, Any]) -> str:
    return f"{model['hidden_size']} wide"


def guided_throughput_at_one(report: Report) -> Values:
    """Guided over plain throughput at one request."""
    return {
        _wide(model): row["guided_over_plain"]["ratio"]
        for model in report["models"]
        for row in model["throughput"]
        if row["requests"] == 1
    }


def guided_against_plain_rows(report: Report) -> Values:
    """Guided over plain throughput, over what plain decoding gives for 2N against N."""
    return {
        f"{_wide(model)}, {row['requests']} requests": row["guided_over_plain"]["ratio"]
        / row["plain_2n_over_n"]["ratio"]
        for model in report["models"]
        for row in model["throughput"]
    }


def guided_step_ratios(report: Report) -> Values:
    """Step of N groups over that of 2N plain requests."""
    return {
        f"{_wide(model)}, {row['groups']} groups": row["guided_over_plain_2n"]["ratio"]
        for model in report["models"]
        for row in model["step"]
    }


GUIDED_STEP = Target(
    "(b) step of N guided requests / step of 2N plain ones", 1.0, True, guided_step_ratios
)


def guidance(report: Report, cuda: Report | None) -> str:
    """Throughput, step, and the null prompt, by model."""
    parts = []
    for model in report["models"]:
        parts += [
            f"**{model['hidden_size']} wide, {model['num_layers']} layers, {report['streams']} "
            f"streams, {report['dtype']}**, {report['repeats']} rounds",
            "(a) Throughput of the same requests, guided against plain; beside it what plain "
            "decoding gives per request for 2N against N:",
            table(
                [
                    "requests",
                    "guided, frames/s",
                    "plain, frames/s",
                    "<guided / plain",
                    "<plain 2N / N",
                ],
                [
                    (
                        row["requests"],
                        f"{row['guided_frames_per_second']:.1f}",
                        f"{row['plain_frames_per_second']:.1f}",
                        ratio(row["guided_over_plain"]),
                        ratio(row["plain_2n_over_n"]),
                    )
                    for row in model["throughput"]
                ],
            ),
            "(b) A decode step of N groups against 2N plain requests, (c) against N pairs merged "
            "by hand:",
            table(
                [
                    "groups",
                    "guided, ms",
                    "plain 2N, ms",
                    "naive, ms",
                    "<guided / plain 2N",
                    "<guided / naive",
                ],
                [
                    (
                        row["groups"],
                        f"{row['guided_ms']:.2f}",
                        f"{row['plain_2n_ms']:.2f}",
                        f"{row['naive_ms']:.2f}",
                        ratio(row["guided_over_plain_2n"], GUIDED_STEP),
                        ratio(row["guided_over_naive"]),
                    )
                    for row in model["step"]
                ],
            ),
        ]
        parts += [
            f"A negative prompt of {row['tokens']} tokens: first tokens after "
            f"{row['uncached_ms']:.1f} ms uncached, {row['cached_ms']:.1f} ms from the prefix "
            "cache."
            for row in model["null_prompt"]
        ]
    return "\n\n".join(parts)


# Scaling


def scaling_step_ratios(report: Report) -> Values:
    """Step of N groups over that of 2N plain requests."""
    return {
        f"{row['groups']} groups": row["guided_over_plain_2n"]["ratio"] for row in report["batch"]
    }


def scaling_lane_ratios(report: Report) -> Values:
    """Step of requests of several lanes over that of as many plain requests as lanes."""
    return {
        f"{row['lanes']} lanes": row["over_plain_rows"]["ratio"]
        for row in report["lanes"]
        if row["lanes"] > 1
    }


SCALING_STEP = Target(GUIDED_STEP.text, GUIDED_STEP.bound, True, scaling_step_ratios)
SCALING_LANES = Target(
    "step of N requests of L lanes / step of N x L plain ones", 1.0, True, scaling_lane_ratios
)


def _median(value: Mapping[str, Any]) -> str:
    return f"{value['median']:.2f}"


def scaling(report: Report, cuda: Report | None) -> str:
    """Four curves."""
    lane_requests = report["lane_requests"]
    return "\n\n".join(
        [
            f"{report['num_layers']} layers of {report['hidden_size']}, {report['num_streams']} "
            f"streams where not stated otherwise, {report['dtype']}, eager; {report['repeats']} "
            "rounds.",
            "**Batch**: N guided requests of two lanes against N and 2N plain ones.",
            table(
                [
                    "groups",
                    "guided, ms",
                    "plain N, ms",
                    "plain 2N, ms",
                    "<guided / plain N",
                    "<guided / plain 2N",
                ],
                [
                    (
                        row["groups"],
                        _median(row["guided_ms"]),
                        _median(row["plain_ms"]),
                        _median(row["plain_2n_ms"]),
                        ratio(row["guided_over_plain"]),
                        ratio(row["guided_over_plain_2n"], SCALING_STEP),
                    )
                    for row in report["batch"]
                ],
            ),
            f"**Lanes**: {lane_requests} requests, against as many plain ones, and against one "
            "plain request per lane.",
            table(
                [
                    "lanes",
                    "step, ms",
                    "plain request per lane, ms",
                    "<over one lane",
                    "<over a plain request per lane",
                ],
                [
                    (
                        row["lanes"],
                        _median(row["guided_ms"]),
                        _median(row["plain_rows_ms"]),
                        ratio(row["over_one_lane"]),
                        ratio(row["over_plain_rows"], SCALING_LANES),
                    )
                    for row in report["lanes"]
                    if row["lanes"] > 1
                ],
            ),
            f"**Streams**: {report['stream_requests']} plain requests, 1024 codes per stream.",
            table(
                ["streams", "step, ms", "<over the fewest"],
                [
                    (row["streams"], _median(row["step_ms"]), ratio(row["over_fewest"]))
                    for row in report["streams"]
                ],
            ),
            f"**Length**: {report['length_requests']} requests at the end of a context. The "
            "guidance lane is as short as the null prompt, so guidance costs the less the longer "
            "the prompt.",
            table(
                [
                    "tokens",
                    "guided, ms",
                    "plain, ms",
                    "<guided / plain",
                    "<guided / shortest",
                    "<plain / shortest",
                ],
                [
                    (
                        row["context"],
                        _median(row["guided_ms"]),
                        _median(row["plain_ms"]),
                        ratio(row["guided_over_plain"]),
                        ratio(row["guided_over_shortest"]),
                        ratio(row["plain_over_shortest"]),
                    )
                    for row in report["length"]
                ],
            ),
        ]
    )


# Kernels


def _has_target(case: Mapping[str, Any]) -> bool:
    return (case["rows"], case["streams"], case["candidates"]) == (32, 9, 1024)


def _filters(case: Mapping[str, Any]) -> str:
    top_k = f"top-k {case['top_k']}" if case["top_k"] else ""
    top_p = f"top-p {case['top_p']}" if case["top_p"] < 1 else ""
    return ", ".join(filter(None, (top_k, top_p))) or "no filter"


def sampling_speedups(report: Report) -> Values:
    """Composition over operator at 32 rows x 9 streams x 1024."""
    return {
        f"{row['case']['dtype']}, {_filters(row['case'])}": row["ratio"]
        for row in report["results"]
        if _has_target(row["case"])
    }


SAMPLING_SPEEDUP = Target(
    "sampling by the operator against PyTorch operators, 32 rows x 9 streams x 1024",
    5.0,
    False,
    sampling_speedups,
    _times,
)


def sampling(report: Report, cuda: Report | None) -> str:
    """All sizes in float32; the one with a target in bfloat16, too."""

    def by_case(of: Report | None) -> dict[tuple[Any, ...], Mapping[str, Any]]:
        return {} if of is None else {tuple(row["case"].values()): row for row in of["results"]}

    on_cuda = by_case(cuda)
    rows = []
    for key, row in by_case(report).items():
        case = row["case"]
        if case["dtype"] != "float32" and not _has_target(case):
            continue
        faster = f"{row['ratio']:.1f}"
        if _has_target(case) and not SAMPLING_SPEEDUP.is_met_by(row["ratio"]):
            faster = f"**{faster}, missed**"
        other = on_cuda.get(key)
        rows.append(
            (
                f"{case['rows']} x {case['streams']} x {case['candidates']}",
                case["dtype"],
                case["top_k"] or "off",
                case["top_p"] if case["top_p"] < 1 else "off",
                f"{row['operator_ms']:.3f}",
                f"{row['composition_ms']:.3f}",
                faster,
                f"{row['roofline_ms']:.3f}" if "roofline_ms" in row else NOT_MEASURED,
                f"{other['operator_ms']:.3f}" if other else NOT_MEASURED,
                f"{other['ratio']:.1f}" if other else NOT_MEASURED,
            )
        )
    heads = ["<rows x streams x candidates", "<type", "top-k", "top-p", "operator, ms"]
    heads += ["PyTorch, ms", "times faster", "roofline, ms", "CUDA operator, ms"]
    heads.append("times faster than PyTorch on CUDA")
    return table(heads, rows) + "\n\nThe other sizes in bfloat16 are in the JSON."


def operators(report: Report, cuda: Report | None) -> str:
    """Each operator over sizes."""
    on_cuda = {(row["operator"], row["size"]): row for row in cuda["operators"]} if cuda else {}

    def microseconds(row: Mapping[str, Any] | None, key: str, digits: int = 1) -> str:
        return NOT_MEASURED if row is None else f"{1e3 * row[key]:.{digits}f}"

    gigabytes = report["roofline"]["bytes_per_second"] / 1e9
    gigaoperations = report["roofline"]["operations_per_second"] / 1e9
    clock = "processor time" if report["clock"] == "thread_time" else "wall-clock time"
    return "\n\n".join(
        [
            f"Times are {clock}. The roofline takes {gigabytes:.1f} GB/s and {gigaoperations:.0f} "
            "billion operations per second; a call from Python costs some 5 µs on top. Data in a "
            "nearer cache can be faster than it.",
            table(
                [
                    "<operator",
                    "<size",
                    "roofline, µs",
                    "operator, µs",
                    "PyTorch, µs",
                    "times faster",
                    "CUDA operator, µs",
                    "times faster than PyTorch on CUDA",
                ],
                [
                    (
                        f"`{row['operator']}`",
                        row["size"],
                        microseconds(row, "roofline_ms", 2),
                        microseconds(row, "operator_ms"),
                        microseconds(row, "composition_ms"),
                        f"{row['times_faster']:.1f}",
                        microseconds(other, "operator_ms"),
                        f"{other['times_faster']:.1f}" if other else NOT_MEASURED,
                    )
                    for row in report["operators"]
                    for other in [on_cuda.get((row["operator"], row["size"]))]
                ],
            ),
        ]
    )


# The step's parts


def outside_backbone(report: Report) -> Values:
    """Share of the step outside the backbone, 32 guided requests of the 1024-wide model."""
    for row in report["profiles"]:
        if report["hidden_size"] == 1024 and (row["kind"], row["requests"]) == ("guided", 32):
            return {"": row["outside_backbone"]}
    return {}


def _percents(ends: Sequence[float]) -> str:
    return " to ".join(percent(end) for end in ends)


def profile(report: Report, cuda: Report | None) -> str:
    """Milliseconds of each part, a column per kind and number of requests."""
    profiles = report["profiles"]
    last = profiles[-2:]
    parts = sorted(
        {part for row in profiles for part in row["parts_ms"]},
        key=lambda part: -max(row["parts_ms"].get(part, 0.0) for row in last),
    )

    def cell(row: Mapping[str, Any], part: str) -> str:
        return f"{row['parts_ms'][part]:.3f}" if part in row["parts_ms"] else ""

    heads = ["<part, ms", *(f"{row['requests']} {row['kind']}" for row in profiles)]
    rows = [[part, *(cell(row, part) for row in profiles)] for part in parts]
    rows.append(["**step**", *(f"**{row['step_ms']:.3f}**" for row in profiles)])
    rows.append(["outside the backbone", *(percent(row["outside_backbone"]) for row in profiles)])
    rows.append(["range of that", *(_percents(row["outside_backbone_range"]) for row in profiles)])
    clock = (
        "processor time of one thread" if report["clock"] == "process_time" else "wall-clock time"
    )
    compiled = "with torch.compile" if report["compiled"] else "eager"
    statistic = "fastest" if report["statistic"] == "min" else "median"
    return (
        f"{report['num_layers']} layers of {report['hidden_size']}, 8 streams, bfloat16, "
        f"{compiled}; {statistic} of the steps, {clock}.\n\n" + table(heads, rows)
    )


# Upstream-style


def _workload(report: Report) -> str:
    model, given = report["model"], report["parameters"]
    where = report["model_id"]
    words = [
        f"{where}: {model['num_layers']} layers of {model['hidden_size']}, {model['streams']} "
        f"streams, {model['dtype']}",
        f"prompts of {given['input_len']} and outputs of {given['output_len']} tokens",
    ]
    if given.get("guidance_scale") is not None:
        words.append(f"guidance scale {given['guidance_scale']:g}")
    return "; ".join(words)


def _variants(report: Report) -> list[tuple[str, Mapping[str, Any]]]:
    variants = [(report["variant"], report)]
    return [*variants, ("unguided", report["unguided"])] if "unguided" in report else variants


def _figure(variant: Mapping[str, Any], key: str, digits: int = 2) -> str:
    value = variant.get(key)
    return "none" if value is None else f"{value:.{digits}f}"


def _guided_over_unguided(report: Report, of: str) -> str:
    if "guided_over_unguided" not in report:
        return f"Guided over unguided: {NOT_MEASURED}."
    return f"Guided over unguided, {of}: **{ratio(report['guided_over_unguided'])}**."


GPU_CASES = {
    "v1": "V1, CUDA graphs",
    "v1_eager": "V1, eager",
    "v2": "V2, CUDA graphs",
    "v2_eager": "V2, eager",
}
"""What the files of benchmarks/gpu/run.sh's throughput steps are of, before their last word."""


def _throughput_on_gpu(cuda: Report) -> str:
    """A row per runner and number of requests."""
    by_size = sorted(
        cuda["cases"].items(),
        key=lambda case: (
            list(GPU_CASES).index(case[0].rpartition("_")[0]),
            case[1]["parameters"]["num_prompts"],
        ),
    )
    rows = [
        [
            GPU_CASES[name.rpartition("_")[0]],
            case["parameters"]["num_prompts"],
            *(_figure(variant, "requests_per_second") for variant in (case, case["unguided"])),
            *(_figure(variant, "steps_per_second", 0) for variant in (case, case["unguided"])),
            _figure(case, "audio_seconds_per_second", 1),
            ratio(case["guided_over_unguided"]),
        ]
        for name, case in by_size
    ]
    heads = ["<on CUDA", "requests at once", "requests/s, guided", "requests/s, unguided"]
    heads += ["steps/s, guided", "steps/s, unguided", "seconds of audio/s, guided"]
    heads.append("guided over unguided")
    case = by_size[0][1] | {"model_id": "random weights"}
    rounds = case["parameters"]["repeats"]
    return f"On CUDA: {_workload(case)}; {rounds} rounds.\n\n{table(heads, rows)}"


def throughput(report: Report, cuda: Report | None) -> str:
    """A row per variant, then the ratio."""
    heads = ["<", "requests/s", "steps/s", "tokens/s of all streams", "seconds of audio/s"]
    keys = ("requests_per_second", "steps_per_second", "stream_tokens_per_second")
    rows = [
        [
            name,
            *(_figure(variant, key) for key in keys),
            _figure(variant, "audio_seconds_per_second"),
            _figure(variant, "real_time_factor", 4),
        ]
        for name, variant in _variants(report)
    ]
    prompts, rounds = report["parameters"]["num_prompts"], report["parameters"]["repeats"]
    return "\n\n".join(
        [
            f"{_workload(report)}; {prompts} requests at once, {rounds} rounds.",
            table([*heads, "real-time factor"], rows),
            _guided_over_unguided(report, "requests per second"),
            *([] if cuda is None else [_throughput_on_gpu(cuda)]),
        ]
    )


def latency(report: Report, cuda: Report | None) -> str:
    """A row per variant, then the ratio."""
    rows = [
        [
            name,
            f"{1e3 * variant['avg_latency']:.1f}",
            *(f"{1e3 * variant['percentiles'][p]:.1f}" for p in ("50", "90", "99")),
            _figure(variant, "steps_per_second"),
            _figure(variant, "real_time_factor", 4),
        ]
        for name, variant in _variants(report)
    ]
    heads = ["<", "mean, ms", "median, ms", "p90, ms", "p99, ms", "steps/s", "real-time factor"]
    size, count = report["parameters"]["batch_size"], report["parameters"]["num_iters"]
    return "\n\n".join(
        [
            f"{_workload(report)}; batch of {size}, {count} iterations.",
            table(heads, rows),
            _guided_over_unguided(report, "latency"),
        ]
    )


# Side by side


def _pairs_apart(row: Mapping[str, Any]) -> str:
    return f"{row['pairs_apart']} of {row['pairs']}" if "pairs" in row else ""


def _beside(model: Mapping[str, Any], other: str, unit: str) -> Iterator[str]:
    """One comparison of one model, as a title, a table and a count of what is slower."""
    title = f"**{model['hidden_size']} wide, {model['num_layers']} layers, against {other}**"
    rows = model[other]
    if rows == NOT_MEASURED:
        yield f"{title}: {NOT_MEASURED}."
        return
    yield f"{title}:"
    heads = ["requests", "<guided", f"fork, {unit}/s", f"{other}, {unit}/s", f"<fork / {other}"]
    cells = [
        [
            row["requests"],
            "yes" if row["guided"] else "no",
            f"{row[f'fork_{unit}_per_second']:.1f}",
            f"{row[f'{other}_{unit}_per_second']:.1f}",
            ratio(row[f"fork_over_{other}"]),
        ]
        for row in rows
    ]
    if any("pairs" in row for row in rows):
        heads.append("<pairs whose tokens differ")
        for line, row in zip(cells, rows, strict=True):
            line.append(_pairs_apart(row))
    yield table(heads, cells)
    slower = sum(row[f"fork_over_{other}"]["ratio"] < 1 for row in rows)
    yield f"The fork is slower in {slower} of {len(rows)}."


def side_by_side(report: Report, cuda: Report | None) -> str:
    """Per model the comparisons with transformers and with the unpatched package."""
    given = report["parameters"]
    parts = [
        f"{given['dtype']}, outputs of {given['length']} frames or tokens, prompts of "
        f"{given['prompt_tokens']}; temperature {given['temperature']:g}, top-k {given['top_k']}, "
        f"guidance scale {given['guidance_scale']:g}; {given['rounds']} rounds. Frames of "
        f"{given['streams']} streams of {given['codebook']} codes. Above 1 the fork is faster."
    ]
    for model in report["models"]:
        parts += _beside(model, "transformers", "frames")
        parts += _beside(model, "upstream", "tokens")
    return "\n\n".join(parts)


def musicgen(report: Report, cuda: Report | None) -> str:
    """Requests of one length, requests of many, and what guidance costs."""
    given = report["parameters"]
    shortest, longest = given["uneven_frames"]

    def guided(row: Report) -> str:
        return "guided" if row["guided"] else "unguided"

    equal = table(
        ["requests", "", "fork, frames/s", "transformers, frames/s", "fork / transformers"],
        [
            (
                row["requests"],
                guided(row),
                f"{row['fork_frames_per_second']:.1f}",
                f"{row['transformers_frames_per_second']:.1f}",
                ratio(row["fork_over_transformers"]),
            )
            for row in report["equal"]
        ],
    )
    uneven = table(
        ["requests", "", "", "fork", "transformers", "times faster"],
        [
            (
                row["requests"],
                guided(row),
                what,
                f"{row[f'fork_{name}']:.1f} s",
                f"{row[f'transformers_{name}']:.1f} s",
                ratio(row[compared]),
            )
            for row in report["uneven"]
            for what, name, compared in (
                ("until all are done", "seconds", "fork_over_transformers"),
                ("arrival to audio, mean", "mean_latency", "latency_transformers_over_fork"),
            )
        ],
    )
    cost = table(
        ["requests", "guided over unguided, frames/s"],
        [(row["requests"], ratio(row["fork"])) for row in report["guided_over_unguided"]],
    )
    return "\n\n".join(
        [
            f"{given['num_layers']} layers of {given['hidden_size']}, random weights, bfloat16; "
            f"guidance scale {given['guidance_scale']:g}, top-k {given['top_k']}; "
            f"{given['rounds']} rounds. A frame is 20 ms of audio.",
            f"Requests of {given['frames']} frames that come at once:",
            equal,
            f"Requests of {shortest} to {longest} frames that come within "
            f"{given['uneven_seconds']:g} s:",
            uneven,
            cost,
        ]
    )


def musicgen_single(report: Report) -> Values:
    """The fork's over transformers' throughput of one request."""
    return {
        "guided" if row["guided"] else "unguided": row["fork_over_transformers"]["ratio"]
        for row in report["equal"]
        if row["requests"] == 1
    }


def musicgen_uneven(report: Report) -> Values:
    """The fork's over transformers' throughput of uneven requests."""
    return {
        "guided" if row["guided"] else "unguided": row["fork_over_transformers"]["ratio"]
        for row in report["uneven"]
    }


def loading(report: Report, cuda: Report | None) -> str:
    """Bytes, seconds and memory."""
    gib = 1 << 30
    rows = [
        ("weights", f"{report['weights_bytes'] / gib:.2f} GiB"),
        ("reading the file once, without a model", f"{report['read_seconds']:.0f} s"),
        ("loading the weights", f"{report['weights_seconds']:.0f} s"),
        ("until the engine is ready", f"{report['start_seconds']:.0f} s"),
        ("peak memory, without the KV cache", f"{report['peak_over_weights']:.3f} × the weights"),
    ]
    return f"{report['layers']} layers of 4096, bfloat16.\n\n" + table(["", ""], rows)


def loading_peak(report: Report) -> Values:
    """Peak memory over the weights."""
    return {"7B": report["peak_over_weights"]}


def batch(report: Report, cuda: Report | None) -> str:
    """Seconds of audio a second of one engine and of two, and their ratio."""
    kinds = {
        "one engine": "seconds of audio a second, one engine",
        "two engines": "seconds of audio a second, two engines",
        "two over one": "two over one",
    }
    rows = [
        (name, f"{median(report[key]):.2f}", f"{min(report[key]):.2f} to {max(report[key]):.2f}")
        for name, key in kinds.items()
    ]
    equal = "the same codes" if report["codes are equal"] else "other codes"
    return (
        f"{report['rows']} rows, {len(report['two over one'])} rounds. Each row has {equal} with "
        "one engine and with two.\n\n"
        + table(["<", "seconds of audio a second, median", "range"], rows)
    )


def text_only(report: Report, cuda: Report | None) -> str:
    """Per model a row for each number of requests."""
    given = report["parameters"]
    parts = [
        f"{given['dtype']}, outputs of {given['length']} tokens, prompts of "
        f"{given['prompt_tokens']}; {given['pairs']} pairs of processes, {given['rounds']} rounds "
        "each. Below 1 the fork is slower."
    ]
    for model in report["models"]:
        parts += [
            f"{model['num_layers']} layers of {model['hidden_size']}:",
            table(
                ["requests", "fork, tokens/s", "upstream, tokens/s", "fork / upstream"],
                [
                    (
                        row["requests"],
                        f"{row['fork_tokens_per_second']:.1f}",
                        f"{row['upstream_tokens_per_second']:.1f}",
                        ratio(row["fork_over_upstream"]),
                    )
                    for row in model["rows"]
                ],
            ),
        ]
    return "\n\n".join(parts)


def text_only_ratios(report: Report) -> Values:
    """The fork's over upstream's throughput."""
    return {
        f"{_wide(model)}, {row['requests']}": row["fork_over_upstream"]["ratio"]
        for model in report.get("models", ())
        for row in model["rows"]
    }


# Audio


def acoustic_decoding(report: Report, cuda: Report | None) -> str:
    """A row per codec and number of requests."""
    return f"{report['rounds']} rounds.\n\n" + table(
        [
            "<codec",
            "requests",
            "steps, streamed / at the end",
            "codec, streamed / at the end",
            "codec's share of the time",
            "first audio, ms",
            "first audio, share of the whole time",
        ],
        [
            (
                row["codec"],
                row["requests"],
                f"{row['step_ratio']:.3f}",
                f"{row['codec_ratio']:.3f}",
                percent(row["codec_share"]),
                f"{1e3 * row['first_audio_seconds']:.0f}",
                percent(row["first_audio"]),
            )
            for row in report["results"]
        ],
    )


def audio_transport(report: Report, cuda: Report | None) -> str:
    """A row per size of chunk."""
    heads = ["<chunk", "audio in the message", "without audio", "with audio", "as lists of numbers"]
    rows = [
        (
            f"{row['frames_per_chunk']} frames",
            f"{row['audio_seconds']:.1f} s",
            *(f"{row['milliseconds'][way]:.2f} ms" for way in ("text", "buffers", "lists")),
            f"{1e3 * row['seconds_per_audio_second']:.3f} ms",
        )
        for row in report["results"]
    ]
    return (
        f"One message with a chunk for each of {report['results'][0]['streams']} streams, there "
        f"and decoded; the fastest of {report['rounds']} rounds.\n\n"
        + table([*heads, "added per second of audio"], rows)
    )


# Serving


def _percentile(row: Mapping[str, Any], key: str, unit: float = 1.0, digits: int = 2) -> str:
    values = row[key]
    if not values:
        return "none"
    return " / ".join(f"{unit * values[p]:.{digits}f}" for p in ("p50", "p90"))


def speech_serving(report: Report, cuda: Report | None) -> str:
    """A row per load and guidance."""
    rows = []
    for row in report["rows"]:
        closed = row["kind"] == "closed"
        load = f"{row['clients']} clients" if closed else f"{row['requests_per_second']:g}/s"
        rows.append(
            (
                load,
                "off" if row["guidance_scale"] == 1.0 else f"{row['guidance_scale']:g}",
                row["requests"],
                row["failed"] or "none",
                _percentile(row, "first_audio_seconds", 1e3, 0),
                _percentile(row, "real_time_factor"),
                f"{row['requests_with_underruns']} of {row['requests']}",
                _percentile(row, "buffer_seconds", 1e3, 0),
                f"{row['audio_seconds_per_second']:.2f}",
            )
        )
    heads = ["<load", "guidance", "requests", "failed", "first audio, ms", "real-time factor"]
    heads += ["with underruns", "buffer, ms", "seconds of audio/s"]
    counts = ", ".join(
        f"{clients} {'unguided' if scale == '1' else f'at scale {scale}'}"
        for scale, clients in report["max_clients_without_underrun"].items()
    )
    return "\n\n".join(
        [
            f"Model: {report['model']}, at most {report['max_tokens']} frames per request. Pairs "
            "of numbers are p50 / p90. Buffer: by how much a player must start after the first "
            "piece to have no underrun.",
            table(heads, rows),
            f"Most clients up to which no request has an underrun or fails: {counts}.",
        ]
    )


def soak_rows(report: Report) -> Values:
    """Share of the batch's rows that could be used at the end."""
    soak = report["soak"]
    return {
        f"{soak['rows_usable_at_end']} of {soak['rows']}": soak["rows_usable_at_end"] / soak["rows"]
    }


def soak_blocks(report: Report) -> Values:
    """0 if all KV blocks were free at the end."""
    return {"": float(not report["soak"]["blocks_free_at_end"])}


def soak_failures(report: Report) -> Values:
    """Requests that failed."""
    return {"": float(report["soak"]["requests"]["failed"])}


def speech_soak(report: Report, cuda: Report | None) -> str:
    """What the server held."""
    soak = report["soak"]
    first, second = soak["handles_median_in_first_and_second_half"]
    counts = soak["requests"]
    free = "yes" if soak["blocks_free_at_end"] else "**no**"
    return table(
        ["<", "<"],
        [
            ("model", report["model"]),
            ("minutes", f"{soak['minutes']:g}"),
            ("clients", soak["clients"]),
            ("requests that ended", counts["done"]),
            ("requests whose client left", counts["cancelled"]),
            ("requests that failed", counts["failed"]),
            ("all KV blocks free at the end", free),
            (
                "rows of the batch usable at the end",
                f"{soak['rows_usable_at_end']} of {soak['rows']}",
            ),
            (
                "memory's growth in the second half",
                f"{soak['memory_mib_growth_in_second_half']:.1f} MiB",
            ),
            ("open files and sockets, first and second half", f"{first:g} and {second:g}"),
        ],
    )
