# SPDX-License-Identifier: Apache-2.0
"""The server's routes behind Ray Serve: replicas of one engine each, on as many machines as a
cluster has.

    serve run vllm.entrypoints.speech.ray_serve:application model=unison-default max_replicas=4

A replica is `vllm serve` without its HTTP server, which is Ray's: it has the same application,
made of the same options.
"""

from __future__ import annotations

import argparse
import os
import shlex
from argparse import Namespace
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ray import serve
from starlette.types import ASGIApp

from vllm.unison.packaged_model import DEFAULT_MODEL

if TYPE_CHECKING:
    from vllm.engine.protocol import EngineClient

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class ServeOptions(BaseModel):
    """What `serve run` takes as NAME=VALUE.

    Attributes:
        model: folder or hub id.
        options: further options of `vllm serve`, as on a command line.
        min_replicas, max_replicas: engines that there are at least and at most.
        target_requests: in flight at a replica, on average, above which replicas are added, and
            below which they leave.
        max_requests: in flight at a replica; further ones wait at Ray's proxy.
        max_queued_requests: that wait; further ones are answered with 503. -1: any number.
        num_cpus, num_gpus: of a replica.
        drain_seconds: for the requests in flight of a replica that is to leave.
        health_check_seconds: between two questions after an engine's health.
    """

    model_config = ConfigDict(extra="forbid")

    model: str = DEFAULT_MODEL
    options: str = ""
    min_replicas: Count = 1
    max_replicas: Count = 1
    target_requests: Annotated[float, Field(gt=0)] = 16
    max_requests: Count = 256
    max_queued_requests: Annotated[int, Field(ge=-1)] = -1
    num_cpus: Annotated[float, Field(gt=0)] = 1
    num_gpus: Annotated[float, Field(ge=0)] = 0
    drain_seconds: Seconds = 600
    health_check_seconds: Seconds = 10

    @model_validator(mode="after")
    def _more_or_fewer(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas must be at least min_replicas, {self.min_replicas}, not "
                f"{self.max_replicas}"
            )
        return self


def read_options(given: Mapping[str, Any]) -> ServeOptions:
    """Options as `serve run` gives them, which are text.

    Raises:
        ValueError: naming the option and what is accepted.
    """
    try:
        return ServeOptions.model_validate(dict(given))
    except ValidationError as errors:
        error = errors.errors(include_url=False)[0]
        name = ".".join(map(str, error["loc"]))
        if error["type"] == "extra_forbidden":
            names = ", ".join(ServeOptions.model_fields)
            raise ValueError(f"{name[:64]} must be one of {names}") from errors
        words = error["msg"].removeprefix("Value error, ").replace("Input should", "must")
        raise ValueError(f"{name} {words}".strip()) from errors


class SpeechReplica:
    """An engine and the server's application around it.

    Args:
        model: folder or hub id.
        options: of `vllm serve`.
    """

    def __init__(self, model: str, options: list[str]) -> None:
        self._model, self._options = model, options
        self._closing = AsyncExitStack()
        self._engine: EngineClient | None = None

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application, once the engine runs; Ray asks for it before it sends requests."""
        # Ray says how many threads an actor has; several must not bind to the same cores.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        # Imported in the replica's process; the one that deploys it needs no engine.
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
        from vllm.entrypoints.launchers.app import build_app

        args = parse_options(self._model, self._options)
        engine = await self._closing.enter_async_context(build_async_engine_client(args))
        tasks = await engine.get_supported_tasks()
        app = build_app(args, tasks, engine.model_config)
        await init_app_state(engine, app.state, args, tasks)
        self._engine = engine
        return app

    async def check_health(self) -> None:
        """Ray starts another replica in place of one where this raises."""
        if self._engine is not None:
            await self._engine.check_health()

    async def __del__(self) -> None:
        await self._closing.aclose()


def parse_options(model: str, options: list[str]) -> Namespace:
    """The arguments of `vllm serve MODEL` with some options.

    Raises:
        ValueError: if it would not take them.
    """
    # Where vllm serve has them from differs between releases.
    from vllm.entrypoints.cli.serve import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser("vllm serve", exit_on_error=False))
    try:
        args = parser.parse_args([model, *options])
    except (SystemExit, argparse.ArgumentError) as error:
        raise ValueError(f"options must be those of vllm serve, not {options}") from error
    args.model = model
    validate_parsed_serve_args(args)
    return args


def application(given: dict[str, Any]) -> serve.Application:
    """The application for `serve run` and `serve deploy`.

    Args:
        given: see ServeOptions.

    Raises:
        ValueError: naming the option and what is accepted.
    """
    options = read_options(given)
    deploy = serve.deployment(
        name="speech",
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "initial_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": options.target_requests,
        },
        max_ongoing_requests=options.max_requests,
        max_queued_requests=options.max_queued_requests,
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        # Ray takes a replica that is to leave from its routes first, and then waits for its
        # requests; the timeout is for those that go on.
        graceful_shutdown_timeout_s=options.drain_seconds,
        graceful_shutdown_wait_loop_s=1,
        health_check_period_s=options.health_check_seconds,
        health_check_timeout_s=max(30, 3 * options.health_check_seconds),
    )
    deployment = deploy(serve.ingress()(SpeechReplica))
    return deployment.bind(options.model, shlex.split(options.options))
