# SPDX-License-Identifier: Apache-2.0
"""Configuration of Bagpiper models, as it is made from what ESPnet's files say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig, Qwen3Config

if TYPE_CHECKING:
    from vllm.unison.model.spec import SpeechSpec


class BagpiperConfig(PreTrainedConfig):
    """config.json of `model_type: bagpiper`; see `formats.bagpiper_config`.

    Args:
        backbone_config: of the decoder; its vocabulary is the model's.
        id_ranges: half-open ranges of ids, by ESPnet's name of the part that has them.
        num_codebooks, codebook_size: of the codec; each codebook has a pad before its codes.
        decoding: per modality, ESPnet's settings of inference.
        audio_encoder_config: of the audio encoder; None for a model that does not listen.
        sampling_rate, hop_length: of the features that it gets; samples per second and per frame.
    """

    model_type = "bagpiper"

    def __init__(
        self,
        backbone_config: dict[str, Any] | Qwen3Config | None = None,
        id_ranges: dict[str, list[int]] | None = None,
        num_codebooks: int = 8,
        codebook_size: int = 1024,
        decoding: dict[str, dict[str, float]] | None = None,
        audio_encoder_config: dict[str, Any] | None = None,
        sampling_rate: int = 16000,
        hop_length: int = 160,
        **kwargs: Any,
    ) -> None:
        if not isinstance(backbone_config, PreTrainedConfig):
            backbone_config = Qwen3Config(**(backbone_config or {}))
        self.backbone_config = backbone_config
        self.id_ranges = id_ranges or {}
        self.num_codebooks = num_codebooks
        self.codebook_size = codebook_size
        self.decoding = decoding or {}
        self.audio_encoder_config = audio_encoder_config
        self.sampling_rate = sampling_rate
        self.hop_length = hop_length
        super().__init__(**kwargs)

    def get_text_config(self, decoder: Any = None, encoder: Any = None) -> PreTrainedConfig:
        """The backbone's configuration: what the engine sizes its caches by."""
        return self.backbone_config

    def speech_spec(self, model_path: str, revision: str | None = None) -> SpeechSpec:
        """The specification of the model; see `multistream_spec`."""
        from vllm.unison.formats.bagpiper import bagpiper_spec

        return bagpiper_spec(self, model_path, revision)
