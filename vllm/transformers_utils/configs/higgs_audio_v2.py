# SPDX-License-Identifier: Apache-2.0
"""Configurations of published Higgs Audio v2 checkpoints, as the engine reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import HiggsAudioV2Config as _HiggsAudioV2Config
from transformers import LlamaConfig, PreTrainedConfig

from vllm.unison.formats.higgs_audio_v2_config import checked_config

if TYPE_CHECKING:
    from vllm.unison.model.spec import SpeechSpec


class HiggsAudioV2Config(_HiggsAudioV2Config):
    """config.json of a checkpoint, of `model_type` higgs_audio_v2 or higgs_audio."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from what config.json holds.

        Raises:
            ValueError: naming the field and what is accepted.
        """
        return super().from_dict(checked_config(config_dict).to_dict(), **kwargs)

    @property
    def backbone_config(self) -> LlamaConfig:
        """The decoder's configuration, whose vocabulary holds the codes of all streams as well."""
        from vllm.unison.formats.higgs_audio_v2 import backbone_config

        return backbone_config(self)

    def get_text_config(self, decoder: Any = None, encoder: Any = None) -> PreTrainedConfig:
        """The decoder's configuration: what the engine sizes its caches by."""
        return self.backbone_config

    def speech_spec(self, model_path: str, revision: str | None = None) -> SpeechSpec:
        """The specification of the model; see `multistream_spec`."""
        from vllm.unison.formats.higgs_audio_v2 import higgs_audio_v2_spec

        return higgs_audio_v2_spec(self, model_path, revision)
