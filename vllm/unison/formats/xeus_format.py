# SPDX-License-Identifier: Apache-2.0
"""XEUS as ESPnet publishes it: what its config.yaml says, and the tensors of its weights.

W. Chen et al., "Towards Robust Speech Representation Learning for Thousands of Languages", arXiv
2407.00837. Its blocks are those of K. Kim et al., "E-Branchformer", arXiv 2210.00077.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vllm.unison.formats.espnet_checkpoint import EspnetCheckpoint
from vllm.unison.formats.espnet_settings import CONFIG_FILE, EspnetSettings
from vllm.unison.formats.expected_tensors import ExpectedTensors, Shape

SAMPLE_RATE = 16000
POSITION_KERNEL, POSITION_GROUPS = 128, 16
"""Frames and groups of the convolution that tells blocks where frames are; ESPnet's own."""

_LIKE_WAV2VEC2 = ((512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2)
"""ESPnet's convolutions where the settings do not say."""

_FIXED: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
    "frontend": (None, ("wav2vec_cnn",)),
    "frontend_conf.fs": ("16k", (SAMPLE_RATE, "16k", "16000")),
    "frontend_conf.norm_mode": (None, ("layer_norm",)),
    "frontend_conf.conv_mode": (None, ("standard",)),
    "frontend_conf.bias": (None, (True,)),
    "frontend_conf.normalize_audio": (False, (True,)),
    "frontend_conf.normalize_output": (False, (False,)),
    "frontend_conf.layer_norm_cls": ("transposed", ("transposed",)),
    "normalize": ("utterance_mvn", (None,)),
    "preencoder": ("linear", ("linear",)),
    "encoder": (None, ("e_branchformer",)),
    "encoder_conf.attention_layer_type": ("rel_selfattn", ("selfattn",)),
    "encoder_conf.pos_enc_layer_type": ("rel_pos", ("conv",)),
    "encoder_conf.use_linear_after_conv": (False, (False,)),
    "encoder_conf.gate_activation": ("identity", ("identity",)),
    "encoder_conf.input_layer": ("conv2d", (None,)),
    "encoder_conf.positionwise_layer_type": ("linear", ("linear",)),
    "encoder_conf.ffn_activation_type": ("swish", ("swish",)),
    "encoder_conf.use_ffn": (False, (True,)),
    "encoder_conf.macaron_ffn": (False, (True,)),
    "encoder_conf.qk_norm": (False, (False,)),
}
"""Per setting ESPnet's default, and what is supported. Others concern training only."""

_OF_TRAINING = re.compile(r"losses\..*|util_modules\..*|global_step")
"""Tensors that only training needs."""

_POSITIONS = "encoder.embed.0.convs.0."
_DIRECTION, _MAGNITUDE = (_POSITIONS + f"parametrizations.weight.original{i}" for i in (1, 0))
_OLDER_NAMES = {_POSITIONS + "weight_v": _DIRECTION, _POSITIONS + "weight_g": _MAGNITUDE}
"""PyTorch's names of a weight that is kept as magnitude and direction, before version 2."""


@dataclass(frozen=True)
class XeusFormat:
    """An encoder's shape.

    Attributes:
        convolutions: (channels, kernel, stride) of those over samples, in turn.
        hidden_size: of a frame's state.
        num_layers: number of blocks.
        num_heads: of a block's attention.
        feed_forward_size: inner width of a block's two feed-forward modules.
        gate_size: inner width of a block's gated branch, both halves together.
        gate_kernel: frames that the gate's convolution sees.
        merge_kernel: frames that the convolution sees which merges a block's branches.
    """

    convolutions: tuple[tuple[int, int, int], ...]
    hidden_size: int
    num_layers: int
    num_heads: int
    feed_forward_size: int
    gate_size: int
    gate_kernel: int
    merge_kernel: int

    def __post_init__(self) -> None:
        for name, divisor in (
            ("output_size", self.num_heads),
            ("output_size", POSITION_GROUPS),
            ("cgmlp_linear_units", 2),
        ):
            value = self.gate_size if name == "cgmlp_linear_units" else self.hidden_size
            if value % divisor:
                raise ValueError(
                    f"{CONFIG_FILE}: encoder_conf.{name} must be divisible by {divisor}, "
                    f"not {value}"
                )
        kernels = (
            ("cgmlp_conv_kernel", self.gate_kernel),
            ("merge_conv_kernel", self.merge_kernel),
        )
        for name, value in kernels:
            if value % 2 == 0:
                raise ValueError(f"{CONFIG_FILE}: encoder_conf.{name} must be odd, not {value}")

    @property
    def samples_per_frame(self) -> int:
        """Samples from one frame to the next."""
        product = 1
        for _, _, stride in self.convolutions:
            product *= stride
        return product

    @property
    def min_samples(self) -> int:
        """Samples of the shortest clip that has a frame."""
        length = 1
        for _, kernel, stride in reversed(self.convolutions):
            length = (length - 1) * stride + kernel
        return length

    @property
    def expected(self) -> ExpectedTensors:
        """Names and shapes of the tensors that are not of training only."""
        return ExpectedTensors(_shapes(self), settings=CONFIG_FILE)


