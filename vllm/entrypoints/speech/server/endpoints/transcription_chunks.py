# SPDX-License-Identifier: Apache-2.0
"""A streamed transcription in the shape of upstream's clients, such as `vllm bench serve`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from vllm.entrypoints.speech.server.endpoints.transcript import Transcript
from vllm.entrypoints.speech.server.errors import error_body
from vllm.entrypoints.speech.server.sse import DONE, event


async def transcription_chunks(
    transcript: Transcript, model: str, continuous_usage: bool
) -> AsyncIterator[str]:
    """Events of vLLM's own form: `transcription.chunk` objects, usage, and `[DONE]`.

    Args:
        transcript: of the running requests.
        model: its name.
        continuous_usage: whether each chunk has the usage so far.
    """
    head = {
        "id": transcript.request_id,
        "object": "transcription.chunk",
        "created": int(time.time()),
        "model": model,
    }
    try:
        async for delta in transcript.deltas():
            usage = {"usage": _usage(transcript)} if continuous_usage else {}
            yield event(head | {"choices": [_choice(delta)]} | usage)
    except Exception as error:
        yield event(error_body(error))
        return
    yield event(head | {"choices": [_choice("", transcript.finish_reason)]})
    yield event(head | {"choices": [], "usage": _usage(transcript)})
    yield DONE


def _choice(text: str, finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}


def _usage(transcript: Transcript) -> dict[str, int]:
    usage = transcript.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
