# SPDX-License-Identifier: Apache-2.0
"""Guidance in Prometheus' words."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from vllm.unison.messages.guidance import GuidanceStats
from vllm.unison.metrics.guidance import GuidanceProm


def test_gauges_hold_the_newest_step_and_counters_add_up() -> None:
    registry = CollectorRegistry()
    logger: Any = SimpleNamespace(
        _gauge_cls=partial(Gauge, registry=registry),
        _counter_cls=partial(Counter, registry=registry),
    )
    prom = GuidanceProm(logger, ["model_name", "engine"], {0: ["m", "0"], 1: ["m", "1"]})
    prom.observe(GuidanceStats(2, 3, 3, 64, 1), 1)
    prom.observe(GuidanceStats(1, 2, 0, 32, 1), 1)

    def value(name: str, engine: str = "1") -> float | None:
        return registry.get_sample_value(name, {"model_name": "m", "engine": engine})

    assert value("vllm:guided_groups_running") == 1
    assert value("vllm:guidance_lanes") == 2
    assert value("vllm:guidance_rows") == 0
    assert value("vllm:guidance_cached_tokens_total") == 96
    assert value("vllm:guided_group_preemptions_total") == 2
    assert value("vllm:guidance_lanes", "0") == 0
    prom.observe(GuidanceStats(lanes=5))
    assert value("vllm:guidance_lanes", "0") == 5 and value("vllm:guidance_lanes") == 2
