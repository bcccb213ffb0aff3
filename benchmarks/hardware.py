# SPDX-License-Identifier: Apache-2.0
"""What a benchmark ran on, for its JSON. Imports nothing but the standard library."""

import datetime
import os
import platform
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


def describe_machine() -> dict[str, str | int]:
    """Hardware, date and versions, as a benchmark's JSON has them under "machine"."""
    described: dict[str, str | int] = {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "accelerator": "none",
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    for package in ("torch", "vllm", "transformers"):
        try:
            described[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            described[package] = "not installed"
    return described
