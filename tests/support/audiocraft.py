# SPDX-License-Identifier: Apache-2.0
"""MusicGen's tensors as audiocraft names and saves them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from vllm.unison.formats.musicgen_weights import CODEC_FILE, LANGUAGE_MODEL_FILE

Tensors = dict[str, torch.Tensor]


def audiocraft_names(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """The language model and the codec under audiocraft's names, written down from its modules."""
    language: Tensors = {}
    codec: Tensors = {}
    last_layer = max(
        int(name.split(".layers.")[1].split(".")[0])
        for name in tensors
        if name.startswith("audio_encoder.decoder.layers.")
    )
    layer = re.compile(r"decoder\.model\.decoder\.layers\.(\d+)\.(.*)")
    renamed = {
        "encoder_attn_layer_norm": "norm_cross", "self_attn_layer_norm": "norm1",
        "final_layer_norm": "norm2", "fc1": "linear1", "fc2": "linear2",
        "self_attn.out_proj": "self_attn.out_proj",
        "encoder_attn.out_proj": "cross_attention.out_proj",
    }  # fmt: skip
    for name, tensor in tensors.items():
        if name.startswith("text_encoder."):
            continue
        if found := layer.fullmatch(name):
            index, rest = found.groups()
            stem, _, leaf = rest.rpartition(".")
            if stem in renamed:
                language[f"transformer.layers.{index}.{renamed[stem]}.{leaf}"] = tensor
            elif stem.endswith("q_proj"):
                own = "self_attn" if stem.startswith("self") else "cross_attention"
                three = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
                language[f"transformer.layers.{index}.{own}.in_proj_weight"] = torch.cat(three)
        elif name.startswith("decoder.model.decoder.embed_tokens."):
            language["emb." + name.split("embed_tokens.")[1]] = tensor
        elif name.startswith("decoder.lm_heads."):
            language["linears." + name.split("lm_heads.")[1]] = tensor
        elif name.startswith("decoder.model.decoder.layer_norm."):
            language["out_norm." + name.split("layer_norm.")[1]] = tensor
        elif "enc_to_dec_proj." in name:
            conditioner = "self_wav" if name.startswith("audio_") else "description"
            stem = f"condition_provider.conditioners.{conditioner}.output_proj."
            language[stem + name.split("proj.")[1]] = tensor
        else:
            assert name.startswith("audio_encoder."), name
            name = name.removeprefix("audio_encoder.")
            side, _, rest = name.partition(".layers.")
            if side == "quantizer":
                rest = rest.replace("codebook.", "_codebook.")
                codec[f"quantizer.vq.layers.{rest}"] = tensor
                continue
            index = int(rest.split(".")[0])
            # Of the decoder's layers 3, 6, … but its last are transposed.
            transposed = side == "decoder" and index % 3 == 0 and 0 < index < last_layer
            own = "convtr.convtr." if transposed else "conv.conv."
            codec[f"{side}.model.{re.sub('(?<=[.])conv[.]', own, rest)}"] = tensor
    return language, codec


def write_audiocraft(
    folder: Path, language: Tensors, codec: Tensors, settings: Sequence[str] = ("", "")
) -> None:
    """Save them as audiocraft does, with the settings that they were trained with."""
    for name, state, text in (
        (LANGUAGE_MODEL_FILE, language, settings[0]),
        (CODEC_FILE, codec, settings[1]),
    ):
        package = {"best_state": state, "xp.cfg": text, "version": "1", "exported": True}
        torch.save(package, folder / name)


