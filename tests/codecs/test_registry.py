# SPDX-License-Identifier: Apache-2.0
"""Finding and loading codecs, and the random checkpoints."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from vllm.unison.codecs import (
    Codec,
    load_codec,
    register_codec,
    registered_model_types,
    registry,
)
from vllm.unison.testing.random_codec import write_random_codec

Checkpoint = Callable[[str], Path]


class SilentCodec(Codec):
    """Every clip is code 0, code 0 is silence."""

    def __init__(self, num_codebooks: int) -> None:
        super().__init__(
            sample_rate=8000,
            samples_per_frame=100,
            num_codebooks=num_codebooks,
            codebook_size=1,
            device=torch.device("cpu"),
        )

    @classmethod
    def from_pretrained(cls, name_or_path: str, **options: Any) -> "SilentCodec":
        return cls(options["num_codebooks"] or 2)

    def _encode(self, samples: torch.Tensor) -> torch.Tensor:
        return torch.zeros(self.num_frames(samples.shape[0]), self.num_codebooks)

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        return torch.zeros(codes.shape[0], 7 + self.num_samples(codes.shape[1]))


def test_registered_model_types() -> None:
    assert registered_model_types() == [
        "dac",
        "encodec",
        "espnet_dac",
        "higgs_audio_v2_tokenizer",
        "mimi",
        "spectral_codec",
        "xcodec",
    ]


def test_register_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_CODECS", dict(registry._CODECS))
    (tmp_path / "config.json").write_text('{"model_type": "silent"}')
    register_codec("silent", SilentCodec)
    register_codec("silent", SilentCodec)
    codec = load_codec(str(tmp_path), num_codebooks=3)
    assert isinstance(codec, SilentCodec)
    assert codec.encode(torch.ones(101)).tolist() == [[0, 0, 0], [0, 0, 0]]
    # Surplus samples of a decoder are cut at the end.
    assert codec.decode(torch.zeros(2, 3, dtype=torch.int32)).shape == (200,)
    with pytest.raises(ValueError, match="model_type 'dac' is already registered"):
        register_codec("dac", SilentCodec)


def test_wrong_frame_count_of_a_codec_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = SilentCodec(2)
    monkeypatch.setattr(codec, "_encode", lambda samples: torch.zeros(1, 2))
    with pytest.raises(RuntimeError, match=r"gave codes of shape \[1, 2\], expected \[2, 2\]"):
        codec.encode(torch.ones(101))


def test_unknown_model_type(tmp_path: Path) -> None:
    accepted = re.escape(f"must be one of {registered_model_types()}")
    for config, shown in (({"model_type": "llama"}, "'llama'"), ({"hidden_size": 8}, "None")):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=f"codec .* has model_type {shown}, {accepted}"):
            load_codec(str(tmp_path))


def test_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent/deep/path"):
        with pytest.raises(ValueError, match=r"codec .* must be a folder with a config.json or a"):
            load_codec(str(tmp_path / name))


@pytest.mark.parametrize(
    ("kind", "accepted"),
    [
        ("dac", "[1, 12]"),
        ("encodec", "[1, 32]"),
        ("higgs_audio_v2_tokenizer", "[1, 8]"),
        ("mimi", "[1, 32]"),
        ("xcodec", "[1, 8]"),
    ],
)
def test_num_codebooks_out_of_range(kind: str, accepted: str, checkpoint: Checkpoint) -> None:
    bad: Any
    for bad in (0, -1, 33, 2.0, True, "2"):
        message = re.escape(f"num_codebooks must be an integer in {accepted}, got {bad!r}")
        with pytest.raises(ValueError, match=message):
            load_codec(str(checkpoint(kind)), num_codebooks=bad)


def test_mimi_needs_its_semantic_codebooks(tmp_path: Path) -> None:
    write_random_codec(tmp_path, "mimi", num_semantic_quantizers=2, num_quantizers=4)
    with pytest.raises(ValueError, match=r"num_codebooks must be .* \[2, 4\], got 1"):
        load_codec(str(tmp_path), num_codebooks=1)
    assert load_codec(str(tmp_path), num_codebooks=2).encode(torch.ones(1920)).shape == (1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: weights.pop("decoder.conv2.bias"),
            r"lacks the tensor 'decoder\.conv2\.bias'$",
        ),
        (
            lambda weights: weights.update({"decoder.conv9.bias": torch.ones(1)}),
            r"holds what DacModel lacks: the tensor 'decoder\.conv9\.bias'$",
        ),
        (
            lambda weights: weights.update({"decoder.conv2.bias": torch.ones(2)}),
            r"the tensor 'decoder\.conv2\.bias' must have shape \[1\], .* not \[2\]$",
        ),
    ],
)
def test_tensors_that_do_not_fit(
    change: Callable[[dict[str, torch.Tensor]], None],
    message: str,
    checkpoint: Checkpoint,
    tmp_path: Path,
) -> None:
    weights = safetensors.torch.load_file(checkpoint("dac") / "model.safetensors")
    change(weights)
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((checkpoint("dac") / "config.json").read_bytes())
    with pytest.raises(ValueError, match=message):
        load_codec(str(tmp_path))


@pytest.mark.parametrize("kind", ["encodec", "xcodec"])
def test_older_names_of_normalized_weights(
    kind: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Published checkpoints call the parts of a normalized weight weight_g and weight_v."""
    weights = safetensors.torch.load_file(checkpoint(kind) / "model.safetensors")
    renamed = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): weight
        for name, weight in weights.items()
    }
    assert renamed.keys() != weights.keys()
    safetensors.torch.save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((checkpoint(kind) / "config.json").read_bytes())
    samples = torch.linspace(-20, 20, 4000).sin()
    expected = load_codec(str(checkpoint(kind)))
    codec = load_codec(str(tmp_path))
    assert torch.equal(codec.encode(samples), expected.encode(samples))


