# SPDX-License-Identifier: Apache-2.0
"""Ends of audio where a test wants them: logits by a script, and engines disturbed in the tail.

Random weights hardly ever end, and never at a chosen place. So the logits of some requests are
replaced by what a script says; all else is the engine's: what is a candidate, what is forced, and
when it ends. Each model's test says by a slow rule of its own what must come of a script.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.engine.guidance.conftest import assert_nothing_left, scheduler_of
from tests.engine.streams.conftest import Steps, open_engine
from vllm import LLM, RequestOutput, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.unison.codecs.base import Codec
from vllm.unison.compatibility import ASYNC_ON_CPU
from vllm.unison.model.layout import MAX_STREAMS
from vllm.unison.ops.sample import SampleArguments, sample_streams
from vllm.unison.sampler import sampling_plan, stream_sampler

Rows = NDArray[np.int64]

ANYTHING = -1
"""An id of an expected row that counts for nothing."""

_FIRST_SEED = 1 << 40


@dataclass(frozen=True)
class Made:
    """What a request must generate.

    Attributes:
        rows: [num_rows, num_streams] ids that it emits, or ANYTHING.
        codes: [num_frames, num_codebooks] what is decoded.
        stops: whether the model ended it, and not its limit.
        num_before: rows before the audio.
    """

    rows: Rows
    codes: Rows
    stops: bool
    num_before: int = 0

    @property
    def tail(self) -> range:
        """Numbers of the rows in which stream 0 has no frame any more."""
        return range(max(self.num_before + len(self.codes), 1), len(self.rows))


@dataclass(frozen=True)
class Ending:
    """A request whose logits are scripted.

    Attributes:
        name: what is special about it.
        prompt: as LLM.generate takes it.
        max_tokens: at which it is cut off.
        wanted: [num_steps, num_streams] ids with the largest logit, from the first generated step.
        otherwise: [num_streams] ids with the second largest: codes, which are always candidates.
        made: what must come of it.
        options: more fields of SamplingParams.
    """

    name: str
    prompt: Any
    max_tokens: int
    wanted: Rows
    otherwise: Sequence[int]
    made: Made
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Script:
    num_prompt: int
    wanted: torch.Tensor
    otherwise: torch.Tensor


class ScriptedLogits:
    """Logits in the place of the model's, for requests that are known by their seeds.

    Attributes:
        largest_change: of the model's own logits from what they were when the same request came to
            the same step for the first time. They depend on all that came before.
    """

    def __init__(self) -> None:
        self.largest_change = 0.0
        self._scripts: dict[int, _Script] = {}
        self._before: dict[tuple[int, int, int], torch.Tensor] = {}

    def set(self, seed: int, num_prompt: int, ending: Ending) -> None:
        """Script the request with a seed, and a prompt of so many tokens."""
        self._scripts[seed] = _Script(
            num_prompt,
            torch.from_numpy(ending.wanted[: len(ending.made.rows)]),
            torch.tensor(ending.otherwise),
        )

    def sample(self, logits: torch.Tensor, arguments: SampleArguments) -> None:
        """`sample_streams`, with the scripts' logits."""
        num_streams = len(arguments.candidate_ids)
        # A stream that is drawn again has a number of its own.
        first = arguments.first_stream % MAX_STREAMS
        streams = slice(first, first + num_streams)
        every = torch.arange(len(arguments.position))
        rows = every if arguments.rows is None else arguments.rows[:, 0]
        slots = every if arguments.slots is None else arguments.slots
        assert arguments.logit_rows is None
        scripted = logits.clone()
        for group, row in enumerate(rows.tolist()):
            seed = int(arguments.seed[slots[row]])
            script = self._scripts.get(seed)
            step = 0 if script is None else int(arguments.position[row]) - script.num_prompt
            if script is None or not 0 <= step < len(script.wanted):
                continue
            some = logits[group, :, :16]
            before = self._before.setdefault((seed, step, arguments.first_stream), some.clone())
            self.largest_change = max(self.largest_change, float((some - before).abs().max()))
            candidates = arguments.candidate_ids
            wanted = candidates == script.wanted[step, streams, None]
            scripted[group] = 1000.0 * (candidates == script.otherwise[streams, None])
            scripted[group][wanted] = 2000.0
        sample_streams(scripted, arguments)


