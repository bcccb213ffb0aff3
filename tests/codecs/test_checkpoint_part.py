# SPDX-License-Identifier: Apache-2.0
"""A codec that is a part of a model's own checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.formats.test_musicgen_weights import Payload, audiocraft_names, learned
from tests.support.musicgen import CODEBOOK_SIZE, tiny_musicgen, write_tiny_musicgen
from vllm.unison.codecs import of_model
from vllm.unison.codecs.of_model import codec_of
from vllm.unison.codecs.transformers_codecs import EncodecCodec
from vllm.unison.formats.musicgen_weights import CODEC_FILE
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.spec import CodecSource, SpeechSpec

PART = "audio_encoder"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _nothing_loaded() -> None:
    of_model._load.cache_clear()


def musicgen_spec(model: Path | str, num_streams: int = 4, num_channels: int = 1) -> SpeechSpec:
    """What matters of a MusicGen model's specification here."""
    layout = StreamLayout.from_dict(
        {
            "vocabulary_size": CODEBOOK_SIZE + 1,
            "slices": [[0, CODEBOOK_SIZE]] * num_streams,
            "pad_token_ids": [CODEBOOK_SIZE] * num_streams,
            "delays": [k // num_channels for k in range(num_streams)],
            "phases": [
                {
                    "name": "audio",
                    "kind": "audio",
                    "begin_tokens": [CODEBOOK_SIZE],
                    "transitions": [],
                }
            ],
        }
    )
    source = CodecSource(".", part=PART, num_channels=num_channels)
    return SpeechSpec(layout, codec=source, model_path=str(model))


def assert_is_codec_of(codec: Any, model: Any, num_codebooks: int = 4) -> None:
    """That a codec encodes and decodes as the one in a model of transformers."""
    samples = 0.1 * torch.randn(1, 1, 200, generator=torch.Generator().manual_seed(1))
    own = model.audio_encoder.eval()
    with torch.inference_mode():
        codes = own.encode(samples).audio_codes[0, :, :num_codebooks]
        audio = own.decode(codes[None], [None]).audio_values[0, 0]
    assert torch.equal(codec.encode(samples[0, 0]), codes[0].T.to(torch.int32))
    assert torch.equal(codec.decode(codes[0].T), audio)


def test_it_is_the_model_s_codec(tmp_path: Path) -> None:
    model = write_tiny_musicgen(tmp_path)
    codec = codec_of(musicgen_spec(tmp_path), "cpu")
    assert isinstance(codec, EncodecCodec)
    assert (codec.sample_rate, codec.samples_per_frame, codec.num_codebooks) == (400, 8, 4)
    assert_is_codec_of(codec, model)
    assert codec_of(musicgen_spec(tmp_path), "cpu") is codec


def test_it_computes_in_float32_however_it_is_stored(tmp_path: Path) -> None:
    tiny_musicgen().half().save_pretrained(tmp_path)
    codec = codec_of(musicgen_spec(tmp_path), "cpu")
    assert isinstance(codec, EncodecCodec)
    assert {t.dtype for t in codec.model.parameters()} == {torch.float32}
    stored = load_file(tmp_path / "model.safetensors")
    name = "decoder.layers.0.conv.bias"
    assert stored[f"{PART}.{name}"].dtype == torch.float16
    assert torch.equal(codec.model.state_dict()[name], stored[f"{PART}.{name}"].float())


def test_only_files_with_its_tensors_are_opened(tmp_path: Path) -> None:
    model = tiny_musicgen()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in index.items() if name.startswith(f"{PART}.")}
    others = set(index.values()) - needed
    assert len(needed) > 1 and others
    for name in others:
        (tmp_path / name).write_bytes(b"not tensors")
    assert_is_codec_of(codec_of(musicgen_spec(tmp_path), "cpu"), model)


