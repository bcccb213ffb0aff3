# SPDX-License-Identifier: Apache-2.0
"""The codec that a model's specification names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch

from vllm.unison.codecs.base import Codec
from vllm.unison.codecs.channels import ChannelCodec
from vllm.unison.codecs.registry import load_codec, load_codec_part
from vllm.unison.model.spec import CodecSource, SpeechSpec

OWN_CHECKPOINT = "."
"""As a codec's place: the model's own folder or hub id."""


def codec_of(spec: SpeechSpec, device: torch.device | str) -> Codec:
    """A model's codec on a device, loaded once per process.

    Raises:
        ValueError: if the model has none, or it cannot be loaded or does not fit the layout.
    """
    source = spec.codec
    if source is None:
        raise ValueError("codec: this model has none")
    local = Path(spec.model_path) / source.name_or_path
    place = spec.model_path if source.name_or_path == OWN_CHECKPOINT else source.name_or_path
    codec = _load(
        str(local) if local.is_dir() else place,
        source,
        len(spec.layout.codebook_streams),
        str(device),
    )
    for stream in spec.layout.codebook_streams:
        begin, end = spec.layout.slices[stream]
        if end - begin != codec.codebook_size:
            raise ValueError(
                f"stream_layout.slices[{stream}] must hold the codec's "
                f"{codec.codebook_size} codes, not {end - begin}"
            )
    return codec


@functools.lru_cache(maxsize=8)
def _load(place: str, source: CodecSource, num_codebooks: int, device: str) -> Codec:
    num_channels = source.num_channels
    if num_codebooks % num_channels:
        raise ValueError(
            f"codec: {num_codebooks} streams must be as many for each of {num_channels} channels"
        )
    load: Callable[..., Codec] = load_codec
    if source.part is not None:
        load = functools.partial(
            load_codec_part,
            part=source.part,
            config_key=source.config_key,
            default_config=source.default_config,
        )
    codec = load(
        place,
        num_codebooks=num_codebooks // num_channels,
        device=device,
        revision=source.revision,
    )
    return codec if num_channels == 1 else ChannelCodec(codec, num_channels)
