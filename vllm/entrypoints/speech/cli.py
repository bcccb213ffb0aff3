# SPDX-License-Identifier: Apache-2.0
"""`vllm speak` and `vllm transcribe`: text to audio and audio to text from the command line."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from vllm.entrypoints.cli.types import CLISubcommand
from vllm.multistream.packaged_model import DEFAULT_MODEL

STDOUT = "-"
FORMATS_BY_SUFFIX = {
    ".wav": "wav",
    ".pcm": "pcm",
    ".raw": "pcm",
    ".flac": "flac",
    ".mp3": "mp3",
    ".opus": "opus",
    ".ogg": "opus",
    ".aac": "aac",
}
PLAYERS = (
    ("ffplay", "-nodisp", "-autoexit", "-loglevel", "error", "-i", "-"),
    ("play", "-q", "-t", "wav", "-"),
    ("aplay", "-q", "-"),
)
"""Programs that play a WAV stream from their input; the first that is installed is used."""


def _common(parser: argparse.ArgumentParser) -> None:
    where = parser.add_argument_group("where it runs")
    where.add_argument(
        "--model",
        help="folder or hub id of the model, or its name on the server (default: the only model of "
        f"the server, or {DEFAULT_MODEL})",
    )
    where.add_argument("--dtype", default="auto", help="of the weights (default: %(default)s)")
    where.add_argument("--url", help="a server, instead of an engine in this process")
    where.add_argument(
        "--api-key",
        default=os.environ.get("OPENAI_API_KEY"),
        help="for the server (default: OPENAI_API_KEY)",
    )
    how = parser.add_argument_group("how tokens are chosen (default: as the model says)")
    how.add_argument("--task", help="a task of the model's config.json (default: what fits)")
    how.add_argument("--temperature", type=float)
    how.add_argument("--top-k", type=int)
    how.add_argument("--top-p", type=float)
    how.add_argument("--seed", type=int, help="same seed, same result")
    how.add_argument("--max-tokens", type=int, help="most frames of audio, or tokens of text")


def _sampling(args: argparse.Namespace, *more: str) -> dict[str, Any]:
    names = ("temperature", "top_k", "top_p", "seed", "max_tokens", *more)
    return {name: value for name in names if (value := getattr(args, name)) is not None}


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Errors of the request and of files end the command with a line, not with a traceback."""
    from vllm.entrypoints.speech.remote import RemoteError

    try:
        yield
    except BrokenPipeError:
        # Whoever read the output has seen enough. Python must not flush into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(1) from None
    except (OSError, ValueError, RemoteError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error


class SpeakSubcommand(CLISubcommand):
    """The `speak` subcommand."""

    name = "speak"

    @staticmethod
    def cmd(args: argparse.Namespace) -> None:
        text = sys.stdin.read() if args.text == STDOUT else args.text
        with _errors(), _sink(args) as sink:
            for piece in _pieces(args, text.strip()):
                sink.write(piece)
                sink.flush()
        if not args.play and args.output != STDOUT:
            _complete_wav_header(Path(args.output), _format(args))
            print(f"wrote {args.output}")

    def subparser_init(self, subparsers: Any) -> Any:
        parser = subparsers.add_parser(
            self.name,
            help="Say a text into a file, to standard output or to a player.",
            description="Say a text with a multi-stream model.",
            usage="vllm speak TEXT [options]",
        )
        parser.add_argument("text", metavar="TEXT", help="what to say; - reads standard input")
        parser.add_argument(
            "-o",
            "--output",
            default="out.wav",
            metavar="FILE",
            help="- is standard output, as it is made (default: %(default)s)",
        )
        parser.add_argument("--play", action="store_true", help="to a player, as it is made")
        parser.add_argument(
            "--format",
            choices=sorted(set(FORMATS_BY_SUFFIX.values())),
            help="of the audio (default: what the file's name says, or wav)",
        )
        parser.add_argument("--voice", help="name of one of the model's voices")
        _common(parser)
        parser.add_argument("--guidance-scale", type=float, help="how far to follow TEXT")
        parser.add_argument("--negative-prompt", help="what to steer away from")
        return parser


class TranscribeSubcommand(CLISubcommand):
    """The `transcribe` subcommand."""

    name = "transcribe"

    @staticmethod
    def cmd(args: argparse.Namespace) -> None:
        with _errors(), _clean_stdout() as output:
            for text in _texts(args):
                # Models may emit any byte; a terminal must not obey it.
                safe = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
                output.write(safe.encode())
                output.flush()
            output.write(b"\n")

    def subparser_init(self, subparsers: Any) -> Any:
        parser = subparsers.add_parser(
            self.name,
            help="Write what is said in an audio file.",
            description="Write what is said in an audio file, with a multi-stream model.",
            usage="vllm transcribe FILE [options]",
        )
        parser.add_argument("file", type=Path, metavar="FILE", help="WAV, FLAC, MP3 or Ogg")
        _common(parser)
        return parser


def cmd_init() -> list[CLISubcommand]:
    """The commands, as upstream's command line asks for them."""
    return [SpeakSubcommand(), TranscribeSubcommand()]


def _format(args: argparse.Namespace) -> str:
    if args.play:
        return "wav"
    return args.format or FORMATS_BY_SUFFIX.get(Path(args.output).suffix.lower(), "wav")


def _pieces(args: argparse.Namespace, text: str) -> Iterable[bytes]:
    """The bytes of the audio file, as they are made."""
    from vllm.entrypoints.speech.parameters import SpeechInput
    from vllm.entrypoints.speech.remote import RemoteServer

    sampling = _sampling(args, "guidance_scale", "negative_prompt")
    if args.url is not None:
        named = {"model": args.model, "voice": args.voice, "task": args.task}
        given = {name: value for name, value in named.items() if value is not None}
        body = sampling | given | {"input": text, "response_format": _format(args)}
        yield from RemoteServer(args.url, args.api_key).speak(body)
        return
    from vllm.entrypoints.speech.encoding import make_encoder
    from vllm.entrypoints.speech.local import LocalEngine

    engine = LocalEngine(args.model or DEFAULT_MODEL, args.dtype)
    is_file = not args.play and args.output != STDOUT
    encoder = make_encoder(_format(args), engine.sample_rate, is_whole=is_file)
    asked = SpeechInput(
        frozenset({"audio"}), text=text, voice=args.voice, task=args.task, sampling=sampling
    )
    for completion in engine.generate(asked):
        if completion.audio is not None:
            yield encoder.encode(completion.audio.samples)
    yield encoder.finish()


def _texts(args: argparse.Namespace) -> Iterator[str]:
    from vllm.entrypoints.speech.parameters import SpeechInput
    from vllm.entrypoints.speech.remote import RemoteServer

    sampling = _sampling(args)
    if args.url is not None:
        if "max_tokens" in sampling:
            sampling["max_completion_tokens"] = sampling.pop("max_tokens")
        named = {"model": args.model, "task": args.task}
        given = {name: value for name, value in named.items() if value is not None}
        server = RemoteServer(args.url, args.api_key)
        yield server.transcribe(args.file.name, args.file.read_bytes(), sampling | given)
        return
    from vllm.entrypoints.speech.local import LocalEngine

    engine = LocalEngine(args.model or DEFAULT_MODEL, args.dtype)
    asked = SpeechInput(
        frozenset({"text"}), clip=engine.read(args.file), task=args.task, sampling=sampling
    )
    for completion in engine.generate(asked):
        yield completion.text


@contextlib.contextmanager
def _sink(args: argparse.Namespace) -> Iterator[IO[bytes]]:
    """Where the audio goes: a player, standard output or a file."""
    if args.play:
        command = next((p for p in PLAYERS if shutil.which(p[0]) is not None), None)
        if command is None:
            names = ", ".join(player[0] for player in PLAYERS)
            raise ValueError(f"--play needs one of {names}")
        with subprocess.Popen(command, stdin=subprocess.PIPE) as player:
            assert player.stdin is not None
            yield player.stdin
    elif args.output == STDOUT:
        with _clean_stdout() as output:
            yield output
    else:
        with Path(args.output).open("wb") as file:
            yield file


@contextlib.contextmanager
def _clean_stdout() -> Iterator[IO[bytes]]:
    """Standard output for the result alone; what is logged there goes to standard error."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "wb") as output:
        os.dup2(2, 1)
        try:
            yield output
        finally:
            output.flush()
            sys.stdout.flush()
            os.dup2(output.fileno(), 1)


def _complete_wav_header(path: Path, audio_format: str) -> None:
    """Write the sizes that were not known when the header was written."""
    if audio_format != "wav" or not path.is_file():
        return
    from vllm.entrypoints.speech.encoding import wav_sizes

    with path.open("r+b") as file:
        for offset, size in wav_sizes(path.stat().st_size):
            file.seek(offset)
            file.write(size)
