# SPDX-License-Identifier: Apache-2.0
"""MusicGen's tensors as audiocraft names and saves them."""

import re
from pathlib import Path

import torch

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
            stem, _, last = rest.rpartition(".")
            if stem in renamed:
                language[f"transformer.layers.{index}.{renamed[stem]}.{last}"] = tensor
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


def write_audiocraft(folder: Path, language: Tensors, codec: Tensors) -> None:
    """Save them as audiocraft does."""
    for name, state in ((LANGUAGE_MODEL_FILE, language), (CODEC_FILE, codec)):
        package = {"best_state": state, "xp.cfg": "dim: 16\n", "version": "1", "exported": True}
        torch.save(package, folder / name)
