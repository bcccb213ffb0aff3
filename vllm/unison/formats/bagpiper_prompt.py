# SPDX-License-Identifier: Apache-2.0
"""How requests to Bagpiper are written, as ESPnet's preprocessor writes its dialogues.

A prompt is a begin token and messages: the role, the modality, what is said, and an id that says
whether the same role goes on or not. Then comes the assistant's id, and the modality where it is
forced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm.unison.model.conversation import Content, Recording, Turn
from vllm.unison.model.dialogue import Said, Segment
from vllm.unison.model.spec import AUDIO_FEATURES, TaskPrompt

PAD, BEGIN, END_OF_SEQUENCE, END_OF_TURN, SYSTEM, USER, ASSISTANT, TEXT, AUDIO = range(9)

TEXT_TO_AUDIO, TEXT_TO_TEXT, CAPTION_TO_AUDIO = "text_to_audio", "text_to_text", "caption_to_audio"
ANY = "any"
AUDIO_TO_TEXT, QUESTION_TO_TEXT = "audio_to_text", "audio_and_text_to_text"

_ROLES: Mapping[str, int] = {"system": SYSTEM, "user": USER}
_TEXT_TURN: tuple[int | str, ...] = (USER, TEXT, "text", END_OF_SEQUENCE)
_HEARD: tuple[int | str, ...] = (USER, AUDIO, AUDIO_FEATURES)


def bagpiper_tasks(hears: bool, answer: str, choice: str) -> tuple[TaskPrompt, ...]:
    """The tasks of a model.

    Args:
        hears: whether it has an audio encoder.
        answer, choice: the phases of text alone, and of the model's own choice.
    """
    tasks = [
        TaskPrompt(TEXT_TO_AUDIO, (BEGIN, *_TEXT_TURN, ASSISTANT, TEXT)),
        TaskPrompt(TEXT_TO_TEXT, (BEGIN, *_TEXT_TURN, ASSISTANT, TEXT), phase=answer),
        # What models are pretrained on; the others plan first.
        TaskPrompt(CAPTION_TO_AUDIO, (BEGIN, *_TEXT_TURN, ASSISTANT, AUDIO), is_chosen=False),
        TaskPrompt(ANY, (BEGIN, *_TEXT_TURN, ASSISTANT), phase=choice, is_chosen=False),
    ]
    if hears:
        tasks += [
            TaskPrompt(
                AUDIO_TO_TEXT,
                (BEGIN, *_HEARD, END_OF_SEQUENCE, ASSISTANT, TEXT),
                phase=answer,
            ),
            TaskPrompt(
                QUESTION_TO_TEXT,
                (BEGIN, *_HEARD, END_OF_TURN, *_TEXT_TURN, ASSISTANT, TEXT),
                phase=answer,
            ),
        ]
    return tuple(tasks)


@dataclass(frozen=True)
class BagpiperDialogue:
    """The conversations of a model; see Dialogue.

    A turn is a message of ESPnet's for its recording, and one for its text, the texts of a turn
    being one. Of earlier answers a prompt has none: ESPnet's decoder lays no message from the
    assistant's first on, and what is published of the training has one answer per dialogue.

    Attributes:
        prompts: of the model's tasks, which a conversation gets by what it holds.
    """

    prompts: tuple[TaskPrompt, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that take a conversation: all."""
        return tuple(task.name for task in self.prompts)

    def tasks_of(self, turns: Sequence[Turn]) -> tuple[str, ...]:
        """Those that take what is heard and what users say; system turns go with any task."""
        self._check(turns)
        given = set()
        for turn in turns:
            for content in turn.content:
                if isinstance(content, Recording):
                    given.add("audio")
                elif turn.role == "user":
                    given.add("text")
        return tuple(task.name for task in self.prompts if task.needs <= given <= task.takes)

    def lay_out(self, task: str, turns: Sequence[Turn]) -> list[Segment]:
        """The prompt up to where the assistant begins; see Dialogue."""
        said = [
            (turn.role, Said(content, f"messages[{index}].content"))
            for index, turn in enumerate(turns)
            for content in _messages(turn)
        ]
        segments: list[Segment] = [(BEGIN,)]
        following = [role for role, _ in said[1:]] + [""]
        for (role, message), next_role in zip(said, following, strict=True):
            modality = AUDIO if isinstance(message.content, Recording) else TEXT
            end = END_OF_TURN if next_role == role else END_OF_SEQUENCE
            segments += [(_ROLES[role], modality), message, (end,)]
        (parts,) = (prompt.parts for prompt in self.prompts if prompt.name == task)
        answer = parts[parts.index(ASSISTANT) :]
        return [*segments, tuple(part for part in answer if isinstance(part, int))]

    def _check(self, turns: Sequence[Turn]) -> None:
        """Refuse turns that no prompt has."""
        has_recording = False
        hears = any("audio" in task.takes for task in self.prompts)
        for index, turn in enumerate(turns):
            where = f"messages[{index}]"
            if turn.role == "assistant":
                raise ValueError(
                    f"{where}.role must be one of {list(_ROLES)}, not 'assistant': prompts of "
                    "Bagpiper have no earlier answers, since ESPnet's decoder reads none"
                )
            if turn.role not in _ROLES:
                raise ValueError(f"{where}.role must be one of {list(_ROLES)}, not {turn.role!r}")
            recordings = [part for part in turn.content if isinstance(part, Recording)]
            if recordings and not hears:
                raise ValueError(f"{where}.content must be text: the model has no audio encoder")
            if len(recordings) + has_recording > 1:
                raise ValueError(f"{where}.content must hold no second recording: a prompt has one")
            has_recording = has_recording or bool(recordings)
        if turns[-1].role != "user":
            raise ValueError(
                f"messages[{len(turns) - 1}].role must be 'user', whose message is answered, "
                f"not {turns[-1].role!r}"
            )


def _messages(turn: Turn) -> list[Content]:
    """What a turn says, the recording first, as in training."""
    recordings: list[Content] = [part for part in turn.content if isinstance(part, Recording)]
    texts = [part for part in turn.content if isinstance(part, str)]
    return recordings + (["\n".join(texts)] if texts else [])
