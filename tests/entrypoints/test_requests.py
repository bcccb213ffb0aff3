# SPDX-License-Identifier: Apache-2.0
"""What unchanged clients send, to a real server: whole files, other names, long audio, forms."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile
from numpy.typing import NDArray

from tests.entrypoints.server import (
    API_KEY,
    DEFAULT_TOKENS,
    ENGINE_OPTIONS,
    MAX_MODEL_LEN,
    MODEL_NAME,
    PATIENCE,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    Server,
)
from vllm.entrypoints.speech.encoding import encode_whole
from vllm.entrypoints.speech.splitting import cut_points

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0) as made:
        yield made


def post(server: Server, path: str, **fields: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {API_KEY}"}
    return httpx.post(server.url + path, headers=headers, timeout=PATIENCE, **fields)


def speak(server: Server, **fields: Any) -> httpx.Response:
    body = {"input": "hello there", "seed": 3, "max_tokens": 30} | fields
    return post(server, "/v1/audio/speech", json=body)


def transcribe(server: Server, data: bytes, **fields: str | list[str]) -> httpx.Response:
    files = {"file": ("clip.wav", data)}
    return post(server, "/v1/audio/transcriptions", files=files, data=fields)


def talk(seconds: float, pauses: tuple[float, ...] = ()) -> NDArray[np.float32]:
    """Noise, with pauses of half a second around these times."""
    made = np.random.default_rng(5).standard_normal(int(seconds * SAMPLE_RATE)) * 0.1
    for time in pauses:
        middle = int(time * SAMPLE_RATE)
        made[middle - SAMPLE_RATE // 4 : middle + SAMPLE_RATE // 4] = 0
    return made.astype(np.float32)


def wav(samples: NDArray[np.float32]) -> bytes:
    return encode_whole("wav", samples, SAMPLE_RATE)


def test_a_whole_wav_file_says_its_length(server: Server) -> None:
    pcm = speak(server, response_format="pcm").content
    whole = speak(server, stream=False)
    assert int(whole.headers["content-length"]) == len(whole.content)
    with wave.open(io.BytesIO(whole.content)) as file:
        assert file.getnframes() == 30 * SAMPLES_PER_FRAME
        assert file.readframes(file.getnframes()) == pcm
    assert int.from_bytes(whole.content[4:8], "little") == len(whole.content) - 8
    streamed = speak(server, stream=True)
    assert streamed.headers["transfer-encoding"] == "chunked"
    assert streamed.content[44:] == pcm == speak(server, stream=None).content[44:]


@pytest.mark.parametrize("name", ["flac", "mp3", "opus", "aac", "pcm"])
def test_whole_files_of_every_format(name: str, server: Server) -> None:
    whole = speak(server, stream=False, response_format=name)
    assert int(whole.headers["content-length"]) == len(whole.content) > 500
    if name == "flac":
        assert soundfile.info(io.BytesIO(whole.content)).frames == 30 * SAMPLES_PER_FRAME
    if name == "pcm":
        assert whole.content == speak(server, response_format="pcm").content


def test_a_voice_has_the_name_that_the_server_gives_it(
    client: openai.OpenAI, server: Server
) -> None:
    fields: dict[str, Any] = {"model": MODEL_NAME, "input": "hello", "response_format": "pcm"}
    more = {"seed": 4, "max_tokens": 10}
    alias = client.audio.speech.create(**fields, voice="alloy", extra_body=more).content
    assert alias == client.audio.speech.create(**fields, voice="joe", extra_body=more).content
    assert alias != client.audio.speech.create(**fields, voice="heart", extra_body=more).content
    with pytest.raises(openai.BadRequestError, match=r"\['alloy', 'default', 'heart', 'joe', 'k"):
        client.audio.speech.create(**fields, voice="nova")


def test_tasks_must_make_what_is_returned(server: Server) -> None:
    data = wav(talk(0.5))
    for answer, words in (
        (transcribe(server, data, task="voice_prompted_speech"), "needs text and audio"),
        (transcribe(server, data, task="text_to_speech"), "needs text"),
        (speak(server, task="speech_to_text"), "needs audio"),
        (speak(server, task="voice_prompted_speech"), "needs text and audio"),
    ):
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "task")
        assert words in error["message"]


def test_fields_that_come_twice_are_refused(server: Server) -> None:
    data = wav(talk(0.5))
    twice = [("file", ("a.wav", data)), ("file", ("b.wav", data))]
    answer = post(server, "/v1/audio/transcriptions", files=twice)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")
    for name in ("model", "language", "stream"):
        answer = transcribe(server, data, **{name: ["en", "de"]})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
    body = b'{"input": "a", "input": "b"}'
    status, text = server.request("/v1/audio/speech", body)
    assert (status, json.loads(text)["error"]["param"]) == (400, "input")


def test_an_empty_model(server: Server) -> None:
    assert transcribe(server, wav(talk(0.5)), model="").status_code == 200
    refused = speak(server, model="")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")


def test_blank_text_is_blamed_by_its_name(server: Server) -> None:
    for field in ("input", "negative_prompt"):
        for text in (" ", "\n", "\t \r\n", ""):
            answer = speak(server, **{field: text})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


def test_languages(server: Server) -> None:
    data = wav(talk(0.5))
    assert transcribe(server, data, language="en").status_code == 200
    assert transcribe(server, data, language="").status_code == 200
    assert speak(server, language="en").status_code == 200
    for answer in (transcribe(server, data, language="de"), speak(server, language="de")):
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "language")
        assert "must be one of ['en']" in error["message"]


def test_formats_of_transcripts(client: openai.OpenAI, server: Server) -> None:
    data = wav(talk(1.5))
    text = transcribe(server, data).json()["text"]
    verbose = client.audio.transcriptions.create(
        model=MODEL_NAME,
        file=("clip.wav", data),
        response_format="verbose_json",
        language="en",
        timestamp_granularities=["segment"],
        temperature=0,
    )
    assert (verbose.text, verbose.duration, verbose.language) == (text, 1.5, "en")
    assert verbose.segments is not None
    (segment,) = verbose.segments
    assert (segment.start, segment.end, segment.text) == (0.0, 1.5, text)
    assert len(segment.tokens) == DEFAULT_TOKENS
    line = " ".join(text.split())
    srt = transcribe(server, data, response_format="srt")
    assert srt.text == f"1\n00:00:00,000 --> 00:00:01,500\n{line}\n\n"
    vtt = transcribe(server, data, response_format="vtt")
    assert vtt.text.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.500\n")
    assert srt.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.fixture(scope="module")
def offline(served_model: Path) -> Iterator[Any]:
    """Transcripts of clips by the same model in this process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    llm = LLM(str(served_model), disable_log_stats=True, **ENGINE_OPTIONS)

    def run(samples: NDArray[np.float32]) -> Any:
        prompt: Any = {"prompt": "", "multi_modal_data": {"audio": (samples, SAMPLE_RATE)}}
        params = SamplingParams(temperature=0)
        return llm.generate(prompt, params, use_tqdm=False)[0].outputs[0]

    yield run
    llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()


