# SPDX-License-Identifier: Apache-2.0
"""The language model in training: a Llama with embeddings and heads of all streams.

Its parameters have the names that the engine's checkpoint has. Written out, because some of its
heads are shown where to look (`hint`), which a library's attention does not let us do.
"""

from __future__ import annotations

import math

import torch
from layout import (
    END,
    FIRST_CODE,
    FIRST_TEXT,
    IGNORE,
    NUM_STREAMS,
    PAD,
    VOCABULARY_SIZE,
    slice_begin,
)
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=VOCABULARY_SIZE,
    hidden_size=320,
    intermediate_size=896,
    num_hidden_layers=8,
    num_attention_heads=5,
    num_key_value_heads=5,
    head_dim=64,
    max_position_embeddings=2048,
    tie_word_embeddings=False,
    pad_token_id=None,
    bos_token_id=None,
    eos_token_id=END,
)
HINTED = {2: 1, 3: 2, 4: 1}
"""Layers, and how many of each one's heads are shown where to look."""

_THETA = 10000.0


class RMSNorm(nn.Module):
    """Scales vectors to a root mean square of one, and by a learned factor."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[..., size] to the same."""
        wide = values.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + CONFIG.rms_norm_eps)
        return (wide * scale * self.weight).to(values.dtype)


