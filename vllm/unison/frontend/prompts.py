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
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm.inputs.engine import TokensInput, tokens_input
from vllm.unison.codecs.of_model import codec_of
from vllm.unison.codecs.unit_encoder import frame_encoder_of
from vllm.unison.conditioning.chroma import ChromaExtractor
from vllm.unison.conditioning.mel_features import MelFeatures, num_states
from vllm.unison.frontend.clip_encoder import (
    AudioEncoder,
    ClipEncoder,
    PromptsAhead,
    is_given_as_codes,
)
from vllm.unison.frontend.conversations import (
    MESSAGES,
    has_recording,
    rows_of_content,
    turns_of,
)
from vllm.unison.frontend.errors import blames, reports_invalid_request
from vllm.unison.frontend.tasks import choose_dialogue, choose_task
from vllm.unison.model.conversation import Recording, TurnGrammar
from vllm.unison.model.delay_pattern import interleave
from vllm.unison.model.dialogue import Dialogue, Said
from vllm.unison.model.layout import DelayScope, PhaseKind, StreamLayout
from vllm.unison.model.phases import NO_TOKEN, start_of_generation
from vllm.unison.model.spec import (
    AUDIO_FEATURES,
    ENCODER_TEXT,
    MELODY,
    PREFIX,
    REFERENCE_TEXT,
    SpeechSpec,
    TaskPrompt,
    TextEncoderSpec,
    multistream_spec,
)

_OPTIONS = ("task", "voice", REFERENCE_TEXT, "auxiliary_token_ids")
_GRAMMAR_OPTIONS = ("task", REFERENCE_TEXT, MESSAGES)
"""Of models whose prompts are conversations."""
_CLIPS = ("audio", "voice")
"""What a request may hold that is encoded."""
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


@dataclass(frozen=True)
class Piece:
    """A part of a prompt, as frames.

    Attributes:
        frames: [num_frames, num_streams] ids.
        is_audio: whether they are frames of audio, and not of tokens with pads beside them.
    """

    frames: NDArray[np.int32]
    is_audio: bool = False


def lay_out(layout: StreamLayout, pieces: Sequence[Piece]) -> StreamPrompt:
    """Lay a prompt's pieces, at least one, out in steps.

    Where delays run through the whole sequence, all frames are delayed together. Where they start
    anew in every segment, a piece of audio has steps of its own, in which each stream carries the
    layout's fills before and after its frames; only what generation goes on from stays open: audio
    at the prompt's end, or what follows the token that begins a phase of audio.
    """
    if layout.delay_scope is DelayScope.SEQUENCE:
        return apply_delay_pattern(layout, np.concatenate([piece.frames for piece in pieces]))
    state, _ = start_of_generation(layout, _primary_ids(pieces))
    goes_on = layout.phases[state].kind is PhaseKind.AUDIO
    rows: list[NDArray[np.int32]] = []
    num_closed = num_rows = 0
    for piece in pieces:
        is_closed = piece.is_audio and not (goes_on and piece is pieces[-1])
        rows.append(closed_segment(layout, piece.frames) if is_closed else piece.frames)
        num_rows += len(rows[-1])
        num_closed = num_rows if is_closed else num_closed
    frames = np.concatenate(rows)
    _, start = start_of_generation(layout, frames[:, 0].tolist())
    start = max(start, num_closed) if goes_on else num_rows
    opened = _delayed(layout, frames[start:], layout.lead_in.token_ids)
    steps = np.concatenate([frames[:start], opened])
    return StreamPrompt(frames[:, 0].tolist(), np.ascontiguousarray(steps[:, 1:]))


def _primary_ids(pieces: Sequence[Piece]) -> list[int]:
    return [token for piece in pieces for token in piece.frames[:, 0].tolist()]


def apply_delay_pattern(layout: StreamLayout, frames: NDArray[np.int32]) -> StreamPrompt:
    """Lay a prompt's frames [num_frames, num_streams] out in steps, all together."""
    steps = _delayed(layout, frames, layout.pad_token_ids)
    return StreamPrompt(frames[:, 0].tolist(), np.ascontiguousarray(steps[:, 1:]))


def closed_segment(layout: StreamLayout, frames: NDArray[np.int32]) -> NDArray[np.int32]:
    """A segment of audio [num_frames, num_streams] in steps, up to its last stream's last frame.

    Returns:
        [num_frames + max delay, num_streams] int32 ids; none for no frames.
    """
    steps = _delayed(layout, frames, layout.lead_in.token_ids)
    for stream, delay in enumerate(layout.delays):
        end = len(frames) + delay
        steps[end : end + 1, stream] = layout.end.token_ids[stream]
        steps[end + 1 :, stream] = layout.tail.token_ids[stream]
    return steps


