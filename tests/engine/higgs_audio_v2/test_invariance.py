# SPDX-License-Identifier: Apache-2.0
"""Contract 2 for Higgs Audio v2: what a request gives does not depend on how it is scheduled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.guidance.conftest import assert_nothing_left
from tests.engine.higgs_audio_v2.cases import MIXED
from tests.engine.higgs_audio_v2.reference import HiggsReference
from tests.engine.streams.conftest import open_engine, preempted  # noqa: F401
from vllm.unison.codecs.base import Codec

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "tokens 16, prefix cache, asynchronous": {"asynchronous": True},
    "tokens 16, prefix cache, preemption": {"num_gpu_blocks_override": 12},
}


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_codes_are_the_same(
    name: str,
    folder: Path,
    reference: HiggsReference,
    codec: Codec,
    preempted: list[int],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = dict(CONFIGURATIONS[name])
    monkeypatch.setenv("UNISON_CPU_ASYNC_SCHEDULING", str(int(options.pop("asynchronous", False))))
    with open_engine(
        folder,
        max_model_len=320,
        max_num_batched_tokens=16,
        enable_prefix_caching=True,
        **options,
    ) as llm:
        for _ in range(2):
            outputs = llm.generate(
                [case.prompt for case in MIXED], [case.params for case in MIXED], use_tqdm=False
            )
            for case, output in zip(MIXED, outputs, strict=True):
                expected = case.expected(reference, codec)
                audio = output.outputs[0].audio
                codes = np.empty((0, 8)) if audio is None else audio.codes
                assert np.array_equal(codes, expected), case
            assert_nothing_left(llm)
        if "num_gpu_blocks_override" in options:
            # In the middle of audio, and some in its tail.
            assert max(preempted, default=0) > 4, preempted
        else:
            assert sum(output.num_cached_tokens or 0 for output in outputs) > 0
