# SPDX-License-Identifier: Apache-2.0
"""A session with a server elsewhere that speaks while the text comes: /v1/audio/speech/stream."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from vllm.entrypoints.speech.cli.live_text import lines
from vllm.entrypoints.speech.cli.remote import (
    MAX_ERROR_CHARACTERS,
    RemoteError,
    authorization,
    base_url,
)
from vllm.entrypoints.speech.encoding import Encoder

MakeEncoder = Callable[[int, int], Encoder]
"""Of the audio's rate in Hz and number of channels."""

_MAX_UNSPOKEN_CHARACTERS = 32768
_MAX_UNSPOKEN_UTTERANCES = 32
"""Half of what a server takes."""
_TEXT_CHARACTERS = 4096
"""Of a message."""


class RemoteSession:
    """A session, for one text.

    Args:
        url: of the server, with or without the path /v1.
        api_key: sent as a bearer token, if given.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        base = base_url(url)
        # http: becomes ws:, and https: wss:.
        scheme = "ws" if base.startswith("http") else ""
        self._url = scheme + base.removeprefix("http") + "/v1/audio/speech/stream"
        self._headers = authorization(api_key)
        self._unspoken: deque[int] = deque([0])
        self._changed = threading.Condition()
        self._has_sent_all = False
        self._failure: Exception | None = None
        self._num_channels = 1

    def speak(
        self, config: Mapping[str, Any], pieces: Iterable[str], make_encoder: MakeEncoder
    ) -> Iterator[bytes]:
        """The bytes of an audio file of all that is said, as they come.

        Args:
            config: fields of session.config, but for the format.
            pieces: the text, in the pieces in which it comes; a line's end is the end of a
                sentence.
            make_encoder: makes what writes the file.

        Raises:
            RemoteError: with the server's message, or if the session breaks off.
            ValueError: of `pieces`.
        """
        try:
            with connect(
                self._url,
                additional_headers=self._headers,
                max_size=None,
                open_timeout=30,
                close_timeout=1,
                ping_interval=None,
            ) as connection:
                yield from self._speak(connection, config, pieces, make_encoder)
        except InvalidStatus as error:
            status = error.response
            raise RemoteError(
                f"{self._url}: {status.status_code} {status.reason_phrase}"
            ) from error
        except (WebSocketException, OSError) as error:
            raise RemoteError(f"{self._url}: {error or type(error).__name__}") from error

    def _speak(
        self,
        connection: ClientConnection,
        config: Mapping[str, Any],
        pieces: Iterable[str],
        make_encoder: MakeEncoder,
    ) -> Iterator[bytes]:
        # It may wait for text when all is over: the process does not wait for it.
        threading.Thread(
            target=self._send_all, args=(connection, config, pieces), daemon=True
        ).start()
        encoder: Encoder | None = None
        try:
            while True:
                message = connection.recv()
                if isinstance(message, bytes):
                    if encoder is None:
                        raise ValueError("sound came before audio.start")
                    yield encoder.encode(_samples(message, self._num_channels))
                    continue
                event = json.loads(message)
                if event["type"] == "error":
                    raise RemoteError(str(event["message"])[:MAX_ERROR_CHARACTERS])
                if event["type"] == "audio.start" and encoder is None:
                    self._num_channels = int(event["channels"])
                    encoder = make_encoder(int(event["sample_rate"]), self._num_channels)
                if event["type"] == "session.done":
                    self._note_spoken()
        except ConnectionClosed as error:
            ends_well = error.rcvd is not None and error.rcvd.code == 1000
            if self._failure is None and not (ends_well and self._is_all_spoken()):
                raise RemoteError(f"{self._url}: the session broke off ({error})") from error
        except (ValueError, LookupError, TypeError) as error:
            raise RemoteError(f"{self._url} did not answer as a server of speech") from error
        if self._failure is not None:
            raise self._failure
        if encoder is not None:
            yield encoder.finish()

    def _send_all(
        self, connection: ClientConnection, config: Mapping[str, Any], pieces: Iterable[str]
    ) -> None:
        """Send the text, never more than the server takes. Runs beside `speak`.

        A server may close the connection before anything is sent; `speak` reads what it said
        until then.
        """
        try:
            _send(connection, "session.config", **config, response_format="pcm", stream_audio=True)
            for line, ends_line in lines(pieces):
                for begin in range(0, len(line), _TEXT_CHARACTERS):
                    text = line[begin : begin + _TEXT_CHARACTERS]
                    self._wait_for_room(len(text))
                    _send(connection, "input.text", text=text)
                if ends_line and self._end_utterance():
                    _send(connection, "input.done")
            self._has_sent_all = True
            _send(connection, "session.close")
        except ConnectionClosed:
            pass  # `speak` sees it as well
        except Exception as error:
            self._failure = error
            connection.close()

    def _wait_for_room(self, num_characters: int) -> None:
        def has_room() -> bool:
            unspoken = self._unspoken
            fits = sum(unspoken) + num_characters <= _MAX_UNSPOKEN_CHARACTERS
            return len(unspoken) == 1 or (fits and len(unspoken) <= _MAX_UNSPOKEN_UTTERANCES)

        with self._changed:
            self._changed.wait_for(has_room)
            self._unspoken[-1] += num_characters

    def _end_utterance(self) -> bool:
        """Begin another utterance; returns whether there was one."""
        with self._changed:
            if not self._unspoken[-1]:
                return False
            self._unspoken.append(0)
            return True

    def _is_all_spoken(self) -> bool:
        with self._changed:
            return self._has_sent_all and not any(self._unspoken)

    def _note_spoken(self) -> None:
        with self._changed:
            if len(self._unspoken) == 1 and not self._has_sent_all:
                raise ValueError("session.done came before input.done")
            self._unspoken.popleft()
            self._changed.notify()


def _send(connection: ClientConnection, kind: str, **fields: Any) -> None:
    connection.send(json.dumps({"type": kind, **fields}))


def _samples(pcm: bytes, num_channels: int) -> np.ndarray:
    """Samples whose 16-bit form is `pcm`."""
    values = (np.frombuffer(pcm, "<i2") / 32767).astype(np.float32)
    return values if num_channels == 1 else values.reshape(-1, num_channels)
