# SPDX-License-Identifier: Apache-2.0
"""A streamed transcription in the shape of upstream's clients, such as `vllm bench serve`."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from vllm.entrypoints.speech.errors import error_body
from vllm.entrypoints.speech.service import Generation


async def transcription_chunks(
    generation: Generation, model: str, continuous_usage: bool
) -> AsyncIterator[str]:
    """Events of vLLM's own form: `transcription.chunk` objects, usage, and `[DONE]`.

    Args:
        generation: the running request.
        model: its name.
        continuous_usage: whether each chunk has the usage so far.
    """
    head = {
        "id": generation.request_id,
        "object": "transcription.chunk",
        "created": int(time.time()),
        "model": model,
    }
    try:
        async for completion in generation:
            if not completion.text and completion.finish_reason is None:
                continue
            choice = {
                "index": 0,
                "delta": {"content": completion.text},
                "finish_reason": completion.finish_reason,
            }
            usage = {"usage": _usage(generation)} if continuous_usage else {}
            yield _event(head | {"choices": [choice]} | usage)
    except Exception as error:
        yield _event(error_body(error))
        return
    yield _event(head | {"choices": [], "usage": _usage(generation)})
    yield "data: [DONE]\n\n"


def _usage(generation: Generation) -> dict[str, int]:
    usage = generation.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"
