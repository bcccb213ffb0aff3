# SPDX-License-Identifier: Apache-2.0
"""The option that turns steady decoding off."""

from __future__ import annotations

from typing import Any

import pytest

from vllm.steady.config import steady_decoding_allowed


@pytest.mark.parametrize("config", [None, {}, {"steady_decoding": True}, {"another": 1}])
def test_allowed_unless_it_is_turned_off(config: Any) -> None:
    assert steady_decoding_allowed(config)
    assert not steady_decoding_allowed({"steady_decoding": False})


@pytest.mark.parametrize("value", [0, 1, "false", None])
def test_refuses_what_is_not_a_truth_value(value: Any) -> None:
    with pytest.raises(ValueError, match="steady_decoding must be true or false"):
        steady_decoding_allowed({"steady_decoding": value})
