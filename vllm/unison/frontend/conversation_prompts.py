# SPDX-License-Identifier: Apache-2.0
"""Prompts of conversations: turns in the place of the inputs of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm.unison.frontend.conversations import MESSAGES, rows_of_content, turns_of
from vllm.unison.frontend.errors import blames
from vllm.unison.frontend.prompt_ids import checked_tokens
from vllm.unison.frontend.prompt_inputs import Heard, PromptInputs
from vllm.unison.frontend.prompt_layout import (
    Piece,
    StreamPrompt,
    closed_segment,
    frames_of_codes,
    frames_of_tokens,
    lay_out,
)
from vllm.unison.frontend.tasks import choose_dialogue, choose_task
from vllm.unison.model.conversation import Recording, TurnGrammar
from vllm.unison.model.dialogue import Dialogue, Said
from vllm.unison.model.spec import REFERENCE_TEXT, SpeechSpec, TaskPrompt


class ConversationPrompts:
    """Lays out the conversations of one model.

    Args:
        spec: the model's specification.
        inputs: reads what requests give.
    """

    def __init__(self, spec: SpeechSpec, inputs: PromptInputs) -> None:
        self._spec = spec
        self._inputs = inputs

    def from_grammar(
        self,
        grammar: TurnGrammar,
        prompt: Mapping[str, Any],
        options: Mapping[str, Any],
        data: Mapping[str, Any],
    ) -> tuple[TaskPrompt | None, StreamPrompt]:
        """A conversation, or the text or the token ids of one up to where audio begins."""
        text, messages = prompt.get("prompt"), options.get(MESSAGES)
        voice, transcript = data.get("voice"), options.get(REFERENCE_TEXT)
        if voice is None and transcript is not None:
            raise ValueError(
                f"{REFERENCE_TEXT} must come with what it is the text of: the recording of a "
                "voice, as multi_modal_data['voice']"
            )
        if messages is not None:
            if text or voice is not None:
                raise ValueError(f"{MESSAGES} must come without prompt and voice")
            turns = turns_of(messages)
        elif text is None:
            if voice is not None:
                raise ValueError("voice must come with the text that it speaks, as prompt")
            ids = checked_tokens(self._spec.layout, prompt["prompt_token_ids"])
            rows = rows_of_content(self._spec.layout, [""], lambda _: ids, self._rows_of_recording)
            return None, StreamPrompt(rows[:, 0].tolist(), np.ascontiguousarray(rows[:, 1:]))
        else:
            if not text.strip():
                raise ValueError(f"prompt must hold text, not {text!r}")
            if voice is not None and not (isinstance(transcript, str) and transcript.strip()):
                raise ValueError(
                    f"{REFERENCE_TEXT} must be the text of what is said in the recording of the "
                    f"voice, not {transcript!r}"
                )
            recording = None if voice is None else Recording(voice)
            turns = grammar.speak(text, recording, transcript or "")
        task = choose_task(self._spec, {"text"}, None, name=options.get("task"))
        rows = rows_of_content(
            self._spec.layout, grammar.render(turns), self._rows_of_text, self._rows_of_recording
        )
        return task, StreamPrompt(rows[:, 0].tolist(), np.ascontiguousarray(rows[:, 1:]))

    def from_dialogue(
        self, dialogue: Dialogue, options: Mapping[str, Any]
    ) -> tuple[TaskPrompt, StreamPrompt, Heard | None]:
        """A conversation, up to where it is answered."""
        turns = turns_of(options[MESSAGES])
        task = choose_dialogue(self._spec, turns, None, options.get("task"))
        pieces: list[Piece] = []
        heard: Heard | None = None
        for segment in dialogue.lay_out(task.name, turns):
            if not isinstance(segment, Said):
                pieces.append(Piece(frames_of_tokens(self._spec.layout, segment)))
            elif isinstance(segment.content, str):
                pieces.append(Piece(self._frames_of_text(segment.content, segment.where)))
            else:
                with blames(segment.where):
                    piece, heard = self._piece_of_recording(segment, pieces)
                pieces.append(piece)
        return task, lay_out(self._spec.layout, pieces), heard

    def _piece_of_recording(
        self, said: Said, before: Sequence[Piece]
    ) -> tuple[Piece, Heard | None]:
        """A recording's frames, or the places of what the model's audio encoder hears in it."""
        assert isinstance(said.content, Recording)
        clip = said.content.clip
        if self._spec.audio_encoder is None:
            return Piece(self._inputs.frames_of_recording(clip, said.is_voice), is_audio=True), None
        return self._inputs.placeholders(clip, before)

    def _frames_of_text(self, text: str, where: str) -> NDArray[np.int32]:
        ids = self._inputs.ids_of_text(text, f"{MESSAGES} need")
        if not ids:
            raise ValueError(f"{where} must hold text, not {text!r}")
        return self._inputs.frames_of_text(ids)

    def _rows_of_text(self, text: str) -> NDArray[np.int32]:
        ids = self._inputs.ids_of_text(text, "prompt as text needs")
        return frames_of_tokens(self._spec.layout, ids)

    def _rows_of_recording(self, clip: Any) -> NDArray[np.int32]:
        layout = self._spec.layout
        return closed_segment(layout, frames_of_codes(layout, self._inputs.encode(clip)))
