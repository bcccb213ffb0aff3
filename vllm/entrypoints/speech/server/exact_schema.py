# SPDX-License-Identifier: Apache-2.0
"""Whole numbers in /openapi.json, where FastAPI makes floats of the bounds of all numbers.

Bounds of 64 bits are others as floats: the schema would allow what the server refuses.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def keep_bounds_exact(app: FastAPI, models: Iterable[type[BaseModel]]) -> None:
    """Let the schema of an application have the bounds of these models as pydantic states them."""
    described = app.openapi
    exact = {model.__name__: model.model_json_schema() for model in models}

    def openapi() -> dict[str, Any]:
        schema = described()
        components = schema.get("components", {}).get("schemas", {})
        for name, own in exact.items():
            _copy_bounds(own.get("properties", {}), components.get(name, {}).get("properties", {}))
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _copy_bounds(source: Any, target: Any) -> None:
    if isinstance(source, dict) and isinstance(target, dict):
        for key in source.keys() & target.keys():
            if key in _BOUNDS and not isinstance(source[key], dict):
                target[key] = source[key]
            else:
                _copy_bounds(source[key], target[key])
    elif isinstance(source, list) and isinstance(target, list):
        for mine, its in zip(source, target, strict=False):
            _copy_bounds(mine, its)
