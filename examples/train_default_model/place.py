# SPDX-License-Identifier: Apache-2.0
"""Where the training computes."""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A processor, and how large the pieces are that suit it.

    Attributes:
        device: of PyTorch.
        scale: steps take so many times as much as on a small processor.
        workers: processes or threads that prepare the steps; 0 prepares them in between.
    """

    device: str = "cpu"
    scale: int = 1
    workers: int = 0

    def __post_init__(self) -> None:
        for name, least in (("scale", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


CPU = Place()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that `place_of` reads."""
    parser.add_argument("--device", default=CPU.device, help="of PyTorch")
    parser.add_argument("--scale", type=int, default=CPU.scale, help="steps are so much larger")
    parser.add_argument("--workers", type=int, default=CPU.workers, help="that prepare steps")


def place_of(options: argparse.Namespace) -> Place:
    """The place that options name."""
    return Place(options.device, options.scale, options.workers)
