# SPDX-License-Identifier: Apache-2.0
"""Folders for the engine that stand for a model's published files.

The engine, and much of upstream's, reads folders with a config.json and a tokenizer. Where a model
is published without them, such a folder is made in the cache directory from what its files say,
with links to them; theirs is never written to.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vllm import envs

CONFIG_FILE = "config.json"


def made_folder(
    kind: str,
    version: int,
    sources: Sequence[Path],
    links: Mapping[str, Path],
    read: Callable[[], Callable[[Path], None]],
) -> Path:
    """The folder that stands for some files, made if there is none yet.

    Args:
        kind: of the model, which all its folders lie under.
        version: counts up with what is written, so that folders of other versions are not found.
        sources: the files that it is made from: it stands for them until their paths, sizes or
            times change.
        links: what is linked to, by its name in the folder.
        read: reads the files, and gives what writes config.json and all else into a folder.
    """
    identity = repr((version, *map(_identity, sources)))
    key = hashlib.sha256(identity.encode()).hexdigest()[:24]
    made = Path(envs.VLLM_CACHE_ROOT) / kind / key
    if not (made / CONFIG_FILE).is_file():
        _make(made, links, read())
    return made


def in_repository(name: str, file: str, revision: str | None) -> bool:
    """Whether a hub id has a file. No if the hub cannot be asked: that is upstream's to say."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(name, file, revision=revision), str):
            return True
        return not constants.HF_HUB_OFFLINE and HfApi().file_exists(name, file, revision=revision)
    except Exception:  # Errors of its client have no class in common.
        return False


def published_repository(
    name: str,
    revision: str | None,
    settings: str,
    weights: str,
    is_model: Callable[[Path], bool],
) -> Path | None:
    """The folder of a hub id whose repository holds a model without a config.json.

    Args:
        name: the hub id.
        revision: of it.
        settings, weights: patterns of the names of the files that are needed. The latter are
            downloaded only if the former are of such a model.
        is_model: whether the settings in a folder are.

    Returns:
        None for any other name.

    Raises:
        ValueError: if the weights cannot be downloaded.
    """
    if envs.VLLM_USE_MODELSCOPE or in_repository(name, CONFIG_FILE, revision):
        return None
    from huggingface_hub import snapshot_download

    def download(pattern: str) -> Path:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[pattern]))

    try:
        folder = download(settings)
    except Exception:  # Errors of its client have no class in common; upstream says what is wrong.
        return None
    if not is_model(folder):
        return None
    try:
        return download(weights)
    except (OSError, ValueError) as error:
        raise ValueError(f"model {name!r} cannot be downloaded: {error}") from error


def _identity(file: Path) -> tuple[str, int, int]:
    state = file.stat()
    return str(file), state.st_size, state.st_mtime_ns


def _make(made: Path, links: Mapping[str, Path], write: Callable[[Path], None]) -> None:
    """Write the folder elsewhere and move it, as other processes may do the same."""
    made.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=made.parent))
    try:
        draft.chmod(0o755)
        write(draft)
        for name, source in links.items():
            (draft / name).symlink_to(source)
        os.replace(draft, made)
    except OSError:
        # Whoever was first has made the same.
        if not (made / CONFIG_FILE).is_file():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
