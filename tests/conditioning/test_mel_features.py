# SPDX-License-Identifier: Apache-2.0
"""What an audio encoder gets of a clip, and how many states it makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

from tests.support.bagpiper import audio_encoder_config, feature_extractor
from vllm.unison.conditioning.mel_features import MelFeatures, num_states
from vllm.unison.model.spec import AudioEncoderSpec


@pytest.mark.parametrize("frames", [1, 2, 7, 8, 9, 99, 100, 101, 113, 200, 250, 399])
def test_states_are_as_many_as_the_encoder_makes(frames: int) -> None:
    config = audio_encoder_config()
    encoder = Qwen3OmniMoeAudioEncoder(config).eval()
    features = torch.zeros(config.num_mel_bins, frames)
    with torch.inference_mode():
        states = encoder(features, feature_lens=torch.tensor([frames])).last_hidden_state
    assert num_states(frames, 2 * config.n_window) == len(states)


def test_a_second_has_thirteen_states() -> None:
    assert [num_states(100 * seconds, 100) for seconds in (1, 2, 30)] == [13, 26, 390]


def test_features_are_of_whole_frames_and_do_not_depend_on_level(tmp_path: Path) -> None:
    feature_extractor().save_pretrained(tmp_path)
    mel = MelFeatures(AudioEncoderSpec(16000, 160, 100), str(tmp_path))
    clip = 0.1 * torch.randn(1999, generator=torch.Generator().manual_seed(0))
    features = mel.encode(clip)
    assert features.shape == (12, 16) and features.dtype == torch.float32
    torch.testing.assert_close(mel.encode(0.3 * clip), features, atol=1e-3, rtol=0)