@dataclass(frozen=True)
class Scripted:
    """An engine, and what it samples from."""

    llm: LLM
    scripts: ScriptedLogits


def _silence(codec: Codec, batch: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.zeros(codec.num_samples(len(codes))) for codes in batch]


@contextmanager
def open_scripted(folder: Path, *, asynchronous: bool, **options: Any) -> Iterator[Scripted]:
    """An engine that samples from scripts.

    What audio sounds like is nothing to these tests, and decoding it took half of their time.

    Args:
        folder: of the model.
        asynchronous: whether steps are scheduled ahead.
        options: of the engine; by default all requests of a test fit in one batch.
    """
    scripts = ScriptedLogits()
    room = {"max_num_seqs": 128, "max_num_batched_tokens": 8192, "num_gpu_blocks_override": 600}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ASYNC_ON_CPU, str(int(asynchronous)))
        for module in (sampling_plan, stream_sampler):
            patch.setattr(module, "sample_streams", scripts.sample)
        with open_engine(folder, **(room | options)) as llm:
            config = llm.llm_engine.vllm_config
            assert config.scheduler_config.async_scheduling is asynchronous
            # Not before: an engine looks at its codec when it starts.
            patch.setattr(Codec, "decode_batch", _silence)
            yield Scripted(llm, scripts)


