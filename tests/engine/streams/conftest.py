# SPDX-License-Identifier: Apache-2.0
"""Engines in this process, on random checkpoints that are written once."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Read by the engine when it starts.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# Triton's products on a GPU would be rounded to TF32, and the references are float32.
os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.engine.streams.cases import BLOCK_SIZE, MAX_MODEL_LEN
from tests.engine.streams.checkpoints import CHECKPOINTS
from tests.engine.streams.reference import Reference
from vllm import LLM
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.unison.compatibility import ASYNC_ON_CPU
from vllm.unison.scheduler.request_streams import RequestStreams
from vllm.v1.core.sched.scheduler import Scheduler

Steps = dict[str, list[list[int]]]
OpenEngine = Callable[..., contextlib.AbstractContextManager[LLM]]


def _gpu_settings() -> dict[str, Any]:
    """What engines on a GPU are told: to share it, and how to schedule where a test says so."""
    # Of a given size, the cache needs no profile, which other processes would disturb.
    settings: dict[str, Any] = {"gpu_memory_utilization": 0.1, "kv_cache_memory_bytes": 1 << 28}
    if ASYNC_ON_CPU in os.environ:
        settings["async_scheduling"] = os.environ[ASYNC_ON_CPU] == "1"
    return settings


@contextlib.contextmanager
def open_engine(folder: Path, **options: Any) -> Iterator[LLM]:
    """An engine with small caches, gone with the context."""
    settings: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 1024,
        "block_size": BLOCK_SIZE,
        "num_gpu_blocks_override": 16 * MAX_MODEL_LEN // BLOCK_SIZE,
        "disable_log_stats": True,
    }
    if torch.cuda.is_available():
        settings |= _gpu_settings()
    llm = LLM(str(folder), **(settings | options))
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a checkpoint of CHECKPOINTS."""
    folders: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in folders:
            folders[name] = CHECKPOINTS[name](tmp_path_factory.mktemp(name))
        return folders[name]

    return get


@pytest.fixture(scope="session")
def reference(checkpoint: Callable[[str], Path]) -> Callable[[str], Reference]:
    """The reference of a checkpoint of CHECKPOINTS."""
    references: dict[str, Reference] = {}

    def get(name: str) -> Reference:
        if name not in references:
            references[name] = Reference(checkpoint(name))
        return references[name]

    return get


@pytest.fixture
def emitted_steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Per request id (as the scheduler knows it) the auxiliary ids of each step it has received."""
    steps: Steps = {}
    append = RequestStreams.append

    def recording(self: RequestStreams, request_id: str, output: Any, row: int) -> None:
        append(self, request_id, output, row)
        ids: NDArray[np.int32] = output.tokens[row]
        steps.setdefault(request_id, []).append(ids.tolist())

    monkeypatch.setattr(RequestStreams, "append", recording)
    return steps


@pytest.fixture
def preempted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of every preemption so far, the number of tokens that the request had generated."""
    counts: list[int] = []
    preempt = Scheduler._preempt_request

    def counting(self: Scheduler, request: Any, *args: Any, **kwargs: Any) -> None:
        counts.append(request.num_output_tokens)
        preempt(self, request, *args, **kwargs)

    monkeypatch.setattr(Scheduler, "_preempt_request", counting)
    return counts
