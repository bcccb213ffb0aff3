# SPDX-License-Identifier: Apache-2.0
"""Higgs Audio v2: a Llama whose layers have a second feed-forward for positions of audio.

`formats.higgs_audio_v2` reads its configuration and `formats.higgs_audio_v2_weights` says which
tensors it has; everything else is a SpeechLM.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig

from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaMLP, LlamaModel
from vllm.model_executor.models.speech_lm import SpeechLMForConditionalGeneration, _whole_rows
from vllm.model_executor.models.utils import maybe_prefix
from vllm.sequence import IntermediateTensors
from vllm.unison.formats.higgs_audio_v2 import first_audio_id
from vllm.unison.formats.higgs_audio_v2_weights import (
    AUDIO_EMBEDDING,
    AUDIO_HEAD,
    TEXT_EMBEDDING,
    Tensors,
    published_tensors,
)


class DualLayer(LlamaDecoderLayer):
    """A layer with norms and a feed-forward for text, and others for audio.

    Attention, its weights and its cache are shared. In eager mode on the CPU a feed-forward is run
    for its own rows; elsewhere both are run for all, since a captured graph knows no rows.
    """

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config, prefix)
        config = vllm_config.model_config.hf_config
        self.audio_mlp = LlamaMLP(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            hidden_act=config.hidden_act,
            quant_config=self.get_quant_config(vllm_config),
            prefix=f"{prefix}.audio_mlp",
        )
        self.audio_input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.audio_post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(  # type: ignore[override]
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        is_audio: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[num_tokens, hidden_size] what the layer adds, and what it adds it to.

        Args:
            positions: [num_tokens].
            hidden_states, residual: of the layer before.
            is_audio: [num_tokens, 1] bool.
        """
        residual = hidden_states if residual is None else hidden_states + residual
        normed = torch.where(
            is_audio, self.audio_input_layernorm(residual), self.input_layernorm(residual)
        )
        residual = residual + self.self_attn(positions=positions, hidden_states=normed)
        return self._feed_forward(residual, is_audio), residual

    def _feed_forward(self, hidden_states: torch.Tensor, is_audio: torch.Tensor) -> torch.Tensor:
        if hidden_states.device.type == "cpu" and not torch.compiler.is_compiling():
            return self._by_rows(hidden_states, is_audio[:, 0])
        audio = self.audio_mlp(self.audio_post_attention_layernorm(hidden_states))
        text = self.mlp(self.post_attention_layernorm(hidden_states))
        return torch.where(is_audio, audio, text)

    def _by_rows(self, hidden_states: torch.Tensor, is_audio: torch.Tensor) -> torch.Tensor:
        """The same where the host reads the mask at no cost."""
        if bool(is_audio.all()):
            return self.audio_mlp(self.audio_post_attention_layernorm(hidden_states))
        if not bool(is_audio.any()):
            return self.mlp(self.post_attention_layernorm(hidden_states))
        out = torch.empty_like(hidden_states)
        audio, text = hidden_states[is_audio], hidden_states[~is_audio]
        out[is_audio] = self.audio_mlp(self.audio_post_attention_layernorm(audio))
        out[~is_audio] = self.mlp(self.post_attention_layernorm(text))
        return out


@support_torch_compile(
    dynamic_arg_dims={
        "input_ids": 0,
        "positions": 0,
        "intermediate_tensors": 0,
        "inputs_embeds": 0,
        "is_audio": 0,
    }
)
class DualModel(LlamaModel):
    """The layers, from the summed embeddings of a step's ids to its hidden states."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=DualLayer)

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None,
        inputs_embeds: torch.Tensor | None = None,
        is_audio: torch.Tensor | None = None,
    ) -> Any:
        """[num_tokens, hidden_size] hidden states; see DualLayer.forward."""
        return super().forward(
            input_ids, positions, intermediate_tensors, inputs_embeds, is_audio=is_audio
        )


class DualBackbone(nn.Module):
    """The decoder with its embedding of all ids and its head of the codes.

    Args:
        vllm_config: the engine's, its model's configuration that of the decoder.
        num_text_ids: ids that have no row in the head.
        prefix: of the layers' names.

    Attributes:
        is_audio: [max_num_batched_tokens, 1] bool, whether a step's token is one of audio; written
            before the forward, where captured graphs read it.
    """

    is_audio: torch.Tensor

    def __init__(self, vllm_config: VllmConfig, num_text_ids: int, prefix: str) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.model = DualModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.lm_head = ParallelLMHead(config.vocab_size - num_text_ids, config.hidden_size)
        self.logits_processor = LogitsProcessor(config.vocab_size)
        self.num_text_ids = num_text_ids
        tokens = vllm_config.scheduler_config.max_num_batched_tokens
        is_audio = torch.zeros(tokens, 1, dtype=torch.bool)
        self.register_buffer("is_audio", is_audio, persistent=False)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden_size] rows of stream 0's ids."""
        return self.model.embed_input_ids(input_ids)

    def note_audio(self, input_ids: torch.Tensor) -> None:
        """Write which of a step's tokens, given by stream 0's ids, are of audio."""
        torch.ge(input_ids[:, None], self.num_text_ids, out=self.is_audio[: len(input_ids)])

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> Any:
        """[num_tokens, hidden_size] hidden states."""
        is_audio = self.is_audio[: positions.shape[-1]]
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds, is_audio)


class HiggsAudioV2ForConditionalGeneration(SpeechLMForConditionalGeneration):
    """The published model."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        self._config = vllm_config.model_config.hf_config
        super().__init__(vllm_config=vllm_config, prefix=prefix)

    def _make_backbone(
        self, vllm_config: VllmConfig, config: LlamaConfig, prefix: str
    ) -> DualBackbone:
        own_config = vllm_config.with_hf_config(config)
        return DualBackbone(own_config, first_audio_id(self._config), prefix)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden_size] sum of all streams' embeddings; also notes which are audio."""
        self.backbone.note_audio(input_ids)
        return super().embed_input_ids(input_ids)

    def text_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[num_rows, 0]: no stream emits text."""
        return hidden_states.new_empty(hidden_states.shape[0], 0)

    def _head_rows(self, ids: torch.Tensor) -> torch.Tensor:
        return _whole_rows(self.backbone.lm_head, ids - self.backbone.num_text_ids)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a published checkpoint, with transformers' names or the authors'.

        Raises:
            ValueError: naming a tensor that is missing, unknown or of a wrong shape.
        """
        tables: dict[str, torch.Tensor] = {}
        tensors = published_tensors(weights, self._config)
        self.backbone.model.load_weights(self._layers(tensors, tables))
        embedding = self.backbone.model.embed_tokens.weight
        whole = torch.cat([tables[TEXT_EMBEDDING], tables[AUDIO_EMBEDDING]])
        embedding.weight_loader(embedding, whole)
        return {name for name, _ in self.named_parameters()}

    def _layers(self, tensors: Tensors, tables: dict[str, torch.Tensor]) -> Tensors:
        """The layers' tensors under the backbone's names; the others are loaded or put aside."""
        for name, tensor in tensors:
            if name in (TEXT_EMBEDDING, AUDIO_EMBEDDING):
                tables[name] = tensor
            elif name == AUDIO_HEAD:
                head = self.backbone.lm_head.weight
                head.weight_loader(head, tensor)
            else:
                yield name.removeprefix("model."), tensor
