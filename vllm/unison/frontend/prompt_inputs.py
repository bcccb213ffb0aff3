# SPDX-License-Identifier: Apache-2.0
"""Texts and clips of requests, as the frames and the states that a model's prompts have of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm.unison.codecs.of_model import codec_of
from vllm.unison.codecs.unit_encoder import frame_encoder_of
from vllm.unison.conditioning.chroma import ChromaExtractor
from vllm.unison.conditioning.mel_features import MelFeatures, num_states
from vllm.unison.frontend.clip_encoder import AudioEncoder, ClipEncoder, is_given_as_codes
from vllm.unison.frontend.prompt_ids import checked_codes, checked_tokens
from vllm.unison.frontend.prompt_layout import Piece, frames_of_codes, frames_of_tokens
from vllm.unison.frontend.text_frontend import TextFrontend
from vllm.unison.model.spec import SpeechSpec

Heard = tuple[NDArray[Any], int, int]
"""Features of a clip, the prompt's first position for it, and how many they are."""


@dataclass(frozen=True)
class GivenCodes:
    """Audio that is given as its codes."""

    codes: Any


class PromptInputs:
    """Reads what the requests to one model give.

    Args:
        spec: the model's specification.
        tokenize: ids of a text, without special tokens around it; None: there is no tokenizer.

    Attributes:
        tokenize: the same, of a text as the model's front end reads it.
        encoder: of clips.

    Raises:
        ValueError: naming what the model's text front end lacks.
    """

    def __init__(self, spec: SpeechSpec, tokenize: Callable[[str], list[int]] | None) -> None:
        self._spec = spec
        self.tokenize = tokenize
        if spec.text_frontend is not None and tokenize is not None:
            read = TextFrontend(spec.text_frontend, spec.model_path).read
            self.tokenize = lambda text: tokenize(read(text))
        self.encoder = ClipEncoder(self._load_encoder)

    def _load_encoder(self) -> AudioEncoder:
        spec = self._spec
        if spec.audio_encoder is not None:
            return MelFeatures(spec.audio_encoder, spec.model_path)
        if spec.melody is not None:
            return ChromaExtractor(spec.melody)
        return frame_encoder_of(spec, codec_of)

    def as_read(self, prompt: Mapping[str, Any]) -> Mapping[str, Any]:
        """The prompt, with the ids of its text as the model's front end reads it, if it has one."""
        if self._spec.text_frontend is None or self.tokenize is None or not prompt.get("prompt"):
            return prompt
        return {**prompt, "prompt_token_ids": self.tokenize(prompt["prompt"])}

    def ids_of_text(self, text: str, what: str, otherwise: str = "prompt_token_ids") -> list[int]:
        """The tokenizer's ids of a text.

        Args:
            text: without special tokens around it.
            what: is the text, for the error where there is no tokenizer.
            otherwise: what may be given in the place of the text.
        """
        if self.tokenize is None:
            raise ValueError(f"{what} a tokenizer; give {otherwise}")
        return self.tokenize(text)

    def frames_of_text(self, text_ids: Sequence[int]) -> NDArray[np.int32]:
        """Frames of a text's ids, as prompts have them."""
        substitutes = self._spec.text_substitutes
        ids = [substitutes.get(token, token) for token in text_ids]
        return checked_tokens(self._spec.layout, ids)

    def encode(self, audio: Any) -> NDArray[np.int32]:
        """The codes of a clip, or those that are given in its place."""
        if isinstance(audio, GivenCodes):
            return checked_codes(self._spec.layout, audio.codes)
        if is_given_as_codes(audio):
            return checked_codes(self._spec.layout, audio["codes"])
        if not self._spec.has_codec:
            raise ValueError("audio is not accepted: the model has no codec")
        return self.encoder.encode(audio)

    def frames_of_recording(self, clip: Any, is_voice: bool) -> NDArray[np.int32]:
        """Frames of a clip; of the recording of a voice as many as the model has for it."""
        layout, length = self._spec.layout, self._spec.voice_frames
        frames = frames_of_codes(layout, self.encode(clip))
        if is_voice and length is not None:
            pads = np.tile(np.array(layout.pad_token_ids, np.int32), (length, 1))
            frames = np.concatenate([frames, pads])[:length]
        return frames

    def placeholders(self, audio: Any, before: Sequence[Piece]) -> tuple[Piece, Heard]:
        """The places of what the model's audio encoder hears in a clip, and what it gets of it."""
        encoder, layout = self._spec.audio_encoder, self._spec.layout
        assert encoder is not None
        features: NDArray[Any] = self.encoder.encode(audio)
        count = num_states(len(features), encoder.chunk)
        piece = Piece(frames_of_tokens(layout, [layout.pad_token_ids[0]] * count))
        return piece, (features, sum(len(earlier.frames) for earlier in before), count)

    def chroma(self, audio: Any) -> bytes:
        """The bins of a clip's melody, which is repeated or cut to the positions that it has."""
        assert self._spec.melody is not None
        bins = self.encoder.encode(audio)[:, 0].astype(np.uint8)
        return np.resize(bins, self._spec.melody.num_positions).tobytes()
