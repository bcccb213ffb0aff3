# SPDX-License-Identifier: Apache-2.0
"""The modules of the training scripts, which import each other by their bare names."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[2] / "examples" / "train_default_model"
_NAMES = {file.stem for file in FOLDER.glob("*.py")}


def training_modules(*names: str) -> list[ModuleType]:
    """Modules of the scripts' folder, whatever else has the same names.

    Args:
        names: of the modules.
    """
    hidden = {name: sys.modules.pop(name) for name in _NAMES & set(sys.modules)}
    sys.path.insert(0, str(FOLDER))
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(FOLDER))
        for name in _NAMES & set(sys.modules):
            del sys.modules[name]
        sys.modules.update(hidden)
