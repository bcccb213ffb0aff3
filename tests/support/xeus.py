# SPDX-License-Identifier: Apache-2.0
"""The small model with XEUS's structure that lies in the repository, and what ESPnet makes with it.

`tests/references/xeus/make_reference.py` wrote both.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

FOLDER = Path(__file__).parents[1] / "references" / "xeus"
WEIGHTS, CENTERS, SETTINGS = "xeus_checkpoint_new.pth", "km_opus_lm.mdl", "config.yaml"
NUM_UNITS = 40


def expected() -> dict[str, NDArray[Any]]:
    """The clip's samples (int16), ESPnet's states and units of it, and the centers."""
    with np.load(FOLDER / "expected.npz") as arrays:
        return dict(arrays)


def clip() -> torch.Tensor:
    """float32 [num_samples] samples of the clip."""
    return torch.from_numpy(expected()["samples"] / np.float32(2**15))


def copy_model(to: Path) -> Path:
    """A folder of its own with the model's files."""
    return Path(shutil.copytree(FOLDER / "model", to))


def settings() -> dict[str, Any]:
    """The model's settings."""
    return dict(yaml.safe_load((FOLDER / "model" / SETTINGS).read_text()))


def no_download(*_: Any, **__: Any) -> str:
    """In the place of the hub's client, for a machine without a network."""
    raise OSError("the hub\ncannot be reached")
