# SPDX-License-Identifier: Apache-2.0
"""The model that is installed with the package, and its name."""

from pathlib import Path
from typing import Protocol, TypeVar

DEFAULT_MODEL = "unison-default"
"""The name that stands for the packaged model, unless a folder of this name is at hand."""

KV_CACHE_BYTES = 2**30
"""For the packaged model's KV cache unless the user says something about memory: room for 256
requests of 600 steps. Upstream's default takes nine tenths of the machine."""

_Name = TypeVar("_Name", str, Path)
_FOLDER = Path(__file__).parent / "default_model"


class ModelArguments(Protocol):
    """What of upstream's engine arguments is read and changed."""

    model: str
    tokenizer: str | None
    served_model_name: str | list[str] | None
    gpu_memory_utilization: float
    kv_cache_memory_bytes: int | None


def resolve_packaged_model(arguments: ModelArguments) -> None:
    """Put the packaged model's folder in place of its name, which it is still served under.

    Raises:
        ValueError: if the installation lacks the model.
    """
    if arguments.tokenizer is not None:
        arguments.tokenizer = folder_of(arguments.tokenizer)
    folder = folder_of(arguments.model)
    if folder == arguments.model:
        return
    arguments.model = folder
    if arguments.served_model_name is None:
        arguments.served_model_name = DEFAULT_MODEL
    from vllm.config import CacheConfig  # takes seconds; the name is asked for without an engine

    is_upstreams = arguments.gpu_memory_utilization == CacheConfig.gpu_memory_utilization
    if is_upstreams and arguments.kv_cache_memory_bytes is None:
        arguments.kv_cache_memory_bytes = KV_CACHE_BYTES


def folder_of(name: _Name) -> _Name | str:
    """The packaged model's folder for its name; other names of models, and paths, as they are.

    Raises:
        ValueError: if the installation lacks the model.
    """
    if name != DEFAULT_MODEL or Path(DEFAULT_MODEL).is_dir():
        return name
    return str(packaged_model())


def packaged_model() -> Path:
    """The packaged model's folder.

    Raises:
        ValueError: if the installation lacks it.
    """
    if not (_FOLDER / "config.json").is_file():
        raise ValueError(f"model {DEFAULT_MODEL!r} is not part of this installation")
    return _FOLDER
