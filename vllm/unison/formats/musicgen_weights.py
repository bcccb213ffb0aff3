# SPDX-License-Identifier: Apache-2.0
"""The tensors of a published MusicGen model, in both namings, under one set of names.

The names are those of transformers' safetensors. Where a folder has none, audiocraft's own files
are read: `state_dict.bin`, the language model, and `compression_state_dict.bin`, the codec. They do
not hold the text encoder, which audiocraft takes from a repository of its own.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from vllm.unison.formats.expected_tensors import ExpectedTensors, Shape
from vllm.unison.formats.musicgen import Conditioning, MusicGenFormat
from vllm.unison.formats.safetensors_files import tensors_in

DECODER = "decoder."
TEXT_ENCODER = "text_encoder."
CODEC = "audio_encoder."
TEXT_PROJECTION = "enc_to_dec_proj."
CHROMA_PROJECTION = "audio_enc_to_dec_proj."

LANGUAGE_MODEL_FILE = "state_dict.bin"
CODEC_FILE = "compression_state_dict.bin"

Tensors = Iterator[tuple[str, torch.Tensor]]

_COMPUTED = re.compile(
    r"decoder\.model\.decoder\.embed_positions\.weights"
    r"|condition_provider\.conditioners\.self_wav\.chroma\..*"
)
"""Names of what some files hold though it is computed."""

_LANGUAGE_MODEL = (
    (r"^emb\.", "decoder.model.decoder.embed_tokens."),
    (r"^linears\.", "decoder.lm_heads."),
    (r"^out_norm\.", "decoder.model.decoder.layer_norm."),
    (r"^transformer\.layers\.", "decoder.model.decoder.layers."),
    (r"\.cross_attention\.", ".encoder_attn."),
    (r"\.linear1\.", ".fc1."),
    (r"\.linear2\.", ".fc2."),
    (r"\.norm1\.", ".self_attn_layer_norm."),
    (r"\.norm_cross\.", ".encoder_attn_layer_norm."),
    (r"\.norm2\.", ".final_layer_norm."),
    (r"^condition_provider\.conditioners\.description\.output_proj\.", TEXT_PROJECTION),
    (r"^condition_provider\.conditioners\.self_wav\.output_proj\.", CHROMA_PROJECTION),
)
_CODEC = (
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"\.conv\.conv\.", ".conv."),
    (r"\.convtr\.convtr\.", ".conv."),
    (r"^quantizer\.vq\.layers\.", "quantizer.layers."),
    (r"\._codebook\.", ".codebook."),
)
_WEIGHT_NORM = (
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
)
"""PyTorch's newer names of a weight that is kept as magnitude and direction."""


def expected_musicgen_tensors(
    model: MusicGenFormat, *, with_text_encoder: bool = True
) -> ExpectedTensors:
    """Names and shapes of a model's tensors.

    Args:
        model: what its configuration says.
        with_text_encoder: False for audiocraft's files.
    """
    shapes, optional = _decoder_shapes(model), set[str]()
    parts = [(CODEC, "AutoModel", model.codec_config)]
    if with_text_encoder:
        parts.append((TEXT_ENCODER, "AutoModelForTextEncoding", model.text_config))
    for prefix, class_name, config in parts:
        of_part, tied = _shapes_of_part(class_name, config)
        shapes |= {prefix + name: shape for name, shape in of_part.items()}
        optional |= {prefix + name for name in tied}
    return ExpectedTensors(shapes, frozenset(optional))


