# SPDX-License-Identifier: Apache-2.0
"""Units and codes of a clip, frame by frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.support.opuslm import layout
from vllm.unison.codecs.unit_encoder import FrameEncoder, frame_encoder_of
from vllm.unison.frontend.prompt_layout import frames_of_codes
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.spec import SpeechSpec


class Levels:
    """Units that count from 1, one per 160 samples at half the codec's rate."""

    sample_rate, samples_per_frame, min_samples = 8000, 160, 160

    def units(self, samples: torch.Tensor) -> torch.Tensor:
        assert samples.dtype == torch.float32 and samples.ndim == 1
        return 1 + torch.arange(len(samples) // 160)


class Numbered:
    """A codec whose codes are the frame's number, in both columns."""

    sample_rate, samples_per_frame, min_clip_samples = 16000, 320, 0

    def encode(self, samples: torch.Tensor) -> torch.Tensor:
        count = -(-len(samples) // 320)
        return torch.arange(count, dtype=torch.int32)[:, None].expand(-1, 2)


def test_a_frame_has_units_and_codes() -> None:
    codec: Any = Numbered()
    frames = FrameEncoder(Levels(), codec).encode(torch.zeros(3 * 320 + 9))
    # The last frame, which is not whole, has no unit.
    assert frames.tolist() == [[1, 0, 0], [2, 1, 1], [3, 2, 2]]
    assert frames.dtype == torch.int32


def test_streams_that_no_encoder_gives_are_named() -> None:
    spec = SpeechSpec(StreamLayout.from_dict(layout()))

    def codec_of(*_: Any) -> Any:
        raise AssertionError

    with pytest.raises(
        ValueError, match=r"audio: the model's codec gives no ids for streams \[0\]"
    ):
        frame_encoder_of(spec, codec_of)
    with pytest.raises(ValueError, match=r"gives no ids for streams \[0\]"):
        frames_of_codes(spec.layout, np.zeros((3, 8), np.int32))
    frames = frames_of_codes(spec.layout, np.zeros((1, 9), np.int32))
    assert frames.tolist() == [[begin for begin, _ in spec.layout.slices]]
