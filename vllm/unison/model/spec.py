# SPDX-License-Identifier: Apache-2.0
"""A multi-stream model's specification: everything in its config.json but the backbone.

One object per model configuration, shared by the front end, the scheduler and the worker of a
process.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vllm.unison.model.dialogue import Dialogue
from vllm.unison.model.layout import LayoutError, StreamLayout, _list, _refuse_unknown
from vllm.unison.model.phases import PhaseTable

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.unison.model.conversation import Turn, TurnGrammar

REFERENCE_TEXT = "reference_text"
"""The part of a task prompt that takes the transcript of the voice's recording."""

PROMPT_PARTS = ("text", "audio", "voice", REFERENCE_TEXT, "flush")
"""What a task prompt may hold besides token ids; "flush" is max(delays) pads."""

_INPUT_PARTS = ("text", "audio", "voice", REFERENCE_TEXT)
"""Those of them that a request gives, each at most once in a task prompt."""

ENCODER_TEXT = "encoder_text"
"""The part of a task prompt that takes the request's text and lays nothing into the prompt: the
model's text encoder gets it."""

PREFIX = "prefix"
"""The part of a task prompt that takes the positions of prefix embeddings, with placeholders."""

MELODY = "melody"
"""The part of a task prompt that takes the request's audio and lays nothing into the prompt: the
prefix has its melody."""

AUDIO_FEATURES = "audio_features"
"""The part of a task prompt that takes the positions of what the model's audio encoder hears in the
request's audio, with placeholders."""

PADS, SAME_PROMPT = "pads", "same"
"""Null prompts that follow the conditional lane: as many pads as it has steps before guidance, or
its own tokens."""

GENERATION_DEFAULTS = (
    "temperature",
    "top_k",
    "top_p",
    "max_tokens",
    "guidance_scale",
    "stream_temperature",
    "stream_top_k",
    "stream_top_p",
    "ras_win_len",
    "ras_win_max_num_repeat",
)
"""SamplingParams fields for which a task may have defaults of its own."""


Part = int | str
"""A token id of stream 0, or the name of what a request gives."""


@dataclass(frozen=True)
class TaskPrompt:
    """How a request's inputs are laid into a prompt.

    Attributes:
        name: the task's name, as requests give it.
        parts: token ids of stream 0, and names of PROMPT_PARTS. A tuple among them is an optional
            section, laid only if the request gives the part that it names.
        phase: name of the phase that generation starts in; None: that of the prompt's last begin
            token.
        is_chosen: whether requests that name no task may get it.
    """

    name: str
    parts: tuple[Part | tuple[Part, ...], ...]
    phase: str | None = None
    is_chosen: bool = True

    @property
    def all_parts(self) -> tuple[Part, ...]:
        """The parts in their order, those of optional sections among them."""
        found: list[Part] = []
        for part in self.parts:
            found += part if isinstance(part, tuple) else (part,)
        return tuple(found)

    @property
    def needs(self) -> frozenset[str]:
        """The inputs that a request must give: any of "text" and "audio"."""
        return _inputs_of(self.parts)

    @property
    def takes(self) -> frozenset[str]:
        """The inputs that a request may give: those that it must, and those of the sections."""
        return _inputs_of(self.all_parts)

    @property
    def takes_voice(self) -> bool:
        """Whether the prompt has a place for a voice."""
        return "voice" in self.all_parts

    @property
    def takes_reference_text(self) -> bool:
        """Whether the prompt has a place for the transcript of the voice's recording."""
        return REFERENCE_TEXT in self.all_parts

    def laid_with(self, given: Collection[str]) -> tuple[Part, ...]:
        """The parts of a prompt, optional sections opened or left out.

        Args:
            given: names of PROMPT_PARTS that the request gives.
        """
        found: list[Part] = []
        for part in self.parts:
            if not isinstance(part, tuple):
                found.append(part)
            elif any(name in given for name in part if isinstance(name, str)):
                found += part
        return tuple(found)


def _inputs_of(parts: Iterable[Any]) -> frozenset[str]:
    inputs = {ENCODER_TEXT: "text", MELODY: "audio", AUDIO_FEATURES: "audio"}
    names = (inputs.get(part, part) for part in parts if isinstance(part, str))
    return frozenset(name for name in names if name in ("text", "audio"))


