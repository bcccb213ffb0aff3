# SPDX-License-Identifier: Apache-2.0
"""The codec that a model's specification names."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from vllm.unison.codecs.base import Codec
from vllm.unison.codecs.registry import load_codec
from vllm.unison.model.spec import SpeechSpec


def codec_of(spec: SpeechSpec, device: torch.device | str) -> Codec:
    """A model's codec on a device, loaded once per process.

    Raises:
        ValueError: if the model has none, or it cannot be loaded or does not fit the layout.
    """
    if spec.codec is None:
        raise ValueError("codec: this model has none")
    local = Path(spec.model_path) / spec.codec.name_or_path
    codec = _load(
        str(local) if local.is_dir() else spec.codec.name_or_path,
        spec.codec.revision,
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
def _load(place: str, revision: str | None, num_codebooks: int, device: str) -> Codec:
    return load_codec(place, num_codebooks=num_codebooks, device=device, revision=revision)
