# SPDX-License-Identifier: Apache-2.0
"""How conversations with OpusLM's dialogue models are laid into a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm.unison.model.conversation import Recording, Turn
from vllm.unison.model.dialogue import Said, Segment

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"


@dataclass(frozen=True)
class OpusLMDialogue:
    """The conversations of a model; see Dialogue.

    Each text or recording of a turn is a segment: the role's id, the id of its kind, the content,
    and as many pads as the largest delay. What the assistant has said ends with an id of its own.

    Attributes:
        begins: by task, the ids that a prompt begins with.
        roles: ids of stream 0 by the roles that messages name.
        text, audio: ids before a text and before a recording.
        end: the id after each segment of the assistant's.
        flush: the pads after each segment.
        voice: the id before a recording in a system message, which the answer's voice is like; None
            if the model has no such thing.
    """

    begins: Mapping[str, tuple[int, ...]]
    roles: Mapping[str, int]
    text: int
    audio: int
    end: int
    flush: tuple[int, ...]
    voice: int | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that take a conversation."""
        return tuple(self.begins)

    def tasks_of(self, turns: Sequence[Turn]) -> tuple[str, ...]:
        """All of the tasks, whatever is said."""
        for index, turn in enumerate(turns):
            if turn.role not in self.roles:
                raise ValueError(
                    f"messages[{index}].role must be one of {list(self.roles)}, not {turn.role!r}"
                )
        if turns[-1].role == ASSISTANT:
            raise ValueError(
                f"messages[{len(turns) - 1}].role must not be {ASSISTANT!r}: "
                "the last message is answered"
            )
        return self.tasks

    def lay_out(self, task: str, turns: Sequence[Turn]) -> list[Segment]:
        """The prompt up to where the assistant's text begins; see Dialogue."""
        segments: list[Segment] = [self.begins[task]]
        for index, turn in enumerate(turns):
            for content in turn.content:
                is_voice = self.voice is not None and turn.role == SYSTEM
                kind = self.text
                if isinstance(content, Recording):
                    kind = self.audio if not is_voice or self.voice is None else self.voice
                said = Said(content, f"messages[{index}].content", is_voice)
                end = (self.end,) if turn.role == ASSISTANT else ()
                segments += [(self.roles[turn.role], kind), said, end + self.flush]
        return [*segments, (self.roles[ASSISTANT], self.text)]
