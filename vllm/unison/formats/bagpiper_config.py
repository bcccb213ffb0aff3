# SPDX-License-Identifier: Apache-2.0
"""What ESPnet's files say of a Bagpiper model, as the config.json that it is published without.

Beside the weights lies the YAML that the model was trained with (`espnet2.speechlm`), and mostly
one with the settings of its inference. The former names what the model was built from: a backbone,
a tokenizer, a codec and an audio encoder, whose own configurations say their sizes. A setting that
the engine cannot follow is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.unison.formats.espnet_settings import EspnetSettings

NUM_SPECIALS = 256
"""Ids before those of the first part that has any."""

TEXT_IO, CODEC_IO, ENCODER_IO = "text", "discrete_audio", "continuous_audio"
CODEC_PART = "multimodal_io_dict.discrete_audio.codec_model"
"""The codec's key in config.json and, with a dot, the prefix of its tensors."""

ARCHITECTURE = "BagpiperForConditionalGeneration"
DTYPES = ("bfloat16", "float16", "float32")

_DECODING: Mapping[str, Mapping[str, float]] = {
    "text": {"temperature": 0.6, "topk": 20, "cfg": 1, "max_step": 8192, "min_step": 1},
    "audio": {"temperature": 0.8, "topk": 20, "cfg": 3, "max_step": 2048, "min_step": 50},
}
"""The released settings of inference, for a model that is published without any."""

_SMALLEST = {"temperature": 0, "topk": 1, "cfg": 0, "max_step": 1, "min_step": 0}
_INTEGERS = ("topk", "max_step", "min_step")


@dataclass(frozen=True)
class BagpiperSources:
    """What a model was built from, as its YAML names it: hub ids or folders.

    Attributes:
        backbone, tokenizer, codec: of all models.
        audio_encoder: None for a model that does not listen.
        order: the parts that have ids, in the order of these.
        max_codebooks: of the codec's that the model emits.
        is_tied: whether the head is the embedding.
        dtype: of the weights.
        intervals: recorded ranges of ids by part, by which others are refused; None if there are
            none.
    """

    backbone: str
    tokenizer: str
    codec: str
    audio_encoder: str | None
    order: tuple[str, ...]
    max_codebooks: int
    is_tied: bool
    dtype: str
    intervals: Mapping[str, Any] | None


def bagpiper_sources(file: str, text: str) -> BagpiperSources:
    """Read the YAML that a model was trained with.

    Args:
        file: its name, for errors.
        text: what it holds.

    Raises:
        ValueError: naming the file, the setting and what is accepted.
    """
    settings = EspnetSettings(file, text)
    settings.one_of("job_type", "speechlm", default=None)
    parts = settings.get("multimodal_io")
    known = {TEXT_IO, CODEC_IO, ENCODER_IO}
    if not isinstance(parts, dict) or not {TEXT_IO, CODEC_IO} <= set(parts) <= known:
        found = sorted(parts) if isinstance(parts, dict) else parts
        raise settings.error(
            "multimodal_io", f"hold {TEXT_IO}, {CODEC_IO} and perhaps {ENCODER_IO}", found
        )
    codec = f"multimodal_io.{CODEC_IO}"
    settings.one_of(f"{codec}.codec_choice", "Xcodec", default=None)
    if settings.get(f"{codec}.ssl_choice") is not None:
        raise settings.error(f"{codec}.ssl_choice", "be null", settings.get(f"{codec}.ssl_choice"))
    settings.one_of(f"{codec}.delay_interleave", True, default=False)
    settings.one_of("model.model_choice", "parallel", default=None)
    encoder = None
    if ENCODER_IO in parts:
        settings.one_of(f"multimodal_io.{ENCODER_IO}.encoder_choice", "huggingface")
        encoder = settings.source(f"multimodal_io.{ENCODER_IO}.encoder_hf_model_tag")
    return BagpiperSources(
        backbone=settings.source("model.model_hf_tag"),
        tokenizer=settings.source(f"multimodal_io.{TEXT_IO}.tokenizer_name"),
        codec=settings.source(f"{codec}.codec_hf_model_tag"),
        audio_encoder=encoder,
        order=tuple(part for part in parts if part != ENCODER_IO),
        max_codebooks=settings.whole(f"{codec}.codec_max_token_per_frame", 1, 8),
        is_tied=settings.one_of("model.model_conf.tie_word_embeddings", False, True),
        dtype=settings.one_of("model.model_conf.dtype", *DTYPES),
        intervals=settings.get("vocab_intervals"),
    )


