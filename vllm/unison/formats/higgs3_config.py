# SPDX-License-Identifier: Apache-2.0
"""The config.json of a published Higgs TTS 3 model, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import Qwen3Config

ROPE_THETA = 1_000_000.0
"""What a base of the rotary embedding that is null or missing stands for."""

NUM_SPECIAL_CODES = 2
"""Ids of a codebook's vocabulary after its codes: the one before a stream's first code, and the one
after its last."""

MAX_CODEBOOKS = 8

CODEC_CONFIG: Mapping[str, Any] = {
    "model_type": "higgs_audio_v2_tokenizer",
    "sample_rate": 24000,
    "target_bandwidths": [0.5, 1, 1.5, 2],
    "acoustic_model_config": {
        "model_type": "dac",
        "encoder_hidden_size": 64,
        "decoder_hidden_size": 1024,
        "hidden_size": 256,
        "downsampling_ratios": [8, 5, 4, 2, 3],
        "upsampling_ratios": [8, 5, 4, 2, 3],
        "hop_length": 960,
    },
    "semantic_model_config": {"model_type": "hubert", "mask_time_prob": 0.0},
}
"""The configuration of the published codec, where it differs from the defaults of transformers'
class. A checkpoint holds the codec's tensors without it."""

_AUDIO_KEYS = (
    "encoder_type", "num_codebooks", "vocab_size", "out_dim", "tie_word_embeddings",
    "use_delay_pattern",
)  # fmt: skip


def text_config(data: Mapping[str, Any]) -> Qwen3Config:
    """The decoder's configuration, its rotary base completed.

    Args:
        data: `text_config` of config.json.

    Raises:
        ValueError: naming the field and what is accepted.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"text_config must be an object, not {data!r}")
    if data.get("model_type", "qwen3") != "qwen3":
        raise ValueError(f"text_config.model_type must be 'qwen3', not {data['model_type']!r}")
    values = {key: value for key, value in data.items() if key != "model_type"}
    rope = dict(values.get("rope_parameters") or {})
    theta = values.pop("rope_theta", None)
    if rope.get("rope_theta") is None:
        rope["rope_theta"] = ROPE_THETA if theta is None else theta
    rope.setdefault("rope_type", "default")
    if rope["rope_type"] != "default":
        raise ValueError(
            f"text_config.rope_parameters.rope_type must be 'default', not {rope['rope_type']!r}"
        )
    values["rope_parameters"] = rope
    try:
        return Qwen3Config(**values)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(f"text_config: {' '.join(str(error).split())}") from error


def check_audio_config(data: Any, hidden_size: int) -> None:
    """Refuse an `audio_encoder_config` of config.json that the model cannot have.

    Args:
        data: it.
        hidden_size: of the decoder.

    Raises:
        ValueError: naming the field and what is accepted.
    """
    where = "audio_encoder_config"
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} must be an object, not {data!r}")
    if unknown := sorted(set(data) - set(_AUDIO_KEYS)):
        raise ValueError(f"{where} has unknown keys {unknown}; known are {sorted(_AUDIO_KEYS)}")
    # The model that recognizes speech has the same model_type, and an encoder of spectra.
    accepted: dict[str, Any] = {
        "encoder_type": "discrete",
        "tie_word_embeddings": True,
        "use_delay_pattern": True,
        "out_dim": hidden_size,
    }
    for name, value in accepted.items():
        if data.get(name, value) != value:
            raise ValueError(f"{where}.{name} must be {value!r}, not {data[name]!r}")
    for name, lowest, highest in (
        ("num_codebooks", 1, MAX_CODEBOOKS),
        ("vocab_size", NUM_SPECIAL_CODES + 1, 2**16),
    ):
        found: Any = data.get(name)
        is_integer = isinstance(found, int) and not isinstance(found, bool)
        if not (is_integer and lowest <= int(found or 0) <= highest):
            raise ValueError(
                f"{where}.{name} must be an integer in [{lowest}, {highest}], not {found!r}"
            )


def backbone_config(text: Qwen3Config, num_codes: int) -> Qwen3Config:
    """The decoder with a row of its embedding for each id of each codebook, after those of text.

    The offset table is the codes' head too. That of the text is not used: the model only speaks.

    Args:
        text: see `text_config`.
        num_codes: rows of the offset table.
    """
    values = text.to_dict()
    values.pop("model_type", None)
    return Qwen3Config(
        **values
        | {
            "vocab_size": text.vocab_size + num_codes,
            "tie_word_embeddings": True,
            "architectures": ["Qwen3ForCausalLM"],
        }
    )
