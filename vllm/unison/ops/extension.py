# SPDX-License-Identifier: Apache-2.0
"""Loading the compiled operators, ``torch.ops.unison``, and what they return for fake tensors."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

import vllm

EXTENSION_NAME = "_unison_C.so"

_WRITING_OPERATORS = (
    "sample_streams",
    "cfg_merge",
    "gather_streams",
    "constrain_streams",
    "commit_streams",
)
"""Operators that write into their arguments and return nothing."""


def extension_path() -> Path:
    """Where the built package keeps its compiled operators."""
    return Path(vllm.__file__).parent / EXTENSION_NAME


@functools.cache
def load_extension() -> None:
    """Load the compiled operators into ``torch.ops.unison``; once per process.

    Raises:
        ImportError: the installed package has no compiled operators.
    """
    path = extension_path()
    if not path.is_file():
        raise ImportError(
            f"the compiled operators of multi-stream generation are missing: no {path}. "
            "Install a wheel built from this fork, or build csrc/ with CMake."
        )
    torch.ops.load_library(str(path))
    for name in _WRITING_OPERATORS:
        torch.library.register_fake(f"unison::{name}", _return_nothing)
    torch.library.register_fake("unison::embed_streams", _embed_fake)


def _return_nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _embed_fake(
    primary: torch.Tensor,
    primary_ids: torch.Tensor | None,
    primary_skipped: torch.Tensor | None,
    auxiliary_embedding: torch.Tensor,
    auxiliary_row: torch.Tensor,
    auxiliary_ids: torch.Tensor,
) -> torch.Tensor:
    tokens = primary.shape[0] if primary_ids is None else primary_ids.shape[0]
    return primary.new_empty((tokens, primary.shape[1]))
