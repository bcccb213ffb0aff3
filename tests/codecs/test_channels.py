# SPDX-License-Identifier: Apache-2.0
"""Stereo by a mono codec, against that codec on each channel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.codecs.test_checkpoint_part import musicgen_spec
from tests.support.codecs import WindowSumCodec
from tests.support.musicgen import write_tiny_musicgen
from vllm.unison.codecs import Codec
from vllm.unison.codecs.channels import ChannelCodec
from vllm.unison.codecs.of_model import codec_of

Load = Callable[..., Codec]


def random_codes(codec: Codec, num_frames: int, seed: int = 0) -> torch.Tensor:
    shape = (num_frames, codec.num_codebooks)
    return torch.randint(codec.codebook_size, shape, generator=torch.Generator().manual_seed(seed))


def random_samples(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(7))


def test_what_it_says_of_itself(kind: str, load: Load) -> None:
    mono = load(kind, num_codebooks=4)
    stereo = ChannelCodec(mono, 2)
    assert (stereo.num_channels, stereo.num_codebooks) == (2, 8)
    assert (mono.num_channels, mono.num_codebooks) == (1, 4)
    for name in ("sample_rate", "samples_per_frame", "codebook_size", "device"):
        assert getattr(stereo, name) == getattr(mono, name)
    for num_channels, inner in ((1, mono), (2, stereo)):
        with pytest.raises(ValueError, match="num_channels must be at least 2, of a mono codec"):
            ChannelCodec(inner, num_channels)


def test_even_codes_are_the_left_channel_s_and_odd_ones_the_right_one_s(
    kind: str, load: Load
) -> None:
    mono = load(kind, num_codebooks=4)
    stereo = ChannelCodec(mono, 2)
    codes = random_codes(stereo, 9)
    samples = stereo.decode(codes)
    assert samples.shape == (9 * mono.samples_per_frame, 2) and samples.is_contiguous()
    left, right = mono.decode_batch([codes[:, 0::2], codes[:, 1::2]])
    assert torch.equal(samples[:, 0], left) and torch.equal(samples[:, 1], right)
    assert not torch.equal(left, right)


def test_channels_are_encoded_one_by_one(kind: str, load: Load) -> None:
    mono = load(kind, num_codebooks=4)
    stereo = ChannelCodec(mono, 2)
    length = 5 * mono.samples_per_frame - 3
    samples = random_samples(length, 2)
    codes = stereo.encode(samples)
    assert codes.shape == (5, 8) and codes.dtype == torch.int32
    assert torch.equal(codes[:, 0::2], mono.encode(samples[:, 0].contiguous()))
    assert torch.equal(codes[:, 1::2], mono.encode(samples[:, 1].contiguous()))
    both = stereo.encode(samples[:, 0].contiguous())
    assert torch.equal(both, mono.encode(samples[:, 0].contiguous()).repeat_interleave(2, 1))


def test_clips_of_equal_length_share_a_call_and_lengths_are_those_of_a_channel() -> None:
    mono = WindowSumCodec(2, 8)
    stereo = ChannelCodec(mono, 2)
    batch = [random_codes(stereo, length, length) for length in (5, 0, 7, 5)]
    decoded = stereo.decode_batch(batch)
    assert sorted(mono.calls) == [(2, 7), (4, 5)]
    for codes, samples in zip(batch, decoded, strict=True):
        assert samples.shape == (3 * len(codes), 2) and samples.dtype == torch.float32
        for channel in (0, 1):
            assert torch.equal(samples[:, channel], mono.decode(codes[:, channel::2]))


def test_no_audio() -> None:
    class Silent(WindowSumCodec):
        def _encode(self, samples: torch.Tensor) -> torch.Tensor:
            raise AssertionError("nothing is encoded")

    stereo = ChannelCodec(Silent(2, 8), 2)
    assert stereo.encode(torch.empty(0, 2)).shape == (0, 4)
    assert stereo.no_samples().shape == (0, 2)
    assert stereo.mono.no_samples().shape == (0,)


@pytest.mark.parametrize("shape", [(3, 3), (2, 100), (100, 1), (100, 2, 1), ()])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    stereo = ChannelCodec(WindowSumCodec(2, 8), 2)
    with pytest.raises(ValueError, match=r"must have shape \[num_samples\] or \[num_samples, 2\]"):
        stereo.encode(torch.zeros(shape))


def test_a_codec_without_stages_has_none_in_stereo() -> None:
    mono = WindowSumCodec(2, 8)
    mono.decoder_context = lambda: None  # type: ignore[method-assign, assignment, return-value]
    assert ChannelCodec(mono, 2).decoder_stages() is None


def test_a_stereo_model_s_codec(tmp_path: Path) -> None:
    """As transformers decodes MusicGen's stereo: each channel's codes by the mono codec."""
    model = write_tiny_musicgen(tmp_path, channels=2).eval()
    stereo = codec_of(musicgen_spec(tmp_path, num_streams=8, num_channels=2), "cpu")
    assert isinstance(stereo, ChannelCodec) and stereo.mono.num_codebooks == 4
    codes = random_codes(stereo, 12)
    with torch.inference_mode():
        of_channels = [
            model.audio_encoder.decode(codes[:, channel::2].T[None, None], [None]).audio_values
            for channel in (0, 1)
        ]
    expected = torch.cat([audio[0] for audio in of_channels]).T
    assert (stereo.decode(codes) - expected).abs().max() <= 1e-6
    message = "codec: 7 streams must be as many for each of 2 channels"
    with pytest.raises(ValueError, match=message):
        codec_of(musicgen_spec(tmp_path, num_streams=7, num_channels=2), "cpu")
