# SPDX-License-Identifier: Apache-2.0
"""What benchmark_throughput.py and benchmark_latency.py ask of which model.

Flags that upstream's benchmarks have mean what they mean there. Those of the engine are upstream's
own; where they are left out, statistics are not logged.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import ModelConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.unison.model.spec import SpeechSpec

DATASETS = ("random", "sharegpt", "custom")
STREAMS = 8
HIDDEN_SIZE = 256
NUM_LAYERS = 6
CODEBOOK = 1024
HEAD_SIZE = 64
RANDOM_INPUT_LEN = 32
RANDOM_OUTPUT_LEN = 128
_GUIDANCE_FIELDS = ("guidance_scale", "guidance_interval", "negative_prompt")


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        prompt: as `LLM.generate` takes it.
        output_len: tokens that stream 0 emits.
        prompt_len: tokens of stream 0 in the prompt; None where the engine's front end tokenizes.
    """

    prompt: dict[str, Any]
    output_len: int
    prompt_len: int | None = None


@dataclass(frozen=True)
class Model:
    """The model under test.

    Attributes:
        engine_args: of the engine, the model's folder or name among them.
        config: upstream's model configuration.
        spec: streams, tasks and codec; None for a text-only model.
    """

    engine_args: EngineArgs
    config: ModelConfig
    spec: SpeechSpec | None

    @property
    def num_streams(self) -> int:
        """K; 1 for a text-only model."""
        return 1 if self.spec is None else self.spec.layout.num_streams

    @property
    def num_flush_steps(self) -> int:
        """Steps that a request may take after the last token of stream 0."""
        return 0 if self.spec is None else self.spec.layout.num_flush_steps

    def describe(self) -> dict[str, Any]:
        """What a benchmark's JSON says of the model, under "model"."""
        text = self.config.hf_text_config
        return {
            "architecture": self.config.architecture,
            "dtype": str(self.config.dtype).removeprefix("torch."),
            "hidden_size": text.hidden_size,
            "num_layers": text.num_hidden_layers,
            "streams": self.num_streams,
            "has_codec": self.spec is not None and self.spec.has_codec,
            "max_model_len": self.config.max_model_len,
        }


def prepare_environment() -> None:
    """Have the engine in this process, so that its steps can be counted.

    To be called before vLLM is imported.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def whole_number(least: int, multiple_of: int = 1) -> Callable[[str], int]:
    """A flag's type: integers from `least` on."""

    def parse(text: str) -> int:
        accepted = f"must be an integer of at least {least}"
        if multiple_of > 1:
            accepted += f" and a multiple of {multiple_of}"
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or value % multiple_of:
            raise argparse.ArgumentTypeError(f"{accepted}, not {text!r}")
        return value

    return parse


def add_shared_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that both benchmarks have besides the engine's."""
    parser.add_argument("--n", type=whole_number(1), default=1, help="sequences per prompt")
    parser.add_argument("--output-json", type=Path, help="where to write the results")
    parser.add_argument(
        "--disable-detokenize", action="store_true", help="leave detokenization out"
    )
    parser.add_argument("--guidance-scale", type=float, help="guide the requests (default: do not)")
    parser.add_argument(
        "--guidance-interval",
        type=whole_number(0),
        nargs=2,
        metavar=("BEGIN", "END"),
        help="first and last guided frame (default: all frames)",
    )
    parser.add_argument("--negative-prompt", help="default: the model's null prompt")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="the same requests guided and unguided in interleaved rounds on one engine",
    )
    for name, default, least, multiple, meaning in (
        ("--streams", STREAMS, 1, 1, "streams"),
        ("--hidden-size", HIDDEN_SIZE, HEAD_SIZE, HEAD_SIZE, "hidden size"),
        ("--num-layers", NUM_LAYERS, 1, 1, "layers"),
    ):
        parser.add_argument(
            name,
            type=whole_number(least, multiple),
            help=f"{meaning} of the random model that is measured without --model "
            f"(default: {default})",
        )