@dataclass(frozen=True)
class CodecSource:
    """Where a model's codec is.

    Attributes:
        name_or_path: a hub id, or a folder (relative folders lie in the model's own folder).
        revision: of a hub id.
        part: where the codec lies inside of a checkpoint with other things: the key of its
            configuration in config.json, and, with a dot, the prefix of its tensors' names.
        num_channels: of the audio, each coded by the codec on its own; their codes take turns in
            the streams.
        config_key: of a part whose configuration has another key than its tensors' prefix.
        default_config: JSON text of a part's configuration, for config.json without that key.
    """

    name_or_path: str
    revision: str | None = None
    part: str | None = None
    num_channels: int = 1
    config_key: str | None = None
    default_config: str | None = None


@dataclass(frozen=True)
class TextEncoderSpec:
    """The encoder of a model that has a text's states instead of its ids.

    Attributes:
        max_ids: ids that a text may have, its end token included.
        vocabulary_size: number of ids that the encoder embeds.
    """

    max_ids: int
    vocabulary_size: int

    def __post_init__(self) -> None:
        for name in ("max_ids", "vocabulary_size"):
            if getattr(self, name) < 1:
                raise LayoutError(
                    f"text_encoder.{name} must be at least 1, not {getattr(self, name)}"
                )


@dataclass(frozen=True)
class MelodySpec:
    """The melody in the prefix of a model's prompts: a chromagram, of which each frame has one bin.

    Attributes:
        num_bins: pitch classes that are told apart.
        num_positions: frames in the prefix, whatever the length of the clip.
        sample_rate: in Hz, of the clip that the chromagram is computed of.
        window: samples of a frame's Fourier transform.
        hop: samples from frame to frame.
        max_seconds: of a clip that are heard.
    """

    num_bins: int
    num_positions: int
    sample_rate: int = 32000
    window: int = 16384
    hop: int = 4096
    max_seconds: int = 30

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or value < 1:
                raise LayoutError(f"melody.{name} must be an integer of at least 1, not {value!r}")
        if self.num_bins > 256:
            raise LayoutError(f"melody.num_bins must be at most 256, not {self.num_bins}")

    @property
    def null_chroma(self) -> bytes:
        """The bins of no melody: the first one, in all positions."""
        return bytes(self.num_positions)


@dataclass(frozen=True)
class AudioEncoderSpec:
    """The encoder of a model whose prompts hold what it hears in the request's audio.

    Attributes:
        sample_rate: in Hz, of the clips that it hears.
        hop: samples from frame to frame of its features.
        chunk: frames that become states together.
    """

    sample_rate: int
    hop: int
    chunk: int


TEXT_FRONTENDS = ("en",)
"""Languages whose figures and abbreviations can be written out."""


@dataclass(frozen=True)
class TextFrontendSpec:
    """What the texts of requests become before they are tokens.

    Attributes:
        language: in which figures, dates, money and abbreviations are written out as words.
        lexicon: file of how words are said, see `frontend.lexicon`; a relative one lies in the
            model's folder. None: words keep their letters.
    """

    language: str
    lexicon: str | None = None


