# SPDX-License-Identifier: Apache-2.0
"""MusicGen: a decoder over K streams of codes, whose layers attend to a T5 encoder's states.

`musicgen_melody` has the model that has them in its prompts instead.

arXiv 2306.05284. The names of parts are those of the published checkpoint; `formats.musicgen` reads
its configuration and `formats.musicgen_weights` says which tensors it has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.models.utils import maybe_prefix
from vllm.platforms import current_platform
from vllm.sequence import IntermediateTensors
from vllm.unison.conditioning.cross_attention import EncoderAttention, StateRows
from vllm.unison.conditioning.text_encoder import TextEncoder
from vllm.unison.formats.musicgen import MusicGenFormat, musicgen_format
from vllm.unison.formats.musicgen_weights import (
    DECODER,
    TEXT_ENCODER,
    TEXT_PROJECTION,
    published_tensors,
    read_musicgen_weights,
)
from vllm.unison.model.spec import multistream_spec
from vllm.unison.ops.extension import load_extension
from vllm.unison.ops.packed_product import packed_product

_BODY = f"{DECODER}model.decoder."
_EMBEDDING = re.compile(re.escape(_BODY) + r"embed_tokens\.(\d+)\.weight")
_HEAD = re.compile(re.escape(DECODER) + r"lm_heads\.(\d+)\.weight")
_STATES = re.compile(r"layers\.(\d+)\.encoder_attn\.([kv])_proj\.weight")
_SELF = re.compile(r"(layers\.\d+\.self_attn)\.([qkv])_proj\.weight")


class SelfAttention(nn.Module):
    """Causal attention to the positions of the row, without biases."""

    def __init__(self, size: MusicGenFormat, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        heads, head_size = _heads(size)
        self.qkv_proj = QKVParallelLinear(
            size.hidden_size, head_size, size.num_heads, bias=False, prefix=f"{prefix}.qkv_proj"
        )
        self.attn = Attention(
            heads,
            head_size,
            head_size**-0.5,
            cache_config=vllm_config.cache_config,
            prefix=f"{prefix}.attn",
        )
        self.out_proj = RowParallelLinear(
            size.hidden_size, size.hidden_size, bias=False, prefix=f"{prefix}.out_proj"
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden_size], as its argument."""
        projected, _ = self.qkv_proj(hidden_states)
        query, key, value = projected.chunk(3, dim=-1)
        output: torch.Tensor = self.out_proj(self.attn(query, key, value))[0]
        return output


class CrossAttention(nn.Module):
    """Attention to the row's encoder states, whose keys and values are in the cache already."""

    def __init__(
        self, size: MusicGenFormat, vllm_config: VllmConfig, rows: StateRows, prefix: str
    ) -> None:
        super().__init__()
        heads, head_size = _heads(size)
        self.q_proj = ColumnParallelLinear(
            size.hidden_size, size.hidden_size, bias=False, prefix=f"{prefix}.q_proj"
        )
        self.attn = EncoderAttention(
            heads,
            head_size,
            head_size**-0.5,
            rows=rows,
            cache_config=vllm_config.cache_config,
            prefix=f"{prefix}.attn",
        )
        self.out_proj = RowParallelLinear(
            size.hidden_size, size.hidden_size, bias=False, prefix=f"{prefix}.out_proj"
        )

    def forward(self, hidden_states: torch.Tensor, without_states: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden_size]; exactly zero for tokens of rows without states."""
        query, _ = self.q_proj(hidden_states)
        output: torch.Tensor = self.out_proj(self.attn.attend(query, without_states))[0]
        return output


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention (if there are rows of states) and feed-forward, each after
    its norm and with a residual."""

    def __init__(
        self, size: MusicGenFormat, vllm_config: VllmConfig, rows: StateRows | None, prefix: str
    ) -> None:
        super().__init__()
        hidden = size.hidden_size
        self.self_attn_layer_norm = nn.LayerNorm(hidden)
        self.self_attn = SelfAttention(size, vllm_config, f"{prefix}.self_attn")
        self._attends = rows is not None
        if rows is not None:
            self.encoder_attn_layer_norm = nn.LayerNorm(hidden)
            self.encoder_attn = CrossAttention(size, vllm_config, rows, f"{prefix}.encoder_attn")
        self.final_layer_norm = nn.LayerNorm(hidden)
        self.fc1 = ColumnParallelLinear(hidden, size.ffn_dim, bias=False, prefix=f"{prefix}.fc1")
        self.fc2 = RowParallelLinear(size.ffn_dim, hidden, bias=False, prefix=f"{prefix}.fc2")

    def forward(
        self, hidden_states: torch.Tensor, without_states: torch.Tensor | None
    ) -> torch.Tensor:
        """[num_tokens, hidden_size], as its argument."""
        hidden_states = hidden_states + self.self_attn(self.self_attn_layer_norm(hidden_states))
        if self._attends:
            normed = self.encoder_attn_layer_norm(hidden_states)
            hidden_states = hidden_states + self.encoder_attn(normed, without_states)
        inner = F.gelu(self.fc1(self.final_layer_norm(hidden_states))[0])
        return hidden_states + self.fc2(inner)[0]


