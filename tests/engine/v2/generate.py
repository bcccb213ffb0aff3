# SPDX-License-Identifier: Apache-2.0
"""Generate guided and plain requests: `python -m tests.engine.v2.generate CHECKPOINT OUTPUT.npz`.

On the model runner that the environment names (tests/support/interpreted_triton.py).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from tests.support import interpreted_triton

if interpreted_triton.wants_v2():
    interpreted_triton.use_v2_on_cpu()

import numpy as np

from tests.engine.guidance.cases import MIXED
from tests.engine.streams.conftest import open_engine
from vllm.unison.compatibility import ASYNC_ON_CPU


def main(folder: str, output: str) -> None:
    """Write, per request and configuration, the tokens of stream 0, the codes and the samples."""
    found: dict[str, Any] = {}
    for name, asynchronous in (("synchronous", "0"), ("asynchronous", "1")):
        os.environ[ASYNC_ON_CPU] = asynchronous
        with open_engine(Path(folder), max_num_batched_tokens=16) as llm:
            core = llm.llm_engine.engine_core.engine_core  # type: ignore[attr-defined]
            runner = core.model_executor.driver_worker.worker.model_runner
            assert hasattr(runner, "model_state") == interpreted_triton.wants_v2()
            requests = llm.generate(
                [case.prompt for case in MIXED], [case.params for case in MIXED], use_tqdm=False
            )
        for number, request in enumerate(requests):
            completion = request.outputs[0]
            key = f"{name}/{number}"
            found[f"{key}/tokens"] = np.array(completion.token_ids)
            if completion.audio is not None:
                found[f"{key}/codes"] = completion.audio.codes
                found[f"{key}/samples"] = completion.audio.samples
    np.savez(output, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
