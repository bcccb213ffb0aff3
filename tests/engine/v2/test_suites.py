# SPDX-License-Identifier: Apache-2.0
"""Some of the engine's tests of streams, guidance and audio, on upstream's V2 runner.

They do what `test_same_bits.py` does not: preemption, streamed audio, text-only models. All of them
run with `UNISON_TEST_MODEL_RUNNER=v2 pytest tests/engine`, as in the nightly workflow.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.interpreted_triton import MODEL_RUNNER

STREAMS = "tests/engine/streams"
GROUPS = "tests/engine/guidance/test_groups.py"
TEXT = "tests/engine/guidance/test_text_only.py"
AUDIO = "tests/engine/audio/test_streaming.py"
TESTS = [
    f"{STREAMS}/test_text_only.py::test_the_runners_class_is_upstreams_own",
    f"{GROUPS}::test_a_pair_is_not_split_by_preemption[asynchronous]",
    f"{TEXT}::test_greedy_tokens_equal_a_loop_over_transformers[plain]",
    f"{AUDIO}::test_guided_requests_and_several_samples[asynchronous-RequestOutputKind.DELTA]",
    f"{AUDIO}::test_all_are_preempted_at_once[asynchronous-18]",
]


@pytest.mark.slow
def test_on_v2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *TESTS],
        cwd=Path(__file__).parents[3],
        env=os.environ | {MODEL_RUNNER: "v2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and " failed" not in done.stdout
