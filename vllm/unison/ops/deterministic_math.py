# SPDX-License-Identifier: Apache-2.0
"""Float32 logarithm, exponential and Gumbel noise with the same bits on every device.

Each function is a fixed sequence of IEEE float32 additions and multiplications, bit casts and
comparisons, written with PyTorch's elementwise operators, which do not contract a product and a
sum into one rounding. ``csrc/common/deterministic_math.h`` holds the same formulas for C++ and
CUDA, and the reasons for them.
"""

from __future__ import annotations

import torch

LOG_TWO_HIGH = float.fromhex("0x1.62ep-1")
LOG_TWO_LOW = float.fromhex("0x1.0bfbe8p-15")
LOG_TWO_RECIPROCAL = float.fromhex("0x1.715476p+0")

_LOG_POLYNOMIAL = tuple(
    float.fromhex(coefficient)
    for coefficient in (
        "-0x1.38b58ap-4",
        "0x1.055b72p-3",
        "-0x1.0d8542p-3",
        "0x1.22da1cp-3",
        "-0x1.547244p-3",
        "0x1.99a008p-3",
        "-0x1.000226p-2",
        "0x1.555554p-2",
    )
)
_EXP_POLYNOMIAL = tuple(
    float.fromhex(coefficient)
    for coefficient in (
        "0x1.6a2256p-10",
        "0x1.123b04p-7",
        "0x1.5558f8p-5",
        "0x1.555490p-3",
        "0x1.fffffcp-2",
    )
)
_SQRT_HALF_BITS = 0x3F3504F3
_ROUND_TO_INTEGER = float.fromhex("0x1.8p+23")

WEIGHT_SCALE = 2.0**30
"""Integer weight of the largest score."""


def _horner(coefficients: tuple[float, ...], x: torch.Tensor) -> torch.Tensor:
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


def deterministic_log(x: torch.Tensor) -> torch.Tensor:
    """Natural logarithm, within 1 ulp.

    Args:
        x: float32 tensor of positive normal numbers.
    """
    bits = x.view(torch.int32)
    exponent = (bits - _SQRT_HALF_BITS) >> 23
    f = (bits - exponent * (1 << 23)).view(torch.float32) - 1.0
    e = exponent.to(torch.float32)
    square = f * f
    tail = square * f * _horner(_LOG_POLYNOMIAL, f)
    tail = tail + e * LOG_TWO_LOW
    tail = tail - square * 0.5
    return (tail + f) + e * LOG_TWO_HIGH


def deterministic_exp(x: torch.Tensor) -> torch.Tensor:
    """Exponential, within 1 ulp; arguments are first clamped to [-87, 88], NaN to -87.

    Args:
        x: float32 tensor.
    """
    x = torch.where(x > -87.0, x, -87.0)
    x = torch.where(x < 88.0, x, 88.0)
    n = (x * LOG_TWO_RECIPROCAL + _ROUND_TO_INTEGER) - _ROUND_TO_INTEGER
    r = x - n * LOG_TWO_HIGH
    r = r - n * LOG_TWO_LOW
    mantissa = (r * r * _horner(_EXP_POLYNOMIAL, r) + r) + 1.0
    return (mantissa.view(torch.int32) + n.to(torch.int32) * (1 << 23)).view(torch.float32)


def gumbel_noise(words: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise -log(-log(u)), u = 1 - (word + 1/2) / 2^32, as float32.

    u is not formed as a float32: near 1, where the large noise comes from, that would leave steps
    of 2^-24. The distance to the nearer end of (0, 1) is formed instead, which keeps 32 bits of
    resolution at both ends: the noise reaches from -3.13 to 22.87.

    Args:
        words: int64 tensor of values in [0, 2^32).
    """
    below_half = words >= 1 << 31
    distance = torch.where(below_half, (1 << 32) - 1 - words, words).to(torch.int32)
    tail = (distance.to(torch.float32) + 0.5) * 2.0**-32
    complement = 1.0 - tail
    lost = (1.0 - complement) - tail
    u = torch.where(below_half, tail, complement)
    correction = torch.where(below_half, 0.0, lost)
    exponential = -(deterministic_log(u) + correction)
    return -deterministic_log(exponential)


def integer_weight(score: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """floor(exp(score - largest) * 2^30) as int64: unnormalized probabilities with exact sums.

    Args:
        score: float32 tensor.
        largest: float32 tensor that broadcasts to ``score``.
    """
    scaled = deterministic_exp(score - largest) * WEIGHT_SCALE
    return scaled.to(torch.int32).to(torch.int64)
