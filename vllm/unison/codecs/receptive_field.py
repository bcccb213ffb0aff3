# SPDX-License-Identifier: Apache-2.0
"""How far a convolutional decoder looks: the frames that the samples of one frame depend on.

Pure arithmetic on a decoder's layers, which a codec states from its configuration. Intervals of
positions are carried from a frame's samples back through the layers to the frames. Branches that
are added (residual units) need not be listed beside the layers that they go around: a layer's own
interval holds the position itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Context:
    """The frames around a frame that its output depends on.

    Attributes:
        left: frames before it.
        right: frames after it.
        first: frames that must be known before the first frames can be decoded, unless there are
            fewer in all. More than right + 1 where a layer mirrors its input at the start.
    """

    left: int
    right: int
    first: int = 0

    def __post_init__(self) -> None:
        if self.left < 0 or self.right < 0:
            raise ValueError(f"left and right must be at least 0, not {self.left}, {self.right}")
        object.__setattr__(self, "first", max(self.first, self.right + 1))


@dataclass(frozen=True)
class Convolution:
    """A convolution of stride 1, whose output is as long as its input.

    Attributes:
        kernel: taps.
        dilation: distance of the taps.
        padding: positions added before the input; default: half of what the kernel takes.
        mirrors: whether the positions added are the input mirrored, not a constant.
    """

    kernel: int
    dilation: int = 1
    padding: int | None = None
    mirrors: bool = False

    def interval(self, low: int, high: int) -> tuple[int, int]:
        """First and last input position that the outputs low to high depend on."""
        span = self.dilation * (self.kernel - 1)
        padding = span // 2 if self.padding is None else self.padding
        return low - padding, high - padding + span


def looking_ahead(kernel: int, lookahead: Sequence[int]) -> list[Convolution]:
    """Convolutions of one kernel, each of which looks ahead so many positions and back the rest."""
    return [Convolution(kernel, padding=kernel - 1 - ahead) for ahead in lookahead]


@dataclass(frozen=True)
class TransposedConvolution:
    """A transposed convolution; also the overlapping windows of an inverse STFT.

    Attributes:
        kernel: taps; the window's length of an inverse STFT.
        stride: output positions per input position; the hop of an inverse STFT.
        trimmed: outputs that are cut off at the start (the padding in PyTorch's terms).
    """

    kernel: int
    stride: int
    trimmed: int = 0

    def interval(self, low: int, high: int) -> tuple[int, int]:
        """First and last input position that the outputs low to high depend on."""
        # Output t gets tap j of input i where t + trimmed = i * stride + j.
        first = -((self.kernel - 1 - low - self.trimmed) // self.stride)
        return first, (high + self.trimmed) // self.stride


Layer = Convolution | TransposedConvolution


def receptive_field(
    layers: Sequence[Layer], outputs_per_frame: int, inputs_per_frame: int = 1
) -> Context:
    """The context of a decoder's frames.

    Args:
        layers: from input to output.
        outputs_per_frame: positions of the last layer's output that one frame stands for.
        inputs_per_frame: positions of the first layer's input that one frame stands for.
    """
    low, high = 0, outputs_per_frame - 1
    start_low, start_high = low, high
    for layer in reversed(layers):
        low, high = layer.interval(low, high)
        start_low, start_high = layer.interval(start_low, start_high)
        # At the very start there is nothing before 0: zeros, or what a mirror at 0 shows.
        if isinstance(layer, Convolution) and layer.mirrors:
            start_high = max(start_high, -start_low)
        start_low = max(start_low, 0)
    return Context(
        left=max(-(low // inputs_per_frame), 0),
        right=max(high // inputs_per_frame, 0),
        first=start_high // inputs_per_frame + 1,
    )
