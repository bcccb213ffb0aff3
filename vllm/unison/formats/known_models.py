# SPDX-License-Identifier: Apache-2.0
"""Models that make or code audio and that are not supported yet, told by their config.json.

Without this a folder of such a model fails somewhere else, with an error that does not help.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

NOT_YET: Mapping[str, str] = {
    "bark": "Bark",
    "csm": "CSM",
    "dia": "Dia",
    "fastspeech2_conformer": "FastSpeech2Conformer",
    "kyutai_speech_to_text": "Kyutai STT",
    "moshi": "Moshi",
    "moss_tts_delay": "MOSS-TTS",
    "parler_tts": "Parler-TTS",
    "qwen3_tts": "Qwen3-TTS",
    "seamless_m4t": "SeamlessM4T",
    "seamless_m4t_v2": "SeamlessM4T v2",
    "speecht5": "SpeechT5",
    "vits": "VITS",
}
"""Names by `model_type`. An architecture that upstream or a plugin registers is not refused."""

NOT_YET_BY_KEYS: Mapping[str, frozenset[str]] = {
    "Zonos": frozenset({"backbone", "prefix_conditioner"}),
    "Moshi, in Kyutai's own format": frozenset({"dep_q", "n_q"}),
    "Dia, in its own format": frozenset({"model", "data", "training"}),
}
"""Models whose config.json has no `model_type`, by keys that it has."""

CODECS = frozenset(
    {"dac", "encodec", "espnet_dac", "higgs_audio_v2_tokenizer", "mimi", "spectral_codec", "xcodec"}
)
"""`model_type` of codecs, which belong to a model and are none."""


def refuse_unsupported_audio_model(config: Mapping[str, Any]) -> None:
    """Refuse a model that is known and cannot be served.

    Args:
        config: what its config.json holds.

    Raises:
        ValueError: naming the model.
    """
    model_type = config.get("model_type")
    if model_type in CODECS:
        raise ValueError(
            f"model_type {model_type!r} is a codec, not a model; a model names it in config.json, "
            "as codec.name_or_path"
        )
    name = NOT_YET.get(model_type or "")
    if name is None and model_type is None:
        name = next((n for n, keys in NOT_YET_BY_KEYS.items() if keys <= config.keys()), None)
    if name is None or _is_registered(config.get("architectures") or ()):
        return
    raise ValueError(f"{name} models are not supported yet; docs/models.md says which are")


def _is_registered(architectures: Iterable[str]) -> bool:
    # Imported here: the registry reads configurations.
    from vllm.model_executor.models.registry import ModelRegistry

    return not ModelRegistry.get_supported_archs().isdisjoint(architectures)
