# SPDX-License-Identifier: Apache-2.0
"""Bagpiper as ESPnet publishes it: its ids, prompts and rules as the engine's specification.

Text and then eight delayed streams of X-codec codes, in one request. The rules are those of
`ParallelLLM.inference` in espnet2.speechlm; `bagpiper_config` has what differs between models.
"""

from __future__ import annotations

from typing import Any

from vllm.unison.formats.bagpiper_config import CODEC_IO, CODEC_PART, TEXT_IO
from vllm.unison.formats.bagpiper_prompt import (
    ASSISTANT,
    AUDIO,
    END_OF_SEQUENCE,
    END_OF_TURN,
    PAD,
    TEXT,
    BagpiperDialogue,
    bagpiper_tasks,
)
from vllm.unison.model.layout import (
    END,
    AudioEnd,
    AudioFills,
    DelayScope,
    Phase,
    PhaseKind,
    PlaceFill,
    StreamLayout,
    Transition,
)
from vllm.unison.model.spec import (
    PADS,
    AudioEncoderSpec,
    CodecSource,
    SpeechSpec,
    TaskPrompt,
)

PLAN, ANSWER, SOUND = "plan", "answer", "sound"
"""Phases: text that audio follows, text alone, and audio."""

CHOICE, CHOSEN_TEXT, CHOSEN_SOUND = "choice", "chosen_text", "chosen_sound"
"""Phases of a request whose modalities the model chooses: one after another, for as long as each
ends a turn and not the sequence."""

_ENDS = (END_OF_SEQUENCE, END_OF_TURN)


def bagpiper_layout(config: Any) -> StreamLayout:
    """The stream layout of a model.

    Args:
        config: a BagpiperConfig.
    """
    text = config.id_ranges[TEXT_IO]
    size = config.codebook_size + 1
    pads = tuple(config.id_ranges[CODEC_IO][0] + size * k for k in range(config.num_codebooks))
    # The model was trained to emit each stream's own pad where the stream has no frame.
    own_pads = PlaceFill(pads, (True,) * len(pads))
    decoding = config.decoding
    min_text = int(decoding["text"]["min_step"])
    text_end = AudioEnd(first_step=min_text)
    audio_end = AudioEnd(after_tail=True, first_step=int(decoding["audio"]["min_step"]))
    goes_on = (
        Transition(END_OF_SEQUENCE, END),
        Transition(END_OF_TURN, CHOICE, (ASSISTANT,)),
    )
    return StreamLayout(
        delays=tuple(range(len(pads))),
        vocabulary_size=config.backbone_config.vocab_size,
        slices=tuple((pad + 1, pad + size) for pad in pads),
        pad_token_ids=(PAD,) * len(pads),
        text_slice=(text[0], text[1]),
        delay_scope=DelayScope.SEGMENT,
        # Such a pad among the codes has none; ESPnet's fork of vLLM takes the first.
        outside_codebook=0,
        fills=AudioFills(lead_in=own_pads, tail=own_pads),
        phases=(
            Phase(
                PLAN,
                PhaseKind.TEXT,
                (TEXT,),
                # The published order of modalities is forced: whichever way the text ends, audio
                # is next.
                tuple(Transition(token, SOUND, (ASSISTANT, AUDIO)) for token in _ENDS),
                text_end,
            ),
            Phase(
                SOUND,
                PhaseKind.AUDIO,
                (AUDIO,),
                tuple(Transition(token, END) for token in _ENDS),
                audio_end,
            ),
            Phase(
                ANSWER,
                PhaseKind.TEXT,
                (),
                tuple(Transition(token, END) for token in _ENDS),
                text_end,
            ),
            Phase(
                CHOICE,
                PhaseKind.TEXT,
                (),
                (Transition(TEXT, CHOSEN_TEXT), Transition(AUDIO, CHOSEN_SOUND)),
                chooses=True,
            ),
            # The choice is the first step after the prompt.
            Phase(CHOSEN_TEXT, PhaseKind.TEXT, (), goes_on, AudioEnd(first_step=min_text + 1)),
            Phase(CHOSEN_SOUND, PhaseKind.AUDIO, (), goes_on, audio_end),
        ),
    )


def bagpiper_spec(config: Any, model_path: str = "", revision: str | None = None) -> SpeechSpec:
    """The specification of a model.

    Args:
        config: a BagpiperConfig.
        model_path, revision: of the model.

    Raises:
        ValueError: naming the field and what is accepted.
    """
    layout = bagpiper_layout(config)
    encoder = None
    if config.audio_encoder_config is not None:
        chunk = 2 * int(config.audio_encoder_config["n_window"])
        encoder = AudioEncoderSpec(config.sampling_rate, config.hop_length, chunk)
    tasks = bagpiper_tasks(encoder is not None, ANSWER, CHOICE)
    first_id = layout.text_slice[0] if layout.text_slice else 0
    return SpeechSpec(
        layout=layout,
        auxiliary_skip_ids=(PAD,),
        has_head_offsets=True,
        codec=CodecSource(".", revision, part=CODEC_PART),
        tasks=tasks,
        model_path=model_path,
        null_prompt=PADS,
        guides_audio_only=True,
        # The null lane has pads up to and with the assistant's token, and then the same as the
        # other lane.
        null_ending=(AUDIO,),
        generation_defaults={task.name: _defaults(config, task) for task in tasks},
        # Training took a tokenizer's id 0, "!" in Qwen's, for the pad, so it stands for it.
        text_substitutes={first_id: PAD},
        audio_encoder=encoder,
        dialogue=BagpiperDialogue(tasks),
    )


def _defaults(config: Any, task: TaskPrompt) -> dict[str, Any]:
    """What a request of a task gets that leaves it out, as SamplingParams fields."""
    text, audio = config.decoding["text"], config.decoding["audio"]
    if task.phase == ANSWER:
        return {
            "temperature": float(text["temperature"]),
            "top_k": int(text["topk"]),
            "max_tokens": int(text["max_step"]),
        }
    begins_with_text = AUDIO not in task.parts
    first = text if begins_with_text else audio
    # The text with its end, the two tokens that lead to audio, and the audio.
    before = int(text["max_step"]) + 2 if begins_with_text else 0
    defaults: dict[str, Any] = {
        "temperature": float(first["temperature"]),
        "top_k": int(first["topk"]),
        "stream_temperature": float(audio["temperature"]),
        "stream_top_k": int(audio["topk"]),
        "max_tokens": before + int(audio["max_step"]),
    }
    if audio["cfg"] > 1:
        defaults["guidance_scale"] = float(audio["cfg"])
    return defaults