class Attention(nn.Module):
    """Causal attention with rotary positions."""

    def __init__(self, hinted: int) -> None:
        super().__init__()
        size, width = CONFIG.hidden_size, CONFIG.num_attention_heads * CONFIG.head_dim
        self.q_proj = nn.Linear(size, width, bias=False)
        self.k_proj = nn.Linear(size, width, bias=False)
        self.v_proj = nn.Linear(size, width, bias=False)
        self.o_proj = nn.Linear(width, size, bias=False)
        self._hinted = hinted

    def forward(
        self, values: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[batch, steps, size] to the same, and the weights of hinted heads, float32."""
        batch, steps, _ = values.shape
        shape = (batch, steps, CONFIG.num_attention_heads, CONFIG.head_dim)
        query, key, value = (
            project(values).view(shape).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = _rotate(query, rotation), _rotate(key, rotation)
        scores = query @ key.transpose(2, 3)
        weights = torch.softmax(scores.float() / math.sqrt(CONFIG.head_dim) + mask, -1)
        mixed = weights.to(value.dtype) @ value
        out = self.o_proj(mixed.transpose(1, 2).reshape(batch, steps, -1))
        return out, weights[:, : self._hinted] if self._hinted else None


def _rotate(values: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    cosine, sine = rotation
    first, second = values.chunk(2, -1)
    return (values * cosine + torch.cat([-second, first], -1) * sine).to(values.dtype)


class Perceptron(nn.Module):
    """Llama's gated two-layer perceptron."""

    def __init__(self) -> None:
        super().__init__()
        size, inner = CONFIG.hidden_size, CONFIG.intermediate_size
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[..., size] to the same."""
        return self.down_proj(functional.silu(self.gate_proj(values)) * self.up_proj(values))


class Layer(nn.Module):
    """Attention and perceptron, each added to its input."""

    def __init__(self, hinted: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(CONFIG.hidden_size)
        self.self_attn = Attention(hinted)
        self.post_attention_layernorm = RMSNorm(CONFIG.hidden_size)
        self.mlp = Perceptron()

    def forward(
        self, values: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As of `Attention`."""
        mixed, weights = self.self_attn(self.input_layernorm(values), rotation, mask)
        values = values + mixed
        return values + self.mlp(self.post_attention_layernorm(values)), weights


class Body(nn.Module):
    """Table, layers and last norm."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY_SIZE, CONFIG.hidden_size)
        self.layers = nn.ModuleList([Layer(HINTED.get(i, 0)) for i in range(num_layers)])
        self.norm = RMSNorm(CONFIG.hidden_size)

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """[batch, steps, size] embedded steps to hidden states and hinted heads' weights."""
        steps = values.shape[1]
        place = torch.arange(steps, device=values.device)
        half = torch.arange(0, CONFIG.head_dim, 2, device=values.device) / CONFIG.head_dim
        angles = place[:, None] * _THETA**-half
        angles = torch.cat([angles, angles], -1)
        rotation = (angles.cos().to(values.dtype), angles.sin().to(values.dtype))
        mask = torch.full((steps, steps), -1e9, device=values.device).triu(1)
        looked = []
        for layer in self.layers:
            values, weights = layer(values, rotation, mask)
            if weights is not None:
                looked.append(weights)
        return self.norm(values), looked


class Backbone(nn.Module):
    """Body and head."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.model = Body(num_layers)
        self.lm_head = nn.Linear(CONFIG.hidden_size, VOCABULARY_SIZE, bias=False)


class StreamLanguageModel(nn.Module):
    """The backbone with the embeddings and heads of all streams, as the engine computes them.

    Args:
        num_layers: more than the hinted ones.
    """

    def __init__(self, num_layers: int = CONFIG.num_hidden_layers) -> None:
        super().__init__()
        self.backbone = Backbone(num_layers)
        self.head_offsets = nn.Parameter(torch.zeros(NUM_STREAMS, CONFIG.hidden_size))
        for name, weight in self.named_parameters():
            if weight.ndim == 2 and "head_offsets" not in name:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = 1 / math.sqrt(2 * CONFIG.num_hidden_layers) if deep else 1.0
                nn.init.normal_(weight, std=scale * CONFIG.hidden_size**-0.5 * 0.6)
        table = self.backbone.model.embed_tokens.weight
        nn.init.normal_(table, std=0.05)
        # Capitals begin as small letters.
        with torch.no_grad():
            small = FIRST_TEXT + 1
            table[small + 26 : small + 52] = table[small : small + 26] + 0.01 * torch.randn(
                26, CONFIG.hidden_size
            )

    def grow(self, weights: dict[str, torch.Tensor]) -> None:
        """Take the weights of a model of as many layers or fewer.

        Layers that it lacks come after its own and add nothing to begin with, so the model
        computes what the smaller one did.
        """
        depth = num_layers(weights)
        self.load_state_dict(self.state_dict() | weights)
        for layer in self.backbone.model.layers[depth:]:
            nn.init.zeros_(layer.self_attn.o_proj.weight)
            nn.init.zeros_(layer.mlp.down_proj.weight)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """[batch, steps, NUM_STREAMS] ids to [batch, steps, size]."""
        table = self.backbone.model.embed_tokens.weight
        first = functional.embedding(ids[..., 0], table)
        rest = functional.embedding(ids[..., 1:], table)
        return first + (rest * (ids[..., 1:] != PAD)[..., None]).sum(-2)

    def logits(self, hidden: torch.Tensor, stream: int) -> torch.Tensor:
        """Logits of a stream's codes; of the text's letters if it is -1. The end comes last.

        Args:
            hidden: [..., size].
            stream: streams past the first have no end.
        """
        head = self.backbone.lm_head.weight
        begin = FIRST_TEXT if stream < 0 else slice_begin(stream)
        stop = FIRST_CODE if stream < 0 else slice_begin(stream + 1)
        states = hidden + self.head_offsets[max(stream, 0)]
        logits = functional.linear(states, head[begin:stop]).float()
        if stream > 0:
            return logits
        ended = functional.linear(states, head[END : END + 1]).float()
        return torch.cat([logits, ended], -1)

    def forward(
        self,
        ids: torch.Tensor,
        targets: torch.Tensor,
        focus: torch.Tensor,
        reach: torch.Tensor,
        region: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Sums of losses and hits.

        Args:
            ids: [batch, steps, NUM_STREAMS].
            targets: of the same shape; IGNORE where there is none.
            focus: [batch, steps], reach [batch], region [batch, 2]: see `layout.Example`.

        Returns:
            [1 + NUM_STREAMS] tensors `loss`, `hits` and `count`: text first, then each stream;
            and `hint`, the mean surprise of where hinted heads should look.
        """
        hidden, looked = self.backbone.model(self.embed(ids))
        sums: dict[str, list[torch.Tensor]] = {"loss": [], "hits": [], "count": []}
        # END belongs to the phase that it ends.
        in_text = (targets[..., 0] >= FIRST_TEXT) & (targets[..., 0] < FIRST_CODE)
        text_rows = in_text.any(1, keepdim=True)
        for stream in range(-1, NUM_STREAMS):
            wanted = targets[..., max(stream, 0)]
            if stream <= 0:
                wanted = wanted.masked_fill(text_rows if stream == 0 else ~text_rows, IGNORE)
            begin = FIRST_TEXT if stream < 0 else slice_begin(stream)
            rows = wanted != IGNORE
            logits = self.logits(hidden[rows], stream)
            local = wanted[rows] - begin
            if stream <= 0:
                local = torch.where(wanted[rows] == END, logits.shape[-1] - 1, local)
            sums["loss"].append(functional.cross_entropy(logits, local, reduction="sum"))
            sums["hits"].append((logits.argmax(-1) == local).sum().detach())
            sums["count"].append(rows.sum())
        result = {name: torch.stack(values) for name, values in sums.items()}
        result["hint"] = hint(looked, focus, reach, region)
        return result


def num_layers(weights: dict[str, torch.Tensor]) -> int:
    """Layers of the model that weights are of."""
    return sum(name.endswith("input_layernorm.weight") for name in weights)


def hint(
    looked: list[torch.Tensor], focus: torch.Tensor, reach: torch.Tensor, region: torch.Tensor
) -> torch.Tensor:
    """Mean negative logarithm of the attention that lies around the place to look at.

    Args:
        looked: per layer [batch, heads, steps, steps] weights.
        focus, reach, region: see `StreamLanguageModel.forward`.
    """
    which, step = torch.nonzero(focus >= 0, as_tuple=True)
    if not len(which):
        return torch.zeros((), device=focus.device)
    columns = torch.arange(focus.shape[1], device=focus.device)
    distance = (columns - focus[which, step, None]) / reach[which, None]
    near = torch.exp(-0.5 * distance.square())
    near = near * (columns >= region[which, :1]) * (columns < region[which, 1:])
    total = torch.zeros((), device=focus.device)
    heads = 0
    for weights in looked:
        mass = (weights[which, :, step] * near[:, None]).sum(-1)
        total = total - (mass + 1e-4).log().mean(0).sum()
        heads += weights.shape[1]
    return total / heads
