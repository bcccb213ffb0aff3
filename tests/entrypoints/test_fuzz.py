# SPDX-License-Identifier: Apache-2.0
"""Whatever fits or breaks the server's own schema is answered, and never with 500."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from tests.entrypoints.server import API_KEY, PATIENCE, Server

pytestmark = pytest.mark.slow


def _leaves_a_field_out(case: Any) -> bool:
    """Whether a form has an empty list for a field: it is sent without the field then."""
    is_form = case.media_type == "multipart/form-data" and isinstance(case.body, dict)
    return is_form and [] in case.body.values()


@pytest.fixture(scope="module")
def schema(server: Server) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(
    "path",
    [
        "/v1/audio/speech",
        "/v1/audio/generations",
        "/v1/audio/transcriptions",
        "/v1/chat/completions",
    ],
)
def test_no_body_breaks_the_server(
    path: str, mode: GenerationMode, schema: Any, server: Server
) -> None:
    statuses: list[int] = []

    @settings(max_examples=60, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def run(data: st.DataObject) -> None:
        case = data.draw(schema[path]["POST"].as_strategy(generation_mode=mode))
        response = case.call(headers={"authorization": f"Bearer {API_KEY}"}, timeout=PATIENCE)
        case.validate_response(response, checks=[not_a_server_error])
        statuses.append(response.status_code)
        if response.status_code >= 400:
            error = response.json().get("error")
            assert error, (response.status_code, response.text, case.as_curl_command())
            assert error["code"] == response.status_code and error["message"]
        if mode is GenerationMode.NEGATIVE and not _leaves_a_field_out(case):
            assert 400 <= response.status_code < 500, case.body

    run()
    assert statuses and server.process.poll() is None
    assert server.request("/health")[0] == 200
