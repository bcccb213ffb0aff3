# SPDX-License-Identifier: Apache-2.0
"""A step of the stream sampler against a loop over one request, one position, one stream."""

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.phase_reference import ReferenceRequest
from tests.support.random_layouts import allowed_ids, example, layouts, sampled_fills
from vllm.sampling_params import SamplingParams
from vllm.unison.frontend.prompt_layout import apply_delay_pattern
from vllm.unison.model.layout import PhaseKind, StreamLayout
from vllm.unison.model.output_heads import Heads
from vllm.unison.model.phases import NO_TOKEN, Finish, PhaseTable, StateKind
from vllm.unison.ops.extension import load_extension
from vllm.unison.ops.sample import SampleArguments
from vllm.unison.ops.sample_reference import sample_streams_reference
from vllm.unison.sampler.slot_table import SlotTable
from vllm.unison.sampler.stream_sampler import StreamSampler

CPU = torch.device("cpu")
MAX_MODEL_LEN = 40
MAX_REQUESTS = 4


@pytest.fixture(autouse=True, scope="module")
def _compiled_operators() -> None:
    load_extension()


@dataclass
class Request:
    """A request and what it must emit.

    Attributes:
        auxiliary_ids: of the prompt and its suffix.
        broken: (position, stream) whose logits are NaN, for tests of failures.
    """

    layout: StreamLayout
    number: int
    prompt: list[int]
    auxiliary_ids: np.ndarray
    params: SamplingParams
    broken: tuple[int, int] | None = None
    expected: list[list[int]] = field(default_factory=list)
    finishes: list[Finish] = field(default_factory=list)

    @property
    def limit(self) -> int:
        assert self.params.max_tokens is not None
        return len(self.prompt) + self.params.max_tokens

    def logits(self, position: int) -> torch.Tensor:
        """[num_streams, vocabulary_size], a function of the request and the position."""
        generator = torch.Generator().manual_seed(1000 * self.number + position)
        shape = (self.layout.num_streams, self.layout.vocabulary_size)
        logits = 3 * torch.randn(shape, generator=generator)
        if self.broken is not None and position == self.broken[0]:
            logits[self.broken[1]] = torch.nan
        return logits


def text_candidates(layout: StreamLayout) -> list[int]:
    assert layout.text_slice is not None
    ends = [t.token for p in layout.phases if p.kind is PhaseKind.TEXT for t in p.transitions]
    begin, end = layout.text_slice
    return list(range(min([begin, *ends]), max([end, *(token + 1 for token in ends)])))


def audio_candidates(layout: StreamLayout, stream: int) -> list[int]:
    ends = {t.token for p in layout.phases if p.kind is PhaseKind.AUDIO for t in p.transitions}
    if stream:
        ends = {layout.tail.token_ids[stream] for p in layout.phases if p.end_rule.any_stream}
    moves = sorted(ends)
    fills = [token for token in sampled_fills(layout, stream) if token not in moves]
    return [*range(*layout.slices[stream]), *moves, *fills]


def choose(
    request: Request,
    position: int,
    stream: int,
    allowed: list[int],
    is_text: bool = False,
    again: bool = False,
) -> int:
    """Sample one stream by the reference, which sees this one item only; greedily by hand."""
    params: Any = request.params
    logits = request.logits(position)[stream]
    if is_text:
        candidates = text_candidates(request.layout)
        temperature, top_k, top_p = params.temperature, params.top_k, params.top_p
    else:
        candidates = audio_candidates(request.layout, stream)
        temperature = params.stream_temperature[stream]
        top_k = params.stream_top_k[stream]
        top_p = params.stream_top_p[stream]
    if again:
        temperature, top_k, top_p = 1.0, 0, 1.0
    if any(torch.isnan(logits[token]) for token in allowed):
        return -1
    if temperature == 0:
        order = [token for token in candidates if token in allowed]
        return max(order, key=lambda token: float(logits[token]))
    token = torch.empty((1, 1), dtype=torch.int32)
    sample_streams_reference(
        logits[candidates].view(1, 1, -1),
        SampleArguments(
            candidate_ids=torch.tensor([candidates], dtype=torch.int32),
            masks=torch.tensor([token in allowed for token in candidates]).view(1, 1, -1),
            mask_index=torch.zeros(1, dtype=torch.int32),
            temperature=torch.full((1, 1), temperature, dtype=torch.float32),
            top_k=torch.full((1, 1), max(top_k, 0), dtype=torch.int32),
            top_p=torch.full((1, 1), top_p, dtype=torch.float32),
            seed=torch.tensor([params.seed]),
            position=torch.tensor([position]),
            first_stream=stream + (64 if again else 0),
            forced=torch.full((1, 1), -1, dtype=torch.int32),
            tokens=token,
        ),
    )
    return int(token)


