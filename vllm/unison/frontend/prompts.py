# SPDX-License-Identifier: Apache-2.0
"""From a user's prompt to the ids of all streams.

A task prompt of the model's config.json says where text and audio go. Audio is encoded by the
model's codec into frames; text and special tokens are frames whose auxiliary streams are pads. The
frames are laid out by the delay pattern: all together, or each stretch of audio on its own, with
the layout's fills before and after it. What is delayed past the prompt's last step, its *delayed
suffix*, is emitted beside the first generated tokens.

A model with a text encoder has no text in its prompt: the text's ids go to the worker beside it.
One with prefix embeddings has placeholders in its prompt, in whose place the worker puts the states
of a melody and the text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm.inputs.engine import TokensInput, tokens_input
from vllm.unison.frontend.clip_encoder import ClipEncoder, PromptsAhead
from vllm.unison.frontend.conversation_prompts import ConversationPrompts
from vllm.unison.frontend.conversations import MESSAGES, has_recording
from vllm.unison.frontend.errors import reports_invalid_request
from vllm.unison.frontend.prompt_ids import (
    checked_codes,
    checked_encoder_ids,
    checked_tokens,
    prompt_of_steps,
)
from vllm.unison.frontend.prompt_inputs import GivenCodes, Heard, PromptInputs
from vllm.unison.frontend.prompt_layout import Piece, lay_out
from vllm.unison.frontend.task_prompts import TaskPrompts
from vllm.unison.model.spec import REFERENCE_TEXT, SpeechSpec, multistream_spec

_OPTIONS = ("task", "voice", REFERENCE_TEXT, "auxiliary_token_ids")
_GRAMMAR_OPTIONS = ("task", REFERENCE_TEXT, MESSAGES)
"""Of models whose prompts are conversations."""
_CLIPS = ("audio", "voice")
"""What a request may hold that is encoded."""
EXTEND_STRIDE = "extend_stride"
"""Option of a request whose audio is longer than a window; see `windows`."""
_ENCODER_OPTIONS = ("task", "duration", EXTEND_STRIDE)
"""Of models with a text encoder, whose prompt in steps is not for a request to give."""


class PromptBuilder:
    """Builds the prompts of one multi-stream model.

    Args:
        spec: the model's specification.
        max_model_len: steps of the engine's context, by which audio to continue is refused; None:
            admission refuses what is too long.
        tokenize: ids of a text, without special tokens around it; None: there is no tokenizer.

    Attributes:
        inputs: reads what requests give.

    Raises:
        ValueError: naming what the model's text front end lacks.
    """

    def __init__(
        self,
        spec: SpeechSpec,
        max_model_len: int | None = None,
        tokenize: Callable[[str], list[int]] | None = None,
    ) -> None:
        self._spec = spec
        self._max_model_len = max_model_len
        self.inputs = PromptInputs(spec, tokenize)
        self._tasks = TaskPrompts(spec, self.inputs, max_model_len)
        self._conversations = ConversationPrompts(spec, self.inputs)

    @property
    def encoder(self) -> ClipEncoder:
        """Encodes the clips of prompts."""
        return self.inputs.encoder

    def build(self, prompt: Mapping[str, Any]) -> TokensInput:
        """Turn a tokenized prompt of vLLM into an engine input with all its streams.

        Args:
            prompt: `prompt_token_ids`, and if given `prompt` (the text that they were made from),
                `multi_modal_data` with `audio` or `voice` (a recording to speak like), each a clip
                or {"codes": [num_frames, num_columns]}, the codes of all streams that have any,
                `cache_salt`, and `mm_processor_kwargs` with `task` (a task prompt's name), `voice`
                (a voice's name), `reference_text` (what is said in the recording), `messages` (a
                conversation, alone or with `task`, for a model that has dialogues) or
                `auxiliary_token_ids` (all streams given in steps). For a model with a text encoder
                `prompt_token_ids` are ids of the text, the options are `task` and `duration`
                (seconds of new audio), and `multi_modal_data` may hold `codes` [num_frames,
                num_codebooks] in place of audio; for a model that follows melodies, audio is one.

        Returns:
            An engine input with the extra keys `auxiliary_token_ids`, `task` if the prompt is one
            of a task, `encoder_token_ids` for a model with a text encoder, `chroma` (see
            PrefixInput) for one that follows melodies, `audio_features` (the arguments of an
            AudioInput) for one that hears audio with an encoder, and `duration` as given.

        Raises:
            ValueError: naming the field and what is accepted.
        """
        if _has_audio(prompt):
            return self.encoder.submit(self._build, prompt).result()
        return self._build(prompt)

    async def build_async(self, prompt: Mapping[str, Any]) -> TokensInput:
        """`build` beside the event loop; given up with the task that waits for it."""
        if _has_audio(prompt):
            return await asyncio.wrap_future(self.encoder.submit(self._build, prompt))
        return await asyncio.to_thread(self._build, prompt)

    @reports_invalid_request
    def _build(self, prompt: Mapping[str, Any]) -> TokensInput:
        encoder = self._spec.text_encoder
        prompt = self.inputs.as_read(prompt)
        options = prompt.get("mm_processor_kwargs") or {}
        known = _OPTIONS if encoder is None else _ENCODER_OPTIONS
        if self._spec.grammar is not None:
            known = _GRAMMAR_OPTIONS
        elif self._spec.dialogue is not None:
            known = (*known, MESSAGES)
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ValueError(f"mm_processor_kwargs must hold only {list(known)}, not {unknown}")
        if prompt.get("prompt_embeds") is not None:
            raise ValueError(
                "prompt_embeds is not supported for multi-stream models; give prompt (text), "
                "prompt_token_ids or multi_modal_data with audio"
            )
        if options.get(EXTEND_STRIDE) is not None:
            raise ValueError(
                f"{EXTEND_STRIDE} takes several requests: LLM.generate and the server make them"
            )
        data = prompt.get("multi_modal_data") or {}
        self._check_data(data)
        audio = data.get("audio") if data.get("codes") is None else GivenCodes(data["codes"])
        voice = None
        if self._spec.grammar is None:
            voice = self._tasks.voice(data.get("voice"), options)
        text = prompt.get("prompt")
        task = None
        chroma: bytes | None = None
        heard: Heard | None = None
        encoder_ids: list[int] | None = None
        if encoder is not None:
            field = "prompt_token_ids" if text is None else "prompt"
            encoder_ids = checked_encoder_ids(encoder, text, prompt["prompt_token_ids"], field)
            self._check_prefix_room(field, len(encoder_ids))
        if self._spec.melody is not None:
            chroma = self._spec.melody.null_chroma if audio is None else self.inputs.chroma(audio)
        if self._spec.grammar is not None:
            task, built = self._conversations.from_grammar(
                self._spec.grammar, prompt, options, data
            )
        elif self._spec.dialogue is not None and options.get(MESSAGES) is not None:
            if text or data or set(options) - {"task", MESSAGES}:
                raise ValueError(f"{MESSAGES} must come without other inputs")
            task, built, heard = self._conversations.from_dialogue(self._spec.dialogue, options)
        elif "auxiliary_token_ids" in options:
            if audio is not None or voice is not None or len(options) > 1:
                raise ValueError("auxiliary_token_ids must come without audio, task and voice")
            built = prompt_of_steps(
                self._spec.layout, prompt["prompt_token_ids"], options["auxiliary_token_ids"]
            )
        elif any(given is not None for given in (text, audio, voice, encoder_ids)) or options:
            task = self._tasks.choose(prompt, audio, options.get("task"), voice)
            num_prefix = len(chroma or ()) + len(encoder_ids or ())
            ids = prompt["prompt_token_ids"]
            built, heard = self._tasks.lay_out(task, ids, audio, voice, num_prefix)
        else:
            frames = checked_tokens(self._spec.layout, prompt["prompt_token_ids"])
            built = lay_out(self._spec.layout, [Piece(frames)])
        engine_input = tokens_input(built.token_ids)
        for key in ("prompt", "cache_salt"):
            if prompt.get(key):
                engine_input[key] = prompt[key]
        engine_input["auxiliary_token_ids"] = built.auxiliary_ids  # type: ignore[typeddict-unknown-key]
        if task is not None:
            engine_input["task"] = task.name  # type: ignore[typeddict-unknown-key]
        if encoder_ids is not None:
            engine_input["encoder_token_ids"] = encoder_ids  # type: ignore[typeddict-unknown-key]
        if chroma is not None:
            engine_input["chroma"] = chroma  # type: ignore[typeddict-unknown-key]
        if heard is not None:
            engine_input["audio_features"] = heard  # type: ignore[typeddict-unknown-key]
        if options.get("duration") is not None:
            engine_input["duration"] = options["duration"]  # type: ignore[typeddict-unknown-key]
        return engine_input

    def _check_data(self, data: Mapping[str, Any]) -> None:
        known: tuple[str, ...]
        if self._spec.text_encoder is None:
            known = ("audio", "voice")
        else:
            known = ("audio", "codes") if self._spec.melody is None else ("audio",)
        if unknown := sorted(set(data) - set(known)):
            words = " or ".join(map(repr, known))
            raise ValueError(f"multi_modal_data must hold only {words}, not {unknown}")
        if data.get("audio") is not None and data.get("codes") is not None:
            raise ValueError("multi_modal_data must not hold both audio and codes")

    def codes_of(self, data: Mapping[str, Any]) -> NDArray[np.int32]:
        """The codes [num_frames, num_codebooks] of a prompt's audio; no frames if it has none.

        Args:
            data: `multi_modal_data`.

        Raises:
            ValueError: naming the field.
        """
        self._check_data(data)
        if data.get("codes") is not None:
            return checked_codes(self._spec.layout, data["codes"])
        if data.get("audio") is not None:
            return self.encoder.submit(self.inputs.encode, data["audio"]).result()
        return np.empty((0, len(self._spec.layout.coded_streams)), np.int32)

    def _check_prefix_room(self, field: str, num_ids: int) -> None:
        """Refuse a text that leaves no room for a frame after the prefix."""
        melody, context = self._spec.melody, self._max_model_len
        if melody is None or context is None:
            return
        # The start column, a frame, and the steps of the delayed streams.
        longest = context - melody.num_positions - 2 - self._spec.layout.num_flush_steps
        if num_ids > longest:
            raise ValueError(
                f"{field} must have at most {longest} tokens, so that max_model_len = {context} "
                f"has room for a frame and the melody's {melody.num_positions} positions too, "
                f"not {num_ids}"
            )


def _has_audio(prompt: Mapping[str, Any]) -> bool:
    data, options = prompt.get("multi_modal_data"), prompt.get("mm_processor_kwargs")
    if isinstance(options, Mapping) and has_recording(options.get(MESSAGES)):
        return True
    return isinstance(data, Mapping) and any(data.get(name) is not None for name in _CLIPS)


def stream_prompt_builder(renderer: Any) -> PromptBuilder | None:
    """The prompt builder of a renderer's model, made once; None for single-stream models."""
    if not hasattr(renderer, "_stream_prompt_builder"):
        spec = multistream_spec(renderer.model_config)
        if spec is None:
            renderer._stream_prompt_builder = None
        else:
            max_model_len = getattr(renderer.model_config, "max_model_len", None)
            tokenizer = getattr(renderer, "tokenizer", None)
            tokenize = None if tokenizer is None else partial(_ids_of, tokenizer)
            renderer._stream_prompt_builder = PromptBuilder(spec, max_model_len, tokenize)
    builder: PromptBuilder | None = renderer._stream_prompt_builder
    return builder


def _ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def encode_ahead(renderer: Any, prompts: Sequence[Any]) -> Sequence[Any]:
    """The prompts; those of a multi-stream model have their audio encoded while they are read."""
    builder = stream_prompt_builder(renderer)
    return prompts if builder is None else PromptsAhead(prompts, builder.encoder)
