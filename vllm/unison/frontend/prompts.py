# SPDX-License-Identifier: Apache-2.0
"""From a user's prompt to the ids of all streams.

A task prompt of the model's config.json says where text and audio go. Audio is encoded by the
model's codec into frames; text and special tokens are frames whose auxiliary streams are pads. All
frames together are laid out by the delay pattern. What is delayed past the prompt's last step, its
*delayed suffix*, is emitted beside the first generated tokens.

A model with a text encoder has no text in its prompt: the text's ids go to the worker beside it.
One with prefix embeddings has placeholders in its prompt, in whose place the worker puts the states
of a melody and the text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm.inputs.engine import TokensInput, tokens_input
from vllm.unison.codecs.of_model import codec_of
from vllm.unison.conditioning.chroma import ChromaExtractor
from vllm.unison.frontend.clip_encoder import AudioEncoder, ClipEncoder, PromptsAhead
from vllm.unison.frontend.errors import reports_invalid_request
from vllm.unison.frontend.tasks import choose_task
from vllm.unison.model.delay_pattern import interleave
from vllm.unison.model.layout import DelayScope, StreamLayout
from vllm.unison.model.phases import NO_TOKEN
from vllm.unison.model.spec import (
    ENCODER_TEXT,
    MELODY,
    PREFIX,
    SpeechSpec,
    TaskPrompt,
    TextEncoderSpec,
    multistream_spec,
)

_OPTIONS = ("task", "voice", "auxiliary_token_ids")
EXTEND_STRIDE = "extend_stride"
"""Option of a request whose audio is longer than a window; see `windows`."""
_ENCODER_OPTIONS = ("task", "duration", EXTEND_STRIDE)
"""Of models with a text encoder, whose prompt in steps is not for a request to give."""


@dataclass(frozen=True)
class StreamPrompt:
    """A prompt in steps.

    Attributes:
        token_ids: [num_prompt_tokens] ids of stream 0.
        auxiliary_ids: [num_prompt_tokens + max delay, num_streams - 1] int32 ids of the other
            streams; rows past the prompt are its suffix, with -1 in free cells.
    """

    token_ids: list[int]
    auxiliary_ids: NDArray[np.int32]


def apply_delay_pattern(layout: StreamLayout, frames: NDArray[np.int32]) -> StreamPrompt:
    """Lay a prompt's frames [num_frames, num_streams] out in steps."""
    count = len(frames)
    steps = interleave(frames, layout.delays, layout.pad_token_ids)
    for stream, delay in enumerate(layout.delays):
        steps[count + delay :, stream] = NO_TOKEN
    return StreamPrompt(
        frames[:, 0].tolist(), np.ascontiguousarray(steps[: count + layout.max_delay, 1:])
    )


def frames_of_tokens(layout: StreamLayout, token_ids: Sequence[int]) -> NDArray[np.int32]:
    """Frames that carry ids of stream 0 and pads beside them."""
    frames = np.empty((len(token_ids), layout.num_streams), np.int32)
    frames[:] = layout.pad_token_ids
    frames[:, 0] = token_ids
    return frames


def frames_of_codes(layout: StreamLayout, codes: NDArray[np.int32]) -> NDArray[np.int32]:
    """Frames of codec codes [num_frames, num_codebooks].

    Raises:
        ValueError: if the codec does not cover all streams, so that frames would lack ids.
    """
    missing = sorted(set(range(layout.num_streams)) - set(layout.codebook_streams))
    if missing:
        raise ValueError(f"audio: the model's codec gives no ids for streams {missing}")
    frames = np.empty((len(codes), layout.num_streams), np.int32)
    for column, stream in enumerate(layout.codebook_streams):
        frames[:, stream] = codes[:, column] + layout.slices[stream][0]
    return frames


