# SPDX-License-Identifier: Apache-2.0
"""What the generation_config.json of a model of transformers gives to requests that do not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SamplingDefaults:
    """Sampling settings of a request that does not say.

    Attributes:
        temperature: 0 is greedy.
        top_k: 0 is off.
        top_p: 1 is off.
        guidance_scale: guidance is on if it is greater than 1.
        max_length: positions of the decoder, its start column included.
    """

    temperature: float
    top_k: int
    top_p: float
    guidance_scale: float
    max_length: int

    @classmethod
    def from_generation_config(
        cls, generation: Mapping[str, Any], ids: Mapping[str, int]
    ) -> SamplingDefaults:
        """Read them as transformers does, whose defaults stand in for what the file leaves out.

        Args:
            generation: what the file holds.
            ids: by name, special ids that it may repeat, with the value that they have.

        Raises:
            ValueError: naming the field and what is accepted.
        """
        for name, expected in ids.items():
            if generation.get(name) not in (None, expected):
                raise ValueError(
                    f"generation_config.{name} must be {expected}, not {generation[name]!r}"
                )
        samples = generation.get("do_sample")
        if samples not in (None, False, True):
            raise ValueError(f"generation_config.do_sample must be a boolean, not {samples!r}")
        temperature = _number(generation, "temperature", 1.0)
        # The start column is not one of the new tokens, which come before a length.
        num_new = _whole(generation, "max_new_tokens", 0, 1)
        return cls(
            temperature=temperature if samples else 0.0,
            top_k=_whole(generation, "top_k", 50, 0),
            top_p=_number(generation, "top_p", 1.0),
            guidance_scale=_number(generation, "guidance_scale", 1.0),
            max_length=num_new + 1 if num_new else _whole(generation, "max_length", 20, 2),
        )


def _number(generation: Mapping[str, Any], name: str, default: float) -> float:
    value = generation.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ValueError(f"generation_config.{name} must be a number of at least 0, not {value!r}")
    return float(value)


def _whole(generation: Mapping[str, Any], name: str, default: int, smallest: int) -> int:
    value = generation.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
        raise ValueError(
            f"generation_config.{name} must be an integer of at least {smallest}, not {value!r}"
        )
    return value
