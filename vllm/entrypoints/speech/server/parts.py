# SPDX-License-Identifier: Apache-2.0
"""A request for a long clip, as requests for parts of it that a model takes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vllm.entrypoints.speech.media import Clip
from vllm.entrypoints.speech.parameters import SpeechInput, plan_request
from vllm.entrypoints.speech.splitting import cut_points
from vllm.unison.codecs.of_model import codec_of
from vllm.unison.model.spec import SpeechSpec


def split_request(
    spec: SpeechSpec,
    defaults: Mapping[str, Mapping[str, Any]],
    request: SpeechInput,
    max_model_len: int,
) -> list[SpeechInput]:
    """Requests for the parts of a clip, cut in its silences; the request itself if it fits.

    A part leaves room for the tokens that its answer may have, up to half of the context.

    Args:
        spec: the model's specification.
        defaults: by task, for what the request leaves out.
        request: what the client asks for.
        max_model_len: steps of the model's context.

    Raises:
        InvalidRequestError: naming the field.
    """
    if request.clip is None or not spec.has_codec:
        return [request]
    prompt, params = plan_request(spec, defaults, request)
    answer = min(params.max_tokens or max_model_len // 4, max_model_len // 2)
    frames = max_model_len - answer - _overhead(spec, prompt["mm_processor_kwargs"]["task"])
    codec = codec_of(spec, "cpu")
    samples, rate = request.clip.samples, request.clip.sample_rate
    # A codec may make one frame more than the clip has.
    longest = int(max(1, frames - 1) * codec.samples_per_frame * rate / codec.sample_rate)
    bounds = [0, *cut_points(samples, rate, max(4, longest)), samples.shape[1]]
    if len(bounds) == 2:
        return [request]
    return [
        replace(request, clip=Clip(samples[:, begin:end], rate))
        for begin, end in itertools.pairwise(bounds)
    ]


def _overhead(spec: SpeechSpec, name: str) -> int:
    """Steps of a task's prompt, and after it, that are neither audio nor answer."""
    parts = next(task.all_parts for task in spec.tasks if task.name == name)
    voices = [len(ids) for ids in spec.voices.values()] if "voice" in parts else []
    delayed = spec.layout.max_delay * (1 + parts.count("flush") + parts.count("audio"))
    return len(parts) + max(voices, default=0) + delayed


def join_texts(texts: Sequence[str]) -> str:
    """The text of a clip from those of its parts: a single one as it is, others with one space
    between those that say something. It grows at its end only, as the last part's text does."""
    if len(texts) == 1:
        return texts[0]
    return " ".join(stripped for text in texts if (stripped := text.strip()))
