# SPDX-License-Identifier: Apache-2.0
"""Small random Higgs TTS 3 models, in the published container, names and keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vllm.unison.testing.random_codec import HIGGS_AUDIO, random_codec

NUM_STREAMS, NUM_CODES = 8, 1024
LEAD_IN, END = 1024, 1025
"""Ids of each codebook after its codes."""
CODEBOOK_IDS = NUM_CODES + 2
SAMPLE_RATE, SAMPLES_PER_FRAME = 24000, 960

HIDDEN, NUM_LAYERS, FFN = 64, 2, 96
TEXT_VOCABULARY = 288
"""Ids of the text's embedding; the tokenizer has fewer, as the published one."""

PREFIX = "tied.embedding.modality_embeddings.0"
SPECIALS = (
    "<|endoftext|>", "<|tts|>", "<|ref_audio|>", "<|text|>", "<|audio|>", "<|ref_text|>",
    "<|emotion:joy|>",
)  # fmt: skip


def qwen_tokenizer(specials: tuple[str, ...] = SPECIALS) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of Qwen's kind, which adds nothing to a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(specials))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=specials[0])


def published_config() -> dict[str, Any]:
    """What config.json holds."""
    return {
        "architectures": ["HiggsMultimodalQwen3ForConditionalGeneration"],
        "model_type": "higgs_multimodal_qwen3",
        "audio_token_id": -100,
        "mel_per_sample": 8,
        "audio_encoder_config": {
            "encoder_type": "discrete",
            "num_codebooks": NUM_STREAMS,
            "vocab_size": CODEBOOK_IDS,
            "out_dim": HIDDEN,
            "tie_word_embeddings": True,
            "use_delay_pattern": True,
        },
        "text_config": {
            "model_type": "qwen3",
            "hidden_size": HIDDEN,
            "intermediate_size": FFN,
            "num_hidden_layers": NUM_LAYERS,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "vocab_size": TEXT_VOCABULARY,
            "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-6,
            "rope_theta": None,
            "tie_word_embeddings": True,
            "dtype": "float32",
        },
        "dtype": "float32",
    }


def random_body(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The decoder's layers and its last norm."""

    def normal(*shape: int, scale: float = 0.4) -> torch.Tensor:
        return scale * torch.randn(shape, generator=generator)

    body = {"body.norm.weight": 1 + normal(HIDDEN, scale=0.1)}
    shapes = {
        "self_attn.q_proj": (64, HIDDEN),
        "self_attn.k_proj": (32, HIDDEN),
        "self_attn.v_proj": (32, HIDDEN),
        "self_attn.o_proj": (HIDDEN, 64),
        "mlp.gate_proj": (FFN, HIDDEN),
        "mlp.up_proj": (FFN, HIDDEN),
        "mlp.down_proj": (HIDDEN, FFN),
    }
    norms = {
        "self_attn.q_norm": 32,
        "self_attn.k_norm": 32,
        "input_layernorm": HIDDEN,
        "post_attention_layernorm": HIDDEN,
    }
    for layer in range(NUM_LAYERS):
        prefix = f"body.layers.{layer}"
        body |= {f"{prefix}.{name}.weight": normal(*shape) for name, shape in shapes.items()}
        body |= {
            f"{prefix}.{name}.weight": 1 + normal(size, scale=0.1) for name, size in norms.items()
        }
    return body


def write_higgs3(
    folder: Path,
    *,
    seed: int = 0,
    louder: float = 1.0,
    specials: tuple[str, ...] = SPECIALS,
    has_heads: bool = False,
) -> Path:
    """Write a model.

    Args:
        folder: made if it does not exist.
        seed: of the weights.
        louder: factor of the table's row of the end on stream 0, which is then sampled more often.
        specials: the tokenizer's own tokens.
        has_heads: whether the tensors that are tables again are stored too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    text = 0.4 * torch.randn(TEXT_VOCABULARY, HIDDEN, generator=generator)
    codes = 0.4 * torch.randn(NUM_STREAMS * CODEBOOK_IDS, HIDDEN, generator=generator)
    codes[END] *= louder
    codec = random_codec(HIGGS_AUDIO, seed=seed + 1)
    tensors = random_body(generator) | {
        "tied.embedding.text_embedding.weight": text,
        f"{PREFIX}.embedding.weight": codes,
        # transformers has no use for it, and the published file has it.
        f"{PREFIX}.model.semantic_model.masked_spec_embed": torch.ones(32),
    }
    if has_heads:
        tensors["tied.head.text_head.weight"] = text.clone()
        tensors["tied.head.modality_heads.0.weight"] = codes.clone()
    for name, weight in codec.state_dict().items():
        tensors[f"{PREFIX}.model.{name}"] = weight.clone().contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    # The published codec has half a gigabyte of weights, and its configuration is in no file.
    config = published_config() | {"codec_config": codec.config.to_dict()}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    qwen_tokenizer(specials).save_pretrained(folder)
    return folder
