# SPDX-License-Identifier: Apache-2.0
"""The state of one request's audio while it is being decoded."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vllm.unison.audio_decoder.windows import Window, first_input_kept, plan_window
from vllm.unison.codecs.receptive_field import Context


@dataclass
class StageState:
    """What one stage of the decoder holds of a request.

    Attributes:
        context: the stage's context.
        num_known: inputs that it has been given.
        num_done: outputs that it has given.
        begin: the first input that `items` holds.
        items: [num_known - begin, ...] inputs that it still needs; None before the first.
        state: of a stage that has one.
    """

    context: Context
    num_known: int = 0
    num_done: int = 0
    begin: int = 0
    items: torch.Tensor | None = None
    state: Any = None

    def feed(self, items: torch.Tensor) -> None:
        """Give it the inputs [num_new, ...] that follow; those before `begin` are not kept."""
        unneeded = max(self.begin - self.num_known, 0)
        self.num_known += len(items)
        if unneeded < len(items):
            items = items[unneeded:]
            self.items = items if self.items is None else torch.cat([self.items, items])

    def window(self, target: int) -> Window:
        """The window that gives the outputs up to `target`."""
        return plan_window(self.context, self.num_done, target, self.num_known)

    def inputs(self, begin: int, end: int) -> torch.Tensor:
        """[end - begin, ...] inputs."""
        assert self.items is not None and begin >= self.begin
        return self.items[begin - self.begin : end - self.begin]

    def finish(self, target: int) -> None:
        """Its outputs up to `target` are given: drop the inputs that nothing needs any more."""
        self.num_done = target
        first = first_input_kept(self.context, target)
        if first > self.begin and self.items is not None:
            # A copy, so that the memory of what is dropped is given back.
            self.items = self.items[first - self.begin :].clone()
            self.begin = first


class RequestDecodeState:
    """Frames, context and progress of one request.

    Args:
        request_id: of the request.
        contexts: of the decoder's stages.
        has_state: per stage whether it carries a state.
        codes: [num_frames, num_codebooks] int32 of all frames so far.
        num_emitted: frames whose samples have reached the scheduler already.

    Attributes:
        num_emitted: frames whose samples have been decoded for emission.
        samples: [n, samples_per_frame] tensors, decoded and not handed on; the channels'
            dimension follows if there are several.
        error: why the request must fail.
    """

    def __init__(
        self,
        request_id: str,
        contexts: Sequence[Context],
        has_state: Sequence[bool],
        codes: NDArray[np.int32],
        num_emitted: int,
    ) -> None:
        if num_emitted > len(codes):
            raise RuntimeError(f"{num_emitted} frames were emitted of {len(codes)}")
        self.request_id = request_id
        self.num_emitted = num_emitted
        self.samples: list[torch.Tensor] = []
        self.error: str | None = None
        self.stages = [StageState(context) for context in contexts]
        self._resume(has_state)
        self.num_frames = self.stages[0].begin
        self._unsent = codes[:0]
        self.feed(codes[self.num_frames :])
        self._unsent = codes[num_emitted:]

    def _resume(self, has_state: Sequence[bool]) -> None:
        """Let the stages behind the last one with a state start where their outputs are needed.

        The others start anew, since a state is only had by going through all frames.
        """
        needed = self.num_emitted
        for stage, stateful in zip(reversed(self.stages), reversed(has_state), strict=True):
            if stateful:
                break
            stage.num_done = needed
            needed = first_input_kept(stage.context, needed)
            stage.begin = needed
        self.stages[0].num_known = self.stages[0].begin
        for before, stage in itertools.pairwise(self.stages):
            stage.num_known = before.num_done

    def feed(self, codes: NDArray[np.int32]) -> None:
        """Append the codes [num_new, num_codebooks] of frames that have become complete."""
        if len(codes) == 0:
            return
        self.stages[0].feed(torch.from_numpy(codes.astype(np.int64)))
        self.num_frames += len(codes)
        self._unsent = np.concatenate([self._unsent, codes])

    def take_codes(self, num_frames: int) -> NDArray[np.int32]:
        """[num_frames, num_codebooks] codes of the next frames to hand on."""
        taken, self._unsent = self._unsent[:num_frames], self._unsent[num_frames:].copy()
        return np.ascontiguousarray(taken)

    def num_bytes(self) -> int:
        """Memory that the stages hold, states excluded."""
        return sum(stage.items.nbytes for stage in self.stages if stage.items is not None)
