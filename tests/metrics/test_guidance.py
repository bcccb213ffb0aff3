# SPDX-License-Identifier: Apache-2.0
"""Guidance in Prometheus' words."""

from __future__ import annotations

from tests.support.prometheus import Metrics
from vllm.unison.messages.guidance import GuidanceStats
from vllm.unison.metrics.guidance import GuidanceProm


def test_gauges_hold_the_newest_step_and_counters_add_up() -> None:
    metrics = Metrics()
    prom, value = metrics.make(GuidanceProm), metrics.value
    prom.observe(GuidanceStats(2, 3, 3, 64, 1), 1)
    prom.observe(GuidanceStats(1, 2, 0, 32, 1), 1)

    assert value("vllm:guided_groups_running") == 1
    assert value("vllm:guidance_lanes") == 2
    assert value("vllm:guidance_rows") == 0
    assert value("vllm:guidance_cached_tokens_total") == 96
    assert value("vllm:guided_group_preemptions_total") == 2
    assert value("vllm:guidance_lanes", "0") == 0
    prom.observe(GuidanceStats(lanes=5))
    assert value("vllm:guidance_lanes", "0") == 5 and value("vllm:guidance_lanes") == 2
