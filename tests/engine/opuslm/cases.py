# SPDX-License-Identifier: Apache-2.0
"""Requests that the engine and the reference are given alike."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from tests.engine.streams.reference import Generated, Reference, Settings
from tests.support import opuslm as model
from vllm import SamplingParams

MAX_MODEL_LEN = 256
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_k": 6}


def tokens(*ids: int) -> list[list[int]]:
    """Frames of ids of stream 0, with pads beside them."""
    return [[token] + [model.PAD] * 8 for token in ids]


PADS = tokens(model.PAD) * 8


@dataclass(frozen=True)
class OpusCase:
    """A request.

    Attributes:
        task: its name.
        text: what is said, or gone on from.
        clip: number of frames and seed of a clip, that is heard or spoken like.
        messages: of a conversation: role, and what is said, or number of frames and seed of a clip.
        options: fields of SamplingParams; temperature defaults to 0.
    """

    task: str
    text: str = ""
    clip: tuple[int, int] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    messages: tuple[tuple[str, str | tuple[int, int]], ...] = ()

    def with_max_tokens(self, count: int) -> OpusCase:
        """The same request with another limit."""
        return replace(self, options=self.options | {"max_tokens": count})

    @property
    def prompt(self) -> Any:
        """The prompt as LLM.generate takes it."""
        prompt: dict[str, Any] = {
            "prompt": self.text,
            "mm_processor_kwargs": {"task": self.task},
        }
        if self.messages:
            prompt["mm_processor_kwargs"]["messages"] = [
                {"role": role, "content": said if isinstance(said, str) else [_part(said)]}
                for role, said in self.messages
            ]
        if self.clip is not None:
            kind = "voice" if self.task == "voice_prompted_speech" else "audio"
            prompt["multi_modal_data"] = {kind: {"codes": model.clip_codes(*self.clip)}}
        return prompt

    @property
    def params(self) -> SamplingParams:
        """The sampling parameters."""
        return SamplingParams(**({"temperature": 0.0, "max_tokens": 60} | self.options))

    @property
    def frames(self) -> list[list[int]]:
        """The prompt's frames, before they are delayed."""
        if self.messages:
            return self._conversation()
        text = tokens(*model.text_ids(self.text))
        clip = [] if self.clip is None else model.clip_ids(*self.clip)
        if self.task == "text_lm":
            return text
        if self.task == "speech_to_text":
            start = tokens(model.END, model.ASR, model.BEGIN_AUDIO)
            return start + clip + PADS + tokens(model.BEGIN_TEXT)
        if self.task == "audio_lm":
            return tokens(model.END, model.AUDIO_LM, model.BEGIN_AUDIO) + clip
        if self.task == "text_to_speech":
            start = tokens(model.END, model.TTS, model.BEGIN_TEXT)
            return start + text + PADS + tokens(model.BEGIN_AUDIO)
        assert self.task == "voice_prompted_speech"
        whole = (clip + tokens(model.PAD) * model.SPEAKER_FRAMES)[: model.SPEAKER_FRAMES]
        start = tokens(model.END, model.CLONED_TTS, model.BEGIN_TEXT) + text + PADS
        return start + tokens(model.BEGIN_SPEAKER) + whole + PADS + tokens(model.BEGIN_AUDIO)

    def _conversation(self) -> list[list[int]]:
        task = {"text_dialogue": model.TEXT_DIALOGUE, "audio_dialogue": model.AUDIO_DIALOGUE}
        roles = {"system": model.SYSTEM, "user": model.USER, "assistant": model.ASSISTANT}
        frames = tokens(model.END, task[self.task])
        for role, said in self.messages:
            frames += tokens(roles[role])
            if isinstance(said, str):
                frames += tokens(model.BEGIN_TEXT, *model.text_ids(said))
            elif role == "system":
                clip = model.clip_ids(*said) + tokens(model.PAD) * model.SPEAKER_FRAMES
                frames += tokens(model.BEGIN_SPEAKER) + clip[: model.SPEAKER_FRAMES]
            else:
                frames += tokens(model.BEGIN_AUDIO) + model.clip_ids(*said)
            frames += tokens(model.END_OF_UTTERANCE) if role == "assistant" else []
            frames += PADS
        return frames + tokens(model.ASSISTANT, model.BEGIN_TEXT)

    def expected(self, reference: Reference) -> Generated:
        """What the reference generates."""
        options = {"max_tokens": 60, "temperature": 0.0, "top_k": 0} | self.options
        sampling = (options["temperature"], options["top_k"], 1.0)
        settings = Settings(
            max_tokens=options["max_tokens"],
            max_model_len=MAX_MODEL_LEN,
            min_tokens=options.get("min_tokens", 0),
            ignore_eos=options.get("ignore_eos", False),
            seed=options.get("seed"),
            text=sampling,
            streams=(sampling,) * model.NUM_STREAMS,
        )
        return reference.generate(reference.delayed(self.frames), settings)


def _part(clip: tuple[int, int]) -> dict[str, Any]:
    return {"type": "audio", "audio": {"codes": model.clip_codes(*clip)}}


_TALK: tuple[tuple[str, str | tuple[int, int]], ...] = (
    ("user", "who are you"),
    ("assistant", "just a test"),
    ("user", (11, 6)),
)

CASES = [
    OpusCase("text_to_speech", "a test"),
    OpusCase("text_to_speech", "more words to say", options={"seed": 1, **SAMPLED}),
    OpusCase("text_to_speech", "not to its end", options={"max_tokens": 20, "ignore_eos": True}),
    OpusCase("text_to_speech", "two", options={"max_tokens": 2}),
    OpusCase("speech_to_text", clip=(20, 3), options={"ignore_eos": True, "max_tokens": 30}),
    OpusCase("speech_to_text", clip=(33, 4), options={"seed": 2, **SAMPLED}),
    OpusCase("voice_prompted_speech", "hi", (7, 1)),
    OpusCase("voice_prompted_speech", "hi you", (30, 2), {"seed": 3, **SAMPLED}),
    OpusCase("audio_lm", clip=(25, 5), options={"seed": 4, "min_tokens": 30, **SAMPLED}),
    OpusCase("text_lm", "go on with this text", options={"max_tokens": 30}),
    OpusCase("text_lm", "go", options={"seed": 5, **SAMPLED}),
    OpusCase("text_dialogue", messages=(("system", "be kind"), *_TALK[:1])),
    OpusCase("text_dialogue", messages=_TALK, options={"seed": 6, **SAMPLED}),
    OpusCase("audio_dialogue", messages=(("system", (20, 7)), *_TALK)),
    OpusCase("audio_dialogue", messages=_TALK[:1], options={"seed": 7, **SAMPLED}),
]
"""Requests of all tasks, in one batch."""
