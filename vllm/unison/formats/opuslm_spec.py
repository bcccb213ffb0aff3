# SPDX-License-Identifier: Apache-2.0
"""A published OpusLM as the specification that every part of the engine reads.

Prompts are those of ESPnet's preprocessor: the start, the task's id, then segments, each with the
id of its kind first. Behind each segment come as many pads as the largest delay, so that delayed
streams have ended before the next one begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.unison.formats import opuslm_config as tokens
from vllm.unison.formats.opuslm_dialogue import ASSISTANT, SYSTEM, USER, OpusLMDialogue
from vllm.unison.model.layout import (
    END,
    AudioEnd,
    AudioFills,
    Phase,
    PhaseKind,
    PlaceFill,
    StreamLayout,
    Transition,
)
from vllm.unison.model.spec import CodecSource, SpeechSpec, TaskPrompt

MIN_FRAMES = 3
"""Steps of audio in which it may not end, as ESPnet's published settings of decoding have it."""

_SAMPLED_AUDIO = {"temperature": 0.8, "top_k": 30, "max_tokens": 2048}
_SAMPLED_TEXT = {"temperature": 0.8, "top_k": 20, "max_tokens": 2048}
_GREEDY_TEXT = {"temperature": 0.0, "max_tokens": 2048}

_SPOKEN, _WRITTEN, _TURN, _REPLY = "audio", "text", "turn", "reply"
"""Phases: audio, text, a turn of text in a dialogue, and the text of a turn that is spoken too."""

TEXT_DIALOGUE, AUDIO_DIALOGUE = "text_dialogue", "audio_dialogue"


def opuslm_spec(config: Any, model_path: str) -> SpeechSpec:
    """The specification of a model.

    Args:
        config: an OpusLMConfig.
        model_path: the model's folder.

    Raises:
        ValueError: naming the field and what is accepted.
    """
    layout = opuslm_layout(config)
    tasks = _tasks(config.special_tokens)
    defaults = {
        "text_to_speech": _SAMPLED_AUDIO,
        "voice_prompted_speech": _SAMPLED_AUDIO,
        "audio_lm": _SAMPLED_AUDIO,
        "speech_to_text": _GREEDY_TEXT,
        "text_lm": _SAMPLED_TEXT,
        TEXT_DIALOGUE: _GREEDY_TEXT,
        AUDIO_DIALOGUE: _SAMPLED_AUDIO,
    }
    return SpeechSpec(
        layout=layout,
        # ESPnet's rows of the embedding as they are stored: that of the pad is zero in training.
        has_head_offsets=True,
        codec=None if config.codec is None else CodecSource(config.codec),
        tasks=tuple(TaskPrompt(name, parts) for name, parts in tasks.items()),
        model_path=model_path,
        generation_defaults={name: dict(defaults[name]) for name in tasks},
        voice_frames=config.speaker_frames,
        speech_units=config.speech_units,
        dialogue=_dialogue(config.special_tokens, tasks, layout.max_delay),
    )


