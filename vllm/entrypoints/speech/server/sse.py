# SPDX-License-Identifier: Apache-2.0
"""Answers as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from sse_starlette import EventSourceResponse

DONE = "[DONE]"
"""The event after the last one, in OpenAI's streams of chat."""


def event(data: dict[str, Any]) -> str:
    """The data of an event."""
    return json.dumps(data)


def event_stream(events: AsyncIterator[str]) -> EventSourceResponse:
    """An answer that sends each text as an event, `data: …`, and nothing else: no pings."""
    return EventSourceResponse(events, sep="\n", ping=0)
