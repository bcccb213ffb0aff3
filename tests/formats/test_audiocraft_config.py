# SPDX-License-Identifier: Apache-2.0
"""The settings in audiocraft's files, as the configurations that transformers writes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import EncodecConfig, MusicgenConfig, T5Config

from tests.support.audiocraft import as_yaml, audiocraft_settings
from tests.support.musicgen import tiny_config, write_musicgen
from vllm.unison.formats.audiocraft_config import audiocraft_config
from vllm.unison.formats.musicgen import musicgen_format

T5 = T5Config(d_model=1024, vocab_size=32128)


def audiogen() -> MusicgenConfig:
    """audiogen-medium's sizes: the configuration that transformers' conversion would give it."""
    codec = EncodecConfig(
        sampling_rate=16000, upsampling_ratios=[8, 5, 4, 2], num_filters=64, hidden_size=128,
        codebook_size=2048, target_bandwidths=[2.2], use_causal_conv=False,
        use_conv_shortcut=False, pad_mode="constant",
    )  # fmt: skip
    decoder = {
        "hidden_size": 1536, "ffn_dim": 6144, "num_hidden_layers": 48, "num_attention_heads": 24,
        "num_codebooks": 4, "vocab_size": 2048, "pad_token_id": 2048, "bos_token_id": 2048,
    }  # fmt: skip
    return MusicgenConfig(text_encoder=T5.to_dict(), audio_encoder=codec.to_dict(), decoder=decoder)


def put(settings: list[dict[str, Any]], name: str, value: Any) -> None:
    """Set what a name with dots says, in the settings of the model that has its first part."""
    first = name.split(".")[0]
    found = next(one for one in settings if first in one)
    *parts, last = name.split(".")
    for part in parts:
        found = found[part]
    if value is ...:
        del found[last]
    else:
        found[last] = value


def read(config: Any, **changes: Any) -> Any:
    settings = audiocraft_settings(config, "t5-large")
    for name, value in changes.items():
        put(settings, name, value)
    return audiocraft_config(*as_yaml(*settings))


def as_published(config: Any) -> dict[str, Any]:
    """What decides about a model in a MusicgenConfig."""
    ignored = {
        "_name_or_path", "architectures", "dtype", "transformers_version", "activation_dropout",
        "attention_dropout", "dropout", "initializer_factor", "layerdrop",
    }  # fmt: skip
    found: dict[str, Any] = {}
    for part in ("audio_encoder", "decoder"):
        values = getattr(config, part).to_dict().items()
        found[part] = {name: value for name, value in values if name not in ignored}
    return found


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(audiogen(), id="audiogen-medium"),
        pytest.param(tiny_config(), id="mono"),
        pytest.param(tiny_config(channels=2), id="stereo"),
    ],
)
def test_it_is_the_configuration_that_transformers_writes(config: Any) -> None:
    found = read(config)
    whole = MusicgenConfig.from_dict(found.config(T5.to_dict()))
    expected = as_published(config)
    # Positions are computed: the conversion leaves their number at its default.
    expected["decoder"]["max_position_embeddings"] = 2048
    assert as_published(whole) == expected
    assert whole.text_encoder.d_model == 1024
    assert found.config(T5.to_dict())["text_encoder"]["_name_or_path"] == "t5-large"


def test_defaults_are_audiocrafts_and_the_seconds_those_of_training() -> None:
    found = read(audiogen(), **{"classifier_free_guidance.inference_coef": 2.5})
    model = musicgen_format(found.config(T5.to_dict()), found.generation)
    defaults = model.defaults
    assert (defaults.temperature, defaults.top_k, defaults.top_p) == (1.0, 250, 1.0)
    assert defaults.guidance_scale == 2.5
    assert model.frames_per_second == 50 and model.num_frames(defaults.max_length) == 500
    assert read(audiogen()).generation["guidance_scale"] == 3.0
    unsaid = read(audiogen(), **{"classifier_free_guidance": ...})
    assert unsaid.generation["guidance_scale"] == 3.0


@pytest.mark.parametrize(
    ("bins", "n_q", "frames"),
    # In the last three the bandwidth, a number of kilobits, is rounded down.
    [(2048, 4, 50), (1024, 8, 75), (16, 15, 67), (1024, 29, 7), (2048, 7, 13)],
)
def test_transformers_counts_as_many_codebooks(bins: int, n_q: int, frames: int) -> None:
    changes = {
        "rvq.bins": bins, "rvq.n_q": n_q, "transformer_lm.card": bins, "transformer_lm.n_q": n_q,
        "codebooks_pattern.delay.delays": list(range(n_q)),
    }  # fmt: skip
    settings = audiocraft_settings(audiogen(), "t5-large")
    for name, value in changes.items():
        put(settings, name, value)
    settings[1]["sample_rate"] = 320 * frames
    found = audiocraft_config(*as_yaml(*settings))
    assert EncodecConfig.from_dict(dict(found.audio_encoder)).num_quantizers == n_q


def test_an_older_way_to_say_the_delays() -> None:
    old = {"codebooks_pattern": ..., "transformer_lm.q_modeling": "delay"}
    assert read(audiogen(), **old).decoder == read(audiogen()).decoder
    with pytest.raises(ValueError, match=r"transformer_lm\.q_modeling must be 'delay', not None"):
        read(audiogen(), codebooks_pattern=...)


REFUSED: list[tuple[str, Any, str]] = [
    ("lm_model", "transformer_lm_magnet", "'transformer_lm'"),
    ("transformer_lm.norm_first", False, "True"),
    ("transformer_lm.norm_first", ..., "True"),
    ("transformer_lm.norm", "rms_norm", "'layer_norm'"),
    ("transformer_lm.bias_proj", True, "False"),
    ("transformer_lm.bias_ff", True, "False"),
    ("transformer_lm.bias_attn", ..., "False"),
    ("transformer_lm.positional_embedding", "rope", "'sin'"),
    ("transformer_lm.positional_scale", 0.5, "1"),
    ("transformer_lm.max_period", 100, "10000"),
    ("transformer_lm.qk_layer_norm", True, "False"),
    ("transformer_lm.qk_layer_norm_cross", True, "False"),
    ("transformer_lm.layer_scale", 0.1, "None"),
    ("transformer_lm.past_context", 100, "None"),
    ("transformer_lm.causal", False, "True"),
    ("transformer_lm.kv_repeat", 2, "1"),
    ("transformer_lm.activation", "relu", "'gelu'"),
    ("transformer_lm.two_step_cfg", True, "False"),
    ("transformer_lm.dim", ..., "an integer of at least 1"),
    ("transformer_lm.dim", 1.5, "an integer of at least 1"),
    ("transformer_lm.dim", 1535, "even and a multiple of 24 heads"),
    ("transformer_lm.hidden_scale", "4", "a number above 0"),
    ("transformer_lm.card", 1024, "the codec's rvq.bins, 2048"),
    ("rvq.n_q", 2, "at most the codec's 2 codebooks a channel"),
    ("codebooks_pattern.modeling", "parallel", "'delay'"),
    ("codebooks_pattern.delay.delays", [0, 0, 0, 0], r"\[0, 1, 2, 3\]"),
    ("codebooks_pattern.delay.flatten_first", 1, "0"),
    ("interleave_stereo_codebooks.per_timestep", True, "False"),
    ("fuser.cross", [], r"\['description'\]"),
    ("fuser.prepend", ["self_wav"], r"\[\]"),
    ("fuser.cross_attention_pos_emb", True, "False"),
    ("conditioners.description.model", "clap", "'t5'"),
    ("conditioners.description.t5.finetune", True, "False"),
    ("conditioners.description.t5.normalize_text", True, "False"),
    ("conditioners.description.t5.name", ..., "a name"),
    ("classifier_free_guidance.inference_coef", -1, "a number of at least 0"),
    ("dataset.segment_duration", ..., "a number above 0"),
    ("compression_model", "dac", "'encodec'"),
    ("encodec.renormalize", True, "False"),
    ("seanet.channels", 2, "1"),
    ("seanet.norm", "time_group_norm", "'weight_norm'"),
    ("seanet.activation", "ReLU", "'ELU'"),
    ("seanet.lstm", 0, "an integer of at least 1"),
    ("seanet.pad_mode", "replicate", "'constant' or 'reflect'"),
    ("seanet.ratios", [8, 0], "a list of integers of at least 1"),
    ("seanet.encoder", {"n_filters": 8}, r"\{\}"),
    ("seanet.decoder.final_activation", "Tanh", "None"),
    ("seanet.decoder.trim_right_ratio", 0.5, "1, or less if causal"),
    ("encodec.sample_rate", 16001, "a multiple of 320"),
]


@pytest.mark.parametrize(("name", "value", "accepted"), REFUSED)
def test_what_the_engine_cannot_follow_is_refused_by_name(
    name: str, value: Any, accepted: str
) -> None:
    in_codec = name.split(".")[0] in ("compression_model", "encodec", "seanet")
    file = "compression_state_dict.bin" if in_codec else "state_dict.bin"
    # The codebooks of a codec are too few for a language model.
    shown = "transformer_lm.n_q" if name == "rvq.n_q" else name
    with pytest.raises(
        ValueError, match=rf"^{file}: xp\.cfg: {re.escape(shown)} must be {accepted}"
    ):
        read(audiogen(), **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("conditioners.self_wav", {"model": "chroma_stem"}),
        ("transformer_lm.span_len", 3),
        ("seanet.wavelets", True),
        ("seanet.decoder.n_filters", 8),
    ],
)
def test_what_is_not_known_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"xp\.cfg: {re.escape(name)} is not supported"):
        read(audiogen(), **{name: value})


@pytest.mark.parametrize("value", ["${seanet.dimension}", "${nothing}", "${oc.env:HOME}", "???"])
def test_a_setting_that_refers_to_nothing_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"xp\.cfg: seanet\.dimension must "):
        read(audiogen(), **{"seanet.dimension": value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "must be YAML of settings by name"),
        ("", "must be YAML of settings by name"),
        ("- 1", "must be YAML of settings by name"),
        ("a: [", "must be YAML: "),
        ("a: !!python/object/apply:os.getcwd []", "must be YAML: "),
    ],
)
def test_settings_that_are_none(text: object, message: str) -> None:
    _, codec = as_yaml(*audiocraft_settings(audiogen(), "t5-large"))
    with pytest.raises(ValueError, match=rf"^state_dict\.bin: xp\.cfg {message}"):
        audiocraft_config(text, codec)


def test_the_small_model_of_the_engines_tests_is_described(tmp_path: Path) -> None:
    config = write_musicgen(tmp_path, audiogen=True).config
    found = read(config).audio_encoder
    assert (found["sampling_rate"], found["upsampling_ratios"]) == (16000, [8, 5, 4, 2])