def is_repeated(request: Request, reference: ReferenceRequest, stream: int, token: int) -> bool:
    """Whether the code has been emitted too often in the last steps of the segment."""
    window, most = request.params.ras_win_len, request.params.ras_win_max_num_repeat
    begin, end = request.layout.slices[stream]
    if not window or not begin <= token < end:
        return False
    first = max(reference.position - window, reference.segment_start)
    prompt = [
        [token, *row] for token, row in zip(request.prompt, request.auxiliary_ids, strict=False)
    ]
    past = [row[stream] for row in [*prompt, *request.expected][first:]]
    return past.count(token) >= (most or 2)


def run_reference(request: Request) -> None:
    """Fill in what the request must emit, step by step until it has ended."""
    layout, params = request.layout, request.params
    reference = ReferenceRequest(layout, request.prompt, request.limit)
    while not request.finishes or request.finishes[-1] is Finish.NOT_FINISHED:
        position = reference.position
        may_end = not params.ignore_eos and position >= len(request.prompt) + params.min_tokens
        row = []
        in_audio = reference.kind in (StateKind.AUDIO, StateKind.FLUSH)
        for stream in range(layout.num_streams):
            in_suffix = position < len(request.auxiliary_ids)
            suffix = request.auxiliary_ids[position, stream - 1] if stream and in_suffix else -1
            if suffix >= 0:
                row.append(int(suffix))
            elif stream == 0 and reference.forced_token != NO_TOKEN:
                row.append(reference.forced_token)
            elif stream == 0 and reference.kind is StateKind.TEXT:
                allowed = allowed_ids(layout, reference.phase, 0, may_end)
                if not reference.may_move:
                    moves = {t.token for t in reference.phase.transitions}
                    allowed = [token for token in allowed if token not in moves]
                row.append(choose(request, position, 0, allowed, is_text=True))
            elif in_audio and reference.forced_in_audio(stream) != NO_TOKEN:
                row.append(reference.forced_in_audio(stream))
            elif in_audio:
                fills = sampled_fills(layout, stream)
                allowed = [*range(*layout.slices[stream]), *fills]
                if reference.phase.end_rule.any_stream:
                    may_end |= reference.kind is StateKind.FLUSH
                    allowed = allowed_ids(layout, reference.phase, stream, may_end)
                elif stream == 0 and reference.kind is StateKind.AUDIO:
                    allowed = allowed_ids(layout, reference.phase, 0, may_end)
                    if not reference.may_move and reference.phase.end_rule.forbids_earlier:
                        moves = {t.token for t in reference.phase.transitions}
                        allowed = [token for token in allowed if token not in moves]
                token = choose(request, position, stream, allowed)
                if is_repeated(request, reference, stream, token):
                    token = choose(request, position, stream, allowed, again=True)
                row.append(token)
            else:
                row.append(layout.pad_token_ids[stream])
        failed = min(row) < 0
        row = [token if token >= 0 else layout.pad_token_ids[k] for k, token in enumerate(row)]
        reference.emit(row)
        request.expected.append(row)
        request.finishes.append(Finish.ERROR if failed else reference.finish)


