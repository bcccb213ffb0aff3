# SPDX-License-Identifier: Apache-2.0
"""Messages of a request as turns, and turns as the ids of all streams."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm.unison.model.conversation import Content, Recording, Turn
from vllm.unison.model.layout import StreamLayout

MESSAGES = "messages"
"""Option of a request that gives a conversation instead of a text."""


def turns_of(messages: Any) -> list[Turn]:
    """Messages in OpenAI's shape as turns.

    Args:
        messages: dictionaries with `role` and `content`, which is text, or a list of parts
            {"type": "text", "text": ...} and {"type": "audio", "audio": clip}.

    Raises:
        ValueError: naming the message and what is accepted.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence) or not messages:
        raise ValueError(f"{MESSAGES} must be a list of at least one message")
    turns = []
    for index, message in enumerate(messages):
        name = f"{MESSAGES}[{index}]"
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError(f"{name} must have role and content")
        content = message["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, Sequence) or not content:
            raise ValueError(f"{name}.content must be text, or a list of at least one part")
        parts = [_part(f"{name}.content[{place}]", part) for place, part in enumerate(content)]
        turns.append(Turn(str(message["role"]), tuple(parts)))
    return turns


def _part(name: str, part: Any) -> Content:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "audio" and part.get("audio") is not None:
        return Recording(part["audio"])
    raise ValueError(
        f"{name} must be {{'type': 'text', 'text': text}} or {{'type': 'audio', 'audio': clip}}"
    )


def has_recording(messages: Any) -> bool:
    """Whether some part of the messages, which may be anything, looks like audio."""
    if not isinstance(messages, Sequence):
        return False
    contents = [m.get("content") for m in messages if isinstance(m, Mapping)]
    return any(
        isinstance(part, Mapping) and part.get("type") == "audio"
        for content in contents
        if isinstance(content, Sequence)
        for part in content
    )


def rows_of_content(
    layout: StreamLayout,
    content: Sequence[Content],
    rows_of_text: Callable[[str], NDArray[np.int32]],
    rows_of_recording: Callable[[Any], NDArray[np.int32]],
) -> NDArray[np.int32]:
    """[num_steps, num_streams] ids of a prompt after which audio is generated.

    A recording stands between a step that begins all streams and one that ends them; the prompt's
    last step begins them once more.

    Args:
        layout: whose lead-in begins streams, and whose tail ends them.
        content: texts and recordings.
        rows_of_text, rows_of_recording: their steps; a recording's with the layout's fills.
    """
    begin = np.array([layout.lead_in.token_ids], np.int32)
    end = np.array([layout.tail.token_ids], np.int32)
    rows: list[NDArray[np.int32]] = []
    for part in content:
        if isinstance(part, Recording):
            rows += [begin, rows_of_recording(part.clip), end]
        else:
            rows.append(rows_of_text(part))
    return np.concatenate([*rows, begin])
