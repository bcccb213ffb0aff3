# SPDX-License-Identifier: Apache-2.0
"""Audio in Prometheus' words."""

from __future__ import annotations

import pytest

from tests.support.prometheus import Metrics
from vllm.unison.metrics.audio import AudioProm
from vllm.unison.metrics.audio_timing import AudioStats


def test_histograms_and_counters_are_of_their_engine() -> None:
    metrics = Metrics()
    prom, value = metrics.make(AudioProm), metrics.value
    prom.observe(AudioStats(1.5, [0.02], [0.3, 0.04], [0.25], 2), 1)
    prom.observe(AudioStats(0.5, [], [0.06], [], 0), 1)

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


def test_metrics_in_prometheus_words() -> None:
    metrics = Metrics()
    prom, value = metrics.make(AudioProm), metrics.value
    prom.observe(AudioStats(3.0, [0.3, 0.2], [0.1], [0.5], 2), 1)
    prom.observe(AudioStats(1.5), 1)

    assert value("vllm:time_to_first_audio_seconds_count") == 2
    assert value("vllm:time_to_first_audio_seconds_sum") == pytest.approx(0.5)
    assert value("vllm:audio_inter_chunk_seconds_count") == 1
    assert value("vllm:audio_real_time_factor_sum") == 0.5
    assert value("vllm:audio_seconds_total") == 4.5
    assert value("vllm:audio_underruns_total") == 2
    assert value("vllm:audio_seconds_total", "0") == 0
