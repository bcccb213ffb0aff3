# SPDX-License-Identifier: Apache-2.0
"""A published MusicGen model as the specification that every part of the engine reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.transformers_utils.repo_utils import get_hf_file_to_dict
from vllm.unison.formats.musicgen import Conditioning, MusicGenFormat, musicgen_format
from vllm.unison.model.layout import Phase, PhaseKind, StreamLayout
from vllm.unison.model.spec import (
    ENCODER_TEXT,
    MELODY,
    PREFIX,
    SAME_PROMPT,
    CodecSource,
    MelodySpec,
    SpeechSpec,
    TaskPrompt,
    TextEncoderSpec,
)

MAX_TEXT_IDS = 512
"""Length of a text, its end token included: that of the texts that T5 was trained on."""

GENERATE, CONTINUE, FOLLOW = "generate", "continue", "melody"
"""Tasks: audio from a text, the same as what follows a clip, and as what follows its melody."""


def musicgen_spec(config: Any, model_path: str, revision: str | None = None) -> SpeechSpec:
    """The specification of a model.

    Args:
        config: a MusicgenConfig or a MusicgenMelodyConfig.
        model_path: the model's folder or hub id, where its generation_config.json is looked for,
            and of a model with melodies its preprocessor_config.json.
        revision: of a hub id.

    Raises:
        ValueError: naming the field and what is accepted.
    """
    generation = get_hf_file_to_dict("generation_config.json", model_path, revision)
    form = musicgen_format(config.to_dict(), generation)
    melody = None
    if form.conditioning is Conditioning.PREFIX:
        preprocessor = get_hf_file_to_dict("preprocessor_config.json", model_path, revision)
        melody = melody_spec(form, preprocessor or {})
    return spec_of_format(form, model_path, revision, melody)


def melody_spec(form: MusicGenFormat, preprocessor: Mapping[str, Any]) -> MelodySpec:
    """The melody that a model's configurations say; the published values where they do not.

    Raises:
        ValueError: naming the field.
    """
    names = {
        "sampling_rate": "sample_rate",
        "n_fft": "window",
        "hop_length": "hop",
        "chunk_length": "max_seconds",
    }
    given = {own: preprocessor[name] for name, own in names.items() if name in preprocessor}
    return MelodySpec(form.num_chroma, form.chroma_length, **given)


def spec_of_format(
    form: MusicGenFormat,
    model_path: str = "",
    revision: str | None = None,
    melody: MelodySpec | None = None,
) -> SpeechSpec:
    """The specification of a model; see `musicgen_spec`.

    Args:
        form: what its files say.
        model_path, revision: of the model.
        melody: of a model that has a prefix.
    """
    assert (melody is not None) == (form.conditioning is Conditioning.PREFIX)
    fill = form.fill_id
    if melody is None:
        tasks = {GENERATE: (ENCODER_TEXT, fill), CONTINUE: (ENCODER_TEXT, fill, "audio")}
    else:
        tasks = {
            GENERATE: (ENCODER_TEXT, PREFIX, fill),
            FOLLOW: (ENCODER_TEXT, MELODY, PREFIX, fill),
        }
    layout = StreamLayout(
        delays=form.pattern.delays,
        vocabulary_size=form.codebook_size + 1,
        slices=((0, form.codebook_size),) * form.num_streams,
        pad_token_ids=(fill,) * form.num_streams,
        # The start column is a frame of fills. No id ends the audio: its length is asked for.
        phases=(Phase("audio", PhaseKind.AUDIO, begin_tokens=(fill,)),),
    )
    defaults = generation_defaults(form)
    return SpeechSpec(
        layout=layout,
        codec=CodecSource(".", revision, part="audio_encoder", num_channels=form.num_channels),
        tasks=tuple(TaskPrompt(name, parts) for name, parts in tasks.items()),
        model_path=model_path,
        null_prompt=SAME_PROMPT,
        generation_defaults=dict.fromkeys(tasks, defaults),
        text_encoder=TextEncoderSpec(MAX_TEXT_IDS, int(form.text_config.vocab_size)),
        frames_per_second=form.frames_per_second,
        melody=melody,
    )


def generation_defaults(form: MusicGenFormat) -> dict[str, Any]:
    """What a request gets that leaves it out, as SamplingParams fields.

    `max_tokens` is the frames that the published number of positions has room for, and the
    decoder's.
    """
    of_file = form.defaults
    num_positions = min(of_file.max_length, form.max_positions)
    defaults: dict[str, Any] = {
        "temperature": of_file.temperature,
        "top_k": of_file.top_k,
        "top_p": of_file.top_p,
        "max_tokens": max(form.num_frames(num_positions), 1),
    }
    if len(form.lane_weights(of_file.guidance_scale)) > 1:
        defaults["guidance_scale"] = of_file.guidance_scale
    return defaults
