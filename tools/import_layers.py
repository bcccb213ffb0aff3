# SPDX-License-Identifier: Apache-2.0
"""Checks which folder of the overlay imports which, by the contracts in pyproject.toml.

    python -S tools/import_layers.py

Without `site` (-S) no development install is on the path, so that `vllm` is this repository's
folder of files and not upstream's package, which is too large to look through for this.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Check the contracts; 0 if they hold."""
    packages = Path(sys.executable).parents[1] / "lib"
    site = next(packages.glob("python3*/site-packages"))
    sys.path[:] = [str(ROOT), *sys.path[1:], str(site)]
    from importlinter.cli import lint_imports

    return lint_imports(no_cache=True, no_logo=True)


if __name__ == "__main__":
    sys.exit(main())
