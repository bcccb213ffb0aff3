# SPDX-License-Identifier: Apache-2.0
"""Configurations of published MusicGen checkpoints, as the engine reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import MusicgenConfig, MusicgenMelodyConfig, PreTrainedConfig

from vllm.unison.formats.musicgen_config import checked_config

if TYPE_CHECKING:
    from vllm.unison.model.spec import SpeechSpec


class _DecoderOnly(PreTrainedConfig):
    """config.json of a checkpoint, all of its keys as published.

    `is_encoder_decoder` is False: upstream would switch chunked prefill, prefix caching and more
    off, and look for encoder inputs of its own. The states of the text are conditioning, beside a
    decoder-only model.
    """

    decoder: Any

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.is_encoder_decoder = False

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from what config.json holds.

        Raises:
            ValueError: naming the field and what is accepted.
        """
        checked_config(config_dict)
        return super().from_dict(config_dict, **kwargs)

    def get_text_config(self, decoder: Any = None, encoder: Any = None) -> PreTrainedConfig:
        """The decoder's configuration: what the engine sizes its caches by.

        Its vocabulary is what is embedded, the fill included; config.json counts codes.
        """
        embedded = {"vocab_size": self.decoder.vocab_size + 1}
        whole: PreTrainedConfig = type(self.decoder)(**(self.decoder.to_dict() | embedded))
        return whole

    def speech_spec(self, model_path: str, revision: str | None = None) -> SpeechSpec:
        """The specification of the model; see `multistream_spec`."""
        from vllm.unison.formats.musicgen_spec import musicgen_spec

        return musicgen_spec(self, model_path, revision)


class MusicGenConfig(_DecoderOnly, MusicgenConfig):
    """Of `model_type: musicgen`."""


class MusicGenMelodyConfig(_DecoderOnly, MusicgenMelodyConfig):
    """Of `model_type: musicgen_melody`."""
