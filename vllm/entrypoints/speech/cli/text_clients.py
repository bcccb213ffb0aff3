# SPDX-License-Identifier: Apache-2.0
"""What upstream's clients of text models say when they meet a server of a multi-stream model."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable

import httpx2
import openai

from vllm.entrypoints.speech.cli.process import printable


def tells_the_way_out(command: Callable[[argparse.Namespace], None]) -> Callable[..., None]:
    """Let a command end with a line instead of a traceback if such a server refuses its request.

    Errors of other servers stay as they are.
    """

    @functools.wraps(command)
    def wrapped(args: argparse.Namespace) -> None:
        try:
            command(args)
        except openai.APIStatusError as error:
            if not _speaks(error.request):
                raise
            url = args.url.removesuffix("/").removesuffix("/v1")
            raise SystemExit(
                f"error: {printable(error.message)}\n"
                f"This server's model speaks and listens: vllm speak TEXT --url {url}, or "
                f"vllm transcribe FILE --url {url}"
            ) from error

    return wrapped


def _speaks(request: httpx2.Request) -> bool:
    """Whether the server that was sent this request lists voices."""
    path = request.url.path.partition("/v1/")[0] + "/v1/audio/voices"
    key = {k: v for k, v in request.headers.items() if k == "authorization"}
    try:
        return httpx2.get(request.url.copy_with(raw_path=path.encode()), headers=key).is_success
    except httpx2.HTTPError:
        return False
