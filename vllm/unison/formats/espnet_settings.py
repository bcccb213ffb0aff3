# SPDX-License-Identifier: Apache-2.0
"""The settings of training that ESPnet publishes with a model, in a config.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CONFIG_FILE = "config.yaml"


class EspnetSettings:
    """Settings by name, those inside of others with a dot.

    Args:
        file: a config.yaml.

    Raises:
        ValueError: if it is no YAML of settings.
    """

    def __init__(self, file: Path) -> None:
        values = _load_yaml(file)
        if not isinstance(values, dict):
            raise ValueError(f"{file.name} must be YAML of settings by name")
        self._values = values
        self._file = file.name

    def get(self, name: str, default: Any = None) -> Any:
        """A value, or the default where there is none."""
        found: Any = self._values
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return default if found is None else found

    def one_of(self, name: str, *accepted: Any) -> Any:
        """One of some values; the first of them if it is left out."""
        value = self.get(name, accepted[0])
        if not any(value == choice and type(value) is type(choice) for choice in accepted):
            raise self.error(name, "be " + " or ".join(map(repr, accepted)), value)
        return value

    def whole(self, name: str, smallest: int, default: int | None = None) -> int:
        """An integer."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
            raise self.error(name, f"be an integer of at least {smallest}", value)
        return value

    def name(self, name: str) -> str:
        """A string that says something."""
        value = self.get(name)
        if not isinstance(value, str) or not value.strip():
            raise self.error(name, "be a name", value)
        return value

    def error(self, name: str, accepted: str, value: Any) -> ValueError:
        """Naming a setting and what it must be, or hold."""
        return ValueError(f"{self._file}: {name} must {accepted}, not {value!r}")


def _load_yaml(file: Path) -> Any:
    import yaml

    # The one in C reads a list of a hundred thousand tokens in seconds instead of a minute.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        with file.open(encoding="utf-8") as stream:
            return yaml.load(stream, loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file.name} must be YAML of settings by name: {error}") from error
