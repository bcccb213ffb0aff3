# SPDX-License-Identifier: Apache-2.0
"""What holds for every route of a server of a multi-stream model: limits of bodies, a clean end."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm.entrypoints.speech.server.body import BodyError, BodyLimits, JsonReader, is_json
from vllm.entrypoints.speech.server.errors import error_response
from vllm.entrypoints.speech.server.lifecycle import Lifecycle
from vllm.exceptions import VLLMError

MONITORING = "/metrics"
"""Answered to the end, and no request that anything waits for."""


MAX_DISCARDED = 64 * 2**20
"""Most bytes of a refused body that are read, for its client to see the answer."""


class AnswerBrokenOffError(RuntimeError):
    """A request failed after its answer had begun."""


class SpeechMiddleware:
    """Reads no more of a body than its route takes, and lets the server leave.

    Args:
        app: what answers.
        lifecycle: the server's.
        limits: of bodies, by path.
        reads_json: paths whose routes read JSON within the limits by themselves.
    """

    def __init__(
        self,
        app: ASGIApp,
        lifecycle: Lifecycle,
        limits: Mapping[str, BodyLimits],
        reads_json: frozenset[str],
    ) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._limits = limits
        self._reads_json = reads_json

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path") or "")
        if path.startswith(MONITORING):
            return await self._app(scope, receive, send)
        if self._lifecycle.is_draining:
            return await self._unavailable()(scope, receive, send)
        self._lifecycle.enter()
        try:
            if scope["type"] == "websocket":
                return await self._app(scope, receive, send)
            limits = self._limits.get(path, BodyLimits())
            exchange = _Exchange(receive, send, limits, Headers(scope=scope))
            checks_json = path not in self._reads_json
            await exchange.run(self._app, scope, checks_json=checks_json)
        finally:
            self._lifecycle.leave()

    def _unavailable(self) -> JSONResponse:
        message = "the server is about to leave; send the request again, to another one"
        response = error_response(message, 503)
        response.headers["retry-after"] = str(self._lifecycle.retry_after)
        response.headers["connection"] = "close"
        return response


class _Exchange:
    """One request and its answer."""

    def __init__(self, receive: Receive, send: Send, limits: BodyLimits, headers: Headers) -> None:
        self._receive, self._send = receive, send
        self._limits, self._headers = limits, headers
        self._num_bytes = 0
        self._is_at_end = False
        self._is_answered = False
        self._refused: BodyError | None = None

    async def run(self, app: ASGIApp, scope: Scope, *, checks_json: bool) -> None:
        receive: Receive = self._limited
        declared = self._headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self._limits.num_bytes:
            self._refused = self._limits.too_large()
        elif checks_json and is_json(self._headers.get("content-type")):
            receive = await self._checked()
        if self._refused is None:
            try:
                await app(scope, receive, self._answer)
            except Exception as error:
                # The HTTP server closes the connection of an answer that lacks its end, so that
                # the client sees it.
                cause = error.__cause__ or error
                if not self._is_answered or not isinstance(cause, VLLMError):
                    raise
                raise AnswerBrokenOffError(str(cause)) from None
        if self._refused is not None and not self._is_answered:
            response = error_response(self._refused.message, self._refused.status)
            await response(scope, receive, self._answer)

    async def _limited(self) -> Message:
        """The next piece of the body; the client has gone, for the app, where the limit is."""
        if self._refused is not None:
            return {"type": "http.disconnect"}
        message = await self._receive()
        self._num_bytes += len(message.get("body", b""))
        self._is_at_end = not message.get("more_body", False)
        if self._num_bytes > self._limits.num_bytes:
            self._refused = self._limits.too_large()
            return {"type": "http.disconnect"}
        return message

    async def _checked(self) -> Receive:
        """Read a body in JSON ahead of a route that checks no limits; gives it again."""
        reader = JsonReader(self._limits)
        pieces: list[bytes] = []
        while not self._is_at_end and self._refused is None:
            message = await self._limited()
            pieces.append(message.get("body", b""))
            try:
                reader.feed(pieces[-1])
            except BodyError as error:
                self._refused = error
        whole: Message | None = {"type": "http.request", "body": b"".join(pieces)}

        async def again() -> Message:
            nonlocal whole
            if whole is None:
                return await self._limited()
            message, whole = whole, None
            return message

        return again

    async def _answer(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if self._refused is not None and message["status"] != self._refused.status:
                return  # what the app makes of a body that is cut off
            if message["status"] >= 400:
                await self._discard_body()
            self._is_answered = True
        if self._is_answered:
            await self._send(message)

    async def _discard_body(self) -> None:
        """Read the rest of a body and keep none: most clients read no answer before they have sent
        all. Those that wait to be told to send need not."""
        has_body = "content-length" in self._headers or "transfer-encoding" in self._headers
        is_held_back = "expect" in self._headers and self._num_bytes == 0
        if not has_body or is_held_back:
            return
        discarded = 0
        while not self._is_at_end and discarded < MAX_DISCARDED:
            message = await self._receive()
            discarded += len(message.get("body", b""))
            self._is_at_end = not message.get("more_body", False)
