# SPDX-License-Identifier: Apache-2.0
"""Guidance in the engine's metrics, in upstream's Prometheus style."""

from __future__ import annotations

from typing import ClassVar

from vllm.unison.metrics.prometheus import Described, StatsMetrics


class GuidanceProm(StatsMetrics):
    """Gauges and counters of guidance, of `GuidanceStats`: what one step did."""

    GAUGES: ClassVar[Described] = {
        "running_groups": ("vllm:guided_groups_running", "Guided requests in execution batches."),
        "lanes": ("vllm:guidance_lanes", "Guidance lanes of running guided requests."),
        "guidance_rows": ("vllm:guidance_rows", "Guidance lanes in the newest step's batch."),
    }
    COUNTERS: ClassVar[Described] = {
        "cached_tokens": (
            "vllm:guidance_cached_tokens",
            "Tokens that prefix-cache hits gave to guidance lanes.",
        ),
        "preempted_groups": ("vllm:guided_group_preemptions", "Preemptions of guided requests."),
    }
