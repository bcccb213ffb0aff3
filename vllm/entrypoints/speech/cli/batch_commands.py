# SPDX-License-Identifier: Apache-2.0
"""`vllm speak-batch` and `vllm transcribe-batch`: the rows of a file, worked off into a folder."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.entrypoints.cli.types import CLISubcommand
from vllm.entrypoints.speech.cli.process import (
    console,
    prepare_process,
    report_errors,
    without_collections,
)
from vllm.unison.packaged_model import DEFAULT_MODEL

if TYPE_CHECKING:
    from vllm.entrypoints.speech.batch.requests import Command, RowRules
    from vllm.entrypoints.speech.batch.run import Work
    from vllm.entrypoints.speech.batch.settings import EngineSettings

# What engine and routes need takes seconds to import, so it is imported where it is used.

_ROWS_PER_SHARD = 256
_FORMATS = ("wav", "flac", "mp3", "opus", "aac", "pcm")


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="a folder, made if missing")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of rows that give none: each row's follows from it and the row's id, or its number "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--rows-per-shard",
        type=int,
        default=_ROWS_PER_SHARD,
        metavar="N",
        help="rows of a folder of files, or of a shard, which come all at once "
        "(default: %(default)s)",
    )
    where = parser.add_argument_group("where it runs")
    where.add_argument(
        "--model", default=DEFAULT_MODEL, help="folder or hub id (default: %(default)s)"
    )
    where.add_argument("--dtype", default="auto", help="of the weights (default: %(default)s)")
    where.add_argument(
        "--max-num-seqs", type=int, metavar="N", help="sequences of the engine's batch"
    )
    where.add_argument("--tensor-parallel-size", type=int, metavar="N", help="GPUs of an engine")
    where.add_argument(
        "--engine-args",
        type=_options,
        default={},
        metavar="JSON",
        help="further engine arguments as vllm.LLM has them, such as "
        "'{\"gpu_memory_utilization\": 0.8}'",
    )
    where.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="with Ray Data, on the cluster at ADDRESS, or on the one that Ray finds: as many "
        "engines as it has room for",
    )
    where.add_argument(
        "--cpus-per-engine",
        type=int,
        metavar="N",
        help="CPUs that Ray keeps for an engine (default: 1 beside GPUs, else all of a node)",
    )
    where.add_argument("-v", "--verbose", action="store_true", help="show what the engine logs")
    rows = parser.add_argument_group("fields of rows that leave them out")
    rows.add_argument("--task", help="a task of the model's config.json (default: what fits)")
    rows.add_argument("--language")
    rows.add_argument("--temperature", type=float)
    rows.add_argument("--top-k", type=int)
    rows.add_argument("--top-p", type=float)
    rows.add_argument(
        "--max-tokens", type=int, help="maximum number of frames of audio, or of tokens of text"
    )


_FIELDS = ("task", "language", "temperature", "top_k", "top_p", "max_tokens")


def _options(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be JSON: {error}") from error
    if not isinstance(options, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return options


class SpeakBatchSubcommand(CLISubcommand):
    """The `speak-batch` subcommand."""

    name = "speak-batch"

    @staticmethod
    def cmd(args: argparse.Namespace) -> None:
        fields = (*_FIELDS, "voice", "duration", "guidance_scale", "negative_prompt")
        _run("speak", args, fields)

    def subparser_init(self, subparsers: Any) -> Any:
        parser = subparsers.add_parser(
            self.name,
            help="Say the texts of a file into a folder of audio.",
            description="Say the texts of a file with a multi-stream model. A run that is ended "
            "goes on where it was when the same command is given again.",
            usage="vllm speak-batch INPUT OUTPUT [options]",
        )
        parser.add_argument(
            "input",
            type=Path,
            metavar="INPUT",
            help="rows of JSON lines (.jsonl), CSV (.csv) or Parquet (.parquet): text, and any "
            "other field of POST /v1/audio/speech",
        )
        parser.add_argument(
            "--output-format",
            choices=("files", "webdataset", "parquet"),
            default="files",
            help="audio files, or shards of one of these forms (default: %(default)s)",
        )
        parser.add_argument(
            "--format", choices=_FORMATS, default="wav", help="of audio (default: %(default)s)"
        )
        _common(parser)
        rows = parser.add_argument_group("and of what is said")
        rows.add_argument("--voice", help="name of one of the model's voices, or of --voices")
        rows.add_argument(
            "--voices",
            type=Path,
            metavar="FOLDER",
            help="of recorded voices, each NAME.wav with NAME.txt",
        )
        rows.add_argument("--duration", type=float, metavar="SECONDS")
        rows.add_argument("--guidance-scale", type=float, help="how far to follow the text")
        rows.add_argument("--negative-prompt", help="what to steer away from")
        return parser


class TranscribeBatchSubcommand(CLISubcommand):
    """The `transcribe-batch` subcommand."""

    name = "transcribe-batch"

    @staticmethod
    def cmd(args: argparse.Namespace) -> None:
        _run("transcribe", args, _FIELDS)

    def subparser_init(self, subparsers: Any) -> Any:
        parser = subparsers.add_parser(
            self.name,
            help="Write what is said in many audio files.",
            description="Write what is said in audio files, with a multi-stream model. A run that "
            "is ended goes on where it was when the same command is given again.",
            usage="vllm transcribe-batch INPUT OUTPUT [options]",
        )
        parser.add_argument(
            "input",
            type=Path,
            metavar="INPUT",
            help="a folder of audio files, or rows of JSON lines (.jsonl), CSV (.csv) or Parquet "
            "(.parquet): path or audio, and any other field of POST /v1/audio/transcriptions",
        )
        parser.add_argument(
            "--output-format",
            choices=("files", "parquet"),
            default="files",
            help="files: only the manifest, which has the texts; parquet: shards of them as well "
            "(default: %(default)s)",
        )
        _common(parser)
        return parser


def _run(command: Command, args: argparse.Namespace, fields: tuple[str, ...]) -> None:
    with _streams(args) as errors:
        from vllm.entrypoints.speech.batch.requests import RowRules, check_defaults
        from vllm.entrypoints.speech.batch.rows import RowsFile
        from vllm.entrypoints.speech.batch.run import BatchSettings, run_batch

        if args.rows_per_shard < 1:
            raise ValueError(f"--rows-per-shard must be at least 1, not {args.rows_per_shard}")
        rows = RowsFile(args.input)
        defaults = {name: value for name in fields if (value := getattr(args, name)) is not None}
        if command == "speak":
            defaults["response_format"] = args.format
        rules = RowRules(command, rows.folder.absolute(), defaults, args.model)
        check_defaults(rules)
        settings = _engine_settings(args)
        run = {
            "the command": command,
            "--model": args.model,
            "--seed": args.seed,
            "fields for all rows": defaults,
            "--dtype": args.dtype,
        }
        batch = BatchSettings(rows, args.output, args.output_format, args.rows_per_shard, run)
        summary = run_batch(batch, lambda: _work(args, settings, rules), errors)
    print(summary, flush=True)


@contextlib.contextmanager
def _streams(args: argparse.Namespace) -> Iterator[Any]:
    """Standard error for errors and progress alone, and errors as one line."""
    with report_errors(), console(args.verbose) as streams:
        prepare_process(args.verbose)
        yield streams.errors


def _engine_settings(args: argparse.Namespace) -> EngineSettings:
    from vllm.entrypoints.speech.batch.settings import EngineSettings

    options = {"model": args.model, "dtype": args.dtype}
    for name in ("max_num_seqs", "tensor_parallel_size"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    return EngineSettings({**options, **args.engine_args}, getattr(args, "voices", None))


def _work(args: argparse.Namespace, settings: EngineSettings, rules: RowRules) -> Work:
    if args.ray is not None:
        from vllm.entrypoints.speech.batch.ray_pool import RayPool

        return RayPool(args.ray, settings, rules, args.seed, args.cpus_per_engine).run
    if args.cpus_per_engine is not None:
        raise ValueError("--cpus-per-engine must be given beside --ray")
    with without_collections():
        from vllm.entrypoints.speech.batch.engine import BatchEngine

        return BatchEngine(settings, rules, args.seed).run
