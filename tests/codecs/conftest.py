# SPDX-License-Identifier: Apache-2.0
"""One small random checkpoint of every kind of codec, written once."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vllm.unison.codecs import Codec, load_codec
from vllm.unison.testing.random_codec import write_random_codec

KINDS = ("dac", "encodec", "higgs_audio_v2_tokenizer", "mimi", "xcodec")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These models are too small to gain from threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the checkpoint of a kind."""
    folders: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = write_random_codec(tmp_path_factory.mktemp(kind), kind, seed=1)
        return folders[kind]

    return get


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def load(checkpoint: Callable[[str], Path]) -> Callable[..., Codec]:
    """Load the codec of a kind; equal arguments give the same object."""
    loaded: dict[Any, Codec] = {}

    def get(kind: str, **options: Any) -> Codec:
        key = (kind, *sorted(options.items()))
        if key not in loaded:
            loaded[key] = load_codec(str(checkpoint(kind)), **options)
        return loaded[key]

    return get
