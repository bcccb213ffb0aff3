# SPDX-License-Identifier: Apache-2.0
"""The HTTP interface, driven by OpenAI's own client against a real server."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import gc
import http.client
import io
import json
import os
import shutil
import subprocess
import threading
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import psutil
import pytest
import soundfile
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from tests.entrypoints.server import (
    API_KEY,
    DEFAULT_TOKENS,
    ENGINE_OPTIONS,
    GUIDANCE_SCALE,
    MAX_QUEUED,
    MODEL_NAME,
    PATIENCE,
    RECORDED,
    SAID,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    VOICES,
    Server,
    recording,
)
from vllm.entrypoints.speech.encoding import UNKNOWN_LENGTH, encode_whole, pcm16

pytestmark = pytest.mark.slow

TEXT = "hello there"
BLOCK_SIZE = ENGINE_OPTIONS["block_size"]
RECORDING = base64.b64encode(recording()).decode()
SPEECH: dict[str, Any] = {"model": MODEL_NAME, "input": TEXT, "voice": "joe"}


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0) as made:
        yield made


Offline = Callable[..., Any]


@pytest.fixture(scope="module")
def offline(served_model: Path) -> Iterator[Offline]:
    """The same model in this process: what the server must answer."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    llm = LLM(str(served_model), disable_log_stats=True, **ENGINE_OPTIONS)

    def generate(prompt: dict[str, Any], **params: Any) -> Any:
        (output,) = llm.generate(prompt, SamplingParams(**params), use_tqdm=False)  # type: ignore
        return output.outputs[0]

    yield generate
    llm.llm_engine.engine_core.shutdown()
    gc.collect()
    cleanup_dist_env_and_memory()


def voiced(voice: str) -> dict[str, Any]:
    return {"prompt": TEXT, "mm_processor_kwargs": {"voice": voice}}


