# SPDX-License-Identifier: Apache-2.0
"""Small codecs with random weights, in the format in which trained ones are published.

For tests, and for demonstrations where no trained codec is at hand. The weights are scaled so that
signals neither vanish nor explode on their way: random codes decode to audible noise, and encoding
uses many entries of every codebook.
"""

import copy
import math
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from vllm.unison.codecs.higgs_audio_codec import tokenizer_class

# Root mean square of decoded random codes, full scale being 1.
DECODED_LEVEL = 0.1
# Gain of the branch of a residual unit. Variance preserving branches would double the variance at
# every unit; the periodic activations of DAC then turn rounding errors into audible differences.
RESIDUAL_GAIN = 0.25
# Frames of noise from which codebooks are scaled, and of random codes from which the level is.
CALIBRATION_FRAMES = 32

HIGGS_AUDIO = "higgs_audio_v2_tokenizer"

# Architectures are those of the published checkpoints, with few channels.
_SMALL_CONFIGS: dict[str, dict[str, Any]] = {
    # descript/dac_16khz
    "dac": {
        "encoder_hidden_size": 4,
        "decoder_hidden_size": 32,
        "downsampling_ratios": [2, 4, 5, 8],
        "n_codebooks": 12,
        "codebook_size": 1024,
        "sampling_rate": 16000,
    },
    # facebook/encodec_24khz
    "encodec": {"num_filters": 4, "hidden_size": 16},
    # kyutai/mimi
    "mimi": {
        "num_filters": 4,
        "hidden_size": 32,
        "upsample_groups": 32,
        "vector_quantization_hidden_dimension": 16,
        "codebook_dim": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
    },
    # hf-audio/xcodec-hubert-general
    "xcodec": {
        "acoustic_model_config": {
            "encoder_hidden_size": 4,
            "decoder_hidden_size": 32,
            "hidden_size": 16,
        },
        "semantic_model_config": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "conv_dim": [16] * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            # The full model drops no layers at inference either.
            "layerdrop": 0.0,
        },
    },
    # bosonai/higgs-audio-v2-tokenizer
    HIGGS_AUDIO: {
        "acoustic_model_config": {
            "encoder_hidden_size": 4,
            "decoder_hidden_size": 32,
            "hidden_size": 16,
            "downsampling_ratios": [8, 5, 4, 2, 3],
            "upsampling_ratios": [8, 5, 4, 2, 3],
            "hop_length": 960,
        },
        "semantic_model_config": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "conv_dim": [16] * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            "layerdrop": 0.0,
        },
        "codebook_dim": 8,
        "target_bandwidths": [0.5, 1, 1.5, 2],
    },
}

_CLASS_NAMES = {
    "dac": ("DacConfig", "DacModel", "DacFeatureExtractor"),
    "encodec": ("EncodecConfig", "EncodecModel", "EncodecFeatureExtractor"),
    "mimi": ("MimiConfig", "MimiModel", "EncodecFeatureExtractor"),
    "xcodec": ("XcodecConfig", "XcodecModel", "DacFeatureExtractor"),
    HIGGS_AUDIO: ("HiggsAudioV2TokenizerConfig", "", "DacFeatureExtractor"),
}


def write_random_codec(
    folder: str | Path, model_type: str, *, seed: int = 0, **config_overrides: Any
) -> Path:
    """Write a small random codec that ``load_codec`` and transformers can load.

    Args:
        folder: made if it does not exist; gets config.json, model.safetensors and
            preprocessor_config.json.
        model_type: dac, encodec, higgs_audio_v2_tokenizer, mimi or xcodec.
        seed: of the weights; equal seeds give equal files. The global random state is untouched.
        config_overrides: fields of the transformers configuration class that replace the small
            defaults, for example ``n_codebooks=8`` for dac.

    Returns:
        the folder.

    Raises:
        ValueError: unknown ``model_type``.
    """
    if model_type not in _CLASS_NAMES:
        raise ValueError(f"model_type must be one of {sorted(_CLASS_NAMES)}, got {model_type!r}")
    model = random_codec(model_type, seed=seed, **config_overrides)
    folder = Path(folder)
    model.save_pretrained(folder)
    config, extractor_class = model.config, getattr(transformers, _CLASS_NAMES[model_type][2])
    has_semantics = model_type in ("xcodec", HIGGS_AUDIO)
    sample_rate = config.sample_rate if has_semantics else config.sampling_rate
    extractor_fields: dict[str, Any] = {"feature_size": 1, "sampling_rate": sample_rate}
    if extractor_class.__name__ == "DacFeatureExtractor":
        extractor_fields["hop_length"] = config.hop_length
    extractor_class(**extractor_fields).save_pretrained(folder)
    return folder


