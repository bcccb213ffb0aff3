# SPDX-License-Identifier: Apache-2.0
"""The name of the packaged model, in engine arguments."""

from __future__ import annotations

import pytest

from vllm.engine.arg_utils import EngineArgs
from vllm.multistream.packaged_model import DEFAULT_MODEL, KV_CACHE_BYTES, packaged_model


def test_the_name_stands_for_the_folder() -> None:
    arguments = EngineArgs(model=DEFAULT_MODEL, tokenizer=DEFAULT_MODEL)
    assert arguments.model == arguments.tokenizer == str(packaged_model())
    assert arguments.served_model_name == DEFAULT_MODEL
    assert EngineArgs(model=DEFAULT_MODEL, served_model_name="x").served_model_name == "x"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, KV_CACHE_BYTES),
        ({"kv_cache_memory_bytes": 5}, 5),
        ({"gpu_memory_utilization": 0.3}, None),
    ],
)
def test_it_takes_little_memory_unless_told(given, expected) -> None:
    assert EngineArgs(model=DEFAULT_MODEL, **given).kv_cache_memory_bytes == expected


def test_a_folder_of_the_name_comes_first(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / DEFAULT_MODEL).mkdir()
    arguments = EngineArgs(model=DEFAULT_MODEL)
    assert arguments.model == DEFAULT_MODEL
    assert arguments.kv_cache_memory_bytes is None