@dataclass(frozen=True)
class SpeechSpec:
    """Stream layout, embedding rule, heads, codec and task prompts of a model.

    Attributes:
        layout: the stream layout.
        primary_skip_ids: ids that add nothing to the input embedding on stream 0.
        auxiliary_skip_ids: ids that add nothing on the other streams.
        has_head_offsets: whether the checkpoint holds a vector per stream that is added to the
            hidden state before the shared head.
        codec: where the codec is, or None for a model that has none.
        tasks: the task prompts, in the order in which they are tried.
        null_prompt: prompt of the unconditional lane: ids of stream 0, PADS or SAME_PROMPT; None if
            the model is not made for guidance.
        guides_audio_only: whether guidance starts with the audio, not with the text.
        null_ending: ids of stream 0 in the last steps of a null prompt of PADS, in their place.
        model_path: folder of the model, if it is one.
        voices: ids of stream 0 by the voice's name.
        default_voice: the voice of a request that names none; None: no voice.
        generation_defaults: by task, the SamplingParams fields (of GENERATION_DEFAULTS) that the
            server and the command line use where a request leaves them out.
        languages: codes of the languages that the model understands and speaks, as requests may
            name them; empty: the model's files do not say.
        text_encoder: what the model's text encoder takes, or None for a model without one.
        frames_per_second: of the codec, for a model whose audio ends by nothing but its length, so
            that requests may give that in seconds; None for other models.
        melody: of the prefix that the model's prompts begin with, before the text's states; None
            for a model whose layers attend to the text, or that has it in its prompt.
        grammar: how conversations are written, for a model that goes on with one; a text is then
            the last turn of one. The lead-in begins all streams in a step of its own.
        voice_frames: frames that a recording of a voice has in a prompt: of a longer one the first,
            and a shorter one has pads behind it; None: all frames of the recording.
        speech_units: hub id, or folder (relative ones lie in the model's own), of the encoder whose
            units stream 0 carries beside the codec's codes; None for a model without units.
        dialogue: how conversations are laid into a prompt; None: the model has none.
        audio_encoder: of a model whose prompts hold its states; None for other models.
        text_substitutes: ids that stand for ids of a text in prompts, by the latter.
        text_frontend: what texts become before they are tokens; None: they stay as they are.
    """

    layout: StreamLayout
    primary_skip_ids: tuple[int, ...] = ()
    auxiliary_skip_ids: tuple[int, ...] = ()
    has_head_offsets: bool = False
    codec: CodecSource | None = None
    tasks: tuple[TaskPrompt, ...] = ()
    model_path: str = ""
    null_prompt: tuple[int, ...] | str | None = None
    guides_audio_only: bool = False
    null_ending: tuple[int, ...] = ()
    voices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    default_voice: str | None = None
    generation_defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    languages: tuple[str, ...] = ()
    text_encoder: TextEncoderSpec | None = None
    frames_per_second: Fraction | None = None
    melody: MelodySpec | None = None
    grammar: TurnGrammar | None = None
    voice_frames: int | None = None
    speech_units: str | None = None
    dialogue: Dialogue | None = None
    audio_encoder: AudioEncoderSpec | None = None
    text_substitutes: Mapping[int, int] = field(default_factory=dict)
    text_frontend: TextFrontendSpec | None = None

    def __post_init__(self) -> None:
        takes = {ENCODER_TEXT in task.all_parts for task in self.tasks}
        if takes - {self.text_encoder is not None}:
            raise LayoutError(
                f"tasks must take {ENCODER_TEXT!r}, all of them, if the model has a text encoder, "
                "and none otherwise"
            )
        takes = {PREFIX in task.all_parts for task in self.tasks}
        if takes - {self.melody is not None}:
            raise LayoutError(f"tasks must take {PREFIX!r}, all of them, if the model has a melody")
        if self.audio_encoder is None and any(AUDIO_FEATURES in t.all_parts for t in self.tasks):
            raise LayoutError(f"tasks must not take {AUDIO_FEATURES!r}: there is no audio encoder")
        if self.null_prompt == SAME_PROMPT and self.text_encoder is None:
            raise LayoutError(
                f"null_prompt {SAME_PROMPT!r} is for models with a text encoder: the lanes of "
                "others would be the same"
            )
        if self.frames_per_second is not None and self.frames_per_second <= 0:
            raise LayoutError(f"frames_per_second must be above 0, not {self.frames_per_second}")

    @cached_property
    def table(self) -> PhaseTable:
        """The layout's phase table."""
        return PhaseTable(self.layout)

    def start_phase(self, task_name: str) -> int | None:
        """The phase that a task says generation starts in, if it says so."""
        phase = next((task.phase for task in self.tasks if task.name == task_name), None)
        return None if phase is None else self.layout.phase_index(phase)

    @property
    def has_codec(self) -> bool:
        """Whether the model turns audio into tokens and back."""
        return self.codec is not None

    @property
    def conversations(self) -> tuple[str, ...]:
        """Tasks that take a conversation."""
        if self.grammar is not None:
            return tuple(task.name for task in self.tasks)
        return () if self.dialogue is None else self.dialogue.tasks

    def conversations_of(self, turns: Sequence[Turn]) -> tuple[str, ...]:
        """Those that may answer the turns; of several for a request the first is the default.

        Raises:
            ValueError: naming the turn as `messages[i]`, and what is accepted.
        """
        return self.conversations if self.dialogue is None else self.dialogue.tasks_of(turns)

    @classmethod
    def from_config(cls, config: Any, model_path: str = "") -> SpeechSpec:
        """Read the specification from a SpeechLMConfig.

        Raises:
            LayoutError: naming the field and the accepted range.
        """
        layout = StreamLayout.from_dict(config.stream_layout)
        embedding = config.embedding or {}
        _refuse_unknown("embedding", embedding, {"primary_skip_ids", "auxiliary_skip_ids"})
        for name, ids in embedding.items():
            for index, token in enumerate(_list(f"embedding.{name}", ids)):
                if not isinstance(token, int) or not 0 <= token < layout.vocabulary_size:
                    raise LayoutError(
                        f"embedding.{name}[{index}] must be in [0, {layout.vocabulary_size}), "
                        f"not {token!r}"
                    )
        codec = None
        if config.codec is not None:
            _refuse_unknown("codec", config.codec, {"name_or_path", "revision"})
            if "name_or_path" not in config.codec:
                raise LayoutError("codec.name_or_path is missing")
            codec = CodecSource(str(config.codec["name_or_path"]), config.codec.get("revision"))
        tasks = config.tasks or {}
        _refuse_unknown("tasks", tasks, set(tasks))
        voices = _voices(getattr(config, "voices", None), layout)
        default_voice = getattr(config, "default_voice", None)
        if default_voice is not None and default_voice not in voices:
            raise LayoutError(
                f"default_voice must be null or one of {sorted(voices)}, not {default_voice!r}"
            )
        return cls(
            layout=layout,
            voices=voices,
            default_voice=default_voice,
            generation_defaults=_generation_defaults(
                getattr(config, "generation_defaults", None), tasks
            ),
            languages=_languages(getattr(config, "languages", None)),
            text_frontend=_text_frontend(getattr(config, "text_frontend", None)),
            primary_skip_ids=tuple(embedding.get("primary_skip_ids", ())),
            auxiliary_skip_ids=tuple(embedding.get("auxiliary_skip_ids", ())),
            has_head_offsets=bool(config.head_offsets),
            codec=codec,
            tasks=tuple(
                _task(name, parts, layout, voices, codec is not None)
                for name, parts in tasks.items()
            ),
            model_path=model_path,
            **_guidance(config.guidance, layout),
        )