def clip(seconds: float = 0.5, rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    noise = np.random.default_rng(3).standard_normal(int(seconds * rate))
    return (0.1 * noise).astype(np.float32)


def wav_file(seconds: float = 0.5) -> bytes:
    return encode_whole("wav", clip(seconds), SAMPLE_RATE)


def speech(client: openai.OpenAI, **fields: Any) -> bytes:
    known = {"response_format", "stream_format", "speed", "voice"}
    own = {name: value for name, value in fields.items() if name not in known}
    given = SPEECH | {name: value for name, value in fields.items() if name in known}
    return client.audio.speech.create(**given, extra_body=own).content


def as_samples(pcm: bytes) -> NDArray[np.int16]:
    return np.frombuffer(pcm, "<i2")


def assert_same_audio(pcm: bytes, samples: NDArray[np.float32]) -> None:
    """Equal but for what rounding to 16 bits makes of 1e-5 of full scale."""
    expected = as_samples(pcm16(samples))
    assert as_samples(pcm).shape == expected.shape
    assert np.abs(as_samples(pcm).astype(int) - expected).max() <= 1


def test_the_voices_are_listed(server: Server) -> None:
    status, body = server.request("/v1/audio/voices")
    assert status == 200
    voices = json.loads(body)["data"]
    assert {voice["id"]: voice["default"] for voice in voices} == {
        name: name == "heart" for name in (*VOICES, RECORDED, "alloy")
    }
    assert voices[-2] == {
        "id": RECORDED,
        "object": "audio.voice",
        "name": "Zoë",
        "default": False,
        "language": "en",
    }
    assert voices[-1]["name"] == "joe"


def test_speech_is_what_the_engine_makes(client: openai.OpenAI, offline: Offline) -> None:
    fields = {"seed": 5, "temperature": 0.9, "top_k": 20, "top_p": 0.95, "max_tokens": 40}
    pcm = speech(client, response_format="pcm", guidance_scale=3.0, **fields)
    made = offline(voiced("joe"), guidance_scale=3.0, **fields)
    assert len(made.audio.codes) == 40
    assert_same_audio(pcm, made.audio.samples)
    negative = speech(client, response_format="pcm", negative_prompt="no", **fields)
    guided = {"guidance_scale": GUIDANCE_SCALE, "negative_prompt": "no"}
    assert_same_audio(negative, offline(voiced("joe"), **guided, **fields).audio.samples)
    assert negative != pcm


def test_a_recording_is_the_same_voice_however_it_comes(
    client: openai.OpenAI, server: Server, offline: Offline
) -> None:
    fields = {"seed": 5, "temperature": 0.9, "top_k": 20, "max_tokens": 20}
    samples, rate = soundfile.read(io.BytesIO(recording()), dtype="float32")
    prompt = {"prompt": TEXT, "multi_modal_data": {"voice": (samples, rate)}}
    said = {"mm_processor_kwargs": {"reference_text": SAID}}
    made = offline(prompt | said, guidance_scale=GUIDANCE_SCALE, **fields)
    letters = RECORDING
    pcm = speech(client, response_format="pcm", voice=RECORDED, **fields)
    assert_same_audio(pcm, made.audio.samples)
    # OpenAI's client must name a voice.
    sent: dict[str, Any] = {"response_format": "pcm", "voice": "default", "ref_text": SAID}
    for audio in (letters, f"data:audio/wav;base64,{letters}"):
        assert speech(client, ref_audio=audio, **sent, **fields) == pcm
    url, key = f"{server.url}/v1/audio/speech", {"authorization": f"Bearer {API_KEY}"}
    form = {"input": TEXT, "response_format": "pcm", "ref_text": SAID}
    form |= {name: str(value) for name, value in fields.items()}
    files = {"ref_audio": ("zoe.wav", recording(), "audio/wav")}
    uploaded = httpx.post(url, data=form, files=files, headers=key, timeout=PATIENCE)
    assert (uploaded.status_code, uploaded.content) == (200, pcm)
    # Without its text the recording speaks otherwise; the section is optional.
    silent = speech(client, **(sent | {"ref_text": None}), ref_audio=letters, **fields)
    assert_same_audio(
        silent, offline(prompt, guidance_scale=GUIDANCE_SCALE, **fields).audio.samples
    )
    assert silent != pcm
    # Its own temperature, 0.5, holds where the request has none.
    colder = {name: value for name, value in fields.items() if name != "temperature"}
    cold = speech(client, response_format="pcm", voice=RECORDED, **colder)
    made = offline(prompt | said, guidance_scale=GUIDANCE_SCALE, **colder, temperature=0.5)
    assert_same_audio(cold, made.audio.samples)
    assert cold != pcm


def test_requests_share_the_rows_of_a_recording(client: openai.OpenAI, server: Server) -> None:
    assert blocks_are_free(server)
    fields: dict[str, Any] = {"guidance_scale": 1.0, "max_tokens": 5, "voice": RECORDED}
    speech(client, **fields)
    before = cached_tokens(server)
    client.audio.speech.create(
        model=MODEL_NAME,
        input="something else",
        voice="default",
        extra_body={
            "ref_audio": RECORDING,
            "ref_text": SAID,
            "guidance_scale": 1.0,
            "max_tokens": 5,
        },
    )
    # SPEAKER, what is said, the begin of the text, and a second of 50 frames and 3 more steps.
    shared = 1 + len(SAID) + 1 + 53
    assert cached_tokens(server) - before == shared // BLOCK_SIZE * BLOCK_SIZE


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"ref_audio": "no base64!"}, "ref_audio", "must be base64"),
        ({"ref_audio": base64.b64encode(b"no audio").decode()}, "ref_audio", "audio file"),
        ({"ref_audio": RECORDING, "voice": "joe"}, "ref_audio", "beside the name of a voice"),
        ({"ref_audio": RECORDING, "task": "speech_to_text"}, "task", "needs audio"),
        ({"ref_audio": RECORDING, "ref_text": "\n"}, "ref_text", "more than spaces"),
        ({"ref_text": SAID}, "ref_text", "beside ref_audio"),
        ({"ref_audio": "A" * (3 * 2**20)}, "ref_audio", "must have at most 2097152 bytes"),
    ],
)
def test_a_recording_that_is_wrong_is_named(
    server: Server, fields: dict[str, Any], param: str, words: str
) -> None:
    status, body = server.request("/v1/audio/speech", json.dumps({"input": TEXT} | fields).encode())
    error = json.loads(body)["error"]
    assert (status, error["param"]) == (400, param), error
    assert words in error["message"]


