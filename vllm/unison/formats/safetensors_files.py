# SPDX-License-Identifier: Apache-2.0
"""Tensors in files of safetensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch


def tensors_in(
    files: Iterable[Path], is_wanted: Callable[[str], bool]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of files whose names are wanted, one in memory.

    Raises:
        ValueError: naming a file that cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is no dictionary
                    if is_wanted(name):
                        yield name, tensors.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file.name} is not a whole file of tensors: {error}") from error
