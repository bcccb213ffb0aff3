# SPDX-License-Identifier: Apache-2.0
"""What the scheduler tells the worker, and the metrics, about a step's sequence groups."""

from dataclasses import dataclass


@dataclass
class GuidedGroup:
    """Scheduler to worker: the rows of a group that samples with guidance in this step.

    Attributes:
        lane_ids: the conditional lane's id first.
        weights: of the lanes' logits.
        frame: steps since the guided stretch began.
        first, last: guided frames of the stretch; last None means to the end.
    """

    lane_ids: list[str]
    weights: list[float]
    frame: int
    first: int
    last: int | None


@dataclass
class GuidanceStats:
    """What a step did for guided groups.

    Attributes:
        running_groups: guided groups that run.
        lanes: guidance lanes that they have.
        guidance_rows: guidance lanes that were in the step's batch.
        cached_tokens: prompt tokens that prefix-cache hits gave to guidance lanes in this step.
        preempted_groups: guided groups that were preempted since the last step.
    """

    running_groups: int = 0
    lanes: int = 0
    guidance_rows: int = 0
    cached_tokens: int = 0
    preempted_groups: int = 0
