# SPDX-License-Identifier: Apache-2.0
"""Conversations as segments in a prompt: ids that say who speaks, and between them what is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from vllm.unison.model.conversation import Content, Turn


@dataclass(frozen=True)
class Said:
    """What is said, at its place in a prompt.

    Attributes:
        content: a text or a recording.
        where: the field of the request that it comes from, for errors.
        is_voice: whether it is the recording of a voice to speak with.
    """

    content: Content
    where: str
    is_voice: bool = False


Segment: TypeAlias = tuple[int, ...] | Said
"""Ids of stream 0 with pads beside them, or what is said."""


class Dialogue(Protocol):
    """How a model's conversations are laid into a prompt."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that take a conversation."""
        ...

    def tasks_of(self, turns: Sequence[Turn]) -> tuple[str, ...]:
        """The tasks that may answer a conversation; of several that fit a request the first does.

        Raises:
            ValueError: naming the turn as `messages[i]`, and what is accepted.
        """
        ...

    def lay_out(self, task: str, turns: Sequence[Turn]) -> list[Segment]:
        """The prompt of a conversation, up to where it is answered.

        Args:
            task: one of `tasks_of`.
            turns: at least one.

        Raises:
            ValueError: as `tasks_of`.
        """
        ...
