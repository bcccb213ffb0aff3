# SPDX-License-Identifier: Apache-2.0
"""Packages that not every installation has."""

from __future__ import annotations

import importlib
from typing import Any


def pyarrow_parquet() -> Any:
    """The module, for files of Parquet."""
    return _module("pyarrow.parquet", "Parquet files", "batch")


def ray_data() -> Any:
    """Ray with its Data library, for a batch on several machines."""
    _module("ray.data", "--ray", "ray")
    return importlib.import_module("ray")


def _module(name: str, what: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        message = f"{what} need the package {package}: pip install 'vllm[{extra}]' ({error})"
        raise RuntimeError(message) from error
