# SPDX-License-Identifier: Apache-2.0
"""Random checkpoints: the published format, read back by what reads published ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer
from transformers.models.olmo2 import modeling_olmo2

from vllm.compilation.decorators import support_torch_compile
from vllm.model_executor.models.transformers.utils import can_enable_torch_compile
from vllm.transformers_utils.configs.speech_lm import SpeechLMConfig
from vllm.unison.codecs.of_model import codec_of
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.spec import SpeechSpec
from vllm.unison.testing.random_checkpoint import (
    BACKBONES,
    FIRST_CODE,
    FIRST_TEXT,
    byte_tokenizer,
    stream_layout,
    write_random_speech_lm,
)

SMALL: dict[str, Any] = {"hidden_size": 16, "num_layers": 1}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_checkpoint_is_read_as_a_published_one(tmp_path: Path, backbone: str) -> None:
    folder = write_random_speech_lm(tmp_path / "a" / "b", backbone, 3, codec=None, **SMALL)
    config = SpeechLMConfig.from_pretrained(folder)
    spec = SpeechSpec.from_config(config, str(folder))
    assert spec.layout == StreamLayout.from_dict(stream_layout(3))
    assert spec.has_head_offsets and not spec.has_codec
    assert config.architectures == ["SpeechLMForConditionalGeneration"]
    assert config.get_text_config().model_type == backbone
    assert config.get_text_config().architectures == [BACKBONES[backbone]]
    assert config.get_text_config().vocab_size == spec.layout.vocabulary_size
    weights = load_file(folder / "model.safetensors")
    assert weights["head_offsets"].shape == (3, 16)
    assert not weights["head_offsets"][0].any() and weights["head_offsets"][1:].all()
    assert weights["backbone.lm_head.weight"].shape == (spec.layout.vocabulary_size, 16)
    assert all(name == "head_offsets" or name.startswith("backbone.") for name in weights)


def test_the_codec_fits_the_layout(tmp_path: Path) -> None:
    folder = write_random_speech_lm(tmp_path, num_streams=2, **SMALL)
    spec = SpeechSpec.from_config(SpeechLMConfig.from_pretrained(folder), str(folder))
    codec = codec_of(spec, "cpu")
    assert (codec.num_codebooks, codec.codebook_size) == (2, 64)
    assert codec_of(spec, "cpu") is codec


def test_options(tmp_path: Path) -> None:
    layout = stream_layout(2, delays=[0, 5], codebook_size=8, text_then_audio=True)
    folder = write_random_speech_lm(
        tmp_path,
        layout=layout,
        codec=None,
        tied=True,
        head_offsets=False,
        embedding={"primary_skip_ids": [1]},
        dtype=torch.bfloat16,
        **SMALL,
    )
    config = json.loads((folder / "config.json").read_text())
    assert config["stream_layout"]["delays"] == [0, 5]
    assert config["embedding"] == {"primary_skip_ids": [1]}
    assert config["dtype"] == "bfloat16" and config["backbone_config"]["tie_word_embeddings"]
    weights = load_file(folder / "model.safetensors")
    assert "head_offsets" not in weights and "backbone.lm_head.weight" not in weights
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


def test_weights_follow_the_seed_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    written = [
        load_file(
            write_random_speech_lm(tmp_path / str(i), seed=seed, codec=None, **SMALL)
            / "model.safetensors"
        )
        for i, seed in enumerate((1, 1, 2))
    ]
    assert torch.equal(torch.get_rng_state(), before)
    names = written[0].keys()
    assert all(torch.equal(written[0][name], written[1][name]) for name in names)
    assert not torch.equal(written[0]["head_offsets"], written[2]["head_offsets"])


def test_an_unknown_backbone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"backbone must be one of \['llama', .* not 'gpt'"):
        write_random_speech_lm(tmp_path, "gpt")


@pytest.mark.parametrize("text_then_audio", [False, True])
@pytest.mark.parametrize("num_streams", [1, 4, 9])
def test_layouts_are_valid(num_streams: int, text_then_audio: bool) -> None:
    layout = StreamLayout.from_dict(
        stream_layout(num_streams, codebook_size=10, text_then_audio=text_then_audio)
    )
    assert layout.delays == tuple(range(num_streams))
    assert layout.slices[-1][1] == layout.vocabulary_size == FIRST_CODE + 10 * num_streams
    targets = [transition.to for transition in layout.phases[0].transitions]
    assert targets == (["end", "audio"] if text_then_audio else ["end"])


def test_the_tokenizer_maps_bytes_to_text_ids(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("hello world", " two  spaces", "naïve – 音"):
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.encode())
        assert all(FIRST_TEXT <= token < FIRST_CODE for token in ids)
        assert tokenizer.decode(ids) == text
    assert tokenizer("<audio>")["input_ids"] == [2]


def test_checkpoints_are_made_after_an_engine_changed_their_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As upstream's engines do, for good, whose backbone is transformers' own."""
    small: dict[str, Any] = {**SMALL, "layout": stream_layout(2)}
    before = write_random_speech_lm(tmp_path / "before", "olmo2", **small)
    # A copy stands for the class, which other tests need.
    changed = type("Changed", (modeling_olmo2.Olmo2Model,), {})
    decorate = support_torch_compile(
        dynamic_arg_dims={"input_ids": 0}, enable_if=can_enable_torch_compile
    )
    decorate(changed)
    monkeypatch.setattr(modeling_olmo2, "Olmo2Model", changed)
    after = write_random_speech_lm(tmp_path / "after", "olmo2", **small)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
