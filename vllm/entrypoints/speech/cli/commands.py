# SPDX-License-Identifier: Apache-2.0
"""`vllm speak` and `vllm transcribe`: text to audio and audio to text from the command line."""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import gc
import os
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from vllm.entrypoints.cli.types import CLISubcommand
from vllm.entrypoints.speech.cli.batch_commands import (
    SpeakBatchSubcommand,
    TranscribeBatchSubcommand,
)
from vllm.entrypoints.speech.cli.process import (
    Console,
    console,
    end_on_signals,
    leave,
    prepare_process,
    printable,
    report_errors,
    without_collections,
)
from vllm.entrypoints.speech.cli.progress import progress
from vllm.entrypoints.speech.cli.sinks import descriptor_of, is_kept, playing, replaced_file
from vllm.unison.packaged_model import DEFAULT_MODEL
from vllm.utils.argparse_utils import FlexibleArgumentParser

if TYPE_CHECKING:
    from vllm.entrypoints.speech.cli.local import LocalEngine

# What engine and server need takes seconds to import, so it is imported where it is used.

STDIN = "-"
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


def _common(parser: argparse.ArgumentParser) -> None:
    where = parser.add_argument_group("where it runs")
    where.add_argument(
        "--model",
        help="folder or hub id of the model, or its name on the server (default: the only model of "
        f"the server, or {DEFAULT_MODEL})",
    )
    where.add_argument("--dtype", default="auto", help="of the weights (default: %(default)s)")
    where.add_argument("--url", help="a server, instead of an engine in this process")
    # The key must not become a default here: help shows defaults.
    where.add_argument("--api-key", help="for the server (default: $OPENAI_API_KEY)")
    where.add_argument("-v", "--verbose", action="store_true", help="show what the engine logs")
    how = parser.add_argument_group("how tokens are chosen (default: as the model says)")
    how.add_argument("--task", help="a task of the model's config.json (default: what fits)")
    how.add_argument("--temperature", type=float)
    how.add_argument("--top-k", type=int)
    how.add_argument("--top-p", type=float)
    how.add_argument("--seed", type=int, help="same seed, same result")
    how.add_argument(
        "--max-tokens", type=int, help="maximum number of frames of audio, or of tokens of text"
    )


def _sampling(args: argparse.Namespace, *more: str) -> dict[str, Any]:
    names = ("temperature", "top_k", "top_p", "seed", "max_tokens", *more)
    return {name: value for name in names if (value := getattr(args, name)) is not None}


class SpeakSubcommand(CLISubcommand):
    """The `speak` subcommand."""

    name = "speak"

    @staticmethod
    def cmd(args: argparse.Namespace) -> None:
        with report_errors():
            text = _text(args)
            with (
                console(args.verbose) as streams,
                _sink(args, streams) as sink,
                contextlib.closing(_audio(args, text, streams)) as pieces,
            ):
                for piece in pieces:
                    sink.write(piece)
                    sink.flush()
                if _is_file(args) and _format(args) == "wav":
                    _complete_wav_header(sink)
            if _is_file(args):
                print(f"wrote {printable(args.output)}", flush=True)

    def subparser_init(self, subparsers: Any) -> Any:
        parser = subparsers.add_parser(
            self.name,
            help="Say a text into a file, to standard output or to a player.",
            description="Say a text with a multi-stream model.",
            usage="vllm speak TEXT [options]",
        )
        parser.add_argument(
            "text",
            nargs="?",
            metavar="TEXT",
            help="what to say, or what music is to be like; - reads standard input",
        )
        parser.add_argument(
            "--stdin",
            action="store_true",
            help="in place of TEXT: say standard input sentence by sentence, as it comes; a line's "
            "end is the end of a sentence",
        )
        parser.add_argument(
            "--audio",
            type=Path,
            metavar="FILE",
            help="a recording to speak like, or without TEXT to continue (not with --url)",
        )
        parser.add_argument(
            "-o",
            "--output",
            default="out.wav",
            metavar="FILE",
            help="- is standard output, and it and other streams get the audio as it is made "
            "(default: %(default)s)",
        )
        parser.add_argument("--play", action="store_true", help="to a player, as it is made")
        parser.add_argument(
            "--format",
            choices=sorted(set(FORMATS_BY_SUFFIX.values())),
            help="of the audio (default: what the file's name says, or wav)",
        )
        voices = parser.add_argument_group("whose voice it is (default: the model's)")
        voices.add_argument("--voice", help="name of one of the model's voices, or of --voices")
        voices.add_argument(
            "--voices",
            type=Path,
            metavar="FOLDER",
            help="of recorded voices, each NAME.wav with NAME.txt (not with --url)",
        )
        voices.add_argument("--ref-audio", type=Path, metavar="FILE", help="a recording of it")
        voices.add_argument("--ref-text", metavar="TEXT", help="what is said in that recording")
        _common(parser)
        parser.add_argument(
            "--duration",
            type=float,
            metavar="SECONDS",
            help="length of the audio, for models that make it from a description",
        )
        parser.add_argument("--guidance-scale", type=float, help="how far to follow TEXT")
        parser.add_argument("--negative-prompt", help="what to steer away from")
        return parser


