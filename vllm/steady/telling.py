# SPDX-License-Identifier: Apache-2.0
"""Which clients are told of each token, and what the others have yet to be told.

A client that wants a request's final output only has no use for a message per token, which costs
the engine as much as a token's own bookkeeping. In steady steps it is told of several at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllm.v1.request import Request

MOST_UNTOLD = 16
"""Steps of which a client is told at once at the most."""


def waits_for_the_end(request: Request, log_stats: bool) -> bool:
    """Whether a request's client may be told of several tokens at once.

    Not if it looks at the tokens as they come: for stop strings, or to measure their latency.
    """
    params = request.sampling_params
    return (
        not log_stats
        and not request.resumable
        and params is not None
        and params.output_kind == RequestOutputKind.FINAL_ONLY
        and not params.stop
    )


class Telling:
    """What the clients of a batch that decodes steadily have been told.

    Args:
        requests: the batch's.
        log_stats: whether the engine measures its requests.

    Attributes:
        told: numbers of the requests whose clients are told of each token.
    """

    def __init__(self, requests: Sequence[Request], log_stats: bool) -> None:
        waits = [waits_for_the_end(request, log_stats) for request in requests]
        self.told = [number for number, waiting in enumerate(waits) if not waiting]
        self._waiting = [
            request for request, waiting in zip(requests, waits, strict=True) if waiting
        ]
        self._num_untold = 0

    def add_due(self, outputs: dict[int, list[EngineCoreOutput]]) -> None:
        """After a step: add to `outputs`, per client, what is due for those who wait."""
        self._num_untold += 1
        if self._num_untold < MOST_UNTOLD:
            return
        by_id = {request.request_id: request for request in self._waiting}
        for request_id, token_ids in self.take_untold().items():
            output = EngineCoreOutput(request_id=request_id, new_token_ids=token_ids)
            outputs.setdefault(by_id[request_id].client_index, []).append(output)

    def take_untold(self) -> dict[str, list[int]]:
        """Per request id the tokens that its client has not been told of; now it counts as told."""
        count, self._num_untold = self._num_untold, 0
        if not count:
            return {}
        return {r.request_id: r._output_token_ids[-count:] for r in self._waiting}


def tell_untold(
    untold: dict[str, list[int]],
    outputs: dict[int, EngineCoreOutputs],
    requests: Mapping[str, Request],
) -> None:
    """Put tokens that clients have not been told of before those of a step.

    Args:
        untold: per request id the tokens.
        outputs: the step's, per client.
        requests: those that the scheduler still has; who has been aborted is told nothing.
    """
    left = dict(untold)
    for of_client in outputs.values():
        for output in of_client.outputs:
            earlier = left.pop(output.request_id, None)
            if earlier is not None:
                output.new_token_ids = [*earlier, *output.new_token_ids]
    for request_id, token_ids in left.items():
        request = requests.get(request_id)
        if request is not None:
            of_client = outputs.setdefault(request.client_index, EngineCoreOutputs())
            of_client.outputs.append(
                EngineCoreOutput(request_id=request_id, new_token_ids=token_ids)
            )