def opuslm_layout(config: Any) -> StreamLayout:
    """Streams and phases of an OpusLMConfig.

    A request's task says in which phase it begins, so that the tasks' ids are the begin tokens.
    """
    special: Mapping[str, int] = config.special_tokens
    pad, end = special[tokens.PAD], special[tokens.END]
    num_streams, codes = config.num_streams, config.codes
    book = (codes[1] - codes[0]) // (num_streams - 1)
    books = tuple((codes[0] + k * book, codes[0] + (k + 1) * book) for k in range(num_streams - 1))

    def begins(*names: str) -> tuple[int, ...]:
        return tuple(special[name] for name in names if name in special)

    phases = [
        Phase(
            _WRITTEN,
            PhaseKind.TEXT,
            begins(tokens.TEXT_LM, tokens.RECOGNITION),
            (Transition(end, END),),
        ),
        Phase(
            _SPOKEN,
            PhaseKind.AUDIO,
            begins(tokens.SPEECH, tokens.CLONED_SPEECH, tokens.AUDIO_LM),
            (Transition(end, END),),
            AudioEnd(first_step=MIN_FRAMES, extra_steps=1),
        ),
    ]
    # In older training turns but the last ended with an id of their own.
    ends = (end, *begins(tokens.END_OF_UTTERANCE))
    if tokens.TEXT_DIALOGUE in special:
        phases.append(
            Phase(
                _TURN,
                PhaseKind.TEXT,
                begins(tokens.TEXT_DIALOGUE),
                tuple(Transition(token, END) for token in ends),
            )
        )
    if tokens.AUDIO_DIALOGUE in special:
        spoken = (*(pad,) * (num_streams - 1), *begins(tokens.ASSISTANT, tokens.AUDIO))
        phases.append(
            Phase(
                _REPLY,
                PhaseKind.TEXT,
                begins(tokens.AUDIO_DIALOGUE),
                tuple(Transition(token, _SPOKEN, spoken) for token in ends),
            )
        )
    return StreamLayout(
        delays=tuple(range(num_streams)),
        vocabulary_size=config.vocabulary_size,
        slices=(tuple(config.units), *books),
        pad_token_ids=(pad,) * num_streams,
        phases=tuple(phases),
        text_slice=tuple(config.text),
        codebook_streams=tuple(range(1, num_streams)),
        outside_codebook=0,
        # Nothing is forced once stream 0 has ended: it samples among units and its end, and the
        # others among codes and the pad.
        fills=AudioFills(
            tail=PlaceFill((end,) + (pad,) * (num_streams - 1), (True,) * num_streams)
        ),
    )


def _dialogue(
    special: Mapping[str, int], tasks: Mapping[str, tuple[int | str, ...]], max_delay: int
) -> OpusLMDialogue | None:
    """The conversations of a model that has tasks for them."""
    begins = {
        name: (special[tokens.END], special[token])
        for name, token in (
            (TEXT_DIALOGUE, tokens.TEXT_DIALOGUE),
            (AUDIO_DIALOGUE, tokens.AUDIO_DIALOGUE),
        )
        if name in tasks
    }
    roles = {SYSTEM: tokens.SYSTEM, USER: tokens.USER, ASSISTANT: tokens.ASSISTANT}
    if not begins:
        return None
    return OpusLMDialogue(
        begins=begins,
        roles={role: special[token] for role, token in roles.items() if token in special},
        text=special[tokens.TEXT],
        audio=special[tokens.AUDIO],
        end=special.get(tokens.END_OF_UTTERANCE, special[tokens.END]),
        flush=(special[tokens.PAD],) * max_delay,
        voice=special.get(tokens.SPEAKER),
    )


def _tasks(special: Mapping[str, int]) -> dict[str, tuple[int | str, ...]]:
    """The prompts of the tasks that a model has ids for, in the order in which they are tried."""
    start, text, audio = special[tokens.END], special[tokens.TEXT], special[tokens.AUDIO]
    speaker, user = special.get(tokens.SPEAKER), special.get(tokens.USER)
    one_turn = (user, text, "text", "flush", special.get(tokens.ASSISTANT), text)
    prompts: dict[str, tuple[str, tuple[int | str | None, ...]]] = {
        "text_to_speech": (tokens.SPEECH, (text, "text", "flush", audio)),
        "speech_to_text": (tokens.RECOGNITION, (audio, "audio", "flush", text)),
        "voice_prompted_speech": (
            tokens.CLONED_SPEECH,
            (text, "text", "flush", speaker, "voice", "flush", audio),
        ),
        "audio_lm": (tokens.AUDIO_LM, (audio, "audio")),
        TEXT_DIALOGUE: (tokens.TEXT_DIALOGUE, one_turn),
        AUDIO_DIALOGUE: (tokens.AUDIO_DIALOGUE, one_turn),
    }
    tasks: dict[str, tuple[int | str, ...]] = {}
    for name, (task, parts) in prompts.items():
        if task in special and None not in parts:
            tasks[name] = (start, special[task], *(part for part in parts if part is not None))
    # In training ESPnet takes the first three ids of this task off, to keep the backbone's format.
    tasks["text_lm"] = ("text",)
    return tasks
