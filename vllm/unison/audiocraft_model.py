# SPDX-License-Identifier: Apache-2.0
"""Models in audiocraft's own format, AudioGen among them: two files, and nothing else.

The engine, and much of upstream's, reads folders with a config.json and a tokenizer. Such a folder
is made in the cache directory from what the files say, with links to them; theirs is never written
to.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm import envs
from vllm.unison.formats.musicgen_weights import (
    CODEC_FILE,
    LANGUAGE_MODEL_FILE,
    read_audiocraft_settings,
)

if TYPE_CHECKING:
    from vllm.unison.formats.audiocraft_config import AudiocraftConfig

FILES = (LANGUAGE_MODEL_FILE, CODEC_FILE)
CONFIG_FILE = "config.json"

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
    key = hashlib.sha256(repr((_LAYOUT, *map(_identity, sources))).encode()).hexdigest()[:24]
    made = Path(envs.VLLM_CACHE_ROOT) / "audiocraft" / key
    if not (made / CONFIG_FILE).is_file():
        _make(made, sources)
    return made


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
    if _in_repository(name, CONFIG_FILE, revision):
        return None
    if not _in_repository(name, LANGUAGE_MODEL_FILE, revision):
        return None
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:
        raise ValueError(f"model {name!r} cannot be downloaded: {error}") from error


def _in_repository(name: str, file: str, revision: str | None) -> bool:
    """Whether a hub id has a file. No if the hub cannot be asked: that is upstream's to say."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(name, file, revision=revision), str):
            return True
        return not constants.HF_HUB_OFFLINE and HfApi().file_exists(name, file, revision=revision)
    except Exception:  # Errors of its client have no class in common.
        return False


def _identity(file: Path) -> tuple[str, int, int]:
    state = file.stat()
    return str(file), state.st_size, state.st_mtime_ns


def _make(made: Path, sources: list[Path]) -> None:
    """Write the folder elsewhere and move it, as other processes may do the same."""
    from vllm.unison.formats.audiocraft_config import audiocraft_config

    config = audiocraft_config(*map(read_audiocraft_settings, sources))
    made.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=made.parent))
    try:
        draft.chmod(0o755)
        _write(draft, config)
        for name, source in zip(FILES, sources, strict=True):
            (draft / name).symlink_to(source)
        os.replace(draft, made)
    except OSError:
        # Whoever was first has made the same.
        if not (made / CONFIG_FILE).is_file():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


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
