# SPDX-License-Identifier: Apache-2.0
"""From the JSON of benchmarks to a page: tables, targets and what they were measured on.

Pure functions; files are read and written by run_all.py. What a section shows is in
report_tables.py and report_plots.py.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Report = Mapping[str, Any]
"""The JSON that a benchmark wrote."""

NOT_MEASURED = "not measured"
RESULTS = "benchmarks/results"
IMAGES = "docs/images"
TEXT_WIDTH = 120
COMMAND_WIDTH = 96


@dataclass(frozen=True)
class Target:
    """A bound that measured numbers should keep.

    Attributes:
        text: what is measured, without the bound.
        bound: the number.
        at_most: whether it is the largest allowed number, or the smallest.
        values: from a report to the measured numbers, by where they were measured; those that the
            report does not have are left out.
        show: how a number is written.
    """

    text: str
    bound: float
    at_most: bool
    values: Callable[[Report], Mapping[str, float]]
    show: Callable[[float], str] = "{:.3f}".format

    def is_met_by(self, value: float) -> bool:
        """Whether a number is within the bound. NaN is not."""
        return value <= self.bound if self.at_most else value >= self.bound

    def bound_text(self) -> str:
        """The bound in words."""
        return f"{'at most' if self.at_most else 'at least'} {self.show(self.bound)}"


@dataclass(frozen=True)
class Outcome:
    """Whether a target is met.

    Attributes:
        target: what should hold.
        values: the measured numbers, by where.
    """

    target: Target
    values: Mapping[str, float]

    @property
    def missed(self) -> list[str]:
        """Where it is missed."""
        return [where for where, value in self.values.items() if not self.target.is_met_by(value)]

    @property
    def verdict(self) -> str:
        """Met, missed, or not measured."""
        if not self.values:
            return NOT_MEASURED
        if not self.missed:
            return "met"
        if len(self.values) == 1:
            return "**missed**"
        return f"**missed** in {len(self.missed)} of {len(self.values)}"

    @property
    def worst(self) -> str:
        """The number closest to the bound or furthest beyond it, and where."""
        if not self.values:
            return NOT_MEASURED
        # A number that cannot be compared is worse than any.
        sign = 1 if self.target.at_most else -1
        where = max(
            self.values,
            key=lambda name: (self.values[name] != self.values[name], sign * self.values[name]),
        )
        shown = self.target.show(self.values[where])
        return f"{shown} ({where})" if where else shown


@dataclass(frozen=True)
class Section:
    """One benchmark on the page.

    Attributes:
        name: what run_all.py calls it.
        title: the heading.
        text: what was measured.
        script: the command line after `python`, without --output-json. An element UPSTREAM_PYTHON
            stands for the Python of an environment with the unpatched upstream package.
        result: the JSON's name in RESULTS.
        body: from the report, and that of a CUDA machine or None, to Markdown.
        targets: what should hold.
        plot: draws a PNG of the report at a path.
        cuda_result: the name of the JSON that a CUDA machine writes.
    """

    name: str
    title: str
    text: str
    script: Sequence[str]
    result: str
    body: Callable[[Report, Report | None], str]
    targets: Sequence[Target] = ()
    plot: Callable[[Report, Path], None] | None = None
    cuda_result: str | None = None

    @property
    def arguments(self) -> list[str]:
        """The command line after `python`."""
        return [*self.script, "--output-json", f"{RESULTS}/{self.result}"]

    @property
    def image(self) -> str:
        """The plot's file name in IMAGES."""
        return f"benchmark_{self.name}.png"

    def evaluate(self, report: Report | None) -> list[Outcome]:
        """Whether the targets are met."""
        try:
            return [
                Outcome(target, {} if report is None else target.values(report))
                for target in self.targets
            ]
        except KeyError as error:
            raise self.mismatch(error) from error

    def mismatch(self, error: KeyError) -> ValueError:
        """What to raise for a report that lacks what the section shows."""
        return ValueError(f"{self.result} lacks {error}, which section {self.name} shows")


