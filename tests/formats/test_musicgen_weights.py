# SPDX-License-Identifier: Apache-2.0
"""MusicGen's tensors, as transformers writes them and under audiocraft's names."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.audiocraft import audiocraft_names, write_audiocraft
from tests.support.musicgen import tiny_config, tiny_musicgen, write_tiny_musicgen
from vllm.unison.formats.musicgen import musicgen_format, read_musicgen
from vllm.unison.formats.musicgen_weights import (
    CODEC_FILE,
    LANGUAGE_MODEL_FILE,
    expected_musicgen_tensors,
    read_musicgen_weights,
)

Tensors = dict[str, torch.Tensor]

KINDS = [
    pytest.param({}, id="mono"),
    pytest.param({"channels": 2}, id="stereo"),
    pytest.param({"melody": True}, id="melody"),
    pytest.param({"hidden_size": 12}, id="no projection"),
]


def read(folder: Path) -> Tensors:
    return dict(read_musicgen_weights(folder, read_musicgen(folder)))


def learned(model: Any) -> Tensors:
    """A model's own tensors under the names of published files."""
    return {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in model.state_dict().items()
    }


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_is_read_whole(kind: dict[str, Any], tmp_path: Path) -> None:
    model = write_tiny_musicgen(tmp_path, **kind)
    found, own = read(tmp_path), learned(model)
    assert {name for name in own if name not in found} <= {
        "text_encoder.shared.weight",
        "text_encoder.encoder.embed_tokens.weight",
    }
    assert_same(found, {name: own[name] for name in found})


def test_shards_are_read_together(tmp_path: Path) -> None:
    model = tiny_musicgen()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    own = learned(model)
    assert_same(found := read(tmp_path), {name: own[name] for name in found})


def test_older_names_are_the_same(tmp_path: Path) -> None:
    """Files of today's and of yesterday's PyTorch, and positions that were stored once."""
    write_tiny_musicgen(tmp_path)
    before = read(tmp_path)
    file = tmp_path / "model.safetensors"
    other = {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        )
        if "weight_g" in "".join(load_file(file))
        else name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in load_file(file).items()
    }
    assert other.keys() != load_file(file).keys()
    other["decoder.model.decoder.embed_positions.weights"] = torch.zeros(3, 3)
    save_file(other, file)
    assert_same(read(tmp_path), before)