def test_audiocraft_s_file_is_read_where_there_is_no_other(tmp_path: Path) -> None:
    model = write_tiny_musicgen(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    own = {name: t for name, t in learned(model).items() if not name.startswith("text_encoder.")}
    torch.save({"best_state": audiocraft_names(own)[1]}, tmp_path / CODEC_FILE)
    assert_is_codec_of(codec_of(musicgen_spec(tmp_path), "cpu"), model)
    torch.save({"best_state": {}, "xp.cfg": Payload(tmp_path / "executed")}, tmp_path / CODEC_FILE)
    of_model._load.cache_clear()
    with pytest.raises(ValueError, match=rf"^{CODEC_FILE} is not a file of weights$"):
        codec_of(musicgen_spec(tmp_path), "cpu")
    assert not (tmp_path / "executed").exists()


def test_a_hub_id_s_files_are_found_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--someone--music"
    snapshot = repository / "snapshots" / "1234"
    model = write_tiny_musicgen(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1234")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert_is_codec_of(codec_of(musicgen_spec("someone/music"), "cpu"), model)
    with pytest.raises(ValueError, match=r"^model 'someone/else' must be a folder or a hub id"):
        codec_of(musicgen_spec("someone/else"), "cpu")


def drop(tensors: Tensors) -> None:
    del tensors[f"{PART}.decoder.layers.0.conv.bias"]


def add(tensors: Tensors) -> None:
    tensors[f"{PART}.decoder.layers.99.bias"] = torch.ones(1)


def misshape(tensors: Tensors) -> None:
    tensors[f"{PART}.decoder.layers.0.conv.bias"] = torch.ones(7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"lacks the tensor 'audio_encoder\.decoder\.layers\.0\.conv\.bias'$"),
        (add, r"holds what EncodecModel lacks: the tensor 'audio_encoder\.decoder\.layers\.99\."),
        (
            misshape,
            r"'audio_encoder\.decoder\.layers\.0\.conv\.bias' must have shape \[16\], .*\[7\]",
        ),
    ],
)
def test_a_wrong_tensor_is_named(
    change: Callable[[Tensors], None], message: str, tmp_path: Path
) -> None:
    write_tiny_musicgen(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=message):
        codec_of(musicgen_spec(tmp_path), "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda config: config.pop(PART),
            r"config\.json must hold an object 'audio_encoder', not N",
        ),
        (
            lambda config: config[PART].update(model_type="t5"),
            r"audio_encoder\.model_type must be one of \['dac', 'encodec', .*, not 't5'$",
        ),
        (
            lambda config: config[PART].update(model_type="spectral_codec"),
            r"audio_encoder\.model_type must be one of \['dac', 'encodec', "
            r"'higgs_audio_v2_tokenizer', 'mimi', 'xcodec'\]",
        ),
        (lambda config: config[PART].update(audio_channels="x"), r"config\.json: .*audio_channels"),
        (lambda config: config[PART].update(normalize=True), "normalize must be False, got True"),
    ],
)
def test_a_wrong_configuration_is_named(change: Any, message: str, tmp_path: Path) -> None:
    write_tiny_musicgen(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        codec_of(musicgen_spec(tmp_path), "cpu")


def test_wrong_files_are_named(tmp_path: Path) -> None:
    write_tiny_musicgen(tmp_path)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"^model\.safetensors is not a whole file of tensors"):
        codec_of(musicgen_spec(tmp_path), "cpu")
    file.unlink()
    message = r"must hold \*\.safetensors with tensors named audio_encoder\.\*$"
    with pytest.raises(ValueError, match=message):
        codec_of(musicgen_spec(tmp_path), "cpu")
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    with pytest.raises(ValueError, match=r"must have a config\.json$"):
        codec_of(musicgen_spec(tmp_path), "cpu")


def test_it_must_fit_the_layout(tmp_path: Path) -> None:
    write_tiny_musicgen(tmp_path)
    with pytest.raises(ValueError, match=r"num_codebooks must be an integer in \[1, 4\], got 5"):
        codec_of(musicgen_spec(tmp_path, num_streams=5), "cpu")
    spec = musicgen_spec(tmp_path)
    layout = replace(spec.layout, slices=((0, CODEBOOK_SIZE - 1),) * 4)
    with pytest.raises(ValueError, match=r"stream_layout\.slices\[0\] must hold the codec's 16"):
        codec_of(replace(spec, layout=layout), "cpu")