def test_audio_longer_than_the_context_is_transcribed_in_parts(
    server: Server, offline: Any
) -> None:
    pauses = (17.0, 33.0)
    data = wav(talk(50.0, pauses))
    assert MAX_MODEL_LEN * SAMPLES_PER_FRAME / SAMPLE_RATE < 50.0 / 2
    verbose = transcribe(server, data, response_format="verbose_json").json()
    segments = verbose["segments"]
    assert [segment["start"] for segment in segments] == pytest.approx([0, *pauses], abs=0.2)
    assert segments[-1]["end"] == verbose["duration"] == 50.0
    samples, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    texts = []
    for segment in segments:
        begin, end = (round(segment[side] * SAMPLE_RATE) for side in ("start", "end"))
        made = offline(samples[begin:end])
        assert segment["text"] == made.text
        assert len(segment["tokens"]) == DEFAULT_TOKENS
        texts.append(made.text.strip())
    joined = " ".join(text for text in texts if text)
    assert verbose["text"] == joined
    answer = transcribe(server, data).json()
    assert answer["text"] == joined
    assert answer["usage"]["output_tokens"] == 3 * DEFAULT_TOKENS
    assert answer["usage"]["input_token_details"]["audio_seconds"] == pytest.approx(50.0)
    events = [
        json.loads(line)
        for line in re.findall("^data: (.*)$", transcribe(server, data, stream="true").text, re.M)
    ]
    assert "".join(event["delta"] for event in events[:-1]) == joined == events[-1]["text"]
    assert events[-1]["usage"] == answer["usage"]


def test_parts_leave_room_for_the_tokens_that_are_asked_for(server: Server) -> None:
    samples = talk(20.0)
    fits = transcribe(server, wav(samples), max_completion_tokens="5").json()
    assert fits["usage"]["output_tokens"] == 5
    halves = transcribe(server, wav(samples), max_completion_tokens="400").json()
    assert halves["usage"]["output_tokens"] == 800
    # All of the audio is heard, however many tokens are asked for.
    most = transcribe(server, wav(samples), max_completion_tokens="100000").json()
    assert most["usage"]["input_token_details"]["audio_seconds"] == pytest.approx(20.0)
    assert cut_points(samples[None], SAMPLE_RATE, len(samples)) == []


def test_audio_of_other_rates_and_channels_is_cut_too(server: Server) -> None:
    samples = np.repeat(talk(30.0)[:, None], 2, axis=1)[::2]
    buffer = io.BytesIO()
    soundfile.write(buffer, samples[: 30 * 8000], 8000, format="WAV", subtype="PCM_16")
    answer = transcribe(server, buffer.getvalue(), response_format="verbose_json").json()
    ends = [segment["end"] for segment in answer["segments"]]
    assert len(ends) == 2 and ends[-1] == pytest.approx(30.0)
    assert all(end - begin < 20.48 for begin, end in itertools.pairwise([0.0, *ends]))


def test_neutral_fields_change_nothing(client: openai.OpenAI, server: Server) -> None:
    plain = speak(server).content
    neutral: dict[str, Any] = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "stop": None,
        "tools": [],
        "logprobs": False,
        "logit_bias": {},
        "store": False,
        "instructions": None,
        "user": "somebody",
        "min_p": 0,
    }
    assert speak(server, **neutral).content == plain
    answer = client.chat.completions.create(
        model=MODEL_NAME,
        messages=[{"role": "user", "content": "hello"}],
        modalities=["text", "audio"],
        audio={"voice": "alloy", "format": "wav"},
        frequency_penalty=0,
        logit_bias={},
        logprobs=False,
        parallel_tool_calls=True,
        response_format={"type": "text"},
        service_tier="auto",
        stop=None,
        store=False,
        stream=False,
        tools=[],
        user="somebody",
        metadata={"run": "1"},
    )
    assert answer.choices[0].message.audio is not None
    data = wav(talk(0.5))
    form = {"frequency_penalty": "0", "temperature": "", "logprobs": "false", "tools": "[]"}
    assert transcribe(server, data, **form).json() == transcribe(server, data).json()
