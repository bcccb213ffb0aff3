# SPDX-License-Identifier: Apache-2.0
"""A report of benchmarks/evaluate_default_model.py with made-up numbers."""

from __future__ import annotations

from typing import Any


def scores(errors: float, **others: float | None) -> dict[str, Any]:
    """Scores of a set of clips."""
    return {
        "word_error_rate": errors,
        "word_error_rate_by_voice": {"heart": errors, "joe": errors},
        "distillmos": 4.2,
        "dnsmos": 3.2,
        "speaker_similarity": 0.9,
        **others,
    }


def row(scale: float, errors: float, **others: Any) -> dict[str, Any]:
    """Speech at a guidance scale."""
    ends = {"duration_ratio": 1.0, "early": 0.0, "late": 0.0, "endless": 0.0, "wrong": 0.0}
    return {"guidance_scale": scale, **scores(errors), **ends, **others}


def report() -> dict[str, Any]:
    """All targets are met."""
    return {
        "machine": {
            "processor": "a processor",
            "cores": 2,
            "accelerator": "none",
            "python": "3.11.7",
            "date": "2026-11-28",
            "torch": "2.13.0",
            "vllm": "0.32.0",
            "transformers": "5.19.0",
        },
        "model": {"name": "unison-default", "sha256": "0" * 64, "step": 1000},
        "utterances": 300,
        "sampling": {"temperature": 0.0, "top_k": 20},
        "originals": scores(0.06),
        "codec": scores(0.07),
        "flite": scores(0.08, speaker_similarity=None, distillmos=2.7),
        "speech": [row(1.0, 0.15), row(1.5, 0.1), row(3.0, 0.3)],
        "recognition": {"known_voices": 0.1, "strangers": {"michael": 0.3}},
        "round_trip": {"guidance_scale": 1.5, "word_error_rate": 0.12, "exact": 0.5},
        "heard": [],
        "samples": [
            {
                "name": "train",
                "voice": "heart",
                "text": "The road to the village was closed by the snow.",
                "whisper": "The road to the village was closed by the snow.",
                "model": "the road to the village was closed by the snow",
            }
        ],
    }
