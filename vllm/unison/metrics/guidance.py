# SPDX-License-Identifier: Apache-2.0
"""Guidance in the engine's metrics, in upstream's Prometheus style."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm.unison.messages.guidance import GuidanceStats
from vllm.v1.metrics.utils import create_metric_per_engine

if TYPE_CHECKING:
    from vllm.v1.metrics.loggers import PrometheusStatLogger

_GAUGES = {
    "running_groups": ("vllm:guided_groups_running", "Guided requests in execution batches."),
    "lanes": ("vllm:guidance_lanes", "Guidance lanes of running guided requests."),
    "guidance_rows": ("vllm:guidance_rows", "Guidance lanes in the newest step's batch."),
}
_COUNTERS = {
    "cached_tokens": (
        "vllm:guidance_cached_tokens",
        "Tokens that prefix-cache hits gave to guidance lanes.",
    ),
    "preempted_groups": ("vllm:guided_group_preemptions", "Preemptions of guided requests."),
}


def make_counters(
    logger: PrometheusStatLogger,
    named: Mapping[str, tuple[str, str]],
    labelnames: list[str],
    per_engine_labelvalues: dict[int, list[object]],
) -> dict[str, dict[int, Any]]:
    """Counters per engine index, by the field that they count.

    Args:
        logger: the logger whose metric class is used.
        named: by field, the metric's name and what it says.
        labelnames: labels of every metric.
        per_engine_labelvalues: their values per engine index.
    """
    return {
        name: create_metric_per_engine(
            logger._counter_cls(name=metric, documentation=words, labelnames=labelnames),
            per_engine_labelvalues,
        )
        for name, (metric, words) in named.items()
    }


class GuidanceProm:
    """Gauges and counters of guidance.

    Args:
        logger: the logger whose metric classes are used.
        labelnames: labels of every metric.
        per_engine_labelvalues: their values per engine index.
    """

    def __init__(
        self,
        logger: PrometheusStatLogger,
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        self._gauges: dict[str, dict[int, Any]] = {}
        for name, (metric, words) in _GAUGES.items():
            gauge = logger._gauge_cls(
                name=metric,
                documentation=words,
                multiprocess_mode="mostrecent",
                labelnames=labelnames,
            )
            self._gauges[name] = create_metric_per_engine(gauge, per_engine_labelvalues)
        self._counters = make_counters(logger, _COUNTERS, labelnames, per_engine_labelvalues)

    def observe(self, stats: GuidanceStats, engine_idx: int = 0) -> None:
        """Take in what one step did."""
        for name, gauges in self._gauges.items():
            gauges[engine_idx].set(getattr(stats, name))
        for name, counters in self._counters.items():
            counters[engine_idx].inc(getattr(stats, name))
