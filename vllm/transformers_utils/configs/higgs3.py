# SPDX-License-Identifier: Apache-2.0
"""Configuration of published Higgs TTS 3 checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from vllm.transformers_utils.configs.speech_lm import HUGGING_FACE_KEYS
from vllm.unison.formats.higgs3_config import backbone_config, check_audio_config, text_config

if TYPE_CHECKING:
    from vllm.unison.model.spec import SpeechSpec

REFERENCE_PLACEHOLDER = -100
"""What stands for the rows of a reference in the ids of the published servers."""


class Higgs3Config(PreTrainedConfig):  # type: ignore[misc]
    """config.json of a checkpoint of `model_type: higgs_multimodal_qwen3`.

    Args:
        text_config: of the decoder, a Qwen3.
        audio_encoder_config: codebooks, their ids, and how they are embedded.
        audio_token_id, mel_per_sample: as published; nothing here follows from them.
        codec_config: of the codec, where it is not the published one, whose configuration is in no
            file of the checkpoint.

    Raises:
        ValueError: naming the field and what is accepted.
    """

    model_type = "higgs_multimodal_qwen3"

    def __init__(
        self,
        text_config: Any = None,
        audio_encoder_config: Mapping[str, Any] | None = None,
        audio_token_id: int = REFERENCE_PLACEHOLDER,
        mel_per_sample: int = 8,
        codec_config: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        own = {"audio_encoder_config", "audio_token_id", "codec_config", "mel_per_sample"}
        if unknown := sorted(kwargs.keys() - HUGGING_FACE_KEYS):
            raise ValueError(
                f"config.json has unknown keys {unknown}; known are {sorted(own | {'text_config'})}"
            )
        self._set_decoder(text_config, audio_encoder_config)
        self.audio_token_id = audio_token_id
        self.mel_per_sample = mel_per_sample
        self.codec_config = codec_config
        super().__init__(**kwargs)

    def _set_decoder(self, text: Any, audio: Any) -> None:
        # transformers makes the class without arguments, to see what its defaults are.
        self.text_config = text_config({} if text is None else _plain(text))
        hidden = self.text_config.hidden_size
        if audio is None:
            audio = {"encoder_type": "discrete", "num_codebooks": 8, "vocab_size": 1026}
        check_audio_config(audio, hidden)
        self.audio_encoder_config = dict(audio)
        self.backbone_config = backbone_config(self.text_config, self.num_code_ids)

    @property
    def num_code_ids(self) -> int:
        """Rows of the offset table."""
        audio = self.audio_encoder_config
        return int(audio["num_codebooks"]) * int(audio["vocab_size"])

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds."""
        values: dict[str, Any] = super().to_dict()
        values.pop("backbone_config", None)
        return values

    def get_text_config(self, decoder: Any = None, encoder: Any = None) -> PreTrainedConfig:
        """The decoder's configuration: what the engine sizes its caches by."""
        return self.backbone_config

    def speech_spec(self, model_path: str, revision: str | None = None) -> SpeechSpec:
        """The specification of the model; see `multistream_spec`."""
        from vllm.unison.formats.higgs3 import higgs3_spec

        return higgs3_spec(self, model_path, revision)


def _plain(text: Any) -> Any:
    return text.to_dict() if isinstance(text, PreTrainedConfig) else text