def test_hub_id_reaches_the_library(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, Any]] = []
    load_config = transformers.PreTrainedConfig.get_config_dict
    load_model = transformers.DacModel.from_pretrained

    def config_from_hub(name: str, **options: Any) -> Any:
        asked.append(("config", name, options["revision"]))
        return load_config(checkpoint("dac"))

    def model_from_hub(name: str, **options: Any) -> Any:
        asked.append(("model", name, options.pop("revision")))
        assert options["dtype"] == torch.float32
        return load_model(checkpoint("dac"), **options)

    hub = SimpleNamespace(get_config_dict=config_from_hub)
    monkeypatch.setattr(registry, "PreTrainedConfig", hub)
    monkeypatch.setattr(transformers.DacModel, "from_pretrained", model_from_hub)
    codec = load_codec("someone/some-dac", revision="v2", num_codebooks=4)
    assert codec.num_codebooks == 4
    load_codec("someone/some-dac")
    assert asked == [
        ("config", "someone/some-dac", "v2"),
        ("model", "someone/some-dac", "v2"),
        ("config", "someone/some-dac", "main"),
        ("model", "someone/some-dac", "main"),
    ]


def test_hub_id_from_the_cache(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A hub id that has been downloaded loads without a network; another is a clear error."""
    repository = tmp_path / "models--someone--some-dac"
    shutil.copytree(checkpoint("dac"), repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    # The library reads these variables when it is imported.
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    script = """
from vllm.unison.codecs import load_codec
print(load_codec("someone/some-dac").num_codebooks)
try:
    load_codec("someone/other")
except ValueError as error:
    print(str(error).split(":")[0])
"""
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-2:] == [
        "12",
        "codec 'someone/other' must be a folder with a config.json or a hub id",
    ]


def test_default_dtype_does_not_matter(kind: str, checkpoint: Checkpoint) -> None:
    """An engine loads its models while PyTorch's default type is that of the language model."""
    expected = load_codec(str(checkpoint(kind)))
    torch.set_default_dtype(torch.bfloat16)
    try:
        codec = load_codec(str(checkpoint(kind)))
    finally:
        torch.set_default_dtype(torch.float32)
    samples = torch.linspace(-0.5, 0.5, 4000).sin()
    codes = expected.encode(samples)
    assert torch.equal(codec.encode(samples), codes)
    assert torch.equal(codec.decode(codes), expected.decode(codes))


def test_random_checkpoint_repeats(kind: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    same = write_random_codec(tmp_path / "same", kind, seed=1)
    other = write_random_codec(tmp_path / "other", kind, seed=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    names = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert {path.name for path in same.iterdir()} == names
    first = (checkpoint(kind) / "model.safetensors").read_bytes()
    assert (same / "model.safetensors").read_bytes() == first
    assert (other / "model.safetensors").read_bytes() != first


def test_random_checkpoint_of_unknown_type(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model_type must be one of .*, got 'opus'"):
        write_random_codec(tmp_path, "opus")
