# SPDX-License-Identifier: Apache-2.0
"""Guidance of single-stream models, whatever model runner drives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from vllm.unison.sampler.batch_groups import GuidedBatchCache

if TYPE_CHECKING:
    from vllm.unison.messages.guidance import StepGuidance


class TextGuidance:
    """Merges the lanes' logits before upstream's sampler, and gives every lane its group's token.

    The runner is upstream's own; a step without guided groups runs as it does upstream.

    Args:
        device: the model's.
    """

    def __init__(self, device: torch.device) -> None:
        self._batches = GuidedBatchCache(device)
        self._guidance: StepGuidance | None = None

    def begin_step(self, guidance: StepGuidance | None) -> None:
        """Note which groups sample with guidance in this step; None: no group does."""
        self._guidance = guidance

    def sample(
        self,
        logits: torch.Tensor,
        request_ids: Sequence[str],
        sample: Callable[[torch.Tensor], Any],
    ) -> Any:
        """Sample a step's logits.

        Args:
            logits: [num_rows, vocabulary_size].
            request_ids: of the batch rows.
            sample: upstream's sampler; its result has the `sampled_token_ids` [num_rows, 1].
        """
        if self._guidance is None:
            return sample(logits)
        batch = self._batches.get(self._guidance.groups, request_ids)
        merged = batch.merge(logits)
        logits = logits.float()
        logits[batch.guided_members[:, 0]] = merged
        output = sample(logits)
        output.sampled_token_ids = output.sampled_token_ids[batch.token_rows]
        return output
