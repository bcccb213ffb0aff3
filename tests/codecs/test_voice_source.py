# SPDX-License-Identifier: Apache-2.0
"""The source of a voice: against sums of cosines, and in parts as in one piece."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm.unison.codecs.voice_source import (
    SourceStage,
    SourceState,
    framed,
    harmonics,
    make_noise,
)

RATE, HOP, STEPS = 16000, 160, 4


def stage() -> SourceStage:
    return SourceStage(make_noise(), STEPS, HOP, RATE)


def inputs(seed: int, rows: int, frames: int, size: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    pitch = 90 * 2 ** (2 * torch.rand(rows, frames, STEPS, generator=generator))
    return torch.cat([pitch, torch.randn(rows, frames, size, generator=generator)], -1)


def test_harmonics_are_a_sum_of_cosines() -> None:
    pitch = torch.tensor([[110.0, 180.0, 150.0], [320.0, 300.0, 90.0]])
    before = torch.tensor([100.0, 333.0])
    made, end = harmonics(pitch, before, torch.zeros(2, dtype=torch.int64), HOP, RATE)
    for row in range(2):
        phase, last, expected = 0.0, float(before[row]), []
        for target in pitch[row].tolist():
            for sample in range(1, HOP + 1):
                hertz = last + (target - last) * sample / HOP
                phase += hertz / RATE
                count = int(RATE / 2 // hertz)
                orders = np.arange(1, count + 1)
                total = np.cos(2 * np.pi * orders * phase).sum()
                expected.append(total * np.sqrt(2 / count))
            last = target
        np.testing.assert_allclose(made[row].numpy(), expected, atol=2e-3)
        assert float(end[row]) / 2**40 == pytest.approx(phase % 1, abs=1e-6)


def test_harmonics_have_the_power_of_one_and_stay_below_half_the_rate() -> None:
    pitch = torch.full((1, 200), 137.0)
    made, _ = harmonics(pitch, pitch[:, 0], torch.zeros(1, dtype=torch.int64), HOP, RATE)
    assert float(made.square().mean()) == pytest.approx(1, abs=0.05)
    spectrum = np.abs(np.fft.rfft(made[0].numpy() * np.hanning(made.shape[1])))
    bins = RATE / made.shape[1]
    peaks = spectrum[[round(137 * order / bins) for order in range(1, 59)]]
    assert peaks.min() > 0.4 * peaks.max()
    assert spectrum[round(68.5 / bins)] < 1e-3 * peaks.max()


@given(parts=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_any_parts_are_what_one_piece_is(parts: list[int], seed: int) -> None:
    rows = 2
    values = inputs(seed, rows, sum(parts))
    whole, ends = stage().step(values, [None] * rows)
    states: list[SourceState | None] = [None] * rows
    found = []
    for part in values.split(parts, 1):
        made, states = stage().step(part, states)
        found.append(made)
    assert torch.equal(torch.cat(found, 1), whole)
    for state, end in zip(states, ends, strict=True):
        assert state is not None
        assert int(state.phase) == int(end.phase) and state.position == end.position
    assert torch.equal(whole[..., -3:], values[..., STEPS:])


def test_rows_do_not_notice_each_other() -> None:
    values = inputs(3, 3, 5)
    _, states = stage().step(values, [None] * 3)
    mixed: list[SourceState | None] = [states[0], None, states[2]]
    together, _ = stage().step(values, mixed)
    for row, state in enumerate(mixed):
        alone, _ = stage().step(values[row : row + 1], [state])
        assert torch.equal(alone[0], together[row])


def test_a_state_shares_no_memory_with_what_was_given() -> None:
    values = inputs(4, 2, 2)
    _, states = stage().step(values, [None, None])
    kept = float(states[1].pitch)
    values.zero_()
    assert float(states[1].pitch) == kept


def test_noise_goes_on_and_repeats() -> None:
    noise = make_noise()
    assert noise.shape == (1 << 16,) and float(noise.std()) == pytest.approx(1, abs=0.01)
    assert noise[:3].tolist() == pytest.approx([1.7640524, 0.4001572, 0.978738])
    frames = 2 * len(noise) // (STEPS * HOP) + 1
    made, _ = stage().step(inputs(5, 1, frames), [None])
    heard = made[0, :, STEPS * HOP : 2 * STEPS * HOP].flatten()
    assert torch.equal(heard[: len(noise)], noise)
    assert torch.equal(heard[len(noise) : 2 * len(noise)], noise)


def test_framed_is_scipy_s_transform() -> None:
    import scipy.signal

    samples = torch.randn(1, 10 * HOP, generator=torch.Generator().manual_seed(6))
    window = torch.hann_window(640)
    _, _, expected = scipy.signal.stft(
        np.pad(samples[0].numpy(), 240),
        window=window.numpy(),
        nperseg=640,
        noverlap=480,
        boundary=None,
        padded=False,
    )
    # SciPy divides by the sum of the window.
    found = framed(samples, HOP, window)[0].numpy()
    np.testing.assert_allclose(found, expected.T * float(window.sum()), atol=1e-3)
