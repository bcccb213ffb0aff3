# SPDX-License-Identifier: Apache-2.0
"""What an audio encoder gets of a clip: log-mel features, and how many states it makes of them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from vllm.unison.model.spec import AudioEncoderSpec

_NUM_CONVOLUTIONS = 3
"""Of the encoder's, of a stride of 2 each, that run over each chunk of frames alone."""


def num_states(frames: int, chunk: int) -> int:
    """States that Qwen3-Omni's audio encoder makes of a clip.

    Args:
        frames: of features.
        chunk: frames that its convolutions see at a time.
    """
    whole, rest = divmod(frames, chunk)
    return whole * _halved(chunk) + _halved(rest)


def _halved(frames: int) -> int:
    for _ in range(_NUM_CONVOLUTIONS):
        frames = (frames - 1) // 2 + 1
    return frames


class MelFeatures:
    """Hears what an audio encoder reads, as ESPnet has it computed.

    That is transformers' extractor for Whisper on the clip alone, of whole frames, with samples of
    zero mean and unit variance.

    Args:
        encoder: of the model.
        folder: the model's, which has the extractor's settings.

    Attributes:
        sample_rate: of the clips, in Hz.
        num_channels: of the clips: one.
        min_clip_samples: up to which clips are completed with zeros: those of a frame.
    """

    num_channels = 1

    def __init__(self, encoder: AudioEncoderSpec, folder: str) -> None:
        self._folder = folder
        self.sample_rate = encoder.sample_rate
        self.min_clip_samples = encoder.hop

    @cached_property
    def _extractor(self) -> Any:
        from transformers import WhisperFeatureExtractor

        return WhisperFeatureExtractor.from_pretrained(self._folder)

    def encode(self, samples: torch.Tensor) -> torch.Tensor:
        """float32 [num_frames, num_mel_bins] of floating point samples [num_samples]."""
        extractor = self._extractor
        made = extractor(
            [samples.float().numpy()],
            truncation=False,
            max_length=len(samples),
            do_normalize=True,
            return_tensors="pt",
            sampling_rate=self.sample_rate,
        )
        num_frames = len(samples) // extractor.hop_length
        features: torch.Tensor = made["input_features"][0, :, :num_frames].T.contiguous()
        return features
