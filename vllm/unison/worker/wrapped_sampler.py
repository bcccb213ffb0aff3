# SPDX-License-Identifier: Apache-2.0
"""A model runner's sampler, with another way to sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class WrappedSampler:
    """Stands for upstream's sampler, which keeps answering all other questions.

    Args:
        sampler: upstream's.
        sample: called in its place, with upstream's sampler and the arguments of the call.
    """

    def __init__(self, sampler: Any, sample: Callable[..., Any]) -> None:
        self._sampler = sampler
        self._sample = sample

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._sample(self._sampler, *arguments, **named)
