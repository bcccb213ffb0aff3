# SPDX-License-Identifier: Apache-2.0
"""The source of a voice: harmonics of a pitch, and noise, for a decoder that filters them.

This is the source-filter idea in neural form (Wang et al., arXiv 1904.12088), with the filter
in the spectrum. The phase of the harmonics goes on from frame to frame; it is counted in whole
numbers, so it does not depend on how many frames are made at a time. The noise is the same for
every request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from vllm.unison.codecs.stages import StateStage

_CYCLE = 1 << 40
"""Units of a cycle of the phase."""

_NOISE_SAMPLES = 1 << 16


def make_noise() -> torch.Tensor:
    """[65536] float32 normal samples, which repeat after that; the same everywhere."""
    # The old generator's numbers are promised to stay what they are.
    samples = np.random.RandomState(0).standard_normal(_NOISE_SAMPLES)
    return torch.from_numpy(samples.astype(np.float32))


@dataclass(frozen=True)
class SourceState:
    """Where a voice's source stands.

    Attributes:
        phase: [] int64, in units of 2 ** -40 cycles.
        pitch: [] float32, Hz at the last step.
        position: samples that were made.
    """

    phase: torch.Tensor
    pitch: torch.Tensor
    position: int


def harmonics(
    pitch: torch.Tensor,
    before: torch.Tensor,
    phase: torch.Tensor,
    hop_length: int,
    sample_rate: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """All harmonics below half the sample rate, equally strong, of power 1 together.

    The sum of the cosines of 1 to K times a phase p is Dirichlet's kernel,
    sin((2 K + 1) p / 2) / (2 sin(p / 2)) - 1 / 2.

    Args:
        pitch: [batch, steps] Hz at the end of each step; between them it changes evenly. To be
            positive, and below half the sample rate.
        before: [batch] Hz at the end of the step before the first one.
        phase: [batch] int64 phase there, in units of 2 ** -40 cycles.
        hop_length: samples per step.
        sample_rate: in Hz.

    Returns:
        Samples [batch, steps * hop_length] float32, and the phase after them [batch].
    """
    pitch = pitch.double()
    starts = torch.cat([before.double()[:, None], pitch[:, :-1]], 1)
    place = torch.arange(1, hop_length + 1, device=pitch.device, dtype=torch.float64) / hop_length
    course = (starts[..., None] + (pitch - starts)[..., None] * place).flatten(1)
    moved = (course * (_CYCLE / sample_rate)).round().long()
    phases = phase[:, None] + moved.cumsum(1)
    cycles = (phases % _CYCLE).double() / _CYCLE
    count = torch.floor(sample_rate / 2 / course)
    # Near a whole cycle both sines are 0 and their ratio is 2 K + 1.
    nearest = cycles - cycles.round()
    angle = torch.pi * nearest
    ratio = torch.sin((2 * count + 1) * angle) / torch.sin(angle)
    ratio = torch.where(nearest.abs() < 1e-7, 2.0 * count + 1, ratio)
    samples = (ratio / 2 - 0.5) * (2 / count).sqrt()
    return samples.float(), phases[:, -1] % _CYCLE


class SourceStage(StateStage):
    """Adds a voice's source to the frames of a decoder.

    Args:
        noise: of `make_noise`, on the device of the decoder.
        steps_per_frame: steps of the pitch in a frame.
        hop_length: samples per step.
        sample_rate: in Hz.
    """

    def __init__(
        self, noise: torch.Tensor, steps_per_frame: int, hop_length: int, sample_rate: int
    ) -> None:
        self._noise = noise
        self._steps, self._hop, self._rate = steps_per_frame, hop_length, sample_rate

    def step(
        self, inputs: torch.Tensor, states: Sequence[Any | None]
    ) -> tuple[torch.Tensor, list[Any]]:
        """Go on by some frames.

        Args:
            inputs: [batch, num_frames, steps_per_frame + size] pitch in Hz, then what is passed on.
            states: `SourceState` of each row, or None.

        Returns:
            [batch, num_frames, 2 * samples_per_frame + size]: harmonics, noise, and the rest; and
            the new states.
        """
        frames = inputs.shape[1]
        pitch = inputs[..., : self._steps].flatten(1)
        whole: list[SourceState] = [
            SourceState(torch.zeros((), dtype=torch.int64, device=inputs.device), row[0], 0)
            if state is None
            else state
            for state, row in zip(states, pitch.float(), strict=True)
        ]
        before = torch.stack([state.pitch for state in whole])
        phase = torch.stack([state.phase for state in whole])
        voiced, phase = harmonics(pitch, before, phase, self._hop, self._rate)
        count = voiced.shape[1]
        positions = torch.tensor([state.position for state in whole], device=inputs.device)
        places = positions[:, None] + torch.arange(count, device=inputs.device)
        noise = self._noise[places % len(self._noise)]
        after = [
            SourceState(row.clone(), last.clone(), state.position + count)
            for row, last, state in zip(phase, pitch[:, -1].float(), whole, strict=True)
        ]
        made = [part.unflatten(1, (frames, -1)) for part in (voiced, noise)]
        return torch.cat([*made, inputs[..., self._steps :]], -1), after


def framed(samples: torch.Tensor, hop_length: int, window: torch.Tensor) -> torch.Tensor:
    """[batch, steps * hop_length] samples to [batch, steps, bins] short-time spectra.

    Step n's window is centred on the middle of the samples of step n; beyond the ends is silence.

    Args:
        samples: float32.
        hop_length: samples per step.
        window: [window_length].
    """
    margin = (len(window) - hop_length) // 2
    pieces = functional.pad(samples, (margin, margin)).unfold(1, len(window), hop_length)
    return torch.fft.rfft(pieces * window)
