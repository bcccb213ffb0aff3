# SPDX-License-Identifier: Apache-2.0
"""Which routes a server has, and what they answer to what is no request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from vllm.entrypoints.speech.parameters import RecordedVoice, Recording
from vllm.entrypoints.speech.server import routes
from vllm.entrypoints.speech.server.body import TEXT_BYTES
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.spec import SpeechSpec
from vllm.unison.testing.random_checkpoint import stream_layout

SPEC = SpeechSpec(
    StreamLayout.from_dict(stream_layout(3)), voices={"slt": (6,)}, default_voice="slt"
)
CLIP = (np.zeros((1, 4), np.float32), 16000)


def upstream_app() -> FastAPI:
    app = FastAPI()
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/models"):
        app.add_api_route(path, lambda: "upstream", methods=["POST"])
    return app


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setattr(routes, "multistream_spec", lambda config: SPEC)
    monkeypatch.setenv("VLLM_MAX_AUDIO_CLIP_FILESIZE_MB", "1")
    app = upstream_app()
    config: Any = SimpleNamespace(max_model_len=1024)
    routes.register_speech_routes(app, config)
    app.state.speech_service = SimpleNamespace(
        spec=SPEC,
        recorded_voices={"ada": RecordedVoice(Recording(CLIP, "hi"), "Ada L.", "en")},
        voice_aliases={"alloy": "slt", "nova": "ada"},
    )

    @app.exception_handler(NotImplementedError)
    async def not_implemented(request: Any, error: Exception) -> Any:
        return routes.error_response(str(error), 501)

    return TestClient(app, raise_server_exceptions=False)


def test_other_models_keep_upstream_s_routes() -> None:
    app = upstream_app()
    before = list(app.router.routes)
    routes.register_speech_routes(app, None)
    assert app.router.routes == before


def test_routes_of_upstream_are_replaced_or_refuse(client: TestClient) -> None:
    assert client.post("/v1/models").json() == "upstream"
    refused = client.post("/v1/completions", json={"prompt": "a"})
    assert refused.status_code == 501
    assert "/v1/audio/speech" in refused.json()["error"]["message"]
    assert client.post("/v1/chat/completions", json={}).json()["error"]["param"] == "messages"
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/audio/speech", "/v1/audio/voices", "/v1/audio/transcriptions"} <= set(paths)
    answers = paths["/v1/audio/generations"]["post"]["responses"]["200"]["content"]
    assert {"audio/wav", "application/json", "text/event-stream"} <= set(answers)
    assert "/v1/completions" not in paths


def test_the_voices_are_listed(client: TestClient) -> None:
    assert client.get("/v1/audio/voices").json() == {
        "object": "list",
        "voices": [
            {"id": "slt", "name": "slt"},
            {"id": "ada", "name": "Ada L."},
            {"id": "alloy", "name": "alloy"},
            {"id": "nova", "name": "nova"},
        ],
        "data": [
            voice("slt", "slt", default=True),
            voice("ada", "Ada L.", language="en"),
            voice("alloy", "slt"),
            voice("nova", "ada"),
        ],
    }


def voice(name: str, shown: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "object": "audio.voice", "name": shown, "default": False} | more


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b'"text"', None),
        (b"{}", "input"),
        (b'{"input": 1}', "input"),
        (b'{"input": null}', "input"),
        (b'{"input": "a", "top_k": 1.5}', "top_k"),
        (b'{"input": "a", "top_k": true}', "top_k"),
        (b'{"input": "a", "seed": 1e400}', "seed"),
        (b'{"input": "a", "temperature": NaN}', "temperature"),
        (b'{"input": "a", "voice": {"id": "b", "more": 1}}', "voice.more"),
        (b'{"input": "a", "\xf0\x9f\x90\x98": 1}', "\U0001f418"),
        (b'{"input": "\\ud800"}', "input"),
        (b'{"input": ' + b"[" * 100_000, None),
        (b'{"input": "a", "seed": ' + b"9" * 100_000 + b"}", None),
        (b"\xff\xfe", None),
    ],
)
def test_what_is_no_speech_request_is_400_in_openai_s_shape(
    client: TestClient, body: bytes, param: str | None
) -> None:
    answer = client.post(
        "/v1/audio/speech", content=body, headers={"content-type": "application/json"}
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, 400, param)
    assert 0 < len(error["message"]) < 500


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({}, "file"),
        ({"file": "text"}, "file"),
        ({"file": "text", "response_format": "srt"}, "file"),
        ({"language": "en"}, "file"),
    ],
)
def test_what_is_no_transcription_request_is_400(
    client: TestClient, form: dict[str, str], param: str
) -> None:
    answer = client.post("/v1/audio/transcriptions", data=form)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    unknown = client.post("/v1/audio/transcriptions", files={"file": b"x"}, data={"hidden": "en"})
    assert unknown.json()["error"]["param"] == "hidden"
    for broken in (b"", b"--x\r\n", b"\r\n--x--"):
        headers = {"content-type": "multipart/form-data; boundary=x"}
        answer = client.post("/v1/audio/transcriptions", content=broken, headers=headers)
        assert answer.status_code == 400 and "message" in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "audio_bytes"),
    [
        ("/v1/audio/generations", 0),
        ("/v1/models", 0),
        ("/v1/completions", 0),
        ("/v1/audio/transcriptions", 2**20),
        ("/v1/chat/completions", 2**20 * 4 // 3),
        ("/v1/audio/speech", 2**20 * 4 // 3),
    ],
)
def test_bodies_beyond_the_limit_of_their_route_are_413(
    path: str, audio_bytes: int, client: TestClient
) -> None:
    limit = routes.body_limits(path).num_bytes
    assert audio_bytes + TEXT_BYTES <= limit < audio_bytes * 1.1 + TEXT_BYTES + 2**11
    kind, head = "application/json", b"  "
    if path == "/v1/audio/transcriptions":
        kind = "multipart/form-data; boundary=x"
        head = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    pieces = [head] + [b" " * 2**16] * (limit // 2**16 + 1)
    for content in (b"".join(pieces), iter(pieces)):
        answer = client.post(path, content=content, headers={"content-type": kind})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, 413)
    headers = {"content-length": "many", "content-type": "application/json"}
    assert client.post(path, content=b"{}", headers=headers).status_code == 413


def test_a_body_at_the_limit_is_read(client: TestClient) -> None:
    head, tail = b'{"messages": [{"role": "user", "content": "', b'"}], "more": 1}'
    limit = routes.body_limits("/v1/chat/completions").num_bytes
    body = head + b"a" * (limit - len(head + tail)) + tail
    headers = {"content-type": "application/json"}
    answer = client.post("/v1/chat/completions", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "more")
    answer = client.post("/v1/chat/completions", content=body + b" ", headers=headers)
    assert answer.status_code == 413


def test_a_body_that_is_no_json_by_its_header_is_refused(client: TestClient) -> None:
    for headers in ({}, {"content-type": "text/plain"}, {"content-type": "application/xml"}):
        answer = client.post("/v1/audio/speech", content=b'{"input": "a"}', headers=headers)
        assert answer.status_code == 400 and "content-type" in answer.json()["error"]["message"]
    headers = {"content-type": "Application/vnd.api+JSON; charset=utf-8"}
    answer = client.post("/v1/audio/speech", content=b"{}", headers=headers)
    assert answer.json()["error"]["param"] == "input"