def test_the_model_s_defaults_hold_for_what_is_left_out(
    client: openai.OpenAI, offline: Offline
) -> None:
    pcm = speech(client, response_format="pcm", seed=1)
    defaults = {"guidance_scale": GUIDANCE_SCALE, "max_tokens": DEFAULT_TOKENS}
    assert_same_audio(pcm, offline(voiced("joe"), seed=1, **defaults).audio.samples)
    # "default" is the model's own, here "heart"; both ways to name a voice are one.
    default = speech(client, response_format="pcm", seed=1, voice="default")
    assert_same_audio(default, offline(voiced("heart"), seed=1, **defaults).audio.samples)
    assert speech(client, response_format="pcm", seed=1, voice={"id": "heart"}) == default
    assert default != pcm


def test_wav_is_streamed_in_chunks_after_a_header_of_unknown_length(
    client: openai.OpenAI, offline: Offline
) -> None:
    body = {"seed": 2, "max_tokens": 60, "guidance_scale": 1.0}
    with client.audio.speech.with_streaming_response.create(**SPEECH, extra_body=body) as response:
        assert response.headers["content-type"] == "audio/wav"
        assert response.headers["transfer-encoding"] == "chunked"
        chunks = list(response.iter_bytes())
    data = b"".join(chunks)
    assert data[40:44] == UNKNOWN_LENGTH.to_bytes(4, "little")
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        assert file.getframerate() == SAMPLE_RATE
    assert_same_audio(data[44:], offline(voiced("joe"), seed=2, max_tokens=60).audio.samples)
    assert len(chunks) > 1


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "opus", "aac"])
def test_other_programs_read_every_format(name: str, client: openai.OpenAI, tmp_path: Path) -> None:
    if shutil.which("ffprobe") is None or shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    path = tmp_path / f"speech.{'ogg' if name == 'opus' else name}"
    path.write_bytes(speech(client, response_format=name, seed=3, max_tokens=50))
    shown = ["-show_entries", "stream=codec_name", "-of", "csv=p=0"]
    probe = subprocess.run(
        ["ffprobe", "-v", "error", *shown, str(path)], capture_output=True, check=True, text=True
    )
    assert probe.stdout.strip() == {"wav": "pcm_s16le"}.get(name, name)
    decode = ["ffmpeg", "-v", "error", "-i", str(path), "-f", "s16le", "-ar", str(SAMPLE_RATE), "-"]
    pcm = subprocess.run(decode, capture_output=True, check=True).stdout
    assert len(pcm) / 2 / SAMPLE_RATE == pytest.approx(1.0, abs=0.15)


