# SPDX-License-Identifier: Apache-2.0
"""Two nodes of Ray on this machine."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.entrypoints.server import PATIENCE, free_port

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="ray is not installed: pip install 'vllm[ray]'",
)
PORTS = (
    "metrics_agent_port",
    "metrics_export_port",
    "runtime_env_agent_port",
    "dashboard_agent_listen_port",
)

TIMEOUTS = (
    "worker_register_timeout_seconds",
    "SERVE_PROXY_READY_CHECK_TIMEOUT_S",
    "SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S",
)
"""Within which parts of Ray have to answer that take long to start on a machine that is busy."""


def processes_of(actor: str) -> list[psutil.Process]:
    """Processes of the actors of a class, by its name."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if actor in " ".join(process.info["cmdline"] or ())
    ]


@contextlib.contextmanager
def ray_cluster() -> Iterator[Any]:
    """Two nodes, each with room for one engine; connected while the context lasts."""
    import ray
    from ray._private import services
    from ray.cluster_utils import Cluster

    start_process = services.start_ray_process

    def node() -> dict[str, Any]:
        # A node that has not all ports given waits for its agents to choose some, and ends if that
        # takes longer than 15 seconds, as on a machine that is busy.
        ports = {name: free_port() for name in PORTS}

        def start(command: list[str], *args: Any, **options: Any) -> Any:
            if any(part.startswith("--raylet_socket_name=") for part in command):
                command = [*command, f"--{PORTS[-1]}={ports[PORTS[-1]]}"]
            return start_process(command, *args, **options)

        patch.setattr(services, "start_ray_process", start)
        return {"num_cpus": 1, "object_store_memory": 100 * 2**20, **ports}

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        for name in TIMEOUTS:
            patch.setenv(f"RAY_{name}", str(PATIENCE))
        patch.setenv("RAY_agent_register_timeout_ms", str(1000 * PATIENCE))
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_prestart_worker_first_driver", "0")
        head = {**node(), "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=head)
        try:
            made.add_node(**node())
            ray.init(made.address, log_to_driver=False)
            yield made
        finally:
            ray.shutdown()
            made.shutdown()
