# SPDX-License-Identifier: Apache-2.0
"""Two variants of a benchmark, measured in interleaved rounds, as a ratio with its spread."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def compare(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, Any]:
    """Median and range of the rounds' ratios."""
    return median_and_range([n / d for n, d in zip(numerator, denominator, strict=True)])


def median_and_range(ratios: Sequence[float]) -> dict[str, Any]:
    """Of at least one ratio, as a report has them."""
    return {
        "ratio": round(statistics.median(ratios), 3),
        "range": [round(min(ratios), 3), round(max(ratios), 3)],
    }
