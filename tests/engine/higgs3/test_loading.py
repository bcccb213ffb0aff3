# SPDX-License-Identifier: Apache-2.0
"""What an engine makes of a published folder when it starts."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.guidance.conftest import runner_of
from tests.engine.streams.conftest import open_engine
from tests.support.higgs3 import write_higgs3
from vllm import SamplingParams


def test_rotary_tables_are_rounded_in_bfloat16(published: Callable[[str], Path]) -> None:
    with open_engine(published("plain"), dtype="bfloat16", max_num_seqs=2) as llm:
        model = runner_of(llm).model
        tables = [m.cos_sin_cache for m in model.modules() if hasattr(m, "cos_sin_cache")]
        assert tables
        for table in tables:
            assert torch.equal(table, table.to(torch.bfloat16).to(table.dtype))
        # cos(1) at position 1, by the slowest and the fastest of all frequencies.
        assert float(tables[0][1, 0]) == float(torch.tensor(1.0).cos().bfloat16())
        params = SamplingParams(max_tokens=9, temperature=0)
        (output,) = llm.generate("hello", params, use_tqdm=False)
        audio = output.outputs[0].audio
        assert audio is not None and audio.samples.shape == (9 * 960,)


def test_rotary_tables_of_any_type_are_rounded() -> None:
    from vllm.model_executor.models.higgs3 import round_rotary_tables

    inner = torch.nn.Module()
    exact = torch.linspace(-1, 1, 32)
    inner.register_buffer("cos_sin_cache", exact.clone())
    outer = torch.nn.ModuleList([torch.nn.ModuleList([inner])])
    round_rotary_tables(outer)
    assert inner.cos_sin_cache.dtype == torch.float32
    assert torch.equal(inner.cos_sin_cache, exact.bfloat16().float())
    assert not torch.equal(inner.cos_sin_cache, exact)


class _Payload:
    """What leaves a file behind if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> Any:
        return (open, (self._path, "w"))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pickle_in_the_weights_place_is_refused(name: str, tmp_path: Path) -> None:
    folder = write_higgs3(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    sign = tmp_path / "executed"
    (folder / name).write_bytes(pickle.dumps({"body.norm.weight": _Payload(sign)}))
    with pytest.raises(Exception, match=r"(?i)header|weights_only|unsupported|invalid"):  # noqa: SIM117
        with open_engine(folder):
            pass
    assert not sign.exists()
