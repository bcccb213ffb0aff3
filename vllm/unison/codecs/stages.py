# SPDX-License-Identifier: Apache-2.0
"""The parts of a codec's decoder, as streaming needs them.

A decoder is a chain of stages. Each takes and gives one item per frame: a tensor
[batch, num_frames, ...] whose first stage's items are codes and whose last stage's are samples.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vllm.unison.codecs.receptive_field import Context


@dataclass(frozen=True)
class WindowStage:
    """A stage whose output at a frame depends on the frames of a finite window around it.

    Attributes:
        context: the window.
        apply: [batch, num_frames, ...] to [batch, num_frames, ...]. It may treat the ends as the
            ends of the audio: outputs that lie closer to an end than the context are discarded,
            except where the audio itself begins or ends there.
    """

    context: Context
    apply: Callable[[torch.Tensor], torch.Tensor]


class StateStage(ABC):
    """A stage that depends on all frames before, which it sums up in a state per request."""

    context = Context(0, 0)

    @abstractmethod
    def step(
        self, inputs: torch.Tensor, states: Sequence[Any | None]
    ) -> tuple[torch.Tensor, list[Any]]:
        """Go on by some frames.

        Args:
            inputs: [batch, num_frames, ...], the frames that follow those seen so far.
            states: one per row, as the last call returned it; None before the first frame.

        Returns:
            Outputs [batch, num_frames, ...], and the new state of each row. A state must not share
            memory with those of other rows, nor grow without bound.
        """


DecoderStage = WindowStage | StateStage