def test_curl_and_sox_play_a_stream(server: Server, tmp_path: Path) -> None:
    for program in ("curl", "sox"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    path = tmp_path / "speech.wav"
    body = json.dumps(SPEECH | {"max_tokens": 25})
    headers = ["-H", "content-type: application/json", "-H", f"authorization: Bearer {API_KEY}"]
    route = f"{server.url}/v1/audio/speech"
    subprocess.run(["curl", "-sSfN", route, *headers, "-d", body, "-o", str(path)], check=True)
    stat = subprocess.run(
        ["sox", str(path), "-n", "stat"], capture_output=True, check=True, text=True
    )
    assert f"Samples read: {25 * SAMPLES_PER_FRAME:17d}" in stat.stderr


def test_speech_as_events(client: openai.OpenAI) -> None:
    fields = {"response_format": "pcm", "seed": 4, "max_tokens": 30}
    body = speech(client, stream_format="sse", **fields).decode()
    events = [json.loads(line.removeprefix("data: ")) for line in body.split("\n\n") if line]
    assert {event["type"] for event in events[:-1]} == {"speech.audio.delta"}
    pcm = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    assert pcm == speech(client, **fields)
    done = events[-1]
    assert done["type"] == "speech.audio.done"
    usage = done["usage"]
    assert usage["output_tokens"] == 30 + 3  # the last of 4 streams runs 3 steps behind
    assert usage["output_token_details"] == {
        "text_tokens": 0,
        "audio_tokens": 30,
        "audio_seconds": 30 * SAMPLES_PER_FRAME / SAMPLE_RATE,
    }
    assert usage["input_token_details"]["text_tokens"] == len(TEXT)
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_transcription(client: openai.OpenAI, offline: Offline) -> None:
    prompt = {"prompt": "", "multi_modal_data": {"audio": (clip(), SAMPLE_RATE)}}
    expected = offline(prompt, temperature=0, max_tokens=20).text
    # The file holds 16 bits; the codes of noise are the same or the text would not be.
    fields: dict[str, Any] = {"model": MODEL_NAME, "file": ("clip.wav", wav_file())}
    more = {"max_completion_tokens": 20}
    result = client.audio.transcriptions.create(**fields, extra_body=more)
    assert result.text == expected
    usage: Any = result.usage
    assert (usage.type, usage.output_tokens) == ("tokens", 20)
    assert usage.input_token_details.audio_tokens == 25
    assert usage.input_token_details.audio_seconds == 0.5
    text = client.audio.transcriptions.create(**fields, response_format="text", extra_body=more)
    assert text == expected
    events = list(client.audio.transcriptions.create(**fields, stream=True, extra_body=more))
    assert "".join(event.delta for event in events[:-1]) == expected  # type: ignore[union-attr]
    done: Any = events[-1]
    assert (done.type, done.text) == ("transcript.text.done", expected)
    assert done.usage.output_tokens == 20


@pytest.mark.parametrize("name", ["flac", "opus", "mp3"])
def test_compressed_files_are_transcribed(name: str, client: openai.OpenAI) -> None:
    data = encode_whole(name, clip(1.0, 24000), 24000)
    result = client.audio.transcriptions.create(model=MODEL_NAME, file=(f"clip.{name}", data))
    usage: Any = result.usage
    assert usage.input_token_details.audio_seconds == pytest.approx(1.0, abs=0.01)
    assert usage.output_tokens == DEFAULT_TOKENS


def audio_part(data: bytes) -> dict[str, Any]:
    encoded = base64.b64encode(data).decode()
    return {"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}}


def test_base64_of_a_browser_and_of_mime(client: openai.OpenAI) -> None:
    def heard(data: str) -> str | None:
        part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        answer = client.chat.completions.create(
            model=MODEL_NAME, messages=user(part), max_tokens=10
        )
        return answer.choices[0].message.content

    plain = base64.b64encode(wav_file()).decode()
    expected = heard(plain)
    assert heard(base64.encodebytes(wav_file()).decode()) == expected
    assert heard(f"data:audio/wav;base64,{plain}") == expected
    with pytest.raises(openai.BadRequestError, match=r"input_audio.data must be base64"):
        heard(plain[:-1] + "!")


def user(*parts: dict[str, Any] | str) -> list[Any]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": content}]


def test_chat_answers_audio_with_text(client: openai.OpenAI) -> None:
    messages = user(audio_part(wav_file()))
    answer = client.chat.completions.create(model=MODEL_NAME, messages=messages, max_tokens=20)
    heard = client.audio.transcriptions.create(
        model=MODEL_NAME,
        file=("clip.wav", wav_file()),
        extra_body={"max_completion_tokens": 20},
    )
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == (heard.text, "length")
    assert choice.message.audio is None
    usage: Any = answer.usage
    assert usage.prompt_tokens_details.audio_tokens == 25
    assert usage.completion_tokens_details.text_tokens == 20
    stream = client.chat.completions.create(
        model=MODEL_NAME, messages=messages, max_completion_tokens=20, stream=True
    )
    deltas = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(deltas) == heard.text


def test_chat_answers_with_audio(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {
        "model": MODEL_NAME,
        "messages": user(TEXT),
        "modalities": ["text", "audio"],
        "seed": 6,
        "max_completion_tokens": 30,
    }
    answer = client.chat.completions.create(**fields, audio={"voice": "joe", "format": "wav"})
    message = answer.choices[0].message
    assert message.content is None and message.audio is not None
    assert message.audio.transcript == ""
    data = base64.b64decode(message.audio.data)
    expected = speech(client, response_format="pcm", seed=6, max_tokens=30)
    assert len(expected) == 2 * 30 * SAMPLES_PER_FRAME
    assert data[44:] == expected
    with wave.open(io.BytesIO(data)) as file:
        assert file.getnframes() == 30 * SAMPLES_PER_FRAME
    usage: Any = answer.usage
    assert usage.completion_tokens_details.audio_tokens == 30
    assert usage.completion_tokens_details.audio_seconds == 0.6
    assert usage.total_tokens == usage.prompt_tokens + 33
    stream = client.chat.completions.create(
        **fields,
        audio={"voice": "joe", "format": "pcm16"},
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks: list[Any] = list(stream)
    pieces = [chunk.choices[0].delta.audio for chunk in chunks if chunk.choices]
    assert chunks[0].choices[0].delta.role == "assistant"
    pcm = b"".join(base64.b64decode(piece.data or "") for piece in pieces if piece)
    assert pcm == expected
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage == usage and not chunks[-1].choices


def test_chat_takes_text_and_audio(client: openai.OpenAI, offline: Offline) -> None:
    answer = client.chat.completions.create(
        model=MODEL_NAME,
        messages=user("hello", audio_part(wav_file())),
        modalities=["text", "audio"],
        audio={"voice": "default", "format": "flac"},
        temperature=0,
        max_tokens=10,
    )
    samples, rate = soundfile.read(io.BytesIO(wav_file()), dtype="float32")
    prompt = {"prompt": "hello", "multi_modal_data": {"audio": (samples, rate)}}
    made = offline(prompt, temperature=0, max_tokens=10)
    audio = answer.choices[0].message.audio
    assert audio is not None
    read, _ = soundfile.read(io.BytesIO(base64.b64decode(audio.data)), dtype="int16")
    assert_same_audio(read.tobytes(), made.audio.samples)


def test_errors_name_the_field_in_openai_s_shape(client: openai.OpenAI) -> None:
    refused: list[tuple[str, dict[str, Any]]] = [
        ("speed", {"speed": 1.5}),
        ("voice", {"voice": "kal"}),
        ("response_format", {"response_format": "amr"}),
        ("temperature", {"temperature": -0.1}),
        ("temperature", {"temperature": "hot"}),
        ("top_p", {"top_p": 0}),
        ("top_k", {"top_k": 2**40}),
        ("seed", {"seed": 2**63}),
        ("max_tokens", {"max_tokens": 0}),
        ("guidance_scale", {"guidance_scale": 1e9}),
        ("negative_prompt", {"negative_prompt": "no", "guidance_scale": 1.0}),
        ("task", {"task": "sing"}),
        ("task", {"task": "speech_to_text"}),
        ("instructions", {"instructions": "whisper"}),
        ("negative_prompt", {"negative_prompt": "no " * 300, "max_tokens": 500}),
    ]
    for field, given in refused:
        with pytest.raises(openai.BadRequestError) as caught:
            speech(client, **given)
        error = caught.value
        assert error.param == field, (field, error)
        assert field in error.message and error.type == "BadRequestError"
    for text in ("", "x" * 5000, "x" * (ENGINE_OPTIONS["max_model_len"] + 1)):
        with pytest.raises(openai.BadRequestError):
            client.audio.speech.create(**SPEECH | {"input": text})
    with pytest.raises(openai.NotFoundError, match="model must be one of speech"):
        client.audio.speech.create(**SPEECH | {"model": "other"})


def test_chat_refuses_what_it_would_have_to_ignore(server: Server) -> None:
    refused: list[tuple[str, dict[str, Any]]] = [
        ("modalities", {}),
        ("task", {"task": "text_to_speech"}),
        ("task", {"task": "speech_to_text", "modalities": ["audio"]}),
        ("task", {"task": "speech_to_text", "modalities": ["text", "audio"]}),
        ("task", {"task": "text_to_speech", "messages": user(audio_part(wav_file()))}),
        ("messages", {"messages": []}),
        ("messages", {"messages": [*user("a"), *user("b")]}),
        ("messages[0].role", {"messages": [{"role": "system", "content": "be kind"}]}),
        (
            "messages[0].content[0].type",
            {"messages": user({"type": "image_url", "image_url": {"url": "data:,"}})},
        ),
        (
            "messages[0].content[1].input_audio.data",
            {"messages": user("a", audio_part(b"no audio"))},
        ),
        ("messages[0].content", {"messages": user(*[audio_part(wav_file())] * 2)}),
        ("messages[0].content", {"messages": user(" ", "")}),
        ("messages[0].content[0].input_audio.data", {"messages": user(audio_part(wav_file(22.0)))}),
        (
            "messages[0].content[0].text",
            {"messages": user("x" * 1020), "modalities": ["audio"]},
        ),
        (
            "audio.voice",
            {"audio": {"voice": "kal"}, "modalities": ["audio"]},
        ),
        ("audio", {"audio": {"format": "wav"}, "modalities": ["text"]}),
        ("modalities[0]", {"modalities": ["image"]}),
        ("n", {"n": 2}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        ("stream_options.include_usage", {"stream_options": {"include_usage": True}}),
        ("max_tokens", {"max_tokens": 1, "max_completion_tokens": 2}),
        ("logprobs", {"logprobs": True}),
    ]
    for field, given in refused:
        body = {"model": MODEL_NAME, "messages": user(TEXT)} | given
        status, answer = server.request("/v1/chat/completions", json.dumps(body).encode())
        error = json.loads(answer)["error"]
        assert (status, error["param"]) == (400, field), (given, error)


def test_routes_that_would_drop_the_audio_refuse(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model=MODEL_NAME, prompt="hello")
    assert caught.value.status_code == 501 and "/v1/audio/speech" in caught.value.message
    for path in ("/v1/responses", "/v1/messages", "/inference/v1/generate", "/invocations"):
        assert server.request(path, b"{}")[0] == 501


def test_the_key_is_asked_for(server: Server) -> None:
    body = json.dumps(SPEECH).encode()
    assert server.request("/v1/audio/speech", body, key=None)[0] == 401
    assert server.request("/v1/audio/voices", key="another")[0] == 401


def _flac_of_silence(seconds: int) -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(
        buffer, "w", samplerate=8000, channels=1, format="FLAC", subtype="PCM_16"
    ) as file:
        for _ in range(seconds // 100):
            file.write(np.zeros(800_000, np.int16))
    return buffer.getvalue()


def test_hostile_files_are_refused(client: openai.OpenAI, server: Server) -> None:
    whole = wav_file()
    bomb = _flac_of_silence(36_000)
    assert len(bomb) < 2**20 < 36_000 * 8000 * 4
    files = {
        "nothing": b"",
        "noise": bytes(range(256)) * 10,
        "a header alone": whole[:44],
        "half a header": whole[:30],
        "no channels": whole[:22] + b"\0\0" + whole[24:],
        "a rate of 0": whole[:24] + b"\0\0\0\0" + whole[28:],
        "a rate of 2^32 - 1": whole[:24] + b"\xff\xff\xff\xff" + whole[28:],
        "999 channels": whole[:22] + b"\xe7\x03" + whole[24:],
        "ten hours in a small file": bomb,
        "a bomb without its end": bomb[: len(bomb) // 2],
        "an Ogg of noise": b"OggS" + bytes(5000),
        "an MP3 of noise": b"\xff\xfb\x90\x64" + bytes(range(256)) * 20,
        "too long": _flac_of_silence(700),
        "too large": b"RIFF" + bytes(2 * 2**20 + 1),
        "half of what its header announces": whole[: len(whole) // 2],
        "a playlist": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n",
    }
    for what, data in files.items():
        with pytest.raises(openai.BadRequestError) as caught:
            client.audio.transcriptions.create(model=MODEL_NAME, file=("clip.wav", data))
        assert caught.value.param == "file", (what, caught.value)
    # A WAV stream announces no length: it is as long as what there is of it.
    stream = whole[:40] + bytes(4) + whole[44 : len(whole) // 2]
    half = client.audio.transcriptions.create(model=MODEL_NAME, file=("clip.wav", stream))
    usage: Any = half.usage
    assert usage.input_token_details.audio_seconds == pytest.approx(0.25, abs=0.01)
    assert server.request("/health")[0] == 200


def test_a_body_beyond_the_limit_is_not_read(server: Server) -> None:
    # Not so much beyond it that the answer comes while the client still sends.
    status, body = server.request("/v1/audio/speech", b" " * (4 * 2**20))
    assert status == 413 and json.loads(body)["error"]["code"] == 413
    host, port = server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
    pieces = (b" " * 2**16 for _ in range(2**10))  # 64 MiB, of undeclared length
    headers = {"authorization": f"Bearer {API_KEY}", "content-type": "application/json"}
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request("POST", "/v1/audio/speech", body=pieces, headers=headers)
        assert connection.getresponse().status == 413
    connection.close()


def hostile(name: str) -> tuple[bytes, dict[str, str]]:
    """A body of about 12 MB, and its headers."""
    kind = "application/json"
    body = b"{" + b",".join(b'"x%d":0' % i for i in range(10**6)) + b"}"
    if name == "files":
        kind = "multipart/form-data; boundary=x"
        part = b'--x\r\ncontent-disposition: form-data; name="%d"; filename="a"\r\n\r\n\r\n'
        body = b"".join(part % i for i in range(10**5)) + b"--x--\r\n"
    elif name == "fields":
        kind = "application/x-www-form-urlencoded"
        body = b"&".join(b"x%d=0" % i for i in range(10**6))
    elif name == "content":
        body = b'{"messages":[{"role":"user","content":[' + b"{}," * 10**6 + b"0]}]}"
    return body, {"content-type": kind}


def test_hostile_bodies_hold_up_nobody(server: Server) -> None:
    """In processor time and memory: a schema that is checked in full takes half a minute and 1 GB
    for one of them."""
    process = psutil.Process(server.process.pid)
    healthy: list[int] = []
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            healthy.append(server.request("/health")[0])
            is_over.wait(0.05)

    asking = threading.Thread(target=ask)
    asking.start()
    memory, seconds = process.memory_info().rss, sum(process.cpu_times()[:2])
    routes = [
        "/v1/audio/speech",
        "/v1/audio/transcriptions",
        "/v1/chat/completions",
        "/tokenize",
        "/detokenize",
    ]
    for route in routes:
        for name in ("keys", "files", "fields", "content"):
            body, headers = hostile(name)
            status, answer = server.request(route, body, headers=headers)
            assert status in (400, 413), (route, name, status)
            assert len(answer) < 2000, (route, name)
    is_over.set()
    asking.join()
    assert set(healthy) == {200}
    assert process.memory_info().rss - memory < 200 * 2**20
    assert sum(process.cpu_times()[:2]) - seconds < 10


def blocks_are_free(server: Server) -> bool:
    """The prefix cache can be reset only while no request holds a block."""
    status, body = server.request("/reset_prefix_cache", b"")
    assert status == 200
    return json.loads(body)["success"]


def counted(server: Server, name: str) -> float:
    """What a metric of the server has counted since its start."""
    families = text_string_to_metric_families(server.request("/metrics")[1].decode())
    samples = [sample for family in families for sample in family.samples]
    return sum(s.value for s in samples if s.name == f"vllm:{name}_total")


def generated_tokens(server: Server) -> float:
    return counted(server, "generation_tokens")


def cached_tokens(server: Server) -> float:
    """Tokens of prompts that were found in the prefix cache."""
    return counted(server, "prefix_cache_hits")


LONG = {"max_tokens": 900, "guidance_scale": 3.0}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/audio/speech", SPEECH | LONG),
        ("/v1/audio/speech", SPEECH | LONG | {"stream_format": "sse"}),
        ("/v1/audio/speech", SPEECH | LONG | {"response_format": "flac"}),
        (
            "/v1/chat/completions",
            {"messages": user(TEXT), "modalities": ["text", "audio"]} | LONG | {"stream": True},
        ),
        ("/v1/chat/completions", {"messages": user(TEXT), "modalities": ["audio"]} | LONG),
    ],
)
def test_a_client_that_leaves_frees_its_request_at_once(
    server: Server, path: str, body: dict[str, Any]
) -> None:
    assert blocks_are_free(server)
    before = generated_tokens(server)
    host, port = server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
    headers = {"authorization": f"Bearer {API_KEY}", "content-type": "application/json"}
    connection.request("POST", path, body=json.dumps(body).encode(), headers=headers)
    streams = "modalities" not in body or body.get("stream")
    if streams:
        assert connection.getresponse().read(100)
    while blocks_are_free(server):
        assert generated_tokens(server) - before < LONG["max_tokens"], "it has ended already"
    assert connection.sock is not None or streams
    connection.close()
    while not blocks_are_free(server):
        pass
    # The model goes on until the request's limit, unless somebody ends the request.
    assert generated_tokens(server) - before < LONG["max_tokens"]


def test_more_requests_than_the_limit_are_turned_away(server: Server) -> None:
    body = json.dumps(SPEECH | {"max_tokens": 300}).encode()
    with concurrent.futures.ThreadPoolExecutor(2 * MAX_QUEUED) as pool:
        answers = list(
            pool.map(lambda _: server.request("/v1/audio/speech", body), range(2 * MAX_QUEUED))
        )
    statuses = [status for status, _ in answers]
    assert set(statuses) == {200, 503} and statuses.count(200) >= MAX_QUEUED
    refused = next(json.loads(answer) for status, answer in answers if status == 503)
    assert "busy" in refused["error"]["message"]
    assert server.request("/v1/audio/voices")[0] == 200
    assert blocks_are_free(server)
