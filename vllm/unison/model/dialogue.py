# SPDX-License-Identifier: Apache-2.0
"""Conversations as segments in a prompt: who says something, and whether it is text or audio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Dialogue:
    """How a model's conversations are laid into a prompt.

    Each text or recording of a turn is a segment: the role's id, the id of its kind, the content,
    and as many pads as the largest delay. What the assistant has said ends with an id of its own.

    Attributes:
        begins: by task, the ids that a prompt begins with; a request that names none of these tasks
            gets the first.
        roles: ids of stream 0 by the roles that messages name.
        assistant: the role that answers.
        text, audio: ids before a text and before a recording.
        voice: the id before a recording in a message of `voice_role`, which the answer's voice is
            like; None if the model has no such thing.
        voice_role: the role of such a message.
        end: the id after each segment of the assistant's.
    """

    begins: Mapping[str, tuple[int, ...]]
    roles: Mapping[str, int]
    assistant: str
    text: int
    audio: int
    end: int
    voice: int | None = None
    voice_role: str = "system"
