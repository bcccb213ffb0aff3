# SPDX-License-Identifier: Apache-2.0
"""Bagpiper: SpeechLM around a Qwen3 backbone, from ESPnet's own file of weights.

arXiv 2602.05220. `formats.bagpiper_weights` says which tensors the published checkpoint has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import (
    Qwen3OmniMoeAudioEncoderConfig,
)
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

from vllm.config import VllmConfig
from vllm.model_executor.models.speech_lm import SpeechLMForConditionalGeneration
from vllm.model_executor.models.utils import AutoWeightsLoader
from vllm.unison.conditioning.mel_features import num_states
from vllm.unison.conditioning.prefix_tokens import PrefixTokens
from vllm.unison.formats.bagpiper_weights import (
    ADAPTOR,
    AUDIO_ENCODER,
    CODEC,
    HEAD_OFFSETS,
    read_bagpiper_weights,
)
from vllm.unison.formats.expected_tensors import BACKBONE
from vllm.unison.messages.conditioning import AudioInput, PromptStates

_LONGEST_CLIP = 3000
"""Frames of the features that memory is measured with: 30 seconds, as in training."""


class BagpiperForConditionalGeneration(SpeechLMForConditionalGeneration):
    """The published model.

    Attributes:
        prefix_tokens: states of audio in a step's positions of prompts; written before each step.
        audio_encoder, adaptor: make such states of audio; None in a model that does not listen.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = vllm_config.model_config.hf_config
        hidden = config.backbone_config.hidden_size
        self._folder = Path(vllm_config.model_config.model)
        self._config = config
        self.prefix_tokens = PrefixTokens(
            vllm_config.scheduler_config.max_num_batched_tokens, hidden
        )
        self.audio_encoder: Qwen3OmniMoeAudioEncoder | None = None
        self.adaptor: nn.Linear | None = None
        if config.audio_encoder_config is not None:
            encoder = Qwen3OmniMoeAudioEncoderConfig.from_dict(config.audio_encoder_config)
            # Not upstream's own: its module needs torchvision.
            self.audio_encoder = Qwen3OmniMoeAudioEncoder(encoder).eval()
            self.adaptor = nn.Linear(encoder.output_dim, hidden)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden_size] sum of all streams' embeddings, or the states of audio."""
        embeddings = super().embed_input_ids(input_ids)
        self.prefix_tokens.replace(embeddings)
        return embeddings

    @torch.inference_mode()
    def prefix_states(self, inputs: Sequence[PromptStates]) -> list[torch.Tensor]:
        """Per clip its states, [num_positions, hidden_size].

        Each is encoded alone, so that its states do not depend on what comes with it.
        """
        return [self._encode(clip) for clip in inputs if isinstance(clip, AudioInput)]

    def _encode(self, clip: AudioInput) -> torch.Tensor:
        assert self.audio_encoder is not None and self.adaptor is not None
        encoder = self.audio_encoder
        lengths = torch.tensor([len(clip.features)], device=encoder.device)
        features = torch.from_numpy(np.array(clip.features, np.float32))
        features = features.T.to(encoder.device, encoder.dtype)
        states = encoder(features, feature_lens=lengths).last_hidden_state
        projected: torch.Tensor = self.adaptor(states)
        return projected

    def encode_longest_text(self) -> None:
        """Take for a moment what encoding may take, for memory profiling."""
        if self.audio_encoder is None:
            return
        features = np.zeros((_LONGEST_CLIP, self.audio_encoder.num_mel_bins), np.float32)
        count = num_states(_LONGEST_CLIP, 2 * self.audio_encoder.n_window)
        self._encode(AudioInput(features, 0, count))

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load the published checkpoint; upstream's iterator does not know what its file holds.

        Raises:
            ValueError: naming a tensor that is missing, unknown or of a wrong shape.
        """
        return AutoWeightsLoader(self).load_weights(self._own_weights())

    def _own_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors under this model's names; those of the codec are the audio decoder's."""
        renamed = {AUDIO_ENCODER: "audio_encoder.", ADAPTOR: "adaptor."}
        for name, tensor in read_bagpiper_weights(self._folder, self._config):
            if name == HEAD_OFFSETS:
                # Stream 0 has none, whatever its row holds.
                offsets = tensor.clone()
                offsets[0] = 0
                yield "head_offsets", offsets
                continue
            part = next((part for part in renamed if name.startswith(part)), "")
            if not name.startswith(CODEC):
                yield renamed.get(part, BACKBONE) + name.removeprefix(part), tensor
