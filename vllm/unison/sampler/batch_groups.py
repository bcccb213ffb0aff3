# SPDX-License-Identifier: Apache-2.0
"""The groups of a step's batch, as the sampler takes them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Lanes:
    """The groups of a step's batch: what is sampled once, and for whom.

    Attributes:
        rows: [num_groups, most lanes] int64 rows of each group, the conditional lane first; -1
            where a group has fewer. Every row of the batch is in one group.
        weights: [num_groups, most lanes] float32; 1 for the only lane of a group.
        first_host: [num_groups] the first column of `rows` on the host.
    """

    rows: torch.Tensor
    weights: torch.Tensor
    first_host: NDArray[np.int64]
