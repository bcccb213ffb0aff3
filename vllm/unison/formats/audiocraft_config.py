# SPDX-License-Identifier: Apache-2.0
"""What audiocraft's own files say of a model, as config.json and generation_config.json say it.

Beside its tensors each file holds the settings that its model was trained with (`xp.cfg`), as YAML:
those that audiocraft builds it from. They become what transformers publishes of a converted model.
A setting that is left out has the value that audiocraft's constructors give it; one that the engine
cannot follow, or does not know, is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm.unison.formats.musicgen_config import checked_config
from vllm.unison.formats.musicgen_weights import CODEC_FILE, LANGUAGE_MODEL_FILE

NUM_POSITIONS = 2048
"""What transformers' conversion gives every model; positions are computed, not learned."""

TEMPERATURE, TOP_K = 1.0, 250
"""With which audiocraft samples, whatever the model."""

_CONDITIONER = "description"
_TEXT = f"conditioners.{_CONDITIONER}"
_REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.]*)\}")
_MAX_REFERENCES = 8
_MISSING = object()

# Of each setting: what it is if left out, and what the engine computes.
_LANGUAGE_MODEL: tuple[tuple[str, Any, Any], ...] = (
    ("lm_model", None, "transformer_lm"),
    ("transformer_lm.norm", "layer_norm", "layer_norm"),
    ("transformer_lm.norm_first", False, True),
    ("transformer_lm.layer_norm_eps", 1e-5, 1e-5),
    ("transformer_lm.bias_proj", True, False),
    ("transformer_lm.bias_ff", True, False),
    ("transformer_lm.bias_attn", True, False),
    ("transformer_lm.causal", False, True),
    ("transformer_lm.past_context", None, None),
    ("transformer_lm.layer_scale", None, None),
    ("transformer_lm.positional_embedding", "sin", "sin"),
    ("transformer_lm.max_period", 10000, 10000),
    ("transformer_lm.positional_scale", 1, 1),
    ("transformer_lm.qk_layer_norm", False, False),
    ("transformer_lm.qk_layer_norm_cross", False, False),
    ("transformer_lm.kv_repeat", 1, 1),
    ("transformer_lm.activation", "relu", "gelu"),
    ("transformer_lm.two_step_cfg", False, False),
    ("codebooks_pattern.delay.flatten_first", 0, 0),
    ("codebooks_pattern.delay.empty_initial", 0, 0),
    ("interleave_stereo_codebooks.per_timestep", False, False),
    ("fuser.cross", None, [_CONDITIONER]),
    ("fuser.sum", [], []),
    ("fuser.prepend", [], []),
    ("fuser.input_interpolate", [], []),
    ("fuser.cross_attention_pos_emb", False, False),
    (f"{_TEXT}.model", None, "t5"),
    (f"{_TEXT}.t5.finetune", False, False),
    (f"{_TEXT}.t5.normalize_text", False, False),
)
_CODEC: tuple[tuple[str, Any, Any], ...] = (
    ("compression_model", None, "encodec"),
    ("encodec.autoencoder", None, "seanet"),
    ("encodec.quantizer", None, "rvq"),
    ("encodec.channels", None, 1),
    ("encodec.renormalize", False, False),
    ("seanet.channels", 1, 1),
    ("seanet.activation", "ELU", "ELU"),
    ("seanet.activation_params", {"alpha": 1.0}, {"alpha": 1.0}),
    ("seanet.norm", "none", "weight_norm"),
    ("seanet.norm_params", {}, {}),
    ("seanet.disable_norm_outer_blocks", 0, 0),
    ("seanet.encoder", {}, {}),
    ("seanet.decoder.final_activation", None, None),
)

