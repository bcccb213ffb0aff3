# SPDX-License-Identifier: Apache-2.0
"""How many frames a chunk of streamed audio has: few at first, for latency, then more."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

CONFIG_KEY = "acoustic_decoding"
"""Key of `additional_config` (an engine argument) that holds the policy's fields."""


@dataclass(frozen=True)
class ChunkSchedule:
    """Sizes of chunks, in frames.

    Chunk boundaries depend on nothing but these fields, so that a request whose audio was
    interrupted continues with the chunks that it would have had.

    Attributes:
        first_chunk_frames: size of the first chunk, from 1.
        chunk_frames: size of the last of the growing chunks and of all that follow, at least that
            of the first.
        growth: each growing chunk is so many times as large as the one before; more than 1.

    Raises:
        ValueError: naming the field and the accepted range.
    """

    first_chunk_frames: int = 4
    chunk_frames: int = 32
    growth: float = 2.0

    def __post_init__(self) -> None:
        for name, least in (("first_chunk_frames", 1), ("chunk_frames", self.first_chunk_frames)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(
                    f"{CONFIG_KEY}.{name} must be an integer of at least {least}, not {value!r}"
                )
        growth = self.growth
        is_number = isinstance(growth, (int, float)) and not isinstance(growth, bool)
        if not is_number or not math.isfinite(growth) or growth <= 1:
            raise ValueError(f"{CONFIG_KEY}.growth must be a finite number above 1, not {growth!r}")

    @classmethod
    def from_config(cls, additional_config: Any) -> ChunkSchedule:
        """The policy in an engine's `additional_config`, or the default one.

        Raises:
            ValueError: naming the field and the accepted range.
        """
        if not isinstance(additional_config, Mapping):
            return cls()
        fields = additional_config.get(CONFIG_KEY, {})
        known = sorted(cls.__dataclass_fields__)
        if not isinstance(fields, Mapping) or not set(fields) <= set(known):
            raise ValueError(f"{CONFIG_KEY} must be an object with keys among {known}")
        return cls(**fields)

    @cached_property
    def _growing(self) -> list[int]:
        """Boundaries after each chunk up to the first of full size."""
        boundaries, size = [self.first_chunk_frames], self.first_chunk_frames
        while size < self.chunk_frames:
            size = min(math.ceil(size * self.growth), self.chunk_frames)
            boundaries.append(boundaries[-1] + size)
        return boundaries

    def boundary_after(self, num_frames: int) -> int:
        """The first chunk boundary behind `num_frames` frames."""
        growing = self._growing
        if num_frames < growing[-1]:
            return growing[bisect_right(growing, num_frames)]
        chunks = (num_frames - growing[-1]) // self.chunk_frames + 1
        return growing[-1] + chunks * self.chunk_frames

    def boundaries(self, start: int, stop: int) -> list[int]:
        """The boundaries in (start, stop]."""
        found = []
        boundary = self.boundary_after(start)
        while boundary <= stop:
            found.append(boundary)
            boundary = self.boundary_after(boundary)
        return found