def checked_encoder_ids(
    encoder: TextEncoderSpec, text: str | None, ids: Sequence[int], field: str
) -> list[int]:
    """A text's ids for the model's text encoder, the tokenizer's end token included.

    Args:
        encoder: what it takes.
        text: that the ids were made from, if they were not given themselves.
        ids: of the text.
        field: of the request, for errors.

    Raises:
        ValueError: naming the field.
    """
    if text is not None and not text.strip():
        raise ValueError(f"{field} must hold text, not {text!r}")
    if not ids:
        raise ValueError(f"{field} must have at least one token")
    for token in ids:
        is_integer = isinstance(token, (int, np.integer)) and not isinstance(token, bool)
        if not is_integer or not 0 <= token < encoder.vocabulary_size:
            raise ValueError(
                f"{field}: token ids of the text must be in [0, {encoder.vocabulary_size}), "
                f"not {token!r}"
            )
    if len(ids) > encoder.max_ids:
        raise ValueError(
            f"{field} must have at most {encoder.max_ids} tokens, the end token included, "
            f"not {len(ids)}"
        )
    return [int(token) for token in ids]


class PromptBuilder:
    """Builds the prompts of one multi-stream model.

    Args:
        spec: the model's specification.
        max_model_len: steps of the engine's context, by which audio to continue is refused; None:
            admission refuses what is too long.
    """

    def __init__(self, spec: SpeechSpec, max_model_len: int | None = None) -> None:
        self._spec = spec
        self._max_model_len = max_model_len
        self.encoder = ClipEncoder(self._load_encoder)

    def _load_encoder(self) -> AudioEncoder:
        melody = self._spec.melody
        return codec_of(self._spec, "cpu") if melody is None else ChromaExtractor(melody)

    def build(self, prompt: Mapping[str, Any]) -> TokensInput:
        """Turn a tokenized prompt of vLLM into an engine input with all its streams.

        Args:
            prompt: `prompt_token_ids`, and if given `prompt` (the text that they were made from),
                `multi_modal_data` with `audio`, `cache_salt`, and `mm_processor_kwargs` with `task`
                (a task prompt's name), `voice` (a voice's name) or `auxiliary_token_ids` (all
                streams given in steps). For a model with a text encoder `prompt_token_ids` are ids
                of the text, the options are `task` and `duration` (seconds of new audio), and
                `multi_modal_data` may hold `codes` [num_frames, num_codebooks] in place of audio;
                for a model that follows melodies, audio is one.

        Returns:
            An engine input with the extra keys `auxiliary_token_ids`, `task` if the prompt is one
            of a task, `encoder_token_ids` for a model with a text encoder, `chroma` (see
            PrefixInput) for one that follows melodies, and `duration` as given.

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
        options = prompt.get("mm_processor_kwargs") or {}
        known = _OPTIONS if encoder is None else _ENCODER_OPTIONS
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
        audio = data.get("audio") if data.get("codes") is None else _Codes(data["codes"])
        text = prompt.get("prompt")
        task = None
        chroma: bytes | None = None
        encoder_ids: list[int] | None = None
        if encoder is not None:
            field = "prompt_token_ids" if text is None else "prompt"
            encoder_ids = checked_encoder_ids(encoder, text, prompt["prompt_token_ids"], field)
            self._check_prefix_room(field, len(encoder_ids))
        if self._spec.melody is not None:
            chroma = self._spec.melody.null_chroma if audio is None else self._chroma(audio)
        if "auxiliary_token_ids" in options:
            if audio is not None or len(options) > 1:
                raise ValueError("auxiliary_token_ids must come without audio, task and voice")
            built = self._from_steps(prompt["prompt_token_ids"], options["auxiliary_token_ids"])
        elif text is not None or audio is not None or options or encoder_ids is not None:
            task = self._task(prompt, audio, options.get("task"), options.get("voice"))
            num_prefix = len(chroma or ()) + len(encoder_ids or ())
            built = self._from_task(
                task, prompt["prompt_token_ids"], audio, options.get("voice"), num_prefix
            )
        else:
            built = apply_delay_pattern(
                self._spec.layout, self._checked_tokens(prompt["prompt_token_ids"])
            )
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
        if options.get("duration") is not None:
            engine_input["duration"] = options["duration"]  # type: ignore[typeddict-unknown-key]
        return engine_input

    def _check_data(self, data: Mapping[str, Any]) -> None:
        continues = self._spec.text_encoder is not None and self._spec.melody is None
        known = ("audio", "codes") if continues else ("audio",)
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
            return self._checked_codes(data["codes"])
        if data.get("audio") is not None:
            return self.encoder.submit(self._encode, data["audio"]).result()
        return np.empty((0, len(self._spec.layout.codebook_streams)), np.int32)

    def _checked_codes(self, value: Any) -> NDArray[np.int32]:
        layout = self._spec.layout
        codes, books = _array("codes", value), len(layout.codebook_streams)
        size = layout.slices[layout.codebook_streams[0]]
        num_codes = size[1] - size[0]
        right_shape = codes.ndim == 2 and len(codes) > 0 and codes.shape[1] == books
        if not right_shape or not np.issubdtype(codes.dtype, np.integer):
            raise ValueError(
                f"codes must be integers of shape [num_frames, {books}], "
                f"not {codes.dtype} of shape {list(codes.shape)}"
            )
        if (wrong := codes[(codes < 0) | (codes >= num_codes)]).size:
            raise ValueError(f"codes must be in [0, {num_codes}), not {int(wrong[0])}")
        return codes.astype(np.int32)

    def _from_steps(self, token_ids: list[int], auxiliary: Any) -> StreamPrompt:
        layout = self._spec.layout
        ids = _array("auxiliary_token_ids", auxiliary)
        lengths = range(len(token_ids), len(token_ids) + layout.max_delay + 1)
        right_shape = ids.ndim == 2 and ids.shape[1] == layout.num_streams - 1
        if not right_shape or len(ids) not in lengths or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                f"auxiliary_token_ids must be integers of shape [n, {layout.num_streams - 1}] with "
                f"n in [{lengths[0]}, {lengths[-1]}], not {ids.dtype} of shape {list(ids.shape)}"
            )
        for column, stream in enumerate(range(1, layout.num_streams)):
            begin, end = layout.slices[stream]
            values = ids[:, column]
            known = ((values >= begin) & (values < end)) | (values == layout.pad_token_ids[stream])
            known[len(token_ids) :] |= values[len(token_ids) :] == NO_TOKEN
            if not known.all():
                wrong = int(values[~known][0])
                raise ValueError(
                    f"auxiliary_token_ids of stream {stream} must be in [{begin}, {end}) or the "
                    f"pad {layout.pad_token_ids[stream]} (past the prompt also {NO_TOKEN}, free), "
                    f"not {wrong}"
                )
        self._checked_tokens(token_ids)
        return StreamPrompt(list(token_ids), ids.astype(np.int32))

    def _task(self, prompt: Mapping[str, Any], audio: Any, name: Any, voice: Any) -> TaskPrompt:
        text, token_ids = prompt.get("prompt"), prompt["prompt_token_ids"]
        if text and not token_ids:
            raise ValueError(
                f"prompt must hold text that the model's tokenizer knows, not {text!r}"
            )
        needs_input = all(task.needs for task in self._spec.tasks)
        if audio is None and not token_ids and needs_input:
            raise ValueError("prompt must hold text, or multi_modal_data must hold audio")
        given = ({"text"} if token_ids else set()) | (set() if audio is None else {"audio"})
        if voice is not None and not (isinstance(voice, str) and voice in self._spec.voices):
            raise ValueError(f"voice must be one of {sorted(self._spec.voices)}, not {voice!r}")
        if not self._spec.tasks and given == {"text"} and name is None and voice is None:
            return TaskPrompt("", ("text",))
        return choose_task(self._spec, given, None, name=name, voice=voice is not None)

    def _from_task(
        self,
        task: TaskPrompt,
        text_ids: list[int],
        audio: Any,
        voice: Any,
        num_prefix: int,
    ) -> StreamPrompt:
        layout = self._spec.layout
        pieces: list[NDArray[np.int32]] = []
        for part in task.parts:
            if part == "text":
                pieces.append(self._checked_tokens(text_ids))
            elif part in (ENCODER_TEXT, MELODY):
                continue
            elif part == PREFIX:
                placeholder = layout.pad_token_ids[0]
                pieces.append(frames_of_tokens(layout, [placeholder] * num_prefix))
            elif part == "audio":
                pieces.append(frames_of_codes(layout, self._encode(audio)))
                self._check_room(len(pieces[-1]))
                if layout.delay_scope is DelayScope.SEGMENT:
                    pieces.append(self._pads())
            elif part == "voice":
                chosen = self._spec.default_voice if voice is None else voice
                if chosen is not None:
                    pieces.append(frames_of_tokens(layout, self._spec.voices[chosen]))
            elif part == "flush":
                pieces.append(self._pads())
            else:
                assert isinstance(part, int)
                pieces.append(frames_of_tokens(layout, [part]))
        return apply_delay_pattern(layout, np.concatenate(pieces))

    def _pads(self) -> NDArray[np.int32]:
        layout = self._spec.layout
        return frames_of_tokens(layout, [layout.pad_token_ids[0]] * layout.max_delay)

    def _checked_tokens(self, token_ids: list[int]) -> NDArray[np.int32]:
        layout = self._spec.layout
        ids = np.asarray(token_ids, np.int64)
        wrong = ids[(ids < 0) | (ids >= layout.vocabulary_size)]
        if len(wrong):
            raise ValueError(
                f"prompt_token_ids must be in [0, {layout.vocabulary_size}), not {int(wrong[0])}"
            )
        return frames_of_tokens(layout, ids.tolist())

    def _encode(self, audio: Any) -> NDArray[np.int32]:
        if isinstance(audio, _Codes):
            return self._checked_codes(audio.codes)
        if not self._spec.has_codec:
            raise ValueError("audio is not accepted: the model has no codec")
        return self.encoder.encode(audio)

    def _chroma(self, audio: Any) -> bytes:
        """The bins of a clip's melody, which is repeated or cut to the positions that it has."""
        assert self._spec.melody is not None
        bins = self.encoder.encode(audio)[:, 0].astype(np.uint8)
        return np.resize(bins, self._spec.melody.num_positions).tobytes()

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

    def _check_room(self, num_frames: int) -> None:
        """Refuse audio to continue that leaves no room for a new frame."""
        rate, context = self._spec.frames_per_second, self._max_model_len
        if rate is None or context is None:
            return
        # The start column, a new frame, and the steps of the delayed streams.
        longest = context - 2 - self._spec.layout.num_flush_steps
        if num_frames > longest:
            raise ValueError(
                f"audio must have at most {longest} frames ({float(longest / rate):g} s), so that "
                f"max_model_len = {context} has room for a new one, not {num_frames} frames"
            )


@dataclass(frozen=True)
class _Codes:
    """Audio that is given as its codes."""

    codes: Any


def _has_audio(prompt: Mapping[str, Any]) -> bool:
    data = prompt.get("multi_modal_data")
    return isinstance(data, Mapping) and data.get("audio") is not None


def _array(name: str, value: Any) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be an array, all rows of one length") from error


def stream_prompt_builder(renderer: Any) -> PromptBuilder | None:
    """The prompt builder of a renderer's model, made once; None for single-stream models."""
    if not hasattr(renderer, "_stream_prompt_builder"):
        spec = multistream_spec(renderer.model_config)
        if spec is None:
            renderer._stream_prompt_builder = None
        else:
            max_model_len = getattr(renderer.model_config, "max_model_len", None)
            renderer._stream_prompt_builder = PromptBuilder(spec, max_model_len)
    builder: PromptBuilder | None = renderer._stream_prompt_builder
    return builder


def encode_ahead(renderer: Any, prompts: Sequence[Any]) -> Sequence[Any]:
    """The prompts; those of a multi-stream model have their audio encoded while they are read."""
    builder = stream_prompt_builder(renderer)
    return prompts if builder is None else PromptsAhead(prompts, builder.encoder)
