# SPDX-License-Identifier: Apache-2.0
"""docs/benchmarks.md is what its JSON says: nothing by hand, nothing missing, no miss hidden."""

from __future__ import annotations

import copy
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import run_all
from benchmarks.gpu.collect_throughput import collect
from benchmarks.report import (
    IMAGES,
    RESULTS,
    UPSTREAM_PYTHON,
    Outcome,
    Section,
    Target,
    ratio,
    table,
)
from tests.benchmarks import samples

ROOT = Path(__file__).parents[2]
SECTIONS = {section.name: section for section in run_all.SECTIONS}


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """The repository's JSON."""
    return dict(run_all.load_reports(ROOT / RESULTS))


@pytest.fixture
def reports(measured: dict[str, Any]) -> dict[str, Any]:
    """A report for each section that can be had, to be changed."""
    return copy.deepcopy(measured | samples.all_reports())


def section_of(page: str, name: str) -> str:
    """One section's part of a page."""
    title = SECTIONS[name].title
    begin = page.index(f"\n## {title}\n")
    end = page.find("\n## ", begin + 1)
    return page[begin : len(page) if end < 0 else end]


def summary_of(page: str, name: str) -> list[str]:
    """One section's rows of the table of targets."""
    return [line for line in page.splitlines() if line.startswith(f"| [{SECTIONS[name].title}]")]


def test_the_page_is_what_the_json_says(measured: dict[str, Any]) -> None:
    written = (ROOT / run_all.PAGE).read_text(encoding="utf-8")
    assert written == run_all.page(measured), "run: python benchmarks/run_all.py --render-only"


def test_links_of_the_page_lead_somewhere() -> None:
    page = (ROOT / run_all.PAGE).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)]+)\)", page)
    assert len(targets) > 20
    for target in targets:
        file, _, anchor = target.partition("#")
        path = ROOT / "docs" / file if file else ROOT / run_all.PAGE
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^##+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {
                re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in headings
            }, target


def test_all_json_is_shown() -> None:
    shown = {section.result for section in run_all.SECTIONS}
    shown |= {section.cuda_result for section in run_all.SECTIONS if section.cuda_result}
    assert {file.name for file in (ROOT / RESULTS).glob("*.json")} <= shown


def test_names_and_files_are_unique() -> None:
    sections = run_all.SECTIONS
    for key in ("name", "title", "result"):
        assert len({getattr(section, key) for section in sections}) == len(sections)


def test_what_was_measured_has_its_script(measured: dict[str, Any]) -> None:
    for section in run_all.SECTIONS:
        if section.result in measured:
            assert (ROOT / section.script[0]).is_file()


def test_without_json_nothing_is_measured() -> None:
    page = run_all.page({})
    assert page.count("**Not measured**") == len(run_all.SECTIONS)
    assert "| kept |" not in page and ": kept" not in page and "**missed**" not in page
    for name, section in SECTIONS.items():
        text = section_of(page, name)
        assert f"**Not measured**: `{RESULTS}/{section.result}` is missing." in text
        assert "![" not in text and "\n|" not in text
        for line in summary_of(page, name):
            assert line.count("not measured") == 2


def test_one_missing_json_leaves_the_others(measured: dict[str, Any]) -> None:
    whole = run_all.page(measured)
    page = run_all.page({name: r for name, r in measured.items() if name != "guidance.json"})
    assert "**Not measured**: `benchmarks/results/guidance.json`" in section_of(page, "guidance")
    assert section_of(page, "multistream") == section_of(whole, "multistream")


def test_every_target_reads_its_json(reports: dict[str, Any]) -> None:
    for section in run_all.SECTIONS:
        if section.result not in reports:
            continue
        for outcome in section.evaluate(reports[section.result]):
            assert outcome.values, (section.name, outcome.target.text)


