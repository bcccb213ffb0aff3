# SPDX-License-Identifier: Apache-2.0
"""Guidance of single-stream models on the V1 model runner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vllm.unison.sampler.batch_groups import GuidedBatchCache

if TYPE_CHECKING:
    from vllm.unison.messages.guidance import GuidedGroup
    from vllm.unison.worker.v1_runner import V1Runner


class V1TextAdapter:
    """Merges the lanes' logits before upstream's sampler, and gives every lane its group's token.

    The runner is upstream's own; a step without guided groups runs as it does upstream.

    Args:
        runner: the model runner, whose sampler is wrapped.
    """

    def __init__(self, runner: V1Runner) -> None:
        self._runner = runner
        self._guided: list[GuidedGroup] | None = None
        self._batches = GuidedBatchCache(runner.device)
        self._generators_aside: dict[int, torch.Generator] = {}
        runner.sampler = _GuidedSampler(runner.sampler, self)

    def begin_step(self, scheduler_output: Any) -> None:
        """Note which groups sample with guidance in this step."""
        self._guided = scheduler_output.guidance

    def prepare_inputs(self) -> None:
        """Lanes are ordinary rows of the batch."""

    def sample(self, sampler: Any, logits: torch.Tensor, **arguments: Any) -> Any:
        """Sample [num_rows, vocabulary] logits with upstream's sampler; see the class."""
        self._put_generators_aside()
        batch = self._runner.input_batch
        guided = self._batches.get(self._guided, batch.req_ids, batch.req_id_to_index)
        if guided is None:
            return sampler(logits=logits, **arguments)
        merged = guided.merge(logits)
        logits = logits.float()
        logits[guided.guided_members[:, 0]] = merged
        output = sampler(logits=logits, **arguments)
        output.sampled_token_ids = output.sampled_token_ids[guided.token_rows]
        return output

    def _put_generators_aside(self) -> None:
        """Upstream rewinds the generators of rows that are still in prefill, which generators on
        the CPU cannot do: such rows sample without one, since their tokens are thrown away."""
        runner = self._runner
        generators = runner.input_batch.generators
        if generators and runner.device.type == "cpu":
            is_unfinished = runner.discard_request_mask.np
            self._generators_aside = {
                row: generators.pop(row) for row in list(generators) if is_unfinished[row]
            }

    def end_step(self, output: Any) -> Any:
        """The step's output, unchanged."""
        self._guided = None
        if self._generators_aside:
            self._runner.input_batch.generators.update(self._generators_aside)
            self._generators_aside = {}
        return output


class _GuidedSampler:
    """Stands for upstream's sampler, which keeps answering all other questions.

    Args:
        sampler: upstream's.
        adapter: decides how a step is sampled.
    """

    def __init__(self, sampler: Any, adapter: V1TextAdapter) -> None:
        self._sampler = sampler
        self._adapter = adapter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def __call__(self, *, logits: torch.Tensor, **arguments: Any) -> Any:
        return self._adapter.sample(self._sampler, logits, **arguments)
