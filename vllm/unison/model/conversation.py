# SPDX-License-Identifier: Apache-2.0
"""Conversations that a model continues, and how their turns are written into a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias


@dataclass(frozen=True)
class Recording:
    """Audio of a turn.

    Attributes:
        clip: in any form that libraries give audio in.
    """

    clip: Any


Content: TypeAlias = str | Recording


@dataclass(frozen=True)
class Turn:
    """What one participant says.

    Attributes:
        role: who it is.
        content: texts and recordings, in order.
    """

    role: str
    content: tuple[Content, ...]


class TurnGrammar(Protocol):
    """How a model's conversations are written."""

    def render(self, turns: Sequence[Turn]) -> list[Content]:
        """The prompt up to where generation starts: texts, special tokens in them, and recordings.

        Raises:
            ValueError: naming the turn as `messages[i]`, and what is accepted.
        """
        ...

    def speak(
        self, text: str, recording: Recording | None = None, transcript: str = ""
    ) -> list[Turn]:
        """The conversation that asks for a text, perhaps with the voice of a recording."""
        ...
