# SPDX-License-Identifier: Apache-2.0
"""Finds and loads the codec that a checkpoint's ``model_type`` names."""

from typing import Protocol

import torch
from transformers import PreTrainedConfig

from vllm.unison.codecs.base import Codec
from vllm.unison.codecs.espnet_dac import EspnetDacCodec
from vllm.unison.codecs.higgs_audio_codec import HiggsAudioCodec
from vllm.unison.codecs.spectral_codec import MODEL_TYPE as SPECTRAL_CODEC
from vllm.unison.codecs.spectral_codec import SpectralCodec
from vllm.unison.codecs.transformers_codecs import (
    DacCodec,
    EncodecCodec,
    MimiCodec,
    TransformersCodec,
    XcodecCodec,
)
from vllm.unison.formats.checkpoint_part import read_part
from vllm.unison.formats.espnet_dac import MODEL_TYPE as ESPNET_DAC


class LoadableCodec(Protocol):
    """What can be registered: a codec class that loads itself."""

    def from_pretrained(
        self,
        name_or_path: str,
        *,
        num_codebooks: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
    ) -> Codec: ...


_CODECS: dict[str, LoadableCodec] = {
    "dac": DacCodec,
    "encodec": EncodecCodec,
    ESPNET_DAC: EspnetDacCodec,
    "higgs_audio_v2_tokenizer": HiggsAudioCodec,
    "mimi": MimiCodec,
    SPECTRAL_CODEC: SpectralCodec,
    "xcodec": XcodecCodec,
}


def register_codec(model_type: str, codec_class: LoadableCodec) -> None:
    """Make ``load_codec`` use a class for checkpoints whose config.json has this ``model_type``.

    Raises:
        ValueError: another class is registered under the name.
    """
    registered = _CODECS.setdefault(model_type, codec_class)
    if registered is not codec_class:
        raise ValueError(f"model_type {model_type!r} is already registered, as {registered}")


def registered_model_types() -> list[str]:
    """The model types that ``load_codec`` accepts, sorted."""
    return sorted(_CODECS)


def load_codec(
    name_or_path: str,
    *,
    num_codebooks: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> Codec:
    """Load a codec.

    Args:
        name_or_path: a folder with config.json and model.safetensors, or a hub id.
        num_codebooks: how many codebooks to use, from the first on; default all.
        device: where the codec runs.
        dtype: of the weights and of the computation; decoded samples are float32 in any case.
        revision: branch, tag or commit, of a hub id; default its main branch.

    Raises:
        ValueError: the codec cannot be found, is of an unknown kind or incomplete, or
            ``num_codebooks`` is out of its range.
    """
    name_or_path = str(name_or_path)
    not_found = f"codec {name_or_path!r} must be a folder with a config.json or a hub id"
    try:
        config, _ = PreTrainedConfig.get_config_dict(name_or_path, revision=revision or "main")
    except OSError as error:
        raise ValueError(f"{not_found}: {error}") from error
    if not config:
        raise ValueError(not_found)
    model_type = config.get("model_type")
    if model_type not in _CODECS:
        raise ValueError(
            f"codec {name_or_path!r} has model_type {model_type!r}, "
            f"must be one of {registered_model_types()}"
        )
    return _CODECS[model_type].from_pretrained(
        name_or_path,
        num_codebooks=num_codebooks,
        device=device,
        dtype=dtype,
        revision=revision,
    )


def load_codec_part(
    name_or_path: str,
    part: str,
    *,
    num_codebooks: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    config_key: str | None = None,
    default_config: str | None = None,
) -> Codec:
    """Load a codec that is a part of a model's own checkpoint. Nothing else of it is read.

    Args:
        name_or_path: the model's folder or hub id.
        part: key of the codec's configuration in config.json; with a dot, the prefix of its
            tensors.
        num_codebooks, device, dtype, revision: as for ``load_codec``.
        config_key, default_config: see ``read_part``.

    Raises:
        ValueError: the part is missing, is of a kind that cannot be one, or lacks or has too many
            tensors.
    """
    found = read_part(
        name_or_path, part, revision, config_key=config_key, default_config=default_config
    )
    codec_class = _parts().get(found.config.get("model_type", ""))
    if codec_class is None:
        raise ValueError(
            f"{config_key or part}.model_type must be one of {sorted(_parts())}, "
            f"not {found.config.get('model_type')!r}"
        )
    return codec_class.from_part(found, num_codebooks=num_codebooks, device=device, dtype=dtype)


def _parts() -> dict[str, type[TransformersCodec]]:
    """The codecs that may be a part of a checkpoint, by their model types."""
    return {
        name: codec_class
        for name, codec_class in _CODECS.items()
        if name != ESPNET_DAC
        and isinstance(codec_class, type)
        and issubclass(codec_class, TransformersCodec)
    }
