# SPDX-License-Identifier: Apache-2.0
"""How the host's values reach the device in a step."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray


def upload(values: NDArray[Any], device: torch.device) -> torch.Tensor:
    """A tensor of `values` on `device`, without waiting for the device.

    A copy from pageable memory would make the host wait until the device has caught up; pinned
    memory comes from PyTorch's cache, which does not give it away before the copy has run. On the
    CPU the tensor shares the array's memory.
    """
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
