# SPDX-License-Identifier: Apache-2.0
"""What differs between the upstream releases that the fork is built on, in one place.

Upstream is asked for what it has, not for its version. docs/releases.md says when a release leaves,
and its differences with it.
"""

from __future__ import annotations

from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING

from vllm import exceptions

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams


class _RetryableRequestError(exceptions.GenerationError):
    """A failure of the moment, after which the same request may be sent again."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.status_code = HTTPStatus.SERVICE_UNAVAILABLE


# 0.31 has no such class; its servers answer with the status that an error names.
RetryableRequestError: type[exceptions.GenerationError] = getattr(
    exceptions, "RetryableRequestError", _RetryableRequestError
)


def asks_for_watermarks(params: SamplingParams) -> bool:
    """Whether a request itself asks for watermarks.

    In 0.31 that is the default of every request, which an engine that is not configured for
    watermarks ignores.
    """
    return bool(params.watermarking) and not _watermarks_by_default(type(params))


@cache
def _watermarks_by_default(parameters: type[SamplingParams]) -> bool:
    return bool(parameters().watermarking)