@pytest.fixture
def audiocraft(tmp_path: Path) -> tuple[Path, Tensors, Tensors, Tensors]:
    """A folder in audiocraft's format; what it should read as; its two states."""
    model = write_tiny_musicgen(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    own = {name: t for name, t in learned(model).items() if not name.startswith("text_encoder.")}
    language, codec = audiocraft_names(own)
    write_audiocraft(tmp_path, language, codec)
    return tmp_path, own, language, codec


@pytest.mark.parametrize("kind", KINDS)
def test_audiocrafts_files_are_read_under_the_same_names(
    kind: dict[str, Any], tmp_path: Path
) -> None:
    model = write_tiny_musicgen(tmp_path, **kind)
    (tmp_path / "model.safetensors").unlink()
    own = {name: t for name, t in learned(model).items() if not name.startswith("text_encoder.")}
    language, codec = audiocraft_names(own)
    assert "transformer.layers.1.self_attn.in_proj_weight" in language
    assert ("transformer.layers.1.norm_cross.bias" in language) == ("melody" not in kind)
    assert "decoder.model.3.convtr.convtr.weight_v" in codec
    assert "encoder.model.1.block.1.conv.conv.weight_g" in codec
    assert "quantizer.vq.layers.0._codebook.embed" in codec
    if "melody" in kind:
        name = "condition_provider.conditioners.self_wav.chroma.spec.window"
        language[name] = torch.zeros(16)
    write_audiocraft(tmp_path, language, codec)
    assert_same(read(tmp_path), own)


def test_safetensors_go_first(audiocraft: tuple[Path, Tensors, Tensors, Tensors]) -> None:
    folder, *_ = audiocraft
    write_tiny_musicgen(folder, seed=1)
    assert any(name.startswith("text_encoder.") for name in read(folder))


def drop(name: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.__delitem__(name)


def put(name: str, *shape: int) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.__setitem__(name, torch.zeros(shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("decoder.lm_heads.3.weight"), r"lacks the tensor 'decoder\.lm_heads\.3\.weight'$"),
        (drop("enc_to_dec_proj.bias"), r"lacks the tensor 'enc_to_dec_proj\.bias'$"),
        (put("decoder.lm_heads.4.weight", 16, 16), r"lacks: 'decoder\.lm_heads\.4\.weight'$"),
        (put("decoder.lm_heads.0.bias", 16), r"model lacks: 'decoder\.lm_heads\.0\.bias'$"),
        (
            put("decoder.model.decoder.embed_tokens.0.weight", 16, 16),
            r"embed_tokens\.0\.weight' must have shape \[17, 16\], .* not \[16, 16\]$",
        ),
    ],
)
def test_a_wrong_tensor_is_named(
    change: Callable[[Tensors], None], message: str, tmp_path: Path
) -> None:
    write_tiny_musicgen(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("linears.3.weight"), r"lacks the tensor 'decoder\.lm_heads\.3\.weight'$"),
        (put("linears.3.bias", 16), r"model lacks: 'decoder\.lm_heads\.3\.bias'$"),
        (put("cfg_coef", 1), r"model lacks: 'cfg_coef'$"),
        (
            put("transformer.layers.0.self_attn.in_proj_weight", 47, 16),
            r"'transformer\.layers\.0\.self_attn\.in_proj_weight' must hold three matrices",
        ),
        (
            put("transformer.layers.0.self_attn.in_proj_weight", 24, 16),
            r"q_proj\.weight' must have shape \[16, 16\], .* not \[8, 16\]$",
        ),
    ],
)
def test_a_wrong_tensor_of_audiocrafts_is_named(
    audiocraft: tuple[Path, Tensors, Tensors, Tensors],
    change: Callable[[Tensors], None],
    message: str,
) -> None:
    folder, _, language, codec = audiocraft
    change(language)
    write_audiocraft(folder, language, codec)
    with pytest.raises(ValueError, match=message):
        read(folder)


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("name", [LANGUAGE_MODEL_FILE, CODEC_FILE])
def test_a_pickle_that_is_no_weights_is_refused_and_not_executed(
    audiocraft: tuple[Path, Tensors, Tensors, Tensors], name: str
) -> None:
    folder, *_ = audiocraft
    torch.save({"best_state": {}, "xp.cfg": Payload(folder / "executed")}, folder / name)
    with pytest.raises(ValueError, match=rf"^{name} is not a file of weights$"):
        read(folder)
    assert not (folder / "executed").exists()
    torch.load(folder / name, weights_only=False)
    assert (folder / "executed").exists(), "the test's own payload works"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "must hold tensors by name as 'best_state'"),
        ({"best_state": {"a": 1}}, "must hold tensors by name as 'best_state'"),
        ({"pretrained": "facebook/encodec_32khz"},
         "must hold the codec, not only name it: 'facebook/encodec_32khz'"),
    ],
)  # fmt: skip
def test_other_content_is_refused(
    audiocraft: tuple[Path, Tensors, Tensors, Tensors], content: Any, message: str
) -> None:
    folder, *_ = audiocraft
    torch.save(content, folder / CODEC_FILE)
    with pytest.raises(ValueError, match=f"^{CODEC_FILE} {message}$"):
        read(folder)


@pytest.mark.parametrize("name", [LANGUAGE_MODEL_FILE, CODEC_FILE])
def test_missing_and_truncated_files_are_named(
    audiocraft: tuple[Path, Tensors, Tensors, Tensors], name: str
) -> None:
    folder, *_ = audiocraft
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=rf"^{name} is not a file of weights$"):
        read(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"must hold \*\.safetensors, or else {name}, which is m"):
        read(folder)


def test_truncated_safetensors_are_named(tmp_path: Path) -> None:
    write_tiny_musicgen(tmp_path)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"^model\.safetensors is not a whole file of tensors"):
        read(tmp_path)


def test_the_decoders_shapes_are_the_published_ones() -> None:
    """As facebook/musicgen-small has them."""
    sizes: dict[str, Any] = {"hidden_size": 1024, "ffn_dim": 4096, "num_hidden_layers": 24}
    form = musicgen_format(tiny_config(num_attention_heads=16, **sizes).to_dict())
    shapes = expected_musicgen_tensors(form).shapes
    decoder = [name for name in shapes if name.startswith("decoder.")]
    assert len(decoder) == 4 + 4 + 24 * (8 + 6 + 2) + 2
    assert shapes["decoder.model.decoder.layers.23.encoder_attn.k_proj.weight"] == (1024, 1024)
    assert shapes["decoder.model.decoder.layers.0.fc2.weight"] == (1024, 4096)
