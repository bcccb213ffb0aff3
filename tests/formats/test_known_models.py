# SPDX-License-Identifier: Apache-2.0
"""A folder of a model that is not supported yet says so; every other folder is left alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from vllm import ModelRegistry
from vllm.engine.arg_utils import EngineArgs
from vllm.transformers_utils.config import get_config
from vllm.unison.codecs import registered_model_types
from vllm.unison.formats.known_models import CODECS, NOT_YET, NOT_YET_BY_KEYS

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")

# What the published config.json's have in common, cut down to what tells them apart.
PUBLISHED: dict[str, dict[str, Any]] = {
    "Dia": {
        "architectures": ["DiaForConditionalGeneration"],
        "model_type": "dia",
        "decoder_config": {"model_type": "dia_decoder", "num_channels": 9},
    },
    "Dia, in its own format": {"model": {"decoder": {}}, "data": {"channels": 9}, "training": {}},
    "CSM": {
        "architectures": ["CsmForConditionalGeneration"],
        "model_type": "csm",
        "num_codebooks": 32,
        "depth_decoder_config": {"model_type": "csm_depth_decoder_model"},
    },
    "Parler-TTS": {
        "architectures": ["ParlerTTSForConditionalGeneration"],
        "model_type": "parler_tts",
        "decoder": {"model_type": "parler_tts_decoder", "num_codebooks": 9},
    },
    "Zonos": {
        "backbone": {"d_model": 2048, "n_layer": 26},
        "prefix_conditioner": {"conditioners": []},
        "eos_token_id": 1024,
        "masked_token_id": 1025,
    },
    "Moshi": {"architectures": ["MoshiForConditionalGeneration"], "model_type": "moshi"},
    "Moshi, in Kyutai's own format": {"dim": 4096, "n_q": 16, "dep_q": 8, "delays": [0, 0, 1]},
    "MOSS-TTS": {"architectures": ["MossTTSDelayModel"], "model_type": "moss_tts_delay"},
    "Qwen3-TTS": {"model_type": "qwen3_tts", "talker_config": {"num_code_groups": 16}},
}


def folder_of(config: dict[str, Any], folder: Path) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_that_is_not_supported_yet_is_named(name: str, tmp_path: Path) -> None:
    folder = folder_of(PUBLISHED[name], tmp_path)
    with pytest.raises(ValueError, match=rf"^{name} models are not supported yet; docs/models\.md"):
        get_config(folder, trust_remote_code=False)


@pytest.mark.parametrize("name", ["Dia", "Zonos"])
def test_the_engine_says_so_first(name: str, tmp_path: Path) -> None:
    folder = folder_of(PUBLISHED[name], tmp_path)
    with pytest.raises(ValueError, match=f"{name} models are not supported yet"):
        EngineArgs(model=folder).create_engine_config()


def test_a_codec_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'mimi' is a codec, not a model.* codec\.name_or_path"):
        get_config(folder_of({"model_type": "mimi"}, tmp_path), trust_remote_code=False)
    assert set(registered_model_types()) <= CODECS


def test_others_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64}
    assert get_config(folder_of(llama, tmp_path), trust_remote_code=False).hidden_size == 64
    # A plugin may bring one of them along.
    monkeypatch.setattr(ModelRegistry, "models", dict(ModelRegistry.models))
    ModelRegistry.register_model("CsmForConditionalGeneration", "nowhere:Csm")
    folder = folder_of(PUBLISHED["CSM"], tmp_path)
    assert get_config(folder, trust_remote_code=False).num_codebooks == 32


def test_upstream_supports_none_of_them() -> None:
    supported = {name.lower() for name in ModelRegistry.get_supported_archs()}
    for model_type in NOT_YET:
        words = model_type.replace("_", "")
        assert not any(name.startswith(words + "for") for name in supported), model_type


def test_the_page_lists_them() -> None:
    for name in [*NOT_YET.values(), *NOT_YET_BY_KEYS]:
        assert name.partition(",")[0] in PAGE, name
    for model_type in CODECS - {"higgs_audio_v2_tokenizer"}:
        assert f"`{model_type}`" in PAGE, model_type
