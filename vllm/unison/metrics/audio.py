# SPDX-License-Identifier: Apache-2.0
"""Audio in the engine's metrics, in upstream's Prometheus style."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.unison.metrics.audio_timing import AudioStats
from vllm.unison.metrics.prometheus import MetricFactory

if TYPE_CHECKING:
    from vllm.v1.metrics.loggers import PrometheusStatLogger

_SECONDS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0]
_FACTORS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0, 1.2, 1.5, 2.0, 5.0, 10.0]
_HISTOGRAMS = {
    "to_first": (
        "vllm:time_to_first_audio_seconds",
        "Seconds from a request's arrival to its first audio.",
        _SECONDS,
    ),
    "gaps": (
        "vllm:audio_inter_chunk_seconds",
        "Seconds between two pieces of a request's audio.",
        _SECONDS,
    ),
    "real_time_factors": (
        "vllm:audio_real_time_factor",
        "Seconds from a request's arrival to its last audio, divided by the audio's own seconds.",
        _FACTORS,
    ),
}
_COUNTERS = {
    "seconds": ("vllm:audio_seconds", "Seconds of audio generated."),
    "underruns": (
        "vllm:audio_underruns",
        "Pieces of audio that came later than playback from the first one on needed them.",
    ),
}


class AudioProm:
    """Histograms and counters of audio.

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
        self._histograms = factory.histograms(_HISTOGRAMS)
        self._counters = factory.counters(_COUNTERS)

    def observe(self, stats: AudioStats, engine_idx: int = 0) -> None:
        """Add what one batch of outputs said."""
        for name, histograms in self._histograms.items():
            for value in getattr(stats, name):
                histograms[engine_idx].observe(value)
        for name, counters in self._counters.items():
            if value := getattr(stats, name):
                counters[engine_idx].inc(value)
