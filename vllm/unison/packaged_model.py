# SPDX-License-Identifier: Apache-2.0
"""Names of models that stand for folders: the packaged one's, and those without a config.json."""

from pathlib import Path
from typing import Any, Protocol, TypeVar

DEFAULT_MODEL = "unison-default"
"""The name that stands for the packaged model, unless a folder of this name is at hand."""

KV_CACHE_BYTES = 2**30
"""For the packaged model's KV cache unless the user says something about memory: room for 87
requests of 600 steps in float32. Upstream's default takes nine tenths of the machine."""

CPU_DTYPE = "float32"
"""What the packaged model computes in on a CPU unless the user says it, though its weights are kept
in bfloat16. Products of bfloat16 are rounded otherwise by each kind of processor, and a greedy
model then says other words; in float32 it says the same ones (docs/default_model.md)."""

_Name = TypeVar("_Name", str, Path)
_FOLDER = Path(__file__).parent / "default_model"


class ModelArguments(Protocol):
    """What of upstream's engine arguments is read and changed."""

    model: str
    revision: str | None
    tokenizer: str | None
    tokenizer_revision: str | None
    served_model_name: str | list[str] | None
    gpu_memory_utilization: float
    kv_cache_memory_bytes: int | None
    dtype: Any


def resolve_packaged_model(arguments: ModelArguments) -> None:
    """Put the folder that a name stands for in its place; the model is still served under it.

    What the user says nothing about is set for the packaged model: memory, and dtype on a CPU.

    Raises:
        ValueError: see `folder_of`.
    """
    if arguments.tokenizer is not None:
        arguments.tokenizer = folder_of(arguments.tokenizer, arguments.tokenizer_revision)
    name = arguments.model
    folder = folder_of(name, arguments.revision)
    if folder == name:
        return
    arguments.model = folder
    if arguments.served_model_name is None:
        arguments.served_model_name = name
    if folder != str(_FOLDER):
        return
    # Take seconds; the name is asked for without an engine.
    from vllm.config import CacheConfig
    from vllm.platforms import current_platform

    is_upstreams = arguments.gpu_memory_utilization == CacheConfig.gpu_memory_utilization
    if is_upstreams and arguments.kv_cache_memory_bytes is None:
        arguments.kv_cache_memory_bytes = KV_CACHE_BYTES
    if arguments.dtype == "auto" and current_platform.is_cpu():
        arguments.dtype = CPU_DTYPE


def folder_of(name: _Name, revision: str | None = None) -> _Name | str:
    """The folder that a name, or a path, stands for; other names and paths as they are.

    Args:
        name: the packaged model's; a folder or a hub id in audiocraft's or in ESPnet's format; any
            other.
        revision: of a hub id.

    Raises:
        ValueError: if the installation lacks the packaged model, or a model in one of these formats
            is not supported.
    """
    if name == DEFAULT_MODEL and not Path(DEFAULT_MODEL).is_dir():
        return str(packaged_model())
    path = Path(name)
    if path.is_dir():
        if (path / "config.json").exists():
            return name
    elif "/" not in str(name) or path.exists():
        return name
    # Import torch; the name is asked for without an engine.
    from vllm.unison import audiocraft_model, bagpiper_model, opuslm_model

    for published in (audiocraft_model, bagpiper_model, opuslm_model):
        found = path if path.is_dir() else published.downloaded_folder(str(name), revision)
        made = None if found is None else published.engine_folder(found)
        if made is not None:
            return str(made)
    return name


def packaged_model() -> Path:
    """The packaged model's folder.

    Raises:
        ValueError: if the installation lacks it.
    """
    if not (_FOLDER / "config.json").is_file():
        raise ValueError(f"model {DEFAULT_MODEL!r} is not part of this installation")
    return _FOLDER
