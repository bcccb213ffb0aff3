# SPDX-License-Identifier: Apache-2.0
"""`vllm bench serve --backend openai-speech`: POST /v1/audio/speech, and what is said of it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    # Upstream's module imports this one, to list the backend.
    import aiohttp
    from tqdm.asyncio import tqdm

    from vllm.benchmarks.lib.endpoint_request_func import RequestFuncInput, RequestFuncOutput

BACKEND = "openai-speech"
_WIDTH = 50


async def async_request_openai_speech(
    request_func_input: RequestFuncInput,
    session: aiohttp.ClientSession,
    pbar: tqdm | None = None,
) -> RequestFuncOutput:
    """Let a text be said, and listen to the events.

    Of the output, `ttft` is the time to the first audio, `itl` the gaps between pieces of audio,
    `output_tokens` the tokens of stream 0, and `input_audio_duration` the seconds of audio that
    were made, which makes upstream's RTFx seconds of audio per second.
    """
    from vllm.benchmarks.lib.endpoint_request_func import (
        RequestFuncOutput,
        _get_headers,
        _update_headers_common,
        _update_payload_common,
        _validate_api_url,
    )

    _validate_api_url(request_func_input.api_url, "OpenAI Speech API", "audio/speech")
    payload: dict[str, Any] = {
        "model": request_func_input.model_name or request_func_input.model,
        "input": request_func_input.prompt,
        "response_format": "pcm",
        "stream_format": "sse",
        "max_tokens": request_func_input.output_len,
    }
    _update_payload_common(payload, request_func_input)
    headers = _get_headers("application/json")
    _update_headers_common(headers, request_func_input)
    output = RequestFuncOutput(prompt_len=request_func_input.prompt_len)
    output.start_time = latest = time.perf_counter()
    try:
        async with session.post(
            request_func_input.api_url, json=payload, headers=headers
        ) as response:
            if response.status != 200:
                output.error = f"{response.status}: {await response.text()}"
            else:
                async for line in response.content:
                    event = _event(line)
                    if event is None:
                        continue
                    if "error" in event:
                        output.error = json.dumps(event["error"])
                        break
                    if event.get("audio"):
                        now = time.perf_counter()
                        if output.ttft:
                            output.itl.append(now - latest)
                        else:
                            output.ttft = now - output.start_time
                        latest = now
                    if event.get("type") == "speech.audio.done":
                        _count(event["usage"], output)
                if not output.error and not output.success:
                    output.error = "the answer broke off"
    except Exception as error:
        output.error = f"{type(error).__name__}: {error}"
        output.success = False
    output.latency = latest - output.start_time
    if pbar:
        pbar.update(1)
    return output


def _event(line: bytes) -> dict[str, Any] | None:
    if not line.startswith(b"data:"):
        return None
    data = line.removeprefix(b"data:").strip()
    return None if data == b"[DONE]" else json.loads(data)


def _count(usage: Mapping[str, Any], output: RequestFuncOutput) -> None:
    output.prompt_len = usage["input_tokens"]
    output.output_tokens = usage["output_tokens"]
    output.input_audio_duration = usage["output_token_details"]["audio_seconds"]
    output.success = output.ttft > 0
    if not output.success:
        output.error = "the model answered without audio"


def speech_summary(
    backend: str, outputs: Sequence[RequestFuncOutput], percentiles: Sequence[float]
) -> dict[str, Any]:
    """Print what listeners care for, and return it for the file of results.

    Args:
        backend: others than BACKEND have nothing to tell.
        outputs: of all requests.
        percentiles: to tell, in (0, 100).

    Returns:
        Mean, median and percentiles of the time to first audio and of the gaps between pieces in
        ms, and of the real-time factor: time of a request over seconds of its audio, below 1 if it
        is faster than playback.
    """
    heard = [output for output in outputs if output.success]
    if backend != BACKEND or not heard:
        return {}
    seconds = [output.input_audio_duration for output in heard]
    result: dict[str, Any] = {"audio_seconds": seconds}
    print("{s:{c}^{n}}".format(s="Speech", n=_WIDTH, c="-"))
    print("{:<40} {:<10.2f}".format("Total audio (s):", sum(seconds)))
    for key, name, values, digits in (
        ("ttfa_ms", "time to first audio (ms)", [1000 * o.ttft for o in heard], 2),
        ("audio_gap_ms", "gap between pieces (ms)", [1000 * g for o in heard for g in o.itl], 2),
        (
            "rtf",
            "real-time factor",
            [o.latency / s for o, s in zip(heard, seconds, strict=True) if s],
            3,
        ),
    ):
        told = {"mean": float(np.mean(values or 0)), "median": float(np.median(values or 0))}
        told |= {f"p{p:g}": float(np.percentile(values or 0, p)) for p in percentiles}
        for statistic, value in told.items():
            result[f"{statistic}_{key}"] = value
            label = f"{statistic.capitalize()} {name}:"
            print(f"{label:<40} {value:<10.{digits}f}")
    return result