def _task(
    name: str, parts: Any, layout: StreamLayout, voices: Mapping[str, Any], has_codec: bool
) -> TaskPrompt:
    where = f"tasks.{name}"

    def read(spot: str, part: Any) -> Part:
        is_token = isinstance(part, int) and 0 <= part < layout.vocabulary_size
        if not is_token and part not in PROMPT_PARTS:
            raise LayoutError(
                f"{spot} must be a token in [0, {layout.vocabulary_size}) or one of "
                f"{list(PROMPT_PARTS)}, not {part!r}"
            )
        return part  # type: ignore[no-any-return]

    def section(spot: str, part: Sequence[Any]) -> tuple[Part, ...]:
        found = tuple(read(f"{spot}[{index}]", inner) for index, inner in enumerate(part))
        if sum(name in _INPUT_PARTS for name in found) != 1:
            raise LayoutError(
                f"{spot} is an optional section and must hold one of {list(_INPUT_PARTS)}, "
                f"not {list(part)}"
            )
        return found

    task = TaskPrompt(
        name,
        tuple(
            section(f"{where}[{index}]", part)
            if isinstance(part, (list, tuple))
            else read(f"{where}[{index}]", part)
            for index, part in enumerate(_list(where, parts))
        ),
    )
    if any(task.all_parts.count(part) > 1 for part in _INPUT_PARTS):
        words = [repr(part) for part in _INPUT_PARTS]
        raise LayoutError(
            f"{where} must hold {', '.join(words[:-1])} and {words[-1]} at most once each"
        )
    takes_text = "text" in task.takes or task.takes_reference_text
    if not layout.has_text and takes_text and layout.text_slice is None:
        raise LayoutError(f"{where} holds 'text', so stream_layout.text_slice must be given")
    if task.takes_voice and not (voices or has_codec):
        raise LayoutError(f"{where} holds 'voice', so voices or codec must be given")
    if task.takes_reference_text and not (task.takes_voice and has_codec):
        raise LayoutError(
            f"{where} holds {REFERENCE_TEXT!r}, so it must hold 'voice', and codec must be given"
        )
    return task


