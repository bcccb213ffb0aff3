# SPDX-License-Identifier: Apache-2.0
"""The routes behind Ray Serve, with two replicas: streams, a killed replica, one that leaves."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from tests.entrypoints.ray_cluster.cluster import needs_ray, processes_of
from tests.entrypoints.server import PATIENCE, SAMPLES_PER_FRAME, free_port, write_model

SPEECH = "/v1/audio/speech"
OPTIONS = (
    "--dtype float32 --enforce-eager --block-size 32 --max-model-len 1024 --max-num-seqs 16 "
    "--served-model-name speech --kv-cache-memory-bytes 64000000"
)
NUM_STREAMS, LONG = 6, 800

pytestmark = needs_ray


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"replicas": "2"}, "replicas must be one of model, options, min_replicas"),
        ({"min_replicas": "0"}, "min_replicas must be greater than or equal to 1"),
        ({"min_replicas": "3"}, "max_replicas must be at least min_replicas, 3, not 1"),
        ({"drain_seconds": "soon"}, "drain_seconds must be a valid number"),
    ],
)
def test_options_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    from vllm.entrypoints.speech.ray_serve import read_options

    with pytest.raises(ValueError) as refused:
        read_options(given)
    assert str(refused.value).startswith(message)


def test_options_are_those_of_serve_and_of_vllm_serve() -> None:
    from vllm.entrypoints.speech.ray_serve import application, parse_options

    found = application({"max_replicas": "4", "target_requests": "8", "drain_seconds": "60"})
    deployment = found._bound_deployment
    autoscaling = deployment._deployment_config.autoscaling_config
    assert autoscaling is not None
    assert (autoscaling.min_replicas, autoscaling.max_replicas) == (1, 4)
    assert autoscaling.target_ongoing_requests == 8
    assert deployment._deployment_config.graceful_shutdown_timeout_s == 60
    assert parse_options("a/model", ["--max-num-seqs", "7"]).max_num_seqs == 7
    with pytest.raises(ValueError, match="options must be those of vllm serve"):
        parse_options("a/model", ["--no-such-option"])


class Service:
    """The service as its clients see it."""

    def __init__(self, port: int) -> None:
        self.port = port

    def post(self, **fields: Any) -> http.client.HTTPResponse:
        """A request for speech; the answer is not read yet."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        body = {"input": "hello there", "seed": 5, "response_format": "pcm"} | fields
        connection.request("POST", SPEECH, json.dumps(body), {"content-type": "application/json"})
        return connection.getresponse()

    def say(self, **fields: Any) -> bytes:
        response = self.post(**fields)
        data = response.read()
        assert response.status == 200, data
        return data

    def stream(self, begun: Barrier) -> bytes | None:
        """Audio that is read while it is made; None if the answer broke off."""
        response = self.post(max_tokens=LONG, guidance_scale=2.0)
        assert response.status == 200
        first = response.read(100)
        begun.wait(PATIENCE)
        try:
            return first + response.read()
        except (http.client.HTTPException, OSError):
            return None


def are_alike(clips: Sequence[bytes | None]) -> bool:
    """Whether all have the samples of the first, to the rounding of the last bit.

    The codes are equal; how the codec's sums are rounded depends on what else it decodes then.
    """
    samples = [np.frombuffer(clip or b"", "<i2").astype(int) for clip in clips]
    same_length = len({len(clip) for clip in samples}) == 1
    return same_length and all(abs(clip - samples[0]).max() <= 1 for clip in samples)


@pytest.fixture(scope="module")
def service(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two replicas."""
    from ray import serve

    from vllm.entrypoints.speech.ray_serve import application

    model = write_model(tmp_path_factory.mktemp("served") / "model")
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        for module in ("api", "client"):
            patch.setattr(f"ray.serve._private.{module}.HTTP_PROXY_TIMEOUT", PATIENCE)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        given = {"model": str(model), "options": OPTIONS, "health_check_seconds": "1"}
        serve.run(application(given | {"min_replicas": "2", "max_replicas": "2"}))
        yield Service(port)
        serve.shutdown()


def heard_while(service: Service, happens: Callable[[], None]) -> list[bytes | None]:
    """What NUM_STREAMS clients hear; something happens once all have begun."""
    begun = Barrier(NUM_STREAMS + 1)
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        streams = [pool.submit(service.stream, begun) for _ in range(NUM_STREAMS)]
        begun.wait(PATIENCE)
        happens()
        return [stream.result(PATIENCE) for stream in streams]


def kill_a_replica() -> None:
    found = processes_of("ServeReplica")
    assert len(found) == 2
    os.kill(found[0].pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.processes
def test_streamed_audio_is_the_whole_audio(service: Service) -> None:
    for fields in ({"guidance_scale": 2.0}, {"guidance_scale": 1.0, "temperature": 0.7}):
        whole = service.say(stream=False, max_tokens=40, **fields)
        assert len(whole) == 2 * SAMPLES_PER_FRAME * 40 and any(whole)
        # Whichever replica it is.
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda _: service.say(max_tokens=40, **fields), range(6)))  # noqa: B023
        assert are_alike([whole, *found])
    refused = service.post(temperature=3)
    assert refused.status == 400
    assert json.load(refused)["error"]["message"].startswith("temperature must be at most 2")


@pytest.mark.slow
@pytest.mark.processes
def test_a_killed_replica_is_an_error_for_its_clients_alone(service: Service) -> None:
    heard = heard_while(service, kill_a_replica)
    broken = [audio for audio in heard if audio is None]
    whole = [audio for audio in heard if audio is not None]
    assert 0 < len(broken) < NUM_STREAMS
    assert len(whole[0]) == 2 * SAMPLES_PER_FRAME * LONG and are_alike(whole)
    assert len(service.say(max_tokens=20)) == 2 * SAMPLES_PER_FRAME * 20


@pytest.mark.slow
@pytest.mark.processes
def test_replicas_that_leave_lose_no_stream(service: Service) -> None:
    """The last test: all of them leave, as one does when there is less to do."""
    from ray import serve

    found = heard_while(service, lambda: serve.delete("default"))
    assert len(found[0] or b"") == 2 * SAMPLES_PER_FRAME * LONG and are_alike(found)
    assert service.post().status == 404
