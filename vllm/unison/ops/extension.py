# SPDX-License-Identifier: Apache-2.0
"""The fork's compiled operators, ``torch.ops.unison``: loading them, and what they return.

Each operator is defined in plain PyTorch beside the function that calls it: sampling in
:mod:`vllm.multistream.sampling.oracle`, sums of rows in :mod:`vllm.multistream.row_sums`, the phase
rule in :mod:`vllm.multistream.worker.stream_step`.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

import vllm

EXTENSION_NAME = "_unison_C.so"


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
    for name in (
        "guided_multistream_sample",
        "merge_lanes",
        "gather_streams",
        "begin_streams",
        "advance_streams",
    ):
        # They write into arguments and return nothing.
        torch.library.register_fake(f"unison::{name}", _nothing)
    torch.library.register_fake("unison::multistream_embed", _embedded)


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _embedded(
    primary: torch.Tensor,
    primary_ids: torch.Tensor | None,
    primary_skipped: torch.Tensor | None,
    auxiliary_embedding: torch.Tensor,
    auxiliary_row: torch.Tensor,
    auxiliary_ids: torch.Tensor,
) -> torch.Tensor:
    tokens = primary.shape[0] if primary_ids is None else primary_ids.shape[0]
    return primary.new_empty((tokens, primary.shape[1]))
