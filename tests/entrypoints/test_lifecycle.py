# SPDX-License-Identifier: Apache-2.0
"""How a server leaves: what it waits for, what it ends, and with which status."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from httpx import ASGITransport, AsyncClient

from vllm.entrypoints.speech.server import lifecycle as module
from vllm.entrypoints.speech.server.lifecycle import (
    Lifecycle,
    after_serving,
    drain,
    shutdown_timeout,
)
from vllm.entrypoints.speech.server.middleware import AnswerBrokenOffError, SpeechMiddleware
from vllm.exceptions import GenerationError
from vllm.unison.upstream import RetryableRequestError
from vllm.usage.usage_lib import UsageContext

FOREVER = 10_000.0


class Ending:
    """Ends requests that are in the engine; the others come into it after so many tries."""

    def __init__(self, lifecycle: Lifecycle, after: int = 1) -> None:
        self.calls = 0
        self._lifecycle, self._after = lifecycle, after

    async def __call__(self) -> None:
        self.calls += 1
        if self.calls == self._after:
            while self._lifecycle.in_flight:
                self._lifecycle.leave()


def test_what_is_in_flight_is_waited_for_and_not_ended() -> None:
    async def run() -> int:
        lifecycle = Lifecycle()
        ending = Ending(lifecycle)
        lifecycle.enter()
        lifecycle.enter()
        drained = asyncio.create_task(lifecycle.drain(FOREVER, ending))
        await asyncio.sleep(0)
        assert lifecycle.is_draining and lifecycle.retry_after == FOREVER
        lifecycle.leave()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not drained.done()
        lifecycle.leave()
        await drained
        return ending.calls

    assert asyncio.run(run()) == 0


@pytest.mark.parametrize("after", [1, 3])
def test_what_is_left_at_the_deadline_is_ended_until_it_is_gone(after: int) -> None:
    async def run() -> tuple[int, int]:
        lifecycle = Lifecycle()
        ending = Ending(lifecycle, after)
        lifecycle.enter()
        await lifecycle.drain(0, ending)
        return ending.calls, lifecycle.in_flight

    assert asyncio.run(run()) == (after, 0)


def test_a_request_that_cannot_be_ended_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENDING_SECONDS", 0.5)

    async def run() -> int:
        lifecycle = Lifecycle()
        lifecycle.enter()
        await lifecycle.drain(0, Ending(lifecycle, after=-1))
        return lifecycle.in_flight

    assert asyncio.run(run()) == 1


class Signals:
    """Stands for an event loop: keeps what is to be called by signal."""

    def __init__(self) -> None:
        self.handlers: dict[int, Any] = {}

    def add_signal_handler(self, number: int, handler: Any, *arguments: Any) -> None:
        self.handlers[number] = lambda: handler(*arguments)

    def send(self, number: int) -> None:
        self.handlers[number]()


@dataclass
class Leaving:
    """A server, its signals, and what they led to: "stop" and "kill"."""

    lifecycle: Lifecycle
    signals: Signals
    done: list[str]


@pytest.fixture
def leaving(monkeypatch: pytest.MonkeyPatch) -> Leaving:
    made = Leaving(Lifecycle(), Signals(), [])
    monkeypatch.setattr(module, "_kill_engine", lambda engine: made.done.append("kill"))
    server = SimpleNamespace(config=SimpleNamespace(timeout_graceful_shutdown=None))
    state: Any = SimpleNamespace(lifecycle=made.lifecycle, server=server, engine_client=None)
    loop: Any = made.signals
    module.take_signals(state, loop, lambda: made.done.append("stop"))
    assert server.config.timeout_graceful_shutdown == module.ENDING_SECONDS
    return made


def test_a_second_signal_ends_the_waiting_and_a_third_kills(leaving: Leaving) -> None:
    lifecycle, signals = leaving.lifecycle, leaving.signals

    async def run() -> int:
        ending = Ending(lifecycle)
        lifecycle.enter()
        signals.send(signal.SIGTERM)
        assert leaving.done == ["stop"] and lifecycle.is_draining
        drained = asyncio.create_task(lifecycle.drain(FOREVER, ending))
        await asyncio.sleep(0)
        signals.send(signal.SIGINT)
        await drained
        assert leaving.done == ["stop"]
        signals.send(signal.SIGTERM)
        return ending.calls

    assert asyncio.run(run()) == 1
    assert leaving.done == ["stop", "kill"]


def test_where_a_supervisor_counts_signals_the_server_does_not(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(multiprocessing, "parent_process", object)
    leaving: Leaving = request.getfixturevalue("leaving")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        leaving.signals.send(number)
    assert leaving.done == ["stop"] and not leaving.lifecycle.is_hurried
    leaving.signals.send(module.HURRY)
    assert leaving.done == ["stop"] and leaving.lifecycle.is_hurried


def test_a_server_whose_supervisor_lost_the_engine_waits_for_nothing(leaving: Leaving) -> None:
    async def run() -> int:
        ending = Ending(leaving.lifecycle)
        leaving.lifecycle.enter()
        leaving.signals.send(module.HURRY)
        leaving.signals.send(signal.SIGTERM)
        await leaving.lifecycle.drain(FOREVER, ending)
        return ending.calls

    assert asyncio.run(run()) == 1


def test_servers_of_other_models_leave_as_upstream_s_do() -> None:
    state: Any = SimpleNamespace()
    assert asyncio.run(drain(state, 7)) == 7
    loop: Any = Signals()
    module.take_signals(state, loop, lambda: None)
    assert list(loop.handlers) == [module.HURRY], "upstream's handlers stay"
    loop.send(module.HURRY)


def test_all_requests_of_the_engine_are_aborted() -> None:
    aborted: list[Any] = []

    async def run() -> float:
        lifecycle = Lifecycle()
        lifecycle.enter()

        async def abort(ids: list[str], internal: bool) -> None:
            aborted.append((ids, internal))
            lifecycle.leave()

        engine = SimpleNamespace(
            abort=abort, output_processor=SimpleNamespace(request_states={"a": 1, "b": 2})
        )
        state: Any = SimpleNamespace(lifecycle=lifecycle, engine_client=engine)
        return await drain(state, 0)

    assert asyncio.run(run()) == module.ENGINE_SECONDS
    assert aborted == [(["a", "b"], True)]


@pytest.mark.parametrize(
    ("errored", "was_asked_to", "status"), [(True, False, 1), (True, True, 0), (False, False, 0)]
)
def test_a_server_whose_engine_died_leaves_with_an_error(
    errored: bool, was_asked_to: bool, status: int
) -> None:
    engine = SimpleNamespace(errored=errored)
    last = after_serving(engine, was_asked_to=was_asked_to)
    engine.errored = True  # as it is once the server has stopped it
    if status:
        with pytest.raises(SystemExit) as caught:
            asyncio.run(last)
        assert caught.value.code == status
    else:
        asyncio.run(last)


def test_the_default_time_is_that_of_servers_of_multi_stream_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config: Any = object()
    serving = UsageContext.OPENAI_API_SERVER
    monkeypatch.setattr("vllm.unison.model.spec.multistream_spec", lambda config: object())
    assert shutdown_timeout(None, config, serving) == module.DEFAULT_SHUTDOWN_TIMEOUT
    assert shutdown_timeout(0, config, serving) == 0
    assert shutdown_timeout(45, config, serving) == 45
    assert shutdown_timeout(None, config, UsageContext.LLM_CLASS) == 0
    monkeypatch.setattr("vllm.unison.model.spec.multistream_spec", lambda config: None)
    assert shutdown_timeout(None, config, serving) == 0


def served(lifecycle: Lifecycle) -> FastAPI:
    app = FastAPI()
    app.add_middleware(SpeechMiddleware, lifecycle=lifecycle, limits={}, reads_json=frozenset())

    @app.get("/health")
    @app.get("/metrics")
    async def fine() -> dict[str, int]:
        return {"in_flight": lifecycle.in_flight}

    @app.get("/breaks")
    async def breaks() -> StreamingResponse:
        async def pieces() -> Any:
            yield b"first"
            raise RetryableRequestError("the codec failed")

        return StreamingResponse(pieces())

    @app.exception_handler(GenerationError)
    async def handle(request: Any, error: Exception) -> Any:
        raise AssertionError("the answer has begun")

    return app


def test_new_requests_are_turned_away_while_the_server_leaves() -> None:
    async def run() -> None:
        lifecycle = Lifecycle()
        transport = ASGITransport(served(lifecycle))
        async with AsyncClient(transport=transport, base_url="http://server") as client:
            assert (await client.get("/health")).json() == {"in_flight": 1}
            assert lifecycle.in_flight == 0
            await lifecycle.drain(30, Ending(lifecycle))
            for path in ("/health", "/ping", "/v1/audio/speech", "/breaks"):
                answer = await client.get(path)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
                assert answer.headers["connection"] == "close"
                assert answer.json()["error"]["type"] == "ServiceUnavailableError"
            # Monitoring sees the server leave, and keeps it from nothing.
            assert (await client.get("/metrics")).json() == {"in_flight": 0}

    asyncio.run(run())


def test_an_answer_that_fails_is_broken_off() -> None:
    async def run() -> Lifecycle:
        lifecycle = Lifecycle()
        transport = ASGITransport(served(lifecycle))
        async with AsyncClient(transport=transport, base_url="http://server") as client:
            with pytest.raises(AnswerBrokenOffError, match="the codec failed"):
                await client.get("/breaks")
        return lifecycle

    assert asyncio.run(run()).in_flight == 0
