# SPDX-License-Identifier: Apache-2.0
"""Stereo by a mono codec: every channel is coded on its own.

The codes of the channels take turns in a frame: with C codebooks for each of two channels, its
codes are left 0, right 0, left 1, right 1 and so on to left C - 1, right C - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from vllm.unison.codecs.base import Codec
from vllm.unison.codecs.stages import DecoderStage, StateStage, WindowStage


class ChannelCodec(Codec):
    """Several channels, each coded by a mono codec.

    All channels of a clip are rows of one batch, decoded in one call and streamed in equal chunks.

    Args:
        mono: the codec.
        num_channels: of the audio, from 2.
    """

    def __init__(self, mono: Codec, num_channels: int) -> None:
        if num_channels < 2 or mono.num_channels != 1:
            raise ValueError(
                f"num_channels must be at least 2, of a mono codec, got {num_channels}"
            )
        super().__init__(
            sample_rate=mono.sample_rate,
            samples_per_frame=mono.samples_per_frame,
            num_codebooks=num_channels * mono.num_codebooks,
            codebook_size=mono.codebook_size,
            device=mono.device,
        )
        self.mono = mono
        self.num_channels = num_channels

    def _check_shape(self, samples: torch.Tensor) -> None:
        if samples.ndim != 1 and samples.shape[1:] != (self.num_channels,):
            raise ValueError(
                f"samples must have shape [num_samples] or [num_samples, {self.num_channels}], "
                f"got {list(samples.shape)}"
            )

    def _encode(self, samples: torch.Tensor) -> torch.Tensor:
        if samples.ndim == 1:
            return self.mono._encode(samples).repeat_interleave(self.num_channels, dim=1)
        # One by one, so that a channel's codes do not depend on what is beside it.
        codes = [self.mono._encode(channel.contiguous()) for channel in samples.unbind(1)]
        return torch.stack(codes, dim=2).flatten(1)

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        raise AssertionError("_decode_frames goes around it")

    def _decode_frames(self, codes: torch.Tensor) -> torch.Tensor:
        samples = self.mono._decode_frames(_rows(_by_channel(codes, self.num_channels)))
        return _channels_last(_items(samples, self.num_channels))

    def decoder_stages(self) -> tuple[DecoderStage, ...] | None:
        """The mono codec's, whose items are [num_channels, ...] between the first and the last."""
        stages = self.mono.decoder_stages()
        if stages is None:
            return None
        last = len(stages) - 1
        return tuple(
            _of_channels(stage, self.num_channels, number == 0, number == last)
            for number, stage in enumerate(stages)
        )


def _by_channel(codes: torch.Tensor, num_channels: int) -> torch.Tensor:
    """[batch, num_frames, num_codebooks] to [batch, num_frames, num_channels, per channel]."""
    return codes.unflatten(2, (-1, num_channels)).transpose(2, 3)


def _rows(items: torch.Tensor) -> torch.Tensor:
    """[batch, num_frames, num_channels, ...] to [batch * num_channels, num_frames, ...]."""
    return items.transpose(1, 2).flatten(0, 1)


def _items(rows: torch.Tensor, num_channels: int) -> torch.Tensor:
    """The inverse of `_rows`."""
    return rows.unflatten(0, (-1, num_channels)).transpose(1, 2)


def _channels_last(samples: torch.Tensor) -> torch.Tensor:
    """[batch, num_frames, num_channels, n] to [batch, num_frames, n, num_channels]."""
    return samples.transpose(2, 3).contiguous()


def _of_channels(
    stage: DecoderStage, num_channels: int, is_first: bool, is_last: bool
) -> DecoderStage:
    def rows(inputs: torch.Tensor) -> torch.Tensor:
        return _rows(_by_channel(inputs, num_channels) if is_first else inputs)

    def items(outputs: torch.Tensor) -> torch.Tensor:
        found = _items(outputs, num_channels)
        return _channels_last(found) if is_last else found

    if isinstance(stage, StateStage):
        return _ChannelStateStage(stage, num_channels, rows, items)
    apply = stage.apply
    return WindowStage(stage.context, lambda inputs: items(apply(rows(inputs))))


class _ChannelStateStage(StateStage):
    """A stage with a state for every channel.

    Args:
        stage: of the mono codec.
        num_channels: of the audio.
        rows: from this stage's inputs to those of `stage`.
        items: from the outputs of `stage` to this stage's.
    """

    def __init__(
        self,
        stage: StateStage,
        num_channels: int,
        rows: Callable[[torch.Tensor], torch.Tensor],
        items: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self.context = stage.context
        self._stage = stage
        self._num_channels = num_channels
        self._rows, self._items = rows, items

    def step(
        self, inputs: torch.Tensor, states: Sequence[Any | None]
    ) -> tuple[torch.Tensor, list[Any]]:
        """As of `stage`; a state is one of its states for each channel."""
        count = self._num_channels
        fresh = (None,) * count
        before = [one for state in states for one in (fresh if state is None else state)]
        outputs, after = self._stage.step(self._rows(inputs), before)
        return self._items(outputs), [
            tuple(after[first : first + count]) for first in range(0, len(after), count)
        ]
