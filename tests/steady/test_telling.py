# SPDX-License-Identifier: Apache-2.0
"""Who is told of each token, and how what was not told gets to the clients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.steady.telling import MOST_UNTOLD, Telling, tell_untold, waits_for_the_end
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

FINAL_ONLY = RequestOutputKind.FINAL_ONLY


def _request(name: str, client: int = 0, resumable: bool = False, **params: Any) -> Any:
    sampling_params = SamplingParams(**({"output_kind": FINAL_ONLY} | params))
    return SimpleNamespace(
        request_id=name,
        client_index=client,
        resumable=resumable,
        sampling_params=sampling_params,
        _output_token_ids=[],
    )


def _output(name: str, *token_ids: int) -> EngineCoreOutput:
    return EngineCoreOutput(request_id=name, new_token_ids=list(token_ids))


def _told(outputs: list[EngineCoreOutput]) -> dict[str, list[int]]:
    return {output.request_id: output.new_token_ids for output in outputs}


def test_who_waits_for_the_end() -> None:
    assert waits_for_the_end(_request("a"), log_stats=False)
    assert not waits_for_the_end(_request("a"), log_stats=True)
    assert not waits_for_the_end(_request("a", stop=["."]), log_stats=False)
    assert not waits_for_the_end(_request("a", resumable=True), log_stats=False)


@pytest.mark.parametrize("kind", [RequestOutputKind.CUMULATIVE, RequestOutputKind.DELTA])
def test_who_streams_is_told_of_each_token(kind: RequestOutputKind) -> None:
    requests = [_request("a"), _request("b", output_kind=kind)]
    assert Telling(requests, log_stats=False).told == [1]


def test_who_waits_is_told_of_all_tokens_in_order() -> None:
    requests = [_request("a", client=1), _request("b", client=2), _request("c", client=1)]
    telling = Telling(requests, log_stats=False)
    told: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    num_steps = 2 * MOST_UNTOLD + 5
    for step in range(num_steps):
        for number, request in enumerate(requests):
            request._output_token_ids.append(10 * step + number)
        due: dict[int, list[EngineCoreOutput]] = {}
        telling.add_due(due)
        assert bool(due) == (step % MOST_UNTOLD == MOST_UNTOLD - 1)
        for client, outputs in due.items():
            assert list(_told(outputs)) == (["a", "c"] if client == 1 else ["b"])
            for name, token_ids in _told(outputs).items():
                told[name] += token_ids
    for name, token_ids in telling.take_untold().items():
        assert len(token_ids) == 5
        told[name] += token_ids
    for number, name in enumerate("abc"):
        assert told[name] == [10 * step + number for step in range(num_steps)]
    assert telling.take_untold() == {}


def test_what_was_not_told_goes_before_a_step_s_tokens() -> None:
    requests = {name: _request(name, client) for name, client in (("a", 1), ("b", 1), ("c", 2))}
    outputs = {1: EngineCoreOutputs(outputs=[_output("d", 9), _output("a", 3)])}
    untold = {"a": [1, 2], "b": [4], "c": [5, 6], "gone": [7]}
    tell_untold(untold, outputs, requests)
    assert list(outputs) == [1, 2]
    assert _told(outputs[1].outputs) == {"d": [9], "a": [1, 2, 3], "b": [4]}
    assert _told(outputs[2].outputs) == {"c": [5, 6]}
