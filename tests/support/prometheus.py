# SPDX-License-Identifier: Apache-2.0
"""A registry of metrics of a test's own, and what it says of an engine."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

Prom = TypeVar("Prom")


class Metrics:
    """The metrics of two engines, 0 and 1, of a model "m"."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

    def make(self, cls: type[Prom]) -> Prom:
        """Metrics of a class that takes upstream's logger."""
        logger = SimpleNamespace(
            _counter_cls=partial(Counter, registry=self._registry),
            _gauge_cls=partial(Gauge, registry=self._registry),
            _histogram_cls=partial(Histogram, registry=self._registry),
        )
        make: Any = cls
        prom: Prom = make(logger, ["model_name", "engine"], {0: ["m", "0"], 1: ["m", "1"]})
        return prom

    def value(self, name: str, engine: str = "1", **labels: str) -> float | None:
        """A sample of an engine."""
        labels |= {"model_name": "m", "engine": engine}
        return self._registry.get_sample_value(name, labels)
