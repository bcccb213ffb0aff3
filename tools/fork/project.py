# SPDX-License-Identifier: Apache-2.0
"""What ``upstream.toml`` pins, and where things lie in the repository."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = "vllm"
"""Import name of the package, of its directory upstream, and of the overlay's directory here."""

DEVICES = ("cpu", "cuda")


class ForkError(Exception):
    """Something the user has to know or repair; the message says what and how."""


@dataclass(frozen=True)
class Artifact:
    """A pinned file: the distribution that it belongs to, its name, its hexadecimal SHA-256."""

    package: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Release:
    """One upstream release: its source archive, and its wheels by (device, machine).

    binaries: the release whose compiled modules it is tested on, where it has no CPU wheel.
    """

    version: str
    archive: Artifact
    wheels: Mapping[tuple[str, str], Artifact]
    binaries: str | None = None

    def wheel(self, device: str, machine: str) -> Artifact:
        """The wheel for a device and a machine. Raises ForkError when upstream.toml pins none."""
        if found := self.wheels.get((device, machine)):
            return found
        known = ", ".join(f"{d} on {m}" for d, m in sorted(self.wheels)) or "none"
        wanted = f"{device} wheel of {self.version} for {machine}"
        raise ForkError(f"upstream.toml pins no {wanted}; it has: {known}")


@dataclass(frozen=True)
class Project:
    """A checkout of the fork's repository."""

    root: Path
    fork: int
    default: str
    releases: Mapping[str, Release]
    source: str | None = None
    """Folder, or its address, to copy upstream's files from; None: $UNISON_SOURCE, or download."""

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
        if name not in self.releases:
            listed = ", ".join(self.releases)
            raise ForkError(f"release {name} is not in upstream.toml; it lists: {listed}")
        return self.releases[name]

    def compiled(self, release: Release) -> Release:
        """The release whose compiled modules ``release`` runs on: itself, or its ``binaries``."""
        return self.release(release.binaries) if release.binaries else release

    def patches(self, release: Release) -> Path:
        """Folder of the patches of a release (which may not exist yet)."""
        return self.root / "patches" / release.version

    def tree(self, release: Release) -> Path:
        """Folder of the patched tree of a release."""
        return self.build / "tree" / release.version


def load_project(root: Path | None = None, source: str | None = None) -> Project:
    """Read ``upstream.toml`` of the checkout at ``root`` (this file's own checkout when None).

    Raises ForkError when the file is missing or a field is not what it has to be.
    """
    root = (root or Path(__file__).parents[2]).absolute()
    path = root / "upstream.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        fork, default = data.get("fork", 0), data.get("default", "")
        _require(type(fork) is int and fork >= 1, f"fork = {fork!r}", "an integer of at least 1")
        tables = _table(data.get("releases"), "releases")
        _require(bool(tables), "releases", "a table with at least one release")
        releases = {version: _release(version, table) for version, table in tables.items()}
        _require(
            default in list(releases), f"default = {default!r}", f"one of {', '.join(releases)}"
        )
        _require_binaries(releases)
    except FileNotFoundError:
        raise ForkError(f"{path} does not exist; it pins the upstream release") from None
    except tomllib.TOMLDecodeError as error:
        raise ForkError(f"{path} is not TOML: {error}") from None
    except ForkError as error:
        raise ForkError(f"{path}: {error}") from None
    return Project(root, fork, default, releases, source)


def _require(holds: bool, what: str, accepted: str) -> None:
    if not holds:
        raise ForkError(f"{what}; it has to be {accepted}")


def _table(value: Any, where: str) -> dict[str, Any]:
    _require(isinstance(value, dict), f"{where} = {value!r}", "a table")
    return dict(value)


def _release(version: str, value: Any) -> Release:
    where = f"releases.{version}"
    table = _table(value, where)
    archive = _artifact(f"{where}.archive", table.get("archive"))
    wheels = {}
    for device, machines in _table(table.get("wheels", {}), f"{where}.wheels").items():
        name = f"{where}.wheels.{device}"
        if device not in DEVICES:
            raise ForkError(f"{name}: device has to be one of {', '.join(DEVICES)}")
        for machine, entry in _table(machines, name).items():
            wheels[device, machine] = _artifact(f"{name}.{machine}", entry)
    return Release(version, archive, wheels, table.get("binaries"))


def _require_binaries(releases: Mapping[str, Release]) -> None:
    """Compiled modules are borrowed for the CPU alone, from a release that has some of its own."""
    lenders = [version for version, release in releases.items() if _has_cpu_wheel(release)]
    for version, release in releases.items():
        what, named = f"releases.{version}.binaries = {release.binaries!r}", release.binaries
        if named is None:
            continue
        _require(not _has_cpu_wheel(release), what, "left out, since there is a CPU wheel of it")
        accepted = f"one of {', '.join(lenders)}, which have a CPU wheel"
        _require(named in lenders, what, accepted)


def _has_cpu_wheel(release: Release) -> bool:
    return any(device == "cpu" for device, _ in release.wheels)


def _artifact(where: str, value: Any) -> Artifact:
    table = _table(value, where)
    for field in ("package", "file", "sha256"):
        given, digest = table.get(field), field == "sha256"
        accepted = "64 lower-case hexadecimal digits" if digest else "a string that is not empty"
        good = isinstance(given, str) and re.fullmatch("[0-9a-f]{64}" if digest else ".+", given)
        _require(bool(good), f"{where}.{field} = {given!r}", accepted)
    return Artifact(table["package"], table["file"], table["sha256"])
