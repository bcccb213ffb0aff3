# SPDX-License-Identifier: Apache-2.0
"""Audio in Prometheus' words."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram

from vllm.unison.metrics.audio import AudioProm
from vllm.unison.metrics.audio_timing import AudioStats


def test_histograms_and_counters_are_of_their_engine() -> None:
    registry = CollectorRegistry()
    logger: Any = SimpleNamespace(
        _histogram_cls=partial(Histogram, registry=registry),
        _counter_cls=partial(Counter, registry=registry),
    )
    prom = AudioProm(logger, ["model_name", "engine"], {0: ["m", "0"], 1: ["m", "1"]})
    prom.observe(AudioStats(1.5, [0.02], [0.3, 0.04], [0.25], 2), 1)
    prom.observe(AudioStats(0.5, [], [0.06], [], 0), 1)

    def value(name: str, engine: str = "1", **labels: str) -> float | None:
        labels |= {"model_name": "m", "engine": engine}
        return registry.get_sample_value(name, labels)

    assert value("vllm:audio_seconds_total") == 2.0
    assert value("vllm:audio_underruns_total") == 2
    assert value("vllm:time_to_first_audio_seconds_count") == 1
    assert value("vllm:time_to_first_audio_seconds_sum") == 0.02
    assert value("vllm:audio_inter_chunk_seconds_count") == 3
    assert value("vllm:audio_inter_chunk_seconds_sum") == pytest.approx(0.4)
    assert value("vllm:audio_inter_chunk_seconds_bucket", le="0.05") == 1
    assert value("vllm:audio_inter_chunk_seconds_bucket", le="0.1") == 2
    assert value("vllm:audio_real_time_factor_sum") == 0.25
    assert value("vllm:audio_seconds_total", "0") == 0
    assert value("vllm:audio_inter_chunk_seconds_count", "0") == 0
