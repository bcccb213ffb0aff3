# SPDX-License-Identifier: Apache-2.0
"""A toy upstream with two releases, small enough to go through every verb in a moment."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.fork.git import git
from tools.fork.project import Project, load_project

ENGINE = "".join(f"step {number}\n" for number in range(1, 31))

RELEASES = {
    "1.0": {
        "setup.py": "ext_modules = []\n",
        "CMakeLists.txt": "project(toy)\nfind_package(Torch REQUIRED)\n",
        ".gitignore": "*.so\n/vllm/_version.py\n",
        "vllm/__init__.py": "from vllm.engine import NAME\n",
        "vllm/_version.py": "__version__ = '1.0'\n",
        "vllm/engine.py": "NAME = 'upstream'\n",
        "vllm/steps.txt": ENGINE,
        "vllm/models/llama.py": "LLAMA = 1\n",
        "vllm/obsolete.py": "OLD = 1\n",
        "tests/test_engine.py": "raise AssertionError\n",
    },
}
# The second release inserts lines far from the patched places, and rewrites one line that "Speak"
# does not touch.
RELEASES["2.0"] = RELEASES["1.0"] | {
    "vllm/steps.txt": "preface 1\npreface 2\n" + ENGINE.replace("step 20\n", "step twenty\n"),
}

METADATA = """Metadata-Version: 2.4
Name: vllm-toy
Version: {version}
Requires-Python: >=3.11
Requires-Dist: numpy
Requires-Dist: torch==2.13.0+cpu; platform_machine == "x86_64"
Requires-Dist: torchaudio; platform_machine != "s390x"
Provides-Extra: audio
Requires-Dist: soundfile; extra == "audio"
"""

ENTRY_POINTS = "[console_scripts]\nvllm = vllm.cli:main\n"


@dataclass(frozen=True)
class Toy:
    """A toy repository: its project, and the folder its upstream files can be fetched from."""

    project: Project
    source: Path

    def write(self, files: Mapping[str, str]) -> None:
        """Write files into the repository."""
        for name, text in files.items():
            path = self.project.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def commit(self, subject: str, files: Mapping[str, str], version: str = "1.0") -> None:
        """Write files into the tree of a release and commit them, as a developer would: a subject
        alone gets a body.
        """
        tree = self.project.tree(self.project.release(version))
        for name, text in files.items():
            (tree / name).write_text(text, encoding="utf-8")
        message = subject if "\n" in subject else f"{subject}\n\nThe overlay needs it."
        git(tree, "add", "--", *files)
        git(tree, "commit", "-q", "-m", message)


def archive_of(version: str, files: Mapping[str, str]) -> bytes:
    """A source archive, as bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"vllm-{version}/{name}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def wheel_of(version: str, files: Mapping[str, str]) -> bytes:
    """A wheel, as bytes: the package, one binary, and metadata."""
    buffer = io.BytesIO()
    info = f"vllm_toy-{version}.dist-info"
    content = {name: text for name, text in files.items() if name.startswith("vllm/")}
    content |= {
        "vllm/_C.abi3.so": "binary",
        f"{info}/METADATA": METADATA.format(version=version),
        f"{info}/entry_points.txt": ENTRY_POINTS,
    }
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in content.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def make_toy(root: Path, source: Path, releases: Mapping[str, Mapping[str, str]]) -> Toy:
    """A repository in ``root`` whose upstream files lie in ``source``."""
    toml = [f'default = "{next(iter(releases))}"', "fork = 3"]
    source.mkdir(parents=True)
    for version, files in releases.items():
        entries = {
            "archive": (f"vllm-{version}.tar.gz", archive_of(version, files)),
            "wheels.cpu.x86_64": (
                f"vllm_toy-{version}-cp38-abi3-any.whl",
                wheel_of(version, files),
            ),
        }
        for key, (name, data) in entries.items():
            (source / name).write_bytes(data)
            toml += [
                f'[releases."{version}".{key}]',
                'package = "vllm"',
                f'file = "{name}"',
                f'sha256 = "{hashlib.sha256(data).hexdigest()}"',
            ]
    root.mkdir(parents=True)
    (root / "upstream.toml").write_text("\n".join(toml), encoding="utf-8")
    (root / "vllm" / "speech").mkdir(parents=True)
    (root / "vllm" / "speech" / "__init__.py").write_text("SPEECH = 1\n", encoding="utf-8")
    (root / "vllm" / "models").mkdir()
    (root / "vllm" / "models" / "speech_lm.py").write_text("MODEL = 1\n", encoding="utf-8")
    return Toy(load_project(root), source)


def borrow(toy: Toy, value: str, own_wheel: bool = False) -> Project:
    """Let release 2.0 name ``value`` as its binaries; without a CPU wheel of its own."""
    path = toy.project.root / "upstream.toml"
    archive = '[releases."2.0".archive]'
    text = path.read_text().replace(archive, f'[releases."2.0"]\nbinaries = {value}\n{archive}')
    if not own_wheel:
        text = text.replace('[releases."2.0".wheels.cpu', '[releases."2.0".wheels.cuda')
    path.write_text(text)
    return load_project(toy.project.root)
