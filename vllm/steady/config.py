# SPDX-License-Identifier: Apache-2.0
"""Whether an engine may decode steadily."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CONFIG_KEY = "steady_decoding"
"""Key of `additional_config` (an engine argument): false runs every step the general way."""


def steady_decoding_allowed(additional_config: Any) -> bool:
    """What an engine's `additional_config` says; yes by default.

    Raises:
        ValueError: naming the field and the accepted values.
    """
    if not isinstance(additional_config, Mapping):
        return True
    allowed = additional_config.get(CONFIG_KEY, True)
    if not isinstance(allowed, bool):
        raise ValueError(f"{CONFIG_KEY} must be true or false, not {allowed!r}")
    return allowed
