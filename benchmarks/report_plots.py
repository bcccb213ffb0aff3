# SPDX-License-Identifier: Apache-2.0
"""Plots of benchmarks' JSON: each function draws one report to one PNG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.report import NOT_MEASURED, Report

HEIGHT = 3.6
WIDTH = 4.6


@contextmanager
def _panels(path: Path, count: int, height: float = HEIGHT) -> Iterator[Sequence[Any]]:
    """Axes side by side, saved at the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, count, figsize=(WIDTH * count, height), squeeze=False, layout="constrained"
    )
    yield axes[0]
    # Without the version, so that the same numbers give the same file.
    figure.savefig(path, dpi=100, metadata={"Software": None})
    pyplot.close(figure)


def _curve(
    axis: Any, x: Sequence[float], y: Sequence[Mapping[str, Any]], label: str, key: str = "median"
) -> None:
    """Medians as a line, ranges as a band."""
    (line,) = axis.plot(x, [value[key] for value in y], marker="o", label=label)
    low, high = zip(*(value["range"] for value in y), strict=True)
    axis.fill_between(x, low, high, color=line.get_color(), alpha=0.15)


def _finish(axis: Any, title: str, x: str, values: Sequence[float], from_zero: bool = True) -> None:
    axis.set_title(title)
    axis.set_xlabel(x)
    axis.set_xscale("log", base=2)
    axis.set_xticks(values, [f"{value:g}" for value in values])
    axis.minorticks_off()
    if from_zero:
        axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend()


def guidance(report: Report, path: Path) -> None:
    """Ratios of throughput and step over the number of requests."""
    with _panels(path, 2) as (left, right):
        for model in report["models"]:
            wide = f"{model['hidden_size']} wide"
            rows = model["throughput"]
            requests = [row["requests"] for row in rows]
            _curve(left, requests, [r["guided_over_plain"] for r in rows], wide, "ratio")
            color = left.lines[-1].get_color()
            plain = [row["plain_2n_over_n"]["ratio"] for row in rows]
            left.plot(requests, plain, ":", color=color, label=f"{wide}, plain 2N / N")
            rows = model["step"]
            groups = [row["groups"] for row in rows]
            _curve(right, groups, [r["guided_over_plain_2n"] for r in rows], wide, "ratio")
            color = right.lines[-1].get_color()
            naive = [row["guided_over_naive"]["ratio"] for row in rows]
            right.plot(groups, naive, ":", color=color, label=f"{wide}, over merged by hand")
        left.axhline(0.8, color="black", linewidth=0.8, label="target at 1 request")
        right.axhline(1.0, color="black", linewidth=0.8, label="target over 2N plain")
        _finish(left, "throughput, guided / plain", "requests", requests, False)
        _finish(right, "step, N guided / 2N plain", "groups", groups, False)


def scaling(report: Report, path: Path) -> None:
    """Milliseconds of a step over batch, lanes, streams and length."""
    with _panels(path, 4) as (batch, lanes, streams, length):
        rows = report["batch"]
        groups = [row["groups"] for row in rows]
        for key, name in (
            ("guided_ms", "N guided"),
            ("plain_ms", "N plain"),
            ("plain_2n_ms", "2N plain"),
        ):
            _curve(batch, groups, [row[key] for row in rows], name)
        _finish(batch, "step over the batch (ms)", "N", groups)

        rows = report["lanes"]
        counts = [row["lanes"] for row in rows]
        requests = report["lane_requests"]
        _curve(lanes, counts, [row["guided_ms"] for row in rows], f"{requests} requests")
        per_lane = [row["plain_rows_ms"] for row in rows]
        _curve(lanes, counts, per_lane, "a plain request per lane")
        _finish(lanes, "step over the lanes (ms)", "lanes per request", counts)
        lanes.set_xscale("linear")
        lanes.set_xticks(counts)

        rows = report["streams"]
        counts = [row["streams"] for row in rows]
        name = f"{report['stream_requests']} requests"
        _curve(streams, counts, [row["step_ms"] for row in rows], name)
        _finish(streams, "step over the streams (ms)", "streams", counts)

        rows = report["length"]
        contexts = [row["context"] for row in rows]
        for key, name in (("guided_ms", "guided"), ("plain_ms", "plain")):
            _curve(length, contexts, [row[key] for row in rows], name)
        _finish(length, "step over the context (ms)", "tokens", contexts)


def profile(report: Report, path: Path) -> None:
    """Each profile as a bar of its parts."""
    profiles = report["profiles"]
    parts = sorted(
        {part for row in profiles for part in row["parts_ms"]},
        key=lambda part: (part != "backbone", -sum(r["parts_ms"].get(part, 0.0) for r in profiles)),
    )
    with _panels(path, 1, 1.8 + 0.5 * len(profiles)) as (axis,):
        from matplotlib import colormaps

        axis.figure.set_figwidth(2.2 * WIDTH)
        names = [f"{row['requests']} {row['kind']}" for row in profiles]
        left = [0.0] * len(profiles)
        for index, part in enumerate(parts):
            widths = [row["parts_ms"].get(part, 0.0) for row in profiles]
            color = "lightgrey" if part == "backbone" else colormaps["tab20"](index - 1)
            axis.barh(names, widths, left=left, label=part, color=color)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axis.invert_yaxis()
        axis.set_xlabel("ms")
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), ncols=2, fontsize="small")


def side_by_side(report: Report, path: Path) -> None:
    """The fork's speed over that of the others, over the number of requests."""
    others = [
        name
        for name in ("transformers", "upstream")
        if any(model[name] != NOT_MEASURED for model in report["models"])
    ]
    with _panels(path, max(1, len(others))) as axes:
        for axis, other in zip(axes, others, strict=False):
            for model in report["models"]:
                if model[other] == NOT_MEASURED:
                    continue
                for guided in (True, False):
                    rows = [row for row in model[other] if row["guided"] is guided]
                    counts = [row["requests"] for row in rows]
                    name = f"{model['hidden_size']} wide, {'' if guided else 'un'}guided"
                    _curve(axis, counts, [r[f"fork_over_{other}"] for r in rows], name, "ratio")
            axis.axhline(1.0, color="black", linewidth=0.8)
            _finish(axis, f"fork / {other}", "requests", counts)


def speech_serving(report: Report, path: Path) -> None:
    """The benchmark's own plot."""
    from benchmarks.benchmark_speech_serving import plot

    plot(report["rows"], path)


def speech_soak(report: Report, path: Path) -> None:
    """What the server held over time."""
    samples = report["soak"]["samples"]
    minutes = [sample["seconds"] / 60 for sample in samples]
    with _panels(path, 2) as axes:
        panels = (("memory (MiB)", "memory_mib"), ("open files and sockets", "handles"))
        for axis, (title, key) in zip(axes, panels, strict=True):
            axis.plot(minutes, [sample[key] for sample in samples])
            axis.set_title(title)
            axis.set_xlabel("minutes")
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