def read_decoding(file: str, text: str) -> dict[str, dict[str, float]]:
    """Read the YAML of a model's inference: per modality the settings of sampling.

    Args:
        file: its name, for errors.
        text: what it holds; an empty text stands for the released settings.

    Raises:
        ValueError: naming the file, the setting and what is accepted.
    """
    settings = EspnetSettings(file, text or "{}")
    decoding = {
        modality: {
            name: _number(settings, f"{modality}.{name}", _SMALLEST[name], default)
            for name, default in defaults.items()
        }
        for modality, defaults in _DECODING.items()
    }
    if (scale := decoding["text"]["cfg"]) > 1:
        raise settings.error("text.cfg", "be at most 1, since text is not guided", scale)
    return decoding


def _number(settings: EspnetSettings, name: str, smallest: int, default: float) -> float:
    if name.rpartition(".")[2] in _INTEGERS:
        return settings.whole(name, smallest, int(default))
    return settings.number(name, smallest, default)


def bagpiper_config(
    sources: BagpiperSources,
    backbone: Mapping[str, Any],
    text_vocabulary: int,
    codec: Mapping[str, Any],
    audio: Mapping[str, Any] | None,
    decoding: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """The whole of config.json.

    Args:
        sources: what the model was built from.
        backbone, codec, audio: configurations of the backbone, the codec and the audio encoder.
        text_vocabulary: ids that the tokenizer's own model has.
        decoding: of `read_decoding`.

    Raises:
        ValueError: naming what does not fit.
    """
    for name, config, kind in (
        (sources.backbone, backbone, "qwen3"),
        (sources.codec, codec, "xcodec"),
        (sources.audio_encoder, audio, "qwen3_omni_moe_audio_encoder"),
    ):
        if config is not None and config.get("model_type") != kind:
            raise ValueError(
                f"{name}: model_type must be {kind!r}, not {config.get('model_type')!r}"
            )
    num_codebooks = min(_num_codebooks(codec), sources.max_codebooks)
    sizes = {
        TEXT_IO: text_vocabulary,
        # Of each codebook the first id is its pad.
        CODEC_IO: num_codebooks * (int(codec["codebook_size"]) + 1),
    }
    ranges, begin = {}, NUM_SPECIALS
    for part in sources.order:
        ranges[part] = [begin, begin + sizes[part]]
        begin += sizes[part]
    _check_intervals(sources.intervals, ranges)
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "bagpiper",
        "dtype": sources.dtype,
        "backbone_config": {
            **backbone,
            "architectures": ["Qwen3ForCausalLM"],
            "vocab_size": begin,
            "tie_word_embeddings": sources.is_tied,
        },
        "id_ranges": ranges,
        "num_codebooks": num_codebooks,
        "codebook_size": int(codec["codebook_size"]),
        "decoding": {modality: dict(values) for modality, values in decoding.items()},
        "audio_encoder_config": None if audio is None else dict(audio),
        CODEC_PART: dict(codec),
    }


def _num_codebooks(codec: Mapping[str, Any]) -> int:
    """Codebooks of an X-codec, which follow from its bandwidth."""
    from transformers import XcodecConfig

    return int(XcodecConfig.from_dict(dict(codec)).num_quantizers)


def _check_intervals(recorded: Mapping[str, Any] | None, ranges: Mapping[str, Any]) -> None:
    """Refuse recorded ranges of ids that are not those that the parts give."""
    for part, (begin, end) in ranges.items():
        pairs = (recorded or {}).get(part)
        if not isinstance(pairs, Sequence) or not pairs:
            continue
        if [begin, end] != [pairs[0][0], pairs[-1][1]]:
            raise ValueError(
                f"vocab_intervals.{part} must be [{begin}, {end}), as multimodal_io gives, "
                f"not {[list(pair) for pair in pairs]}: ids follow the order of its parts"
            )
