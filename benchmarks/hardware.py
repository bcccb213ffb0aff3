# SPDX-License-Identifier: Apache-2.0
"""What a benchmark ran on, for its JSON. Imports nothing but the standard library."""

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path


def processor_name() -> str:
    """The processor's name, as the operating system gives it."""
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        for line in cpu_info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def accelerator_name() -> str:
    """Name and memory of the GPUs that the driver lists; "none" without a driver."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return "; ".join(line.strip() for line in listed.splitlines() if line.strip()) or "none"


def describe_machine() -> dict[str, str | int]:
    """Hardware, date and versions, as a benchmark's JSON has them under "machine"."""
    described: dict[str, str | int] = {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "accelerator": accelerator_name(),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    for package in ("torch", "vllm", "transformers"):
        try:
            described[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            described[package] = "not installed"
    return described


def describe_engine() -> dict[str, str | int]:
    """Version and threads of a process that runs an engine; whichever package it has."""
    import torch

    import vllm

    return {"vllm": vllm.__version__, "threads": torch.get_num_threads()}


def describe_transformers() -> dict[str, str | int]:
    """Version and threads of a process that runs transformers."""
    import torch
    import transformers

    return {"transformers": transformers.__version__, "threads": torch.get_num_threads()}
