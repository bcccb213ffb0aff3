# SPDX-License-Identifier: Apache-2.0
"""OpusLM's published files: what they say, what is made of them, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from tests.support import opuslm as model
from tests.support.published_layouts import opuslm_7b
from vllm.transformers_utils.configs.opuslm import OpusLMConfig
from vllm.unison.formats.opuslm_spec import opuslm_layout
from vllm.unison.formats.opuslm_weights import read_opuslm_weights
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.spec import SpeechSpec
from vllm.unison.opuslm_model import downloaded_folder, engine_folder
from vllm.unison.packaged_model import folder_of

Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache directory; the hub cannot be asked."""
    from huggingface_hub import constants

    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    downloaded_folder.cache_clear()
    return tmp_path / "cache"


def read_config(made: str | Path) -> OpusLMConfig:
    return OpusLMConfig(**json.loads((Path(made) / "config.json").read_text()))


@pytest.mark.parametrize(("kind", "file"), [("olmo2", "model.pth"), ("llama", "2epoch.pth")])
def test_a_folder_is_made_of_the_published_files(
    kind: str, file: str, tmp_path: Path, cache: Path
) -> None:
    folder = model.write_opuslm(tmp_path / "model", kind, file=file)
    before = sorted(os.listdir(folder))
    made = folder_of(str(folder))
    assert Path(made).parent == cache / "opuslm" and folder_of(str(folder)) == made
    assert sorted(os.listdir(folder)) == before
    config = read_config(made)
    backbone: Any = config.backbone_config
    assert backbone.model_type == kind
    assert backbone.vocab_size == model.VOCABULARY
    assert backbone.max_position_embeddings == 512
    assert (backbone.bos_token_id, backbone.eos_token_id) == (None, None)
    spec = config.speech_spec(made)
    assert isinstance(spec, SpeechSpec)
    assert spec.layout == StreamLayout.from_dict(model.layout())
    assert spec.voice_frames == model.SPEAKER_FRAMES
    tokenizer = AutoTokenizer.from_pretrained(made)
    assert tokenizer.encode("a test") == model.text_ids("a test")
    assert tokenizer.decode(tokenizer.encode("hello<|endoftext|>")) == "hello<|endoftext|>"
    assert tokenizer.encode("he<sos/eos>")[0] == model.FIRST_TEXT + 256


def test_the_published_sizes_give_the_documented_layout() -> None:
    special = {name: index for index, name in model._SPECIAL.items()}
    layout = opuslm_layout(OpusLMConfig(special_tokens=special))
    assert layout == StreamLayout.from_dict(opuslm_7b())


def test_a_model_without_dialogues(tmp_path: Path) -> None:
    tokens = [name.replace("dialogue", "unused") for name in model.token_list()]
    folder = model.write_opuslm(tmp_path / "model", token_list=tokens)
    made = folder_of(str(folder))
    spec = read_config(made).speech_spec(made)
    assert spec.dialogue is None
    assert [phase.name for phase in spec.layout.phases] == ["text", "audio"]
    assert [task.name for task in spec.tasks] == [
        *("text_to_speech", "speech_to_text", "voice_prompted_speech", "audio_lm", "text_lm")
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corelm": "valle"}, "config.yaml: corelm must be 'ar_delay', not 'valle'"),
        ({"transformer": "builtin"}, "transformer must be 'huggingface', not 'builtin'"),
        ({"subword_choice": "sentencepiece"}, "subword_choice must be 'huggingface'"),
        ({"codec_token_in_use": 8}, "codec_token_in_use must be 9, not 8"),
        ({"codec_token_per_frame": 1}, "codec_token_per_frame must be an integer of at least 2"),
        ({"token_list": None}, "token_list must be a list of names"),
        ({"token_list": ["<pad>"] * 700}, "token_list must hold '<sos/eos>'"),
        (
            {"token_bias": {"ssl": [0, 9], "codec": [9, 20], "text_bpe": [20, 9999]}},
            r"token_bias.text_bpe must be \[begin, end\) in \[0, 695\], not \[20, 9999\]",
        ),
        (
            {"token_bias": {"ssl": [0, 9], "codec": [9, 20], "text_bpe": [20, 30]}},
            r"token_bias.codec must have as many codes for each of 8 streams, not 11 in all",
        ),
        ({"subword_model": "no/such"}, "subword_model, 'no/such', must be a folder, or a hub id"),
        (
            {"transformer_conf": {"hf_model_tag": "no/such"}},
            "transformer_conf.hf_model_tag, 'no/such', must be a folder, or a hub id",
        ),
        (
            {"transformer_conf": {}},
            "hf_model_tag must name a folder or a hub id, not None",
        ),
    ],
)
def test_settings_that_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, cache: Path
) -> None:
    folder = model.write_opuslm(tmp_path / "model", **changes)
    with pytest.raises(ValueError, match=message):
        folder_of(str(folder))
    assert not list(cache.glob("opuslm/*/config.json"))


