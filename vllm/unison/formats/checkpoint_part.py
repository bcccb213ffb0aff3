# SPDX-License-Identifier: Apache-2.0
"""A part of a checkpoint, such as the codec that a model brings along, without the rest of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

from vllm.unison.formats.bagpiper_weights import WEIGHTS_FILE
from vllm.unison.formats.espnet_checkpoint import EspnetCheckpoint
from vllm.unison.formats.musicgen_weights import CODEC, CODEC_FILE, read_audiocraft_codec
from vllm.unison.formats.safetensors_files import tensors_in

INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True)
class CheckpointPart:
    """Configuration and tensors of a part.

    Attributes:
        where: the checkpoint, for errors.
        prefix: of the tensors' names in the checkpoint.
        config: what config.json holds of it.
        tensors: by name without the prefix, as they are stored.
    """

    where: str
    prefix: str
    config: Mapping[str, Any]
    tensors: dict[str, torch.Tensor]


def read_part(
    name_or_path: str,
    part: str,
    revision: str | None = None,
    *,
    config_key: str | None = None,
    default_config: str | None = None,
) -> CheckpointPart:
    """Read a part of a model's checkpoint.

    Args:
        name_or_path: a folder or a hub id, of which what is needed is downloaded unless it is in
            the cache.
        part: its key in config.json; with a dot, the prefix of its tensors.
        revision: of a hub id.
        config_key: its key in config.json, if that is not the prefix.
        default_config: JSON text of what config.json holds of it if it has no such key, or null;
            None: it must have one.

    Raises:
        ValueError: if there is no such part, or a file cannot be read.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        folder = _downloaded(name_or_path, revision, "config.json", INDEX_FILE, "*.safetensors")
        if not any(folder.glob("*.safetensors")):
            folder = _downloaded(name_or_path, revision, "config.json", CODEC_FILE)
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ValueError(f"model {name_or_path!r} must have a config.json")
    key = config_key or part
    config = json.loads(config_file.read_text(encoding="utf-8")).get(key)
    if config is None and default_config is not None:
        config = json.loads(default_config)
    if not isinstance(config, dict):
        raise ValueError(f"config.json must hold an object {key!r}, not {config!r}")
    prefix = f"{part}."
    return CheckpointPart(name_or_path, prefix, config, dict(_tensors(folder, prefix)))


def _downloaded(name: str, revision: str | None, *files: str) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except (OSError, ValueError) as error:
        raise ValueError(f"model {name!r} must be a folder or a hub id: {error}") from error


def _tensors(folder: Path, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    files = _files_with(folder, prefix)
    if not files and prefix == CODEC and (folder / CODEC_FILE).is_file():
        yield from read_audiocraft_codec(folder / CODEC_FILE)
        return
    if not files and (folder / WEIGHTS_FILE).is_file():
        yield from EspnetCheckpoint(folder / WEIGHTS_FILE).in_turn(prefix)
        return
    if not files:
        raise ValueError(f"{folder} must hold *.safetensors with tensors named {prefix}*")
    for name, tensor in tensors_in(files, lambda name: name.startswith(prefix)):
        yield name.removeprefix(prefix), tensor


def _files_with(folder: Path, prefix: str) -> list[Path]:
    """The files of tensors to look into: those that the index names, or all."""
    index = folder / INDEX_FILE
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    by_name = json.loads(index.read_text(encoding="utf-8")).get("weight_map")
    if not isinstance(by_name, dict):
        raise ValueError(f"{INDEX_FILE} must hold an object 'weight_map', not {by_name!r}")
    return [
        folder / name
        for name in sorted({file for key, file in by_name.items() if key.startswith(prefix)})
    ]