class FakeModel:
    """Heads over hidden states that are all streams' logits over the whole vocabulary."""

    def __init__(self, layout: StreamLayout) -> None:
        self._layout = layout
        self._heads = Heads(layout, PhaseTable(layout))
        self.text_rows = 0
        self.audio_rows = 0

    def _all(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.view(-1, self._layout.num_streams, self._layout.vocabulary_size)

    def text_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        self.text_rows += len(hidden_states)
        begin, end = self._heads.text_range
        return self._all(hidden_states)[:, 0, begin:end].contiguous()

    def audio_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        self.audio_rows += len(hidden_states)
        logits = self._all(hidden_states)
        columns = []
        for group in self._heads.groups:
            for row, ids in enumerate(torch.from_numpy(group.candidate_ids).long()):
                found = logits[:, group.first_stream + row, ids.clamp(min=0)]
                # What pads a stream to its group's width must never be looked at.
                columns.append(found.masked_fill(ids < 0, torch.nan))
        return torch.cat(columns, dim=1)


class Worker:
    """Runs requests in random batches, as the runner does: chunks, preemptions, any order."""

    def __init__(self, layout: StreamLayout, states_are_current: bool, seed: int) -> None:
        table = PhaseTable(layout)
        self.layout = layout
        self.state = SlotTable(layout, table, MAX_REQUESTS, MAX_MODEL_LEN, CPU)
        self.sampler = StreamSampler(layout, table, self.state)
        self.model = FakeModel(layout)
        self.current = states_are_current
        self.source = random.Random(seed)
        self.emitted: dict[int, list[list[int]]] = {}
        self.finishes: dict[int, list[Finish]] = {}
        self.held: set[str] = set()
        self._late: tuple[np.ndarray, np.ndarray] | None = None

    def run(self, requests: list[Request]) -> None:
        for request in requests:
            self.emitted[request.number], self.finishes[request.number] = [], []
        live = list(requests)
        while live:
            batch = [request for request in live if self.source.random() < 0.8]
            self.source.shuffle(batch)
            if batch:
                self.step(batch[:MAX_REQUESTS])
            live = [r for r in live if not any(self.finishes[r.number])]

    def step(self, batch: list[Request]) -> None:
        """One step of these requests; one that was left out of the step before enters again."""
        names = [str(request.number) for request in batch]
        self.state.release_except(set(names) & self.held)
        entering = [r for r, name in zip(batch, names, strict=True) if name not in self.held]
        for request in entering:
            self._admit(request)
        if entering:
            self.state.invalidate_rows()
        self.state.set_rows(names)
        self.held = set(names)

        discard = [
            not self.emitted[r.number] and len(r.prompt) > 1 and self.source.random() < 0.3
            for r in batch
        ]
        positions = [
            self.source.randrange(1, len(r.prompt))
            if thrown_away
            else len(r.prompt) + len(self.emitted[r.number])
            for r, thrown_away in zip(batch, discard, strict=True)
        ]
        hidden = torch.stack([r.logits(p).flatten() for r, p in zip(batch, positions, strict=True)])
        before = self._snapshot()
        step = self.sampler.step(
            self.model, hidden, torch.tensor(positions), torch.tensor(discard), self.current
        )
        self._check_slots(before, batch, discard, positions, step.tokens)
        kept = ~np.array(discard, np.bool_)
        news = (self.state.row_slots_host[kept], step.state.numpy()[kept])
        # With asynchronous scheduling the host hears of a step when the next is under way.
        told, self._late = (news, None) if self.current else (self._late, news)
        if told is not None:
            self.state.known_state[told[0]] = told[1]
        for row, request in enumerate(batch):
            if kept[row]:
                self.emitted[request.number].append(step.tokens[row].tolist())
                self.finishes[request.number].append(Finish(int(step.finish[row])))

    def _admit(self, request: Request) -> None:
        emitted = self.emitted[request.number]
        auxiliary = request.auxiliary_ids.copy()
        known = len(request.prompt) + len(emitted)
        rows = np.full((max(known, len(auxiliary)), auxiliary.shape[1]), NO_TOKEN, np.int32)
        rows[: len(auxiliary)] = auxiliary
        for index, row in enumerate(emitted):
            rows[len(request.prompt) + index] = row[1:]
        output = [row[0] for row in emitted]
        self.state.admit(str(request.number), request.prompt, output, rows, request.params)

    def _snapshot(self) -> list[torch.Tensor]:
        progress = self.state.progress
        tensors = (self.state.history, progress.state, progress.segment_start, progress.flush_end)
        return [tensor.clone() for tensor in tensors]

    def _check_slots(
        self,
        before: list[torch.Tensor],
        batch: list[Request],
        discard: list[bool],
        positions: list[int],
        tokens: torch.Tensor,
    ) -> None:
        """Rows that count wrote their tokens at their position; nothing else has changed."""
        after = self._snapshot()
        expected = before[0].clone()
        written = [
            slot
            for slot, thrown_away in zip(self.state.row_slots.tolist(), discard, strict=True)
            if not thrown_away
        ]
        for row, slot in enumerate(self.state.row_slots.tolist()):
            if not discard[row]:
                expected[slot, positions[row]] = tokens[row]
        padding = self.state.padding_slot
        assert torch.equal(after[0][:padding], expected[:padding])
        others = [slot for slot in range(padding) if slot not in written]
        for was, now in zip(before[1:], after[1:], strict=True):
            assert torch.equal(now[others], was[others])


@st.composite
def request_batches(draw: st.DrawFn, may_fail: bool = False) -> list[Request]:
    layout = draw(layouts(max_streams=4, max_delay=3, any_stream=True))
    streams = layout.num_streams
    requests = []
    for number in range(draw(st.integers(1, 3))):
        ids = st.integers(0, layout.vocabulary_size - 1)
        frames = np.array(
            draw(st.lists(st.tuples(*[ids] * streams), min_size=1, max_size=5)), np.int32
        )
        begins = [token for phase in layout.phases for token in phase.begin_tokens]
        if begins:
            frames[-1, 0] = draw(st.sampled_from(begins))
        built = apply_delay_pattern(layout, frames)
        auxiliary = built.auxiliary_ids
        if draw(st.booleans()):
            auxiliary = auxiliary[: len(frames)]

        def per_stream(values: list[Any]) -> list[Any]:
            return [draw(st.sampled_from(values)) for _ in range(streams)]

        max_tokens = draw(st.integers(1, 12))
        params = SamplingParams(
            temperature=draw(st.sampled_from([0.0, 0.9])),
            top_k=draw(st.sampled_from([-1, 2])),
            top_p=draw(st.sampled_from([1.0, 0.7])),
            stream_temperature=per_stream([0.0, 0.0, 0.8, 2.0]),
            stream_top_k=per_stream([-1, 0, 1, 3]),
            stream_top_p=per_stream([1.0, 0.6]),
            # vLLM takes the seed -1 for none.
            seed=draw(st.integers(-(2**62), 2**62).filter(lambda seed: seed != -1)),
            max_tokens=max_tokens,
            min_tokens=draw(st.integers(0, max_tokens)),
            ignore_eos=draw(st.booleans()),
            ras_win_len=draw(st.sampled_from([None, 0, 1, 3, 20])),
            ras_win_max_num_repeat=draw(st.sampled_from([None, 1, 2])),
        )
        broken = None
        if may_fail:
            position = len(frames) + draw(st.integers(0, max_tokens - 1))
            broken = (position, draw(st.integers(0, streams - 1)))
        requests.append(Request(layout, number, built.token_ids, auxiliary, params, broken))
    return requests


def check_worker(requests: list[Request], states_are_current: bool, seed: int) -> Worker:
    worker = Worker(requests[0].layout, states_are_current, seed)
    worker.run(requests)
    for request in requests:
        assert worker.emitted[request.number] == request.expected
        assert worker.finishes[request.number] == request.finishes
    return worker


@settings(max_examples=120)
@given(requests=request_batches(), seed=st.integers(0, 2**32))
def test_any_batches_give_what_each_request_gives_alone(requests: list[Request], seed: int) -> None:
    for request in requests:
        run_reference(request)
    current = check_worker(requests, states_are_current=True, seed=seed)
    late = check_worker(requests, states_are_current=False, seed=seed)
    # The schedules are the same, so heads are multiplied for as many rows or more.
    assert late.model.text_rows >= current.model.text_rows
    assert late.model.audio_rows >= current.model.audio_rows
    check_worker(requests, states_are_current=True, seed=seed + 1)


@settings(max_examples=60)
@given(requests=request_batches(may_fail=True), seed=st.integers(0, 2**32))
def test_a_row_that_cannot_be_sampled_fails_alone(requests: list[Request], seed: int) -> None:
    for request in requests[1:]:
        request.broken = None
    for request in requests:
        run_reference(request)
    check_worker(requests, states_are_current=True, seed=seed)
    check_worker(requests, states_are_current=False, seed=seed)


def simple_request(layout: StreamLayout, number: int, prompt: list[int], **fields: Any) -> Request:
    frames = np.array([[token, 0, 0] for token in prompt], np.int32)
    params = SamplingParams(
        **{
            "temperature": 0.0,
            "stream_temperature": [0.0] * 3,
            "stream_top_k": [0] * 3,
            "stream_top_p": [1.0] * 3,
            "seed": 0,
            "max_tokens": 10,
            **fields,
        }
    )
    return Request(
        layout, number, prompt, apply_delay_pattern(layout, frames).auxiliary_ids, params
    )


def test_a_failure_is_seen_in_every_kind_of_stream() -> None:
    layout = StreamLayout.from_dict(example())
    for stream, prompt, step in ((0, [1, 10], 0), (0, [5], 0), (2, [5], 3)):
        request = simple_request(layout, 0, prompt, ignore_eos=True)
        request.broken = (len(prompt) + step, stream)
        run_reference(request)
        assert request.finishes == [*[Finish.NOT_FINISHED] * step, Finish.ERROR]
        assert request.expected[-1][stream] == 0
        check_worker([request], states_are_current=True, seed=0)


def test_broken_logits_of_a_stream_that_is_not_sampled_are_not_looked_at() -> None:
    layout = StreamLayout.from_dict(example())
    request = simple_request(layout, 0, [5], max_tokens=2)
    request.broken = (1, 2)
    run_reference(request)
    assert Finish.ERROR not in request.finishes
    check_worker([request], states_are_current=True, seed=0)


def test_heads_multiply_only_the_rows_that_need_them() -> None:
    layout = StreamLayout.from_dict(example())
    requests = [
        simple_request(layout, number, prompt, ignore_eos=True)
        for number, prompt in enumerate([[1, 10], [5], [1, 11]])
    ]
    worker = Worker(layout, states_are_current=True, seed=0)
    for request in requests:
        worker.emitted[request.number], worker.finishes[request.number] = [], []
    # The third request has just emitted the token that forces the next two.
    worker.emitted[2] = [[3, 0, 0]]
    worker.step(requests)
    assert (worker.model.text_rows, worker.model.audio_rows) == (2 - 1, 1)


def test_a_prompt_s_tail_goes_before_what_is_sampled() -> None:
    layout = StreamLayout.from_dict(
        example(phases=[{"name": "audio", "kind": "audio", "begin_tokens": [5]}])
    )
    frames = np.array([[5, 0, 0], [20, 25, 29], [21, 26, 30]], np.int32)
    built = apply_delay_pattern(layout, frames)
    request = simple_request(layout, 0, built.token_ids, ignore_eos=True, max_tokens=3)
    request.auxiliary_ids = built.auxiliary_ids
    run_reference(request)
    worker = check_worker([request], states_are_current=True, seed=0)
    emitted = worker.emitted[0]
    assert emitted[0][1:] == [26, 29]
    assert emitted[1][2] == 30
    assert emitted[1][1] in range(24, 28)
    assert len(emitted) == 3 + 2
    assert emitted[-1][:2] == [0, 0] and emitted[-1][2] in range(28, 32)
