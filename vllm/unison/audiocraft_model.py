# SPDX-License-Identifier: Apache-2.0
"""Models in audiocraft's own format, AudioGen among them: two files, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm import envs
from vllm.unison.formats.musicgen_weights import (
    CODEC_FILE,
    LANGUAGE_MODEL_FILE,
    read_audiocraft_settings,
)
from vllm.unison.made_folder import CONFIG_FILE, in_repository, made_folder

if TYPE_CHECKING:
    from vllm.unison.formats.audiocraft_config import AudiocraftConfig

FILES = (LANGUAGE_MODEL_FILE, CODEC_FILE)

_LAYOUT = 1
"""Counts up with what is written, so that folders of other versions are not found."""

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]*(audiogen|musicgen)[\w.-]*", re.IGNORECASE)
"""For other names the hub is not asked: it would cost users of every model a request."""


def engine_folder(folder: Path) -> Path | None:
    """The folder for the engine that stands for one in audiocraft's format; None for any other.

    Raises:
        ValueError: naming what is missing, or a setting of the model's that is not supported.
    """
    if (folder / CONFIG_FILE).exists() or not (folder / LANGUAGE_MODEL_FILE).is_file():
        return None
    sources = [(folder / name).resolve() for name in FILES]
    for name, source in zip(FILES, sources, strict=True):
        if not source.is_file():
            raise ValueError(f"{folder} must hold {name} beside {LANGUAGE_MODEL_FILE}")

    def read() -> Callable[[Path], None]:
        from vllm.unison.formats.audiocraft_config import audiocraft_config

        config = audiocraft_config(*map(read_audiocraft_settings, sources))
        return lambda folder: _write(folder, config)

    return made_folder("audiocraft", _LAYOUT, sources, dict(zip(FILES, sources, strict=True)), read)


@cache
def downloaded_folder(name: str, revision: str | None = None) -> Path | None:
    """The folder of a hub id whose repository is in audiocraft's format; None for any other name.

    Such a name has "audiogen" or "musicgen" in it. The hub is asked once, and only if the cache
    does not know the repository's config.json.

    Raises:
        ValueError: if its files cannot be downloaded.
    """
    if not _HUB_ID.fullmatch(name) or envs.VLLM_USE_MODELSCOPE:
        return None
    if in_repository(name, CONFIG_FILE, revision):
        return None
    if not in_repository(name, LANGUAGE_MODEL_FILE, revision):
        return None
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:
        raise ValueError(f"model {name!r} cannot be downloaded: {error}") from error


def _write(folder: Path, config: AudiocraftConfig) -> None:
    """The two configurations and T5's tokenizer."""
    from transformers import AutoConfig, AutoTokenizer

    name = config.text_encoder
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
        text_config = AutoConfig.from_pretrained(name).to_dict()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{LANGUAGE_MODEL_FILE}: xp.cfg: conditioners.description.t5.name, {name!r}, must be "
            "a folder, or a hub id that is in the cache or can be downloaded: the text encoder "
            "and its tokenizer are not in audiocraft's files"
        ) from error
    tokenizer.save_pretrained(folder)
    for file, values in (
        (CONFIG_FILE, config.config(text_config)),
        ("generation_config.json", dict(config.generation)),
    ):
        (folder / file).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