class Stage:
    """An engine, and requests that end as they are told to.

    Args:
        scripted: the engine.
        emitted: the ids that its scheduler receives.
        endings: the requests.
    """

    def __init__(self, scripted: Scripted, emitted: Steps, endings: Sequence[Ending]) -> None:
        self._llm = llm = scripted.llm
        self._scripts = scripted.scripts
        self._emitted = emitted
        self._endings = endings
        prompts = [ending.prompt for ending in endings]
        params = [SamplingParams(max_tokens=1, **ending.options) for ending in endings]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        for number, (ending, output) in enumerate(zip(endings, outputs, strict=True)):
            self._scripts.set(_FIRST_SEED + number, len(output.prompt_token_ids or ()), ending)

    def check(self) -> None:
        """All requests end as they must."""
        numbers = range(len(self._endings))
        self._check_all(self._run(numbers), numbers)

    def check_preemption(self) -> None:
        """And so they do if all are preempted before a row of their tails, whichever it is.

        Every fifth request will do: they end at all places.
        """
        missing = {
            number: {*self._endings[number].made.tail} for number in range(0, len(self._endings), 5)
        }
        longest = max(map(len, missing.values()))
        while num_missing := sum(map(len, missing.values())):
            # One preemption in each tail, and no other to cover up what it broke.
            waits = 0

            def preempt(counts: dict[int, int]) -> None:
                nonlocal waits
                waits -= 1
                if waits < 0 and any(count in missing[n] for n, count in counts.items()):
                    for number, count in counts.items():
                        missing[number].discard(count)
                    waits = longest
                    assert scheduler_of(self._llm).reset_prefix_cache(reset_running_requests=True)

            self._check_all(self._run(missing, preempt), missing)
            assert sum(map(len, missing.values())) < num_missing

    def check_aborts(self) -> None:
        """Requests leave nothing behind that are aborted before a row of their tails.

        Every third one is left alone, and ends as it must.
        """
        aborted: dict[int, int] = {}
        numbers = range(len(self._endings))
        left_alone = numbers[::3]

        def place(number: int) -> int:
            """Rows after which a request is aborted."""
            tail = self._endings[number].made.tail
            return (
                tail[number // 3 % len(tail)] if len(tail) else len(self._endings[number].made.rows)
            )

        def abort(counts: dict[int, int]) -> None:
            for number, count in counts.items():
                if number not in left_alone and count >= place(number):
                    aborted[number] = count
                    self._llm.llm_engine.abort_request([str(number)])

        outputs = self._run(numbers, abort, streamed={*numbers} - {*left_alone})
        self._check_all(outputs, left_alone)
        rows = set()
        for number, count in aborted.items():
            made = self._endings[number].made
            assert number not in outputs and count < len(made.rows)
            rows.add(count - made.num_before - len(made.codes))
        longest = max(len(ending.made.tail) for ending in self._endings)
        assert rows >= {*range(longest)}, rows

    def _run(
        self,
        numbers: Collection[int],
        between: Callable[[dict[int, int]], None] | None = None,
        streamed: Collection[int] = (),
    ) -> dict[int, RequestOutput]:
        """Requests in one batch; the last outputs of those that ended.

        Args:
            numbers: the requests.
            between: called after each step with the rows that each running request has emitted.
            streamed: requests that send their audio in pieces.
        """
        engine, scheduler = self._llm.llm_engine, scheduler_of(self._llm)
        self._emitted.clear()
        for number in numbers:
            ending, is_streamed = self._endings[number], number in streamed
            params = SamplingParams(
                max_tokens=ending.max_tokens,
                seed=_FIRST_SEED + number,
                temperature=1.0,
                output_kind=RequestOutputKind.DELTA
                if is_streamed
                else RequestOutputKind.FINAL_ONLY,
                **ending.options,
            )
            engine.add_request(str(number), ending.prompt, params)
        outputs: dict[int, RequestOutput] = {}
        while engine.has_unfinished_requests():
            for output in engine.step():
                assert isinstance(output, RequestOutput)
                if output.finished:
                    outputs[int(output.request_id)] = output
            running = {
                int(request.request_id.split("-")[0]): request.num_output_tokens
                for request in scheduler.running
            }
            if between is not None:
                between(running)
        return outputs

    def _check_all(self, outputs: dict[int, RequestOutput], numbers: Collection[int]) -> None:
        by_number = {int(key.split("-")[0]): rows for key, rows in self._emitted.items()}
        for number in numbers:
            ending = self._endings[number]
            made, completion = ending.made, outputs[number].outputs[0]
            rows = np.array(by_number[number])
            assert len(rows) == len(made.rows), ending.name
            expected = np.where(made.rows == ANYTHING, rows, made.rows)
            assert np.array_equal(rows, expected), (ending.name, rows.tolist(), expected.tolist())
            assert list(completion.token_ids) == rows[:, 0].tolist(), ending.name
            audio: Any = completion.audio
            codes = np.empty((0, made.codes.shape[1]), np.int64) if audio is None else audio.codes
            assert np.array_equal(codes, made.codes), ending.name
            assert completion.finish_reason == ("stop" if made.stops else "length"), ending.name
        # Whatever was computed again, and with whichever others.
        assert self._scripts.largest_change < 1e-3
        assert_nothing_left(self._llm)


class EngineEnds:
    """The tests of a model's ends in the engine, for a module that has the fixture `engine`, a
    `Scripted` of the model.

    Attributes:
        endings: the requests, with what the module's own rule says of each.
    """

    endings: ClassVar[Sequence[Ending]]

    @pytest.fixture
    def stage(self, engine: Scripted, emitted_steps: Steps) -> Stage:
        return Stage(engine, emitted_steps, self.endings)

    def test_every_end(self, stage: Stage) -> None:
        stage.check()

    def test_preemption_in_each_row_of_the_tail(self, stage: Stage) -> None:
        stage.check_preemption()

    def test_abort_in_each_row_of_the_tail(self, stage: Stage) -> None:
        stage.check_aborts()
