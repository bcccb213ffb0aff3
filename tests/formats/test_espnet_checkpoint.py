# SPDX-License-Identifier: Apache-2.0
"""ESPnet's files of weights: their containers, what is refused, and the memory that they take."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vllm.unison.formats.espnet_checkpoint import (
    DEEPSPEED_FILE,
    EspnetCheckpoint,
    checkpoint_file,
)

WEIGHTS = {
    "model.a": torch.arange(6.0).reshape(2, 3),
    "model.b": torch.tensor([1.5], dtype=torch.bfloat16),
    "head": torch.zeros(0),
}
OF_DEEPSPEED = {"ds_version": "0.17.0", "param_shapes": [{"model.a": torch.Size([2, 3])}]}


@pytest.mark.parametrize("package", [WEIGHTS, {"module": WEIGHTS, **OF_DEEPSPEED}])
@pytest.mark.parametrize("is_zip", [True, False])
def test_tensors_are_read_as_they_are_stored(
    package: dict[str, Any], is_zip: bool, tmp_path: Path
) -> None:
    torch.save(package, tmp_path / "model.pt", _use_new_zipfile_serialization=is_zip)
    checkpoint = EspnetCheckpoint(checkpoint_file(tmp_path))
    assert list(checkpoint.tensors) == list(WEIGHTS)
    for _ in range(2):
        for (name, tensor), expected in zip(checkpoint.in_turn(), WEIGHTS.items(), strict=True):
            assert name == expected[0] and tensor.dtype == expected[1].dtype
            assert torch.equal(tensor, expected[1])
    assert [name for name, _ in checkpoint.in_turn("model.")] == ["a", "b"]


def _file(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).touch()
    return checkpoint_file(folder)


def test_the_one_file_of_weights_is_found(tmp_path: Path) -> None:
    others = ("train.yaml", "README.md", "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    for name in ("model.pt", "base.pt", "2epoch.pth", DEEPSPEED_FILE):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        assert _file(folder, name, *others).name == name


def test_no_file_or_several_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one file of weights, \*\.pt or \*\.pth, not none"):
        checkpoint_file(tmp_path)
    with pytest.raises(ValueError, match=r"not \['base.pt', 'model.pth'\]"):
        _file(tmp_path, "model.pth", "base.pt")


@pytest.mark.parametrize(
    "name", ["mp_rank_01_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"]
)
def test_weights_that_are_split_over_ranks_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} is the part of one rank"):
        _file(tmp_path, DEEPSPEED_FILE, name)


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


def test_a_pickle_that_is_not_weights_is_refused_and_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "model.pt"
    for write in (
        lambda: file.write_bytes(pickle.dumps(_Bomb())),
        lambda: torch.save({"module": WEIGHTS, "more": _Bomb()}, file),
        lambda: file.write_bytes(b"PK\x03\x04 and then nothing"),
        lambda: file.write_bytes(b""),
    ):
        write()
        with pytest.raises(ValueError, match=r"model\.pt is not a file of weights"):
            EspnetCheckpoint(file)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("package", [{}, [1], {"module": {}}, {"module": {"a": 1}}, {"epoch": 3}])
def test_a_file_without_tensors_by_name_is_refused(package: Any, tmp_path: Path) -> None:
    torch.save(package, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt must hold tensors by name, or an object"):
        EspnetCheckpoint(tmp_path / "model.pt")


_PEAK = """
import sys
from pathlib import Path
import torch
from vllm.unison.formats.espnet_checkpoint import EspnetCheckpoint

def memory(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(kind)).split()[1])

checkpoint = EspnetCheckpoint(Path(sys.argv[1]))
model = {name: torch.empty_like(t) for name, t in checkpoint.tensors.items()}
before = memory("VmRSS")
for name, tensor in checkpoint.in_turn():
    model[name].copy_(tensor)
print(memory("VmHWM") - before, sum(t.nbytes for t in model.values()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's counters")
def test_loading_takes_the_memory_of_the_weights_once(tmp_path: Path) -> None:
    weights = {f"layer.{i}": torch.full((2048, 2048), float(i)) for i in range(16)}
    torch.save({"module": weights}, tmp_path / "model.pt")
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(tmp_path / "model.pt")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak, size = map(int, done.stdout.split())
    assert size <= peak <= 1.2 * size
