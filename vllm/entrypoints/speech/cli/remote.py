# SPDX-License-Identifier: Apache-2.0
"""A server elsewhere that speaks OpenAI's interface of audio."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import httpx2

MAX_ERROR_CHARACTERS = 1000


class RemoteError(RuntimeError):
    """The server refused, or cannot be reached."""


def base_url(url: str) -> str:
    """A server's address without the path /v1, which users may give with it."""
    return url.rstrip("/").removesuffix("/v1")


def authorization(api_key: str | None) -> dict[str, str]:
    """The headers that a server with a key wants; none without one."""
    return {} if not api_key else {"authorization": f"Bearer {api_key}"}


class RemoteServer:
    """A server.

    Args:
        url: with or without the path /v1.
        api_key: sent as a bearer token, if given.

    Raises:
        RemoteError: if `url` is none.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._base = base_url(url) + "/v1"
        # Speech may take any time, and what hangs is ended by hand.
        self._client = httpx2.Client(
            headers=authorization(api_key), timeout=httpx2.Timeout(None, connect=30)
        )

    def speak(self, body: Mapping[str, Any]) -> Iterator[bytes]:
        """The bytes of an audio file as they come; `body` as for POST /v1/audio/speech.

        Raises:
            RemoteError: with the server's message, or if the answer breaks off.
        """
        with self._post("/audio/speech", json=dict(body)) as response:
            yield from response.iter_bytes()

    def transcribe(self, name: str, data: bytes, fields: Mapping[str, Any]) -> str:
        """The text of an audio file; `fields` as for POST /v1/audio/transcriptions.

        Args:
            name: of the file; characters that a header cannot hold are escaped.
            data: the file.
            fields: of the form.

        Raises:
            RemoteError: with the server's message, or if the answer is none.
        """
        file = (file_name(name), data, "application/octet-stream")
        with self._post("/audio/transcriptions", data=dict(fields), files={"file": file}) as answer:
            answer.read()
            try:
                return str(answer.json()["text"])
            except (ValueError, KeyError, TypeError) as error:
                raise RemoteError(f"{answer.url} did not answer with a transcription") from error

    @contextlib.contextmanager
    def _post(self, path: str, **content: Any) -> Iterator[httpx2.Response]:
        try:
            with self._client.stream("POST", self._base + path, **content) as response:
                if not response.is_success:
                    response.read()
                    raise RemoteError(_message(response))
                yield response
        except httpx2.RemoteProtocolError as error:
            raise RemoteError(f"{self._base}{path}: the answer broke off ({error})") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise RemoteError(f"{self._base}{path}: {error or type(error).__name__}") from error


def file_name(name: str) -> str:
    """`name` as a server may see it: quotes and line ends, which end a header, become "_", and so
    does whatever is not printable."""
    return "".join(c if c.isprintable() and c not in '"\\/' else "_" for c in name)


def _message(response: httpx2.Response) -> str:
    try:
        found = response.json()["error"]
        text = str(found["message"] if isinstance(found, dict) else found)
    except (ValueError, KeyError, TypeError):
        text = f"{response.status_code} {response.reason_phrase}"
    return text[:MAX_ERROR_CHARACTERS]
