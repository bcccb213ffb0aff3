# SPDX-License-Identifier: Apache-2.0
"""Spans of a request, as an OpenTelemetry collector gets them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from tests.entrypoints.server import PATIENCE, Server
from tests.entrypoints.test_generation import SPEC, Engine, output
from tests.support.otlp import Collector
from tests.support.spans import exporter
from vllm.entrypoints.speech.server.service import Generation, Usage
from vllm.entrypoints.speech.server.traces import ADMISSION, AUDIO, FIRST_AUDIO, RequestTrace

RATE = 16000
CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADERS = {"traceparent": f"00-{CLIENT}-00f067aa0ba902b7-01"}
OUTPUTS = (
    output(tokens=[1]),
    output(tokens=[300], frames=2),
    output(tokens=[301], frames=3),
    output(finish_reason="length"),
)


def run(*outputs: Any, reads: int = 100) -> Sequence[ReadableSpan]:
    """The spans of a request with these outputs."""
    kept = exporter()

    async def main() -> None:
        trace = RequestTrace("speech-1", HEADERS)
        trace.note_admission()
        engine = Engine(*outputs)
        made = Generation(engine.generate(), "speech-1", SPEC, Usage(), trace=trace)
        await made.begin()
        answer = aiter(made)
        for _ in range(reads):
            if await anext(answer, None) is None:
                break
        await answer.aclose()  # type: ignore[attr-defined]

    asyncio.run(main())
    return kept.get_finished_spans()


def test_a_request_is_seen_from_its_admission_to_its_last_audio() -> None:
    admission, first, audio = run(*OUTPUTS)
    assert [admission.name, first.name, audio.name] == [ADMISSION, FIRST_AUDIO, AUDIO]
    for span in (admission, first, audio):
        assert span.attributes is not None and span.context is not None and span.parent is not None
        assert span.attributes["gen_ai.request.id"] == "speech-1"
        assert f"{span.context.trace_id:032x}" == CLIENT
        assert f"{span.parent.span_id:016x}" == HEADERS["traceparent"].split("-")[2]
    times: Any = [(span.start_time, span.end_time) for span in (admission, first, audio)]
    (began, admitted), (began_too, first_came), (first_came_too, last_came) = times
    assert began == began_too <= admitted <= first_came == first_came_too <= last_came
    assert audio.attributes is not None
    assert audio.attributes["speech.audio_seconds"] == 5 * 0.02


def test_a_request_that_is_left_has_the_audio_that_it_made() -> None:
    assert [span.name for span in run(*OUTPUTS, reads=2)] == [ADMISSION, FIRST_AUDIO, AUDIO]


def test_a_request_without_audio_has_its_admission() -> None:
    assert [span.name for span in run(OUTPUTS[0], OUTPUTS[-1])] == [ADMISSION]


@pytest.mark.slow
@pytest.mark.processes
def test_a_collector_gets_a_requests_spans_from_all_processes(
    server: Server, collector: Collector
) -> None:
    body = {"input": "hello", "response_format": "pcm", "stream": False, "max_tokens": 12}
    status, audio = server.request("/v1/audio/speech", json.dumps(body).encode(), headers=HEADERS)
    assert status == 200
    names = {ADMISSION, FIRST_AUDIO, AUDIO, "llm_request"}

    def of_the_client(spans: Sequence[Any]) -> dict[str, Any]:
        return {span.name: span for span in spans if span.trace_id.hex() == CLIENT}

    def codec_worked_for(found: dict[str, Any], spans: Sequence[Any]) -> bool:
        """Others' requests have had such spans before."""
        begin, end = found["llm_request"].start_time_unix_nano, found[AUDIO].end_time_unix_nano
        times = [span.start_time_unix_nano for span in spans if span.name == "speech.codec"]
        return any(begin <= time <= end for time in times)

    def complete(spans: Sequence[Any]) -> bool:
        found = of_the_client(spans)
        return found.keys() >= names and codec_worked_for(found, spans)

    spans = collector.wait_for(complete, PATIENCE)
    found = of_the_client(spans)
    assert found.keys() == names
    assert {span.parent_span_id.hex() for span in found.values()} == {
        HEADERS["traceparent"].split("-")[2]
    }
    values = [
        {pair.key: pair.value for pair in found[name].attributes} for name in (ADMISSION, AUDIO)
    ]
    assert len({value["gen_ai.request.id"].string_value for value in values}) == 1
    seconds = values[1]["speech.audio_seconds"].double_value
    assert len(audio) == round(2 * RATE * seconds) > 0