def _voices(data: Any, layout: StreamLayout) -> dict[str, tuple[int, ...]]:
    if data is None:
        return {}
    _refuse_unknown("voices", data, set(data))
    voices = {}
    for name, ids in data.items():
        where = f"voices.{name}"
        if not name:
            raise LayoutError("voices must not have an empty name")
        if not _list(where, ids):
            raise LayoutError(f"{where} must hold at least one token id")
        for index, token in enumerate(ids):
            is_integer = isinstance(token, int) and not isinstance(token, bool)
            if not is_integer or not 0 <= token < layout.vocabulary_size:
                raise LayoutError(
                    f"{where}[{index}] must be in [0, {layout.vocabulary_size}), not {token!r}"
                )
        voices[name] = tuple(ids)
    return voices


def _languages(data: Any) -> tuple[str, ...]:
    if data is None:
        return ()
    for index, code in enumerate(_list("languages", data)):
        if not isinstance(code, str) or re.fullmatch("[a-z]{2,3}", code) is None:
            raise LayoutError(
                f"languages[{index}] must be a code of ISO 639, such as 'en', not {code!r}"
            )
    return tuple(data)


def _text_frontend(data: Any) -> TextFrontendSpec | None:
    if data is None:
        return None
    _refuse_unknown("text_frontend", data, {"language", "lexicon"})
    language, lexicon = data.get("language"), data.get("lexicon")
    if language not in TEXT_FRONTENDS:
        raise LayoutError(
            f"text_frontend.language must be one of {list(TEXT_FRONTENDS)}, not {language!r}"
        )
    if lexicon is not None and not (isinstance(lexicon, str) and lexicon):
        raise LayoutError(f"text_frontend.lexicon must be null or a file's name, not {lexicon!r}")
    return TextFrontendSpec(language, lexicon)


def _generation_defaults(data: Any, tasks: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    if data is None:
        return {}
    # Imported here: its module needs this one.
    from vllm.sampling_params import SamplingParams

    _refuse_unknown("generation_defaults", data, set(tasks))
    for task, values in data.items():
        where = f"generation_defaults.{task}"
        _refuse_unknown(where, values, set(GENERATION_DEFAULTS))
        try:
            SamplingParams(**values)
        except (TypeError, ValueError) as error:
            raise LayoutError(f"{where}: {error}") from error
    return {task: dict(values) for task, values in data.items()}


def _guidance(data: Any, layout: StreamLayout) -> dict[str, Any]:
    if data is None:
        return {}
    _refuse_unknown("guidance", data, {"null_prompt", "audio_only"})
    null_prompt = data.get("null_prompt")
    if null_prompt is not None and null_prompt != PADS:
        for index, token in enumerate(_list("guidance.null_prompt", null_prompt)):
            if not isinstance(token, int) or not 0 <= token < layout.vocabulary_size:
                raise LayoutError(
                    f"guidance.null_prompt[{index}] must be in [0, {layout.vocabulary_size}), "
                    f"not {token!r}"
                )
        null_prompt = tuple(null_prompt)
    return {"null_prompt": null_prompt, "guides_audio_only": bool(data.get("audio_only", False))}


# By identity: configurations can be compared but not hashed.
_specs: dict[int, SpeechSpec] = {}


def multistream_spec(model_config: ModelConfig | None) -> SpeechSpec | None:
    """The specification of a multi-stream model; None for every other model."""
    config: Any = getattr(model_config, "hf_config", None)
    # Of the class, as objects that stand for a configuration in tests have any attribute.
    if not callable(getattr(type(config), "speech_spec", None)):
        return None
    assert model_config is not None
    key = id(config)
    if key not in _specs:
        revision = getattr(model_config, "revision", None)
        _specs[key] = config.speech_spec(str(model_config.model), revision)
        weakref.finalize(config, _specs.pop, key, None)
    return _specs[key]
