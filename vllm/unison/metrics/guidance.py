# SPDX-License-Identifier: Apache-2.0
"""Guidance in the engine's metrics, in upstream's Prometheus style."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.unison.messages.guidance import GuidanceStats
from vllm.unison.metrics.prometheus import MetricFactory

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
        factory = MetricFactory(logger, labelnames, per_engine_labelvalues)
        self._gauges = factory.gauges(_GAUGES)
        self._counters = factory.counters(_COUNTERS)

    def observe(self, stats: GuidanceStats, engine_idx: int = 0) -> None:
        """Add what one step did."""
        for name, gauges in self._gauges.items():
            gauges[engine_idx].set(getattr(stats, name))
        for name, counters in self._counters.items():
            counters[engine_idx].inc(getattr(stats, name))
