# SPDX-License-Identifier: Apache-2.0
"""Higgs TTS 3: a Qwen3 decoder whose codes have an offset table that is their head as well."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from vllm.config import VllmConfig
from vllm.model_executor.models.speech_lm import SpeechLMForConditionalGeneration
from vllm.unison.formats.higgs3_weights import engine_weights


class Higgs3ForConditionalGeneration(SpeechLMForConditionalGeneration):
    """A multi-stream model that loads a published checkpoint as it is."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._config = vllm_config.model_config.hf_config
        if vllm_config.model_config.dtype == torch.bfloat16:
            round_rotary_tables(self.backbone)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a checkpoint in its published names.

        Raises:
            ValueError: naming a tensor that is missing, unknown or of a wrong shape.
        """
        return super().load_weights(engine_weights(weights, self._config))


def round_rotary_tables(backbone: nn.Module) -> None:
    """Round cosines and sines of the rotary embedding to bfloat16, in whatever type they are kept.

    The model was trained with such tables. A server of its authors' reports that exact ones are
    heard.
    """
    for module in backbone.modules():
        table = getattr(module, "cos_sin_cache", None)
        if isinstance(table, torch.Tensor):
            table.copy_(table.to(torch.bfloat16))
