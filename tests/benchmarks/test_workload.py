# SPDX-License-Identifier: Apache-2.0
"""Prompts, errors and counting of the benchmarks of throughput and latency, without an engine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import benchmark_latency
import benchmark_throughput
from engine_rounds import Round, RoundEngine, median_round
from workload import Model, make_requests, open_model, parse_command_line, whole_number

from vllm import SamplingParams
from vllm.unison.frontend.prompts import PromptBuilder
from vllm.unison.messages.guidance import GuidedGroup, StepGuidance
from vllm.unison.packaged_model import DEFAULT_MODEL

TINY = ["--streams", "3", "--hidden-size", "64", "--num-layers", "1", "--dtype", "float32"]


def opened(
    folder: Path, arguments: Sequence[str]
) -> tuple[argparse.ArgumentParser, argparse.Namespace, Model]:
    parser, options, _ = parse_command_line("", benchmark_throughput.add_flags, arguments)
    return parser, options, open_model(parser, options, folder)


@pytest.mark.parametrize("arguments", [TINY, ["--model", DEFAULT_MODEL]])
def test_random_prompts_have_the_length_that_was_asked_for(
    arguments: list[str], tmp_path: Path
) -> None:
    parser, options, model = opened(tmp_path, [*arguments, "--input-len", "11"])
    requests = make_requests(parser, options, model, 6, seed=3)
    assert requests == make_requests(parser, options, model, 6, seed=3)
    assert requests != make_requests(parser, options, model, 6, seed=4)
    assert model.spec is not None
    builder = PromptBuilder(model.spec)
    prompts = [builder.build(request.prompt)["prompt_token_ids"] for request in requests]
    assert {len(prompt) for prompt in prompts} == {11}
    assert len({tuple(prompt) for prompt in prompts}) == 6
    begin, end = model.spec.layout.text_slice or (0, 0)
    for request in requests:
        assert all(begin <= token < end for token in request.prompt["prompt_token_ids"])


def test_sharegpt_is_read_by_upstream(tmp_path: Path) -> None:
    file = tmp_path / "conversations.json"
    texts = ["a first question", "a second question", "x"]  # the last is too short for upstream
    file.write_text(
        json.dumps([{"conversations": [{"value": text}, {"value": "an answer"}]} for text in texts])
    )
    arguments = f"--dataset-name sharegpt --dataset-path {file}".split()
    parser, options, model = opened(tmp_path / "model", [*TINY, *arguments])
    requests = make_requests(parser, options, model, 4, seed=0)
    assert sorted(request.prompt["prompt"] for request in requests) == sorted(2 * texts[:2])
    assert {request.output_len for request in requests} == {len("an answer")}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("--streams 4 --model unison-default", "--streams is for the random model"),
        ("--hidden-size 64 --model unison-default", "--hidden-size is for the random model"),
        ("--num-layers 2 --model unison-default", "--num-layers is for the random model"),
        ("--streams 0", "argument --streams: must be an integer of at least 1, not '0'"),
        ("--streams 1000", "--streams must be in [1, "),
        ("--hidden-size 100", "must be an integer of at least 64 and a multiple of 64, not '100'"),
        ("--input-len none", "argument --input-len: must be an integer of at least 1, not 'none'"),
        ("--output-len 0", "argument --output-len: must be an integer of at least 1"),
        ("--dataset-name hf", "argument --dataset-name: invalid choice: 'hf' (choose from "),
        ("--n 0", "argument --n: must be an integer of at least 1"),
        ("--guidance-scale nan", "--guidance-scale must be a number in [0, 100], not nan"),
        ("--guidance-scale -1", "--guidance-scale must be a number in [0, 100], not -1.0"),
        ("--guidance-interval 1 2", "--guidance-interval needs --guidance-scale"),
        ("--guidance-scale 2 --guidance-interval 3 2", "--guidance-interval must"),
        ("--negative-prompt no", "--negative-prompt needs --guidance-scale"),
        ("--compare", "--compare needs --guidance-scale, a number in [0, 100] other than 1"),
        ("--compare --guidance-scale 1", "--compare needs --guidance-scale"),
        ("--data-parallel-size 2", "--data-parallel-size must be 1, not 2"),
        ("--max-modellen=4", "arguments: --max-modellen=4; did you mean --max-model-len?"),
        ("--outputlen 4", "unrecognized arguments: --outputlen 4; did you mean --output-len?"),
        ("--quite-unlike 4", "unrecognized arguments: --quite-unlike 4; --help=all"),
        ("--max-model-len x", "argument --max-model-len: invalid human_readable_int_or_auto value"),
        ("--model no-such-folder/model/x", "argument --model: "),
    ],
)
@pytest.mark.parametrize("benchmark", [benchmark_throughput, benchmark_latency])
def test_bad_flags_are_refused_by_name(
    benchmark: Any, arguments: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(arguments.split())
    printed = capsys.readouterr().err
    assert error in printed
    # Warnings of engines come before it; the usage of all their flags does not.
    assert "usage:" not in printed and printed.count("error: ") == 1 and printed.endswith("\n")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("--input-len 2", "--input-len must be at least 3, not 2: 2 tokens of every prompt"),
        ("--output-len 2048", "--input-len + --output-len + 2 steps of delayed streams must be at"),
        (
            "--guidance-scale 2 --output-len 5 --guidance-interval 5 9",
            "--guidance-interval must begin in [0, 5), not at 5",
        ),
        ("--dataset-name custom", "--dataset-path must be a file"),
        ("--dataset-name custom --dataset-path missing.jsonl", "not missing.jsonl"),
        (
            "--dataset-name custom --dataset-path FILE --input-len 4",
            "--input-len must not be given for --dataset-name custom",
        ),
        ("--dataset-name custom --dataset-path FILE", "line 2: output_tokens must be an integer"),
        ("--dataset-path FILE", "--dataset-path must not be given with --dataset-name random"),
    ],
)
def test_what_the_model_or_file_cannot_give_is_refused(
    arguments: str, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "hello", "output_tokens": 3}\n{"prompt": "hello"}\n')
    with pytest.raises(SystemExit):
        benchmark_throughput.main([*TINY, *arguments.replace("FILE", str(file)).split()])
    assert error in capsys.readouterr().err


ONE_GROUP = StepGuidance([GuidedGroup(["a", "b"], [2.0, -1.0], 0, None)], [0])


class FakeEngine:
    """Two steps, of which the last plans no tokens; one request that ends as it is told to."""

    def __init__(self, guidance: StepGuidance | None, **completion: Any) -> None:
        self._guidance = guidance
        self._completion = {"token_ids": [5, 6, 7], "finish_reason": "length", "audio": None}
        self._completion |= completion
        self.num_scheduled = 4
        core = SimpleNamespace(engine_core=SimpleNamespace(scheduler=self))
        self.llm_engine = SimpleNamespace(engine_core=core)

    def schedule(self) -> Any:
        rows = {"a": 2, "b": 2} if self.num_scheduled else {}
        return SimpleNamespace(
            total_num_scheduled_tokens=self.num_scheduled,
            num_scheduled_tokens=rows,
            guidance=self._guidance,
        )

    def reset_prefix_cache(self) -> bool:
        return True

    def generate(self, prompts: list[Any], params: list[Any], use_tqdm: Any) -> list[Any]:
        for self.num_scheduled in (4, 0):
            self.schedule()
        completion = SimpleNamespace(**self._completion)
        return [SimpleNamespace(prompt_token_ids=[1, 2], outputs=[completion]) for _ in prompts]

    def run(self, guided: bool) -> Any:
        from workload import Request

        def params(output_len: int, index: int, guided: bool) -> SamplingParams:
            scale = 2.0 if guided else None
            return SamplingParams(max_tokens=output_len, guidance_scale=scale)

        model: Any = SimpleNamespace(spec=None, num_streams=1, num_flush_steps=0)
        llm: Any = self
        return RoundEngine(llm, model, params).run([Request({"prompt": "a"}, 3, 2)], guided)


def test_steps_without_tokens_do_not_count() -> None:
    measured = FakeEngine(None).run(guided=False)
    assert (measured.num_steps, measured.num_rows, measured.num_guided_samples) == (1, 2, 0)
    assert (measured.num_prompt_tokens, measured.num_output_tokens) == (2, 3)
    assert measured.audio_seconds is None


@pytest.mark.parametrize(
    ("engine", "guided", "error"),
    [
        (FakeEngine(None), True, "0 samples were guided, where guidance was on"),
        (FakeEngine(ONE_GROUP), False, "1 samples were guided, where guidance was off"),
        (FakeEngine(None, finish_reason="stop"), False, "a request ended with stop"),
        (FakeEngine(None, token_ids=[5]), False, "after 1 steps, of which 3 were due"),
        (FakeEngine(None, token_ids=[5] * 4), False, "after 4 steps, of which 3 were due"),
    ],
)
def test_a_round_that_did_not_do_its_work_is_an_error(
    engine: FakeEngine, guided: bool, error: str
) -> None:
    with pytest.raises(RuntimeError, match=error):
        engine.run(guided)


def test_figures_of_several_rounds_agree_with_each_other() -> None:
    rounds = [
        Round(seconds, 4, 4, 8, 40, 40, 80, 12, 48, 0, 2.0) for seconds in (1.0, 9.0, 2.0, 4.0)
    ]
    report = median_round(rounds).report()
    assert report["elapsed_time"] == 3.0
    assert report["num_steps"] == 12
    assert report["requests_per_second"] == pytest.approx(4 / 3)
    assert report["audio_seconds_per_second"] * report["real_time_factor"] == pytest.approx(1)


@pytest.mark.parametrize("text", ["63", "65", "", "64.0", "-64"])
def test_whole_numbers_are_checked(text: str) -> None:
    parse = whole_number(64, 64)
    assert parse("128") == 128
    with pytest.raises(argparse.ArgumentTypeError, match="at least 64 and a multiple of 64"):
        parse(text)
