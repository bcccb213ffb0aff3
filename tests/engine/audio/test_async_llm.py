# SPDX-License-Identifier: Apache-2.0
"""Audio out of AsyncLLM, whose engine is another process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import prometheus_client
import pytest

from tests.engine.audio.streams import SMALL_CHUNKS, assert_stream_is
from tests.engine.streams.cases import BLOCK_SIZE, MAX_MODEL_LEN
from vllm import AsyncEngineArgs, CompletionOutput, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.unison.testing.random_checkpoint import write_random_speech_lm
from vllm.v1.engine.async_llm import AsyncLLM

FINAL_ONLY, DELTA = RequestOutputKind.FINAL_ONLY, RequestOutputKind.DELTA
NUM_FRAMES = 60
METRICS = (
    "vllm:audio_seconds_total",
    "vllm:time_to_first_audio_seconds_count",
    "vllm:audio_inter_chunk_seconds_count",
    "vllm:audio_real_time_factor_count",
)


def _metrics() -> dict[str, float]:
    samples = [s for m in prometheus_client.REGISTRY.collect() for s in m.samples]
    return {name: sum(s.value for s in samples if s.name == name) for name in METRICS}


async def _outputs(engine: AsyncLLM, index: int, kind: RequestOutputKind) -> list[CompletionOutput]:
    params = SamplingParams(
        temperature=0.8, seed=index, max_tokens=NUM_FRAMES, ignore_eos=True, output_kind=kind
    )
    found = []
    async for output in engine.generate(f"hello {index}", params, f"{kind.name}-{index}"):
        found.append(output.outputs[0])
        if kind == DELTA and index % 2:
            # A consumer that falls behind gets what it missed at once.
            for _ in range(20):
                await asyncio.sleep(0)
    return found


async def _cancelled(engine: AsyncLLM) -> None:
    params = SamplingParams(max_tokens=200, ignore_eos=True, output_kind=DELTA)
    async for output in engine.generate("stop me", params, "cancelled"):
        if output.outputs[0].audio is not None:
            break


async def _run(engine: AsyncLLM) -> None:
    whole = await asyncio.gather(*[_outputs(engine, i, FINAL_ONLY) for i in range(5)])
    assert [len(outputs) for outputs in whole] == [1] * 5
    before = _metrics()
    streams, cumulative, _ = await asyncio.gather(
        asyncio.gather(*[_outputs(engine, i, DELTA) for i in range(5)]),
        _outputs(engine, 0, RequestOutputKind.CUMULATIVE),
        _cancelled(engine),
    )
    for outputs, (expected,) in zip(streams, whole, strict=True):
        assert_stream_is(outputs, expected, DELTA)
    assert_stream_is(cumulative, whole[0][0], RequestOutputKind.CUMULATIVE)
    # A consumer that falls behind gets several pieces as one, so what the engine sent is counted:
    # of each stream pieces that follow another one, which the first cannot wait for.
    after = _metrics()
    counted = {name: after[name] - before[name] for name in METRICS}
    assert counted["vllm:audio_seconds_total"] >= 6 * NUM_FRAMES * 320 / 16000
    assert counted["vllm:time_to_first_audio_seconds_count"] == 7
    assert counted["vllm:audio_inter_chunk_seconds_count"] >= 6 * 4
    assert counted["vllm:audio_real_time_factor_count"] >= 6
    last = await _outputs(engine, 2, FINAL_ONLY)
    np.testing.assert_array_equal(last[0].audio.samples, whole[2][0].audio.samples)  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.processes
def test_deltas_cross_the_process_boundary(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": 16,
        "block_size": BLOCK_SIZE,
        "additional_config": SMALL_CHUNKS,
    }

    async def main() -> None:
        folder = write_random_speech_lm(tmp_path / "model")
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(folder), **options))
        try:
            await _run(engine)
        finally:
            engine.shutdown()

    asyncio.run(main())
