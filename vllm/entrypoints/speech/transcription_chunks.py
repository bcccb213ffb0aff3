# SPDX-License-Identifier: Apache-2.0
"""A streamed transcription in the shape of upstream's clients, such as `vllm bench serve`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from vllm.entrypoints.speech.errors import error_body
from vllm.entrypoints.speech.service import Generation
from vllm.entrypoints.speech.sse import DONE, event


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
            yield event(head | {"choices": [choice]} | usage)
    except Exception as error:
        yield event(error_body(error))
        return
    yield event(head | {"choices": [], "usage": _usage(generation)})
    yield DONE


def _usage(generation: Generation) -> dict[str, int]:
    usage = generation.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
