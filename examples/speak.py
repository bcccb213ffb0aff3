# SPDX-License-Identifier: Apache-2.0
"""Says a sentence into a WAV file, or reads one: text to speech, speech to text, voice prompts.

python examples/speak.py "please open blue door" --output window.wav
python examples/speak.py "please open blue door" --voice slt
python examples/speak.py --transcribe window.wav
python examples/speak.py "any text" --audio voice.wav --model FOLDER_OR_HUB_ID

Without --model it is the small model that is installed with the package; its model card
(vllm/unison/default_model/README.md) lists the words that it knows.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import shutil
import sys
import tempfile
import time
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vllm.entrypoints.speech.cli.process import prepare_process, printable
from vllm.unison.packaged_model import DEFAULT_MODEL, KV_CACHE_BYTES

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.outputs import CompletionOutput

RANDOM_MODEL = "random"
"""Name that stands for the demo model with random weights."""

DEMO_FRAMES = 150
"""Frames that the random demo model speaks when --max-tokens is not given: 3 seconds."""

DEMO_TEXT_TOKENS = 60
"""Text tokens that the random demo model writes when --max-tokens is not given."""


@dataclass(frozen=True)
class Result:
    """What a request gave.

    Attributes:
        completion: text and audio.
        num_steps: steps that the engine took.
        seconds: from the request to its last token and its waveform.
    """

    completion: CompletionOutput
    num_steps: int
    seconds: float


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; refuses what cannot be meant, naming the argument.

    Returns:
        The options; `clip` holds the samples and the rate of --audio or --transcribe, or None.
    """
    parser = argparse.ArgumentParser(
        description="Say a sentence into a WAV file, or transcribe one.", allow_abbrev=False
    )
    parser.add_argument("text", nargs="?", metavar="TEXT", help="what to say")
    parser.add_argument("--output", type=Path, metavar="WAV", help="where to (default: out.wav)")
    parser.add_argument("--audio", type=Path, metavar="WAV", help="voice prompt: speak like this")
    parser.add_argument("--transcribe", type=Path, metavar="WAV", help="write this as text instead")
    parser.add_argument("--voice", metavar="NAME", help="one of the model's voices")
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="folder or hub id of a SpeechLM checkpoint, or 'random' for one with random weights "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="same seed, same file (default: %(default)s)"
    )
    parser.add_argument(
        "--temperature",
        type=_number(0, "a finite number >= 0"),
        help="0 is greedy (default: as the model says, else 0.8)",
    )
    parser.add_argument(
        "--top-k",
        type=_integer(0),
        help="candidates per stream and step; 0 is all of them (default: as the model says)",
    )
    parser.add_argument(
        "--max-tokens",
        type=_integer(1),
        help="most frames of speech, or most tokens of text (default: what the model has room for)",
    )
    parser.add_argument(
        "--guidance-scale",
        type=float,
        metavar="S",
        help="classifier-free guidance: how far to follow TEXT; 1 is none (default: as the model "
        "says, else none)",
    )
    parser.add_argument(
        "--negative-prompt",
        metavar="TEXT",
        help="what guidance leads away from (default: the model's null prompt)",
    )
    options = parser.parse_args(arguments)
    if (options.text is None) == (options.transcribe is None):
        parser.error("give either TEXT or --transcribe WAV")
    if options.text is not None and not options.text.strip():
        parser.error("argument TEXT: must not be empty")
    for name in ("output", "audio", "voice", "guidance_scale", "negative_prompt"):
        if options.transcribe is not None and getattr(options, name) is not None:
            option = name.replace("_", "-")
            parser.error(f"argument --{option}: goes with TEXT, not with --transcribe")
    options.output = options.output or Path("out.wav")
    if not options.output.absolute().parent.is_dir() or options.output.is_dir():
        parser.error(f"argument --output: {options.output} must be a file in an existing folder")
    options.clip = None
    for name in ("audio", "transcribe"):
        path = getattr(options, name)
        if path is None:
            continue
        try:
            options.clip = read_wav(path)
        except (OSError, ValueError) as error:
            parser.error(f"argument --{name}: {error}")
    return options


def _number(least: float, words: str) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= least):
            raise argparse.ArgumentTypeError(f"must be {words}, not {text!r}")
        return value

    return number


