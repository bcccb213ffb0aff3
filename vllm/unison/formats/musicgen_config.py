# SPDX-License-Identifier: Apache-2.0
"""The config.json of a published MusicGen model, checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

MODEL_TYPES = ("musicgen", "musicgen_melody")
SIZES = (
    "hidden_size", "ffn_dim", "num_hidden_layers", "num_attention_heads", "vocab_size",
    "num_codebooks", "max_position_embeddings",
)  # fmt: skip


def checked_config(config: Mapping[str, Any]) -> Any:
    """The configuration in transformers' own class, which completes what the file leaves out.

    Args:
        config: what config.json holds.

    Returns:
        A MusicgenConfig or a MusicgenMelodyConfig.

    Raises:
        ValueError: naming the field and what is accepted.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import MusicgenConfig, MusicgenMelodyConfig

    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(f"model_type must be one of {list(MODEL_TYPES)}, not {model_type!r}")
    for name, kind in (("text_encoder", "t5"), ("audio_encoder", "encodec")):
        part = config.get(name)
        found = part.get("model_type") if isinstance(part, Mapping) else None
        if found != kind:
            raise ValueError(f"{name}.model_type must be {kind!r}, not {found!r}")
    try:
        # A copy: the class takes the dictionaries apart.
        config_class = MusicgenConfig if model_type == "musicgen" else MusicgenMelodyConfig
        whole = config_class.from_dict(json.loads(json.dumps(config)))
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(f"config.json: {' '.join(str(error).split())}") from error
    _check(whole)
    return whole


def _check(whole: Any) -> None:
    """Refuse what a model of this architecture cannot be."""
    decoder, codec = whole.decoder, whole.audio_encoder
    heads, channels = decoder.num_attention_heads, decoder.audio_channels
    books, max_books = decoder.num_codebooks, codec.num_quantizers
    for name in SIZES:
        if getattr(decoder, name) < 1:
            raise ValueError(f"decoder.{name} must be at least 1, not {getattr(decoder, name)}")
    if decoder.hidden_size % heads or decoder.hidden_size % 2:
        raise ValueError(
            f"decoder.hidden_size must be even and a multiple of {heads} heads, "
            f"not {decoder.hidden_size}"
        )
    if books % channels or books // channels > max_books:
        raise ValueError(
            f"decoder.num_codebooks must be 1 to {max_books} for each of {channels} channels, "
            f"not {books}"
        )
    for part, name, accepted in (
        ("decoder", "activation_function", "gelu"),
        ("decoder", "tie_word_embeddings", False),
        ("decoder", "pad_token_id", decoder.vocab_size),
        ("decoder", "bos_token_id", decoder.vocab_size),
        ("decoder", "cross_attention_hidden_size", None),
        ("audio_encoder", "codebook_size", decoder.vocab_size),
        ("audio_encoder", "audio_channels", 1),
        ("audio_encoder", "normalize", False),
        ("audio_encoder", "chunk_length_s", None),
    ):
        value = getattr(getattr(whole, part), name, None)
        if value != accepted:
            raise ValueError(f"{part}.{name} must be {accepted!r}, not {value!r}")
