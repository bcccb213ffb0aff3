# SPDX-License-Identifier: Apache-2.0
"""Small random codecs in the files and under the names of ESPnet's DAC.

This module shares no code with vllm.unison.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

GENERATOR: dict[str, Any] = {
    "hidden_dim": 12,
    "codebook_dim": 12,
    "encdec_channels": 1,
    "encdec_n_filters": 2,
    "encdec_n_residual_layers": 2,
    "encdec_ratios": [8, 5, 4, 2],
    "encdec_activation": "Snake",
    "encdec_norm": "weight_norm",
    "encdec_kernel_size": 7,
    "encdec_residual_kernel_size": 7,
    "encdec_last_kernel_size": 7,
    "encdec_dilation_base": 2,
    "encdec_causal": False,
    "encdec_pad_mode": "reflect",
    "encdec_true_skip": False,
    "encdec_compress": 2,
    "encdec_lstm": 2,
    "decoder_trim_right_ratio": 1.0,
    "decoder_final_activation": None,
    "decoder_final_activation_params": None,
    "quantizer_n_q": 8,
    "quantizer_bins": 16,
    "quantizer_target_bandwidth": [1.6],
    "quantizer_dropout": True,
}
"""Parameters of ESPnet's DACGenerator, but for the sampling rate."""

PROJECTED = GENERATOR | {"codebook_dim": 5}
"""The same with codebooks that are smaller than what they quantize."""

SAMPLE_RATE = 16000


def tensors(generator: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under ESPnet's names, as it saves a whole codec."""
    random = torch.Generator().manual_seed(seed)
    found: dict[str, torch.Tensor] = {}
    width, hidden = generator["encdec_n_filters"], generator["hidden_dim"]
    kernel, blocks = generator["encdec_kernel_size"], generator["encdec_n_residual_layers"]
    ratios = generator["encdec_ratios"]

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=random)

    def convolution(name: str, first: int, second: int, kernel: int, kind: str = "conv") -> None:
        # A transposed one has its inputs first, and a magnitude for each of them.
        shape = (second, first, kernel) if kind == "conv" else (first, second, kernel)
        stem = f"{name}.{kind}.{kind}"
        found[f"{stem}.bias"] = draw(second, scale=0.1)
        found[f"{stem}.weight_g"] = 0.7 + draw(shape[0], 1, 1, scale=0.1).abs()
        found[f"{stem}.weight_v"] = draw(*shape)

    def block(name: str, size: int) -> None:
        inner = size // generator["encdec_compress"]
        convolution(f"{name}.block.1", size, inner, generator["encdec_residual_kernel_size"])
        convolution(f"{name}.block.3", inner, size, 1)
        convolution(f"{name}.shortcut", size, size, 1)

    def lstm(name: str, size: int) -> None:
        for layer in range(generator["encdec_lstm"]):
            for kind in ("ih", "hh"):
                found[f"{name}.lstm.weight_{kind}_l{layer}"] = draw(4 * size, size, scale=0.2)
                found[f"{name}.lstm.bias_{kind}_l{layer}"] = draw(4 * size, scale=0.1)

    size, index = width, 1
    convolution("encoder.model.0", 1, width, kernel)
    for ratio in reversed(ratios):
        for _ in range(blocks):
            block(f"encoder.model.{index}", size)
            index += 1
        convolution(f"encoder.model.{index + 1}", size, 2 * size, 2 * ratio)
        size, index = 2 * size, index + 2
    lstm(f"encoder.model.{index}", size)
    convolution(f"encoder.model.{index + 2}", size, hidden, generator["encdec_last_kernel_size"])
    convolution("decoder.model.0", hidden, size, kernel)
    lstm("decoder.model.1", size)
    index = 2
    for ratio in ratios:
        convolution(f"decoder.model.{index + 1}", size, size // 2, 2 * ratio, "convtr")
        size, index = size // 2, index + 2
        for _ in range(blocks):
            block(f"decoder.model.{index}", size)
            index += 1
    convolution(f"decoder.model.{index + 1}", size, 1, generator["encdec_last_kernel_size"])
    bins, inner = generator["quantizer_bins"], generator["codebook_dim"]
    for layer in range(generator["quantizer_n_q"]):
        stem = f"quantizer.vq.layers.{layer}"
        found |= {
            f"{stem}._codebook.inited": torch.ones(1),
            f"{stem}._codebook.cluster_size": torch.ones(bins),
            f"{stem}._codebook.embed": draw(bins, inner, scale=0.7**layer),
            f"{stem}._codebook.embed_avg": torch.zeros(bins, inner),
        }
        if inner != hidden:
            for name, sizes in (("in", (inner, hidden)), ("out", (hidden, inner))):
                found[f"{stem}.project_{name}.weight"] = draw(*sizes, scale=0.5)
                found[f"{stem}.project_{name}.bias"] = draw(sizes[0], scale=0.1)
    whole = {f"codec.generator.{name}": tensor for name, tensor in found.items()}
    return whole | {"codec.discriminator.some.weight": torch.zeros(2, 2)}


def write_espnet_dac(
    folder: Path, generator: dict[str, Any] = GENERATOR, *, seed: int = 0, nested: bool = False
) -> Path:
    """Write a codec's settings and weights.

    Args:
        folder: made if missing.
        generator: parameters.
        seed: of all weights.
        nested: whether they lie in a folder of the folder, as ESPnet packs a model.
    """
    inner = folder / "exp" / "codec_train" if nested else folder
    inner.mkdir(parents=True, exist_ok=True)
    settings = {
        "codec": "dac",
        "codec_conf": {"sampling_rate": SAMPLE_RATE, "generator_params": generator},
    }
    (inner / "config.yaml").write_text(yaml.safe_dump(settings))
    torch.save(tensors(generator, seed), inner / "360epoch.pth")
    if nested:
        where = {
            "espnet": "202402",
            "files": {"model_file": "exp/codec_train/360epoch.pth"},
            "yaml_files": {"train_config": "exp/codec_train/config.yaml"},
        }
        (folder / "meta.yaml").write_text(yaml.safe_dump(where))
    return folder
