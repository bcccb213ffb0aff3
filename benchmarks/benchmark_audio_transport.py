# SPDX-License-Identifier: Apache-2.0
r"""What it costs to bring audio from the engine's process to the front end's.

    python benchmarks/benchmark_audio_transport.py \
        --output-json benchmarks/results/audio_transport.json

Each round sends one output of the engine's core for 64 streams (all of which happen to have a chunk
of audio in the same step, the worst case) to another process and waits for its answer, in three
ways in interleaved rounds:

- text: the outputs without audio;
- buffers: with audio, as the engine sends it: raw buffers beside the message;
- lists: with audio as lists of numbers, element by element, which is what must not happen.

The same encoder and decoder (vllm.v1.serial_utils) and the same kind of socket as the engine's are
used. Times are those of the fastest round, since whatever else runs on the machine only adds to
them. `seconds_per_audio_second` is what buffers add to text, divided by the seconds of audio that
were sent.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import msgspec
import numpy as np
import zmq
from hardware import describe_machine

STREAMS = 64
SAMPLE_RATE = 16000
SAMPLES_PER_FRAME = 320
CODEBOOKS = 8
CHUNKS = (4, 32)
"""Frames per chunk."""


class _Numbers(msgspec.Struct, array_like=True):
    """Audio as lists of numbers, beside the outputs without it."""

    outputs: Any
    samples: list[list[float]]
    codes: list[list[list[int]]]


def _receive(address: str) -> None:
    """The front end: decode each message, look at its last sample, answer."""
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.serial_utils import MsgpackDecoder

    decoders: dict[bytes, Any] = {
        b"text": MsgpackDecoder(EngineCoreOutputs),
        b"buffers": MsgpackDecoder(EngineCoreOutputs),
        b"lists": msgspec.msgpack.Decoder(_Numbers),
    }
    socket = zmq.Context().socket(zmq.PAIR)
    socket.connect(address)
    while True:
        way, *frames = socket.recv_multipart(copy=False)
        name = bytes(way.buffer)
        if name == b"stop":
            return
        if name == b"lists":
            audio = decoders[name].decode(frames[0].buffer)
            last = np.asarray(audio.samples[-1], np.float32)[-1]
        else:
            audio = decoders[name].decode(frames).outputs[-1].audio
            last = 0.0 if audio is None else audio.samples[-1]
        # Freed before the answer, not in the time of the next message.
        del audio, frames
        socket.send(np.float32(last).tobytes())


def _messages(chunk: int) -> dict[str, Any]:
    from vllm.unison.messages.streams import AudioOutput
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

    random = np.random.default_rng(0)
    audio = [
        AudioOutput(
            random.standard_normal(chunk * SAMPLES_PER_FRAME).astype(np.float32),
            SAMPLE_RATE,
            random.integers(0, 1024, (chunk, CODEBOOKS), np.int32),
        )
        for _ in range(STREAMS)
    ]

    def outputs(with_audio: bool) -> EngineCoreOutputs:
        return EngineCoreOutputs(
            outputs=[
                EngineCoreOutput(f"request-{i}", [i], audio=audio[i] if with_audio else None)
                for i in range(STREAMS)
            ],
            timestamp=time.monotonic(),
        )

    return {"text": outputs(False), "buffers": outputs(True), "audio": audio}


def measure(rounds: int) -> list[dict[str, Any]]:
    """One result per size of chunk."""
    from vllm.v1.serial_utils import MsgpackEncoder

    with tempfile.TemporaryDirectory() as folder:
        address = f"ipc://{folder}/audio"
        socket = zmq.Context().socket(zmq.PAIR)
        socket.bind(address)
        process = get_context("spawn").Process(target=_receive, args=(address,), daemon=True)
        process.start()
        encoder, plain = MsgpackEncoder(), msgspec.msgpack.Encoder()
        results = []
        for chunk in CHUNKS:
            messages = _messages(chunk)

            def send(way: str, messages: dict[str, Any] = messages) -> None:
                if way == "lists":
                    audio = messages["audio"]
                    frames = [
                        plain.encode(
                            _Numbers(
                                None,
                                [one.samples.tolist() for one in audio],
                                [one.codes.tolist() for one in audio],
                            )
                        )
                    ]
                else:
                    frames = list(encoder.encode(messages[way]))  # type: ignore[arg-type]
                socket.send_multipart([way.encode(), *frames], copy=False)
                socket.recv()

            ways = ("text", "buffers", "lists")
            times: dict[str, list[float]] = {way: [] for way in ways}
            for number in range(rounds + 5):
                for way in ways:
                    begin = time.perf_counter()
                    send(way)
                    if number >= 5:
                        times[way].append(time.perf_counter() - begin)
            fastest = {way: min(values) for way, values in times.items()}
            added = fastest["buffers"] - fastest["text"]
            seconds = STREAMS * chunk * SAMPLES_PER_FRAME / SAMPLE_RATE
            results.append(
                {
                    "streams": STREAMS,
                    "frames_per_chunk": chunk,
                    "audio_seconds": seconds,
                    "milliseconds": {way: 1e3 * value for way, value in fastest.items()},
                    "added_milliseconds": 1e3 * added,
                    "seconds_per_audio_second": added / seconds,
                    "lists_over_buffers": fastest["lists"] / fastest["buffers"],
                }
            )
        socket.send(b"stop")
        process.join()
    return results


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--output-json", type=Path)
    arguments = parser.parse_args()
    results = measure(arguments.rounds)
    for result in results:
        print(
            f"{result['streams']} chunks of {result['frames_per_chunk']} frames "
            f"({result['audio_seconds']:.1f} s of audio): "
            + ", ".join(f"{way} {ms:.2f} ms" for way, ms in result["milliseconds"].items())
            + f"; audio adds {result['added_milliseconds']:.2f} ms, "
            f"lists cost {result['lists_over_buffers']:.0f} times as much"
        )
    if arguments.output_json:
        report = {"machine": describe_machine(), "rounds": arguments.rounds, "results": results}
        arguments.output_json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
