# SPDX-License-Identifier: Apache-2.0
"""Files of Higgs Audio v2: configurations, names of tensors, and how conversations are written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.higgs_audio_v2 import NUM_CODES, tiny_config, write_higgs_audio_v2
from vllm.transformers_utils.configs.higgs_audio_v2 import HiggsAudioV2Config
from vllm.unison.formats.higgs_audio_v2 import CODEC, DEFAULTS, generation_defaults, stream_layout
from vllm.unison.formats.higgs_audio_v2_config import checked_config
from vllm.unison.formats.higgs_audio_v2_prompt import HiggsAudioV2Grammar
from vllm.unison.formats.higgs_audio_v2_weights import expected_tensors, published_tensors
from vllm.unison.model.conversation import Recording, Turn
from vllm.unison.model.end_rules import AnyStream, speech_lm_pattern
from vllm.unison.model.fills import Fill


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """transformers' files, and the authors'."""
    paths = tmp_path_factory.mktemp("transformers"), tmp_path_factory.mktemp("authors")
    for path, authors_names in zip(paths, (False, True), strict=True):
        write_higgs_audio_v2(path, authors_names=authors_names)
    return paths


def config_of(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return data


def test_both_files_say_the_same(folders: tuple[Path, Path]) -> None:
    ours, theirs = (HiggsAudioV2Config.from_dict(config_of(folder)) for folder in folders)
    assert theirs.backbone_config.to_dict() == ours.backbone_config.to_dict()
    assert stream_layout(theirs) == stream_layout(ours)
    weights = [
        dict(published_tensors(load_file(folder / "model.safetensors").items(), config))
        for folder, config in zip(folders, (ours, theirs), strict=True)
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_the_published_sizes() -> None:
    """What MODELS.md's sources say of the 3B model: 1026 ids in the file, 1024 in the class."""
    config = checked_config({"model_type": "higgs_audio_v2", "codebook_size": 1026})
    layout = stream_layout(config)
    assert (layout.num_streams, layout.vocabulary_size) == (8, 128256 + 8 * 1026)
    assert layout.slices[2] == (128256 + 2 * 1026, 128256 + 2 * 1026 + 1024)
    assert layout.pad_token_ids == (128001,) * 8
    shapes = expected_tensors(config).shapes
    assert shapes["model.embed_audio_tokens.embed_audio_tokens.weight"] == (8208, 3072)
    assert shapes["model.layers.27.audio_mlp.down_proj.weight"] == (3072, 8192)
    parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert round(parameters / 1e9, 2) == 5.77
    assert stream_layout(checked_config({"model_type": "higgs_audio_v2"})) == layout
    with pytest.raises(ValueError, match=r"codebook_size must count .* it must be 1026, not 1024"):
        checked_config({"model_type": "higgs_audio_v2", "codebook_size": 1024})


def test_any_stream_ends_the_audio_and_the_tail_is_forced(folders: tuple[Path, Path]) -> None:
    config = HiggsAudioV2Config.from_dict(config_of(folders[0]))
    spec = config.speech_spec(str(folders[0]))
    pattern = speech_lm_pattern(spec, 0)
    firsts = [config.vocab_size + k * (NUM_CODES + 2) for k in range(8)]
    assert pattern.end_rule == AnyStream(tuple(first + NUM_CODES + 1 for first in firsts))
    for first, fills in zip(firsts, pattern.fills, strict=True):
        assert fills.lead_in == Fill(first + NUM_CODES)
        assert fills.tail == Fill(first + NUM_CODES + 1) and fills.end is None
    # Beside text nothing is added; what begins streams may come again, and means nothing.
    assert pattern.fills[1].text == Fill(config.pad_token_id, embeds=False)
    assert spec.layout.more_than_codes(3) == [firsts[3] + NUM_CODES]
    assert spec.layout.outside_codebook == NUM_CODES - 1
    assert spec.codec is not None and spec.codec.name_or_path == "codec"
    assert spec.codec.part is None


@pytest.mark.parametrize(
    ("of_authors", "change", "message"),
    [
        (False, {"model_type": "llama"}, "model_type must be one of"),
        (False, {"hidden_size": "x"}, "config.json: .*hidden_size"),
        (False, {"num_codebooks": 1}, "num_codebooks must be 2 to 64, not 1"),
        (False, {"num_hidden_layers": 0}, "num_hidden_layers must be an integer of at least 1"),
        (False, {"audio_stream_eos_id": 19}, "codebook_size must count the codes"),
        (False, {"pad_token_id": 999}, r"pad_token_id must be in \[0, \d+\), not 999"),
        (False, {"attention_bias": True}, "attention_bias must be False, not True"),
        (False, {"hidden_act": "gelu"}, "hidden_act must be 'silu', not 'gelu'"),
        (True, {"audio_adapter_type": "stack"}, "audio_adapter_type must be one of"),
        (True, {"use_delay_pattern": False}, "use_delay_pattern must be one of"),
        (True, {"audio_dual_ffn_layers": [0]}, "audio_dual_ffn_layers must be all 2 layers"),
        (True, {"text_config": {"model_type": "qwen3"}}, "text_config.model_type must be 'llama'"),
    ],
)
def test_what_a_configuration_must_not_say(
    of_authors: bool, change: dict[str, Any], message: str, folders: tuple[Path, Path]
) -> None:
    with pytest.raises(ValueError, match=message):
        checked_config(config_of(folders[of_authors]) | change)


