# SPDX-License-Identifier: Apache-2.0
"""Classifier-free guidance as a user of the unpatched package would write it.

Each guided request is two requests, one with the prompt and one with the null prompt, and a
batch-level logits processor that overwrites both rows' logits with the merged ones. Both requests
have the same seed, so that both sample the same token. Nothing but the package's public interface
is used, so nothing keeps the two requests in the same steps: a pair of which one is late, preempted
or in another step goes on unmerged and apart. `tokens_apart` counts that.

    params = pair_params(number, scale, temperature=0.8, top_k=30, seed=1, max_tokens=64)
    outputs = LLM(model, logits_processors=[PairedGuidance]).generate([prompt, null], params)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

CONDITIONAL, NULL = "conditional", "null"

Role = tuple[int, str, float]
"""Number of the pair, which of the two requests, guidance scale."""


def pair_params(number: int, scale: float, **options: Any) -> list[SamplingParams]:
    """Sampling parameters of the two requests of pair `number`: the prompt's, the null prompt's."""
    return [
        SamplingParams(
            extra_args={"guidance_pair": number, "guidance_lane": lane, "guidance_scale": scale},
            **options,
        )
        for lane in (CONDITIONAL, NULL)
    ]


def tokens_apart(conditional: Sequence[int], null: Sequence[int]) -> bool:
    """Whether the two requests of a pair got different tokens."""
    return list(conditional) != list(null)


class PairedGuidance(LogitsProcessor):
    """Overwrites both rows of each pair by scale * conditional + (1 - scale) * null.

    The rows are kept as index tensors, rebuilt only when the batch changes: merging is three
    operators on the whole batch, whatever the number of pairs.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._device = device
        self._roles: dict[int, Role] = {}
        self._rows: torch.Tensor | None = None
        self._scales = torch.empty(0)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise ValueError unless a guided request says all three things."""
        _role(sampling_params)

    def is_argmax_invariant(self) -> bool:
        """False: the best token of merged logits is another."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests from row to row."""
        if batch_update is None:
            return
        roles = self._roles
        for row in batch_update.removed:
            roles.pop(row, None)
        for row, params, _, _ in batch_update.added:
            role = _role(params)
            roles.pop(row, None)
            if role is not None:
                roles[row] = role
        for source, target, direction in batch_update.moved:
            moved, replaced = roles.pop(source, None), roles.pop(target, None)
            if moved is not None:
                roles[target] = moved
            if replaced is not None and direction == MoveDirectionality.SWAP:
                roles[source] = replaced
        self._index()

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Merge in place; `logits` is [num_rows, vocabulary_size] float32."""
        if self._rows is None:
            return logits
        conditional, null = self._rows
        merged = torch.lerp(logits[null], logits[conditional], self._scales)
        logits[conditional] = merged
        logits[null] = merged
        return logits

    def _index(self) -> None:
        row_of = {(number, lane): row for row, (number, lane, _) in self._roles.items()}
        pairs = [
            (row, row_of[number, NULL], scale)
            for row, (number, lane, scale) in self._roles.items()
            if lane == CONDITIONAL and (number, NULL) in row_of
        ]
        if not pairs:
            self._rows = None
            return
        conditional, null, scales = zip(*pairs, strict=True)
        self._rows = torch.tensor([conditional, null], device=self._device)
        self._scales = torch.tensor(scales, device=self._device)[:, None]


def _role(params: SamplingParams) -> Role | None:
    given = params.extra_args or {}
    if "guidance_pair" not in given:
        return None
    lane, scale = given.get("guidance_lane"), given.get("guidance_scale")
    if lane not in (CONDITIONAL, NULL):
        raise ValueError(f"guidance_lane must be {CONDITIONAL!r} or {NULL!r}, not {lane!r}")
    if not isinstance(scale, int | float):
        raise ValueError(f"guidance_scale must be a number, not {scale!r}")
    return int(given["guidance_pair"]), lane, float(scale)
