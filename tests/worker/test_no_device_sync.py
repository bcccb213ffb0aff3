# SPDX-License-Identifier: Apache-2.0
"""Steps on the V2 runner: what they launch, and that the host never waits for the device.

The device is PyTorch's meta device, whose tensors have no values: reading one on the host (`item`,
`cpu`, `nonzero`, a mask as an index) is an error.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vllm.config import ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.unison.messages.guidance import GuidedGroup, StepGuidance
from vllm.unison.messages.streams import StreamUpdate
from vllm.unison.model.output_heads import Heads
from vllm.unison.model.spec import multistream_spec
from vllm.unison.sampler import batch_groups, sampling_plan, slot_table, slot_writes, stream_sampler
from vllm.unison.sampler.upload import upload
from vllm.unison.testing.random_checkpoint import BEGIN_AUDIO, BEGIN_TEXT, FIRST_TEXT, PAD
from vllm.unison.worker import stream_worker, v2_model_state
from vllm.unison.worker.v2_model_state import StreamModelState
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

META = torch.device("meta")
NUM_STREAMS = 4
HIDDEN = 8
MAX_REQUESTS = 256
_NO_LAUNCH = {
    f"aten::{name}"
    for name in (
        *("detach", "slice", "select", "view", "alias", "unbind", "unsqueeze", "transpose"),
        *("empty", "new_empty", "empty_strided"),
    )
}
"""Views and allocations."""

_EVERY_STEP = {
    "aten::_to_copy": 2,  # casts of positions and of stream 0's tokens; no index goes up
    "unison::gather_streams": 1,
    "unison::constrain_streams": 1,
    "unison::commit_streams": 1,
}
STEADY = _EVERY_STEP | {"aten::index": 2, "unison::sample_streams": 2}
"""Some requests emit text and some audio: two heads, each for some of the rows."""

ENTERING = STEADY | {
    "aten::_to_copy": 2 + 6 + 2,  # casts; what enters, and the batch's slots; the heads' rows
    "aten::index_copy_": 14,  # one for each of the tensors of all slots
    "aten::sub": 1,
    "aten::repeat_interleave": 1,
    "aten::index_select": 1,
}

STEADY_GUIDED = _EVERY_STEP | {"unison::cfg_merge": 1, "unison::sample_streams": 1}
"""All groups emit text."""


class Launches(TorchDispatchMode):
    """Counts operators on the meta device, and copies to it, by name.

    Attributes:
        counts: operators by name.
        is_uploading: whether `upload` is running, the only way in which host values may go.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.is_uploading = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [value for value in (*args, result) if isinstance(value, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        name = func.name().partition(".")[0]
        if devices == {"cpu", "meta"} and not name.startswith("unison::"):
            assert self.is_uploading, f"{name} copies from pageable memory"
        if ("meta" in devices or name.startswith("unison::")) and name not in _NO_LAUNCH:
            self.counts[name] = self.counts.get(name, 0) + 1
        return result

    @property
    def total(self) -> int:
        """Launches and copies in all."""
        return sum(self.counts.values())


class Lines:
    """Counts the lines of vllm/unison that Python runs; an iteration of a comprehension is one."""

    def __init__(self) -> None:
        self.total = 0

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if "/unison/" not in frame.f_code.co_filename:
            return None
        self.total += event == "line"
        return self._trace

    def __enter__(self) -> Lines:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_unused: Any) -> None:
        sys.settrace(self._before)


class MetaModel(torch.nn.Module):
    """A model whose heads have shapes only."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        heads = Heads(spec.layout, spec.table)
        begin, end = heads.text_range
        self._widths = (end - begin, heads.audio_columns)
        self.auxiliary_ids = torch.zeros((4096, NUM_STREAMS - 1), dtype=torch.int32, device=META)

    def prepare_streams(self) -> None:
        pass

    def text_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.new_empty((len(hidden_states), self._widths[0]))

    def audio_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.new_empty((len(hidden_states), self._widths[1]))


class Steps:
    """Makes the V2 runner's calls of a step.

    Args:
        folder: of the model.
        is_async: whether scheduling is asynchronous.
    """

    def __init__(self, folder: Path, is_async: bool) -> None:
        model_config = ModelConfig(
            model=str(folder), dtype="float32", skip_tokenizer_init=True, max_model_len=256
        )
        config = VllmConfig(
            model_config=model_config,
            scheduler_config=SchedulerConfig(
                max_num_seqs=MAX_REQUESTS,
                max_num_batched_tokens=4096,
                max_model_len=256,
                is_encoder_decoder=False,
                async_scheduling=is_async,
            ),
        )
        spec = multistream_spec(model_config)
        self.state = StreamModelState(config, MetaModel(spec), None, META)
        self._sampler = self.state.custom_sampler(object())[0]
        self.running: dict[str, int] = {}

    def run(
        self,
        entering: dict[str, list[int]] | None = None,
        guided: list[GuidedGroup] | None = None,
        chunks: dict[str, int] | None = None,
    ) -> None:
        """A step of all running requests and of those that enter.

        Args:
            entering: prompts by id.
            guided: groups that sample with guidance.
            chunks: tokens that requests which enter compute, if not all of their prompt.
        """
        new: list[Any] = [
            SimpleNamespace(
                req_id=name,
                prefill_token_ids=prompt,
                block_ids=(),
                prompt_len=len(prompt),
                sampling_params=SamplingParams(seed=1, max_tokens=40, stream_temperature=0.5),
            )
            for name, prompt in (entering or {}).items()
        ]
        ids = {r.req_id: np.full((r.prompt_len, NUM_STREAMS - 1), PAD, np.int32) for r in new}
        computed = {name: 1 for name in self.running}
        for name, prompt in (entering or {}).items():
            computed[name] = (chunks or {}).get(name, len(prompt))
            self.running[name] = len(prompt)
        counts = np.array(list(computed.values()))
        names = list(computed)
        lengths = np.array([self.running[name] for name in names], np.int32)
        prefill = lengths.copy()
        for row, name in enumerate(names):
            lengths[row] -= len((entering or {}).get(name, ())) - computed[name] if new else 0
        batch = SimpleNamespace(
            req_ids=names,
            num_reqs=len(names),
            num_tokens=int(counts.sum()),
            query_start_loc=torch.empty(MAX_REQUESTS + 1, dtype=torch.int32, device=META),
            positions=torch.empty(4096, dtype=torch.int64, device=META),
            seq_lens=torch.empty(MAX_REQUESTS, dtype=torch.int32, device=META),
            seq_lens_cpu_upper_bound=torch.from_numpy(lengths),
            prefill_len_np=prefill,
        )
        output = SimpleNamespace(
            streams=StreamUpdate(ids) if ids else None,
            guidance=StepGuidance(guided, [0] * len(guided)) if guided else None,
            scheduled_new_reqs=new,
            finished_req_ids=set(),
            preempted_req_ids=None,
            total_num_scheduled_tokens=batch.num_tokens,
        )
        hidden = torch.empty((len(names), HIDDEN), device=META)
        self.state.begin_step(output, None)
        for number, request in enumerate(new):
            self.state.add_request(number, request)
        self.state.prepare_attn(batch)
        self.state.prepare_inputs(batch, None)
        self._sampler(hidden, batch)
        self.state.worker._sampled = None
        self.state.end_step()


@pytest.fixture
def steps(speech_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], Steps]]:
    """Steps of a model on the second of two ranks, which decodes no audio; without attention."""
    monkeypatch.setattr(DefaultModelState, "prepare_attn", lambda *_: {})
    monkeypatch.setattr(stream_worker, "get_tensor_model_parallel_rank", lambda: 1)
    yield lambda is_async: Steps(speech_model, is_async)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    """The launches of what runs inside."""
    launches = Launches()

    def uploading(values: Any, device: torch.device) -> torch.Tensor:
        launches.is_uploading = True
        try:
            return upload(values, device)
        finally:
            launches.is_uploading = False

    modules = (batch_groups, sampling_plan, slot_table, slot_writes, stream_sampler, v2_model_state)
    with monkeypatch.context() as patch, launches:
        for module in modules:
            patch.setattr(module, "upload", uploading)
        yield launches


def prompts(count: int, first: int = 0) -> dict[str, list[int]]:
    """Some that end in text and some that end in audio."""
    source = random.Random(count)
    made = {}
    for number in range(first, first + count):
        body = [FIRST_TEXT + source.randrange(200) for _ in range(source.randint(1, 30))]
        made[f"r{number}"] = [*body, BEGIN_AUDIO if number % 2 else BEGIN_TEXT]
    return made


def pairs(count: int) -> list[GuidedGroup]:
    """The running requests r0, r1, ... two by two."""
    return [
        GuidedGroup([f"r{2 * n}", f"r{2 * n + 1}"], [3.0, -2.0], 0, None) for n in range(count // 2)
    ]


ASYNC = pytest.mark.parametrize("is_async", [False, True], ids=["synchronous", "asynchronous"])


@ASYNC
@pytest.mark.parametrize("is_guided", [False, True], ids=["plain", "guided"])
def test_a_steady_step_does_not_depend_on_the_number_of_requests(
    steps: Callable[[bool], Steps],
    monkeypatch: pytest.MonkeyPatch,
    is_async: bool,
    is_guided: bool,
) -> None:
    found = []
    for count in (4, 64):
        engine = steps(is_async)
        groups = pairs(count) if is_guided else None
        engine.run(prompts(count))
        engine.run(guided=groups)
        with counted(monkeypatch) as launches:
            engine.run(guided=groups)
        with Lines() as lines:
            engine.run(guided=groups)
        found.append((launches.counts, lines.total))
    (few, few_lines), (many, many_lines) = found
    assert few == many == (STEADY_GUIDED if is_guided else STEADY)
    assert few_lines == many_lines > 20


@ASYNC
def test_requests_that_enter_are_written_together(
    steps: Callable[[bool], Steps], monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    found = []
    for count in (2, 40):
        engine = steps(is_async)
        engine.run(prompts(6))
        with counted(monkeypatch) as launches:
            engine.run(prompts(count, first=6))
        found.append(launches.counts)
    assert found[0] == found[1]
    assert found[0] == ENTERING


@ASYNC
def test_chunks_of_prompts(
    steps: Callable[[bool], Steps], monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    """Rows that do not sample cost a mask, and nothing is read back."""
    engine = steps(is_async)
    engine.run(prompts(6))
    entering = {name: [*prompt, *prompt] for name, prompt in prompts(4, first=6).items()}
    with counted(monkeypatch) as launches:
        engine.run(entering, chunks=dict.fromkeys(entering, 2))
    assert launches.counts == ENTERING | {"aten::_to_copy": 12, "aten::bitwise_not": 1}


def test_the_counters_find_what_they_look_for() -> None:
    launches = Launches()
    with launches, pytest.raises(AssertionError, match="pageable"):
        torch.ones(3).to(META)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(3, device=META).cpu()
    with pytest.raises(RuntimeError):
        torch.ones((), device=META).item()
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(3, device=META).nonzero()
