# SPDX-License-Identifier: Apache-2.0
"""MusicGen as it is published: what its config.json and generation_config.json say, as one value.

The files are those that transformers writes for MusicgenForConditionalGeneration and
MusicgenMelodyForConditionalGeneration; `musicgen_weights` reads the tensors beside them.

Counts: F frames of the result take F + C - 1 steps, C being the codebooks of a channel, and one
position more, since position 0 is a column of fills that starts the decoder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vllm.unison.formats.generation_config import SamplingDefaults
from vllm.unison.formats.musicgen_config import checked_config
from vllm.unison.model.end_rules import Columns, FixedLength, StreamPattern, prompt_columns
from vllm.unison.model.fills import Fill, StreamFills

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SECONDS_IN_TRAINING = 30
"""What a request gets where no generation_config.json says."""


class Conditioning(Enum):
    """How the text enters the decoder.

    CROSS_ATTENTION: as encoder states that every layer attends to.
    PREFIX: as states before the first column, a chromagram's before the text's.
    """

    CROSS_ATTENTION = "cross_attention"
    PREFIX = "prefix"


class NullInput(Enum):
    """What the null lane of a guided request has in the place of text.

    NO_STATES: no encoder states. As no projection has a bias, cross-attention adds exactly zero.
    NULL_PREFIX: zeros for the text, and for the chromagram the projection of its first bin, which
        is not zero.
    """

    NO_STATES = "no_states"
    NULL_PREFIX = "null_prefix"


@dataclass(frozen=True)
class MusicGenFormat:
    """A published MusicGen model.

    Attributes:
        num_streams: codebooks of all channels. In stereo even streams are the left channel's.
        num_channels: 1 or 2; each is decoded by the mono codec.
        codebook_size: codes per stream; the id after them fills lead-in and tail, and embeds.
        hidden_size, ffn_dim, num_layers, num_heads, max_positions: of the decoder.
        scales_embedding: whether the summed embeddings are multiplied by sqrt(hidden_size).
        conditioning: how the text enters.
        num_chroma, chroma_length: bins and positions of the chromagram; 0 without one.
        text_config, codec_config: of the T5 encoder and of EnCodec.
        defaults: of sampling.
    """

    num_streams: int
    num_channels: int
    codebook_size: int
    hidden_size: int
    ffn_dim: int
    num_layers: int
    num_heads: int
    max_positions: int
    scales_embedding: bool
    conditioning: Conditioning
    num_chroma: int
    chroma_length: int
    text_config: PreTrainedConfig
    codec_config: PreTrainedConfig
    defaults: SamplingDefaults

    @property
    def codebooks_per_channel(self) -> int:
        """C: streams of one channel."""
        return self.num_streams // self.num_channels

    @property
    def fill_id(self) -> int:
        """The id of lead-in, tail and start column."""
        return self.codebook_size

    @property
    def frames_per_second(self) -> Fraction:
        """Of the codec."""
        return Fraction(int(self.codec_config.sampling_rate), int(self.codec_config.hop_length))

    @property
    def pattern(self) -> StreamPattern:
        """Delays, fills and end rule of its audio."""
        fill = Fill(self.fill_id)
        return StreamPattern(
            delays=tuple(k // self.num_channels for k in range(self.num_streams)),
            fills=(StreamFills(lead_in=fill, tail=fill),) * self.num_streams,
            end_rule=FixedLength(),
            vocabulary_size=self.codebook_size + 1,
        )

    @property
    def null_input(self) -> NullInput:
        """What the null lane has."""
        attends = self.conditioning is Conditioning.CROSS_ATTENTION
        return NullInput.NO_STATES if attends else NullInput.NULL_PREFIX

    @staticmethod
    def lane_weights(scale: float) -> tuple[float, ...]:
        """Weights of the conditional and the null lane's raw logits; no null lane up to scale 1."""
        return (scale, 1 - scale) if scale > 1 else (1.0,)

    @property
    def min_masked_positions(self) -> int:
        """Positions below which transformers lays no delay pattern. audiocraft always does."""
        return 2 * self.codebooks_per_channel - 1

    def num_positions(self, num_frames: int) -> int:
        """Positions of the decoder for some frames: a step per column, and the start column."""
        return self.pattern.num_columns(num_frames) + 1

    def num_frames(self, num_positions: int) -> int:
        """Whole frames in some positions; the inverse of `num_positions`."""
        return max(num_positions - self.codebooks_per_channel, 0)

    def decoder_prompt(self, frames: Columns) -> Columns:
        """The start column, and a column per frame to go on from.

        Args:
            frames: [num_frames, num_streams] int32 codes; empty for new audio.

        Returns:
            [1 + num_frames, num_streams] int32. `next_column` forces the delayed streams' rest.
        """
        start = np.full((1, self.num_streams), self.fill_id, np.int32)
        return np.concatenate([start, prompt_columns(self.pattern, frames)])


def read_musicgen(folder: str | Path) -> MusicGenFormat:
    """Read config.json, and generation_config.json if there is one; see `musicgen_format`."""
    config, generation = Path(folder) / "config.json", Path(folder) / "generation_config.json"
    return musicgen_format(
        json.loads(config.read_text(encoding="utf-8")),
        json.loads(generation.read_text(encoding="utf-8")) if generation.exists() else None,
    )


def musicgen_format(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None = None
) -> MusicGenFormat:
    """What a config.json and a generation_config.json say.

    Raises:
        ValueError: naming the field and what is accepted.
    """
    whole = checked_config(config)
    decoder, is_melody = whole.decoder, whole.model_type == "musicgen_melody"
    if generation is None:
        # Those of audiocraft, the library that the models come from.
        frames = SECONDS_IN_TRAINING * whole.audio_encoder.frame_rate
        length = frames + decoder.num_codebooks // decoder.audio_channels
        defaults = SamplingDefaults(1.0, 250, 1.0, 3.0, length)
    else:
        names = ("pad_token_id", "bos_token_id", "decoder_start_token_id")
        ids = dict.fromkeys(names, decoder.vocab_size)
        defaults = SamplingDefaults.from_generation_config(generation, ids)
    return MusicGenFormat(
        num_streams=decoder.num_codebooks,
        num_channels=decoder.audio_channels,
        codebook_size=decoder.vocab_size,
        hidden_size=decoder.hidden_size,
        ffn_dim=decoder.ffn_dim,
        num_layers=decoder.num_hidden_layers,
        num_heads=decoder.num_attention_heads,
        max_positions=decoder.max_position_embeddings,
        scales_embedding=decoder.scale_embedding,
        conditioning=Conditioning.PREFIX if is_melody else Conditioning.CROSS_ATTENTION,
        num_chroma=whole.num_chroma if is_melody else 0,
        chroma_length=whole.chroma_length if is_melody else 0,
        text_config=whole.text_encoder,
        codec_config=whole.audio_encoder,
        defaults=defaults,
    )
