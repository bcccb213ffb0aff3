# SPDX-License-Identifier: Apache-2.0
"""What `benchmark_numerics.py` measured, for the page of benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.report import Report, Target, percent, table

PROCESSORS = {
    "this": "this one",
    "avx512": "AVX-512 without bfloat16",
    "avx2": "AVX2",
}


def _name(row: Mapping[str, Any]) -> str:
    batch = "" if row["max_num_seqs"] > 2 else ", one sentence at a time"
    return f"{row['dtype']}, {PROCESSORS[row['processor']]}{batch}"


def _same_in_float32(report: Report) -> Mapping[str, float]:
    return {
        _name(row): row["same_codes"] / row["sentences"]
        for row in report["variants"]
        if row["dtype"] == "float32"
    }


TARGETS = (
    Target(
        "sentences with the same codes on every processor in float32",
        1.0,
        False,
        _same_in_float32,
        percent,
    ),
)


def body(report: Report, cuda: Report | None) -> str:
    """Table of variants, and margins."""
    rows = []
    for row in report["variants"]:
        first = row["first_difference"]
        rows.append(
            [
                _name(row),
                row["same_codes"],
                row["same_semantic_codes"],
                "" if first is None else f"{first:g}",
                row["same_transcripts"],
                f"{row['cpu_seconds']:.1f}",
            ]
        )
    heads = ["<", "same codes", "same semantic codes", "first other frame"]
    heads += ["same transcripts", "CPU seconds of speaking"]
    margins = report["margins"]
    kinds = {"margin": "margin in float32", "change": "change of it by bfloat16"}
    points = list(margins["margin"])
    quantiles = [
        [text, *(f"{margins[kind][point]:.3f}" for point in points)] for kind, text in kinds.items()
    ]
    return "\n\n".join(
        [
            f"{report['variants'][0]['sentences']} sentences, compared with the first row: those "
            "whose codes are the same in all streams and in the semantic one, the median frame in "
            "which the others part, and clips that are transcribed alike.",
            table(heads, rows),
            "How far the best logit is above the second, in "
            f"{margins['choices']:,} choices of codes, and how much bfloat16 changes that; by "
            "quantiles. With all earlier codes alike, bfloat16 chooses otherwise in "
            f"{percent(margins['otherwise'])} of them.",
            table(["<", *points], quantiles),
        ]
    )
