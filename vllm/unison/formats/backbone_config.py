# SPDX-License-Identifier: Apache-2.0
"""The configuration of a decoder backbone inside of a model's."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig


def make_backbone_config(
    values: PreTrainedConfig | dict[str, Any] | None, model_type: str
) -> PreTrainedConfig:
    """The configuration that `backbone_config` in a config.json stands for.

    Args:
        values: what it holds; a configuration stays as it is.
        model_type: of the configuration where it holds nothing.

    Raises:
        ValueError: naming a model type that is not known.
    """
    if isinstance(values, PreTrainedConfig):
        return values
    values = {"model_type": model_type} if values is None else values
    if (known := values.get("model_type")) not in CONFIG_MAPPING:
        raise ValueError(
            f"backbone_config.model_type must be one that transformers knows, not {known!r}"
        )
    return CONFIG_MAPPING[known](**values)