def test_folders_that_are_not_whole(tmp_path: Path) -> None:
    folder = model.write_opuslm(tmp_path / "model")
    (folder / "codec" / "config.yaml").rename(folder / "codec" / "other.yaml")
    with pytest.raises(ValueError, match=r"codec must hold config.yaml"):
        folder_of(str(folder))
    (folder / "codec").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"the codec 'ftshijt/.*' must be in the cache or"):
        folder_of(str(folder))
    (folder / "model.pth").unlink()
    with pytest.raises(ValueError, match="must hold one file of weights"):
        folder_of(str(folder))
    (folder / "config.yaml").write_text("model: other\n")
    assert engine_folder(folder) is None
    assert downloaded_folder("espnet/not_in_the_cache") is None
    assert downloaded_folder("someone/else") is None


EXPECTED = {
    "backbone.model.embed_tokens.weight": (6, 4),
    "backbone.lm_head.weight": (6, 4),
    "backbone.model.norm.weight": (4,),
    "head_offsets": (3, 4),
}


def weights() -> Tensors:
    return {
        "corelm.emb.weight": torch.randn(6, 4),
        "corelm.lm_head.weight": torch.randn(6, 4),
        "corelm.decoders.model.norm.weight": torch.randn(4),
        "corelm.head_emb.weight": torch.randn(12, 4),
        "criterion.lm_head.weight": torch.randn(6, 4),
        "reflm.emb.weight": torch.randn(6, 4),
    }


@pytest.mark.parametrize("module", [False, True])
def test_tensors_are_renamed(module: bool, tmp_path: Path) -> None:
    state = weights()
    torch.save({"module": state} if module else state, tmp_path / "model.pth")
    found = dict(read_opuslm_weights(tmp_path / "model.pth", EXPECTED))
    assert found.keys() == EXPECTED.keys()
    assert torch.equal(found["head_offsets"], state["corelm.head_emb.weight"][:3])
    assert torch.equal(
        found["backbone.model.norm.weight"], state["corelm.decoders.model.norm.weight"]
    )
    assert torch.equal(found["backbone.lm_head.weight"], state["corelm.lm_head.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("corelm.head_emb.weight"), "lacks the tensor 'corelm.head_emb.weight'"),
        (
            lambda w: w.pop("corelm.decoders.model.norm.weight"),
            "lacks the tensor 'corelm.decoders.model.norm.weight'",
        ),
        (
            lambda w: w.update({"corelm.aux_lm_head.weight": torch.ones(2, 4)}),
            "holds a tensor that the model lacks: 'corelm.aux_lm_head.weight'",
        ),
        (
            lambda w: w.update({"corelm.emb.weight": torch.ones(7, 4)}),
            r"'corelm.emb.weight' must have shape \[6, 4\], .* not \[7, 4\]",
        ),
        (
            lambda w: w.update({"corelm.head_emb.weight": torch.ones(2, 4)}),
            r"'corelm.head_emb.weight' must have shape \[3, 4\], .* not \[2, 4\]",
        ),
    ],
)
def test_tensors_that_are_refused(
    change: Callable[[Tensors], Any], message: str, tmp_path: Path
) -> None:
    state = weights()
    change(state)
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=message):
        dict(read_opuslm_weights(tmp_path / "model.pth", EXPECTED))


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "done"),)

    with (tmp_path / "model.pth").open("wb") as file:
        pickle.dump({"corelm.emb.weight": Bad()}, file)
    with pytest.raises(ValueError, match=r"model.pth is not a file of weights"):
        dict(read_opuslm_weights(tmp_path / "model.pth", EXPECTED))
    assert not (tmp_path / "done").exists()


def test_yaml_that_is_no_settings(tmp_path: Path) -> None:
    folder = model.write_opuslm(tmp_path / "model")
    settings = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(f"{settings}\nmore: [\n")
    with pytest.raises(ValueError, match=r"config.yaml must be YAML of settings by name"):
        folder_of(str(folder))
    tagged = yaml.safe_load(settings)
    del tagged["token_list"]
    text = yaml.safe_dump(tagged) + "token_list: !!python/object/apply:os.getcwd []\n"
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config.yaml must be YAML of settings by name"):
        folder_of(str(folder))
