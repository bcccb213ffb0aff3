# SPDX-License-Identifier: Apache-2.0
"""XEUS's settings and weights: what is read of them, and what is refused."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support import xeus
from vllm.unison.formats.xeus_format import XeusFormat, read_xeus_format, read_xeus_weights

LARGE = {
    "output_size": 1024,
    "attention_heads": 8,
    "cgmlp_linear_units": 4096,
    "linear_units": 4096,
    "num_blocks": 19,
}
"""Where the published settings differ from the small model's."""


def _read(folder: Path, settings: dict[str, Any]) -> XeusFormat:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(settings))
    return read_xeus_format(file)


def _changed(name: str, value: Any) -> dict[str, Any]:
    settings = xeus.settings()
    *outer, key = name.split(".")
    inner = settings
    for part in outer:
        inner = inner[part]
    inner[key] = value
    return settings


def test_the_published_settings_are_a_model_of_577_million_weights(tmp_path: Path) -> None:
    settings = xeus.settings()
    settings["encoder_conf"].update(LARGE)
    settings["preencoder_conf"]["output_size"] = 1024
    del settings["frontend_conf"]["shapes"]
    shape = _read(tmp_path, settings)
    assert shape.convolutions == (
        (512, 10, 5), (512, 3, 2), (512, 3, 2), (512, 3, 2), (512, 3, 2), (512, 2, 2), (512, 2, 2)
    )  # fmt: skip
    assert (shape.samples_per_frame, shape.min_samples) == (320, 400)
    assert (shape.num_layers, shape.num_heads) == (19, 8)
    # The head that training has besides: a projection to 768 channels and 2048 classes.
    head = 768 * (1024 + 1) + 2048 * 768
    total = head + sum(map(math.prod, shape.expected.shapes.values()))
    # The authors' 577 million, in a file of 2.31 GB.
    assert total == pytest.approx(577e6, abs=1e6) and total * 4 == pytest.approx(2.31e9, abs=5e6)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("frontend", "default", r"frontend must be 'wav2vec_cnn', not 'default'"),
        ("frontend_conf.normalize_audio", False, r"frontend_conf.normalize_audio must be True"),
        ("frontend_conf.fs", 8000, r"fs must be 16000 or '16k' or '16000', not 8000"),
        ("encoder", "conformer", r"encoder must be 'e_branchformer', not 'conformer'"),
        ("encoder_conf.pos_enc_layer_type", "rel_pos", r"pos_enc_layer_type must be 'conv'"),
        ("encoder_conf.use_ffn", 1, r"encoder_conf.use_ffn must be True, not 1"),
        ("encoder_conf.num_blocks", 0, r"num_blocks must be an integer of at least 1, not 0"),
        ("encoder_conf.output_size", 48, r"preencoder_conf.output_size must be 48"),
        ("encoder_conf.attention_heads", 5, r"output_size must be divisible by 5, not 32"),
        ("encoder_conf.merge_conv_kernel", 30, r"merge_conv_kernel must be odd, not 30"),
        ("frontend_conf.shapes", [[16, 10]], r"shapes must be a list of \[channels, kernel, "),
    ],
)
def test_settings_that_are_not_xeus_are_refused(
    name: str, value: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        _read(tmp_path, _changed(name, value))


def test_settings_that_are_left_out_are_espnets(tmp_path: Path) -> None:
    settings = xeus.settings()
    del settings["encoder_conf"]["gate_activation"]
    assert _read(tmp_path, settings) == _read(tmp_path, xeus.settings())
    # ESPnet would encode positions in another way.
    del settings["encoder_conf"]["pos_enc_layer_type"]
    with pytest.raises(ValueError, match="pos_enc_layer_type must be 'conv', not 'rel_pos'"):
        _read(tmp_path, settings)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [\n"])
def test_files_that_are_no_settings_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match="must be YAML of settings by name"):
        read_xeus_format(tmp_path / "config.yaml")


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return dict(torch.load(xeus.FOLDER / "model" / xeus.WEIGHTS, weights_only=True))


def _saved(weights: Any, folder: Path) -> dict[str, torch.Tensor]:
    torch.save(weights, folder / "model.pth")
    return read_xeus_weights(folder / "model.pth", _read(folder, xeus.settings()))


def test_weights_are_the_encoders_in_float32(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    assert {"global_step", "util_modules.mask.mask_embedding"} < set(weights)
    read = _saved({name: tensor.double() for name, tensor in weights.items()}, tmp_path)
    assert {name.split(".")[0] for name in read} == {"frontend", "preencoder", "encoder"}
    assert {tensor.dtype for tensor in read.values()} == {torch.float32}
    assert torch.equal(read["encoder.after_norm.bias"], weights["encoder.after_norm.bias"])


def test_both_names_of_a_weight_in_two_parts_are_known(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    older = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in weights.items()
    }
    assert set(older) != set(weights)
    read, expected = _saved(older, tmp_path), _saved(weights, tmp_path)
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in read)


def test_missing_unknown_and_wrong_tensors_are_named(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    name = "encoder.encoders.1.merge_proj.weight"
    with pytest.raises(ValueError, match=f"lacks the tensor '{name}'"):
        _saved({key: tensor for key, tensor in weights.items() if key != name}, tmp_path)
    with pytest.raises(ValueError, match=r"that the model lacks: 'encoder\.encoders\.2\.x'"):
        _saved({**weights, "encoder.encoders.2.x": torch.zeros(1)}, tmp_path)
    with pytest.raises(
        ValueError, match=rf"'{name}' must have shape \[32, 64\], as config.yaml says, not \[3\]"
    ):
        _saved({**weights, name: torch.zeros(3)}, tmp_path)


class _Executes:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def test_a_pickle_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "model.pth"
    file.write_bytes(pickle.dumps({"a": _Executes()}))
    with pytest.raises(ValueError, match=r"model.pth is not a file of weights"):
        read_xeus_weights(file, _read(tmp_path, xeus.settings()))
    assert not Path("executed").exists()
