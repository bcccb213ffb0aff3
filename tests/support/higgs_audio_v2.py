# SPDX-License-Identifier: Apache-2.0
"""Small random Higgs Audio v2 models, written by transformers as they are published."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    HiggsAudioV2Config,
    HiggsAudioV2ForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from vllm.unison.testing.random_codec import write_random_codec

NUM_CODEBOOKS = 8
NUM_CODES = 16
"""Of a codebook; few, so that ends and repetitions come by chance."""

SPECIALS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<|scene_desc_start|>", "<|scene_desc_end|>", "<|audio_out_bos|>",
    "<|audio_eos|>", "<|reserved_special_token_6|>", "<|AUDIO_OUT|>",
)  # fmt: skip


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, a few words that begin with blanks, and the special tokens of the grammar."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    merges = []
    for left, right in (("Ċ", "Ċ"), ("h", "e"), ("Ġ", "t"), ("ĊĊ", "H")):
        merges.append((left, right))
        vocabulary[left + right] = len(vocabulary)
    whole = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=whole,
        bos_token=SPECIALS[0],
        eos_token=SPECIALS[1],
        additional_special_tokens=list(SPECIALS[2:]),
    )


def tiny_config(**changes: Any) -> HiggsAudioV2Config:
    """The smallest sizes that an engine on the CPU takes."""
    ids = {token: tokenizer().convert_tokens_to_ids(token) for token in SPECIALS}
    settings = {
        "vocab_size": len(tokenizer()), "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
        "max_position_embeddings": 512, "num_codebooks": NUM_CODEBOOKS,
        "codebook_size": NUM_CODES + 2, "audio_stream_bos_id": NUM_CODES,
        "audio_stream_eos_id": NUM_CODES + 1, "audio_token_id": ids["<|AUDIO_OUT|>"],
        "audio_bos_token_id": ids["<|audio_out_bos|>"],
        "audio_delay_token_id": ids["<|reserved_special_token_6|>"],
        "eos_token_id": ids["<|eot_id|>"], "pad_token_id": ids["<|end_of_text|>"],
        "bos_token_id": ids["<|begin_of_text|>"],
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 32.0, "low_freq_factor": 0.125,
            "high_freq_factor": 0.5, "original_max_position_embeddings": 64,
        },
        **changes,
    }  # fmt: skip
    return HiggsAudioV2Config(**settings)


@functools.cache
def tiny_model(seed: int = 0) -> Any:
    """A random model in float32 and eval mode, whose codes depend on all of what came before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = HiggsAudioV2ForConditionalGeneration(tiny_config()).eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn(parameter.shape)
            elif ".layers." in name:
                parameter.data *= 8
            elif "embed" in name:
                parameter.data *= 20
            else:
                parameter.data *= 10
        # Ends come by chance, but not at once.
        ends = model.audio_lm_head.weight.data.view(NUM_CODEBOOKS, NUM_CODES + 2, -1)[:, -1]
        ends *= 0.6
    return model


def write_higgs_audio_v2(folder: str | Path, *, seed: int = 0, authors_names: bool = False) -> Any:
    """Save one with its tokenizer and, in a folder of its own, its codec; returns the model.

    Args:
        folder: is made if it is not there.
        seed: of the weights.
        authors_names: whether the files are those that the authors published first.
    """
    folder = Path(folder)
    model = tiny_model(seed)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    write_random_codec(
        folder / "codec",
        "higgs_audio_v2_tokenizer",
        codebook_size=NUM_CODES,
        target_bandwidths=[NUM_CODEBOOKS * 4 * 25 / 1000],
    )
    generation = json.loads((folder / "generation_config.json").read_text())
    generation |= {"ras_win_len": 7, "ras_win_max_num_repeat": 2}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    processor = {"audio_tokenizer": {"audio_tokenizer_name_or_path": "codec"}}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    if authors_names:
        _rename(folder)
    return model


def _rename(folder: Path) -> None:
    """What transformers wrote, as the authors did: other names, and text matrices in two parts."""
    tensors = load_file(folder / "model.safetensors")
    renamed = {"audio_codebook_weights": torch.ones(NUM_CODEBOOKS)}
    for name, tensor in tensors.items():
        name = name.removeprefix("model.")
        if name == "embed_tokens.weight":
            renamed["embed_tokens.embedding_frozen.weight"] = tensor[:100].clone()
            renamed["embed_tokens.embedding_trainable.weight"] = tensor[100:].clone()
        elif name == "embed_audio_tokens.embed_audio_tokens.weight":
            renamed["audio_codebook_embeddings.weight"] = tensor
        elif name == "audio_lm_head.weight":
            renamed[f"audio_decoder_proj.{name}"] = tensor
        else:
            renamed[name] = tensor
    renamed["audio_decoder_proj.text_lm_head.weight"] = torch.zeros(len(tokenizer()), 64)
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    llama = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act",
        "max_position_embeddings", "rms_norm_eps",
    )  # fmt: skip
    rope = dict(config["rope_parameters"])
    theta = rope.pop("rope_theta")
    own = {
        "model_type": "higgs_audio", "architectures": ["HiggsAudioModel"],
        "text_config": {
            "model_type": "llama", **{name: config[name] for name in llama},
            "rope_theta": theta, "rope_scaling": rope,
        },
        "audio_adapter_type": "dual_ffn_fast_forward", "use_delay_pattern": True,
        "audio_dual_ffn_layers": list(range(config["num_hidden_layers"])),
        "audio_num_codebooks": NUM_CODEBOOKS, "audio_codebook_size": NUM_CODES,
        "audio_stream_bos_id": config["audio_stream_bos_id"],
        "audio_stream_eos_id": config["audio_stream_eos_id"],
        "audio_out_token_idx": config["audio_token_id"],
        "audio_out_bos_token_id": config["audio_bos_token_id"],
        "pad_token_id": config["pad_token_id"], "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(own))