def parse_command_line(
    description: str,
    add_flags: Callable[[argparse.ArgumentParser], None],
    arguments: Sequence[str] | None,
) -> tuple[argparse.ArgumentParser, argparse.Namespace, dict[str, Any]]:
    """Parse flags of a benchmark and of the engine, and check those that depend on each other.

    Args:
        description: of the benchmark.
        add_flags: adds the benchmark's own flags.
        arguments: the command line; None: the process's.

    Returns:
        The parser (for errors that show later), the values of all flags, and for the JSON: the
        values of the benchmark's flags ("parameters"), and of those of the engine's that are not at
        upstream's default ("engine_arguments").
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.unison.model.layout import MAX_STREAMS
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):
        def error(self, message: str) -> NoReturn:
            # Without the usage: that of all flags of the engine is hundreds of lines.
            hint = meant_flags(message, self._option_string_actions)
            self.exit(2, f"{self.prog}: error: {message}{hint}; --help=all lists all flags\n")

    parser = Parser(description=description)
    add_shared_flags(parser)
    add_flags(parser)
    own = set(vars(parser.parse_args([])))
    EngineArgs.add_cli_args(parser)
    upstreams = vars(parser.parse_args([]))
    parser.set_defaults(model=None, disable_log_stats=True)
    options = parser.parse_args(None if arguments is None else list(arguments))
    changed = {
        name: value
        for name, value in vars(options).items()
        if name not in own and name != "model" and value != upstreams[name]
    }
    # A path is no parameter; a dataset is known by its file's name.
    parameters = {name: getattr(options, name) for name in sorted(own - {"output_json"})}
    if parameters.get("dataset_path") is not None:
        parameters["dataset_path"] = parameters["dataset_path"].name
    if options.model is not None:
        for name in ("streams", "hidden_size", "num_layers"):
            if getattr(options, name) is not None:
                parser.error(
                    f"--{name.replace('_', '-')} is for the random model that is measured without "
                    "--model, and must not be given with it"
                )
    else:
        defaults = {"streams": STREAMS, "hidden_size": HIDDEN_SIZE, "num_layers": NUM_LAYERS}
        for name, default in defaults.items():
            if getattr(options, name) is None:
                setattr(options, name, default)
            parameters[name] = getattr(options, name)
        if options.streams > MAX_STREAMS:
            parser.error(f"--streams must be in [1, {MAX_STREAMS}], not {options.streams}")
    if options.data_parallel_size != 1:
        parser.error(f"--data-parallel-size must be 1, not {options.data_parallel_size}")
    _check_guidance(parser, options)
    return parser, options, {"parameters": parameters, "engine_arguments": changed}


def meant_flags(message: str, flags: Iterable[str]) -> str:
    """What to add to argparse's message about unknown flags: those that are spelled alike."""
    _, found, unknown = message.partition("unrecognized arguments: ")
    names = [word.partition("=")[0].replace("_", "-") for word in unknown.split()]
    alike = [
        match[0]
        for name in names
        if name.startswith("--") and (match := difflib.get_close_matches(name, list(flags), 1))
    ]
    return f"; did you mean {', '.join(alike)}?" if found and alike else ""


