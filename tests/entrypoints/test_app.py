# SPDX-License-Identifier: Apache-2.0
"""The whole application as `vllm serve` builds it: all routes, ours and upstream's, without an
engine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.entrypoints.server import MAX_MODEL_LEN
from tests.entrypoints.test_body import HOSTILE
from vllm.entrypoints.speech.server.body import MAX_VALUES, TEXT_BYTES
from vllm.entrypoints.speech.server.errors import MAX_MESSAGE

KEY = "a-secret"
DOCS = Path(__file__).parents[2] / "docs" / "serving.md"


@pytest.fixture(scope="module")
def app(served_model: Path) -> FastAPI:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.cli.serve import make_arg_parser
    from vllm.entrypoints.launchers.app import build_app
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    options = ["--model", str(served_model), "--max-model-len", str(MAX_MODEL_LEN)]
    args = make_arg_parser(FlexibleArgumentParser()).parse_args([*options, "--api-key", KEY])
    model_config = AsyncEngineArgs.from_cli_args(args).create_model_config()
    return build_app(args, ("generate",), model_config)


@pytest.fixture(scope="module")
def client(app: FastAPI) -> Iterator[TestClient]:
    # Without its life cycle, which wants an engine.
    yield TestClient(app, raise_server_exceptions=False)


def routes(app: FastAPI) -> list[tuple[str, str]]:
    """Method and path of every route."""
    found = set()
    for route in app.routes:
        path = re.sub(r"{.*?}", "x", getattr(route, "path", ""))
        methods = getattr(route, "methods", None) or {"GET"}
        found |= {(method, path) for method in methods - {"HEAD"}}
    return sorted(found)


def asks_for_key(client: TestClient, method: str, path: str) -> bool:
    answers = [
        client.request(method, path, headers=headers, content=b"")
        for headers in ({}, {"authorization": "Bearer another"}, {"authorization": KEY})
    ]
    asked = {answer.status_code == 401 for answer in answers}
    assert len(asked) == 1, (method, path)
    return asked.pop()


def test_the_routes_that_ask_for_the_key_are_those_that_the_docs_name(
    app: FastAPI, client: TestClient
) -> None:
    text = DOCS.read_text(encoding="utf-8")
    sentence = re.search(r"Open without a key are\s(.*?)\.\n", text, re.DOTALL)
    assert sentence is not None
    named = {path for path in re.findall(r"`(/[^`]*)`", sentence[1])}
    is_open = {path for method, path in routes(app) if not asks_for_key(client, method, path)}
    assert is_open == named
    assert {path for _, path in routes(app)} - is_open > {
        "/v1/audio/speech",
        "/v1/audio/generations",
        "/v1/audio/voices",
        "/v1/audio/transcriptions",
        "/v1/chat/completions",
        "/v1/models",
    }


def with_body(app: FastAPI) -> list[str]:
    return sorted({path for method, path in routes(app) if method not in ("GET", "OPTIONS")})


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies_are_refused_by_every_route(
    name: str, app: FastAPI, client: TestClient
) -> None:
    paths = with_body(app)
    assert {"/tokenize", "/detokenize", "/v1/audio/speech", "/v1/chat/completions"} <= set(paths)
    for path in paths:
        for kind in ("application/json", "multipart/form-data; boundary=x", "text/plain"):
            headers = {"content-type": kind, "authorization": f"Bearer {KEY}"}
            answer = client.post(path, content=HOSTILE[name], headers=headers)
            assert answer.status_code in (400, 413), (path, kind, answer.text[:200])
            error = answer.json()["error"]
            assert error["code"] == answer.status_code
            assert len(answer.content) < 2 * MAX_MESSAGE, (path, kind)


def keyed(client: TestClient, path: str, body: Any) -> Any:
    headers = {"authorization": f"Bearer {KEY}"}
    return client.post(path, json=body, headers=headers)


WORD = "x" * 100_000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/audio/speech", {"input": "a", WORD: 1}),
        ("/v1/audio/speech", {"input": "a", "voice": WORD}),
        ("/v1/audio/speech", {"input": "a", "voice": {"id": "a", WORD: 1}}),
        ("/v1/audio/speech", {"input": "a", "response_format": WORD}),
        ("/v1/audio/speech", {"input": "a", "seed": WORD}),
        ("/v1/audio/generations", {"prompt": "a", WORD: 1}),
        ("/v1/audio/generations", {"prompt": "a", "duration": WORD}),
        ("/v1/audio/generations", {"prompt": WORD}),
        ("/v1/chat/completions", {"messages": [{"role": WORD, "content": "a"}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": WORD}]}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [WORD] * 2}]}),
        ("/v1/chat/completions", {"messages": WORD}),
        ("/tokenize", {"prompt": {WORD: 1}}),
        ("/detokenize", {"tokens": [WORD]}),
        ("/detokenize", {"tokens": [{}] * MAX_MODEL_LEN}),
        ("/v1/audio/speech", {"input": "a", **{f"x{i}": 0 for i in range(MAX_VALUES // 2)}}),
        ("/v1/chat/completions", {"messages": [0] * (MAX_VALUES - 9)}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{}] * 500}]}),
    ],
)
def test_messages_are_short_whatever_they_are_about(
    path: str, body: Any, client: TestClient
) -> None:
    answer = keyed(client, path, body)
    assert answer.status_code == 400
    # Upstream's are bounded by error and number of errors.
    assert len(answer.content) < (6 * MAX_MESSAGE if "tokenize" in path else 2 * MAX_MESSAGE)


def test_a_form_of_many_parts_is_refused(client: TestClient) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    path = "/v1/audio/transcriptions"
    files = [("file", ("a.wav", b"x"))]
    fields = {f"x{i}": "0" for i in range(500)}
    for content in (
        {"data": fields, "files": files},
        {"data": fields},
        {"files": files * 500},
        {"data": {"model": WORD}, "files": files},
    ):
        answer = client.post(path, headers=headers, **content)
        assert answer.status_code == 400 and len(answer.content) < 2 * MAX_MESSAGE
    twice = client.post(path, headers=headers, files=files * 2)
    assert (twice.status_code, twice.json()["error"]["param"]) == (400, "file")
    twice = client.post(path, headers=headers, files=files, data={"model": ["a", "b"]})
    assert (twice.status_code, twice.json()["error"]["param"]) == (400, "model")


def test_messages_of_upstream_are_cut_before_they_are_cleaned() -> None:
    """Some of its patterns take the square of a message's length, as in the name of a model."""
    from vllm.entrypoints.serve.exception_handling.utils import sanitize_message

    assert len(sanitize_message("a" * 10**6)) == 4096
    assert sanitize_message(f"The model `{'/a' * 10**6}` does not exist").startswith("The model")


