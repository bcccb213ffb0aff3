# SPDX-License-Identifier: Apache-2.0
"""Upstream's V2 model runner on the CPU, its Triton kernels run by Triton's interpreter.

Upstream runs V2 on CPUs with a Triton that compiles for them, which no registry has. The stock
Triton's interpreter runs the same kernels, slowly; it wants a driver that names the CPU.
"""

from __future__ import annotations

import os
from typing import Any

MODEL_RUNNER = "UNISON_TEST_MODEL_RUNNER"
"""Environment variable; set to v2 to run the engines of a test process on the V2 runner."""


def wants_v2() -> bool:
    """Whether this process tests the V2 runner."""
    return os.environ.get(MODEL_RUNNER, "") == "v2"


def use_v2_on_cpu() -> None:
    """Choose V2 for this process and those it starts; before anything imports vllm or triton."""
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    import torch
    import triton.backends
    from triton.backends.driver import DriverBase
    from triton.runtime import driver

    class InterpreterDriver(DriverBase):
        """Says that the current device is the CPU; compiles and launches nothing."""

        @classmethod
        def is_active(cls) -> bool:
            return True

        def map_python_to_cpp_type(self, ty: str) -> str:
            raise NotImplementedError

        def get_current_target(self) -> Any:
            from triton.backends.compiler import GPUTarget

            return GPUTarget("cpu", 0, 1)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

        def get_benchmarker(self) -> Any:
            raise NotImplementedError

        def get_device_interface(self) -> Any:
            return torch.cpu

        def get_current_device(self) -> int:
            return 0

        def set_current_device(self, device: int) -> None:
            assert device == 0

        def get_current_stream(self, device: int) -> int:
            return 0

    compiler = triton.backends.backends["nvidia"].compiler
    triton.backends.backends["cpu"] = triton.backends.Backend(
        compiler=compiler, driver=InterpreterDriver
    )
    driver.set_active(InterpreterDriver())
