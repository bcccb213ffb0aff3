# SPDX-License-Identifier: Apache-2.0
"""MusicGen Melody: MusicGen whose prompts begin with the states of a melody and a text.

arXiv 2306.05284, section 2.2. The layers have no cross-attention.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vllm.config import VllmConfig
from vllm.model_executor.models.musicgen import MusicGenModel
from vllm.unison.conditioning.prefix_tokens import PrefixTokens
from vllm.unison.formats.musicgen_weights import CHROMA_PROJECTION
from vllm.unison.messages.conditioning import PrefixInput
from vllm.unison.sampler.upload import upload


class MusicgenMelodyForConditionalGeneration(MusicGenModel):
    """The published model.

    Attributes:
        prefix_tokens: the states in a step's first positions of prompts; written before each step.
    """

    chroma_states: torch.Tensor

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config, prefix)
        size = self._size
        tokens = vllm_config.scheduler_config.max_num_batched_tokens
        self.prefix_tokens = PrefixTokens(tokens, size.hidden_size)
        # The projection of each bin. Without one a state is as wide as there are bins.
        if size.num_chroma == size.hidden_size:
            states = torch.eye(size.num_chroma, dtype=torch.float32)
        else:
            states = torch.randn(size.num_chroma, size.hidden_size, dtype=torch.float32)
        self.register_buffer("chroma_states", states, persistent=False)
        self._chroma: dict[str, torch.Tensor] = {}

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden_size] sum of all streams' embeddings, or the states of a prefix."""
        embeddings = super().embed_input_ids(input_ids)
        self.prefix_tokens.replace(embeddings)
        return embeddings

    def prefix_states(self, inputs: Sequence[PrefixInput]) -> list[torch.Tensor]:
        """Per input its states, float32 [num_positions, hidden_size]."""
        texts = self.encode_texts([prefix.token_ids for prefix in inputs])
        states = []
        for prefix, text in zip(inputs, texts, strict=True):
            bins = np.frombuffer(prefix.chroma, np.uint8).astype(np.int64)
            melody = self.chroma_states[upload(bins, self.chroma_states.device)]
            # Positions of a text that is not given are zeros.
            text = F.pad(text, (0, 0, 0, prefix.num_text - len(text)))
            states.append(torch.cat([melody, text]))
        return states

    def _load(self, name: str, tensor: torch.Tensor, parameters: dict[str, nn.Parameter]) -> None:
        if name.startswith(CHROMA_PROJECTION):
            self._chroma[name.removeprefix(CHROMA_PROJECTION)] = tensor.float()
            if len(self._chroma) == 2:
                projected = self._chroma["weight"].T + self._chroma["bias"]
                self.chroma_states.copy_(projected)
                self._chroma.clear()
        else:
            super()._load(name, tensor, parameters)
