# SPDX-License-Identifier: Apache-2.0
"""The config.json of a published Higgs Audio v2 model, checked.

There are two: that of transformers (`model_type: higgs_audio_v2`), and the one that its authors
published first (`higgs_audio`), which says the same under other names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from transformers import HiggsAudioV2Config

MODEL_TYPES = ("higgs_audio_v2", "higgs_audio")

_OF_AUTHORS = {
    "audio_num_codebooks": "num_codebooks",
    "audio_stream_bos_id": "audio_stream_bos_id",
    "audio_stream_eos_id": "audio_stream_eos_id",
    "pad_token_id": "pad_token_id",
    "dtype": "dtype",
    "torch_dtype": "torch_dtype",
}
"""The authors' names of what transformers' configuration has."""

_LLAMA = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps",
    "rope_theta", "rope_scaling", "rope_parameters", "attention_bias", "mlp_bias",
)  # fmt: skip
"""What the authors' `text_config`, a Llama's, has of it."""

_FIXED_BY_AUTHORS = {
    "audio_adapter_type": ("dual_ffn", "dual_ffn_fast_forward"),
    "use_audio_out_self_attention": (None, False),
    "use_delay_pattern": (True,),
}
"""Fields of the authors' that say which model it is, and what they may be."""

_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "vocab_size", "num_codebooks", "max_position_embeddings",
)  # fmt: skip


def checked_config(config: Mapping[str, Any]) -> HiggsAudioV2Config:
    """The configuration in transformers' own class, which completes what the file leaves out.

    Args:
        config: what config.json holds.

    Raises:
        ValueError: naming the field and what is accepted.
    """
    from huggingface_hub.errors import StrictDataclassError

    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(f"model_type must be one of {list(MODEL_TYPES)}, not {model_type!r}")
    # A copy: the class takes the dictionaries apart.
    values = json.loads(json.dumps(config))
    if model_type == "higgs_audio":
        values = _in_transformers_words(values)
    # The class's own default counts codes; the ids that begin and end them have rows as well.
    values.setdefault("codebook_size", values.get("audio_stream_eos_id", 1025) + 1)
    try:
        whole = HiggsAudioV2Config.from_dict(values | {"model_type": "higgs_audio_v2"})
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(f"config.json: {' '.join(str(error).split())}") from error
    _check(whole)
    return whole


def _in_transformers_words(config: Mapping[str, Any]) -> dict[str, Any]:
    for name, accepted in _FIXED_BY_AUTHORS.items():
        if name in config and config[name] not in accepted:
            raise ValueError(f"{name} must be one of {list(accepted)}, not {config[name]!r}")
    llama = config.get("text_config")
    if not isinstance(llama, Mapping) or llama.get("model_type") != "llama":
        raise ValueError(f"text_config.model_type must be 'llama', not {llama!r:.80}")
    layers = config.get("audio_dual_ffn_layers")
    every = list(range(int(llama.get("num_hidden_layers", 0))))
    if layers is not None and sorted(layers) != every:
        raise ValueError(
            f"audio_dual_ffn_layers must be all {len(every)} layers of text_config, not {layers!r}"
        )
    values = {own: config[name] for name, own in _OF_AUTHORS.items() if name in config}
    values |= {name: llama[name] for name in _LLAMA if name in llama}
    if "audio_codebook_size" in config:
        values["codebook_size"] = config["audio_codebook_size"] + 2
    if "rope_parameters" not in values and values.get("rope_scaling") is not None:
        values["rope_parameters"] = {
            **values["rope_scaling"],
            "rope_theta": values.get("rope_theta", 500000.0),
        }
    values.pop("rope_scaling", None)
    values.pop("rope_theta", None)
    return {**values, "architectures": config.get("architectures")}


def _check(whole: HiggsAudioV2Config) -> None:
    """Refuse what a model of this architecture cannot be."""
    for name in _SIZES:
        value = getattr(whole, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, not {value!r}")
    begin, end, size = whole.audio_stream_bos_id, whole.audio_stream_eos_id, whole.codebook_size
    if not 0 < begin < end or (end, size) != (begin + 1, end + 1):
        raise ValueError(
            f"codebook_size must count the codes and, after them, audio_stream_bos_id and "
            f"audio_stream_eos_id: with {begin} and {end} it must be {begin + 2}, not {size}"
        )
    if whole.pad_token_id is None or not 0 <= whole.pad_token_id < whole.vocab_size:
        raise ValueError(
            f"pad_token_id must be in [0, {whole.vocab_size}), not {whole.pad_token_id!r}"
        )
    for name, accepted in (
        ("hidden_act", "silu"), ("tie_word_embeddings", False), ("attention_bias", False),
        ("mlp_bias", False),
    ):  # fmt: skip
        if getattr(whole, name) != accepted:
            raise ValueError(f"{name} must be {accepted!r}, not {getattr(whole, name)!r}")
    if not 1 < whole.num_codebooks <= 64:
        raise ValueError(f"num_codebooks must be 2 to 64, not {whole.num_codebooks}")
