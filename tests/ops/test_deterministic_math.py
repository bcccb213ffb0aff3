# SPDX-License-Identifier: Apache-2.0
"""The building blocks: published vectors, accuracy against float64, C++ against PyTorch."""

from __future__ import annotations

import math

import pytest
import torch

from vllm.unison.ops.deterministic_math import (
    deterministic_exp,
    deterministic_log,
    gumbel_noise,
    integer_weight,
)
from vllm.unison.ops.philox import candidate_words, philox

ULP_BOUND = 1.0


def _error_in_ulp(value: torch.Tensor, exact: torch.Tensor) -> float:
    rounded = exact.float()
    spacing = torch.nextafter(rounded.abs(), torch.tensor(torch.inf)) - rounded.abs()
    return float(((value.double() - exact).abs() / spacing.double()).max())


def _log_inputs() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.cat(
        [
            torch.exp(torch.empty(300_000).uniform_(-87, 88, generator=generator)),
            torch.rand(300_000, generator=generator) + 1e-30,
            1 + 1e-3 * torch.randn(300_000, generator=generator),
            torch.tensor([1.0, 2.0, 0.5, math.sqrt(0.5), math.sqrt(2.0), 2.0**-126, 3.4e38]),
        ]
    )


def _exp_inputs() -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.cat(
        [
            torch.empty(300_000).uniform_(-87, 88, generator=generator),
            1e-3 * torch.randn(300_000, generator=generator),
            torch.tensor([0.0, -0.0, -87.0, 88.0]),
        ]
    )


# Known answers of Random123's Philox4x32-10: counter, key, output.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (
            [0xFFFFFFFF] * 4,
            [0xFFFFFFFF] * 2,
            [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        ),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter: list[int], key: list[int], expected: list[int]) -> None:
    assert philox(torch.tensor(counter), torch.tensor(key)).tolist() == expected


def test_key_and_counter_layout() -> None:
    seed, position, stream = 0x299F31D0_A4093822, 0x05A308D3_243F6A88, 0x13198A2E
    block = 3
    expected = philox(
        torch.tensor([0x243F6A88, 0x05A308D3, 0x13198A2E, block]),
        torch.tensor([0xA4093822, 0x299F31D0]),
    )
    words = candidate_words(
        torch.tensor(seed), torch.tensor(position), torch.tensor(stream), 4 * block + 4
    )
    assert words[4 * block :].tolist() == expected.tolist()


def test_log_is_within_one_ulp() -> None:
    x = _log_inputs()
    assert _error_in_ulp(deterministic_log(x), x.double().log()) <= ULP_BOUND


def test_exp_is_within_one_ulp() -> None:
    x = _exp_inputs()
    assert _error_in_ulp(deterministic_exp(x), x.double().exp()) <= ULP_BOUND


def test_exp_outside_its_range() -> None:
    x = torch.tensor([-torch.inf, -1e30, torch.inf, 1e30, torch.nan])
    low, high = deterministic_exp(torch.tensor([-87.0, 88.0])).tolist()
    assert deterministic_exp(x).tolist() == [low, low, high, high, low]


def test_noise_against_float64() -> None:
    generator = torch.Generator().manual_seed(3)
    ends = torch.arange(100_000)
    words = torch.cat(
        [
            ends,
            (1 << 32) - 1 - ends,
            (1 << 31) - 50_000 + ends,
            torch.randint(0, 1 << 32, (300_000,), generator=generator),
        ]
    )
    exact = -torch.log(-torch.log1p(-(words.double() + 0.5) * 2.0**-32))
    noise = gumbel_noise(words)
    # -log(x) turns a relative error of x into an absolute one: 2 ulp of the inner logarithm, and
    # half an ulp of the largest noise, which lies in [16, 32).
    assert float((noise.double() - exact).abs().max()) <= 2 * 2.0**-23 + 2.0**-20
    order = words.argsort()
    assert (noise[order].diff() <= 0).all()


def test_noise_reaches_far_on_both_sides() -> None:
    noise = gumbel_noise(torch.tensor([0, 1, (1 << 32) - 1]))
    assert noise[0] == pytest.approx(33 * math.log(2), abs=2e-6)
    assert noise[1] == pytest.approx(-math.log(1.5) + 32 * math.log(2), abs=2e-6)
    assert noise[2] == pytest.approx(-math.log(33 * math.log(2)), abs=2e-6)


def test_integer_weights() -> None:
    scores = torch.tensor([5.0, 4.0, -10.0, -20.0, -torch.inf])
    weights = integer_weight(scores, torch.tensor(5.0))
    assert weights.tolist()[0] == 1 << 30
    assert weights.tolist()[1] == pytest.approx(2**30 / math.e, rel=1e-6)
    assert weights.tolist()[3:] == [0, 0]


def test_cpp_logarithm_has_the_same_bits() -> None:
    x = _log_inputs()
    compiled = torch.ops.unison.deterministic_log(x)
    assert torch.equal(compiled.view(torch.int32), deterministic_log(x).view(torch.int32))


def test_cpp_exponential_has_the_same_bits() -> None:
    x = torch.cat([_exp_inputs(), torch.tensor([torch.inf, -torch.inf, torch.nan, 1e30])])
    compiled = torch.ops.unison.deterministic_exp(x)
    assert torch.equal(compiled.view(torch.int32), deterministic_exp(x).view(torch.int32))


@pytest.mark.parametrize(
    ("seed", "position", "stream"),
    [(0, 0, 0), (-1, (1 << 63) - 1, 2**31), (123456789 << 20, 1 << 33, 8)],
)
def test_cpp_words_and_noise_have_the_same_bits(seed: int, position: int, stream: int) -> None:
    words, noise = torch.ops.unison.candidate_noise(seed, position, stream, 10_003)
    expected = candidate_words(
        torch.tensor(seed), torch.tensor(position), torch.tensor(stream), 10_003
    )
    assert torch.equal(words, expected)
    assert torch.equal(noise.view(torch.int32), gumbel_noise(expected).view(torch.int32))
