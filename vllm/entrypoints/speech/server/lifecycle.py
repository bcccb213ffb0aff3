# SPDX-License-Identifier: Apache-2.0
"""How a server of a multi-stream model leaves.

On the first SIGTERM or SIGINT it answers new requests with 503, finishes those in flight for as
long as --shutdown-timeout says, ends what is left with an error that the client sees, and stops the
engine. A second signal skips the waiting. Servers of other models leave as upstream's do.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger
from vllm.usage.usage_lib import UsageContext

if TYPE_CHECKING:
    from starlette.datastructures import State

    from vllm.config import ModelConfig, VllmConfig

logger = init_logger(__name__)

DEFAULT_SHUTDOWN_TIMEOUT = 20
"""Seconds for requests in flight: short audio is finished, and all of the way out fits into the
30 s that Kubernetes waits."""
ENDING_SECONDS = 4
"""For clients to take the rest of their answers, or the error that ends them."""
ENGINE_SECONDS = 10
"""For an engine without requests to free its memory."""
_SERVER_NAMES = ("ApiServer_", "APIServer_")
_LEAVING_SECONDS = 2 * ENDING_SECONDS + ENGINE_SECONDS


class Lifecycle:
    """The requests in flight of one API server, and whether it still takes new ones.

    Attributes:
        in_flight: number of requests that are not answered to the end.
        is_draining: whether the server is about to leave.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self._draining = asyncio.Event()
        self.is_hurried = False
        self._changed = asyncio.Event()
        self._was_asked = False
        self._deadline = 0.0

    @property
    def is_draining(self) -> bool:
        return self._draining.is_set()

    async def draining(self) -> None:
        """Wait until the server is about to leave."""
        await self._draining.wait()

    def enter(self) -> None:
        """A request begins."""
        self.in_flight += 1

    def leave(self) -> None:
        """A request is answered, or its client gone."""
        self.in_flight -= 1
        self._changed.set()

    @property
    def retry_after(self) -> int:
        """Seconds until this server will be gone."""
        return max(1, round(self._deadline - asyncio.get_running_loop().time()))

    def take_signal(self, stop: Callable[[], Any]) -> bool:
        """React to a signal to leave: the first calls `stop`. Returns whether it was the first."""
        is_first = not self._was_asked
        self._was_asked = True
        self._draining.set()
        if is_first:
            stop()
        return is_first

    def hurry(self, kill: Callable[[], Any]) -> None:
        """End the waiting; if that was asked for before, call `kill`."""
        if self.is_hurried:
            kill()
        self.is_hurried = True
        self._changed.set()

    async def drain(self, timeout: float, end_all: Callable[[], Any]) -> None:
        """Wait for the requests in flight; end what is left after `timeout` seconds.

        Args:
            timeout: at 0, all are ended at once.
            end_all: coroutine function that ends all requests in the engine.
        """
        self._draining.set()
        self._deadline = asyncio.get_running_loop().time() + timeout
        await self._wait(timeout, lambda: not self.in_flight or self.is_hurried)
        if self.in_flight:
            logger.warning("[shutdown] ending %d requests in flight", self.in_flight)
        seconds = 1.0 if self.is_hurried else float(ENDING_SECONDS)
        # A request that is on its way into the engine cannot be ended before it is there.
        interval = 0.25
        while self.in_flight and seconds > 0:
            await end_all()
            await self._wait(interval, lambda: not self.in_flight)
            seconds -= interval

    async def _wait(self, seconds: float, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass


HURRY = signal.SIGUSR1
"""By which a supervisor tells its API servers to end all requests at once."""


def take_signals(state: State, loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """Let the server leave as this module says, if it is one of a multi-stream model.

    Where another process supervises the server, only that one counts signals: a terminal sends
    them to both, and the supervisor passes them on.

    Args:
        state: of the application.
        loop: the server's.
        stop: begins the shutdown.
    """
    lifecycle: Lifecycle | None = getattr(state, "lifecycle", None)
    if lifecycle is None:
        loop.add_signal_handler(HURRY, lambda: None)
        return
    # Clients that do not read must not hold the process.
    state.server.config.timeout_graceful_shutdown = ENDING_SECONDS
    # A client that plays as it reads answers a ping when it has played what was sent before it.
    state.server.config.ws_ping_timeout = None
    is_supervised = multiprocessing.parent_process() is not None

    def kill() -> None:
        _kill_engine(state.engine_client)

    def take() -> None:
        if not lifecycle.take_signal(stop) and not is_supervised:
            lifecycle.hurry(kill)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, take)
    loop.add_signal_handler(HURRY, lifecycle.hurry, kill)


async def drain(state: State, timeout: float) -> float:
    """Finish or end the requests in flight; returns the seconds for the engine to stop in."""
    lifecycle: Lifecycle | None = getattr(state, "lifecycle", None)
    if lifecycle is None:
        return timeout
    engine = state.engine_client

    async def end_all() -> None:
        await engine.abort(list(engine.output_processor.request_states), internal=True)

    await lifecycle.drain(timeout, end_all)
    if lifecycle.is_hurried:
        state.server.config.timeout_graceful_shutdown = 0
        return 0
    return ENGINE_SECONDS


def _kill_engine(engine_client: Any) -> None:
    from vllm.utils.system_utils import kill_process_tree

    manager = engine_client.engine_core.resources.engine_manager
    for process in getattr(manager, "processes", ()):
        if process.is_alive():
            kill_process_tree(process.pid)


async def _leave_with_error() -> None:
    raise SystemExit(1)


async def _leave() -> None:
    pass


def after_serving(engine_client: Any, *, was_asked_to: bool) -> Any:
    """What a server that has stopped awaits last: an exit status of 1 if its engine died.

    Args:
        engine_client: None for a server without an engine.
        was_asked_to: whether a signal came before.
    """
    if engine_client is not None and engine_client.errored and not was_asked_to:
        logger.error("The engine died; leaving with status 1")
        return _leave_with_error()
    return _leave()


def shutdown_timeout(
    timeout: int | None, model_config: ModelConfig, usage_context: UsageContext | None
) -> int:
    """Seconds for requests in flight: `timeout`, or the default of the model's kind."""
    from vllm.unison.model.spec import multistream_spec

    if timeout is not None:
        return timeout
    serves = usage_context is UsageContext.OPENAI_API_SERVER
    return DEFAULT_SHUTDOWN_TIMEOUT if serves and multistream_spec(model_config) else 0


def longest_timeout(timeout: int | None) -> float:
    """Seconds that servers of any model may take for requests in flight, and then to leave."""
    return (DEFAULT_SHUTDOWN_TIMEOUT if timeout is None else timeout) + _LEAVING_SECONDS


def supervised_timeout(vllm_config: VllmConfig) -> float:
    """Seconds after which a supervisor kills API servers that it has asked to leave."""
    from vllm.unison.model.spec import multistream_spec

    timeout = vllm_config.shutdown_timeout
    if multistream_spec(vllm_config.model_config) is None:
        return timeout
    return timeout + _LEAVING_SECONDS


def end_requests() -> bool:
    """In a supervisor whose engine has died: let its API servers end all requests at once. Returns
    whether there are any servers."""
    children = multiprocessing.active_children()
    servers = [child for child in children if child.name.startswith(_SERVER_NAMES)]
    for child in servers:
        if child.pid is not None:
            os.kill(child.pid, HURRY)
    return bool(servers)


def hurry() -> None:
    """In a supervisor that is told to leave a second time: leave at once."""
    from vllm.utils.system_utils import kill_process_tree

    if not end_requests():
        for child in multiprocessing.active_children():
            if child.pid is not None:
                kill_process_tree(child.pid)
