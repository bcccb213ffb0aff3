# SPDX-License-Identifier: Apache-2.0
"""Which frames a decoder must be given for which frames' samples; pure functions on counts.

All counts are of frames from the start of a request's audio. `contexts` has one entry per stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vllm.unison.codecs.receptive_field import Context


@dataclass(frozen=True)
class Window:
    """What one call of a stage is given, and what of its output is new.

    Attributes:
        begin, end: half-open range of the input items.
        skip: outputs to discard at the start.
        count: outputs to take after them; what follows is discarded.
    """

    begin: int
    end: int
    skip: int
    count: int


def frames_needed(contexts: Sequence[Context], num_outputs: int) -> int:
    """Frames that must be known to decode the first `num_outputs` while more may follow."""
    needed = num_outputs
    for context in reversed(contexts):
        if needed > 0:
            needed = max(needed + context.right, context.first)
    return needed


def stage_targets(contexts: Sequence[Context], num_outputs: int, num_known: int) -> list[int]:
    """Per stage the outputs that it must have given so that the last has given `num_outputs`.

    Args:
        contexts: of the stages.
        num_outputs: frames whose samples are wanted.
        num_known: frames known, at least frames_needed unless the audio has ended.
    """
    targets: list[int] = []
    needed = num_outputs
    for context in reversed(contexts):
        targets.append(min(needed, num_known))
        if needed > 0:
            needed = max(needed + context.right, context.first)
    return targets[::-1]


def plan_window(context: Context, num_done: int, target: int, num_known: int) -> Window:
    """The smallest window that gives the outputs from `num_done` to `target`.

    Args:
        context: of the stage.
        num_done: outputs given so far, less than target.
        target: outputs to have been given.
        num_known: inputs known; fewer than target + context.right only if the audio has ended.
    """
    begin = max(num_done - context.left, 0)
    end = target + context.right
    if begin == 0:
        end = max(end, context.first)
    return Window(begin, min(end, num_known), num_done - begin, target - num_done)


def first_input_kept(context: Context, num_done: int) -> int:
    """The first input that outputs after the first `num_done` still need."""
    return max(num_done - context.left, 0)
