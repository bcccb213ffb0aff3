# SPDX-License-Identifier: Apache-2.0
"""Compiling the fork's C++ and CUDA sources with CMake."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tools.fork.errors import ForkError
from tools.fork.project import Project


def sources(project: Project) -> list[Path]:
    """The C++ sources; without any there is no extension to build."""
    return sorted(project.csrc.rglob("*.cpp"))


def find_program(name: str) -> str | None:
    """Path of a build program: the one in this Python's environment first, which need not be
    activated.
    """
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def find_nvcc() -> str | None:
    """Path of the CUDA compiler, from CUDACXX, CUDA_HOME or PATH; None when there is none."""
    named = os.environ.get("CUDACXX")
    home = os.environ.get("CUDA_HOME")
    candidates = [
        named,
        f"{home}/bin/nvcc" if home else None,
        shutil.which("nvcc"),
        "/usr/local/cuda/bin/nvcc",
    ]
    return next((path for path in candidates if path and Path(path).exists()), None)


def build_extension(project: Project, device: str) -> Path | None:
    """Compile ``csrc/`` for a device and return the shared library; None when there are no sources.

    device: "cpu" compiles the C++ sources; "cuda" the CUDA sources too, when nvcc is installed.
    Raises ForkError when CMake is missing or the build fails.
    """
    if not sources(project):
        print("csrc/ has no C++ sources: no extension is built", file=sys.stderr)
        return None
    cuda = device == "cuda" and any(project.csrc.rglob("*.cu"))
    nvcc = find_nvcc() if cuda else None
    if cuda and nvcc is None:
        print("warning: nvcc was not found, so the CUDA sources are left out", file=sys.stderr)
    folder = project.build / "extension" / device
    options = [f"-DUNISON_CUDA={'ON' if nvcc else 'OFF'}"]
    if nvcc:
        options.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
    cmake_build(project, folder, options, "_unison_C")
    return folder / "_unison_C.so"


def build_cuda_objects(project: Project) -> list[Path]:
    """Compile the CUDA sources to objects, for every architecture that wheels carry, without
    linking them.

    This needs nvcc but neither a GPU nor a torch built for one, so that any machine can tell
    whether they compile.
    Raises ForkError when nvcc is missing or the build fails.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise ForkError(
            "nvcc was not found; it compiles the CUDA sources (set CUDACXX or CUDA_HOME)"
        )
    folder = project.build / "cuda-objects"
    options = ["-DUNISON_CUDA_OBJECTS=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    cmake_build(project, folder, options, "unison_cuda_objects")
    return sorted(folder.rglob("*.cu.o"))


def cmake_build(project: Project, folder: Path, options: list[str], target: str) -> None:
    """Configure and build one CMake target in ``folder``; the compiler's output is shown only when
    it fails.
    """
    cmake = find_program("cmake")
    if cmake is None:
        raise ForkError("cmake was not found; 'pip install cmake ninja' brings it")
    folder.mkdir(parents=True, exist_ok=True)
    configure = [cmake, "-S", str(project.root), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", *options]
    ninja = find_program("ninja")
    if ninja and not (folder / "Makefile").exists():
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    _run(configure)
    _run(
        [cmake, "--build", str(folder), "--target", target, "--parallel", str(os.cpu_count() or 1)]
    )


def _run(command: list[str]) -> None:
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if result.returncode:
        raise ForkError(f"{' '.join(command)} failed:\n{result.stdout}")
    sys.stderr.write(
        "".join(f"{line}\n" for line in result.stdout.splitlines() if "warning" in line.lower())
    )
