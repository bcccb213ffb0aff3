# SPDX-License-Identifier: Apache-2.0
"""How a request ended: which ends are a success."""

from __future__ import annotations

from vllm.exceptions import GenerationError
from vllm.outputs import CompletionOutput
from vllm.unison.upstream import RetryableRequestError

SUCCESS = ("stop", "length")
"""The finish reasons of a request that has made all that it should."""


def failure(completion: CompletionOutput) -> GenerationError | None:
    """The error of an output that ends its request in any other way than by success."""
    reason = completion.finish_reason
    if reason is None or reason in SUCCESS:
        return None
    if reason == "abort":
        # By an operator, or because the server leaves; another try puts it right.
        return RetryableRequestError("the server aborted this request; send it again")
    return GenerationError(str(completion.stop_reason or f"the request failed: {reason}"))


def incomplete() -> GenerationError:
    """The error of outputs that stop before one says that the request has ended."""
    return GenerationError("the request stopped before its end")
