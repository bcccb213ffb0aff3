# SPDX-License-Identifier: Apache-2.0
"""Prompts of tasks: where what a request gives goes, as a task prompt of the model says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm.unison.frontend.errors import blames
from vllm.unison.frontend.prompt_ids import checked_tokens
from vllm.unison.frontend.prompt_inputs import Heard, PromptInputs
from vllm.unison.frontend.prompt_layout import (
    Piece,
    StreamPrompt,
    frames_of_codes,
    frames_of_tokens,
    lay_out,
)
from vllm.unison.frontend.tasks import choose_task
from vllm.unison.model.spec import (
    AUDIO_FEATURES,
    ENCODER_TEXT,
    MELODY,
    PREFIX,
    REFERENCE_TEXT,
    SpeechSpec,
    TaskPrompt,
)


@dataclass(frozen=True)
class Voice:
    """The voice of a request.

    Attributes:
        recording: a clip of it.
        text_ids: of what is said in the clip.
        token_ids: of stream 0 that stand for a named voice.
    """

    recording: Any = None
    text_ids: list[int] | None = None
    token_ids: tuple[int, ...] = ()


class TaskPrompts:
    """Lays out the prompts of one model's tasks.

    Args:
        spec: the model's specification.
        inputs: reads what requests give.
        max_model_len: see PromptBuilder.
    """

    def __init__(self, spec: SpeechSpec, inputs: PromptInputs, max_model_len: int | None) -> None:
        self._spec = spec
        self._inputs = inputs
        self._max_model_len = max_model_len

    def voice(self, recording: Any, options: Mapping[str, Any]) -> Voice | None:
        """The voice that a request asks for, if it does."""
        name, text = options.get("voice"), options.get(REFERENCE_TEXT)
        if recording is None:
            if text is not None:
                raise ValueError(
                    f"{REFERENCE_TEXT} must come with what it is the text of: the recording of a "
                    "voice, as multi_modal_data['voice']"
                )
            if name is None:
                return None
            if not (isinstance(name, str) and name in self._spec.voices):
                raise ValueError(f"voice must be one of {sorted(self._spec.voices)}, not {name!r}")
            return Voice(token_ids=self._spec.voices[name])
        if name is not None:
            raise ValueError("voice must be given once: by its name, or as a recording")
        return Voice(recording, None if text is None else self._reference_ids(text))

    def choose(
        self, prompt: Mapping[str, Any], audio: Any, name: Any, voice: Voice | None
    ) -> TaskPrompt:
        """The task of a request, by what it gives.

        Args:
            prompt: `prompt_token_ids`, and perhaps `prompt`.
            audio, voice: what else it gives.
            name: of the task, if it names one.
        """
        text, token_ids = prompt.get("prompt"), prompt["prompt_token_ids"]
        if text and not token_ids:
            raise ValueError(
                f"prompt must hold text that the model's tokenizer knows, not {text!r}"
            )
        needs_input = all(task.needs for task in self._spec.tasks)
        if audio is None and not token_ids and needs_input:
            raise ValueError("prompt must hold text, or multi_modal_data must hold audio")
        given = ({"text"} if token_ids else set()) | (set() if audio is None else {"audio"})
        if not self._spec.tasks and given == {"text"} and name is None and voice is None:
            return TaskPrompt("", ("text",))
        return choose_task(
            self._spec,
            given,
            None,
            name=name,
            voice=voice is not None,
            recording=voice is not None and voice.recording is not None,
            reference_text=voice is not None and voice.text_ids is not None,
        )

    def lay_out(
        self,
        task: TaskPrompt,
        text_ids: list[int],
        audio: Any,
        voice: Voice | None,
        num_prefix: int,
    ) -> tuple[StreamPrompt, Heard | None]:
        """The prompt, and what its placeholders for audio stand for."""
        layout = self._spec.layout
        heard: Heard | None = None
        if voice is None and self._spec.default_voice is not None:
            voice = Voice(token_ids=self._spec.voices[self._spec.default_voice])
        given = {"flush"} | ({"text"} if text_ids else set())
        given |= set() if audio is None else {"audio"}
        if voice is not None:
            given |= {"voice"} | (set() if voice.text_ids is None else {REFERENCE_TEXT})
        pieces: list[Piece] = []
        for part in task.laid_with(given):
            if part in (ENCODER_TEXT, MELODY):
                continue
            if part == "text":
                pieces.append(Piece(self._inputs.frames_of_text(text_ids)))
            elif part == PREFIX:
                placeholder = layout.pad_token_ids[0]
                pieces.append(Piece(frames_of_tokens(layout, [placeholder] * num_prefix)))
            elif part == AUDIO_FEATURES:
                piece, heard = self._inputs.placeholders(audio, pieces)
                pieces.append(piece)
            elif part == "audio":
                pieces.append(
                    Piece(frames_of_codes(layout, self._inputs.encode(audio)), is_audio=True)
                )
                self._check_room(len(pieces[-1].frames))
            elif part == "voice":
                if voice is not None:
                    pieces.append(self._piece_of_voice(voice))
            elif part == REFERENCE_TEXT:
                if voice is not None and voice.text_ids is not None:
                    pieces.append(Piece(frames_of_tokens(layout, voice.text_ids)))
                elif voice is not None and voice.recording is not None:
                    raise ValueError(
                        f"{REFERENCE_TEXT} must be given: task {task.name!r} needs what is said in "
                        "the recording"
                    )
            elif part == "flush":
                pads = [layout.pad_token_ids[0]] * layout.max_delay
                pieces.append(Piece(frames_of_tokens(layout, pads)))
            else:
                assert isinstance(part, int)
                pieces.append(Piece(frames_of_tokens(layout, [part])))
        return lay_out(layout, pieces), heard

    def _piece_of_voice(self, voice: Voice) -> Piece:
        """What stands for a voice in the prompt: its ids, or the frames of its recording."""
        layout = self._spec.layout
        if voice.recording is None:
            return Piece(frames_of_tokens(layout, voice.token_ids))
        with blames("voice"):
            return Piece(
                self._inputs.frames_of_recording(voice.recording, is_voice=True), is_audio=True
            )

    def _reference_ids(self, text: Any) -> list[int]:
        if isinstance(text, str):
            what = f"{REFERENCE_TEXT} as text needs"
            ids: Any = self._inputs.ids_of_text(text, what, "token ids")
        else:
            ids = text
        is_list = isinstance(ids, Sequence) and not isinstance(ids, (str, bytes))
        if not is_list or not all(isinstance(token, (int, np.integer)) for token in ids):
            raise ValueError(f"{REFERENCE_TEXT} must be a text, or its token ids, not {text!r}")
        if not ids:
            raise ValueError(
                f"{REFERENCE_TEXT} must hold text that the model's tokenizer knows, not {text!r}"
            )
        checked_tokens(self._spec.layout, ids, REFERENCE_TEXT)
        return list(ids)

    def _check_room(self, num_frames: int) -> None:
        """Refuse audio to continue that leaves no room for a new frame."""
        rate, context = self._spec.frames_per_second, self._max_model_len
        if rate is None or context is None:
            return
        # The start column, a new frame, and the steps of the delayed streams.
        longest = context - 2 - self._spec.layout.num_flush_steps
        if num_frames > longest:
            raise ValueError(
                f"audio must have at most {longest} frames ({float(longest / rate):g} s), so that "
                f"max_model_len = {context} has room for a new one, not {num_frames} frames"
            )
