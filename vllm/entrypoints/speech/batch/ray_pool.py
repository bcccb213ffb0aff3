# SPDX-License-Identifier: Apache-2.0
"""A batch on a Ray cluster: Ray Data's pool of actors, each with an engine in its process.

Rows go out in blocks, and results come back in blocks to the one process that writes the output.
What a block gives follows from its rows alone, so one that Ray gives to another engine, because
the first was killed, gives the same.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from vllm.entrypoints.speech.batch.needed import ray_data
from vllm.entrypoints.speech.batch.requests import RowRules
from vllm.entrypoints.speech.batch.results import Result
from vllm.entrypoints.speech.batch.rows import Row
from vllm.entrypoints.speech.batch.settings import EngineSettings
from vllm.entrypoints.speech.cli.process import prepare_process, without_collections

CALLS = 4
"""Blocks that an engine works off at once: the last rows of one run beside those of the next."""
MAX_BLOCK = 64
"""Rows of a block: what is lost when an engine is killed, and what comes back at once."""
MAX_TRIES = 4
"""Engines that a block is given to before the run ends: one of its rows may be what kills them."""


@dataclass(frozen=True)
class Room:
    """What a cluster has room for.

    Attributes:
        num_engines: at once.
        num_cpus, num_gpus: of each engine.
    """

    num_engines: int
    num_cpus: int
    num_gpus: int


def room(nodes: Iterable[dict[str, Any]], settings: EngineSettings, num_cpus: int | None) -> Room:
    """The engines that a cluster has room for.

    Args:
        nodes: as `ray.nodes()` lists them.
        settings: of an engine.
        num_cpus: that an engine needs; None: one beside GPUs, else all of the smallest node's.

    Raises:
        ValueError: if there is room for none.
    """
    found = [node["Resources"] for node in nodes if node["Alive"]]
    has_gpus = any(resources.get("GPU", 0) >= 1 for resources in found)
    num_gpus = int(settings.options.get("tensor_parallel_size", 1)) if has_gpus else 0
    if num_cpus is None:
        each = [int(resources["CPU"]) for resources in found if resources.get("CPU", 0) >= 1]
        num_cpus = 1 if has_gpus else min(each, default=1)
    if num_cpus < 1:
        raise ValueError(f"--cpus-per-engine must be at least 1, not {num_cpus}")
    engines = 0
    for resources in found:
        places = int(resources.get("CPU", 0)) // num_cpus
        if num_gpus:
            places = min(places, int(resources.get("GPU", 0)) // num_gpus)
        engines += places
    if engines == 0:
        gpus = f" and {num_gpus} GPUs" if num_gpus else ""
        raise ValueError(f"--ray: no node has the {num_cpus} CPUs{gpus} that an engine needs")
    return Room(engines, num_cpus, num_gpus)


class EngineActor:
    """An engine in an actor's process; called with blocks of rows, several at a time."""

    def __init__(self, settings: EngineSettings, rules: RowRules, seed: int) -> None:
        prepare_process()
        # Ray says how many threads an actor has; several engines must not bind to the same cores.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        with without_collections():
            from vllm.entrypoints.speech.batch.engine import BatchEngine
            from vllm.entrypoints.speech.batch.shared_engine import SharedEngine

            # With an engine that has failed its process has to go; Ray starts another one.
            try:
                self._engine = SharedEngine(
                    lambda: BatchEngine(settings, rules, seed), lambda error: os._exit(1)
                )
            except Exception as error:  # in one line, the last of what Ray makes of it
                raise RuntimeError(" ".join(str(error).split())) from error

    def __call__(self, block: Any) -> Any:
        rows = [pickle.loads(row) for row in block["row"].to_pylist()]
        return _table("result", self._engine.run(rows))


class RayPool:
    """Works off rows with as many engines as a cluster has room for.

    Args:
        address: of the cluster; empty: the one that Ray finds, or one of this machine alone.
        settings: of each engine.
        rules: of the rows.
        seed: of rows that give none.
        num_cpus: that an engine needs; see `room`.

    Raises:
        RuntimeError: if Ray is not installed, or the cluster is not there.
        ValueError: see `room`.
    """

    def __init__(
        self,
        address: str,
        settings: EngineSettings,
        rules: RowRules,
        seed: int,
        num_cpus: int | None = None,
    ) -> None:
        self._ray = ray_data()
        if not self._ray.is_initialized():
            try:
                self._ray.init(address or None, log_to_driver=False, logging_level="error")
            except (ConnectionError, ValueError) as error:
                raise RuntimeError(f"--ray {address}: {error}") from error
        self._room = room(self._ray.nodes(), settings, num_cpus)
        self._settings, self._arguments = settings, (settings, rules, seed)

    def run(self, rows: Iterable[Row]) -> Iterator[Result]:
        """Work off rows; yields each one's result, in any order.

        Raises:
            RuntimeError: if an engine cannot be made, or rows kill those that they are given to.
        """
        ray, where = self._ray, self._room
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        blocks = [ray.put(_table("row", block)) for block in self._blocks(rows)]
        if not blocks:
            return
        engines = min(where.num_engines, len(blocks))
        pool = ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=engines,
            initial_size=engines,
            max_tasks_in_flight_per_actor=2 * CALLS,
            enable_true_multi_threading=True,
        )
        results = ray.data.from_arrow_refs(blocks).map_batches(
            EngineActor,
            batch_size=None,
            batch_format="pyarrow",
            compute=pool,
            fn_constructor_args=self._arguments,
            num_cpus=where.num_cpus,
            num_gpus=where.num_gpus or None,
            max_concurrency=CALLS,
            max_task_retries=MAX_TRIES - 1,
        )
        try:
            for table in results.iter_batches(batch_size=None, batch_format="pyarrow"):
                for result in table["result"].to_pylist():
                    yield pickle.loads(result)
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"--ray: {_last_line(error)}") from error

    def _blocks(self, rows: Iterable[Row]) -> Iterator[list[Row]]:
        """Rows in blocks, of which an engine can have CALLS at once."""
        batch = int(self._settings.options.get("max_num_seqs", MAX_BLOCK))
        size = max(1, min(batch // 2, MAX_BLOCK))
        waiting = iter(rows)
        while block := list(islice(waiting, size)):
            yield block


def _table(name: str, values: Iterable[Any]) -> Any:
    import pyarrow

    data = [pickle.dumps(value) for value in values]
    return pyarrow.table({name: pyarrow.array(data, pyarrow.large_binary())})


def _last_line(error: BaseException) -> str:
    """What an error of Ray's, which holds a traceback of another process, says in the end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("RuntimeError: ") if lines else type(error).__name__
