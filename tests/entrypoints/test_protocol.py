# SPDX-License-Identifier: Apache-2.0
"""What requests may say: neutral values everywhere, one range for schema and engine, and errors
that name the field as the client wrote it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.support.random_layouts import example
from vllm.entrypoints.speech.server import neutral, routes
from vllm.entrypoints.speech.server.endpoints import chat, generations, speech
from vllm.entrypoints.speech.server.endpoints import transcriptions as transcription
from vllm.entrypoints.speech.server.neutral import LABELS, NEUTRAL
from vllm.exceptions import VLLMError
from vllm.sampling_params import SamplingParams
from vllm.transformers_utils.configs.speech_lm import SpeechLMConfig
from vllm.unison.frontend.admission.streams import refuse_unsupported_sampling
from vllm.unison.messages.sampling_fields import RANGES
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.spec import SpeechSpec
from vllm.unison.testing.random_checkpoint import stream_layout

SPEC = SpeechSpec(StreamLayout.from_dict(stream_layout(3)), voices={"slt": (6,)})
SPEECH, TRANSCRIPTIONS = "/v1/audio/speech", "/v1/audio/transcriptions"
CHAT, GENERATIONS = "/v1/chat/completions", "/v1/audio/generations"
MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    SPEECH: {"input": "hi"},
    GENERATIONS: {"prompt": "lo-fi"},
    CHAT: {"messages": MESSAGES},
}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """The routes, whose handlers answer with what they were given."""
    monkeypatch.setattr(routes, "multistream_spec", lambda config: SPEC)

    async def echo(service: Any, request: Any, raw_request: Any) -> Any:
        return routes.JSONResponse(request.model_dump(mode="json", exclude={"file"}))

    monkeypatch.setattr(speech, "create_speech", echo)
    monkeypatch.setattr(generations, "create_generation", echo)
    monkeypatch.setattr(chat, "create_chat_completion", echo)
    monkeypatch.setattr(transcription, "create_transcription", echo)
    app = FastAPI()
    config: Any = SimpleNamespace(max_model_len=1024)
    routes.register_speech_routes(app, config)
    app.state.speech_service = SimpleNamespace(spec=SPEC)
    yield TestClient(app, raise_server_exceptions=False)


def post(client: TestClient, path: str, **fields: Any) -> Any:
    if path == TRANSCRIPTIONS:
        return client.post(path, data=fields, files={"file": b"x"})
    return client.post(path, json=BODIES[path] | fields)


def own_fields(client: TestClient, path: str) -> set[str]:
    schema = client.get("/openapi.json").json()
    content = schema["paths"][path]["post"]["requestBody"]["content"]
    (reference,) = {body["schema"]["$ref"] for body in content.values()}
    return set(schema["components"]["schemas"][reference.rsplit("/", 1)[1]]["properties"])


def as_form(value: Any) -> Any:
    return value if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize("path", [SPEECH, GENERATIONS, CHAT, TRANSCRIPTIONS])
def test_neutral_values_are_accepted_on_every_route(client: TestClient, path: str) -> None:
    own = own_fields(client, path)
    plain = post(client, path)
    assert plain.status_code == 200, plain.text
    for name in sorted({*NEUTRAL, *LABELS} - own):
        values = (None, *NEUTRAL.get(name, ("a label", {"key": "value"})))
        for value in values:
            sent = as_form(value) if path == TRANSCRIPTIONS else value
            answer = post(client, path, **{name: sent})
            assert answer.status_code == 200, (name, value, answer.text)
            assert answer.json() == plain.json(), (name, value)


OTHERS = (2, 0.5, True, False, "another", ["another"], {"type": "json_object"}, {"3": 1})


@pytest.mark.parametrize("path", [SPEECH, GENERATIONS, CHAT, TRANSCRIPTIONS])
def test_other_values_are_refused_by_name(client: TestClient, path: str) -> None:
    own = own_fields(client, path)
    for name in sorted(set(NEUTRAL) - own):
        for value in OTHERS:
            if neutral.is_neutral(name, value):
                continue
            sent = as_form(value) if path == TRANSCRIPTIONS else value
            answer = post(client, path, **{name: sent})
            assert answer.status_code == 400, (name, value)
            error = answer.json()["error"]
            assert error["param"] == name, (name, value, error)
            assert error["message"].startswith(f"{name} must be ")
            assert "null" in error["message"]


def test_a_number_is_not_a_truth_value(client: TestClient) -> None:
    assert post(client, SPEECH, logprobs=0).status_code == 400
    assert post(client, SPEECH, frequency_penalty=False).status_code == 400
    assert post(client, SPEECH, frequency_penalty=0.0).status_code == 200


@pytest.mark.parametrize("path", [SPEECH, GENERATIONS, CHAT])
def test_null_is_a_field_that_was_left_out(client: TestClient, path: str) -> None:
    required = set(BODIES[path])
    plain = post(client, path).json()
    for name in own_fields(client, path):
        answer = post(client, path, **{name: None})
        if name in required:
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
        else:
            assert (answer.status_code, answer.json()) == (200, plain), name


def test_an_empty_field_of_a_form_is_one_that_was_left_out(client: TestClient) -> None:
    plain = post(client, TRANSCRIPTIONS).json()
    for name in [*own_fields(client, TRANSCRIPTIONS) - {"file"}, *NEUTRAL, *LABELS]:
        answer = post(client, TRANSCRIPTIONS, **{name: ""})
        assert (answer.status_code, answer.json()) == (200, plain), name


def test_labels_have_a_limit(client: TestClient) -> None:
    answer = post(client, CHAT, user="x" * 5000)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "user")


@pytest.mark.parametrize("path", [SPEECH, GENERATIONS, CHAT])
def test_an_empty_model_is_refused(client: TestClient, path: str) -> None:
    answer = post(client, path, model="")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"language": "x" * 65}, "language"),
        ({"prompt": "Names: Ada"}, "prompt"),
        ({"include[]": "logprobs"}, "include[]"),
        ({"chunking_strategy": "other"}, "chunking_strategy"),
        ({"chunking_strategy": '{"type": "server_vad", "threshold": 0.5}'}, "chunking_strategy"),
        ({"chunking_strategy[threshold]": "0.5"}, "chunking_strategy[threshold]"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities[]"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"stream": "true", "response_format": "srt"}, "stream"),
        ({"max_tokens": "1", "max_completion_tokens": "1"}, "max_tokens"),
        ({"temperature": "2.01"}, "temperature"),
        ({"hidden": "1"}, "hidden"),
    ],
)
def test_what_a_form_may_not_say(client: TestClient, form: dict[str, str], param: str) -> None:
    answer = post(client, TRANSCRIPTIONS, **form)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_what_openai_s_client_sends_in_a_form(client: TestClient) -> None:
    fields = {
        "language": "en",
        "prompt": "",
        "response_format": "verbose_json",
        "chunking_strategy": "auto",
        "timestamp_granularities[]": ["segment"],
        "temperature": "0",
        "stream": "False",
    }
    answer = post(client, TRANSCRIPTIONS, **fields)
    assert answer.status_code == 200, answer.text
    given = answer.json()
    assert given["response_format"] == "verbose_json" and given["stream"] is False
    assert given["timestamp_granularities"] == ["segment"]
    vad = post(client, TRANSCRIPTIONS, **{"chunking_strategy[type]": "server_vad"})
    assert vad.status_code == 200


def text_part(**fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": "hi"} | fields


def audio_part(**fields: Any) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"} | fields}


def parts(*items: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(items)}]}


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"messages": "hi"}, "messages", "must be a valid list"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": ["hi"]}, "messages[0]", "must be an object"),
        ({"messages": [{"content": "a"}]}, "messages[0].role", "is required"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is required"),
        (
            {"messages": [{"role": "user", "content": None}]},
            "messages[0].content",
            "must be text, or a list of parts of type 'text' or 'input_audio'",
        ),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "must be text, or"),
        ({"messages": [{"role": "user", "content": " \n"}]}, "messages[0].content", "more than sp"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "at least 1 item"),
        (
            {"messages": [{"role": "tool", "content": "be kind"}, *MESSAGES]},
            "messages[0].role",
            "must be 'system', 'scene', 'user' or 'assistant', not 'tool'",
        ),
        ({"messages": MESSAGES * 65}, "messages", "at most 64 items"),
        ({"messages": [MESSAGES[0] | {"mood": 1}]}, "messages[0].mood", "is no field"),
        (parts("hi"), "messages[0].content[0]", "must be an object"),
        (parts({"text": "hi"}), "messages[0].content[0].type", "is required"),
        (
            parts({"type": "image_url", "image_url": {"url": "data:,"}}),
            "messages[0].content[0].type",
            "must be one of ['text', 'input_audio'], not 'image_url'",
        ),
        (parts(text_part(), text_part(text=5)), "messages[0].content[1].text", "must be text"),
        (parts({"type": "text"}), "messages[0].content[0].text", "is required"),
        (parts(text_part(text="x" * 4097)), "messages[0].content[0].text", "at most 4096 char"),
        (parts(text_part(more=1)), "messages[0].content[0].more", "is no field"),
        (
            parts({"type": "input_audio"}),
            "messages[0].content[0].input_audio",
            "is required",
        ),
        (
            parts(text_part(), {"type": "input_audio", "input_audio": {}}),
            "messages[0].content[1].input_audio.data",
            "is required",
        ),
        (
            parts(text_part(), audio_part(data="")),
            "messages[0].content[1].input_audio.data",
            "at least 1 character",
        ),
        (parts(audio_part(data=None)), "messages[0].content[0].input_audio.data", "must be text"),
        (parts(audio_part(format=5)), "messages[0].content[0].input_audio.format", "must be text"),
        (parts(audio_part(url="x")), "messages[0].content[0].input_audio.url", "is no field"),
        ({"modalities": []}, "modalities", "at least 1 item"),
        ({"modalities": ["text", "video"]}, "modalities[1]", "must be 'text' or 'audio'"),
        ({"audio": {"voice": ""}}, "audio.voice", "at least 1 character"),
        ({"audio": {"format": "ogg"}}, "audio.format", "must be 'wav', 'pcm16'"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "valid boolean"),
        ({"n": 2}, "n", "must be at most 1, not 2"),
        ({"use_beam_search": True}, "use_beam_search", "must be false"),
        ({"temperature": 2.5}, "temperature", "must be at most 2, not 2.5"),
        ({"top_p": 0}, "top_p", "must be greater than 0, not 0"),
        ({"top_k": "many"}, "top_k", "must be a valid integer, not 'many'"),
        ({"x" * 100_000: 1}, "x" * 64, "is no field of this request"),
    ],
)
def test_errors_of_chat_name_the_field_as_the_client_wrote_it(
    client: TestClient, body: dict[str, Any], param: str, words: str
) -> None:
    answer = client.post(CHAT, json={"messages": MESSAGES} | body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert error["message"].startswith(f"{param} ") and words in error["message"], error


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"input": " "}, "input", "must hold more than spaces and line ends"),
        ({"input": "\n"}, "input", "must hold more than spaces and line ends"),
        ({"negative_prompt": " "}, "negative_prompt", "must hold more than spaces"),
        ({"negative_prompt": ""}, "negative_prompt", "at least 1 character"),
        ({"voice": {"id": "slt", "more": 1}}, "voice.more", "is no field"),
        ({"response_format": "ogg"}, "response_format", "must be 'wav', 'pcm', 'flac'"),
        ({"stream": False, "stream_format": "sse"}, "stream", "must be true"),
        ({"speed": 2}, "speed", "must be at most 1, not 2"),
        ({"instructions": "whisper"}, "instructions", 'must be "" or null'),
        ({"seed": 2**63 - 1}, "seed", f"must be at most {2**63 - 2}"),
        ({"input": "x" * 4097}, "input", "at most 4096 characters"),
        ({"inputs": "x"}, "inputs", "is no field of this request"),
        ({"ref_audio": 5}, "ref_audio", "must be base64, a data URI or, in a form, a file"),
        ({"ref_audio": ["AAAA"]}, "ref_audio", "must be base64, a data URI or, in a form, a file"),
        ({"ref_audio": ""}, "ref_audio", "must not be empty"),
        ({"ref_audio": "AAAA", "ref_text": " "}, "ref_text", "must hold more than spaces"),
        ({"ref_audio": "AAAA", "ref_text": "x" * 4097}, "ref_text", "at most 4096 characters"),
        ({"ref_text": "hi"}, "ref_text", "must be given beside ref_audio"),
    ],
)
def test_errors_of_speech_name_the_field(
    client: TestClient, body: dict[str, Any], param: str, words: str
) -> None:
    answer = client.post(SPEECH, json={"input": "hi"} | body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert error["message"].startswith(f"{param} ") and words in error["message"], error


def test_speech_takes_a_form_for_the_same_object(client: TestClient) -> None:
    fields = {
        "input": "5",
        "voice": "slt",
        "model": "true",
        "ref_text": "[1]",
        "temperature": 0.5,
        "top_k": 7,
        "seed": -3,
        "stream": False,
        "response_format": "flac",
        "frequency_penalty": 0,
        "metadata": "a label",
    }
    plain = client.post(SPEECH, json=fields | {"ref_audio": "AAAA"})
    form = {name: as_form(value) for name, value in fields.items()}
    # A form is one with files in it, or with a boundary, for httpx.
    sent = client.post(SPEECH, data=form | {"speed": ""}, files={"ref_audio": b"a file"})
    assert (plain.status_code, sent.status_code) == (200, 200), sent.text
    assert sent.json() == plain.json() | {"ref_audio": "6 bytes"}
    as_base64 = client.post(
        SPEECH, data=form | {"ref_audio": "AAAA"}, files={"language": (None, "en")}
    )
    assert as_base64.json() == plain.json() | {"language": "en"}


@pytest.mark.parametrize(
    ("form", "files", "param", "words"),
    [
        ({}, {"ref_audio": b"x"}, "input", "is required"),
        ({"input": ""}, {"ref_audio": b"x"}, "input", "is required"),
        ({"input": "hi", "seed": "many"}, {"ref_audio": b"x"}, "seed", "must be a valid integer"),
        ({"input": "hi", "top_k": "1.5"}, {"ref_audio": b"x"}, "top_k", "must be a valid integer"),
        ({"input": "hi"}, {"ref_audio": b""}, "ref_audio", "must not be empty"),
        ({"input": "hi"}, {"audio": b"x"}, "audio", "is no field of this request"),
        ({"input": "hi", "more": "1"}, {"ref_audio": b"x"}, "more", "is no field of this request"),
        ({"input": "hi", "min_p": "1"}, {"ref_audio": b"x"}, "min_p", "must be 0 or null"),
        ({"voice": "slt"}, {"input": b"x"}, "input", "must be text"),
        ({"input": ["a", "b"]}, {"ref_audio": b"x"}, "input", "must be given once"),
    ],
)
def test_errors_of_a_form_of_speech_name_the_field(
    client: TestClient, form: dict[str, Any], files: dict[str, bytes], param: str, words: str
) -> None:
    answer = client.post(SPEECH, data=form, files=files)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert error["message"].startswith(f"{param} ") and words in error["message"], error


def test_a_form_of_speech_that_is_broken_is_refused(client: TestClient) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    for broken in (b"", b"--x\r\n", b"\r\n--x--"):
        answer = client.post(SPEECH, content=broken, headers=headers)
        assert answer.status_code == 400 and "message" in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"prompt": None}, "prompt", "must be text"),
        ({"prompt": " "}, "prompt", "must hold more than spaces and line ends"),
        ({"prompt": "x" * 4097}, "prompt", "at most 4096 characters"),
        ({"negative_prompt": ""}, "negative_prompt", "at least 1 character"),
        ({"duration": 0}, "duration", "must be greater than 0, not 0"),
        ({"duration": -1.5}, "duration", "must be greater than 0, not -1.5"),
        ({"duration": "long"}, "duration", "must be a valid number, not 'long'"),
        ({"duration": 3, "max_tokens": 5}, "duration", "must not be given beside max_tokens"),
        ({"n": 0}, "n", "must be at least 1, not 0"),
        ({"n": 11}, "n", "must be at most 10, not 11"),
        ({"n": 2, "stream": True}, "stream", "must be false with n 2"),
        ({"n": 2, "stream_format": "sse"}, "stream_format", "must be 'audio' with n 2"),
        ({"stream": False, "stream_format": "sse"}, "stream_format", "'audio' with stream false"),
        ({"seed": 2**63 - 2, "n": 2}, "seed", f"must be at most {2**63 - 3} with n 2"),
        ({"seed": 2**63 - 1}, "seed", f"must be at most {2**63 - 2}"),
        ({"response_format": "b64_json"}, "response_format", "must be 'wav', 'pcm', 'flac'"),
        ({"guidance_scale": -1}, "guidance_scale", "must be at least 0, not -1"),
        ({"input": "hi"}, "input", "is no field of this request"),
        ({"voice": "slt"}, "voice", "must be null"),
    ],
)
def test_errors_of_generations_name_the_field(
    client: TestClient, body: dict[str, Any], param: str, words: str
) -> None:
    answer = client.post(GENERATIONS, json={"prompt": "hi"} | body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert error["message"].startswith(f"{param} ") and words in error["message"], error


def test_a_duration_is_infinite_neither_in_speech_nor_in_generations(client: TestClient) -> None:
    for path in (SPEECH, GENERATIONS):
        for value in ("1e999", "NaN"):
            body = json.dumps(BODIES[path])[:-1] + f', "duration": {value}}}'
            headers = {"content-type": "application/json"}
            answer = client.post(path, content=body, headers=headers)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "duration")
        assert post(client, path, duration=0.02).json()["duration"] == 0.02


def model_config() -> Any:
    config = SpeechLMConfig(stream_layout=example())
    return SimpleNamespace(hf_config=config, model="m", max_model_len=1024)


def engine_accepts(name: str, value: Any) -> bool:
    fields = {name: value} | ({"temperature": 1.0} if name != "temperature" else {})
    try:
        refuse_unsupported_sampling(SamplingParams(**fields), model_config())
    except (ValueError, VLLMError) as error:
        assert name in str(error)
        return False
    return True


def bounds(schema: dict[str, Any]) -> dict[str, Any]:
    """The bounds of a number, from the first case of its schema."""
    case = next(iter(schema.get("anyOf", [schema])))
    return case if case.get("type") in ("number", "integer") else {}


@pytest.mark.parametrize("path", [SPEECH, GENERATIONS, CHAT, TRANSCRIPTIONS])
def test_the_schema_s_bounds_are_the_engine_s(client: TestClient, path: str) -> None:
    schemas = client.get("/openapi.json").json()
    content = schemas["paths"][path]["post"]["requestBody"]["content"]
    (reference,) = {body["schema"]["$ref"] for body in content.values()}
    properties = schemas["components"]["schemas"][reference.rsplit("/", 1)[1]]["properties"]
    numbers = {name: found for name, schema in properties.items() if (found := bounds(schema))}
    for name in ("duration", "extend_stride"):  # which only the model bounds from above
        numbers.pop(name, None)
    assert set(numbers) - {"speed", "n"} == set(properties) & {*RANGES, "max_completion_tokens"}
    for name, schema in numbers.items():
        step = 1 if schema["type"] == "integer" else 1e-6
        low = schema["minimum"] if "minimum" in schema else schema["exclusiveMinimum"]
        cases = {
            schema["maximum"]: True,
            schema["maximum"] + step: False,
            low: "minimum" in schema,
            low - step: False,
        }
        if "exclusiveMinimum" in schema:
            cases[low + step] = True
        field = {"max_completion_tokens": "max_tokens"}.get(name, name)
        for value, is_accepted in cases.items():
            sent = repr(value) if path == TRANSCRIPTIONS else value
            answer = post(client, path, **{name: sent})
            assert (answer.status_code == 200) == is_accepted, (name, value, answer.text)
            if field in RANGES:
                assert engine_accepts(field, value) == is_accepted, (name, value)