def _integer(least: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        value = int(text) if text.removeprefix("-").isdecimal() else None
        if value is None or value < least:
            raise argparse.ArgumentTypeError(f"must be an integer >= {least}, not {text!r}")
        return value

    return integer


def read_wav(path: Path) -> tuple[NDArray[np.float32], int]:
    """Read a WAV file with integer samples of 8, 16, 24 or 32 bits.

    Other files (FLAC, floating-point WAV, ...) are read if the soundfile library is installed.

    Returns:
        Samples [num_channels, num_samples] in [-1, 1], and the sample rate in Hz.

    Raises:
        OSError: if there is no such file.
        ValueError: if it cannot be read as audio, or holds no samples.
    """
    try:
        with wave.open(str(path), "rb") as file:
            width, channels = file.getsampwidth(), file.getnchannels()
            rate, data = file.getframerate(), file.readframes(file.getnframes())
        samples = _from_pcm(data[: len(data) - len(data) % (width * channels)], width)
        samples = samples.reshape(-1, channels).T
    except (wave.Error, EOFError) as error:
        samples, rate = _read_other(path, error)
    if samples.size == 0:
        raise ValueError(f"{path} holds no samples")
    return np.ascontiguousarray(samples), rate


def _from_pcm(data: bytes, width: int) -> NDArray[np.float32]:
    """Little-endian integers of `width` bytes as float32 in [-1, 1)."""
    if width == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / np.float32(128)
    octets = np.frombuffer(data, np.uint8).reshape(-1, width)
    # Shorter integers become the high bytes of 32-bit ones, which keeps sign and full scale.
    wide = np.zeros((len(octets), 4), np.uint8)
    wide[:, 4 - width :] = octets
    return wide.view("<i4")[:, 0].astype(np.float32) / np.float32(2**31)


def _read_other(path: Path, cause: Exception) -> tuple[NDArray[np.float32], int]:
    refused = (
        f"{path} is not a WAV file with integer samples ({cause or 'it ends early'}); "
        "other audio files need the soundfile library"
    )
    try:
        import soundfile
    except ImportError:
        raise ValueError(refused) from cause
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path} is not an audio file: {error.error_string}") from error
    return samples.T, rate