def _without(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[name]

    return change


def _with(name: str, *shape: int) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = torch.zeros(shape)

    return change


@pytest.mark.parametrize(
    ("of_authors", "change", "message"),
    [
        (False, _without("audio_lm_head.weight"), "lacks the tensor 'audio_lm_head.weight'"),
        (False, _with("model.layers.0.moe.weight", 4), "lacks: 'model.layers.0.moe.weight'"),
        (
            False,
            _with("model.layers.1.audio_mlp.up_proj.weight", 4, 4),
            r"'model.layers.1.audio_mlp.up_proj.weight' must have shape \[96, 64\]",
        ),
        (
            True,
            _without("embed_tokens.embedding_frozen.weight"),
            "holds only the trainable part of 'model.embed_tokens.weight'",
        ),
    ],
)
def test_a_wrong_tensor_is_named(
    of_authors: bool,
    change: Callable[[dict[str, torch.Tensor]], None],
    message: str,
    folders: tuple[Path, Path],
) -> None:
    tensors = load_file(folders[of_authors] / "model.safetensors")
    change(tensors)
    with pytest.raises(ValueError, match=message):
        list(published_tensors(tensors.items(), tiny_config()))


def test_defaults_of_a_file_that_says_less_or_more(tmp_path: Path) -> None:
    assert generation_defaults(str(tmp_path), None) == DEFAULTS
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"temperature": 0.1, "ras_win_len": 5, "max_new_tokens": 100}))
    found = generation_defaults(str(tmp_path), None)
    assert found == {**DEFAULTS, "ras_win_len": 5, "max_tokens": 99}
    file.write_text(json.dumps({"do_sample": True, "temperature": 0.1, "top_k": 5}))
    found = generation_defaults(str(tmp_path), None)
    assert found == {**DEFAULTS, "temperature": 0.1, "top_k": 5}


def test_a_codec_is_named_or_the_authors(tmp_path: Path) -> None:
    config = HiggsAudioV2Config.from_dict({"model_type": "higgs_audio_v2"})
    codec = config.speech_spec(str(tmp_path)).codec
    assert codec is not None and codec.name_or_path == CODEC
    (tmp_path / "processor_config.json").write_text(json.dumps({"audio_tokenizer": 3}))
    with pytest.raises(ValueError, match=r"processor_config.audio_tokenizer must name a folder"):
        config.speech_spec(str(tmp_path))


ONE, TWO = Recording("one"), Recording("two")


def test_how_a_conversation_is_written() -> None:
    turns = [
        Turn("system", (" Do. ",)),
        Turn("scene", ("Quiet.", "SPEAKER0:", ONE, "SPEAKER1: deep", "SPEAKER2: high")),
        Turn("user", ("Hi ", " you.")),
        Turn("assistant", (TWO,)),
        Turn("user", ("Bye.",)),
    ]
    assert HiggsAudioV2Grammar().render(turns) == [
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nDo.\n\n"
        "<|scene_desc_start|>\nQuiet.\n\nSPEAKER0: <|audio_out_bos|>",
        ONE,
        "<|audio_eos|>\nSPEAKER1: deep\nSPEAKER2: high\n<|scene_desc_end|><|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHiyou.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n<|audio_out_bos|>",
        TWO,
        "<|audio_eos|><|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n<|audio_out_bos|>",
    ]


def test_a_text_is_a_conversation_too() -> None:
    grammar = HiggsAudioV2Grammar()
    (alone,) = grammar.render(grammar.speak("Hello."))
    assert alone == grammar.render([Turn("user", ("Hello.",))])[0]
    cloned = grammar.render(grammar.speak("Hello.", ONE, "one says"))
    assert cloned[1] is ONE and "one says<|eot_id|>" in str(cloned[0])


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "messages must have at least one turn"),
        ([("tool", "x"), ("user", "x")], r"messages\[0\]\.role must be one of"),
        ([("user", "x"), ("system", "x")], r"messages\[1\]\.role must not be 'system'"),
        ([("user", "x"), ("scene", "x"), ("user", "x")], r"messages\[1\]\.role must not be 'scene"),
        ([("system", "x")], r"messages\[0\]\.role must be 'user', whose text is spoken"),
        ([("user", " ")], r"messages\[0\]\.content must hold text"),
        ([("user", ONE)], r"messages\[0\]\.content must be text: the model hears its own voice"),
        ([("user", "x"), ("assistant", "x"), ("user", "x")], r"messages\[1\]\.content must be one"),
        ([("user", "a<|eot_id|>")], r"messages\[0\]\.content must not hold the special token"),
        (
            [("scene", "a<|audio_out_bos|>"), ("user", "x")],
            r"messages\[0\]\.content must not hold the special token '<\|audio_out_bos\|>'",
        ),
    ],
)
def test_what_a_conversation_must_not_be(turns: list[tuple[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HiggsAudioV2Grammar().render([Turn(role, (content,)) for role, content in turns])


def test_a_system_turn_may_describe_the_scene_itself() -> None:
    described = "Do.\n\n<|scene_desc_start|>\nQuiet.\n<|scene_desc_end|>"
    turns = [Turn("system", (described,)), Turn("user", ("x",))]
    apart = [Turn("system", ("Do.",)), Turn("scene", ("Quiet.",)), Turn("user", ("x",))]
    assert HiggsAudioV2Grammar().render(turns) == HiggsAudioV2Grammar().render(apart)
