# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of every engine, made with the classes of upstream's logger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from vllm.v1.metrics.utils import create_metric_per_engine

if TYPE_CHECKING:
    from vllm.v1.metrics.loggers import PrometheusStatLogger

Described = Mapping[str, tuple[Any, ...]]
"""By field of the statistics: the metric's name and description, of histograms the buckets too."""


class StatsMetrics:
    """Shows statistics as metrics that have one value per engine.

    Subclasses say in three tables which field of the statistics is what kind of metric.

    Args:
        logger: the logger whose metric classes are used.
        labelnames: labels of every metric.
        per_engine_labelvalues: their values per engine index.
    """

    COUNTERS: ClassVar[Described] = {}
    """Fields that add up."""
    GAUGES: ClassVar[Described] = {}
    """Fields of which the newest value counts."""
    HISTOGRAMS: ClassVar[Described] = {}
    """Fields that are lists of values."""

    def __init__(
        self,
        logger: PrometheusStatLogger,
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        def make(cls: Any, name: str, description: str, **options: Any) -> dict[int, Any]:
            metric = cls(name=name, documentation=description, labelnames=labelnames, **options)
            per_engine: dict[int, Any] = create_metric_per_engine(metric, per_engine_labelvalues)
            return per_engine

        self._counters = {
            field: make(logger._counter_cls, *named) for field, named in self.COUNTERS.items()
        }
        self._gauges = {
            field: make(logger._gauge_cls, *named, multiprocess_mode="mostrecent")
            for field, named in self.GAUGES.items()
        }
        self._histograms = {
            field: make(logger._histogram_cls, name, description, buckets=buckets)
            for field, (name, description, buckets) in self.HISTOGRAMS.items()
        }

    def observe(self, stats: Any, engine_idx: int = 0) -> None:
        """Add statistics of an engine; they have the fields of the tables."""
        for field, counters in self._counters.items():
            counters[engine_idx].inc(getattr(stats, field))
        for field, gauges in self._gauges.items():
            gauges[engine_idx].set(getattr(stats, field))
        for field, histograms in self._histograms.items():
            for value in getattr(stats, field):
                histograms[engine_idx].observe(value)