def write_wav(path: Path, samples: NDArray[np.float32], rate: int) -> None:
    """Write mono samples in [-1, 1] with 16 bits; what is beyond is clipped."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


def demo_model() -> Path:
    """Folder of a small checkpoint with random weights, written once per user.

    Streams and codec have the sizes of trained models (8 streams of 1024 codes, delays 0 to 7,
    a DAC with 50 frames a second at 16 kHz), so steps and seconds mean what they will mean there.
    """
    import torch

    from vllm.unison.testing import random_checkpoint, random_codec

    digest = hashlib.sha256(Path(__file__).read_bytes())
    for module in (random_checkpoint, random_codec):
        digest.update(Path(str(module.__file__)).read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unison"
    # Named by what it is made from, so that a change of the format makes a new one.
    folder = cache / f"random-demo-{digest.hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    # Made aside and renamed, so that no other process sees half of it.
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=cache))
    try:
        random_checkpoint.write_random_speech_lm(
            partial,
            layout=random_checkpoint.stream_layout(8, codebook_size=1024),
            hidden_size=128,
            num_layers=4,
            num_heads=4,
            num_key_value_heads=2,
            dtype=torch.bfloat16,
        )
        try:
            partial.replace(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, and its copy is as good
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def start_engine(model: str | Path) -> LLM:
    """An engine in this process, set up for one request at a time."""
    from vllm import LLM

    return LLM(
        str(model),
        max_num_seqs=2,  # a guided request takes two rows of the batch
        enforce_eager=True,  # a single sentence does not earn the time that compiling takes
        kv_cache_memory_bytes=KV_CACHE_BYTES,  # upstream would take nine tenths of the machine
        disable_log_stats=True,
        use_tqdm_on_load=False,
    )


def generate(llm: LLM, options: argparse.Namespace, is_demo: bool) -> Result:
    """Run one request to its end, with a progress bar that counts the engine's steps."""
    from vllm import SamplingParams
    from vllm.unison.model.spec import multistream_spec

    speaks = options.transcribe is None
    prompt: dict[str, Any] = {"prompt": options.text or ""}
    if options.clip is not None:
        prompt["multi_modal_data"] = {"audio": options.clip}
    if options.voice is not None:
        prompt["mm_processor_kwargs"] = {"voice": options.voice}
    demo_tokens = DEMO_FRAMES if speaks else DEMO_TEXT_TOKENS
    spec = multistream_spec(llm.model_config)
    if spec is None:
        raise ValueError(f"model {options.model} must be a multi-stream model")
    fields: dict[str, Any] = {"temperature": 0.8 if speaks else 0.0, "seed": options.seed}
    fields |= spec.generation_defaults.get("text_to_speech" if speaks else "speech_to_text", {})
    # Random weights know no end; without ignore_eos they would stop anywhere.
    fields |= {"max_tokens": demo_tokens, "ignore_eos": True} if is_demo else {}
    fields.setdefault("max_tokens", None)
    for name in ("temperature", "top_k", "max_tokens", "guidance_scale", "negative_prompt"):
        if getattr(options, name) is not None:
            fields[name] = getattr(options, name)
    params = SamplingParams(**fields)
    start = time.perf_counter()
    llm.enqueue(prompt, params, use_tqdm=False)  # type: ignore[arg-type]
    finished = None
    label = "speaking" if speaks else "transcribing"
    with tqdm(desc=label, unit=" steps", total=params.max_tokens, disable=None) as bar:
        num_steps = 0
        while llm.llm_engine.has_unfinished_requests():
            for output in llm.llm_engine.step():
                finished = output if output.finished else finished
            num_steps += 1
            if bar.total is not None and num_steps > bar.total:
                bar.total = num_steps  # steps in which the delayed streams catch up
            bar.update()
    if finished is None:
        raise RuntimeError("the engine dropped the request")
    completion: Any = finished.outputs[0]  # type: ignore[index]
    return Result(completion, num_steps, time.perf_counter() - start)


def report(result: Result, options: argparse.Namespace) -> int:
    """Write the WAV file, print text and figures; returns the exit status."""
    completion, audio = result.completion, result.completion.audio
    if completion.finish_reason not in ("stop", "length"):
        told = completion.stop_reason or f"the request ended by {completion.finish_reason}"
        print(f"error: {printable(str(told))}", file=sys.stderr)
        return 1
    if options.transcribe is None:
        if audio is None or len(audio.samples) == 0:
            print("error: the model answered without audio; try another --seed", file=sys.stderr)
            return 1
        write_wav(options.output, audio.samples, audio.sample_rate)
        print(
            f"{len(audio.codes)} frames of {audio.codes.shape[1]} codes, {audio.seconds:.2f} s of "
            f"audio at {audio.sample_rate} Hz"
        )
    rate = f"{result.num_steps} steps in {result.seconds:.2f} s: "
    rate += f"{result.num_steps / result.seconds:.1f} steps/s"
    if audio is not None and len(audio.samples):
        speed = audio.seconds / result.seconds
        rate += f", {speed:.2f} s of audio per second (real-time factor {1 / speed:.2f})"
    print(rate)
    if options.transcribe is None:
        print(f"wrote {printable(str(options.output))}")
    if completion.text or options.transcribe is not None:
        # Models may emit any byte; a terminal must not obey it.
        print(f"text: {printable(' '.join(completion.text.splitlines()))}")
    return 0


def main(arguments: Sequence[str] | None = None, llm: LLM | None = None) -> int:
    """Run the command; returns the exit status.

    Args:
        arguments: of the command line; default sys.argv.
        llm: an engine that runs the demo model already, to be used instead of a new one.
    """
    options = parse(arguments)
    prepare_process()
    is_demo = options.model == RANDOM_MODEL
    if is_demo:
        print(
            "This is a small model with random weights. The sound is noise and the text is "
            "gibberish,\nand it stops only at --max-tokens; everything else is real."
        )
    try:
        if llm is None:
            llm = start_engine(demo_model() if is_demo else options.model)
        result = generate(llm, options, is_demo)
    except (OSError, ValueError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    return report(result, options)


if __name__ == "__main__":
    sys.exit(main())