def test_a_route_takes_what_is_within_its_limits(app: FastAPI, client: TestClient) -> None:
    # Without an engine they fail later, with 500.
    text = "a" * (TEXT_BYTES - 100)
    assert keyed(client, "/tokenize", {"prompt": text}).status_code == 500
    assert keyed(client, "/detokenize", {"tokens": [1] * MAX_MODEL_LEN}).status_code == 500
    longest = {"input": "\U0001f418" * 4096, "negative_prompt": "\U0001f418" * 4096}
    assert len(json.dumps(longest)) < TEXT_BYTES
    assert keyed(client, "/v1/audio/speech", longest).status_code == 500


def test_the_docs_need_nothing_from_elsewhere(app: FastAPI, client: TestClient) -> None:
    page = client.get("/docs").text
    addresses = re.findall(r"""(?:src|href)=["']([^"']*)|url: ['"]([^'"]*)""", page)
    found = [first or second for first, second in addresses]
    assert "/openapi.json" in found and len(found) >= 3
    assert "http" not in page
    for address in found:
        assert address.startswith(("/", "data:"))
        if address.startswith("/"):
            assert client.get(address).status_code == 200, address
    assert client.get("/redoc").status_code == 404
    about = client.get("/openapi.json").json()["info"]
    from vllm import __version__

    assert about == {"title": "Unison", "version": __version__}
