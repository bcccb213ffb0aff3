# SPDX-License-Identifier: Apache-2.0
"""A published Higgs Audio v2 model as the specification that every part of the engine reads.

Ids of the engine: those of the text, then one run of ids per codebook, in which the codes are
followed by the id that begins a stream and the one that ends it. Positions of text carry the text's
pad on streams 1 and up, which adds nothing there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import HiggsAudioV2Config, LlamaConfig

from vllm.transformers_utils.repo_utils import get_hf_file_to_dict
from vllm.unison.formats.higgs_audio_v2_prompt import HiggsAudioV2Grammar
from vllm.unison.model.layout import (
    AudioEnd,
    AudioFills,
    DelayScope,
    Phase,
    PhaseKind,
    PlaceFill,
    StreamLayout,
    Transition,
)
from vllm.unison.model.spec import REFERENCE_TEXT, CodecSource, SpeechSpec, TaskPrompt

CODEC = "bosonai/higgs-audio-v2-tokenizer"
"""The repository of the codec, where the model's files name none."""

SPEAK = "speak"
"""The task: speech from a text, or from the turns of a conversation."""

DEFAULTS: Mapping[str, Any] = {
    "temperature": 0.7,
    "top_p": 0.95,
    "max_tokens": 2048,
    "ras_win_len": 7,
    "ras_win_max_num_repeat": 2,
}
"""Of the authors' server, where generation_config.json does not say."""


def first_audio_id(config: HiggsAudioV2Config) -> int:
    """The first of the engine's ids that stand for codes."""
    return int(config.vocab_size)


def backbone_config(config: HiggsAudioV2Config) -> LlamaConfig:
    """The decoder, with a row of its embedding for each id of each codebook."""
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps",
        "rope_parameters", "attention_bias", "mlp_bias", "dtype",
    )  # fmt: skip
    return LlamaConfig(
        **{name: getattr(config, name) for name in names},
        vocab_size=first_audio_id(config) + config.num_codebooks * config.codebook_size,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
    )


def stream_layout(config: HiggsAudioV2Config) -> StreamLayout:
    """Streams, fills, and an end that any stream may begin."""
    firsts = [
        first_audio_id(config) + stream * config.codebook_size
        for stream in range(config.num_codebooks)
    ]
    begins = tuple(first + config.audio_stream_bos_id for first in firsts)
    ends = tuple(first + config.audio_stream_eos_id for first in firsts)
    forced = (False,) * len(firsts)
    return StreamLayout(
        delays=tuple(range(len(firsts))),
        vocabulary_size=firsts[-1] + config.codebook_size,
        slices=tuple(zip(firsts, begins, strict=True)),
        pad_token_ids=(config.pad_token_id,) * len(firsts),
        text_slice=(0, first_audio_id(config)),
        delay_scope=DelayScope.SEGMENT,
        # Frames that hold such an id are decoded, with the last code in its place.
        outside_codebook=config.audio_stream_bos_id - 1,
        fills=AudioFills(lead_in=PlaceFill(begins, forced), tail=PlaceFill(ends, forced)),
        more_candidates=tuple((begin,) for begin in begins),
        phases=(
            # The prompt ends with a step that begins all streams; the delays come after it.
            Phase(
                "audio",
                PhaseKind.AUDIO,
                begin_tokens=begins[:1],
                transitions=(Transition(ends[0], "end"),),
                end_rule=AudioEnd(any_stream=True, extra_steps=1),
            ),
        ),
    )


def higgs_audio_v2_spec(
    config: HiggsAudioV2Config, model_path: str, revision: str | None = None
) -> SpeechSpec:
    """The specification of a model.

    Args:
        config: checked.
        model_path: the model's folder or hub id, in which the codec's place is looked for.
        revision: of a hub id.

    Raises:
        ValueError: naming the field and what is accepted.
    """
    layout = stream_layout(config)
    begin = layout.phases[0].begin_tokens
    return SpeechSpec(
        layout=layout,
        auxiliary_skip_ids=layout.pad_token_ids[:1],
        codec=codec_source(model_path, revision),
        tasks=(TaskPrompt(SPEAK, ((REFERENCE_TEXT,), ("voice",), "text", *begin)),),
        model_path=model_path,
        generation_defaults={SPEAK: generation_defaults(model_path, revision)},
        grammar=HiggsAudioV2Grammar(),
    )


def generation_defaults(model_path: str, revision: str | None) -> dict[str, Any]:
    """What a request gets that leaves it out, as SamplingParams fields.

    generation_config.json counts as far as it says something: the published one has no sampling,
    which neither its authors nor their server use.
    """
    found = get_hf_file_to_dict("generation_config.json", model_path, revision) or {}
    names = ["ras_win_len", "ras_win_max_num_repeat"]
    if found.get("do_sample"):
        names += ["temperature", "top_k", "top_p"]
    of_file = {name: found[name] for name in names if found.get(name) is not None}
    if found.get("max_new_tokens") is not None:
        # The step that begins all streams is in the prompt.
        of_file["max_tokens"] = max(found["max_new_tokens"] - 1, 1)
    return {**DEFAULTS, **of_file}


def codec_source(model_path: str, revision: str | None) -> CodecSource:
    """Where the codec is: what processor_config.json names, or the authors' repository."""
    processor = get_hf_file_to_dict("processor_config.json", model_path, revision) or {}
    named: Any = processor.get("audio_tokenizer")
    if isinstance(named, dict):
        named = named.get("audio_tokenizer_name_or_path")
    if named is None:
        return CodecSource(CODEC)
    if not isinstance(named, str) or not named:
        raise ValueError(
            f"processor_config.audio_tokenizer must name a folder or a hub id, not {named!r}"
        )
    return CodecSource(named)
