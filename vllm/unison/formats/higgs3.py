# SPDX-License-Identifier: Apache-2.0
"""A published Higgs TTS 3 model as the specification that every part of the engine reads.

Ids of the engine: those of the text, then one run of ids per codebook, in which the codes are
followed by the id that fills a stream before its first code and the one that fills it after its
last. Positions of text carry an id on streams 1 and up that adds nothing there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm.transformers_utils.repo_utils import get_hf_file_to_dict
from vllm.unison.formats.higgs3_config import CODEC_CONFIG, NUM_SPECIAL_CODES
from vllm.unison.formats.higgs3_weights import CODEC
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

if TYPE_CHECKING:
    from vllm.transformers_utils.configs.higgs3 import Higgs3Config

SPEAK = "speak"
"""The task: speech from a text, like a recording if there is one."""

TTS, TEXT, AUDIO = "<|tts|>", "<|text|>", "<|audio|>"
"""Tokens of every prompt."""
REFERENCE, TRANSCRIPT = "<|ref_audio|>", "<|ref_text|>"
"""Before a recording and before what is said in it; the latter is in newer tokenizers only."""

NOTHING = 0
"""What streams 1 and up carry beside text: an id of the text, which they never embed."""

MAX_STEPS = 2048
"""Of a request that says nothing else."""

SAMPLING: Mapping[str, Any] = {"temperature": 0.8, "top_p": 0.8, "top_k": 30}
"""Defaults of the server that the model's authors name."""


def higgs3_spec(
    config: Higgs3Config, model_path: str = "", revision: str | None = None
) -> SpeechSpec:
    """The specification of a model.

    Args:
        config: of the model.
        model_path: its folder or hub id, in whose tokenizer the prompt's tokens are looked for.
        revision: of a hub id.

    Raises:
        ValueError: naming the file and what it must hold.
    """
    size = int(config.text_config.vocab_size)
    tokens = {
        name: token for name, token in added_tokens(model_path, revision).items() if token < size
    }
    if missing := [name for name in (TTS, TEXT, AUDIO) if name not in tokens]:
        raise ValueError(
            f"tokenizer.json must have {missing} among its added tokens, with ids below "
            f"text_config.vocab_size {size}"
        )
    layout = stream_layout(config, tokens[AUDIO])
    return SpeechSpec(
        layout=layout,
        auxiliary_skip_ids=(NOTHING,),
        codec=CodecSource(
            ".", revision, CODEC, config_key="codec_config", default_config=json.dumps(CODEC_CONFIG)
        ),
        tasks=(TaskPrompt(SPEAK, prompt_parts(tokens)),),
        model_path=model_path,
        generation_defaults={SPEAK: {**SAMPLING, "max_tokens": MAX_STEPS - layout.max_delay}},
    )


def stream_layout(config: Higgs3Config, begin_audio: int) -> StreamLayout:
    """Streams, fills and the end of audio.

    Args:
        config: of the model.
        begin_audio: id of the token that audio follows.
    """
    audio = config.audio_encoder_config
    num_streams, width = int(audio["num_codebooks"]), int(audio["vocab_size"])
    text = int(config.text_config.vocab_size)
    firsts = range(text, text + num_streams * width, width)
    begins = tuple(first + width - NUM_SPECIAL_CODES for first in firsts)
    ends = tuple(token + 1 for token in begins)
    forced, sampled = (False,) * num_streams, (True,) * num_streams
    return StreamLayout(
        delays=tuple(range(num_streams)),
        vocabulary_size=text + num_streams * width,
        slices=tuple(zip(firsts, begins, strict=True)),
        pad_token_ids=(ends[0], *[NOTHING] * (num_streams - 1)),
        text_slice=(0, text),
        delay_scope=DelayScope.SEGMENT,
        # As one of the published servers: an id that is no code decodes as the first one.
        outside_codebook=0,
        # The tail was trained and is sampled, from heads that have all ids of a codebook.
        fills=AudioFills(lead_in=PlaceFill(begins, forced), tail=PlaceFill(ends, sampled)),
        more_candidates=tuple((token,) for token in begins),
        phases=(
            Phase(
                "audio",
                PhaseKind.AUDIO,
                begin_tokens=(begin_audio,),
                transitions=(Transition(ends[0], "end"),),
                # Until the last stream has started, an end is emitted and means nothing.
                end_rule=AudioEnd(first_step=num_streams, forbids_earlier=False),
            ),
        ),
    )


def prompt_parts(tokens: Mapping[str, int]) -> tuple[Any, ...]:
    """The prompt of the task, as the tokenizer has tokens for it."""
    sections: list[Any] = []
    if REFERENCE in tokens:
        if TRANSCRIPT in tokens:
            sections.append((tokens[TRANSCRIPT], REFERENCE_TEXT))
        sections.append((tokens[REFERENCE], "voice"))
    return (tokens[TTS], *sections, tokens[TEXT], "text", tokens[AUDIO])


def added_tokens(model_path: str, revision: str | None = None) -> dict[str, int]:
    """Ids by their token, of those that the tokenizer's files name one by one.

    Raises:
        ValueError: there is no tokenizer.json, or it is another kind of file.
    """
    found = get_hf_file_to_dict("tokenizer.json", model_path, revision)
    entries = found.get("added_tokens") if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f"model {model_path!r} must have a tokenizer.json with added_tokens")
    return {str(entry["content"]): int(entry["id"]) for entry in entries}
