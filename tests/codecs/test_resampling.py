# SPDX-License-Identifier: Apache-2.0
"""The resampler against pure tones, and in pieces against itself."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm.unison.codecs.resampling import StreamResampler, resample

RATES = [(8000, 16000), (44100, 16000), (48000, 24000), (16000, 44100), (22050, 24000)]


def tone(frequency: float, rate: int, seconds: float) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize(("from_rate", "to_rate"), RATES)
def test_tone_keeps_frequency_amplitude_and_phase(from_rate: int, to_rate: int) -> None:
    for frequency in (100.0, 440.0, 3300.0, 0.35 * min(from_rate, to_rate)):
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
        assert np.abs(output[to_rate // 20 : -to_rate // 20]).max() < 1e-5


def test_constant_stays_constant() -> None:
    output = resample(np.full(4000, 0.5, dtype=np.float32), 22050, 16000)
    np.testing.assert_allclose(output[200:-200], 0.5, atol=1e-6)


rates = st.integers(4000, 192_000) | st.sampled_from([8000, 16000, 22050, 24000, 44100, 48000])


@given(rates, rates, st.integers(0, 3000), st.lists(st.integers(0, 3000), max_size=5), st.data())
def test_resampling_in_pieces_is_resampling(
    from_rate: int, to_rate: int, length: int, cuts: list[int], data: st.DataObject
) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    samples = random.uniform(-1, 1, length).astype(np.float32)
    resampler = StreamResampler(from_rate, to_rate)
    pieces = [resampler.push(piece) for piece in np.split(samples, sorted(cuts))]
    joined = np.concatenate([*pieces, resampler.finish()])
    np.testing.assert_array_equal(joined, resample(samples, from_rate, to_rate))
    assert len(joined) == math.ceil(length * Fraction(to_rate, from_rate))


@pytest.mark.parametrize(("from_rate", "to_rate"), [(44100, 48000), (32000, 48000), (22050, 24000)])
def test_resampling_in_pieces_holds_little_back(from_rate: int, to_rate: int) -> None:
    resampler = StreamResampler(from_rate, to_rate)
    made = 0
    for pushed in range(1, 101):
        made += len(resampler.push(np.zeros(from_rate // 100, np.float32)))
        assert made >= (pushed / 100 - 0.05) * to_rate


@pytest.mark.parametrize("num_samples", [0, 1, 2, 99, 441, 442])
def test_length(num_samples: int) -> None:
    for from_rate, to_rate in [*RATES, (192_000, 4000), (4000, 192_000), (48000, 16000)]:
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