def read_xeus_format(file: Path) -> XeusFormat:
    """Read a config.yaml.

    Raises:
        ValueError: naming the setting and what is accepted.
    """
    settings = EspnetSettings.read(file, keeps_null=True)
    for name, (default, accepted) in _FIXED.items():
        settings.one_of(name, *accepted, default=default)

    def whole(name: str) -> int:
        return settings.whole(f"encoder_conf.{name}", 1)

    hidden = whole("output_size")
    if (width := settings.whole("preencoder_conf.output_size", 1)) != hidden:
        raise settings.error(
            "preencoder_conf.output_size", f"be {hidden}, as encoder_conf.output_size", width
        )
    return XeusFormat(
        convolutions=_convolutions(settings),
        hidden_size=hidden,
        num_layers=whole("num_blocks"),
        num_heads=whole("attention_heads"),
        feed_forward_size=whole("linear_units"),
        gate_size=whole("cgmlp_linear_units"),
        gate_kernel=whole("cgmlp_conv_kernel"),
        merge_kernel=whole("merge_conv_kernel"),
    )


def read_xeus_weights(file: Path, shape: XeusFormat) -> dict[str, torch.Tensor]:
    """The encoder's tensors, in float32 and without the parts of a weight that is kept in two.

    Args:
        file: of torch.save's; nothing in it is executed.
        shape: what the settings say.

    Raises:
        ValueError: if the file holds no weights, or naming a tensor that is missing, unknown or of
            another shape than the settings say.
    """
    named = (
        (_OLDER_NAMES.get(name, name), tensor)
        for name, tensor in EspnetCheckpoint(file).in_turn()
        if not _OF_TRAINING.fullmatch(name)
    )
    # Copies: what is mapped belongs to the file.
    tensors = {
        name: tensor.to(torch.float32, copy=True) for name, tensor in shape.expected.checked(named)
    }
    direction, magnitude = tensors.pop(_DIRECTION), tensors.pop(_MAGNITUDE)
    norm = torch.linalg.vector_norm(direction, dim=(0, 1), keepdim=True)
    tensors[_POSITIONS + "weight"] = direction * (magnitude / norm)
    return tensors


def _shapes(shape: XeusFormat) -> dict[str, Shape]:
    hidden, gate = shape.hidden_size, shape.gate_size
    shapes: dict[str, Shape] = {}

    def weight(name: str, *size: int) -> None:
        """A weight of a matrix product or convolution, and its bias."""
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = size, size[:1]

    def norm(name: str, size: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (size,)

    channels = 1
    for i, (outputs, kernel, _) in enumerate(shape.convolutions):
        weight(f"frontend.layers.{i}.conv", outputs, channels, kernel)
        norm(f"frontend.layers.{i}.layer_norm", outputs)
        channels = outputs
    weight("preencoder.linear_out", hidden, channels)
    shapes[_POSITIONS + "bias"] = (hidden,)
    shapes[_MAGNITUDE] = (1, 1, POSITION_KERNEL)
    shapes[_DIRECTION] = (hidden, hidden // POSITION_GROUPS, POSITION_KERNEL)
    for i in range(shape.num_layers):
        block = f"encoder.encoders.{i}."
        for projection in ("q", "k", "v", "out"):
            weight(f"{block}attn.linear_{projection}", hidden, hidden)
        weight(f"{block}cgmlp.channel_proj1.0", gate, hidden)
        norm(f"{block}cgmlp.csgu.norm", gate // 2)
        weight(f"{block}cgmlp.csgu.conv", gate // 2, 1, shape.gate_kernel)
        weight(f"{block}cgmlp.channel_proj2", hidden, gate // 2)
        for module in ("feed_forward", "feed_forward_macaron"):
            weight(f"{block}{module}.w_1", shape.feed_forward_size, hidden)
            weight(f"{block}{module}.w_2", hidden, shape.feed_forward_size)
        for name in ("ff", "ff_macaron", "mha", "mlp", "final"):
            norm(f"{block}norm_{name}", hidden)
        weight(f"{block}depthwise_conv_fusion", 2 * hidden, 1, shape.merge_kernel)
        weight(f"{block}merge_proj", hidden, 2 * hidden)
    norm("encoder.after_norm", hidden)
    return shapes


def _convolutions(settings: EspnetSettings) -> tuple[tuple[int, int, int], ...]:
    shapes = settings.get("frontend_conf.shapes", _LIKE_WAV2VEC2)
    is_right = isinstance(shapes, (list, tuple)) and all(
        isinstance(one, (list, tuple)) and len(one) == 3 and all(map(_is_size, one))
        for one in shapes
    )
    if not is_right or not shapes:
        accepted = "be a list of [channels, kernel, stride], integers of at least 1"
        raise settings.error("frontend_conf.shapes", accepted, shapes)
    return tuple((one[0], one[1], one[2]) for one in shapes)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
