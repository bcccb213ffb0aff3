# SPDX-License-Identifier: Apache-2.0
"""The tensors of a published Higgs Audio v2 model, in both namings, under one set of names.

The names are those of transformers; the authors' own lack a prefix, and may hold a matrix of text
in two parts, of which the second one was trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import torch
from transformers import HiggsAudioV2Config

from vllm.unison.formats.expected_tensors import ExpectedTensors, Shape

TEXT_EMBEDDING = "model.embed_tokens.weight"
AUDIO_EMBEDDING = "model.embed_audio_tokens.embed_audio_tokens.weight"
AUDIO_HEAD = "audio_lm_head.weight"
TEXT_HEAD = "text_lm_head.weight"
"""Of training; no text is generated."""

_RENAMED = (
    (r"^audio_codebook_embeddings\.", "model.embed_audio_tokens.embed_audio_tokens."),
    (r"^(embed_tokens|layers|norm)\.", r"model.\1."),
    (r"^audio_decoder_proj\.", ""),
)
_PARTS = re.compile(r"\.(?:embedding|linear)_(frozen|trainable)\.")
_UNUSED = re.compile(r"audio_codebook_weights|.*rotary_emb\.(?:original_)?inv_freq")

Tensors = Iterator[tuple[str, torch.Tensor]]


def published_tensors(
    weights: Iterable[tuple[str, torch.Tensor]], config: HiggsAudioV2Config
) -> Tensors:
    """The weights of a checkpoint as they come, checked, without what generation does not use.

    Raises:
        ValueError: naming a tensor that is missing, unknown or of a wrong shape.
    """
    for name, tensor in expected_tensors(config).checked(_renamed(weights)):
        if name != TEXT_HEAD:
            yield name, tensor


def expected_tensors(config: HiggsAudioV2Config) -> ExpectedTensors:
    """Names and shapes of a model's tensors."""
    hidden, inner = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads * config.head_dim
    pairs = config.num_key_value_heads * config.head_dim
    codes = config.num_codebooks * config.codebook_size
    shapes: dict[str, Shape] = {
        TEXT_EMBEDDING: (config.vocab_size, hidden),
        AUDIO_EMBEDDING: (codes, hidden),
        "model.norm.weight": (hidden,),
        AUDIO_HEAD: (codes, hidden),
        TEXT_HEAD: (config.vocab_size, hidden),
    }
    of_layer: dict[str, Shape] = {
        "self_attn.q_proj": (heads, hidden),
        "self_attn.k_proj": (pairs, hidden),
        "self_attn.v_proj": (pairs, hidden),
        "self_attn.o_proj": (hidden, heads),
    }
    for prefix in ("", "audio_"):
        of_layer[f"{prefix}input_layernorm"] = (hidden,)
        of_layer[f"{prefix}post_attention_layernorm"] = (hidden,)
        of_layer[f"{prefix}mlp.gate_proj"] = (inner, hidden)
        of_layer[f"{prefix}mlp.up_proj"] = (inner, hidden)
        of_layer[f"{prefix}mlp.down_proj"] = (hidden, inner)
    for layer in range(config.num_hidden_layers):
        for name, shape in of_layer.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    return ExpectedTensors(shapes, frozenset({TEXT_HEAD}))


def _renamed(weights: Iterable[tuple[str, torch.Tensor]]) -> Tensors:
    """The weights under transformers' names, each once, those in parts made whole."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    heads: set[str] = set()
    for name, tensor in weights:
        if _UNUSED.fullmatch(name):
            continue
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        if found := _PARTS.search(name):
            name = name.replace(found[0], ".")
            halves = parts.setdefault(name, {})
            halves[found[1]] = tensor
            if len(halves) < 2:
                continue
            tensor = torch.cat([halves["frozen"], halves["trainable"]])
            del parts[name]
        if name in (AUDIO_HEAD, TEXT_HEAD):
            # Converted checkpoints may hold them under both names.
            if name in heads:
                continue
            heads.add(name)
        yield name, tensor
    for name, halves in parts.items():
        raise ValueError(f"the checkpoint holds only the {next(iter(halves))} part of {name!r}")
