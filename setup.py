# SPDX-License-Identifier: Apache-2.0
"""Builds the fork: upstream's pinned wheel, the patched files, the overlay and our own extension.

Install with ``pip install --no-build-isolation .`` (or ``-e .``) in an environment that has torch:
the device follows it, unless VLLM_TARGET_DEVICE says otherwise.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.absolute()
sys.path.insert(0, str(ROOT))

from tools.fork import package  # noqa: E402
from tools.fork.extension import build_extension  # noqa: E402
from tools.fork.fetch import fetch  # noqa: E402
from tools.fork.project import PACKAGE, ForkError, load_project  # noqa: E402
from tools.fork.runtime import update_tree  # noqa: E402
from tools.fork.tree import unexported  # noqa: E402

EXTRAS = {
    "batch": ["pyarrow>=15"],
    "ray": ["ray[data,serve]>=2.60", "pyarrow>=15"],
}
"""What parts of the fork need that most installations do not have."""


class BuildPackage(build_py):
    """Assembles the package in the build folder, or, for a development install, inside the patched
    tree.
    """

    editable_mode: bool = False

    def run(self) -> None:
        try:
            self._build()
        # setuptools takes an exception here for a plug-in that does not know development installs,
        # and goes on without it; only leaving the process makes the installation fail.
        except ForkError as error:
            sys.exit(f"error: {error}")
        except Exception:
            traceback.print_exc()
            sys.exit("error: the fork could not be built")

    def _build(self) -> None:
        package.refuse_upstream_cpu_distribution()
        work = unexported(project, release)
        if work and not self.editable_mode:
            raise ForkError(f"{work}; a wheel is built from the patches alone, so export it first")
        update_tree(project, release)
        extension = build_extension(project, device)
        if self.editable_mode:
            package.link_development(project, release, wheel, version, extension)
        else:
            target = Path(self.build_lib)
            package.assemble(project, release, wheel, version, target, extension)

    # There are no sources in the sense of setuptools, which would look for them before they exist.

    def get_source_files(self) -> list[str]:
        return []

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        root = Path(self.build_lib)
        return [str(path) for path in root.rglob("*") if path.is_file()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def _get_data_files(self) -> list[Any]:
        return []


class BuildWheel(bdist_wheel):
    """Tags the wheel as upstream tags its own: one build for all Python versions, and for all
    systems that have what its compiled modules ask for.
    """

    def get_tag(self) -> tuple[str, str, str]:
        built = Path(self.get_finalized_command("build_py").build_lib)
        return (*metadata.tag, package.platform_tag(super().get_tag()[2], built))


class BinaryDistribution(Distribution):
    """A distribution with compiled files, though setuptools compiles none."""

    def has_ext_modules(self) -> bool:
        return True


def development_requirements() -> list[str]:
    """What developing the fork needs, from requirements/dev.txt."""
    text = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8")
    entries = [line.partition("#")[0].strip() for line in text.splitlines()]
    return [entry for entry in entries if entry]


try:
    project = load_project(ROOT)
    release = project.release()
    device = package.target_device()
    version = package.package_version(project, release, device)
    wheel = fetch(project, release.wheel(device, package.machine()))
    metadata = package.read_metadata(wheel)
    commands: dict[str, type[Command]] = {"build_py": BuildPackage, "bdist_wheel": BuildWheel}
    development = package.development_folder(project)
    development.mkdir(parents=True, exist_ok=True)
    setup(
        version=version,
        python_requires=metadata.requires_python,
        install_requires=list(metadata.requires),
        extras_require={**metadata.extras, **EXTRAS, "dev": development_requirements()},
        entry_points={group: list(entries) for group, entries in metadata.entry_points.items()},
        packages=[PACKAGE],
        package_dir={"": str(development.relative_to(ROOT))},
        cmdclass=commands,
        distclass=BinaryDistribution,
        # Beside the package it would be on Python's path, as a second distribution of the same
        # name.
        options={"egg_info": {"egg_base": "build"}},
    )
except ForkError as error:
    sys.exit(f"error: {error}")
