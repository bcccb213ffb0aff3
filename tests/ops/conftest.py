# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the operators' tests."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from vllm.unison.ops.extension import load_extension


@pytest.fixture(scope="session", autouse=True)
def _compiled_operators() -> None:
    load_extension()


@pytest.fixture(autouse=True)
def _floating_point_registers_are_left_empty() -> Iterator[None]:
    """An MMX instruction without its EMMS makes every later x87 operation of the process a NaN."""
    yield
    assert np.longdouble(0.5) + np.longdouble(0.25) == 0.75


@pytest.fixture
def instruction_sets() -> Iterator[list[str]]:
    """Names of the versions of the CPU loops this processor runs; the fastest is restored."""
    names: list[str] = torch.ops.unison.instruction_sets()
    yield names
    torch.ops.unison.set_instruction_set(names[-1])
