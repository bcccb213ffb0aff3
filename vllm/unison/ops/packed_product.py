# SPDX-License-Identifier: Apache-2.0
"""Products with a weight that upstream's CPU kernels keep packed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm


def packed_product(
    weight: torch.Tensor, bias: torch.Tensor | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Multiplication by a weight [columns, hidden_size] on the CPU.

    For few rows the product is bound by reading the weight, which is read about twice as fast so.
    """
    layer = nn.Module()
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=True)

    def multiply(hidden_states: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = layer.cpu_linear(hidden_states, layer.weight, layer.bias)
        return product

    return multiply
