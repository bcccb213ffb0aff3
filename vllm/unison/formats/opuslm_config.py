# SPDX-License-Identifier: Apache-2.0
"""What the config.yaml of a published OpusLM says: the settings that it was trained with.

ESPnet publishes a model as its weights and these settings, which hold the whole list of tokens.
Backbone and tokenizer are named in them, by the hub ids of their own repositories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm.unison.formats.espnet_settings import CONFIG_FILE, EspnetSettings

PAD, END, END_OF_UTTERANCE = "<pad>", "<sos/eos>", "<eou>"
SYSTEM, USER, ASSISTANT = "<system_prompt>", "<user_input>", "<assistant_output>"
AUDIO, TEXT, SPEAKER = "<codec_ssl_start/end>", "<text_bpe_start/end>", "<spk_start/end>"
TEXT_LM, RECOGNITION = "<textlm_task>", "<codec_ssl_asr_task>"
CLONED_SPEECH, SPEECH = "<codec_ssl_tts_task>", "<codec_ssl_plain_tts_task>"
AUDIO_LM = "<codec_ssl_audiolm_task>"
TEXT_DIALOGUE, AUDIO_DIALOGUE = "<text_dialogue_task>", "<audio_dialogue_task>"

REQUIRED = (PAD, END, AUDIO, TEXT)
OPTIONAL = (
    END_OF_UTTERANCE, SYSTEM, USER, ASSISTANT, SPEAKER, TEXT_LM, RECOGNITION, CLONED_SPEECH, SPEECH,
    AUDIO_LM, TEXT_DIALOGUE, AUDIO_DIALOGUE,
)  # fmt: skip
"""Special tokens that a model may lack, and the tasks with them."""

_MODALITIES = ("ssl", "codec", "text_bpe")
_FIXED: Mapping[str, Any] = {
    "corelm": "ar_delay",
    "transformer": "huggingface",
    "subword_choice": "huggingface",
    "encoder_decoder_format": False,
}
_POSITIONS = 8192
"""ESPnet's own number of steps, where the settings do not say."""


@dataclass(frozen=True)
class OpusLMTraining:
    """The settings of a model's training that say what it is.

    Attributes:
        backbone: hub id or folder of the backbone, whose configuration counts.
        tokenizer: hub id or folder of the text's tokenizer, whose ids begin at `text`.
        vocabulary_size: number of tokens.
        special_tokens: ids of those of REQUIRED and OPTIONAL that the model has, by name.
        units, codes, text: half-open ranges of ids: units of stream 0, codes of all the other
            streams one after another, and text.
        num_streams: of a step.
        speaker_frames: frames that a voice's clip takes in a prompt.
        num_positions: steps of the context.
        is_tied: whether the head shares the embedding's weight.
    """

    backbone: str
    tokenizer: str
    vocabulary_size: int
    special_tokens: Mapping[str, int]
    units: tuple[int, int]
    codes: tuple[int, int]
    text: tuple[int, int]
    num_streams: int
    speaker_frames: int
    num_positions: int
    is_tied: bool


def is_opuslm(folder: Path) -> bool:
    """Whether a folder's config.yaml is one of such a model's, by its text and without reading all.

    A list of a hundred thousand tokens takes seconds to read.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        return False
    with file.open(encoding="utf-8", errors="replace") as lines:
        return any(line.startswith("corelm:") for line in lines)


def read_opuslm_training(file: Path) -> OpusLMTraining:
    """Read a config.yaml.

    Raises:
        ValueError: naming the setting and what is accepted.
    """
    settings = EspnetSettings.read(file)
    for name, accepted in _FIXED.items():
        settings.one_of(name, accepted)
    streams = settings.whole("codec_token_per_frame", 2)
    settings.one_of("codec_token_in_use", streams)
    tokens = settings.get("token_list")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ValueError(f"{CONFIG_FILE}: token_list must be a list of names")
    ids = {token: index for index, token in reversed(list(enumerate(tokens)))}
    if missing := [name for name in REQUIRED if name not in ids]:
        raise ValueError(f"{CONFIG_FILE}: token_list must hold {missing[0]!r}")
    units, codes, text = (_range(settings, name, len(tokens)) for name in _MODALITIES)
    if (codes[1] - codes[0]) % (streams - 1):
        raise ValueError(
            f"{CONFIG_FILE}: token_bias.codec must have as many codes for each of "
            f"{streams - 1} streams, not {codes[1] - codes[0]} in all"
        )
    return OpusLMTraining(
        backbone=settings.source("transformer_conf.hf_model_tag"),
        tokenizer=settings.source("subword_model"),
        vocabulary_size=len(tokens),
        special_tokens={name: ids[name] for name in (*REQUIRED, *OPTIONAL) if name in ids},
        units=units,
        codes=codes,
        text=text,
        num_streams=streams,
        speaker_frames=settings.whole("speaker_prompt_length", 1),
        num_positions=settings.whole("transformer_conf.n_ctx", 2, _POSITIONS),
        is_tied=bool(settings.get("corelm_conf.share_emb", False)),
    )


def _range(settings: EspnetSettings, modality: str, vocabulary_size: int) -> tuple[int, int]:
    value = settings.get(f"token_bias.{modality}")
    is_pair = isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value)
    if not is_pair or not 0 <= value[0] < value[1] <= vocabulary_size:
        raise ValueError(
            f"{CONFIG_FILE}: token_bias.{modality} must be [begin, end) in "
            f"[0, {vocabulary_size}], not {value!r}"
        )
    return value[0], value[1]
