# SPDX-License-Identifier: Apache-2.0
"""A published MusicGen model as the specification that every part of the engine reads."""

from __future__ import annotations

from typing import Any

from vllm.transformers_utils.repo_utils import get_hf_file_to_dict
from vllm.unison.formats.musicgen import Conditioning, MusicGenFormat, musicgen_format
from vllm.unison.model.layout import Phase, PhaseKind, StreamLayout
from vllm.unison.model.spec import (
    SAME_PROMPT,
    CodecSource,
    SpeechSpec,
    TaskPrompt,
    TextEncoderSpec,
)

MAX_TEXT_IDS = 512
"""Length of a text, its end token included: that of the texts that T5 was trained on."""

GENERATE, CONTINUE = "generate", "continue"
"""Tasks: audio from a text, and the same as what follows a clip."""


def musicgen_spec(config: Any, model_path: str, revision: str | None = None) -> SpeechSpec:
    """The specification of a model.

    Args:
        config: a MusicgenConfig.
        model_path: the model's folder or hub id, where its generation_config.json is looked for.
        revision: of a hub id.

    Raises:
        ValueError: naming the field and what is accepted.
    """
    generation = get_hf_file_to_dict("generation_config.json", model_path, revision)
    form = musicgen_format(config.to_dict(), generation)
    return spec_of_format(form, model_path, revision)


def spec_of_format(
    form: MusicGenFormat, model_path: str = "", revision: str | None = None
) -> SpeechSpec:
    """The specification of a model whose text is attended to; see `musicgen_spec`."""
    assert form.conditioning is Conditioning.CROSS_ATTENTION
    fill = form.fill_id
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
        tasks=(
            TaskPrompt(GENERATE, ("encoder_text", fill)),
            TaskPrompt(CONTINUE, ("encoder_text", fill, "audio")),
        ),
        model_path=model_path,
        null_prompt=SAME_PROMPT,
        generation_defaults={GENERATE: defaults, CONTINUE: defaults},
        text_encoder=TextEncoderSpec(MAX_TEXT_IDS, int(form.text_config.vocab_size)),
        frames_per_second=form.frames_per_second,
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
