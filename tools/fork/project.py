# SPDX-License-Identifier: Apache-2.0
"""What ``upstream.toml`` pins, and where things lie in the repository."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.fork.errors import ForkError

PACKAGE = "vllm"
"""Import name of the package, of its directory upstream, and of the overlay's directory here."""

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Artifact:
    """One pinned file of the registry.

    package: name of the distribution whose index page lists the file.
    file: file name.
    sha256: 64 lower-case hexadecimal digits.
    """

    package: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Release:
    """One upstream release: its source archive, and its wheels by (device, machine)."""

    version: str
    archive: Artifact
    wheels: Mapping[tuple[str, str], Artifact]

    def wheel(self, device: str, machine: str) -> Artifact:
        """The wheel for a device ("cpu" or "cuda") and a machine ("x86_64", "aarch64").

        Raises ForkError when upstream.toml pins none.
        """
        try:
            return self.wheels[device, machine]
        except KeyError:
            known = ", ".join(f"{d} on {m}" for d, m in sorted(self.wheels)) or "none"
            raise ForkError(
                f"upstream.toml pins no {device} wheel of {self.version} for {machine}; it has: "
                f"{known}"
            ) from None


@dataclass(frozen=True)
class Project:
    """A checkout of the fork's repository."""

    root: Path
    fork: int
    default: str
    releases: Mapping[str, Release]

    @property
    def overlay(self) -> Path:
        """Folder of the files the fork adds."""
        return self.root / PACKAGE

    @property
    def csrc(self) -> Path:
        """Folder of the fork's C++ and CUDA sources."""
        return self.root / "csrc"

    @property
    def build(self) -> Path:
        """Ignored folder that everything generated goes to."""
        return self.root / "build"

    @property
    def cache(self) -> Path:
        """Ignored folder of verified downloads; the environment variable UNISON_CACHE moves it."""
        override = os.environ.get("UNISON_CACHE")
        return Path(override).absolute() if override else self.root / ".cache" / "upstream"

    def release(self, version: str | None = None) -> Release:
        """The named release, or the default one. Raises ForkError when it is not listed."""
        name = version or self.default
        try:
            return self.releases[name]
        except KeyError:
            raise ForkError(
                f"release {name} is not in upstream.toml; it lists: {', '.join(self.releases)}"
            ) from None

    def patches(self, release: Release) -> Path:
        """Folder of the patches of a release (which may not exist yet)."""
        return self.root / "patches" / release.version

    def tree(self, release: Release) -> Path:
        """Folder of the patched tree of a release."""
        return self.build / "tree" / release.version


def load_project(root: Path | None = None) -> Project:
    """Read ``upstream.toml`` of the checkout at ``root`` (this file's own checkout when None).

    Raises ForkError when the file is missing or a field is not what it has to be.
    """
    root = (root or Path(__file__).parents[2]).absolute()
    path = root / "upstream.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ForkError(f"{path} does not exist; it pins the upstream release") from None
    except tomllib.TOMLDecodeError as error:
        raise ForkError(f"{path} is not TOML: {error}") from None
    fork = data.get("fork")
    if not isinstance(fork, int) or isinstance(fork, bool) or fork < 1:
        raise ForkError(f"{path}: fork = {fork!r}; it has to be an integer of at least 1")
    tables = data.get("releases")
    if not isinstance(tables, dict) or not tables:
        raise ForkError(f"{path}: releases has to be a table with at least one release")
    releases = {version: _release(path, version, table) for version, table in tables.items()}
    default = data.get("default", "")
    if default not in releases:
        raise ForkError(f"{path}: default = {default!r}; it has to be one of {', '.join(releases)}")
    return Project(root, fork, default, releases)


def _release(path: Path, version: str, table: Any) -> Release:
    where = f"releases.{version}"
    if not isinstance(table, dict):
        raise ForkError(f"{path}: {where} has to be a table")
    archive = _artifact(path, f"{where}.archive", table.get("archive"))
    wheels = {}
    for device, machines in table.get("wheels", {}).items():
        if device not in DEVICES:
            raise ForkError(f"{path}: {where}.wheels.{device}: device has to be one of {DEVICES}")
        for machine, entry in machines.items():
            name = f"{where}.wheels.{device}.{machine}"
            wheels[device, machine] = _artifact(path, name, entry)
    return Release(version, archive, wheels)


def _artifact(path: Path, where: str, table: Any) -> Artifact:
    if not isinstance(table, dict):
        raise ForkError(f"{path}: {where} has to be a table with package, file and sha256")
    fields = {}
    for field in ("package", "file", "sha256"):
        value = table.get(field)
        if not isinstance(value, str) or not value:
            raise ForkError(f"{path}: {where}.{field} = {value!r}; it has to be a string")
        fields[field] = value
    digest = fields["sha256"]
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ForkError(
            f"{path}: {where}.sha256 = {digest!r}; it has to be 64 lower-case hexadecimal digits"
        )
    return Artifact(**fields)
