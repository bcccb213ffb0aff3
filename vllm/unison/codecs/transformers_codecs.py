# SPDX-License-Identifier: Apache-2.0
"""DAC, EnCodec, Mimi and X-codec as implemented by the transformers library.

Each class does what the library's feature extractor and model do with a single clip, so codes and
samples equal the library's own. What differs from codec to codec is only stated here.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from vllm.unison.codecs.base import Codec
from vllm.unison.codecs.receptive_field import Context, receptive_field
from vllm.unison.codecs.stages import DecoderStage, WindowStage
from vllm.unison.codecs.transformers_stages import (
    LstmStage,
    SlidingAttentionStage,
    dac_decoder_layers,
    run_over_time,
    seanet_first_layers,
    seanet_upsampling,
    seanet_upsampling_layers,
)
from vllm.unison.formats.checkpoint_part import CheckpointPart
from vllm.unison.formats.expected_tensors import listed

# The convolutions of EnCodec and Mimi compute their padding in float32, which holds integers
# exactly only up to here; beyond it the library's frame count goes wrong.
MAX_SAMPLES_EXACT_PADDING = 2**24


def _select_num_codebooks(requested: int | None, lowest: int, highest: int) -> int:
    if requested is None:
        return highest
    is_integer = isinstance(requested, int) and not isinstance(requested, bool)
    if not is_integer or not lowest <= requested <= highest:
        raise ValueError(
            f"num_codebooks must be an integer in [{lowest}, {highest}], got {requested!r}"
        )
    return requested


def _smallest_sufficient_bandwidth(quantizer: Any, bandwidths: Any, num_codebooks: int) -> float:
    """The cheapest of a model's bandwidths (kbit/s) that has at least so many codebooks.

    Residual quantizers work in order, so surplus codebooks can be dropped afterwards.
    """
    sufficient: list[float] = [
        bandwidth
        for bandwidth in bandwidths
        if quantizer.get_num_quantizers_for_bandwidth(bandwidth) >= num_codebooks
    ]
    return min(sufficient)


class TransformersCodec(Codec):
    """A codec whose computation is a model of the transformers library.

    Attributes:
        model: the transformers model, in eval mode, on ``device``.
    """

    model_class_name: str
    """Name of the model's class in the transformers library."""

    unused_tensors: frozenset[str] = frozenset()
    """Tensors that checkpoints may hold and that the model has no use for."""

    def __init__(self, model: Any, *, num_codebooks: int | None = None) -> None:
        """Wrap a loaded model.

        Args:
            model: a model of the class ``model_class_name``; put into eval mode.
            num_codebooks: how many of its codebooks to use, from the first on; default all.

        Raises:
            ValueError: ``num_codebooks`` out of range, or a model of a kind that does not fit the
                interface (stereo, or codes that need side information).
        """
        self._check_model(model)
        lowest, highest = self._num_codebooks_range(model)
        super().__init__(
            sample_rate=self._sample_rate(model.config),
            samples_per_frame=self._samples_per_frame(model.config),
            num_codebooks=_select_num_codebooks(num_codebooks, lowest, highest),
            codebook_size=int(model.config.codebook_size),
            device=model.device,
        )
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        num_codebooks: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
    ) -> "TransformersCodec":
        """Load from a folder or a hub id; see ``registry.load_codec``."""
        model, loading = cls._model_class().from_pretrained(
            name_or_path,
            revision=revision or "main",
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        cls._check_loading(f"codec {name_or_path!r}", loading)
        return cls(model.to(device), num_codebooks=num_codebooks)

    @classmethod
    def from_part(
        cls,
        part: CheckpointPart,
        *,
        num_codebooks: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Load from a part of a checkpoint; see ``registry.load_codec_part``."""
        model_class = cls._model_class()
        where = f"codec {part.where!r}"
        try:
            config = model_class.config_class.from_dict(dict(part.config))
        except (StrictDataclassError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: config.json: {' '.join(str(error).split())}") from error
        model, loading = model_class.from_pretrained(
            None,
            config=config,
            state_dict=part.tensors,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        cls._check_loading(where, loading, part.prefix)
        return cls(model.to(device), num_codebooks=num_codebooks)

    @classmethod
    def _model_class(cls) -> Any:
        """The model's class."""
        return getattr(transformers, cls.model_class_name)

    @classmethod
    def _check_loading(cls, where: str, loading: Mapping[str, Any], prefix: str = "") -> None:
        """Refuse a checkpoint whose tensors are not the model's, names completed by a prefix.

        The library fills weights that a checkpoint lacks with random numbers, and only warns of
        them and of weights that it does not know.
        """
        if missing := sorted(prefix + name for name in loading["missing_keys"]):
            raise ValueError(f"{where} lacks {listed(missing)}")
        surplus = set(loading["unexpected_keys"]) - cls.unused_tensors
        if unknown := sorted(prefix + name for name in surplus):
            raise ValueError(f"{where} holds what {cls.model_class_name} lacks: {listed(unknown)}")
        for name, found, expected in sorted(loading["mismatched_keys"]):
            raise ValueError(
                f"{where}: the tensor {prefix + name!r} must have shape {list(expected)}, as "
                f"config.json says, not {list(found)}"
            )

    @staticmethod
    def _check_model(model: Any) -> None:
        """Refuse a model that cannot be driven through the interface."""
        channels = getattr(model.config, "audio_channels", 1)
        if channels != 1:
            raise ValueError(f"codec: audio_channels must be 1, got {channels}")

    @staticmethod
    @abstractmethod
    def _num_codebooks_range(model: Any) -> tuple[int, int]:
        """Smallest and greatest number of codebooks that can be used."""

    @staticmethod
    def _sample_rate(config: Any) -> int:
        return int(config.sampling_rate)

    @staticmethod
    def _samples_per_frame(config: Any) -> int:
        return int(config.hop_length)

    @abstractmethod
    def _model_encode(self, samples: torch.Tensor) -> torch.Tensor:
        """Encode ``[1, 1, num_samples]`` to ``[1, at least num_codebooks, num_frames]``."""

    @abstractmethod
    def _model_decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Decode ``[batch, num_codebooks, num_frames]`` to ``[batch, (1,) any length]``."""

    def _encode(self, samples: torch.Tensor) -> torch.Tensor:
        codes = self._model_encode(samples.to(self.model.dtype)[None, None])
        return codes[0, : self.num_codebooks].T

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        samples = self._model_decode(codes.transpose(1, 2).contiguous())
        return samples.reshape(codes.shape[0], -1)

    def _pad_to_whole_frames(self, samples: torch.Tensor) -> torch.Tensor:
        """Append zeros up to a multiple of ``samples_per_frame``."""
        return torch.nn.functional.pad(samples, (0, -samples.shape[-1] % self.samples_per_frame))


class DacCodec(TransformersCodec):
    """Descript Audio Codec.

    Encoding pads the clip with zeros to whole frames, as its feature extractor does. With odd
    strides the decoder returns fewer samples than its frames stand for (8 fewer with strides 2, 4,
    5, 8); they are missing at the end, where zeros take their place.
    """

    model_class_name = "DacModel"

    @staticmethod
    def _num_codebooks_range(model: Any) -> tuple[int, int]:
        return 1, int(model.config.n_codebooks)

    def _model_encode(self, samples: torch.Tensor) -> torch.Tensor:
        samples = self._pad_to_whole_frames(samples)
        return self.model.encode(samples, n_quantizers=self.num_codebooks).audio_codes

    def _model_decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.model.decode(audio_codes=codes).audio_values

    def decoder_context(self) -> Context:
        """The receptive field of its convolutions."""
        layers = dac_decoder_layers(self.model.config.upsampling_ratios)
        return receptive_field(layers, self.samples_per_frame)


class EncodecCodec(TransformersCodec):
    """EnCodec, the mono models (24 kHz, 32 kHz).

    The encoder completes the last frame itself. The 48 kHz model does not fit: it is stereo and
    sends a loudness per chunk next to the codes.
    """

    model_class_name = "EncodecModel"

    @staticmethod
    def _check_model(model: Any) -> None:
        TransformersCodec._check_model(model)
        for field, accepted in (("normalize", False), ("chunk_length_s", None)):
            value = getattr(model.config, field)
            if value != accepted:
                raise ValueError(f"codec: {field} must be {accepted}, got {value}")

    @staticmethod
    def _num_codebooks_range(model: Any) -> tuple[int, int]:
        return 1, int(model.config.num_quantizers)

    def _model_encode(self, samples: torch.Tensor) -> torch.Tensor:
        _check_exact_padding(samples.shape[-1])
        bandwidth = _smallest_sufficient_bandwidth(
            self.model.quantizer, self.model.config.target_bandwidths, self.num_codebooks
        )
        return self.model.encode(samples, bandwidth=bandwidth).audio_codes[0]

    def _model_decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.model.decode(codes[None], [None]).audio_values

    def decoder_stages(self) -> tuple[DecoderStage, ...] | None:
        """A convolution, the LSTM, and the upsampling convolutions."""
        config, layers = self.model.config, self.model.decoder.layers
        if config.norm_type != "weight_norm":
            # Other norms are taken over all of the audio.
            return None
        return (
            WindowStage(receptive_field(seanet_first_layers(config), 1), self._before_lstm),
            LstmStage(layers[1].lstm),
            WindowStage(
                receptive_field(seanet_upsampling_layers(config), self.samples_per_frame),
                self._after_lstm,
            ),
        )

    def _before_lstm(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [batch, num_frames, num_codebooks] to [batch, num_frames, channels]."""
        embeddings = self.model.quantizer.decode(codes.permute(2, 0, 1))
        return self.model.decoder.layers[0](embeddings).transpose(1, 2)

    def _after_lstm(self, hidden: torch.Tensor) -> torch.Tensor:
        """[batch, num_frames, channels] to float32 [batch, num_frames, samples_per_frame]."""
        samples = run_over_time(self.model.decoder.layers[2:], hidden)
        return self._by_frame(samples.flatten(1), hidden.shape[1])


class MimiCodec(TransformersCodec):
    """Mimi. The encoder completes the last frame itself.

    At least the semantic codebooks (the first one, in the published model) must be used.
    """

    model_class_name = "MimiModel"

    @staticmethod
    def _check_model(model: Any) -> None:
        TransformersCodec._check_model(model)
        if model.downsample is None:
            raise ValueError(
                "codec: frame_rate must be half of sampling_rate / product of upsampling_ratios, "
                f"got {model.config.frame_rate}"
            )

    @staticmethod
    def _num_codebooks_range(model: Any) -> tuple[int, int]:
        return int(model.config.num_semantic_quantizers), int(model.config.num_quantizers)

    @staticmethod
    def _samples_per_frame(config: Any) -> int:
        return int(config.frame_size)

    def _model_encode(self, samples: torch.Tensor) -> torch.Tensor:
        _check_exact_padding(samples.shape[-1])
        return self.model.encode(
            samples, num_quantizers=self.num_codebooks, use_streaming=False
        ).audio_codes

    def _model_decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.model.decode(codes).audio_values

    def decoder_stages(self) -> tuple[DecoderStage, ...]:
        """The upsampling of frames, the transformer, and the upsampling convolutions."""
        config = self.model.config
        convolutions = seanet_first_layers(config) + seanet_upsampling_layers(config)
        kernel, stride = self.model.upsample.conv.kernel_size[0], self.model.upsample.conv.stride[0]
        return (
            WindowStage(
                receptive_field([seanet_upsampling(config, kernel, stride)], stride),
                self._before_transformer,
            ),
            SlidingAttentionStage(self.model.decoder_transformer),
            WindowStage(
                receptive_field(convolutions, self.samples_per_frame, inputs_per_frame=stride),
                self._after_transformer,
            ),
        )

    def _before_transformer(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [batch, num_frames, num_codebooks] to [batch, num_frames, stride, channels]."""
        embeddings = self.model.quantizer.decode(codes.transpose(1, 2))
        hidden = self.model.upsample(embeddings).transpose(1, 2)
        return hidden.unflatten(1, (codes.shape[1], -1))

    def _after_transformer(self, hidden: torch.Tensor) -> torch.Tensor:
        """[batch, num_frames, stride, channels] to [batch, num_frames, samples_per_frame]."""
        samples = run_over_time([self.model.decoder], hidden.flatten(1, 2))
        return self._by_frame(samples.flatten(1), hidden.shape[1])


class XcodecCodec(TransformersCodec):
    """X-codec: an acoustic (DAC) and a semantic (HuBERT) encoder that share one quantizer.

    Encoding pads the clip with zeros to whole frames, as its feature extractor does.
    """

    model_class_name = "XcodecModel"

    @staticmethod
    def _num_codebooks_range(model: Any) -> tuple[int, int]:
        return 1, int(model.config.num_quantizers)

    @staticmethod
    def _sample_rate(config: Any) -> int:
        return int(config.sample_rate)

    def _model_encode(self, samples: torch.Tensor) -> torch.Tensor:
        bandwidth = _smallest_sufficient_bandwidth(
            self.model.quantizer, self.model.config.target_bandwidths, self.num_codebooks
        )
        samples = self._pad_to_whole_frames(samples)
        return self.model.encode(samples, bandwidth=bandwidth).audio_codes

    def _model_decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.model.decode(codes).audio_values

    def decoder_context(self) -> Context:
        """The receptive field of its acoustic decoder's convolutions."""
        ratios = self.model.config.acoustic_model_config.upsampling_ratios
        return receptive_field(dac_decoder_layers(ratios), self.samples_per_frame)


def _check_exact_padding(num_samples: int) -> None:
    if num_samples > MAX_SAMPLES_EXACT_PADDING:
        raise ValueError(
            f"samples must be at most {MAX_SAMPLES_EXACT_PADDING} long, got {num_samples}"
        )