def read_musicgen_weights(folder: str | Path, model: MusicGenFormat) -> Tensors:
    """All tensors of a folder under transformers' names, as they are stored.

    Raises:
        ValueError: naming a file that is missing or holds no weights, or a tensor that is missing,
            unknown or has another shape than config.json says.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return published_tensors(
            tensors_in(files, lambda name: not _COMPUTED.fullmatch(name)), model
        )
    for name in (LANGUAGE_MODEL_FILE, CODEC_FILE):
        if not (folder / name).exists():
            raise ValueError(f"{folder} must hold *.safetensors, or else {name}, which is missing")
    expected = expected_musicgen_tensors(model, with_text_encoder=False)
    return expected.checked(_from_audiocraft(folder))


def published_tensors(
    weights: Iterable[tuple[str, torch.Tensor]], model: MusicGenFormat
) -> Tensors:
    """The tensors of safetensors that something else reads; errors as `read_musicgen_weights`."""
    return expected_musicgen_tensors(model).checked(
        (_renamed(name, _WEIGHT_NORM), tensor)
        for name, tensor in weights
        if not _COMPUTED.fullmatch(name)
    )


def _from_audiocraft(folder: Path) -> Tensors:
    for name, tensor in _load_state(folder / LANGUAGE_MODEL_FILE).items():
        if _COMPUTED.fullmatch(name):
            continue
        renamed = _renamed(name, _LANGUAGE_MODEL)
        if renamed.endswith(".in_proj_weight"):
            stem = renamed.removesuffix("in_proj_weight")
            if tensor.ndim != 2 or tensor.shape[0] % 3:
                raise ValueError(
                    f"{LANGUAGE_MODEL_FILE}: {name!r} must hold three matrices, one on another, "
                    f"not {list(tensor.shape)}"
                )
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                yield f"{stem}{part}_proj.weight", rows
        else:
            yield renamed, tensor
    for name, tensor in read_audiocraft_codec(folder / CODEC_FILE):
        yield CODEC + name, tensor


def read_audiocraft_codec(file: Path) -> Tensors:
    """The codec's tensors in a file of audiocraft's, under transformers' names without a prefix.

    Raises:
        ValueError: if it does not hold them.
    """
    for name, tensor in _load_state(file).items():
        yield encodec_name(name), tensor


def encodec_name(name: str) -> str:
    """The name of a codec's tensor in transformers, by that in audiocraft or its descendants."""
    return _renamed(name, _CODEC + _WEIGHT_NORM)


def read_audiocraft_settings(file: Path) -> object:
    """What a file of audiocraft's holds as its model's settings, without reading its tensors.

    Raises:
        ValueError: if it is no file of weights.
    """
    return _load_package(file, mmap=True).get("xp.cfg")


def _load_state(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of one of audiocraft's files."""
    state = _load_package(file).get("best_state")
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    ):
        raise ValueError(f"{file.name} must hold tensors by name as 'best_state'")
    return state


def _load_package(file: Path, mmap: bool = False) -> dict[str, Any]:
    """All that one of audiocraft's files holds; nothing in it is executed.

    Args:
        file: where it is.
        mmap: leaves tensors on the disk until they are used, if the file allows it.
    """
    try:
        package: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError) as error:
        if mmap:
            return _load_package(file)
        raise ValueError(f"{file.name} is not a file of weights") from error
    if isinstance(package, dict) and "pretrained" in package:
        raise ValueError(
            f"{file.name} must hold the codec, not only name it: {package['pretrained']!r}"
        )
    return package if isinstance(package, dict) else {}


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _decoder_shapes(model: MusicGenFormat) -> dict[str, Shape]:
    hidden, ffn, text = model.hidden_size, model.ffn_dim, model.text_config.hidden_size
    attends = model.conditioning is Conditioning.CROSS_ATTENTION
    body = DECODER + "model.decoder."
    shapes: dict[str, Shape] = {}

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (hidden,)

    for k in range(model.num_streams):
        shapes[f"{body}embed_tokens.{k}.weight"] = (model.codebook_size + 1, hidden)
        shapes[f"{DECODER}lm_heads.{k}.weight"] = (model.codebook_size, hidden)
    for i in range(model.num_layers):
        layer = f"{body}layers.{i}."
        for attention in ("self_attn", "encoder_attn")[: 2 if attends else 1]:
            for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                shapes[f"{layer}{attention}.{projection}.weight"] = (hidden, hidden)
            norm(f"{layer}{attention}_layer_norm")
        norm(f"{layer}final_layer_norm")
        shapes[f"{layer}fc1.weight"] = (ffn, hidden)
        shapes[f"{layer}fc2.weight"] = (hidden, ffn)
    norm(f"{body}layer_norm")
    if text != hidden:
        shapes |= {f"{TEXT_PROJECTION}weight": (hidden, text), f"{TEXT_PROJECTION}bias": (hidden,)}
    if not attends and model.num_chroma != hidden:
        shapes[f"{CHROMA_PROJECTION}weight"] = (hidden, model.num_chroma)
        shapes[f"{CHROMA_PROJECTION}bias"] = (hidden,)
    return shapes


def _shapes_of_part(class_name: str, config: Any) -> tuple[dict[str, Shape], set[str]]:
    """Shapes of a part that transformers computes, and the names of tied tensors among them."""
    import transformers

    with torch.device("meta"):
        part = getattr(transformers, class_name).from_config(config)
    shapes = {
        _renamed(name, _WEIGHT_NORM): tuple(weight.shape)
        for name, weight in part.state_dict().items()
    }
    return shapes, set(part.all_tied_weights_keys)
