# SPDX-License-Identifier: Apache-2.0
"""A server elsewhere that speaks OpenAI's interface of audio."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from typing import IO, Any

_CHUNK = 2**14


class RemoteError(RuntimeError):
    """The server refused, or cannot be reached."""


class RemoteServer:
    """A server.

    Args:
        url: with or without the path /v1.
        api_key: sent as a bearer token, if given.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._base = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}

    def speak(self, body: Mapping[str, Any]) -> Iterator[bytes]:
        """The bytes of an audio file as they come; `body` as for POST /v1/audio/speech.

        Raises:
            RemoteError: with the server's message.
        """
        headers = {"content-type": "application/json"}
        with self._post("/audio/speech", json.dumps(body).encode(), headers) as response:
            while piece := response.read1(_CHUNK):  # type: ignore[attr-defined]
                yield piece

    def transcribe(self, name: str, data: bytes, fields: Mapping[str, Any]) -> str:
        """The text of an audio file; `fields` as for POST /v1/audio/transcriptions.

        Raises:
            RemoteError: with the server's message.
        """
        boundary = uuid.uuid4().hex
        parts = [
            f'--{boundary}\r\ncontent-disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'
            for field, value in fields.items()
        ]
        safe = "".join(c if c.isalnum() or c in ".-_" else "_" for c in name)
        head = f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="{safe}"\r\n'
        body = "".join([*parts, head, "content-type: application/octet-stream\r\n\r\n"]).encode()
        body += data + f"\r\n--{boundary}--\r\n".encode()
        headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
        with self._post("/audio/transcriptions", body, headers) as response:
            return str(json.load(response)["text"])

    def _post(self, path: str, data: bytes, headers: Mapping[str, str]) -> IO[bytes]:
        request = urllib.request.Request(
            self._base + path, data=data, headers={**self._headers, **headers}
        )
        try:
            return urllib.request.urlopen(request)
        except urllib.error.HTTPError as error:
            raise RemoteError(_message(error)) from error
        except urllib.error.URLError as error:
            raise RemoteError(f"{self._base}: {error.reason}") from error


def _message(error: urllib.error.HTTPError) -> str:
    try:
        found = json.loads(error.read(2**16))["error"]
        return str(found["message"] if isinstance(found, dict) else found)
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}"
