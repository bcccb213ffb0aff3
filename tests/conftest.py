# SPDX-License-Identifier: Apache-2.0
"""Order of the whole run: what fails fast comes first; how properties are tried; threads."""

from __future__ import annotations

import gc
import os
from typing import Any

# The models of these tests are too small to gain from threads: a second one only waits in a loop,
# on the core that another process needs. Read when torch is imported, here and in the processes
# that tests start; "nobind" keeps engines from choosing another number, and several off one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import pytest
from hypothesis import HealthCheck, settings

from tests.support import interpreted_triton, parallel

# Before a test's imports: upstream asks for Triton's driver when it is imported.
if interpreted_triton.wants_v2():
    interpreted_triton.use_v2_on_cpu()

# The time that an example takes depends on the machine's load, its result never does.
settings.register_profile(
    "unison",
    deadline=None,
    max_examples=60,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)
settings.load_profile("unison")

_heap = pytest.MonkeyPatch()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests without an engine first, then those with one, then those marked ``slow``.

    An engine also changes its process for good (upstream replaces methods of transformers' classes
    that it wraps), so what needs none must not come after it.
    """

    if interpreted_triton.wants_v2():
        elsewhere = pytest.mark.skip(reason="its engines run in processes without the interpreter")
        for item in items:
            if item.get_closest_marker("processes") is not None:
                item.add_marker(elsewhere)

    def rank(item: pytest.Item) -> Any:
        is_slow = item.get_closest_marker("slow") is not None
        return parallel.rank(item.nodeid.split("::", 1)[0], is_slow)

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """Take what imports have made out of the collector's sight, for good.

    An engine collects nine times from its start to its end, and every time would look at all
    objects of torch, transformers and vllm, which took most of a small engine's processor time.
    Engines that freeze and thaw the heap themselves would undo it.
    """
    gc.collect()
    gc.freeze()
    for name in ("freeze", "unfreeze"):
        _heap.setattr(gc, name, lambda: None)


def pytest_unconfigure() -> None:
    """Let the interpreter free it all at its end, or extension modules report leaks."""
    _heap.undo()
    gc.unfreeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`, units of tests in the order of a run without it."""
    return parallel.make_scheduler(config, log)
