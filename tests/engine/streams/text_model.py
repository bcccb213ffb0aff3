# SPDX-License-Identifier: Apache-2.0
"""A tiny text-only model with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vllm.unison.testing.random_checkpoint import byte_tokenizer

END = 1


def write_text_model(
    folder: Path,
    seed: int = 3,
    vocab_size: int = 272,
    num_layers: int = 2,
    end_weight: float = 1.0,
) -> Path:
    """Write a Llama with the byte tokenizer, and return the folder.

    Args:
        folder: where to.
        seed: of its weights.
        vocab_size, num_layers: of the model.
        end_weight: multiplies the end token's row of the head: larger rows give more extreme
            logits, which are chosen more often.
    """
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            model.lm_head.weight[END] *= end_weight
        model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