UPSTREAM_PYTHON = "UPSTREAM_PYTHON"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table. A head that starts with "<" is of text, others of numbers."""
    lines = [
        "| " + " | ".join(head.lstrip("<") for head in heads) + " |",
        "|" + "|".join("---" if head.startswith("<") else "---:" for head in heads) + "|",
    ]
    for row in rows:
        if len(row) != len(heads):
            raise ValueError(f"a row has {len(row)} cells instead of {len(heads)}: {row}")
        lines.append("| " + " | ".join(str(cell) for cell in row) + " |")
    return "\n".join(lines)


def ratio(value: Mapping[str, Any], target: Target | None = None) -> str:
    """A ratio and its range; one that misses its target says so."""
    low, high = value["range"]
    shown = f"{value['ratio']:.3f} ({low:.3f} to {high:.3f})"
    if target is not None and not target.is_met_by(value["ratio"]):
        shown = f"**{shown}, missed**"
    return shown


def percent(share: float) -> str:
    """A share as a percentage."""
    return f"{100 * share:.1f} %"


def describe_measurement(report: Report) -> str:
    """The machine, versions and date of a report, as it has them."""
    machine = report.get("machine")
    if machine is None:
        hardware = report.get("hardware", "machine not recorded")
        return f"{hardware}; torch {report.get('torch', 'not recorded')}; date not recorded"
    count = machine.get("threads")
    threads = "" if count is None else f", {count} thread{'s' * (count != 1)}"
    return (
        f"{machine['processor']}, {machine['cores']} cores{threads}, "
        f"accelerator: {machine['accelerator']}; "
        f"torch {machine['torch']}, fork {machine['vllm']}, "
        f"transformers {machine['transformers']}, Python {machine['python']}; {machine['date']}"
    )


def render_section(section: Section, report: Report | None, cuda: Report | None) -> str:
    """One section in Markdown; without a report it says so."""
    parts = [f"## {section.title}", section.text, _command(section.arguments)]
    if report is None:
        missing = f"**Not measured**: `{RESULTS}/{section.result}` is missing."
        return "\n\n".join([*parts, *_target_lines(section.evaluate(None)), missing])
    measured = f"{describe_measurement(report)} ([JSON](../{RESULTS}/{section.result}))."
    if cuda is not None:
        measured += f" CUDA: {describe_measurement(cuda)} "
        measured += f"([JSON](../{RESULTS}/{section.cuda_result}))."
    elif report.get("machine", {}).get("accelerator", "none") == "none":
        measured += f" On CUDA: {NOT_MEASURED}."
    parts.append(measured)
    try:
        parts += _target_lines(section.evaluate(report))
        parts.append(section.body(report, cuda))
    except KeyError as error:
        raise section.mismatch(error) from error
    if section.plot is not None:
        parts.append(f"![{section.title}](images/{section.image})")
    return "\n\n".join(parts)


def render_page(
    introduction: str, sections: Sequence[Section], reports: Mapping[str, Report]
) -> str:
    """The whole page.

    Args:
        introduction: Markdown that it starts with.
        sections: in the page's order.
        reports: by the JSON's name; those that were not measured are missing.
    """
    rows = [
        [
            f"[{section.title}](#{anchor(section.title)})",
            outcome.target.text,
            outcome.target.bound_text(),
            outcome.worst,
            outcome.verdict,
        ]
        for section in sections
        for outcome in section.evaluate(reports.get(section.result))
    ]
    heads = ["<section", "<target", "<bound", "<measured, the worst", "<outcome"]
    parts = [introduction, "## Targets", table(heads, rows)]
    parts += [
        render_section(section, reports.get(section.result), reports.get(section.cuda_result or ""))
        for section in sections
    ]
    return _wrap("\n\n".join(parts)) + "\n"


def anchor(title: str) -> str:
    """The fragment that a heading gets on the usual hosts."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def _target_lines(outcomes: Sequence[Outcome]) -> list[str]:
    if not outcomes:
        return []
    lines = [
        f"- {outcome.target.text}, {outcome.target.bound_text()}: {_outcome_text(outcome)}"
        for outcome in outcomes
    ]
    return ["Targets:\n\n" + "\n".join(lines)]


def _outcome_text(outcome: Outcome) -> str:
    if not outcome.values:
        return f"{NOT_MEASURED}."
    return f"{outcome.verdict}, {outcome.worst}."


def _command(arguments: Sequence[str]) -> str:
    """A command line as a code block; an option stays on a line with its values."""
    options: list[str] = []
    for argument in ["python", *arguments]:
        if argument.startswith("--") or not options:
            options.append(argument)
        else:
            options[-1] += f" {argument}"
    lines = [options[0]]
    for option in options[1:]:
        if len(lines[-1]) + len(option) > COMMAND_WIDTH:
            lines.append(option)
        else:
            lines[-1] += f" {option}"
    return "    " + " \\\n        ".join(lines)


def _wrap(markdown: str) -> str:
    """Paragraphs broken to lines; tables, lists, code and images as they are."""
    blocks = markdown.split("\n\n")
    return "\n\n".join(
        block
        if block.startswith(("|", "-", "!", "    ", "#"))
        else textwrap.fill(block, TEXT_WIDTH, break_long_words=False, break_on_hyphens=False)
        for block in blocks
    )
