# SPDX-License-Identifier: Apache-2.0
"""Audio in the engine's metrics, in upstream's Prometheus style."""

from __future__ import annotations

from typing import ClassVar

from vllm.unison.metrics.prometheus import Described, StatsMetrics

_SECONDS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0]
_FACTORS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0, 1.2, 1.5, 2.0, 5.0, 10.0]


class AudioProm(StatsMetrics):
    """Histograms and counters of audio, of `AudioStats`: what one batch of outputs said."""

    HISTOGRAMS: ClassVar[Described] = {
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
            "Seconds from a request's arrival to its last audio, divided by the audio's own "
            "seconds.",
            _FACTORS,
        ),
    }
    COUNTERS: ClassVar[Described] = {
        "seconds": ("vllm:audio_seconds", "Seconds of audio generated."),
        "underruns": (
            "vllm:audio_underruns",
            "Pieces of audio that came later than playback from the first one on needed them.",
        ),
    }
