# SPDX-License-Identifier: Apache-2.0
"""Configuration of OpusLM, as the folder that is made for a published one holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from vllm.unison.formats.backbone_config import make_backbone_config

if TYPE_CHECKING:
    from vllm.unison.model.spec import SpeechSpec


class OpusLMConfig(PreTrainedConfig):
    """config.json of a made folder (`model_type: opuslm`); see OpusLMTraining for its fields.

    Args:
        backbone_config: configuration of the decoder backbone, as transformers has it, with the
            model's own vocabulary; its `architectures` names the vLLM model class.
        codec: folder, in the model's own, or hub id of the codec; None for a model without.
        speech_units: the same of the encoder whose units stream 0 carries, which is loaded when a
            request gives audio.
    """

    model_type = "opuslm"

    def __init__(
        self,
        backbone_config: PreTrainedConfig | dict[str, Any] | None = None,
        special_tokens: dict[str, int] | None = None,
        units: tuple[int, int] = (256, 5256),
        codes: tuple[int, int] = (5256, 13448),
        text: tuple[int, int] = (13448, 113800),
        vocabulary_size: int = 113870,
        num_streams: int = 9,
        speaker_frames: int = 500,
        codec: str | None = None,
        speech_units: str | None = "espnet/xeus",
        **kwargs: Any,
    ) -> None:
        self.backbone_config = make_backbone_config(backbone_config, "olmo2")
        self.special_tokens = special_tokens or {}
        self.units = units
        self.codes = codes
        self.text = text
        self.vocabulary_size = vocabulary_size
        self.num_streams = num_streams
        self.speaker_frames = speaker_frames
        self.codec = codec
        self.speech_units = speech_units
        super().__init__(**kwargs)

    def get_text_config(self, decoder: Any = None, encoder: Any = None) -> PreTrainedConfig:
        """The backbone's configuration: what the engine sizes its caches by."""
        return self.backbone_config

    def speech_spec(self, model_path: str, revision: str | None = None) -> SpeechSpec:
        """The specification of the model; see `multistream_spec`."""
        from vllm.unison.formats.opuslm_spec import opuslm_spec

        return opuslm_spec(self, model_path)