def audiocraft_settings(
    config: Any, text_encoder: str, seconds: float = 10
) -> list[dict[str, Any]]:
    """The settings of a language model and its codec, by name.

    All that audiocraft's configurations of models have is there, and some of how they are trained.
    As audiocraft saves them, some refer to others.

    Args:
        config: a MusicgenConfig.
        text_encoder: the name of T5.
        seconds: of audio in training.
    """
    decoder, codec = config.decoder, config.audio_encoder
    books, channels = decoder.num_codebooks, decoder.audio_channels
    language_model = {
        "solver": "audiogen",
        "sample_rate": codec.sampling_rate,
        "channels": channels,
        "compression_model_checkpoint": "//reference/bd44a852/checkpoint.th",
        "compression_model_n_q": None,
        "interleave_stereo_codebooks": {"use": channels == 2, "per_timestep": False},
        "device": "cuda",
        "dtype": "float32",
        "dataset": {"batch_size": 128, "segment_duration": seconds, "train": {"aug_p": 0.5}},
        "generate": {"lm": {"use_sampling": True, "temp": 1.0, "top_k": 250, "top_p": 0.0}},
        "optim": {"ema": {"use": True, "updates": "${optim.updates_per_epoch}"}},
        "metrics": {"chroma_cosine": {"chroma_base": {"sample_rate": "${sample_rate}"}}},
        "classifier_free_guidance": {"training_dropout": 0.1, "inference_coef": 3.0},
        "attribute_dropout": {},
        "fuser": {
            "cross_attention_pos_emb": False,
            "cross_attention_pos_emb_scale": 1,
            "sum": [],
            "prepend": [],
            "cross": ["description"],
            "input_interpolate": [],
        },
        "conditioners": {
            "description": {
                "model": "t5",
                "t5": {
                    "name": text_encoder,
                    "finetune": False,
                    "word_dropout": 0.0,
                    "normalize_text": False,
                },
            }
        },
        "lm_model": "transformer_lm",
        "codebooks_pattern": {
            "modeling": "delay",
            "delay": {
                "delays": [k // channels for k in range(books)],
                "flatten_first": 0,
                "empty_initial": 0,
            },
            "unroll": {"flattening": [0, 1, 2, 3], "delays": [0, 0, 0, 0]},
            "music_lm": {"group_by": 2},
            "coarse_first": {"delays": [0, 0, 0]},
        },
        "transformer_lm": {
            "dim": decoder.hidden_size,
            "num_heads": decoder.num_attention_heads,
            "num_layers": decoder.num_hidden_layers,
            "hidden_scale": decoder.ffn_dim / decoder.hidden_size,
            "n_q": books,
            "card": decoder.vocab_size,
            "dropout": 0.0,
            "emb_lr": None,
            "activation": "gelu",
            "norm_first": True,
            "bias_ff": False,
            "bias_attn": False,
            "bias_proj": False,
            "past_context": None,
            "causal": True,
            "custom": False,
            "memory_efficient": True,
            "attention_as_float32": False,
            "layer_scale": None,
            "positional_embedding": "sin",
            "xpos": False,
            "checkpointing": "none",
            "weight_init": "gaussian",
            "depthwise_init": "current",
            "zero_bias_init": True,
            "norm": "layer_norm",
            "cross_attention": False,
            "qk_layer_norm": False,
            "qk_layer_norm_cross": False,
            "attention_dropout": None,
            "kv_repeat": 1,
            "two_step_cfg": False,
        },
    }
    compression_model = {
        "solver": "compression",
        "sample_rate": codec.sampling_rate,
        "channels": 1,
        "compression_model": "encodec",
        "encodec": {
            "autoencoder": "seanet",
            "quantizer": "rvq",
            "sample_rate": "${sample_rate}",
            "channels": "${channels}",
            "causal": codec.use_causal_conv,
            "renormalize": False,
        },
        "seanet": {
            "dimension": codec.hidden_size,
            "channels": "${channels}",
            "causal": "${encodec.causal}",
            "n_filters": codec.num_filters,
            "n_residual_layers": codec.num_residual_layers,
            "ratios": list(codec.upsampling_ratios),
            "activation": "ELU",
            "activation_params": {"alpha": 1.0},
            "norm": codec.norm_type,
            "norm_params": {},
            "kernel_size": codec.kernel_size,
            "residual_kernel_size": codec.residual_kernel_size,
            "last_kernel_size": codec.last_kernel_size,
            "dilation_base": codec.dilation_growth_rate,
            "pad_mode": codec.pad_mode,
            "true_skip": not codec.use_conv_shortcut,
            "compress": codec.compress,
            "lstm": codec.num_lstm_layers,
            "disable_norm_outer_blocks": 0,
            "decoder": {
                "trim_right_ratio": codec.trim_right_ratio,
                "final_activation": None,
                "final_activation_params": None,
            },
            "encoder": {},
        },
        "rvq": {
            "n_q": codec.num_quantizers,
            "q_dropout": False,
            "bins": codec.codebook_size,
            "decay": 0.99,
            "kmeans_init": True,
            "kmeans_iters": 50,
            "threshold_ema_dead_code": 2,
            "orthogonal_reg_weight": 0.0,
            "orthogonal_reg_active_codes_only": False,
        },
        "no_quant": {},
    }
    return [language_model, compression_model]


def as_yaml(*settings: dict[str, Any]) -> list[str]:
    """Settings as the text that is saved."""
    return [yaml.safe_dump(one, sort_keys=False) for one in settings]
