# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of loading writes is a checkpoint as published, of the sizes that it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import benchmark_loading
from tests.support.opuslm import tensors
from vllm.unison.formats.espnet_checkpoint import EspnetCheckpoint, checkpoint_file
from vllm.unison.formats.opuslm_config import read_opuslm_training

HIDDEN, NUM_TEXT = 64, 300


def test_the_checkpoint_is_as_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_loading, "NUM_TEXT", NUM_TEXT)
    small = {"vocab_size": NUM_TEXT, "hidden_size": HIDDEN, "intermediate_size": 96}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    monkeypatch.setattr(benchmark_loading, "BACKBONE", benchmark_loading.BACKBONE | small | heads)
    file = benchmark_loading.write_checkpoint(tmp_path / "model", layers=2)
    training = read_opuslm_training(tmp_path / "model" / "config.yaml")
    found = EspnetCheckpoint(checkpoint_file(tmp_path / "model")).tensors
    assert file == tmp_path / "model" / "model.pth"
    vocabulary = 256 + 5000 + 8 * 1024 + NUM_TEXT + 70
    assert (training.vocabulary_size, training.num_streams) == (vocabulary, 9)
    assert set(found) == {name for name in tensors("olmo2") if not name.startswith("criterion.")}
    assert found["corelm.emb.weight"].shape == (vocabulary, HIDDEN)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    for name, tensor in found.items():
        spread = float(tensor.float().std())
        assert spread == 0 if "norm" in name else 0.015 < spread < 0.025, name