class TranscribeSubcommand(CLISubcommand):
    """The `transcribe` subcommand."""

    name = "transcribe"

    @staticmethod
    def cmd(args: argparse.Namespace) -> None:
        with (
            report_errors(),
            console(args.verbose) as streams,
            contextlib.closing(_texts(args, streams)) as texts,
        ):
            for text in texts:
                # Models may emit any byte; a terminal must not obey it.
                streams.output.write(printable(text).encode())
                streams.output.flush()
            streams.output.write(b"\n")
            streams.output.flush()

    def subparser_init(self, subparsers: Any) -> Any:
        parser = subparsers.add_parser(
            self.name,
            help="Write what is said in an audio file.",
            description="Write what is said in an audio file, with a multi-stream model.",
            usage="vllm transcribe FILE [options]",
        )
        parser.add_argument(
            "file", type=Path, metavar="FILE", help="an audio file, or a video with sound"
        )
        _common(parser)
        return parser


def cmd_init() -> list[CLISubcommand]:
    """The commands, as upstream's command line asks for them."""
    return [
        SpeakSubcommand(),
        TranscribeSubcommand(),
        SpeakBatchSubcommand(),
        TranscribeBatchSubcommand(),
    ]


class _Parser(FlexibleArgumentParser):
    """Upstream's, but for its help, which shows the names of groups of options only."""

    def format_help(self) -> str:
        return argparse.ArgumentParser.format_help(self)


class _Only:
    """Stands for upstream's set of commands where one is known to be meant."""

    def add_parser(self, name: str, help: str, **options: Any) -> _Parser:
        return _Parser(f"vllm {name}", formatter_class=argparse.HelpFormatter, **options)


def run(arguments: Sequence[str]) -> bool:
    """Run a command line of this module's commands, and end the process; others are left alone.

    Called before upstream imports all its commands, which takes longer than a sentence.

    Args:
        arguments: of the `vllm` command.

    Returns:
        False, if the arguments name another command.
    """
    command = next((c for c in cmd_init() if [c.name] == list(arguments[:1])), None)
    if command is None:
        return False
    parser = command.subparser_init(_Only())  # type: ignore[arg-type]
    args = parser.parse_args(list(arguments[1:]))
    end_on_signals()
    try:
        command.cmd(args)
    except SystemExit as ending:
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
        leave(ending.code if isinstance(ending.code, int) else 1)
    leave(0)


def _text(args: argparse.Namespace) -> str | None:
    """What to say; checks what can be checked before anything is loaded."""
    if args.stdin and args.text is not None:
        raise ValueError("--stdin does not go with TEXT: give one of them")
    if args.text is None and args.audio is None and not args.stdin:
        raise ValueError("give TEXT, --stdin, or a recording to continue with --audio")
    if args.audio is not None:
        if args.url is not None:
            raise ValueError("--audio does not go with --url: the speech route takes text only")
        args.audio.open("rb").close()
    _check_voice(args)
    text = sys.stdin.read() if args.text == STDIN else args.text
    return None if text is None else text.strip()


def _check_voice(args: argparse.Namespace) -> None:
    if args.voices is not None and args.url is not None:
        raise ValueError("--voices does not go with --url: the server has voices of its own")
    if args.ref_text is not None and args.ref_audio is None:
        raise ValueError("--ref-text must be given beside --ref-audio")
    if args.ref_audio is not None:
        if args.voice is not None:
            raise ValueError("--voice does not go with --ref-audio: give one of them")
        args.ref_audio.open("rb").close()
    if args.voices is not None:
        next(args.voices.iterdir(), None)  # says what is wrong with the folder


def _format(args: argparse.Namespace) -> str:
    if args.play:
        return "wav"
    return args.format or FORMATS_BY_SUFFIX.get(Path(args.output).suffix.lower(), "wav")


def _api_key(args: argparse.Namespace) -> str | None:
    return args.api_key or os.environ.get("OPENAI_API_KEY")


def _engine(args: argparse.Namespace) -> LocalEngine:
    prepare_process(args.verbose)
    with without_collections():
        from vllm.entrypoints.speech.cli import local

        gc.freeze()
        return local.LocalEngine(args.model or DEFAULT_MODEL, args.dtype)


def _audio(
    args: argparse.Namespace, text: str | None, streams: Console
) -> Generator[bytes, None, None]:
    """The bytes of the audio file, as they are made."""
    return _remote_audio(args, text) if args.url is not None else _local_audio(args, text, streams)


