# SPDX-License-Identifier: Apache-2.0
"""Fields of OpenAI's and vLLM's interfaces that these models have nothing for.

Clients send them at the value that changes nothing, and are served as if they had not; at any other
value they are refused by name. The table holds for all routes, JSON and forms; a field that a route
has itself is that route's own matter. null, and in forms an empty text, is always neutral.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    # Sampling.
    "best_of": (1,),
    "frequency_penalty": (0,),
    "ignore_eos": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "min_p": (0,),
    "min_tokens": (0,),
    "n": (1,),
    "num_beams": (1,),
    "presence_penalty": (0,),
    "prompt_logprobs": (False,),
    "repetition_penalty": (1,),
    "top_logprobs": (0,),
    "use_beam_search": (False,),
    "watermarking": (False,),
    # Ends and bounds of the text.
    "allowed_token_ids": (),
    "bad_words": ([],),
    "include_stop_str_in_output": (False,),
    "logprob_token_ids": ([],),
    "repetition_detection": (),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop": ([], ""),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "thinking_token_budget": (),
    "truncate_prompt_tokens": (),
    "truncation_side": ("left", "right"),
    # Conversations and tools.
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "chat_template": ("",),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include_reasoning": (True, False),
    "instructions": ("",),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "prompt": ("",),
    "reasoning_effort": ("none",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
    # Speech and transcription.
    "chunking_strategy": ("auto", {"type": "server_vad"}),
    "chunking_strategy[type]": ("server_vad",),
    "hotwords": ("",),
    "initial_codec_chunk_frames": (),
    "include": ([],),
    "include[]": ([],),
    "keywords": ([],),
    "keywords[]": ([],),
    "known_speaker_names": ([],),
    "known_speaker_names[]": ([],),
    "known_speaker_references": ([],),
    "known_speaker_references[]": ([],),
    "language": (),
    "languages": ([],),
    "languages[]": ([],),
    "max_new_tokens": (),
    "modalities": (),
    "non_streaming_mode": (),
    "speaker_embedding": (),
    "speed": (1,),
    "stream": (False,),
    "stream_continuous_usage_stats": (False,),
    "stream_format": ("audio",),
    "stream_include_usage": (True, False),
    "stream_options": ({},),
    "task_type": (),
    "timestamp_granularities": ([], ["segment"], "segment"),
    "timestamp_granularities[]": ([], ["segment"], "segment"),
    "to_language": ("",),
    "voice": (),
    "word_timestamps": (False,),
    "x_vector_only_mode": (False,),
    # The service.
    "background": (False,),
    "cache_salt": ("",),
    "ec_transfer_params": ({},),
    "extra_body": ({},),
    "kv_transfer_params": ({},),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "moderation": (),
    "priority": (0,),
    "prompt_cache_options": ({},),
    "prompt_cache_retention": ("in_memory",),
    "response_format": ({"type": "text"},),
    "return_prompt_text": (False,),
    "return_token_ids": (False,),
    "return_token_offsets": (False,),
    "return_tokens_as_token_ids": (False,),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "vllm_xargs": ({},),
}
"""By field, the values that change nothing."""

LABELS = ("metadata", "prompt_cache_key", "safety_identifier", "user")
"""Fields by which clients mark their requests; whatever they hold changes no answer."""
_MAX_LABEL = 4096
"""Characters of a label, as JSON."""


def is_known(name: str) -> bool:
    """Whether the table has a field."""
    return name in NEUTRAL or name in LABELS


def is_neutral(name: str, value: Any) -> bool:
    """Whether the value of a field of the table changes nothing."""
    if value is None:
        return True
    if name in LABELS:
        return isinstance(value, (str, dict)) and len(json.dumps(value)) <= _MAX_LABEL
    return any(_equal(value, neutral) for neutral in NEUTRAL[name])


def accepted(name: str) -> str:
    """What may stand in a field of the table, for an error."""
    if name in LABELS:
        return f"text or an object of at most {_MAX_LABEL} characters"
    values = [json.dumps(value) for value in NEUTRAL[name]]
    return " or ".join([*values, "null"])


def _equal(value: Any, neutral: Any) -> bool:
    # 0 == False in Python, but not in JSON.
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral


def of_form(name: str, value: Any) -> Any:
    """The value that the text in a form's field stands for: that of JSON, where it is some."""
    if isinstance(value, list):
        return [of_form(name, item) for item in value]
    if not isinstance(value, str) or name in LABELS:
        return value
    lowered = value.strip().lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
