# SPDX-License-Identifier: Apache-2.0
"""What has once differed between upstream's releases, asked of the one that is imported.

`make release-tests` runs this on every release that the fork supports.
"""

from __future__ import annotations

import asyncio
import json
from argparse import Namespace
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from tests.support.random_layouts import example
from vllm import SamplingParams
from vllm.entrypoints.speech.cli.batch_files import (
    answers_any_line,
    progress,
    read_lines,
    write_answers,
)
from vllm.platforms import current_platform
from vllm.transformers_utils.configs.speech_lm import SpeechLMConfig
from vllm.triton_utils.dispatcher import KernelOverride
from vllm.unison.frontend.admission.streams import refuse_unsupported_sampling
from vllm.unison.packaged_model import DEFAULT_MODEL
from vllm.unison.upstream import RetryableRequestError, asks_for_watermarks
from vllm.unison.worker.async_output import AsyncStreamsOutput, HostAsyncOutput
from vllm.utils import cpu_triton_utils
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.worker import block_table


def speech() -> Any:
    """The parts of a ModelConfig that are asked for."""
    return SimpleNamespace(hf_config=SpeechLMConfig(stream_layout=example()), model="m")


def test_asynchronous_outputs_can_be_made_and_answer_for_the_kv_connector() -> None:
    # An abstract method from 0.33 on: without it every asynchronous step failed.
    connector: Any = object()
    output = ModelRunnerOutput(
        req_ids=["a"], req_id_to_index={"a": 0}, kv_connector_output=connector
    )
    host = HostAsyncOutput(output, torch.tensor([[7]]), [])
    worker: Any = SimpleNamespace(collect=lambda pending: pending)
    streams: Any = object()
    whole = AsyncStreamsOutput(host, worker, streams)
    assert whole.get_kv_connector_output() is connector
    assert whole.get_output().sampled_token_ids == [[7]]
    assert whole.get_output().streams is streams


def test_parameters_that_say_nothing_of_watermarks_are_admitted() -> None:
    # In 0.31 every request asks for watermarks by default.
    refuse_unsupported_sampling(SamplingParams(), speech())
    assert not asks_for_watermarks(SamplingParams())
    assert not asks_for_watermarks(SamplingParams(watermarking=False))


def test_watermarks_are_refused_where_a_request_has_to_ask_for_them() -> None:
    if SamplingParams().watermarking:
        pytest.skip("every request of this release asks for watermarks")
    with pytest.raises(ValueError, match="watermarking is not supported"):
        refuse_unsupported_sampling(SamplingParams(watermarking=True), speech())


def test_an_error_after_which_a_request_may_be_sent_again_has_the_status_that_says_so() -> None:
    error = RetryableRequestError("send it again")
    assert str(error) == "send it again"
    assert error.status_code == HTTPStatus.SERVICE_UNAVAILABLE


def test_slots_are_mapped_on_the_cpu_with_the_arguments_that_their_caller_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 0.32.0 needs a patch here, which applies to 0.31.0 too and is wrong there.
    current_platform.import_kernels()
    kernel = block_table.ComputeSlotMappingKernel
    stand_in = cpu_triton_utils._compute_slot_mapping_kernel_impl
    monkeypatch.setattr(kernel, "kernel", KernelOverride(kernel.kernel, stand_in))
    arguments: dict[str, Any] = {
        "block_size": 16,
        "kernel_block_size": 16,  # up to 0.31
        "max_num_reqs": 2,
        "max_num_blocks_per_req": 4,
        "max_num_batched_tokens": 8,
        "pin_memory": False,
        "device": torch.device("cpu"),
        "cp_kv_cache_interleave_size": 1,
    }
    if "kernel_block_size" not in block_table.BlockTable.__init__.__annotations__:
        del arguments["kernel_block_size"]
    table = block_table.BlockTable(**arguments)
    table.add_row([3, 1], 0)
    table.add_row([2], 1)
    table.commit_block_table(2)
    starts = torch.tensor([0, 2, 3], dtype=torch.int32)
    table.compute_slot_mapping(2, starts, torch.tensor([15, 16, 5]))
    assert table.slot_mapping.gpu[:3].tolist() == [3 * 16 + 15, 16, 2 * 16 + 5]


class Answered(BaseModel):
    number: int


def test_files_of_a_batch_are_read_and_written(tmp_path: Path) -> None:
    # 0.33 has other functions for it.
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"a": 1}\n\n{"b": 2}\n', encoding="utf-8")
    args = Namespace(input_file=str(source), output_file=str(target), output_tmp_dir=None)
    with source.open(encoding="utf-8") as opened:
        assert asyncio.run(read_lines(args, opened)) == ['{"a": 1}', '{"b": 2}']
    with progress(2) as completed:
        for _ in range(2):
            completed()
    asyncio.run(write_answers(args, [Answered(number=1), Answered(number=2)]))
    lines = target.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"number": 1}, {"number": 2}]


def test_lines_of_a_batch_are_left_to_models_that_answer_each(tmp_path: Path) -> None:
    assert answers_any_line(DEFAULT_MODEL)
    assert not answers_any_line(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    assert not answers_any_line(str(tmp_path))
