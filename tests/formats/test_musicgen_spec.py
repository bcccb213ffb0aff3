# SPDX-License-Identifier: Apache-2.0
"""A folder of a MusicGen model as the engine is configured by it."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import MusicgenConfig, MusicgenMelodyConfig

from tests.support.musicgen import register_architecture, write_musicgen
from vllm.engine.arg_utils import EngineArgs
from vllm.transformers_utils.config import get_config
from vllm.unison.formats.musicgen import musicgen_format, read_musicgen
from vllm.unison.formats.musicgen_spec import CONTINUE, GENERATE, spec_of_format
from vllm.unison.frontend.prompt_layout import (
    apply_delay_pattern,
    frames_of_codes,
    frames_of_tokens,
)
from vllm.unison.frontend.tasks import emits
from vllm.unison.model.end_rules import speech_lm_pattern
from vllm.unison.model.layout import LayoutError
from vllm.unison.model.phases import NO_TOKEN, StateKind, start_of_generation
from vllm.unison.model.spec import (
    SAME_PROMPT,
    CodecSource,
    SpeechSpec,
    TaskPrompt,
    TextEncoderSpec,
    multistream_spec,
)


@pytest.fixture(scope="module", params=[False, True], ids=["mono", "stereo"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("musicgen")
    write_musicgen(folder, stereo=request.param)
    return folder


@pytest.fixture
def model_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return configured(folder, monkeypatch)


def configured(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """The engine's model configuration."""
    register_architecture(monkeypatch)
    return EngineArgs(model=str(folder), **options).create_model_config()


def test_the_configuration_is_the_published_one(folder: Path) -> None:
    config = get_config(str(folder), trust_remote_code=False)
    published = MusicgenConfig.from_pretrained(folder)
    assert published.is_encoder_decoder and not config.is_encoder_decoder
    changed = {"is_encoder_decoder": False, "_name_or_path": str(folder)}
    assert config.to_dict() == published.to_dict() | changed
    assert config.architectures == ["MusicgenForConditionalGeneration"]
    for made in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert type(made) is type(config) and not made.is_encoder_decoder
        assert made.to_dict() == config.to_dict()


def test_melody_s_configuration_is_the_published_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_musicgen(tmp_path, melody=True)
    config = get_config(str(tmp_path), trust_remote_code=False)
    published = MusicgenMelodyConfig.from_pretrained(tmp_path)
    changed = {"is_encoder_decoder": False, "_name_or_path": str(tmp_path)}
    assert config.to_dict() == published.to_dict() | changed
    made = copy.deepcopy(config)
    assert type(made) is type(config) and not made.is_encoder_decoder
    of_engine = configured(tmp_path, monkeypatch)
    assert of_engine.max_model_len == 256 and of_engine.get_vocab_size() == 64 + 1
    assert type(of_engine.hf_text_config) is type(published.decoder)
    spec = multistream_spec(of_engine)
    assert spec is not None
    assert [(task.name, task.parts) for task in spec.tasks] == [
        ("generate", ("encoder_text", "prefix", 64)),
        ("melody", ("encoder_text", "melody", "prefix", 64)),
    ]
    assert [task.needs for task in spec.tasks] == [{"text"}, {"text", "audio"}]


def test_the_engine_sizes_its_caches_by_the_decoder(model_config: Any) -> None:
    assert not model_config.is_encoder_decoder and not model_config.is_multimodal_model
    assert model_config.max_model_len == 256
    # The fill is embedded too.
    assert model_config.get_vocab_size() == 65
    text = model_config.hf_text_config
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (64, 2, 2)
    assert model_config.get_head_size() == 32
    # Chunked prefill and prefix caching stay as they are for any decoder.
    assert model_config.is_chunked_prefill_supported
    assert model_config.is_prefix_caching_supported


def test_positions_can_be_fewer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert configured(folder, monkeypatch, max_model_len=100).max_model_len == 100
    with pytest.raises(ValueError, match="max_model_len"):
        configured(folder, monkeypatch, max_model_len=257)


def test_a_wrong_configuration_is_refused_by_field(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["decoder"]["activation_function"] = "relu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"decoder\.activation_function must be 'gelu', not 'relu'"
    ):
        get_config(str(tmp_path), trust_remote_code=False)
    del config["text_encoder"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"text_encoder\.model_type must be 't5', not None"):
        get_config(str(tmp_path), trust_remote_code=False)


def test_the_specification_is_that_of_the_format(model_config: Any, folder: Path) -> None:
    spec = multistream_spec(model_config)
    assert spec is not None and multistream_spec(model_config) is spec
    form = read_musicgen(folder)
    pattern = speech_lm_pattern(spec, 0)
    fills = tuple(replace(fills, text=None) for fills in pattern.fills)
    assert replace(pattern, fills=fills) == form.pattern
    assert spec.layout.slices == ((0, 64),) * form.num_streams
    assert spec.layout.codebook_streams == tuple(range(form.num_streams))
    assert spec.codec == CodecSource(".", None, "audio_encoder", form.num_channels)
    assert spec.model_path == str(folder)
    assert spec.null_prompt == SAME_PROMPT and not spec.guides_audio_only
    assert spec.text_encoder == TextEncoderSpec(512, form.text_config.vocab_size)
    assert spec.frames_per_second == Fraction(50)
    for task in spec.tasks:
        assert emits(spec.layout, task) == {"audio"}
    needs = {task.name: task.needs for task in spec.tasks}
    assert needs == {GENERATE: {"text"}, CONTINUE: {"text", "audio"}}