def test_each_section_names_its_own_machine(reports: dict[str, Any]) -> None:
    reports["guidance.json"]["machine"]["processor"] = "Another processor"
    reports["guidance.json"]["machine"]["date"] = "2002-03-04"
    page = run_all.page(reports)
    assert "Another processor" in section_of(page, "guidance")
    assert "2002-03-04" in section_of(page, "guidance")
    assert page.count("Another processor") == page.count("2002-03-04") == 1
    scaling = " ".join(section_of(page, "scaling").split())
    assert (
        "A processor, 3 cores, accelerator: none; torch 9.8.7, fork 6.5.4, transformers 3.2.1, "
        "Python 3.11.0; 2001-02-03" in scaling
    )
    assert "On CUDA: not measured." in scaling


def set_guided_step(report: Any, value: float) -> None:
    # What was measured may miss the target, too.
    for model in report["models"]:
        for row in model["step"]:
            row["guided_over_plain_2n"]["ratio"] = min(value, 1.0)
    report["models"][0]["step"][0]["guided_over_plain_2n"]["ratio"] = value


def set_first_lanes(report: Any, value: float) -> None:
    report["lanes"][1]["over_plain_rows"]["ratio"] = value


def set_sampling(report: Any, value: float) -> None:
    report["results"][0]["ratio"] = value


def set_rows(report: Any, value: float) -> None:
    report["step"]["rows"][-1]["ratio"] = value


def set_text(report: Any, value: float) -> None:
    for model in report["models"]:
        for row in model["rows"]:
            row["fork_over_upstream"]["ratio"] = max(value, 1.0)
    report["models"][-1]["rows"][0]["fork_over_upstream"]["ratio"] = value


def set_usable_rows(report: Any, value: float) -> None:
    report["soak"]["rows_usable_at_end"] = int(value * report["soak"]["rows"])


def set_blocks(report: Any, value: float) -> None:
    report["soak"]["blocks_free_at_end"] = not value


@pytest.mark.parametrize(
    ("name", "change", "number", "good", "bad", "shown"),
    [
        ("guidance", set_guided_step, 2, 1.0, 1.001, "1.001"),
        ("scaling", set_first_lanes, 1, 1.0, 1.002, "1.002"),
        ("sampling", set_sampling, 0, 5.0, 4.9, "4.9 times"),
        ("multistream", set_rows, 0, 1.25, 1.251, "1.251"),
        ("text_only", set_text, 0, 0.98, 0.979, "0.979"),
        ("speech_soak", set_usable_rows, 2, 1.0, 0.5, "50.0 %"),
        ("speech_soak", set_blocks, 1, 0.0, 1.0, "1"),
    ],
)
def test_a_missed_target_is_shown(
    reports: dict[str, Any],
    name: str,
    change: Callable[[Any, float], None],
    number: int,
    good: float,
    bad: float,
    shown: str,
) -> None:
    report = reports[SECTIONS[name].result]
    change(report, good)
    page = run_all.page(reports)
    assert summary_of(page, name)[number].endswith("| met |")
    change(report, bad)
    page = run_all.page(reports)
    line = summary_of(page, name)[number]
    assert "**missed**" in line and f"| {shown}" in line
    target = SECTIONS[name].targets[number]
    item = next(
        item for item in section_of(page, name).splitlines() if item.startswith(f"- {target.text},")
    )
    assert "**missed**" in item and shown in item


def test_a_missed_cell_is_marked(reports: dict[str, Any]) -> None:
    set_guided_step(reports["guidance.json"], 1.0)
    before = run_all.page(reports).count(", missed**")
    set_guided_step(reports["guidance.json"], 1.125)
    set_first_lanes(reports["scaling.json"], 1.5)
    set_sampling(reports["sampling_cpu.json"], 3.0)
    page = run_all.page(reports)
    assert page.count(", missed**") == before + 3
    assert "**3.0, missed**" in section_of(page, "sampling")
    assert re.search(r"\*\*1\.125 \([^)]*\), missed\*\*", section_of(page, "guidance"))


@given(
    bound=st.floats(0.1, 10),
    at_most=st.booleans(),
    values=st.lists(st.floats(allow_infinity=False), min_size=1, max_size=5),
)
def test_an_outcome_counts_every_miss(bound: float, at_most: bool, values: list[float]) -> None:
    named = {str(index): value for index, value in enumerate(values)}
    target = Target("something", bound, at_most, dict, repr)
    outcome = Outcome(target, named)
    met = [v <= bound if at_most else v >= bound for v in values]
    assert len(outcome.missed) == met.count(False)
    assert (outcome.verdict == "met") is all(met)
    worst = float(outcome.worst.split()[0])
    if any(map(math.isnan, values)):
        assert math.isnan(worst)
    else:
        assert worst == (max if at_most else min)(values)


