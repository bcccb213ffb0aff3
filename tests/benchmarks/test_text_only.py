# SPDX-License-Identifier: Apache-2.0
"""The parts of benchmark_text_only.py that need no engine, and its rows on the page."""

from __future__ import annotations

from benchmarks import report_tables
from benchmarks.benchmark_text_only import (
    PAIRS,
    ROUNDS,
    over_both_orders,
    parse_arguments,
    summarize,
)
from tests.benchmarks import samples


def test_a_row_is_the_median_of_the_pairs() -> None:
    # Within a pair both sides are as fast or slow as the pair is; of each the median round counts.
    pairs = [
        {4: {"fork": [9.0 * pair, 9.9 * pair, 90.0], "upstream": [10.0 * pair] * 2 + [10.0]}}
        for pair in (1, 2, 5)
    ]
    (row,) = summarize(pairs)
    assert row["requests"] == 4
    assert row["fork_tokens_per_second"] == 19.8 and row["upstream_tokens_per_second"] == 20.0
    assert row["pairs"] == [0.99, 0.99, 0.99]
    assert row["fork_over_upstream"] == {"ratio": 0.99, "range": [0.99, 0.99]}


def test_neither_side_is_first_more_often_than_the_other() -> None:
    # The side that starts first is a tenth slower.
    assert over_both_orders([0.9, 1 / 0.9, 0.9]) == {"ratio": 1.0, "range": [1.0, 1.0]}
    assert over_both_orders([0.9 * 0.98, 0.98 / 0.9, 0.9 * 0.98])["ratio"] == 0.98
    assert over_both_orders([0.9, 1 / 0.9, 0.6])["range"] == [0.816, 1.0]
    assert over_both_orders([0.97]) == {"ratio": 0.97, "range": [0.97, 0.97]}


def test_the_command_line() -> None:
    options = parse_arguments([])
    assert (options.pairs, options.rounds) == (PAIRS, ROUNDS)
    quick = parse_arguments(["--quick", "--pairs", "2"])
    assert quick.pairs == 2 and quick.rounds < ROUNDS and quick.sizes == [(64, 2)]


def test_the_page_has_every_row() -> None:
    report = samples.text_only()
    text = report_tables.text_only(report, None)
    assert "0.970 (0.950 to 0.990)" in text and "1.010" in text
    assert report_tables.text_only_ratios(report) == {
        "256 wide, 1": 0.99,
        "256 wide, 32": 1.01,
        "1024 wide, 1": 0.97,
        "1024 wide, 32": 1.0,
    }
