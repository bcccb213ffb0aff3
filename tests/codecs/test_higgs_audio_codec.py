# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of the Higgs models: what it has of its own."""

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm.unison.codecs.higgs_audio_codec import (
    HiggsAudioCodec,
    resample_for_semantics,
    tokenizer_class,
)
from vllm.unison.frontend.clip_encoder import ClipEncoder
from vllm.unison.testing.random_codec import random_codec

OF_TORCHAUDIO = [
    0.000059, 0.007526, 0.030110, 0.067407, 0.118967, 0.183268, 0.257156, 0.335364,
    0.409610, 0.468653, 0.498676, 0.485063, 0.415616, 0.285010, 0.100181, -0.115457,
    -0.321260, -0.464516, -0.494374, -0.381504, -0.139792, 0.162677, 0.414201, 0.498274,
    0.353372, 0.024938, -0.327932, -0.499221, -0.360994, 0.024406, 0.402189, 0.481117,
    0.170439, -0.293797, -0.499414, -0.228411, 0.278768, 0.497023, 0.162398, -0.367224,
    -0.452778, 0.041292, 0.485178, 0.256591, -0.346301, -0.431072, 0.158928, 0.493879,
    -0.000954, -0.495913, -0.099177, 0.482819, 0.138863, -0.480005, -0.120490, 0.491312,
    0.044632, -0.506878, 0.112756, 0.431152,
]  # fmt: skip
"""torchaudio.functional.resample of `chirp`, 24 to 16 kHz, by torchaudio 2.11.1."""


@pytest.fixture(scope="module")
def codec() -> HiggsAudioCodec:
    return HiggsAudioCodec(random_codec("higgs_audio_v2_tokenizer", seed=1))


def chirp(num_samples: int) -> torch.Tensor:
    index = torch.arange(num_samples, dtype=torch.float64)
    return (0.5 * torch.sin(index.square() / 150)).float()


def test_the_rate_is_changed_as_torchaudio_does() -> None:
    made = resample_for_semantics(chirp(90)[None, None], 24000, 16000)
    assert made.shape == (1, 1, 60)
    torch.testing.assert_close(made[0, 0], torch.tensor(OF_TORCHAUDIO), rtol=0, atol=2e-6)


@given(st.integers(1, 400), st.sampled_from([(24000, 16000), (16000, 24000), (44100, 16000)]))
def test_the_length_is_rounded_up(num_samples: int, rates: tuple[int, int]) -> None:
    made = resample_for_semantics(torch.ones(2, num_samples), *rates)
    assert made.shape == (2, math.ceil(num_samples * rates[1] / rates[0]))


def test_an_equal_rate_changes_nothing() -> None:
    clip = chirp(50)
    assert resample_for_semantics(clip, 16000, 16000) is clip


def test_torchaudio_is_not_left_behind() -> None:
    assert tokenizer_class().__name__ == "HiggsAudioV2TokenizerModel"
    # The engine does without it, and what looks for it must not find a part of it.
    found = sys.modules.get("torchaudio")
    assert found is None or found.__spec__ is not None


def test_the_clip_of_a_request_is_at_least_a_second(codec: HiggsAudioCodec) -> None:
    encoder = ClipEncoder(lambda: codec, num_threads=1)
    clip = chirp(4000).numpy()

    def codes(samples: Any) -> np.ndarray:
        return encoder.submit(encoder.encode, samples).result()

    whole = np.pad(clip, (0, 24000 - 4000))
    assert codes(clip).shape == (25, 8)
    np.testing.assert_array_equal(codes(clip), codes(whole))
    # At the codec's rate; and what is longer stays as it is.
    assert codes((clip[::3], 8000)).shape == (25, 8)
    assert codes(chirp(24001).numpy()).shape == (26, 8)


def test_it_computes_in_float32(codec: HiggsAudioCodec) -> None:
    # Its transposed convolutions are said to be unstable in bfloat16.
    assert {weight.dtype for weight in codec.model.parameters()} == {torch.float32}
    assert codec.decode(torch.zeros(3, 8, dtype=torch.int32)).dtype == torch.float32