def random_codec(model_type: str, *, seed: int = 0, **config_overrides: Any) -> Any:
    """The model that `write_random_codec` writes, in eval mode."""
    config_class = getattr(transformers, _CLASS_NAMES[model_type][0])
    # A copy: configurations complete what is in them.
    defaults = copy.deepcopy(_SMALL_CONFIGS[model_type])
    config = config_class(**{**defaults, **config_overrides})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        name = _CLASS_NAMES[model_type][1]
        model_class = getattr(transformers, name) if name else tokenizer_class()
        model = model_class(config).eval()
        scale_codec(model, model_type)
    return model


@torch.no_grad()
def scale_codec(model: Any, model_type: str) -> None:
    """Redraw a random codec's weights, so that it uses many entries of every codebook, and what it
    decodes depends on all of its codes.

    Args:
        model: of the transformers library, in eval mode.
        model_type: dac, encodec, higgs_audio_v2_tokenizer, mimi or xcodec.
    """
    _scale_weights(model)
    _scale_codebooks(model, model_type)
    _scale_output(model, model_type)


def _scale_weights(model: nn.Module) -> None:
    """Redraw every convolution so that it keeps the variance of white noise.

    Only the convolutions that end the branch of a residual unit have the gain ``RESIDUAL_GAIN``.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.ConvTranspose1d):
            # Every output sample is reached by kernel / stride taps of each input channel.
            fan_in = module.in_channels / module.groups * module.kernel_size[0] / module.stride[0]
        elif isinstance(module, nn.Conv1d):
            fan_in = module.in_channels / module.groups * module.kernel_size[0]
        else:
            continue
        # In turn the units of X-codec's semantic encoder and of DAC, and those of EnCodec and Mimi.
        ends_branch = re.search(r"\bres_units?[.\d]+\.conv2$|\bblock\.3\.conv$", name) is not None
        gain = RESIDUAL_GAIN if ends_branch else 1.0
        _set_weight(module, torch.randn(module.weight.shape) * (gain / math.sqrt(fan_in)))


def _scale_codebooks(model: Any, model_type: str) -> None:
    """Give every codebook the mean and the spread of what it has to quantize."""
    if model_type == "dac":
        codebooks = list(model.quantizer.quantizers)
        method = "decode_latents"
    else:
        codebooks = [
            module for module in model.modules() if type(module).__name__.endswith("Codebook")
        ]
        method = "quantize"

    def scale_then_quantize(codebook: Any, quantize: Any) -> Any:
        def wrapped(states: torch.Tensor) -> Any:
            vectors = states.transpose(1, 2).flatten(0, 1) if states.ndim == 3 else states
            deviation, mean = torch.std_mean(vectors, dim=0)
            _set_entries(codebook, mean, deviation)
            return quantize(states)

        return wrapped

    # Residual quantizers run in order, so one pass reaches each book with its true input.
    for codebook in codebooks:
        setattr(codebook, method, scale_then_quantize(codebook, getattr(codebook, method)))
    try:
        # EnCodec and the likes of X-codec need to be told to use all of their codebooks.
        bandwidths = getattr(model.config, "target_bandwidths", None)
        fields = {"bandwidth": max(bandwidths)} if bandwidths else {}
        noise = DECODED_LEVEL * torch.randn(1, 1, CALIBRATION_FRAMES * _hop_length(model))
        model.encode(noise, **fields)
    finally:
        for codebook in codebooks:
            delattr(codebook, method)


def _set_entries(codebook: Any, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    if isinstance(getattr(codebook, "codebook", None), nn.Embedding):  # DAC
        entries = codebook.codebook.weight
    elif hasattr(codebook, "embed_sum"):  # Mimi: entries are embed_sum / cluster_usage
        entries = codebook.embed_sum
        codebook._embed = None
    else:
        entries = codebook.embed
    entries.copy_(mean + deviation * torch.randn(entries.shape))


def _scale_output(model: Any, model_type: str) -> None:
    """Scale the last convolution so that random codes decode at ``DECODED_LEVEL``."""
    has_semantics = model_type in ("xcodec", HIGGS_AUDIO)
    decoder = model.acoustic_decoder if has_semantics else model.decoder
    last = [module for module in decoder.modules() if isinstance(module, nn.Conv1d)][-1]
    levels: list[float] = []
    # Measured before the final tanh that DAC has.
    handle = last.register_forward_hook(
        lambda _module, _inputs, output: levels.append(float(output.std()))
    )
    num_codebooks = model.config.n_codebooks if model_type == "dac" else model.config.num_quantizers
    codes = torch.randint(model.config.codebook_size, (1, num_codebooks, CALIBRATION_FRAMES))
    if model_type == "encodec":
        model.decode(codes[None], [None])
    else:
        model.decode(audio_codes=codes)
    handle.remove()
    _set_weight(last, last.weight * (DECODED_LEVEL / levels[0]))
    if last.bias is not None:
        last.bias.zero_()


def _set_weight(module: Any, weight: torch.Tensor) -> None:
    if nn.utils.parametrize.is_parametrized(module, "weight"):
        module.weight = weight
    else:
        module.weight.copy_(weight)


def _hop_length(model: Any) -> int:
    config = model.config
    return int(config.frame_size if hasattr(config, "frame_size") else config.hop_length)
