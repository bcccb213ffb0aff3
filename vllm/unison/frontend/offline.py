# SPDX-License-Identifier: Apache-2.0
"""Upstream's `LLM` with a multi-stream model: its defaults, and methods that cannot serve it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from vllm.platforms import current_platform
from vllm.unison.frontend.conversations import MESSAGES
from vllm.unison.frontend.defaults import DefaultSamplingParams
from vllm.unison.frontend.errors import InvalidRequestError
from vllm.unison.frontend.windows import in_windows
from vllm.unison.model.spec import multistream_spec

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.outputs import RequestOutput

_GENERATE = "use LLM.generate, with {'prompt': text, 'multi_modal_data': {'audio': clip}}"
_REFUSED = {
    "chat": f"the model has no chat template; {_GENERATE}",
    "enqueue_chat": f"the model has no chat template; {_GENERATE}",
    "beam_search": "beams are ranked by logprobs, which multi-stream models do not give; "
    "use LLM.generate with n > 1",
    **dict.fromkeys(
        ("encode", "embed", "classify", "score", "reward"),
        f"multi-stream models generate and do not pool; {_GENERATE}",
    ),
}
"""Methods, and why they are refused."""


def adapt_llm(llm: LLM) -> None:
    """Fit an `LLM` to its multi-stream model; another model's stays as it is.

    Its default parameters are those of each request's task. Methods that cannot serve the model say
    so: upstream's own errors blame something else, or a field that the caller did not give.
    """
    spec = multistream_spec(llm.model_config)
    if spec is None:
        return
    if spec.frames_per_second is not None:
        llm.generate = in_windows(llm)  # type: ignore[method-assign]
    llm.get_default_sampling_params = DefaultSamplingParams  # type: ignore[method-assign]
    for name, why in _REFUSED.items():
        if name == "chat" and spec.conversations:
            llm.chat = functools.partial(_chat, llm)  # type: ignore[method-assign]
        elif hasattr(llm, name):
            setattr(llm, name, functools.partial(_refuse, name, why))
    if current_platform.is_cpu():
        llm.sleep = functools.partial(_pause, llm.sleep)  # type: ignore[method-assign]


def _chat(
    llm: LLM,
    messages: Sequence[Any],
    sampling_params: Any = None,
    use_tqdm: bool = True,
    *,
    task: str | None = None,
    **options: Any,
) -> list[RequestOutput]:
    """`LLM.chat` of a model that goes on with conversations.

    Args:
        llm: the engine.
        messages: a conversation, or a list of them; see PromptBuilder.build.
        sampling_params, use_tqdm: as for `LLM.generate`.
        task: one of the model's conversations; None: its first.
        options: upstream's, none of which has a meaning here.
    """
    if given := sorted(name for name, value in options.items() if value is not None):
        raise InvalidRequestError(
            f"{given[0]} is not supported by LLM.chat for multi-stream models: the model's "
            "conversations are written in one way"
        )
    conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
    named = {} if task is None else {"task": task}
    prompts: Any = [
        {"prompt": "", "mm_processor_kwargs": {MESSAGES: list(conversation), **named}}
        for conversation in conversations
    ]
    return llm.generate(prompts, sampling_params, use_tqdm=use_tqdm)


def _refuse(name: str, why: str, *args: Any, **kwargs: Any) -> NoReturn:
    raise InvalidRequestError(f"LLM.{name} is not supported for multi-stream models: {why}")


def _pause(sleep: Any, level: int = 1, **options: Any) -> Any:
    """`LLM.sleep` where there is no memory to give back, which upstream only warns of."""
    if level != 0:
        raise InvalidRequestError(
            f"level must be 0 (pause) on the CPU, where sleep mode frees no memory, not {level!r}"
        )
    return sleep(level=level, **options)
