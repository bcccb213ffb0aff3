# SPDX-License-Identifier: Apache-2.0
"""What the scheduler tells the worker, and the metrics, about a step's sequence groups."""

from dataclasses import dataclass, field
from typing import NamedTuple


class GuidedGroup(NamedTuple):
    """Scheduler to worker: the rows of a group that samples with guidance in this step.

    Attributes:
        lane_ids: the conditional lane's id first.
        weights: of the lanes' logits.
        first, last: guided frames of the stretch; last None means to the end.
    """

    lane_ids: list[str]
    weights: list[float]
    first: int
    last: int | None


@dataclass
class StepGuidance:
    """Scheduler to worker: the groups that sample with guidance in a step.

    Attributes:
        groups: what stays the same from step to step.
        frames: per group the steps since its guided stretch began.
    """

    groups: list[GuidedGroup] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)


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
