# SPDX-License-Identifier: Apache-2.0
"""Compiling the fork's C++ and CUDA sources with CMake."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tools.fork.project import ForkError, Project


def find_program(name: str) -> str | None:
    """Path of a build program, of this Python's environment first (it need not be activated)."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def find_nvcc() -> str | None:
    """Path of the CUDA compiler, from CUDACXX, CUDA_HOME or PATH; None when there is none."""
    home = os.environ.get("CUDA_HOME")
    candidates = [os.environ.get("CUDACXX"), home and f"{home}/bin/nvcc", shutil.which("nvcc")]
    candidates.append("/usr/local/cuda/bin/nvcc")
    return next((path for path in candidates if path and Path(path).exists()), None)


def build_extension(project: Project, device: str) -> Path | None:
    """Compile ``csrc/`` for a device and return the shared library; None when there are no sources.

    device: "cpu" compiles the C++ sources; "cuda" the CUDA sources too, when nvcc is installed.
    Raises ForkError when CMake is missing or the build fails.
    """
    if not any(project.csrc.rglob("*.cpp")):
        print("csrc/ has no C++ sources: no extension is built", file=sys.stderr)
        return None
    cuda = device == "cuda" and any(project.csrc.rglob("*.cu"))
    nvcc = find_nvcc() if cuda else None
    if cuda and nvcc is None:
        print("warning: nvcc was not found, so the CUDA sources are left out", file=sys.stderr)
    folder = project.build / "extension" / device
    _cmake(project, folder, [f"-DUNISON_CUDA={'ON' if nvcc else 'OFF'}"], nvcc, "_unison_C")
    return folder / "_unison_C.so"


def build_cuda_objects(project: Project, architecture: str | None = None) -> list[Path]:
    """Compile the CUDA sources to objects, unlinked: it takes nvcc, but neither a GPU nor a torch
    for one, to tell whether they compile.

    architecture: one of CMake's names, such as "80-real"; None: every one that wheels carry.
    Raises ForkError when nvcc is missing or the build fails.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise ForkError("nvcc was not found, the CUDA compiler (set CUDACXX or CUDA_HOME)")
    folder, options = project.build / "cuda-objects", ["-DUNISON_CUDA_OBJECTS=ON"]
    if architecture is not None:
        folder = folder.with_name(f"cuda-objects-{architecture}")
        options.append(f"-DUNISON_CUDA_ARCHITECTURES={architecture}")
    _cmake(project, folder, options, nvcc, "unison_cuda_objects")
    return sorted(folder.rglob("*.cu.o"))


def _cmake(
    project: Project, folder: Path, options: list[str], nvcc: str | None, target: str
) -> None:
    """Build one target in ``folder``; show all output when it fails, warnings otherwise."""
    cmake, ninja = find_program("cmake"), find_program("ninja")
    if cmake is None:
        raise ForkError("cmake was not found; 'pip install cmake ninja' brings it")
    folder.mkdir(parents=True, exist_ok=True)
    configure = [cmake, "-S", str(project.root), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", *options]
    if nvcc:
        configure.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
    if ninja and not (folder / "Makefile").exists():
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    build = [cmake, "--build", str(folder), "--target", target]
    for command in (configure, [*build, "--parallel", str(os.cpu_count() or 1)]):
        result = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if result.returncode:
            raise ForkError(f"{' '.join(command)} failed:\n{result.stdout}")
        for line in result.stdout.splitlines():
            if "warning" in line.lower():
                print(line, file=sys.stderr)
