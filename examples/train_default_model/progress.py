# SPDX-License-Identifier: Apache-2.0
"""Loss curves: written as JSON lines while training runs, drawn as PNG."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from torch import nn


def save_atomically(state: dict[str, Any], file: Path) -> None:
    """`torch.save` that leaves either the old file or the new one, whenever it is interrupted."""
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(file)


def save_arrays(file: Path, **arrays: NDArray) -> None:
    """`numpy.savez` that leaves the whole file or none, whenever it is interrupted.

    Args:
        file: .npz; its folder is made if missing.
        arrays: by name.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial.npz")
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    partial.replace(file)


@contextmanager
def with_weights(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Give a module other weights for a while.

    Args:
        module: has its own again afterwards.
        weights: the others; what they lack stays as it is.
    """
    own = {name: weight.clone() for name, weight in module.state_dict().items()}
    module.load_state_dict(own | dict(weights))
    try:
        yield
    finally:
        module.load_state_dict(own)


def replace_text(file: Path, text: str) -> None:
    """Write a file that is either the old or the new one, whenever it is interrupted."""
    partial = file.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(file)


def last_step(curve: Path) -> int:
    """Steps that a `LossLog` has; none of a training that has not begun."""
    lines = curve.read_text().splitlines() if curve.exists() else []
    return int(json.loads(lines[-1])["step"]) + 1 if lines else 0


class LossLog:
    """Values by step.

    Args:
        path: without suffix; `.jsonl` and `.png` are written.
    """

    def __init__(self, path: Path) -> None:
        self._lines = path.with_suffix(".jsonl")
        self._picture = path.with_suffix(".png")
        self._rows: list[dict[str, float]] = []

    def resume(self, step: int) -> None:
        """Keep what an earlier run wrote before a step; nothing where it ran elsewhere."""
        if not self._lines.exists():
            return
        rows = [json.loads(line) for line in self._lines.read_text().splitlines()]
        self._rows = [row for row in rows if row["step"] < step]
        self._lines.write_text("".join(json.dumps(row) + "\n" for row in self._rows))

    def add(self, step: int, values: dict[str, float]) -> None:
        """Note the values of a step."""
        row = {"step": step} | {name: round(value, 5) for name, value in values.items()}
        if not self._rows:
            self._lines.unlink(missing_ok=True)
        self._rows.append(row)
        with self._lines.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def plot(self, names: list[str]) -> None:
        """Draw a panel for each value: every step, and the mean of 50 neighbours."""
        figure, panels = plt.subplots(1, len(names), figsize=(4 * len(names), 3), squeeze=False)
        for panel, name in zip(panels[0], names, strict=True):
            known = [(row["step"], row[name]) for row in self._rows if name in row]
            if not known:
                continue
            steps, values = np.array(known).T
            panel.plot(steps, values, color="#c9d7e8", linewidth=0.5)
            width = min(50, len(values))
            smooth = np.convolve(values, np.ones(width) / width, "valid")
            panel.plot(steps[width - 1 :], smooth, color="#1f4e8c")
            panel.set_title(name)
            panel.set_xlabel("step")
        figure.tight_layout()
        figure.savefig(self._picture, dpi=110)
        plt.close(figure)