def _delayed(
    layout: StreamLayout, frames: NDArray[np.int32], lead_in: Sequence[int]
) -> NDArray[np.int32]:
    """[num_frames + max delay, num_streams] steps of frames, NO_TOKEN after each stream's last."""
    steps = interleave(frames, layout.delays, lead_in)
    for stream, delay in enumerate(layout.delays):
        steps[len(frames) + delay :, stream] = NO_TOKEN
    return steps


def frames_of_tokens(layout: StreamLayout, token_ids: Sequence[int]) -> NDArray[np.int32]:
    """Frames that carry ids of stream 0 and pads beside them."""
    frames = np.empty((len(token_ids), layout.num_streams), np.int32)
    frames[:] = layout.pad_token_ids
    frames[:, 0] = token_ids
    return frames


def frames_of_codes(layout: StreamLayout, codes: NDArray[np.int32]) -> NDArray[np.int32]:
    """Frames of the codes [num_frames, num_columns] of all streams that have any.

    Raises:
        ValueError: if codes of some streams are missing.
    """
    missing = sorted(set(range(layout.num_streams)) - set(layout.codebook_streams))
    if missing and codes.shape[1] == len(layout.codebook_streams):
        raise ValueError(f"audio: the model's codec gives no ids for streams {missing}")
    frames = np.empty((len(codes), layout.num_streams), np.int32)
    for column, stream in enumerate(layout.coded_streams):
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
        tokenize: ids of a text, without special tokens around it; None: there is no tokenizer.
    """

    def __init__(
        self,
        spec: SpeechSpec,
        max_model_len: int | None = None,
        tokenize: Callable[[str], list[int]] | None = None,
    ) -> None:
        self._spec = spec
        self._max_model_len = max_model_len
        self._tokenize = tokenize
        self.encoder = ClipEncoder(self._load_encoder)

    def _load_encoder(self) -> AudioEncoder:
        spec = self._spec
        if spec.audio_encoder is not None:
            return MelFeatures(spec.audio_encoder, spec.model_path)
        if spec.melody is not None:
            return ChromaExtractor(spec.melody)
        return frame_encoder_of(spec, codec_of)

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
        audio = data.get("audio") if data.get("codes") is None else _Codes(data["codes"])
        voice = None
        if self._spec.grammar is None:
            voice = self._voice(data.get("voice"), options)
        text = prompt.get("prompt")
        task = None
        chroma: bytes | None = None
        heard: _Heard | None = None
        encoder_ids: list[int] | None = None
        if encoder is not None:
            field = "prompt_token_ids" if text is None else "prompt"
            encoder_ids = checked_encoder_ids(encoder, text, prompt["prompt_token_ids"], field)
            self._check_prefix_room(field, len(encoder_ids))
        if self._spec.melody is not None:
            chroma = self._spec.melody.null_chroma if audio is None else self._chroma(audio)
        if self._spec.grammar is not None:
            task, built = self._from_conversation(self._spec.grammar, prompt, options, data)
        elif self._spec.dialogue is not None and options.get(MESSAGES) is not None:
            if text or data or set(options) - {"task", MESSAGES}:
                raise ValueError(f"{MESSAGES} must come without other inputs")
            task, built, heard = self._from_messages(self._spec.dialogue, options)
        elif "auxiliary_token_ids" in options:
            if audio is not None or voice is not None or len(options) > 1:
                raise ValueError("auxiliary_token_ids must come without audio, task and voice")
            built = self._from_steps(prompt["prompt_token_ids"], options["auxiliary_token_ids"])
        elif any(given is not None for given in (text, audio, voice, encoder_ids)) or options:
            task = self._task(prompt, audio, options.get("task"), voice)
            num_prefix = len(chroma or ()) + len(encoder_ids or ())
            ids = prompt["prompt_token_ids"]
            built, heard = self._from_task(task, ids, audio, voice, num_prefix)
        else:
            built = lay_out(
                self._spec.layout, [Piece(self._checked_tokens(prompt["prompt_token_ids"]))]
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
        if heard is not None:
            engine_input["audio_features"] = heard  # type: ignore[typeddict-unknown-key]
        if options.get("duration") is not None:
            engine_input["duration"] = options["duration"]  # type: ignore[typeddict-unknown-key]
        return engine_input

    def _from_conversation(
        self,
        grammar: TurnGrammar,
        prompt: Mapping[str, Any],
        options: Mapping[str, Any],
        data: Mapping[str, Any],
    ) -> tuple[TaskPrompt | None, StreamPrompt]:
        """A conversation, or the text or the token ids of one up to where audio begins."""
        text, messages = prompt.get("prompt"), options.get(MESSAGES)
        voice, transcript = data.get("voice"), options.get(REFERENCE_TEXT)
        if voice is None and transcript is not None:
            raise ValueError(
                f"{REFERENCE_TEXT} must come with what it is the text of: the recording of a "
                "voice, as multi_modal_data['voice']"
            )
        if messages is not None:
            if text or voice is not None:
                raise ValueError(f"{MESSAGES} must come without prompt and voice")
            turns = turns_of(messages)
        elif text is None:
            if voice is not None:
                raise ValueError("voice must come with the text that it speaks, as prompt")
            ids = self._checked_tokens(prompt["prompt_token_ids"])
            rows = rows_of_content(self._spec.layout, [""], lambda _: ids, self._rows_of_recording)
            return None, StreamPrompt(rows[:, 0].tolist(), np.ascontiguousarray(rows[:, 1:]))
        else:
            if not text.strip():
                raise ValueError(f"prompt must hold text, not {text!r}")
            if voice is not None and not (isinstance(transcript, str) and transcript.strip()):
                raise ValueError(
                    f"{REFERENCE_TEXT} must be the text of what is said in the recording of the "
                    f"voice, not {transcript!r}"
                )
            recording = None if voice is None else Recording(voice)
            turns = grammar.speak(text, recording, transcript or "")
        task = self._task(
            {"prompt": None, "prompt_token_ids": [0]}, None, options.get("task"), None
        )
        rows = rows_of_content(
            self._spec.layout, grammar.render(turns), self._rows_of_text, self._rows_of_recording
        )
        return task, StreamPrompt(rows[:, 0].tolist(), np.ascontiguousarray(rows[:, 1:]))

    def _rows_of_text(self, text: str) -> NDArray[np.int32]:
        if self._tokenize is None:
            raise ValueError("prompt as text needs a tokenizer; give prompt_token_ids")
        return frames_of_tokens(self._spec.layout, self._tokenize(text))

    def _rows_of_recording(self, clip: Any) -> NDArray[np.int32]:
        layout = self._spec.layout
        return closed_segment(layout, frames_of_codes(layout, self._encode(clip)))

    def _from_messages(
        self, dialogue: Dialogue, options: Mapping[str, Any]
    ) -> tuple[TaskPrompt, StreamPrompt, _Heard | None]:
        """A conversation, up to where it is answered."""
        turns = turns_of(options[MESSAGES])
        task = choose_dialogue(self._spec, turns, None, options.get("task"))
        pieces: list[Piece] = []
        heard: _Heard | None = None
        for segment in dialogue.lay_out(task.name, turns):
            if not isinstance(segment, Said):
                pieces.append(Piece(frames_of_tokens(self._spec.layout, segment)))
            elif isinstance(segment.content, str):
                pieces.append(Piece(self._frames_of_text(segment.content, segment.where)))
            else:
                with blames(segment.where):
                    piece, heard = self._piece_of_recording(segment, pieces)
                pieces.append(piece)
        return task, lay_out(self._spec.layout, pieces), heard

    def _piece_of_recording(
        self, said: Said, before: Sequence[Piece]
    ) -> tuple[Piece, _Heard | None]:
        """A recording's frames, or the places of what the model's audio encoder hears in it."""
        assert isinstance(said.content, Recording)
        clip = said.content.clip
        if self._spec.audio_encoder is None:
            return Piece(self._frames_of_recording(clip, said.is_voice), is_audio=True), None
        return self._placeholders(clip, before)

    def _frames_of_text(self, text: str, where: str) -> NDArray[np.int32]:
        if self._tokenize is None:
            raise ValueError(f"{MESSAGES} need a tokenizer; give prompt_token_ids")
        ids = self._tokenize(text)
        if not ids:
            raise ValueError(f"{where} must hold text, not {text!r}")
        return frames_of_tokens(self._spec.layout, self._substituted(ids))

    def _frames_of_recording(self, clip: Any, is_voice: bool) -> NDArray[np.int32]:
        """Frames of a clip; of the recording of a voice as many as the model has for it."""
        layout, length = self._spec.layout, self._spec.voice_frames
        frames = frames_of_codes(layout, self._encode(clip))
        if is_voice and length is not None:
            pads = np.tile(np.array(layout.pad_token_ids, np.int32), (length, 1))
            frames = np.concatenate([frames, pads])[:length]
        return frames

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
            return self._checked_codes(data["codes"])
        if data.get("audio") is not None:
            return self.encoder.submit(self._encode, data["audio"]).result()
        return np.empty((0, len(self._spec.layout.coded_streams)), np.int32)

    def _checked_codes(self, value: Any) -> NDArray[np.int32]:
        layout = self._spec.layout
        codes, streams = _array("codes", value), layout.coded_streams
        right_shape = codes.ndim == 2 and len(codes) > 0 and codes.shape[1] == len(streams)
        if not right_shape or not np.issubdtype(codes.dtype, np.integer):
            raise ValueError(
                f"codes must be integers of shape [num_frames, {len(streams)}], "
                f"not {codes.dtype} of shape {list(codes.shape)}"
            )
        for column, stream in enumerate(streams):
            begin, end = layout.slices[stream]
            values = codes[:, column]
            if (wrong := values[(values < 0) | (values >= end - begin)]).size:
                where = "" if streams == layout.codebook_streams else f" of column {column}"
                raise ValueError(f"codes{where} must be in [0, {end - begin}), not {int(wrong[0])}")
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

    def _voice(self, recording: Any, options: Mapping[str, Any]) -> _Voice | None:
        """The voice that a request asks for, if it does."""
        name, text = options.get("voice"), options.get(REFERENCE_TEXT)
        if recording is None:
            if text is not None:
                raise ValueError(
                    f"{REFERENCE_TEXT} must come with what it is the text of: the recording of a "
                    "voice, as multi_modal_data['voice']"
                )
            if name is None:
                return None
            if not (isinstance(name, str) and name in self._spec.voices):
                raise ValueError(f"voice must be one of {sorted(self._spec.voices)}, not {name!r}")
            return _Voice(token_ids=self._spec.voices[name])
        if name is not None:
            raise ValueError("voice must be given once: by its name, or as a recording")
        return _Voice(recording, None if text is None else self._reference_ids(text))

    def _reference_ids(self, text: Any) -> list[int]:
        if isinstance(text, str):
            if self._tokenize is None:
                raise ValueError(f"{REFERENCE_TEXT} as text needs a tokenizer; give token ids")
            ids: Any = self._tokenize(text)
        else:
            ids = text
        is_list = isinstance(ids, Sequence) and not isinstance(ids, (str, bytes))
        if not is_list or not all(isinstance(token, (int, np.integer)) for token in ids):
            raise ValueError(f"{REFERENCE_TEXT} must be a text, or its token ids, not {text!r}")
        if not ids:
            raise ValueError(
                f"{REFERENCE_TEXT} must hold text that the model's tokenizer knows, not {text!r}"
            )
        self._checked_tokens(ids, REFERENCE_TEXT)
        return list(ids)

    def _task(
        self, prompt: Mapping[str, Any], audio: Any, name: Any, voice: _Voice | None
    ) -> TaskPrompt:
        text, token_ids = prompt.get("prompt"), prompt["prompt_token_ids"]
        if text and not token_ids:
            raise ValueError(
                f"prompt must hold text that the model's tokenizer knows, not {text!r}"
            )
        needs_input = all(task.needs for task in self._spec.tasks)
        if audio is None and not token_ids and needs_input:
            raise ValueError("prompt must hold text, or multi_modal_data must hold audio")
        given = ({"text"} if token_ids else set()) | (set() if audio is None else {"audio"})
        if not self._spec.tasks and given == {"text"} and name is None and voice is None:
            return TaskPrompt("", ("text",))
        return choose_task(
            self._spec,
            given,
            None,
            name=name,
            voice=voice is not None,
            recording=voice is not None and voice.recording is not None,
            reference_text=voice is not None and voice.text_ids is not None,
        )

    def _from_task(
        self,
        task: TaskPrompt,
        text_ids: list[int],
        audio: Any,
        voice: _Voice | None,
        num_prefix: int,
    ) -> tuple[StreamPrompt, _Heard | None]:
        """The prompt, and what its placeholders for audio stand for."""
        layout = self._spec.layout
        heard: _Heard | None = None
        if voice is None and self._spec.default_voice is not None:
            voice = _Voice(token_ids=self._spec.voices[self._spec.default_voice])
        given = {"flush"} | ({"text"} if text_ids else set())
        given |= set() if audio is None else {"audio"}
        if voice is not None:
            given |= {"voice"} | (set() if voice.text_ids is None else {REFERENCE_TEXT})
        pieces: list[Piece] = []
        for part in task.laid_with(given):
            if part in (ENCODER_TEXT, MELODY):
                continue
            if part == "text":
                pieces.append(Piece(self._checked_tokens(self._substituted(text_ids))))
            elif part == PREFIX:
                placeholder = layout.pad_token_ids[0]
                pieces.append(Piece(frames_of_tokens(layout, [placeholder] * num_prefix)))
            elif part == AUDIO_FEATURES:
                piece, heard = self._placeholders(audio, pieces)
                pieces.append(piece)
            elif part == "audio":
                pieces.append(Piece(frames_of_codes(layout, self._encode(audio)), is_audio=True))
                self._check_room(len(pieces[-1].frames))
            elif part == "voice":
                if voice is not None:
                    pieces.append(self._piece_of_voice(voice))
            elif part == REFERENCE_TEXT:
                if voice is not None and voice.text_ids is not None:
                    pieces.append(Piece(frames_of_tokens(layout, voice.text_ids)))
                elif voice is not None and voice.recording is not None:
                    raise ValueError(
                        f"{REFERENCE_TEXT} must be given: task {task.name!r} needs what is said in "
                        "the recording"
                    )
            elif part == "flush":
                pads = [layout.pad_token_ids[0]] * layout.max_delay
                pieces.append(Piece(frames_of_tokens(layout, pads)))
            else:
                assert isinstance(part, int)
                pieces.append(Piece(frames_of_tokens(layout, [part])))
        return lay_out(layout, pieces), heard

    def _piece_of_voice(self, voice: _Voice) -> Piece:
        """What stands for a voice in the prompt: its ids, or the frames of its recording."""
        layout = self._spec.layout
        if voice.recording is None:
            return Piece(frames_of_tokens(layout, voice.token_ids))
        with blames("voice"):
            return Piece(self._frames_of_recording(voice.recording, is_voice=True), is_audio=True)

    def _checked_tokens(
        self, token_ids: Sequence[int], field: str = "prompt_token_ids"
    ) -> NDArray[np.int32]:
        layout = self._spec.layout
        ids = np.asarray(token_ids, np.int64)
        wrong = ids[(ids < 0) | (ids >= layout.vocabulary_size)]
        if len(wrong):
            raise ValueError(
                f"{field} must be in [0, {layout.vocabulary_size}), not {int(wrong[0])}"
            )
        return frames_of_tokens(layout, ids.tolist())

    def _encode(self, audio: Any) -> NDArray[np.int32]:
        if isinstance(audio, _Codes):
            return self._checked_codes(audio.codes)
        if is_given_as_codes(audio):
            return self._checked_codes(audio["codes"])
        if not self._spec.has_codec:
            raise ValueError("audio is not accepted: the model has no codec")
        return self.encoder.encode(audio)

    def _placeholders(self, audio: Any, before: Sequence[Piece]) -> tuple[Piece, _Heard]:
        """The places of what the model's audio encoder hears in a clip, and what it gets of it."""
        encoder, layout = self._spec.audio_encoder, self._spec.layout
        assert encoder is not None
        features: NDArray[Any] = self.encoder.encode(audio)
        count = num_states(len(features), encoder.chunk)
        piece = Piece(frames_of_tokens(layout, [layout.pad_token_ids[0]] * count))
        return piece, (features, sum(len(earlier.frames) for earlier in before), count)

    def _substituted(self, text_ids: Sequence[int]) -> list[int]:
        """Ids of a text as prompts have them."""
        return [self._spec.text_substitutes.get(token, token) for token in text_ids]

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


_Heard = tuple[NDArray[Any], int, int]
"""Features of a clip, the prompt's first position for it, and how many they are."""


@dataclass(frozen=True)
class _Codes:
    """Audio that is given as its codes."""

    codes: Any


@dataclass(frozen=True)
class _Voice:
    """The voice of a request.

    Attributes:
        recording: a clip of it.
        text_ids: of what is said in the clip.
        token_ids: of stream 0 that stand for a named voice.
    """

    recording: Any = None
    text_ids: list[int] | None = None
    token_ids: tuple[int, ...] = ()


def _has_audio(prompt: Mapping[str, Any]) -> bool:
    data, options = prompt.get("multi_modal_data"), prompt.get("mm_processor_kwargs")
    if isinstance(options, Mapping) and has_recording(options.get(MESSAGES)):
        return True
    return isinstance(data, Mapping) and any(data.get(name) is not None for name in _CLIPS)


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
