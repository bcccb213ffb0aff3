# SPDX-License-Identifier: Apache-2.0
"""MusicGen's published configuration, and its counts compared with transformers' delay pattern."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import ClassifierFreeGuidanceLogitsProcessor

from tests.support.musicgen import CODEBOOK_SIZE, tiny_config, tiny_musicgen
from vllm.unison.formats.generation_config import SamplingDefaults
from vllm.unison.formats.musicgen import (
    Conditioning,
    MusicGenFormat,
    NullInput,
    musicgen_format,
    read_musicgen,
)
from vllm.unison.model.end_rules import next_column
from vllm.unison.model.phases import NO_TOKEN

FILL = CODEBOOK_SIZE


@pytest.fixture(scope="module", params=[1, 2], ids=["mono", "stereo"])
def model(request: pytest.FixtureRequest) -> Any:
    return tiny_musicgen(channels=request.param)


def format_of(model: Any) -> MusicGenFormat:
    return musicgen_format(model.config.to_dict(), model.generation_config.to_dict())


def columns_of(form: MusicGenFormat, num_frames: int, prompt: np.ndarray[Any, Any] | None) -> Any:
    """What is forced at each position of the decoder, NO_TOKEN where it samples."""
    given = np.empty((0, form.num_streams), np.int32) if prompt is None else prompt
    columns = list(form.decoder_prompt(given))
    while True:
        emitted = np.array(columns[1:], np.int32).reshape(-1, form.num_streams)
        found = next_column(form.pattern, emitted, limit=num_frames, prompt=prompt)
        if found.ended:
            return np.array(columns)
        columns.append(found.forced)


@settings(max_examples=80)
@given(st.sampled_from([1, 2]), st.integers(1, 20), st.data())
def test_forced_cells_are_transformers_mask(
    channels: int, num_frames: int, data: st.DataObject
) -> None:
    form = musicgen_format(tiny_config(channels=channels).to_dict())
    num_prompt = data.draw(st.integers(0, num_frames - 1))
    codes = st.lists(st.integers(0, FILL - 1), min_size=form.num_streams, max_size=form.num_streams)
    rows = data.draw(st.lists(codes, min_size=num_prompt, max_size=num_prompt))
    prompt = np.array(rows, np.int32) if rows else None

    decoder = _decoder(channels)
    given = torch.full((form.num_streams, 1 + num_prompt), FILL)
    if prompt is not None:
        given[:, 1:] = torch.from_numpy(prompt.T)
    positions = form.num_positions(num_frames)
    begun, mask = decoder.build_delay_pattern_mask(given, FILL, positions)
    ours = columns_of(form, num_frames, prompt)
    assert len(ours) == positions
    if positions < form.min_masked_positions:
        assert (mask == -1).all()
        return
    np.testing.assert_array_equal(ours, mask.T.numpy())
    np.testing.assert_array_equal(
        form.decoder_prompt(ours[:0] if prompt is None else prompt), begun.T
    )

    # What it makes of sampled ids, and the frames that it finds in them.
    sampled = torch.from_numpy(
        np.random.default_rng(num_frames).integers(0, FILL, (form.num_streams, positions))
    )
    applied = decoder.apply_delay_pattern_mask(sampled, mask)
    np.testing.assert_array_equal(applied.T, np.where(ours == NO_TOKEN, sampled.T, ours))
    frames = applied[applied != FILL].reshape(form.num_streams, -1)
    assert frames.shape[1] == num_frames == form.num_frames(positions)


_decoders: dict[int, Any] = {}


def _decoder(channels: int) -> Any:
    if channels not in _decoders:
        _decoders[channels] = tiny_musicgen(channels=channels).decoder
    return _decoders[channels]


def test_short_audio_has_a_pattern_in_transformers_from_the_bound_on(model: Any) -> None:
    form = format_of(model)
    for positions in range(1, 12):
        given = torch.full((form.num_streams, 1), FILL)
        _, mask = model.decoder.build_delay_pattern_mask(given, FILL, positions)
        assert bool((mask != -1).any()) == (positions >= form.min_masked_positions)


def test_a_folder_is_read_as_transformers_writes_it(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    form = read_musicgen(tmp_path)
    channels = model.config.decoder.audio_channels
    assert (form.num_streams, form.num_channels) == (4 * channels, channels)
    assert form.codebooks_per_channel == 4
    assert form.pattern.delays == ((0, 1, 2, 3) if channels == 1 else (0, 0, 1, 1, 2, 2, 3, 3))
    assert form.fill_id == FILL
    sizes = (form.hidden_size, form.ffn_dim, form.num_layers, form.num_heads, form.max_positions)
    assert sizes == (16, 40, 2, 2, 64)
    assert form.conditioning is Conditioning.CROSS_ATTENTION
    assert form.null_input is NullInput.NO_STATES
    assert form.num_chroma == form.chroma_length == 0
    assert form.frames_per_second == Fraction(50)
    assert form.defaults == SamplingDefaults(1.0, 50, 1.0, 3.0, 60)
    assert form.text_config.d_model == 12


def test_melody_is_read_too(tmp_path: Path) -> None:
    tiny_musicgen(melody=True).save_pretrained(tmp_path)
    form = read_musicgen(tmp_path)
    assert form.conditioning is Conditioning.PREFIX
    assert form.null_input is NullInput.NULL_PREFIX
    assert (form.num_chroma, form.chroma_length) == (12, 7)


def test_no_states_are_what_transformers_gives_the_null_lane(model: Any) -> None:
    """Zero states, all masked: to the bit as if there were no cross-attention."""
    columns = torch.randint(0, FILL, (model.config.decoder.num_codebooks, 9))
    null = {
        "encoder_hidden_states": torch.zeros(1, 5, 16),
        "encoder_attention_mask": torch.zeros(1, 5, dtype=torch.long),
    }

    def add_zero(module: Any, inputs: Any, output: Any) -> Any:
        return (torch.zeros_like(output[0]), *output[1:])

    with torch.no_grad():
        by_transformers = model.decoder(columns, **null).logits
        hooks = [
            layer.encoder_attn.register_forward_hook(add_zero)
            for layer in model.decoder.model.decoder.layers
        ]
        without = model.decoder(columns, **null).logits
        for hook in hooks:
            hook.remove()
        text = {"encoder_hidden_states": torch.randn(1, 5, 16)}
        conditional = model.decoder(columns, **text).logits
    assert torch.equal(by_transformers, without)
    assert not torch.allclose(by_transformers, conditional)


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5, 3.0])
def test_guidance_is_that_of_transformers(scale: float) -> None:
    lanes = torch.randn(2, 3, 16)
    weights = MusicGenFormat.lane_weights(scale)
    merged = sum(weight * lane for weight, lane in zip(weights, lanes, strict=False))
    expected = lanes[0]
    if scale > 1:
        columns = torch.zeros(3, 1)
        expected = ClassifierFreeGuidanceLogitsProcessor(scale)(columns, lanes.flatten(0, 1))
    torch.testing.assert_close(merged, expected)


def test_the_published_numbers() -> None:
    """facebook/musicgen-small, whose config.json leaves out what is transformers' default."""
    form = musicgen_format(
        {
            "model_type": "musicgen",
            "text_encoder": {"model_type": "t5", "d_model": 768},
            "audio_encoder": {
                "model_type": "encodec",
                "sampling_rate": 32000,
                "upsampling_ratios": [8, 5, 4, 4],
                "codebook_size": 2048,
                "target_bandwidths": [2.2],
                "use_causal_conv": False,
            },
            "decoder": {"model_type": "musicgen_decoder"},
        }
    )
    assert form.frames_per_second == 50
    assert (form.hidden_size, form.num_layers, form.num_heads) == (1024, 24, 16)
    assert form.fill_id == 2048
    # max_new_tokens 1500 gives 1497 frames; 30 s take 1503 steps.
    assert form.num_frames(1 + 1500) == 1497
    assert form.num_positions(1500) == 1 + 1503
    # Without a generation_config.json audiocraft's settings hold.
    assert form.defaults == SamplingDefaults(1.0, 250, 1.0, 3.0, 1504)