# Known settings that these lists leave out.
_OF_TRANSFORMER = {
    "dim", "num_heads", "num_layers", "hidden_scale", "n_q", "card",
    # How it is computed or trained, not what.
    "attention_as_float32", "attention_dropout", "checkpointing", "cross_attention", "custom",
    "depthwise_init", "dropout", "emb_lr", "lr", "memory_efficient", "q_modeling", "weight_decay",
    "weight_init", "xpos", "zero_bias_init",
}  # fmt: skip
_OF_SEANET = {
    "causal", "compress", "decoder", "dilation_base", "dimension", "kernel_size",
    "last_kernel_size", "lstm", "n_filters", "n_residual_layers", "pad_mode", "ratios",
    "residual_kernel_size", "true_skip",
}  # fmt: skip


class Settings:
    """The settings in one of audiocraft's files.

    Args:
        file: its name, for errors.
        text: the YAML.

    Raises:
        ValueError: if it is none.
    """

    def __init__(self, file: str, text: object) -> None:
        import yaml

        self._file = file
        try:
            values = yaml.safe_load(text) if isinstance(text, str) else None
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise ValueError(f"{file}: xp.cfg must be YAML: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{file}: xp.cfg must be YAML of settings by name")
        self._values: dict[str, Any] = values

    def get(self, name: str, default: Any = None) -> Any:
        """A setting by its dotted name; one that refers to another is that one.

        Raises:
            ValueError: if it refers to nothing.
        """
        found = self._raw(name)
        for _ in range(_MAX_REFERENCES):
            reference = _REFERENCE.fullmatch(found) if isinstance(found, str) else None
            if reference is None:
                return default if found is None or found is _MISSING else found
            found = self._raw(reference[1])
            if found is _MISSING:
                break
        raise self.error(name, "refer to a setting", self._raw(name))

    def _raw(self, name: str) -> Any:
        found: Any = self._values
        for part in name.split("."):
            if not isinstance(found, dict) or part not in found:
                return _MISSING
            found = found[part]
        return found

    def error(self, name: str, accepted: str, value: Any) -> ValueError:
        """Naming a setting and what it must be, or do."""
        return ValueError(f"{self._file}: xp.cfg: {name} must {accepted}, not {value!r}")

    def section(self, name: str, known: set[str] | None = None) -> Mapping[str, Any]:
        """The settings under a name, of which there must be no others than the known ones."""
        found = self.get(name, {})
        if not isinstance(found, dict):
            raise self.error(name, "be settings by name", found)
        for key, value in found.items():
            if known is not None and key not in known:
                raise ValueError(
                    f"{self._file}: xp.cfg: {name}.{key} is not supported (it is {value!r})"
                )
        return found

    def whole(self, name: str, default: int | None = None, smallest: int = 1) -> int:
        """An integer."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
            raise self.error(name, f"be an integer of at least {smallest}", value)
        return value

    def number(self, name: str, default: float | None = None, positive: bool = True) -> float:
        """A number above 0, or from 0 on."""
        value = self.get(name, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value < 0 or (positive and value == 0):
            raise self.error(name, f"be a number {'above' if positive else 'of at least'} 0", value)
        return float(value)

    def text(self, name: str) -> str:
        """A string that says something."""
        value = self.get(name)
        if not isinstance(value, str) or not value.strip():
            raise self.error(name, "be a name", value)
        return value

    def one_of(self, name: str, default: Any, *accepted: Any) -> Any:
        """One of some values."""
        value = self.get(name, default)
        if not any(_same(value, choice) for choice in accepted):
            choices = " or ".join(repr(choice) for choice in accepted)
            raise self.error(name, f"be {choices}", value)
        return value

    def require(self, expected: tuple[tuple[str, Any, Any], ...]) -> None:
        """Refuse what is not as expected: names, values if left out, values that are accepted."""
        for name, default, accepted in expected:
            self.one_of(name, default, accepted)


def _same(value: Any, expected: Any) -> bool:
    """Equal, and a truth value only if that is expected."""
    return bool(value == expected) and isinstance(value, bool) == isinstance(expected, bool)


@dataclass(frozen=True)
class AudiocraftConfig:
    """What the settings of the two files say.

    Attributes:
        text_encoder: the name of T5.
        audio_encoder, decoder: as in config.json.
        generation: as in generation_config.json.
    """

    text_encoder: str
    audio_encoder: Mapping[str, Any]
    decoder: Mapping[str, Any]
    generation: Mapping[str, Any]

    def config(self, text_config: Mapping[str, Any]) -> dict[str, Any]:
        """The whole of config.json.

        Args:
            text_config: T5's own configuration.

        Raises:
            ValueError: if they do not fit together.
        """
        whole = {
            "architectures": ["MusicgenForConditionalGeneration"],
            "model_type": "musicgen",
            "text_encoder": {**text_config, "_name_or_path": self.text_encoder},
            "audio_encoder": dict(self.audio_encoder),
            "decoder": dict(self.decoder),
            "dtype": "float32",
        }
        checked_config(whole)
        return whole


def audiocraft_config(language_model: object, codec: object) -> AudiocraftConfig:
    """Read the settings of a language model and of its codec.

    Args:
        language_model, codec: the `xp.cfg` of the two files.

    Raises:
        ValueError: naming the file, the setting and what is accepted.
    """
    language = Settings(LANGUAGE_MODEL_FILE, language_model)
    audio_encoder = _audio_encoder(Settings(CODEC_FILE, codec))
    decoder = _decoder(language)
    books, bins = _num_quantizers(audio_encoder), audio_encoder["codebook_size"]
    if decoder["vocab_size"] != bins:
        raise language.error(
            "transformer_lm.card", f"be the codec's rvq.bins, {bins}", decoder["vocab_size"]
        )
    if (count := decoder["num_codebooks"]) > books * decoder["audio_channels"]:
        raise language.error(
            "transformer_lm.n_q", f"be at most the codec's {books} codebooks a channel", count
        )
    rate = _frame_rate(audio_encoder)
    # A column per frame, one to start, and those in which the late streams end.
    seconds = language.number("dataset.segment_duration")
    length = math.floor(seconds * rate) + count // decoder["audio_channels"]
    fill = decoder["vocab_size"]
    generation = {
        "do_sample": True,
        "temperature": TEMPERATURE,
        "top_k": TOP_K,
        "top_p": 1.0,
        "guidance_scale": language.number(
            "classifier_free_guidance.inference_coef", 3.0, positive=False
        ),
        "max_length": length,
        "pad_token_id": fill,
        "bos_token_id": fill,
        "decoder_start_token_id": fill,
    }
    return AudiocraftConfig(language.text(f"{_TEXT}.t5.name"), audio_encoder, decoder, generation)


def _decoder(settings: Settings) -> dict[str, Any]:
    for name in settings.section("conditioners"):
        # Arguments of how all are trained stand beside them.
        if name not in (_CONDITIONER, "args"):
            raise ValueError(
                f"{LANGUAGE_MODEL_FILE}: xp.cfg: conditioners.{name} is not supported, "
                f"only {_CONDITIONER!r} is"
            )
    settings.require(_LANGUAGE_MODEL)
    prefix = "transformer_lm."
    fixed = {n.removeprefix(prefix) for n, *_ in _LANGUAGE_MODEL if n.startswith(prefix)}
    settings.section("transformer_lm", fixed | _OF_TRANSFORMER)
    width, heads = settings.whole("transformer_lm.dim"), settings.whole("transformer_lm.num_heads")
    if width % heads or width % 2:
        raise settings.error(
            "transformer_lm.dim", f"be even and a multiple of {heads} heads", width
        )
    channels = 2 if settings.one_of("interleave_stereo_codebooks.use", False, False, True) else 1
    books = settings.whole("transformer_lm.n_q")
    if books % channels:
        raise settings.error("transformer_lm.n_q", "be even in stereo", books)
    delays = [k // channels for k in range(books)]
    # Without delays each stream is one later than that before it.
    if settings.get("codebooks_pattern.modeling") is None:
        # As it was written before it had settings of its own.
        settings.one_of("transformer_lm.q_modeling", None, "delay")
        settings.one_of("interleave_stereo_codebooks.use", False, False)
    else:
        settings.one_of("codebooks_pattern.modeling", None, "delay")
        settings.one_of("codebooks_pattern.delay.delays", list(range(books)), delays)
    fill = settings.whole("transformer_lm.card")
    return {
        "model_type": "musicgen_decoder",
        "hidden_size": width,
        "ffn_dim": int(settings.number("transformer_lm.hidden_scale", 4) * width),
        "num_hidden_layers": settings.whole("transformer_lm.num_layers"),
        "num_attention_heads": heads,
        "num_codebooks": books,
        "audio_channels": channels,
        "vocab_size": fill,
        "pad_token_id": fill,
        "bos_token_id": fill,
        "max_position_embeddings": NUM_POSITIONS,
        "activation_function": "gelu",
        "scale_embedding": False,
        "tie_word_embeddings": False,
    }


def _audio_encoder(settings: Settings) -> dict[str, Any]:
    settings.require(_CODEC)
    prefix = "seanet."
    fixed = {n.removeprefix(prefix) for n, *_ in _CODEC if n.startswith(prefix)}
    settings.section("seanet", fixed | _OF_SEANET)
    settings.section(
        "seanet.decoder", {"trim_right_ratio", "final_activation", "final_activation_params"}
    )
    ratios = settings.get("seanet.ratios", [8, 5, 4, 2])
    if not (
        isinstance(ratios, list)
        and ratios
        and all(isinstance(r, int) and not isinstance(r, bool) and r > 0 for r in ratios)
    ):
        raise settings.error("seanet.ratios", "be a list of integers of at least 1", ratios)
    rate, hop = settings.whole("encodec.sample_rate"), math.prod(ratios)
    if rate % hop:
        raise settings.error("encodec.sample_rate", f"be a multiple of {hop}, of a frame", rate)
    bins = settings.whole("rvq.bins", 1024, 2)
    bits = settings.whole("rvq.n_q", 8) * math.ceil(math.log2(bins)) * (rate // hop)
    bandwidth = bits / 1000
    if int(1000 * bandwidth) < bits:
        # transformers counts codebooks by it, and rounds down.
        bandwidth = math.nextafter(bandwidth, math.inf)
    causal = bool(settings.one_of("seanet.causal", False, False, True))
    trim = settings.number("seanet.decoder.trim_right_ratio", 1.0, positive=False)
    if trim > 1 or (trim != 1 and not causal):
        raise settings.error("seanet.decoder.trim_right_ratio", "be 1, or less if causal", trim)
    dimension = settings.whole("seanet.dimension", 128)
    return {
        "model_type": "encodec",
        "sampling_rate": rate,
        "audio_channels": 1,
        "normalize": False,
        "target_bandwidths": [bandwidth],
        "codebook_size": bins,
        "codebook_dim": dimension,
        "hidden_size": dimension,
        "num_filters": settings.whole("seanet.n_filters", 32),
        "num_residual_layers": settings.whole("seanet.n_residual_layers", 3, 0),
        "upsampling_ratios": ratios,
        "norm_type": "weight_norm",
        "kernel_size": settings.whole("seanet.kernel_size", 7),
        "last_kernel_size": settings.whole("seanet.last_kernel_size", 7),
        "residual_kernel_size": settings.whole("seanet.residual_kernel_size", 3),
        "dilation_growth_rate": settings.whole("seanet.dilation_base", 2),
        "use_causal_conv": causal,
        "pad_mode": settings.one_of("seanet.pad_mode", "reflect", "constant", "reflect"),
        "compress": settings.whole("seanet.compress", 2),
        # transformers always has an LSTM's place.
        "num_lstm_layers": settings.whole("seanet.lstm", 0),
        "trim_right_ratio": trim,
        "use_conv_shortcut": not settings.one_of("seanet.true_skip", True, False, True),
    }


def _frame_rate(audio_encoder: Mapping[str, Any]) -> int:
    hop: int = math.prod(audio_encoder["upsampling_ratios"])
    rate: int = audio_encoder["sampling_rate"]
    return rate // hop


def _num_quantizers(audio_encoder: Mapping[str, Any]) -> int:
    from transformers import EncodecConfig

    return int(EncodecConfig.from_dict(dict(audio_encoder)).num_quantizers)