def test_cuda_has_its_column(reports: dict[str, Any]) -> None:
    reports.pop("sampling_cuda.json", None)
    page = run_all.page(reports)
    rows = [line for line in section_of(page, "sampling").splitlines() if line.startswith("| 32 x")]
    assert rows and all(row.endswith("| not measured | not measured |") for row in rows)
    cuda = copy.deepcopy(reports["sampling_cpu.json"])
    cuda["machine"] = samples.MACHINE | {"accelerator": "An accelerator"}
    for row in cuda["results"]:
        row["operator_ms"], row["ratio"] = 0.0125, 3.25
    text = section_of(run_all.page(reports | {"sampling_cuda.json": cuda}), "sampling")
    rows = [line for line in text.splitlines() if line.startswith("| 32 x")]
    assert rows and all(re.search(r"\| 0\.01[23] \| 3\.2 \|$", row) for row in rows)
    assert "An accelerator" in text and "On CUDA" not in text


def test_throughput_on_cuda_has_a_row_per_runner_and_size(
    reports: dict[str, Any], tmp_path: Path
) -> None:
    """The reports of several commands, collected."""
    sizes = {"v2_4": 4, "v1_16": 16, "v1_eager_16": 16, "v1_4": 4}
    for name, count in sizes.items():
        case = samples.compared({"num_prompts": count, "repeats": 5}) | {"model_id": "/a/model"}
        (tmp_path / f"{name}.json").write_text(json.dumps(case))
    cuda = collect(tmp_path)
    assert cuda["machine"] == samples.MACHINE and cuda["cases"]["v1_4"]["model_id"] == "model"
    text = section_of(run_all.page(reports | {"throughput_cuda.json": cuda}), "throughput")
    rows = [line for line in text.splitlines() if re.match(r"\| V[12],", line)]
    figures = "| 11.00 | 12.50 | 200 | 200 | 31.2 | 0.880 (0.870 to 0.890) |"
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| V1, CUDA graphs", "4"],
        ["| V1, CUDA graphs", "16"],
        ["| V1, eager", "16"],
        ["| V2, CUDA graphs", "4"],
    ]
    assert all(row.endswith(figures) for row in rows), rows
    other = samples.compared({"num_prompts": 1, "repeats": 5}) | {"model_id": "model"}
    other["machine"] = samples.MACHINE | {"accelerator": "Another"}
    (tmp_path / "v1_1.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="of one machine and day"):
        collect(tmp_path)


def test_numbers_reach_their_tables(reports: dict[str, Any]) -> None:
    page = run_all.page(reports)
    # 8 requests of 3 lanes in the sample: 2 + 0.1 * 8 * (1 + 0.9 * 2) + 0.05 * 8, and 1 % more.
    assert "| 3 | 4.69 |" in section_of(page, "scaling")
    throughput = section_of(page, "throughput")
    assert "| guided | 11.00 | 200.00 | 9000.00 | 31.25 | 0.0320 |" in throughput
    assert "| unguided | 12.50 |" in throughput
    assert "**0.880 (0.870 to 0.890)**" in throughput
    assert "| guided | 500.0 | 400.0 | 500.0 | 600.0 | 200.00 | 0.0320 |" in section_of(
        page, "latency"
    )
    beside = section_of(page, "side_by_side")
    assert beside.count("The fork is slower in 1 of 4.") == 3
    assert "**1024 wide, 16 layers, against upstream**: not measured." in beside
    assert "| 4 | yes | 150.0 | 100.0 | 1.500 (1.400 to 1.600) | 2 of 12 |" in beside
    serving = section_of(page, "speech_serving")
    alone = "| 1 clients | off | 1 | none | 250 / 250 | 0.50 / 0.50 | 0 of 1 | 0 / 0 | 0.50 |"
    assert alone in serving
    assert "| 2 clients | off | 2 | 1 | 750 / 750 |" in serving
    assert "| 2/s | 3 | 1 | 1 | none | none |" in serving
    assert "Most clients up to which no request has an underrun or fails: 1 unguided." in serving
    assert "| dac | 16 | 1.010 | 1.500 | 20.0 % | 40 | 5.0 % |" in section_of(
        page, "acoustic_decoding"
    )


def test_a_side_that_was_not_compared_says_so(reports: dict[str, Any]) -> None:
    for name in ("unguided", "guided_over_unguided"):
        del reports["throughput.json"][name]
    text = section_of(run_all.page(reports), "throughput")
    assert "Guided over unguided: not measured." in text
    assert "| unguided |" not in text


def test_json_of_another_form_is_named(reports: dict[str, Any]) -> None:
    del reports["guidance.json"]["models"][0]["step"]
    with pytest.raises(ValueError, match=r"guidance\.json lacks 'step'"):
        run_all.page(reports)


@pytest.mark.parametrize("name", [s.name for s in run_all.SECTIONS if s.plot is not None])
def test_plots_show_their_report(reports: dict[str, Any], name: str, tmp_path: Path) -> None:
    section = SECTIONS[name]
    assert section.plot is not None
    section.plot(reports[section.result], tmp_path / "plot.png")
    drawn = (tmp_path / "plot.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    text = section_of(run_all.page(reports), name)
    assert f"](images/{section.image})" in text


def test_plots_follow_the_numbers(reports: dict[str, Any], tmp_path: Path) -> None:
    plot = SECTIONS["scaling"].plot
    assert plot is not None
    report = reports["scaling.json"]
    drawn = []
    for name in ("first", "same", "other"):
        if name == "other":
            report["streams"][-1]["step_ms"]["median"] *= 2
        plot(report, tmp_path / f"{name}.png")
        drawn.append((tmp_path / f"{name}.png").read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]


def test_render_writes_page_and_plots(reports: dict[str, Any], tmp_path: Path) -> None:
    for folder in (RESULTS, IMAGES):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("guidance.json", "audio_transport.json"):
        (tmp_path / RESULTS / name).write_text(json.dumps(reports[name]))
    run_all.render(tmp_path)
    page = (tmp_path / run_all.PAGE).read_text(encoding="utf-8")
    assert page.count("**Not measured**") == len(run_all.SECTIONS) - 2
    assert [file.name for file in (tmp_path / IMAGES).iterdir()] == ["benchmark_guidance.png"]


def test_commands_take_upstreams_python() -> None:
    section = SECTIONS["side_by_side"]
    assert UPSTREAM_PYTHON in section.arguments
    given = run_all.command(section, "/some/python")
    assert given[:2] == [sys.executable, "benchmarks/benchmark_side_by_side.py"]
    assert given[given.index("--upstream-python") + 1] == "/some/python"
    assert "--upstream-python" not in run_all.command(section, None)
    assert run_all.command(section, None)[-2:] == [
        "--output-json",
        "benchmarks/results/side_by_side.json",
    ]


def test_a_failed_benchmark_does_not_stop_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    def section(name: str, code: str) -> Section:
        return Section(
            name=name, title="", text="", script=("-c", code), result="x.json", body=lambda r, c: ""
        )

    failed = run_all.measure(
        [section("one", "raise SystemExit(3)"), section("two", "print('two runs')")], None
    )
    assert failed == ["one"]
    assert "two runs" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "side_by_side"], "side_by_side: --upstream-python or --without-upstream"),
        (["--only", "nothing"], "invalid choice: 'nothing'"),
        (["--only", "guidance", "--render-only"], "not allowed with"),
    ],
)
def test_the_command_line_is_checked(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["run_all.py", *arguments])
    with pytest.raises(SystemExit):
        run_all.main()
    assert message in capsys.readouterr().err


def test_tables_are_square() -> None:
    assert table(["<a", "b"], [(1, 2)]) == "| a | b |\n|---|---:|\n| 1 | 2 |"
    with pytest.raises(ValueError, match="1 cells instead of 2"):
        table(["a", "b"], [(1,)])
    assert ratio({"ratio": 1, "range": [0.5, 1.25]}) == "1.000 (0.500 to 1.250)"