@pytest.mark.parametrize("num_frames", [0, 1, 5])
def test_a_prompt_is_that_of_the_format(folder: Path, num_frames: int) -> None:
    form = read_musicgen(folder)
    layout = spec_of_format(form).layout
    codes = np.random.default_rng(0).integers(0, 64, (num_frames, form.num_streams), np.int32)
    start = frames_of_tokens(layout, [form.fill_id])
    built = apply_delay_pattern(layout, np.concatenate([start, frames_of_codes(layout, codes)]))
    steps = np.column_stack([built.token_ids, built.auxiliary_ids[: len(built.token_ids)]])
    np.testing.assert_array_equal(steps, form.decoder_prompt(codes))
    # What is delayed past the prompt: the codes of the last frames, then what is sampled.
    suffix = built.auxiliary_ids[len(built.token_ids) :]
    for k, delay in enumerate(layout.delays[1:]):
        frames = [codes[f, k + 1] for f in range(num_frames)]
        expected = ([form.fill_id] * (1 + delay) + frames)[len(built.token_ids) :]
        expected += [NO_TOKEN] * (layout.max_delay - len(expected))
        assert suffix[:, k].tolist() == expected
    state, segment_start = start_of_generation(layout, built.token_ids)
    assert (SpeechSpec(layout).table.kind[state], segment_start) == (StateKind.AUDIO, 1)


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        # facebook/musicgen-small: 1500 positions are 1496 frames.
        ({"do_sample": True, "guidance_scale": 3.0, "max_length": 1500}, (1.0, 50, 1496, 3.0)),
        ({"do_sample": True, "guidance_scale": 3.0, "max_new_tokens": 1500}, (1.0, 50, 1497, 3.0)),
        ({"max_length": 1500, "top_k": 7, "guidance_scale": 1.0}, (0.0, 7, 1496, None)),
        ({"do_sample": True, "temperature": 0.7, "max_length": 4096}, (0.7, 50, 2044, None)),
        ({"do_sample": True, "guidance_scale": 0.5, "max_length": 2}, (1.0, 50, 1, None)),
        # audiocraft's: 30 seconds.
        (None, (1.0, 250, 1500, 3.0)),
    ],
)
def test_defaults_are_the_published_ones(
    generation: dict[str, Any] | None, expected: tuple[Any, ...]
) -> None:
    config = {
        "model_type": "musicgen",
        "text_encoder": {"model_type": "t5"},
        "audio_encoder": {"model_type": "encodec", "sampling_rate": 32000,
                          "upsampling_ratios": [8, 5, 4, 4], "codebook_size": 2048,
                          "target_bandwidths": [2.2]},
        "decoder": {"model_type": "musicgen_decoder"},
    }  # fmt: skip
    defaults = spec_of_format(musicgen_format(config, generation)).generation_defaults
    assert defaults[GENERATE] == defaults[CONTINUE]
    names = ("temperature", "top_k", "max_tokens", "guidance_scale")
    assert tuple(defaults[GENERATE].get(name) for name in names) == expected
    assert defaults[GENERATE]["top_p"] == 1.0


def test_a_specification_says_where_the_text_goes() -> None:
    layout = spec_of_format(musicgen_format_of(4)).layout
    for parts, encoder in (((4,), TextEncoderSpec(9, 9)), (("encoder_text", 4), None)):
        with pytest.raises(LayoutError, match="tasks must take 'encoder_text', all of them, if "):
            SpeechSpec(layout, tasks=(TaskPrompt("generate", parts),), text_encoder=encoder)
    with pytest.raises(LayoutError, match=r"text_encoder\.max_ids must be at least 1, not 0"):
        TextEncoderSpec(0, 9)
    with pytest.raises(LayoutError, match="null_prompt 'same' is for models with a text encoder"):
        SpeechSpec(layout, null_prompt=SAME_PROMPT)
    with pytest.raises(LayoutError, match="frames_per_second must be above 0, not 0"):
        SpeechSpec(layout, frames_per_second=Fraction(0))


def musicgen_format_of(codebook_size: int) -> Any:
    sizes = {"vocab_size": codebook_size, "pad_token_id": codebook_size}
    return musicgen_format(
        {
            "model_type": "musicgen",
            "text_encoder": {"model_type": "t5"},
            "audio_encoder": {"model_type": "encodec", "codebook_size": codebook_size,
                              "target_bandwidths": [24.0]},
            "decoder": {"model_type": "musicgen_decoder", "bos_token_id": codebook_size, **sizes},
        }
    )  # fmt: skip
