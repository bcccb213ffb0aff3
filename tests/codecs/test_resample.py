# SPDX-License-Identifier: Apache-2.0
"""The resampler against pure tones and against its formula in plain float64 loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.multistream.codecs import resample as module
from vllm.multistream.codecs.resample import resample

RATES = [(8000, 16000), (44100, 16000), (48000, 24000), (16000, 44100), (22050, 24000)]


def tone(frequency: float, rate: int, seconds: float) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def slow_resample(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """The interpolation formula, one output sample at a time."""
    cutoff = module.CUTOFF * min(1.0, to_rate / from_rate)
    half_width = module.ZERO_CROSSINGS / cutoff
    output = []
    for index in range(math.ceil(len(samples) * to_rate / from_rate)):
        time = index * from_rate / to_rate
        value = total = 0.0
        for tap in range(math.floor(time - half_width), math.ceil(time + half_width) + 1):
            distance = time - tap
            if abs(distance) >= half_width:
                continue
            window = np.i0(module.KAISER_BETA * math.sqrt(1 - (distance / half_width) ** 2))
            weight = float(np.sinc(cutoff * distance) * window)
            total += weight
            if 0 <= tap < len(samples):
                value += weight * samples[tap]
        output.append(value / total)
    return np.array(output)


@pytest.mark.parametrize(("from_rate", "to_rate"), RATES)
def test_tone_keeps_frequency_amplitude_and_phase(from_rate: int, to_rate: int) -> None:
    for frequency in (100.0, 440.0, 3300.0):
        output = resample(tone(frequency, from_rate, 0.5).astype(np.float32), from_rate, to_rate)
        expected = tone(frequency, to_rate, 0.5)
        assert output.dtype == np.float32
        assert output.shape == expected.shape
        # Away from the ends, where the input is cut off.
        inner = slice(to_rate // 20, -to_rate // 20)
        assert np.abs(output[inner] - expected[inner]).max() < 5e-4


@pytest.mark.parametrize(("from_rate", "to_rate"), [(44100, 16000), (48000, 16000), (24000, 8000)])
def test_frequencies_above_the_new_band_vanish(from_rate: int, to_rate: int) -> None:
    for frequency in (0.52 * to_rate, 0.7 * to_rate):
        output = resample(tone(frequency, from_rate, 0.3), from_rate, to_rate)
        assert np.abs(output[to_rate // 20 : -to_rate // 20]).max() < 5e-4


@settings(max_examples=15)
@given(
    num_samples=st.integers(1, 20),
    from_rate=st.integers(4000, 12000),
    to_rate=st.integers(4000, 12000),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_formula(num_samples: int, from_rate: int, to_rate: int, seed: int) -> None:
    samples = np.random.default_rng(seed).uniform(-1, 1, num_samples).astype(np.float32)
    expected = slow_resample(samples, from_rate, to_rate)
    if from_rate == to_rate:
        expected = samples.astype(np.float64)
    output = resample(samples, from_rate, to_rate)
    assert output.shape == expected.shape
    np.testing.assert_allclose(output, expected, atol=3e-6)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 3000)
    whole = resample(samples, 44100, 16000)
    monkeypatch.setattr(module, "BLOCK", 30_011)
    module._phase_filters.cache_clear()
    np.testing.assert_array_equal(resample(samples, 44100, 16000), whole)


def test_constant_stays_constant() -> None:
    output = resample(np.full(4000, 0.5, dtype=np.float32), 22050, 16000)
    np.testing.assert_allclose(output[200:-200], 0.5, atol=1e-6)


@pytest.mark.parametrize("num_samples", [0, 1, 2, 99, 441, 442])
def test_length(num_samples: int) -> None:
    for from_rate, to_rate in RATES:
        output = resample(np.ones(num_samples, dtype=np.float32), from_rate, to_rate)
        assert output.shape == (-(-num_samples * to_rate // from_rate),)


def test_equal_rates_change_nothing() -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 100).astype(np.float32)
    np.testing.assert_array_equal(resample(samples, 16000, 16000.0), samples)


def test_channels_are_averaged() -> None:
    left, right = tone(440, 16000, 0.1), tone(1000, 16000, 0.1)
    output = resample(np.stack([left, right]), 16000, 8000)
    np.testing.assert_allclose(output, resample((left + right) / 2, 16000, 8000), atol=1e-6)
    np.testing.assert_array_equal(resample(left[None], 16000, 8000), resample(left, 16000, 8000))


@pytest.mark.parametrize("bad", [0, -16000, 3999, 192001, 16000.5, math.nan, math.inf])
def test_rate_out_of_range(bad: float) -> None:
    samples = np.zeros(10, dtype=np.float32)
    accepted = r"must be a whole number of Hz in \[4000, 192000\], got"
    with pytest.raises(ValueError, match=f"from_rate {accepted}"):
        resample(samples, bad, 16000)
    with pytest.raises(ValueError, match=f"to_rate {accepted}"):
        resample(samples, 16000, bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
def test_samples_not_finite(bad: float) -> None:
    for rate in (16000, 44100):
        with pytest.raises(ValueError, match="samples must be finite"):
            resample(np.array([0.0, bad, 0.0]), rate, 16000)


def test_samples_of_wrong_shape_or_type() -> None:
    with pytest.raises(ValueError, match="samples must be floating point, got int16"):
        resample(np.zeros(10, dtype=np.int16), 8000, 16000)
    with pytest.raises(ValueError, match=r"samples must have shape \[num_samples\] or"):
        resample(np.zeros((1, 1, 10)), 8000, 16000)
    for shape in ((0, 10), (17, 10), (48000, 2)):
        with pytest.raises(ValueError, match="samples must have 1 to 16 channels"):
            resample(np.zeros(shape), 8000, 16000)
