# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of every engine, made with the classes of upstream's logger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm.v1.metrics.utils import create_metric_per_engine

if TYPE_CHECKING:
    from vllm.v1.metrics.loggers import PrometheusStatLogger

MetricsByField = dict[str, dict[int, Any]]
"""By the field of the statistics that a metric shows, and by the engine's index."""


class MetricFactory:
    """Makes metrics that have one value per engine.

    Every method takes, by field of the statistics, the metric's name and description, and gives
    the metrics by field.

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
        self._logger = logger
        self._labelnames = labelnames
        self._labelvalues = per_engine_labelvalues

    def counters(self, described: Mapping[str, tuple[str, str]]) -> MetricsByField:
        """Counters."""
        return {
            field: self._make(self._logger._counter_cls, *named)
            for field, named in described.items()
        }

    def gauges(self, described: Mapping[str, tuple[str, str]]) -> MetricsByField:
        """Gauges; of several processes the newest value counts."""
        return {
            field: self._make(self._logger._gauge_cls, *named, multiprocess_mode="mostrecent")
            for field, named in described.items()
        }

    def histograms(self, described: Mapping[str, tuple[str, str, list[float]]]) -> MetricsByField:
        """Histograms; the third item is their buckets' upper bounds."""
        return {
            field: self._make(self._logger._histogram_cls, name, description, buckets=buckets)
            for field, (name, description, buckets) in described.items()
        }

    def _make(self, cls: Any, name: str, description: str, **options: Any) -> dict[int, Any]:
        metric = cls(name=name, documentation=description, labelnames=self._labelnames, **options)
        per_engine: dict[int, Any] = create_metric_per_engine(metric, self._labelvalues)
        return per_engine
