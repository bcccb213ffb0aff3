# SPDX-License-Identifier: Apache-2.0
"""OpusLM: a SpeechLM whose weights are in ESPnet's container."""

from collections.abc import Iterable
from pathlib import Path

import torch

from vllm.config import VllmConfig
from vllm.model_executor.models.speech_lm import SpeechLMForConditionalGeneration
from vllm.unison.formats.opuslm_weights import WEIGHTS_FILE, read_opuslm_weights


class OpusLMForConditionalGeneration(SpeechLMForConditionalGeneration):
    """A published OpusLM, from a folder that was made for it."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._weights = Path(vllm_config.model_config.model) / WEIGHTS_FILE

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load the published file; upstream's iterator would read all of it at once.

        Raises:
            ValueError: naming a tensor that is missing, unknown or of a wrong shape.
        """
        expected = self.expected_tensors()
        assert expected is not None
        return self.load_checked(read_opuslm_weights(self._weights, expected.shapes))