def _remote_audio(args: argparse.Namespace, text: str | None) -> Generator[bytes, None, None]:
    named = {
        "model": args.model,
        "voice": args.voice,
        "task": args.task,
        "duration": args.duration,
        "ref_text": args.ref_text,
    }
    if args.ref_audio is not None:
        named["ref_audio"] = base64.b64encode(args.ref_audio.read_bytes()).decode("ascii")
    fields = {name: value for name, value in named.items() if value is not None}
    fields |= _sampling(args, "guidance_scale", "negative_prompt")
    if args.stdin:
        from vllm.entrypoints.speech.cli.live_text import read_text
        from vllm.entrypoints.speech.cli.remote_session import RemoteSession
        from vllm.entrypoints.speech.encoding import Encoder, make_encoder

        def encoder(sample_rate: int, num_channels: int) -> Encoder:
            return make_encoder(_format(args), sample_rate, _is_file(args), num_channels)

        session = RemoteSession(args.url, _api_key(args))
        yield from session.speak(fields, read_text(sys.stdin.fileno()), encoder)
        return
    from vllm.entrypoints.speech.cli.remote import RemoteServer

    body = fields | {"input": text, "response_format": _format(args)}
    yield from RemoteServer(args.url, _api_key(args)).speak(body)


def _local_audio(
    args: argparse.Namespace, text: str | None, streams: Console
) -> Generator[bytes, None, None]:
    sampling = _sampling(args, "guidance_scale", "negative_prompt")
    with contextlib.ExitStack() as shown:
        line = shown.enter_context(
            progress(f"loading {args.model or DEFAULT_MODEL}", streams.errors)
        )
        engine = _engine(args)
        from vllm.entrypoints.speech.cli.live_text import read_text, sentences
        from vllm.entrypoints.speech.parameters import Recording, SpeechInput
        from vllm.unison.frontend.tasks import FieldNames

        voices = None if args.voices is None else engine.read_voices(args.voices)
        recording, names = None, FieldNames(text="text")
        if args.ref_audio is not None:
            clip = engine.read(args.ref_audio)
            recording = Recording((clip.samples, clip.sample_rate), args.ref_text)
            names = FieldNames(text="text", voice="ref_audio", reference_text="ref_text")
        encoder = engine.encoder(_format(args), is_whole=_is_file(args))
        request = SpeechInput(
            frozenset({"audio"}),
            clip=None if args.audio is None else engine.read(args.audio),
            voice=args.voice,
            recording=recording,
            task=args.task,
            sampling=sampling,
            duration=args.duration,
            fields=names,
        )
        texts: Iterable[str | None] = [text]
        if args.stdin:
            texts = sentences(read_text(sys.stdin.fileno()))
            shown.close()  # the line would be drawn over what is typed
        seconds = 0.0
        for said in texts:
            for completion in engine.generate(dataclasses.replace(request, text=said), voices):
                if completion.audio is not None:
                    seconds += completion.audio.seconds
                    if not args.stdin:
                        line.set_description_str(f"speaking: {seconds:.1f} s of audio")
                    yield encoder.encode(completion.audio.samples)
        yield encoder.finish()


def _is_file(args: argparse.Namespace) -> bool:
    """Whether the audio is kept until it is whole."""
    return not args.play and is_kept(args.output)


def _texts(args: argparse.Namespace, streams: Console) -> Generator[str, None, None]:
    """The text, as it is made; on a terminal all at once, as a line of progress is there before."""
    sampling = _sampling(args)
    if args.url is not None:
        from vllm.entrypoints.speech.cli.remote import RemoteServer

        if "max_tokens" in sampling:
            sampling["max_completion_tokens"] = sampling.pop("max_tokens")
        named = {"model": args.model, "task": args.task}
        fields = {name: value for name, value in named.items() if value is not None}
        server = RemoteServer(args.url, _api_key(args))
        yield server.transcribe(args.file.name, args.file.read_bytes(), sampling | fields)
        return
    if not args.file.is_file():
        args.file.open("rb").close()  # says what is wrong with it before anything is loaded
    with progress(f"loading {args.model or DEFAULT_MODEL}", streams.errors) as line:
        engine = _engine(args)
        from vllm.entrypoints.speech.parameters import SpeechInput
        from vllm.unison.frontend.tasks import FieldNames

        request = SpeechInput(
            frozenset({"text"}),
            clip=engine.read(args.file),
            task=args.task,
            sampling=sampling,
            fields=FieldNames(audio="file"),
        )
        line.set_description_str(f"listening to {printable(args.file.name)}")
        texts = engine.transcribe(request)
        first = next(texts)
    yield first
    yield from texts


@contextlib.contextmanager
def _sink(args: argparse.Namespace, streams: Console) -> Iterator[IO[bytes]]:
    """Where the audio goes: a player, a stream or a file."""
    if args.play:
        with playing() as player:
            yield player
        return
    number = descriptor_of(args.output)
    if number == 1:
        yield streams.output
    elif number is not None:
        descriptor = os.dup(streams.errors.fileno() if number == 2 else number)
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
    elif is_kept(args.output):
        with replaced_file(args.output) as file:
            yield file
    else:
        with open(args.output, "wb") as stream:
            yield stream


def _complete_wav_header(file: IO[bytes]) -> None:
    """Write the sizes that were not known when the header was written."""
    from vllm.entrypoints.speech.encoding import wav_sizes

    for offset, size in wav_sizes(file.tell()):
        file.seek(offset)
        file.write(size)
