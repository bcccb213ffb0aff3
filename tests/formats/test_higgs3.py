# SPDX-License-Identifier: Apache-2.0
"""Higgs TTS 3 as published: its configuration, prompt, defaults and tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import stream_patterns
from tests.support.higgs3 import (
    CODEBOOK_IDS,
    HIDDEN,
    NUM_STREAMS,
    PREFIX,
    SPECIALS,
    TEXT_VOCABULARY,
    published_config,
    qwen_tokenizer,
    write_higgs3,
)
from vllm.transformers_utils.configs.higgs3 import Higgs3Config
from vllm.unison.codecs.of_model import codec_of
from vllm.unison.formats.higgs3 import higgs3_spec
from vllm.unison.formats.higgs3_config import CODEC_CONFIG
from vllm.unison.formats.higgs3_weights import engine_weights, published_tensors
from vllm.unison.model.end_rules import IdOnPrimary, speech_lm_pattern
from vllm.unison.model.fills import Fill
from vllm.unison.model.spec import SpeechSpec

Weights = dict[str, torch.Tensor]
V_PROJ = "body.layers.1.self_attn.v_proj.weight"
CODES = f"{PREFIX}.embedding.weight"
TEXT = "tied.embedding.text_embedding.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_higgs3(tmp_path_factory.mktemp("higgs"))


def tokenizer_folder(folder: Path, specials: tuple[str, ...] = SPECIALS) -> str:
    qwen_tokenizer(specials).save_pretrained(folder)
    return str(folder)


def config(text: dict[str, Any] | None = None, **audio: Any) -> Higgs3Config:
    """The published one with changes; None removes a key."""
    data = published_config()
    for part, changes in (("text_config", text or {}), ("audio_encoder_config", audio)):
        data[part] = {k: v for k, v in (data[part] | changes).items() if v != "removed"}
    return Higgs3Config.from_dict(data)


def test_a_rotary_base_that_is_null_or_missing_is_a_million() -> None:
    for text in ({}, {"rope_theta": "removed"}, {"rope_parameters": {"rope_theta": None}}):
        assert config(text).get_text_config().rope_parameters["rope_theta"] == 1_000_000
    nested = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    assert config(nested).get_text_config().rope_parameters["rope_theta"] == 5e5
    assert config({"rope_theta": 2e4}).get_text_config().rope_parameters["rope_theta"] == 2e4


def test_the_decoder_has_a_row_for_each_id_of_each_codebook() -> None:
    backbone = config().get_text_config()
    assert backbone.vocab_size == TEXT_VOCABULARY + NUM_STREAMS * CODEBOOK_IDS
    assert backbone.architectures == ["Qwen3ForCausalLM"] and backbone.tie_word_embeddings
    assert backbone.head_dim == 32 and backbone.dtype == torch.float32


def test_a_configuration_can_be_written_and_read_again() -> None:
    first = config()
    again = Higgs3Config.from_dict(json.loads(json.dumps(first.to_dict())))
    assert again.to_dict() == first.to_dict()
    assert again.get_text_config().to_dict() == first.get_text_config().to_dict()


@pytest.mark.parametrize(
    ("text", "audio", "message"),
    [
        ({}, {"encoder_type": "whisper"}, "encoder_type must be 'discrete', not 'whisper'"),
        ({}, {"tie_word_embeddings": False}, "tie_word_embeddings must be True, not False"),
        ({}, {"use_delay_pattern": False}, "use_delay_pattern must be True, not False"),
        ({}, {"out_dim": 65}, "out_dim must be 64, not 65"),
        ({}, {"num_codebooks": 9}, r"num_codebooks must be an integer in \[1, 8\], not 9"),
        ({}, {"num_codebooks": "removed"}, r"num_codebooks must be an integer in .* not None"),
        ({}, {"vocab_size": 2}, r"vocab_size must be an integer in \[3, 65536\], not 2"),
        ({}, {"encoder": 1}, r"audio_encoder_config has unknown keys \['encoder'\]"),
        ({"model_type": "llama"}, {}, r"text_config\.model_type must be 'qwen3', not 'llama'"),
        ({"hidden_size": "64"}, {}, r"text_config: .*hidden_size"),
        (
            {"rope_parameters": {"rope_type": "yarn"}},
            {},
            r"text_config\.rope_parameters\.rope_type must be 'default', not 'yarn'",
        ),
    ],
)
def test_a_refusal_names_the_field(
    text: dict[str, Any], audio: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config(text, **audio)


def test_an_unknown_key_is_refused() -> None:
    data = published_config() | {"vision_config": {}}
    with pytest.raises(ValueError, match=r"config\.json has unknown keys \['vision_config'\]"):
        Higgs3Config.from_dict(data)


def spec_of(folder: Path, specials: tuple[str, ...] = SPECIALS) -> SpeechSpec:
    return higgs3_spec(config(), tokenizer_folder(folder, specials))


def test_the_prompt_follows_the_tokenizer(tmp_path: Path) -> None:
    first = 256
    (task,) = spec_of(tmp_path).tasks
    tts, audio, text, begin, said = range(first + 1, first + 6)
    assert task.parts == (tts, (said, "reference_text"), (audio, "voice"), text, "text", begin)
    assert task.needs == {"text"} and task.takes_voice
    # Older tokenizers know no text of a recording.
    (task,) = spec_of(tmp_path, SPECIALS[:5]).tasks
    assert task.parts == (tts, (audio, "voice"), text, "text", begin)
    (task,) = spec_of(tmp_path, ("<|endoftext|>", "<|tts|>", "<|text|>", "<|audio|>")).tasks
    assert task.parts == (first + 1, first + 2, "text", first + 3)
    with pytest.raises(ValueError, match=r"tokenizer\.json must have \['<\|tts\|>'\] among"):
        spec_of(tmp_path, ("<|endoftext|>", "<|text|>", "<|audio|>"))


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must have a tokenizer\.json with added_tokens"):
        higgs3_spec(config(), str(tmp_path))


def test_the_layout_is_the_published_one(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    layout = spec.layout
    assert layout.delays == tuple(range(8))
    first = TEXT_VOCABULARY
    assert layout.slices[2] == (first + 2 * 1026, first + 2 * 1026 + 1024)
    assert layout.lead_in.token_ids[2] == first + 2 * 1026 + 1024 and not any(
        layout.lead_in.sampled
    )
    assert layout.tail.token_ids[2] == first + 2 * 1026 + 1025 and all(layout.tail.sampled)
    # Heads have all ids of a codebook.
    assert layout.more_than_codes(2) == [first + 2 * 1026 + 1024, first + 2 * 1026 + 1025]
    (phase,) = layout.phases
    assert phase.end_rule.first_step == 8 and not phase.end_rule.forbids_earlier
    assert spec.null_prompt is None
    assert spec.generation_defaults == {
        "speak": {"temperature": 0.8, "top_p": 0.8, "top_k": 30, "max_tokens": 2041}
    }


def test_its_audio_is_the_published_familys(tmp_path: Path) -> None:
    found = speech_lm_pattern(spec_of(tmp_path), 0)
    family = stream_patterns.higgs_3()
    assert found.delays == family.delays

    def own(fill: Fill | None, stream: int) -> Fill | None:
        """With the id of its codebook."""
        if fill is None or fill.token_id is None or not fill.embeds:
            return None
        return replace(fill, token_id=fill.token_id - TEXT_VOCABULARY - stream * CODEBOOK_IDS)

    for stream, (fills, expected) in enumerate(zip(found.fills, family.fills, strict=True)):
        assert own(fills.lead_in, stream) == expected.lead_in
        assert own(fills.tail, stream) == expected.tail
        # Beside text nothing is added.
        assert own(fills.text, stream) is None
    rule = found.end_rule
    assert isinstance(rule, IdOnPrimary)
    assert replace(rule, end_ids=(rule.end_ids[0] - TEXT_VOCABULARY,)) == family.end_rule


def test_tensors_get_the_engines_names(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    found = dict(engine_weights(weights.items(), config()))
    table = found.pop("backbone.model.embed_tokens.weight")
    assert torch.equal(table, torch.cat([weights[TEXT], weights[CODES]]))
    assert torch.equal(found["backbone.model.norm.weight"], weights["body.norm.weight"])
    own = [name for name in weights if name.startswith("body.")]
    assert {name.replace("backbone.model.", "body.") for name in found} == set(own)
    # Whichever table comes first.
    other = dict(engine_weights(list(weights.items())[::-1], config()))
    assert torch.equal(other["backbone.model.embed_tokens.weight"], table)


def test_heads_may_be_stored_and_are_not_read(tmp_path: Path) -> None:
    weights = load_file(write_higgs3(tmp_path, has_heads=True) / "model.safetensors")
    found = dict(engine_weights(weights.items(), config()))
    assert not [name for name in found if "head" in name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(V_PROJ), f"lacks the tensor '{V_PROJ}'"),
        (lambda weights: weights.pop(CODES), f"lacks the tensor '{CODES}'"),
        (lambda weights: weights.pop(TEXT), f"lacks the tensor '{TEXT}'"),
        (
            lambda weights: weights.update({"body.layers.1.self_attn.v_proj.bias": torch.ones(1)}),
            r"holds a tensor that the model lacks: 'body\.layers\.1\.self_attn\.v_proj\.bias'",
        ),
        (
            lambda weights: weights.update({CODES: torch.ones(8 * 1024, HIDDEN)}),
            rf"'{CODES}' must have shape \[8208, 64\], .* not \[8192, 64\]",
        ),
        (
            lambda weights: weights.update({"tied.head.text_head.weight": torch.ones(2, 2)}),
            r"'tied\.head\.text_head\.weight' must have shape \[288, 64\]",
        ),
    ],
)
def test_a_wrong_tensor_is_named(
    change: Callable[[Weights], Any], message: str, folder: Path
) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    with pytest.raises(ValueError, match=message):
        dict(engine_weights(weights.items(), config()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: weights.pop(f"{PREFIX}.model.fc2.bias"),
            rf"lacks the tensor '{PREFIX}\.model\.fc2\.bias'$",
        ),
        (
            lambda weights: weights.update({f"{PREFIX}.model.fc3.bias": torch.ones(1)}),
            rf"holds what HiggsAudioV2Tok\w+ lacks: the tensor '{PREFIX}\.model\.fc3\.bias'",
        ),
        (
            lambda weights: weights.update({f"{PREFIX}.model.fc2.bias": torch.ones(1)}),
            rf"the tensor '{PREFIX}\.model\.fc2\.bias' must have shape \[16\], .* not \[1\]$",
        ),
    ],
)
def test_a_wrong_tensor_of_the_codec_is_named(
    change: Callable[[Weights], Any], message: str, folder: Path, tmp_path: Path
) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        codec_of(higgs3_spec(config(), str(tmp_path)), "cpu")


def test_the_codec_is_read_from_the_checkpoint_in_float32(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    # As published.
    save_file(
        {
            name: weight.bfloat16() if weight.is_floating_point() else weight
            for name, weight in weights.items()
        },
        tmp_path / "model.safetensors",
    )
    codec: Any = codec_of(higgs3_spec(config(), str(tmp_path)), "cpu")
    assert (codec.sample_rate, codec.samples_per_frame, codec.num_codebooks) == (24000, 960, 8)
    assert {parameter.dtype for parameter in codec.model.parameters()} == {torch.float32}


def test_the_published_codec_has_the_published_sizes() -> None:
    """The checkpoint holds 528 tensors of it, one of which transformers has no use for."""
    from transformers import HiggsAudioV2TokenizerConfig

    from vllm.unison.codecs.higgs_audio_codec import HiggsAudioCodec, tokenizer_class

    found = HiggsAudioV2TokenizerConfig.from_dict(dict(CODEC_CONFIG))
    assert (found.hop_length, found.frame_rate, found.num_quantizers) == (960, 25, 8)
    with torch.device("meta"):
        model = tokenizer_class()(found)
    names = model.state_dict().keys()
    assert len(names) == 527 and HiggsAudioCodec.unused_tensors.isdisjoint(names)


def test_the_published_checkpoint_has_as_many_tensors_as_are_expected() -> None:
    sizes = {
        "hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 9728, "vocab_size": 151936,
    }  # fmt: skip
    expected = published_tensors(config(sizes, out_dim=2560))
    assert len(expected.shapes) - len(expected.optional) == 399
    assert expected.shapes["body.layers.35.mlp.down_proj.weight"] == (2560, 9728)
    assert expected.shapes[CODES] == (8208, 2560)
