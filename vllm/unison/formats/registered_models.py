# SPDX-License-Identifier: Apache-2.0
"""The models that this fork adds to upstream's registries: one table, read by all that needs it.

Upstream's own tables, of architectures and of configurations, take theirs from here.
"""

from __future__ import annotations

from collections.abc import Mapping

ARCHITECTURES: Mapping[str, tuple[str, str]] = {
    "MusicgenForConditionalGeneration": ("musicgen", "MusicgenForConditionalGeneration"),
    "MusicgenMelodyForConditionalGeneration": (
        "musicgen_melody",
        "MusicgenMelodyForConditionalGeneration",
    ),
    "SpeechLMForConditionalGeneration": ("speech_lm", "SpeechLMForConditionalGeneration"),
}
"""By name in config.json: module in vllm.model_executor.models, and class."""

CONFIG_CLASSES: Mapping[str, str] = {
    "musicgen": "MusicGenConfig",
    "musicgen_melody": "MusicGenMelodyConfig",
    "speech_lm": "SpeechLMConfig",
}
"""Classes of configurations by `model_type`; each has a method `speech_spec`."""

CONFIG_MODULES: Mapping[str, str] = {
    "MusicGenConfig": "vllm.transformers_utils.configs.musicgen",
    "MusicGenMelodyConfig": "vllm.transformers_utils.configs.musicgen",
    "SpeechLMConfig": "vllm.transformers_utils.configs.speech_lm",
}
"""Where these classes are."""

MODEL_TYPES = tuple(CONFIG_CLASSES)
"""`model_type` of multi-stream models."""