def changed(*path: str, to: Any) -> Callable[[Any, Any], None]:
    def change(config: Any, generation: Any) -> None:
        place = generation if path[0] == "generation_config" else config
        names = path[1:] if path[0] == "generation_config" else path
        for name in names[:-1]:
            place = place[name]
        place[names[-1]] = to

    return change


REFUSALS = [
    (changed("model_type", to="dia"), r"model_type must be one of \['musicgen', "),
    (changed("text_encoder", to=None), r"text_encoder\.model_type must be 't5', not None"),
    (changed("text_encoder", "model_type", to="bert"), r"text_encoder\.model_type must be 't5'"),
    (changed("audio_encoder", "model_type", to="dac"), r"audio_encoder\.model_type must be 'encod"),
    (changed("decoder", "audio_channels", to=3), "config.json: .*audio channels"),
    (changed("decoder", "hidden_size", to="16"), "config.json: .*hidden_size"),
    (changed("decoder", "num_hidden_layers", to=0), r"decoder\.num_hidden_layers must be at l"),
    (changed("decoder", "num_attention_heads", to=3), r"decoder\.hidden_size must be even and "),
    (changed("decoder", "num_codebooks", to=5), r"decoder\.num_codebooks must be 1 to 4 for each"),
    (changed("decoder", "activation_function", to="relu"),
     r"decoder\.activation_function must be 'gelu', not 'relu'"),
    (changed("decoder", "pad_token_id", to=3), r"decoder\.pad_token_id must be 16, not 3"),
    (changed("decoder", "bos_token_id", to=3), r"decoder\.bos_token_id must be 16, not 3"),
    (changed("decoder", "tie_word_embeddings", to=True), r"decoder\.tie_word_embeddings must be F"),
    (changed("decoder", "cross_attention_hidden_size", to=12),
     r"decoder\.cross_attention_hidden_size must be None, not 12"),
    (changed("audio_encoder", "codebook_size", to=8), r"audio_encoder\.codebook_size must be 16"),
    (changed("audio_encoder", "audio_channels", to=2), r"audio_encoder\.audio_channels must be 1"),
    (changed("audio_encoder", "normalize", to=True), r"audio_encoder\.normalize must be False"),
    (changed("audio_encoder", "chunk_length_s", to=1.0), r"audio_encoder\.chunk_length_s must be "),
    (changed("generation_config", "pad_token_id", to=0),
     r"generation_config\.pad_token_id must be 16"),
    (changed("generation_config", "decoder_start_token_id", to=1),
     r"generation_config\.decoder_start_token_id must be 16, not 1"),
    (changed("generation_config", "guidance_scale", to="3"),
     r"generation_config\.guidance_scale must be a number of at least 0, not '3'"),
    (changed("generation_config", "temperature", to=-1),
     r"generation_config\.temperature must be a number of at least 0"),
    (changed("generation_config", "top_k", to=2.5),
     r"generation_config\.top_k must be an integer of at least 0, not 2\.5"),
    (changed("generation_config", "max_length", to=1),
     r"generation_config\.max_length must be an integer of at least 2, not 1"),
    (changed("generation_config", "do_sample", to="yes"),
     r"generation_config\.do_sample must be a boolean, not 'yes'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSALS)
def test_a_refusal_names_the_field(change: Callable[[Any, Any], None], message: str) -> None:
    config = json.loads(json.dumps(tiny_config().to_dict()))
    generation = {"do_sample": True, "guidance_scale": 3.0}
    change(config, generation)
    with pytest.raises(ValueError, match=f"^{message}"):
        musicgen_format(config, generation)


def test_what_generation_config_leaves_out_is_transformers_default() -> None:
    config = tiny_config().to_dict()
    assert musicgen_format(config, {}).defaults == SamplingDefaults(0.0, 50, 1.0, 1.0, 20)
    sampled = musicgen_format(config, {"do_sample": True, "top_k": 0}).defaults
    assert sampled == SamplingDefaults(1.0, 0, 1.0, 1.0, 20)
