# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry spans of a request's way through the front end, beside upstream's `llm_request`.

They are made where the server has `--otlp-traces-endpoint`, as children of the span that the
client's `traceparent` header names, if it has one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from vllm.tracing import SpanAttributes, extract_trace_context, instrument_manual

ADMISSION, FIRST_AUDIO, AUDIO = "speech.admission", "speech.first_audio", "speech.audio"
SECONDS = "speech.audio_seconds"


class RequestTrace:
    """Spans of one request, which begins now.

    Args:
        request_id: as clients see it.
        headers: with the client's trace context.
    """

    def __init__(self, request_id: str, headers: Mapping[str, str] | None) -> None:
        self._context = extract_trace_context(headers)
        self._request_id = request_id
        self._began = time.time_ns()
        self._first = self._last = 0

    def note_admission(self) -> None:
        """It was found valid, and its prompt, recordings among it, is made."""
        self._add(ADMISSION, self._began, time.time_ns())

    def note_audio(self) -> None:
        """A piece of its audio has come."""
        self._last = time.time_ns()
        if not self._first:
            self._first = self._last
            self._add(FIRST_AUDIO, self._began, self._first)

    def end(self, seconds: float) -> None:
        """It is over, with so much audio."""
        if self._first:
            self._add(AUDIO, self._first, self._last, {SECONDS: seconds})

    def _add(
        self, name: str, begin: int, end: int, more: Mapping[str, float] | None = None
    ) -> None:
        attributes = {SpanAttributes.GEN_AI_REQUEST_ID: self._request_id, **(more or {})}
        instrument_manual(name, begin, end, attributes, self._context)
