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
    "embed_streams",
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


def _return_nothing(*args: Any, **kwargs: Any) -> None:
    return None
