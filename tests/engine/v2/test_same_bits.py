# SPDX-License-Identifier: Apache-2.0
"""The V1 and the V2 runner give the same tokens, codes and samples, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.engine.guidance.cases import MIXED
from tests.engine.guidance.checkpoints import CHECKPOINTS
from tests.support.interpreted_triton import MODEL_RUNNER


def _generate(checkpoint: Path, output: Path, runner: str) -> dict[str, np.ndarray]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.v2.generate", str(checkpoint), str(output)],
        cwd=Path(__file__).parents[3],
        env=os.environ | {MODEL_RUNNER: runner},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(np.load(output))


@pytest.mark.slow
def test_both_runners_give_the_same_bits(tmp_path: Path) -> None:
    """Plain, seeded, negative prompts, intervals, three lanes; in chunks, both kinds of steps."""
    checkpoint = CHECKPOINTS["audio_only"](tmp_path / "model")
    v1, v2 = (_generate(checkpoint, tmp_path / f"{name}.npz", name) for name in ("v1", "v2"))
    assert v1.keys() == v2.keys()
    assert sum(key.endswith("/tokens") for key in v1) == 2 * len(MIXED)
    assert sum(len(v1[key]) > 0 for key in v1 if key.endswith("/samples")) >= len(MIXED)
    for key, values in v1.items():
        assert values.dtype == v2[key].dtype and np.array_equal(values, v2[key]), key
