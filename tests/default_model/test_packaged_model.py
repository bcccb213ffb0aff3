# SPDX-License-Identifier: Apache-2.0
"""The name of the packaged model, in engine arguments."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support.demonstration import SENTENCE
from vllm.config import ModelConfig
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.platforms import current_platform
from vllm.tokenizers import get_tokenizer
from vllm.transformers_utils.config import get_config
from vllm.unison.packaged_model import (
    DEFAULT_MODEL,
    KV_CACHE_BYTES,
    folder_of,
    packaged_model,
)


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


def test_it_computes_in_float32_on_a_cpu_unless_told(monkeypatch) -> None:
    assert EngineArgs(model=DEFAULT_MODEL, dtype="bfloat16").dtype == "bfloat16"
    for is_cpu, expected in ((True, "float32"), (False, "auto")):
        monkeypatch.setattr(current_platform, "is_cpu", lambda is_cpu=is_cpu: is_cpu)
        assert EngineArgs(model=DEFAULT_MODEL).dtype == expected
        # A checkpoint of the user's is computed as it says.
        assert EngineArgs(model="somebody/model").dtype == "auto"


def test_a_folder_of_the_name_comes_first(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / DEFAULT_MODEL).mkdir()
    arguments = EngineArgs(model=DEFAULT_MODEL)
    assert arguments.model == DEFAULT_MODEL
    assert arguments.kv_cache_memory_bytes is None


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for an address fails at once; clients of hubs would try for minutes."""

    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"asked for the address of {arguments[:2]}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_every_resolver_of_names_knows_it() -> None:
    folder = str(packaged_model())
    config = ModelConfig(DEFAULT_MODEL)
    assert (config.model, config.tokenizer) == (folder, folder)
    assert config.served_model_name == DEFAULT_MODEL
    assert ModelConfig(folder, tokenizer=DEFAULT_MODEL).tokenizer == folder
    assert AsyncEngineArgs(DEFAULT_MODEL).create_model_config().model == folder
    ids = get_tokenizer(DEFAULT_MODEL)(SENTENCE).input_ids
    assert ids == get_tokenizer(folder)(SENTENCE).input_ids and len(ids) >= 4
    assert get_config(DEFAULT_MODEL, trust_remote_code=False).model_type == "speech_lm"


def test_other_names_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("facebook/opt-125m", "unison-default2", "./unison-default", ""):
        assert folder_of(name) == name
    assert folder_of(Path("some") / "folder") == Path("some") / "folder"


def test_sleep_mode_is_refused_on_the_cpu() -> None:
    with pytest.raises(ValueError, match=r"[Ss]leep mode is not supported"):
        EngineArgs(DEFAULT_MODEL, enable_sleep_mode=True).create_model_config()
