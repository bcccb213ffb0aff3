# SPDX-License-Identifier: Apache-2.0
"""ESPnet's DAC, as ESPnet publishes it: settings of training, and weights.

It is EnCodec's network with another activation, and may project what it quantizes. Discriminators
and losses, which are in the file too, are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vllm.unison.formats.espnet_checkpoint import EspnetCheckpoint, checkpoint_file
from vllm.unison.formats.espnet_settings import CONFIG_FILE, EspnetSettings
from vllm.unison.formats.musicgen_weights import encodec_name

MODEL_TYPE = "espnet_dac"

PREFIX = "codec.generator."
"""Of the tensors' names in a file."""

_META_FILE = "meta.yaml"
_GENERATOR = "codec_conf.generator_params."
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "codec": ("dac",),
    _GENERATOR + "encdec_channels": (1,),
    _GENERATOR + "encdec_norm": ("weight_norm",),
    _GENERATOR + "encdec_norm_params": ({},),
    _GENERATOR + "decoder_trim_right_ratio": (1.0, 1),
}


def espnet_dac_files(folder: Path) -> tuple[Path, Path]:
    """The settings and the weights in a folder of ESPnet's.

    ESPnet puts them into a folder of folders, and says in meta.yaml where.

    Raises:
        ValueError: naming what is missing.
    """
    meta = folder / _META_FILE
    if meta.is_file():
        where = EspnetSettings.read(meta)
        files = where.name("yaml_files.train_config"), where.name("files.model_file")
        settings, weights = folder / files[0], folder / files[1]
    else:
        settings, weights = folder / CONFIG_FILE, checkpoint_file(folder)
    for file in (settings, weights):
        if not file.is_file():
            raise ValueError(f"{folder} must hold {file.relative_to(folder)}")
    return settings.resolve(), weights.resolve()


def espnet_dac_config(file: Path) -> dict[str, Any]:
    """What the settings say, as a configuration of transformers' EnCodec with two fields more.

    Returns:
        Fields of EncodecConfig; `activation`, "Snake" or "ELU"; and `quantized_size`, the size of
        what is quantized, which is projected if it is not `hidden_size`.

    Raises:
        ValueError: naming the setting and what is accepted.
    """
    settings = EspnetSettings.read(file)
    for name, accepted in _FIXED.items():
        settings.one_of(name, *accepted)
    final = settings.get(_GENERATOR + "decoder_final_activation")
    if final is not None:
        raise settings.error(_GENERATOR + "decoder_final_activation", "be null", final)

    def whole(name: str, default: int, smallest: int = 1) -> int:
        return settings.whole(_GENERATOR + name, smallest, default)

    ratios = settings.get(_GENERATOR + "encdec_ratios", [8, 5, 4, 2])
    if (
        not isinstance(ratios, list)
        or not ratios
        or not all(type(r) is int and r > 0 for r in ratios)
    ):
        raise settings.error(_GENERATOR + "encdec_ratios", "be integers of at least 1", ratios)
    rate = settings.whole("codec_conf.sampling_rate", 1, 24000)
    if rate % math.prod(ratios):
        raise settings.error(
            "codec_conf.sampling_rate", f"be a multiple of {math.prod(ratios)}, of a frame", rate
        )
    bins, hidden = whole("quantizer_bins", 1024, 2), whole("hidden_dim", 128)
    bits = whole("quantizer_n_q", 8) * math.log2(bins) * (rate // math.prod(ratios))
    quantized = whole("codebook_dim", 8)
    return {
        "model_type": MODEL_TYPE,
        "activation": settings.one_of(_GENERATOR + "encdec_activation", "Snake", "ELU"),
        "quantized_size": quantized,
        "sampling_rate": rate,
        "audio_channels": 1,
        "normalize": False,
        # transformers counts codebooks by it, and rounds down.
        "target_bandwidths": [math.nextafter(bits / 1000, math.inf)],
        "codebook_size": bins,
        "codebook_dim": quantized,
        "hidden_size": hidden,
        "num_filters": whole("encdec_n_filters", 32),
        "num_residual_layers": whole("encdec_n_residual_layers", 1, 0),
        "upsampling_ratios": ratios,
        "norm_type": "weight_norm",
        "kernel_size": whole("encdec_kernel_size", 7),
        "last_kernel_size": whole("encdec_last_kernel_size", 7),
        "residual_kernel_size": whole("encdec_residual_kernel_size", 7),
        "dilation_growth_rate": whole("encdec_dilation_base", 2),
        "use_causal_conv": settings.one_of(_GENERATOR + "encdec_causal", False, True),
        "pad_mode": settings.one_of(_GENERATOR + "encdec_pad_mode", "reflect", "constant"),
        "compress": whole("encdec_compress", 2),
        "num_lstm_layers": whole("encdec_lstm", 2),
        "trim_right_ratio": 1.0,
        "use_conv_shortcut": not settings.one_of(_GENERATOR + "encdec_true_skip", False, True),
    }


def read_espnet_dac(file: Path) -> dict[str, torch.Tensor]:
    """The generator's tensors, under transformers' names.

    Raises:
        ValueError: if the file does not hold a codec's.
    """
    checkpoint = EspnetCheckpoint(file)
    tensors = {
        encodec_name(name.removeprefix(PREFIX)): tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(PREFIX)
    }
    if not tensors:
        raise ValueError(f"{file.name} must hold tensors named {PREFIX}*")
    return tensors
