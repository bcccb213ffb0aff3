# SPDX-License-Identifier: Apache-2.0
"""The settings that ESPnet publishes with a model, in files of YAML."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.yaml"

_FIRST = object()


class EspnetSettings:
    """Settings by name, those inside of others with a dot.

    Args:
        file: the name of the file, for errors.
        text: what it holds.
        keeps_null: whether null is a value of its own; else it is as if it were left out.

    Raises:
        ValueError: if it is no YAML of settings.
    """

    def __init__(self, file: str, text: str, *, keeps_null: bool = False) -> None:
        import yaml

        # The one in C reads a list of a hundred thousand tokens in seconds instead of a minute.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            values = yaml.load(text, loader)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise _no_settings(file, error) from error
        if not isinstance(values, dict):
            raise _no_settings(file)
        self._file = file
        self._values = values
        self._keeps_null = keeps_null

    @classmethod
    def read(cls, file: Path, *, keeps_null: bool = False) -> EspnetSettings:
        """The settings of a file."""
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _no_settings(file.name, error) from error
        return cls(file.name, text, keeps_null=keeps_null)

    def get(self, name: str, default: Any = None) -> Any:
        """A value, or the default where it is left out."""
        found: Any = self._values
        for part in name.split("."):
            if not isinstance(found, dict) or part not in found:
                return default
            found = found[part]
        return default if found is None and not self._keeps_null else found

    def one_of(self, name: str, *accepted: Any, default: Any = _FIRST) -> Any:
        """One of some values; without a default, the first of them if it is left out."""
        value = self.get(name, accepted[0] if default is _FIRST else default)
        if not any(value == choice and type(value) is type(choice) for choice in accepted):
            raise self.error(name, "be " + " or ".join(map(repr, accepted)), value)
        return value

    def whole(self, name: str, smallest: int, default: int | None = None) -> int:
        """An integer."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
            raise self.error(name, f"be an integer of at least {smallest}", value)
        return value

    def number(self, name: str, smallest: float, default: float | None = None) -> float:
        """An integer or another finite number."""
        value = self.get(name, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value < smallest:
            raise self.error(name, f"be a number of at least {smallest}", value)
        number: float = value
        return number

    def name(self, name: str, accepted: str = "be a name") -> str:
        """A string that says something; `accepted` is what errors say that it must do."""
        value = self.get(name)
        if not isinstance(value, str) or not value.strip():
            raise self.error(name, accepted, value)
        return value

    def source(self, name: str) -> str:
        """What something is taken from."""
        return self.name(name, "name a folder or a hub id")

    def error(self, name: str, accepted: str, value: Any) -> ValueError:
        """Naming a setting and what it must be, or hold."""
        return ValueError(f"{self._file}: {name} must {accepted}, not {value!r}")


def _no_settings(file: str, error: Exception | None = None) -> ValueError:
    why = "" if error is None else ": " + " ".join(str(error).split())
    return ValueError(f"{file} must be YAML of settings by name{why}")