@support_torch_compile(
    dynamic_arg_dims={"positions": 0, "inputs_embeds": 0, "without_states": 0},
)
class Decoder(nn.Module):
    """The layers, from the summed embeddings of a step's ids to its hidden states.

    Args:
        vllm_config: the engine's.
        size: the model's sizes.
        rows: the batch's encoder states; None if the layers attend to none.
        prefix: of the layers' names.
    """

    positions: torch.Tensor

    def __init__(
        self,
        *,
        vllm_config: VllmConfig,
        size: MusicGenFormat,
        rows: StateRows | None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        table = sinusoids(size.max_positions, size.hidden_size).to(torch.get_default_dtype())
        self.register_buffer("positions", table, persistent=False)
        self.layers = nn.ModuleList(
            DecoderLayer(size, vllm_config, rows, f"{prefix}.layers.{i}")
            for i in range(size.num_layers)
        )
        self.layer_norm = nn.LayerNorm(size.hidden_size)

    def forward(
        self,
        positions: torch.Tensor,
        inputs_embeds: torch.Tensor,
        without_states: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[num_tokens, hidden_size] hidden states.

        Args:
            positions: [num_tokens].
            inputs_embeds: [num_tokens, hidden_size].
            without_states: [num_tokens, 1] bool of StateRows, if there are such rows.
        """
        hidden_states = inputs_embeds + self.positions[positions]
        for layer in self.layers:
            hidden_states = layer(hidden_states, without_states)
        return self.layer_norm(hidden_states)


class MusicGenModel(nn.Module):
    """What all published models have: text encoder, decoder, an embedding and a head per stream.

    Args:
        vllm_config: the engine's.
        prefix: of the layers' names.
        rows: the batch's encoder states, if the layers attend to them.

    Attributes:
        auxiliary_ids: [max_num_batched_tokens, num_streams - 1] int32, the ids of streams 1.. that
            `forward` embeds; written before each step.
        text_encoder: whose states the model is conditioned on.
    """

    auxiliary_ids: torch.Tensor
    _inputs_embeds: torch.Tensor
    _first_rows: torch.Tensor

    def __init__(
        self, vllm_config: VllmConfig, prefix: str = "", rows: StateRows | None = None
    ) -> None:
        super().__init__()
        load_extension()
        model_config = vllm_config.model_config
        size = musicgen_format(model_config.hf_config.to_dict())
        tokens = vllm_config.scheduler_config.max_num_batched_tokens
        spec = multistream_spec(model_config)
        assert spec is not None and spec.text_encoder is not None
        self._size = size
        self._max_text_ids = spec.text_encoder.max_ids
        self._model_path = model_config.model
        self.decoder = Decoder(
            vllm_config=vllm_config,
            size=size,
            rows=rows,
            prefix=maybe_prefix(prefix, "decoder"),
        )
        hidden, ids = size.hidden_size, size.codebook_size + 1
        self.embeddings = _parameter(size.num_streams * ids, hidden)
        self.lm_heads = _parameter(size.num_streams * size.codebook_size, hidden)
        self.text_encoder: TextEncoder | None = None
        self._product: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.register_buffer(
            "auxiliary_ids",
            torch.full((tokens, size.num_streams - 1), size.fill_id, dtype=torch.int32),
            persistent=False,
        )
        # Captured graphs read their input where it was at their capture.
        self.register_buffer("_inputs_embeds", torch.zeros(tokens, hidden), persistent=False)
        first_rows = torch.arange(size.num_streams, dtype=torch.int32) * ids
        self.register_buffer("_first_rows", first_rows, persistent=False)

    @staticmethod
    def get_model_state_cls() -> type:
        """What upstream's V2 model runner keeps of the model."""
        # The V1 runner needs nothing of V2's.
        from vllm.unison.worker.v2_model_state import StreamModelState

        return StreamModelState

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden_size] sum of all streams' embeddings.

        Stream 0 is `input_ids` [num_tokens]; the others are the first rows of `auxiliary_ids`. The
        result is a buffer that the next call writes again.
        """
        count = input_ids.shape[0]
        rows = torch.cat([input_ids[:, None].int(), self.auxiliary_ids[:count]], dim=1)
        rows += self._first_rows
        out = self._inputs_embeds[:count]
        out.copy_(F.embedding_bag(rows, self.embeddings, mode="sum"))
        if self._size.scales_embedding:
            out.mul_(math.sqrt(self._size.hidden_size))
        return out

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[num_tokens, hidden_size] hidden states of the decoder."""
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed_input_ids(input_ids)
        return self._decode(positions, inputs_embeds)

    def _decode(self, positions: torch.Tensor, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden_size] hidden states of the decoder."""
        hidden_states: torch.Tensor = self.decoder(positions, inputs_embeds)
        return hidden_states

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The hidden states as they are: the stream sampler multiplies the heads."""
        return hidden_states

    def text_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[num_rows, 0]: no stream is text."""
        return hidden_states.new_empty(hidden_states.shape[0], 0)

    def audio_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[num_rows, num_streams * codebook_size] logits of all streams, one after another."""
        if self._product is not None:
            return self._product(hidden_states)
        return F.linear(hidden_states, self.lm_heads)

    def encode_texts(self, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Per text its encoder states, float32 [num_ids, hidden_size]."""
        assert self.text_encoder is not None
        return self.text_encoder.encode(texts)

    def encode_longest_text(self) -> None:
        """Take for a moment what encoding may take at most, for memory profiling."""
        assert self.text_encoder is not None
        self.text_encoder.take_peak_memory(self._max_text_ids)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a published checkpoint.

        Raises:
            ValueError: naming a tensor that is missing, unknown or of a wrong shape.
        """
        folder = Path(self._model_path)
        if folder.is_dir():
            # Upstream's iterator does not know what audiocraft's files hold.
            tensors = read_musicgen_weights(folder, self._size)
        else:
            tensors = published_tensors(weights, self._size)
        text: list[tuple[str, torch.Tensor]] = []
        parameters = dict(self.named_parameters())
        for name, tensor in tensors:
            if name.startswith((TEXT_ENCODER, TEXT_PROJECTION)):
                text.append((name, tensor))
            else:
                self._load(name, tensor, parameters)
        self.text_encoder = TextEncoder.from_tensors(
            self._size.text_config, text, self.embeddings.device
        )
        return set(parameters)

    def _load(self, name: str, tensor: torch.Tensor, parameters: dict[str, nn.Parameter]) -> None:
        """Load a tensor of any part but the text encoder; those of the codec are passed over."""
        if not name.startswith(DECODER):
            return
        if found := _EMBEDDING.fullmatch(name):
            _rows(self.embeddings, int(found[1]), self._size.codebook_size + 1).copy_(tensor)
        elif found := _HEAD.fullmatch(name):
            _rows(self.lm_heads, int(found[1]), self._size.codebook_size).copy_(tensor)
        else:
            name = name.removeprefix(_BODY)
            if found := _SELF.fullmatch(name):
                parameter = parameters[f"decoder.{found[1]}.qkv_proj.weight"]
                parameter.weight_loader(parameter, tensor, found[2])
            else:
                parameter = parameters[f"decoder.{name}"]
                if loader := getattr(parameter, "weight_loader", None):
                    loader(parameter, tensor)
                else:
                    parameter.data.copy_(tensor)

    @torch.inference_mode()
    def prepare_streams(self) -> None:
        """Called once, on all ranks, when the weights are loaded."""
        if self.text_encoder is None:
            self.text_encoder = TextEncoder.with_random_weights(
                self._size.text_config, self._size.hidden_size, self.embeddings.device
            )
        if current_platform.is_cpu() and self.lm_heads.dtype == torch.bfloat16:
            self._product = packed_product(self.lm_heads.data, None)
            self.lm_heads.data = self.lm_heads.data[:0]


class MusicgenForConditionalGeneration(MusicGenModel):
    """The published model whose layers attend to the states of a text.

    Attributes:
        state_rows: how many encoder states each row has; written before each step.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        spec = multistream_spec(vllm_config.model_config)
        assert spec is not None and spec.text_encoder is not None
        scheduler = vllm_config.scheduler_config
        rows = StateRows(
            spec.text_encoder.max_ids, scheduler.max_num_seqs, scheduler.max_num_batched_tokens
        )
        super().__init__(vllm_config, prefix, rows)
        self.state_rows = rows
        # Keys and values of all layers: one product for a text.
        hidden = self._size.hidden_size
        shard = hidden // get_tensor_model_parallel_world_size()
        self.states_projection = _parameter(self._size.num_layers, 2, shard, hidden)

    def _decode(self, positions: torch.Tensor, inputs_embeds: torch.Tensor) -> torch.Tensor:
        without_states = self.state_rows.without_states[: inputs_embeds.shape[0]]
        hidden_states: torch.Tensor = self.decoder(positions, inputs_embeds, without_states)
        return hidden_states

    def write_states(self, states: torch.Tensor, slots: torch.Tensor) -> None:
        """Write all layers' keys and values of a text.

        Args:
            states: [num_states, hidden_size].
            slots: [num_states] int64 of the KV cache.
        """
        weight = self.states_projection
        product = F.linear(states.to(weight.dtype), weight.flatten(0, 2))
        heads, head_size = _heads(self._size)
        parts = product.view(len(states), *weight.shape[:2], heads, head_size)
        for index, layer in enumerate(self.decoder.layers):
            layer.encoder_attn.attn.write(
                parts[:, index, 0].contiguous(), parts[:, index, 1].contiguous(), slots
            )

    def _load(self, name: str, tensor: torch.Tensor, parameters: dict[str, nn.Parameter]) -> None:
        if found := _STATES.fullmatch(name.removeprefix(_BODY)):
            part = self.states_projection.data[int(found[1]), "kv".index(found[2])]
            begin = get_tensor_model_parallel_rank() * len(part)
            part.copy_(tensor[begin : begin + len(part)])
        else:
            super()._load(name, tensor, parameters)


def sinusoids(num_positions: int, hidden_size: int) -> torch.Tensor:
    """float32 [num_positions, hidden_size] of positions: cosines, then sines."""
    half = hidden_size // 2
    frequencies = torch.exp(torch.arange(half) * -(math.log(10000) / max(half - 1, 1)))
    angles = torch.arange(num_positions)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _heads(size: MusicGenFormat) -> tuple[int, int]:
    """Heads of a rank, and their size."""
    ranks = get_tensor_model_parallel_world_size()
    return size.num_heads // ranks, size.hidden_size // size.num_heads


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape), requires_grad=False)


def _rows(parameter: nn.Parameter, number: int, count: int) -> torch.Tensor:
    """The number-th of the matrices of `count` rows that lie one on another."""
    return parameter.data[number * count : (number + 1) * count]
