# SPDX-License-Identifier: Apache-2.0
"""The models that this fork adds to upstream's registries: one table, read by all that needs it.

Upstream's own tables, of architectures and of configurations, take theirs from here.
"""

from __future__ import annotations

from collections.abc import Mapping

ARCHITECTURES: Mapping[str, tuple[str, str]] = {
    "HiggsAudioModel": ("higgs_audio_v2", "HiggsAudioV2ForConditionalGeneration"),
    "HiggsAudioV2ForConditionalGeneration": (
        "higgs_audio_v2",
        "HiggsAudioV2ForConditionalGeneration",
    ),
    "HiggsMultimodalQwen3ForConditionalGeneration": ("higgs3", "Higgs3ForConditionalGeneration"),
    "BagpiperForConditionalGeneration": ("bagpiper", "BagpiperForConditionalGeneration"),
    "MusicgenForConditionalGeneration": ("musicgen", "MusicgenForConditionalGeneration"),
    "MusicgenMelodyForConditionalGeneration": (
        "musicgen_melody",
        "MusicgenMelodyForConditionalGeneration",
    ),
    "OpusLMForConditionalGeneration": ("opuslm", "OpusLMForConditionalGeneration"),
    "SpeechLMForConditionalGeneration": ("speech_lm", "SpeechLMForConditionalGeneration"),
}
"""By name in config.json: module in vllm.model_executor.models, and class."""

CONFIG_CLASSES: Mapping[str, str] = {
    "higgs_audio": "HiggsAudioV2Config",
    "higgs_audio_v2": "HiggsAudioV2Config",
    "higgs_multimodal_qwen3": "Higgs3Config",
    "bagpiper": "BagpiperConfig",
    "musicgen": "MusicGenConfig",
    "musicgen_melody": "MusicGenMelodyConfig",
    "opuslm": "OpusLMConfig",
    "speech_lm": "SpeechLMConfig",
}
"""Classes of configurations by `model_type`; each has a method `speech_spec`."""

CONFIG_MODULES: Mapping[str, str] = {
    "HiggsAudioV2Config": "vllm.transformers_utils.configs.higgs_audio_v2",
    "Higgs3Config": "vllm.transformers_utils.configs.higgs3",
    "BagpiperConfig": "vllm.transformers_utils.configs.bagpiper",
    "MusicGenConfig": "vllm.transformers_utils.configs.musicgen",
    "MusicGenMelodyConfig": "vllm.transformers_utils.configs.musicgen",
    "OpusLMConfig": "vllm.transformers_utils.configs.opuslm",
    "SpeechLMConfig": "vllm.transformers_utils.configs.speech_lm",
}
"""Where these classes are."""

MODEL_TYPES = tuple(CONFIG_CLASSES)
"""`model_type` of multi-stream models."""
