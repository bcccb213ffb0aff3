# SPDX-License-Identifier: Apache-2.0
"""Weights as ESPnet publishes them: one file of torch.save's, and nothing beside it that says what.

Three containers occur: tensors by name under the key `module` (what DeepSpeed saves of a model, and
what ESPnet exports), the same in a folder of DeepSpeed's under its own name, and tensors by name
alone. Nothing in a file is executed. Its tensors stay on the disk until they are used, one after
another, so that a model takes the memory of its weights once and not twice.
"""

from __future__ import annotations

import ctypes
import mmap
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

Tensors = Iterator[tuple[str, torch.Tensor]]

DEEPSPEED_FILE = "mp_rank_00_model_states.pt"
"""DeepSpeed's name of a model's weights, where one rank holds all of them."""

_SUFFIXES = (".pt", ".pth")
_MODULE = "module"
_OF_OPTIMIZER = re.compile(r".*_optim_states\.pt")
_OF_RANK = re.compile(r"(zero_pp_rank_\d+_)?mp_rank_\d+_model_states\.pt")


def checkpoint_file(folder: Path) -> Path:
    """The file of weights in a folder, of which there must be one.

    Raises:
        ValueError: naming the files that there are, if it is none or several, or if the weights
            are split over DeepSpeed's ranks.
    """
    found = [
        file
        for file in sorted(folder.iterdir())
        if file.suffix in _SUFFIXES and not _OF_OPTIMIZER.fullmatch(file.name)
    ]
    names = [file.name for file in found]
    if split := [name for name in names if _OF_RANK.fullmatch(name) and name != DEEPSPEED_FILE]:
        raise ValueError(
            f"{folder} must hold all weights in {DEEPSPEED_FILE}; {split[0]} is the part of one "
            "rank: let DeepSpeed save the whole model"
        )
    if len(found) != 1:
        raise ValueError(
            f"{folder} must hold one file of weights, *.pt or *.pth, not {names or 'none'}"
        )
    return found[0]


class EspnetCheckpoint:
    """The tensors of a file, as they are stored.

    They are mapped into memory where the file's format allows it: their values are read when they
    are used. They must not be written to.

    Args:
        file: where it is.

    Attributes:
        tensors: by name, in the file's order.

    Raises:
        ValueError: naming the file, if it does not hold weights and nothing but weights by name.
    """

    tensors: Mapping[str, torch.Tensor]

    def __init__(self, file: Path) -> None:
        package, self._is_mapped = _load(file)
        state = package.get(_MODULE, package) if isinstance(package, dict) else None
        if not isinstance(state, dict) or not state or not _are_tensors(state):
            raise ValueError(
                f"{file.name} must hold tensors by name, or an object {_MODULE!r} that does"
            )
        self.tensors = dict(state)

    def in_turn(self, prefix: str = "") -> Tensors:
        """The tensors one after another, under their names without a prefix.

        Memory that the values of a tensor took is given back when the next one is asked for:
        whoever keeps a tensor reads it from the disk again.

        Args:
            prefix: of the tensors that are wanted; others are left out.
        """
        for name, tensor in self.tensors.items():
            if name.startswith(prefix):
                yield name.removeprefix(prefix), tensor
                if self._is_mapped:
                    _release_pages(tensor.untyped_storage())


def _load(file: Path) -> tuple[Any, bool]:
    """What a file holds, and whether its tensors are mapped."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True), True
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError):
        # Files of PyTorch before 1.6 cannot be mapped.
        pass
    try:
        return torch.load(file, map_location="cpu", weights_only=True), False
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{file.name} is not a file of weights") from error


def _are_tensors(state: Mapping[Any, Any]) -> bool:
    return all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    )


def _release_pages(storage: torch.UntypedStorage) -> None:
    """Give the pages back that hold a mapped storage and nothing else."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    page = mmap.PAGESIZE
    begin = -(-storage.data_ptr() // page) * page
    length = (storage.data_ptr() + storage.nbytes()) // page * page - begin
    if length > 0:
        advise = ctypes.CDLL(None).madvise
        advise(ctypes.c_void_p(begin), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