def _check_guidance(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    from vllm.unison.messages.guidance_inputs import is_guided

    try:
        params = make_params(options, 1, 0, is_multistream=False, guided=True)
    except ValueError as error:
        message = str(error)
        for name in _GUIDANCE_FIELDS:
            message = message.replace(name, "--" + name.replace("_", "-"))
        parser.error(message)
    if options.compare and not is_guided(params):
        parser.error(
            "--compare needs --guidance-scale, a number in [0, 100] other than 1 (which is no "
            f"guidance), not {options.guidance_scale}"
        )


def make_params(
    options: argparse.Namespace, output_len: int, index: int, *, is_multistream: bool, guided: bool
) -> SamplingParams:
    """Sampling parameters of request number `index`, which emits exactly `output_len` tokens."""
    from vllm import SamplingParams

    guidance: dict[str, Any] = {}
    if guided:
        guidance = {name: getattr(options, name) for name in _GUIDANCE_FIELDS}
        if options.guidance_interval is not None:
            guidance["guidance_interval"] = tuple(options.guidance_interval)
    return SamplingParams(
        n=options.n,
        temperature=1.0,
        top_p=1.0,
        # A text-only model's sampler goes through seeded requests one by one.
        seed=options.seed + index * options.n if is_multistream else None,
        ignore_eos=True,
        max_tokens=output_len,
        detokenize=not options.disable_detokenize,
        **guidance,
    )


def open_model(parser: argparse.ArgumentParser, options: argparse.Namespace, folder: Path) -> Model:
    """The model of --model, or a random one that is written to `folder`."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.unison.messages.guidance_inputs import is_guided
    from vllm.unison.model.spec import multistream_spec

    arguments = dict(vars(options))
    if options.model is None:
        arguments["model"] = str(write_random_model(folder, options))
    try:
        engine_args = EngineArgs.from_cli_args(argparse.Namespace(**arguments))
        config = engine_args.create_model_config()
    except (OSError, ValueError) as error:
        parser.error(f"argument --model: {' '.join(str(error).split())[:500]}")
    spec = multistream_spec(config)
    guided = is_guided(make_params(options, 1, 0, is_multistream=False, guided=True))
    has_null_prompt = spec is not None and spec.null_prompt is not None
    if guided and options.negative_prompt is None and not has_null_prompt:
        parser.error("--negative-prompt must be given: the model has no null prompt for guidance")
    return Model(engine_args, config, spec)


def write_random_model(folder: Path, options: argparse.Namespace) -> Path:
    """A speech model with random weights, a null prompt and a DAC."""
    import torch

    from vllm.unison.testing.random_checkpoint import stream_layout, write_random_speech_lm

    return write_random_speech_lm(
        folder,
        layout=stream_layout(options.streams, codebook_size=CODEBOOK),
        seed=options.seed,
        hidden_size=options.hidden_size,
        num_layers=options.num_layers,
        num_heads=options.hidden_size // HEAD_SIZE,
        num_key_value_heads=options.hidden_size // HEAD_SIZE,
        initializer_range=0.05,
        dtype=torch.bfloat16,
    )


def make_requests(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    model: Model,
    count: int,
    seed: int,
) -> list[Request]:
    """`count` requests of the dataset that `options` names; the same for the same seed."""
    try:
        if options.dataset_name == "random":
            requests = random_requests(
                model,
                count,
                options.input_len or RANDOM_INPUT_LEN,
                options.output_len or RANDOM_OUTPUT_LEN,
                seed,
            )
        else:
            requests = dataset_requests(model, options, count, seed)
        _check_lengths(model, requests, options)
    except ValueError as error:
        parser.error(str(error))
    return requests


def random_requests(
    model: Model, count: int, input_len: int, output_len: int, seed: int
) -> list[Request]:
    """Requests whose prompts have exactly `input_len` tokens of random text.

    A multi-stream model's prompt is laid into its task for text; the task's own tokens count.

    Raises:
        ValueError: if the model takes no text, or the task leaves no room for it.
    """
    import numpy as np

    ids, options, overhead = _text_ids(model)
    if input_len <= overhead:
        raise ValueError(
            f"--input-len must be at least {overhead + 1}, not {input_len}: {overhead} tokens of "
            "every prompt are the task's own"
        )
    draws = np.random.default_rng(seed).choice(ids, size=(count, input_len - overhead))
    return [
        Request({"prompt_token_ids": draw.tolist()} | options, output_len, input_len)
        for draw in draws
    ]


def _text_ids(model: Model) -> tuple[list[int], dict[str, Any], int]:
    """Ids of ordinary text, prompt fields that choose the task, and the task's own tokens."""
    from vllm.tokenizers import cached_tokenizer_from_config

    spec = model.spec
    tokenizer = cached_tokenizer_from_config(model.config)
    special = set() if tokenizer is None else set(tokenizer.all_special_ids)
    text = range(model.config.get_vocab_size() if tokenizer is None else tokenizer.vocab_size)
    if spec is None:
        return [token for token in text if token not in special], {}, 0
    text = range(*spec.layout.text_slice) if spec.layout.text_slice is not None else text
    ids = [token for token in text if token not in special]
    if not spec.tasks:
        return ids, {}, 0
    tasks = [task for task in spec.tasks if task.needs == {"text"}]
    if not tasks:
        needs = {task.name: sorted(task.needs) for task in spec.tasks}
        raise ValueError(f"--model must have a task for text alone; its tasks need {needs}")
    voice = () if spec.default_voice is None else spec.voices[spec.default_voice]
    lengths = {"text": 0, "voice": len(voice), "flush": spec.layout.max_delay}
    overhead = sum(lengths[part] if isinstance(part, str) else 1 for part in tasks[0].parts)
    return ids, {"mm_processor_kwargs": {"task": tasks[0].name}}, overhead


def dataset_requests(
    model: Model, options: argparse.Namespace, count: int, seed: int
) -> list[Request]:
    """Requests of the file --dataset-path, from its beginning again where it has too few.

    "sharegpt" is read and filtered by upstream. "custom" has a JSON object per line: `prompt`, and
    `output_tokens` unless --output-len is given.

    Raises:
        ValueError: naming what is missing.
    """
    from vllm.tokenizers import cached_tokenizer_from_config

    path = options.dataset_path
    if path is None or not path.is_file():
        raise ValueError(
            f"--dataset-path must be a file for --dataset-name {options.dataset_name}, not {path}"
        )
    if options.input_len is not None:
        raise ValueError(
            f"--input-len must not be given for --dataset-name {options.dataset_name}, whose "
            "prompts have lengths of their own"
        )
    if options.dataset_name == "custom":
        requests = _custom_requests(path, options.output_len)
    else:
        from vllm.benchmarks.datasets import ShareGPTDataset

        samples = ShareGPTDataset(random_seed=seed, dataset_path=str(path)).sample(
            cached_tokenizer_from_config(model.config),
            count,
            no_oversample=True,
            output_len=options.output_len,
        )
        requests = [
            Request({"prompt": sample.prompt}, sample.expected_output_len) for sample in samples
        ]
    if not requests:
        raise ValueError(f"--dataset-path {path} has no request that can be used")
    return [requests[index % len(requests)] for index in range(count)]


def _custom_requests(path: Path, output_len: int | None) -> list[Request]:
    requests = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        entry = json.loads(line)
        prompt = entry.get("prompt")
        length = entry.get("output_tokens") if output_len is None else output_len
        if not isinstance(prompt, str) or not prompt:
            raise ValueError(f"--dataset-path, line {number}: prompt must be a text")
        if not isinstance(length, int) or length < 1:
            raise ValueError(
                f"--dataset-path, line {number}: output_tokens must be an integer of at least 1, "
                f"or --output-len given, not {length!r}"
            )
        requests.append(Request({"prompt": prompt}, length))
    return requests


def _check_lengths(model: Model, requests: Sequence[Request], options: argparse.Namespace) -> None:
    context, flush = model.config.max_model_len, model.num_flush_steps
    for request in requests:
        length = (request.prompt_len or 1) + request.output_len + flush
        if length > context:
            raise ValueError(
                f"--input-len + --output-len + {flush} steps of delayed streams must be at most "
                f"max_model_len = {context}, not {length}"
            )
    longest = max(request.output_len for request in requests)
    if options.guidance_interval is not None and options.guidance_interval[0] >= longest:
        raise ValueError(
            f"--guidance-interval must begin in [0, {longest}), not at "
            f"{options.guidance_interval[0]}: no request would be guided"
        )
