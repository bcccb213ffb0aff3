# SPDX-License-Identifier: Apache-2.0
"""The least that an operator can take: what it must touch and compute, over the machine's speed.

Bytes are those of arguments and results, each counted once. The bandwidth is measured in the same
process: the fastest of some copies of 32 MiB (1 GiB on a GPU), read and write counted. An operator
whose data lies in a nearer cache than those can be faster than this roofline. Operations are
float32 or int32 ones; their rate is taken as two vector instructions per cycle and core, of the
width of the processor's registers. The roofline is the larger of the two times. It leaves out the
cost of a call, about 5 microseconds from Python.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

COPY_BYTES = 32 << 20
GPU_COPY_BYTES = 1 << 30
"""So long that launching the copy does not count, and more than any cache holds."""


@dataclass(frozen=True)
class Machine:
    """What a machine can do.

    Attributes:
        bytes_per_second: of a large copy.
        operations_per_second: 32-bit operations; 0 if not known (a GPU).
    """

    bytes_per_second: float
    operations_per_second: float

    def roofline_ms(self, num_bytes: int, operations: int) -> float:
        """Milliseconds that touching and computing so much takes at least."""
        seconds = num_bytes / self.bytes_per_second
        if self.operations_per_second:
            seconds = max(seconds, operations / self.operations_per_second)
        return seconds * 1e3


def measure_machine(device: str, clock: Callable[[], float] = time.perf_counter) -> Machine:
    """Measure the bandwidth, and look up the rate of operations."""
    num_bytes = GPU_COPY_BYTES if device == "cuda" else COPY_BYTES
    source = torch.zeros(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(15):
        start = clock()
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - start)
    bandwidth = 2 * num_bytes / min(times[3:])
    return Machine(bandwidth, 0.0 if device == "cuda" else _operations_per_second())


def _operations_per_second() -> float:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return 0.0
    text = info.read_text()
    megahertz = [float(line.split(":")[1]) for line in text.splitlines() if "cpu MHz" in line]
    lanes = 16 if "avx512f" in text else 8 if "avx2" in text else 4
    return torch.get_num_threads() * lanes * 2 * max(megahertz, default=0.0) * 1e6
