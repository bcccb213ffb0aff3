# SPDX-License-Identifier: Apache-2.0
"""Clips are encoded several at a time, and each as if it were alone."""

import os
import threading
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch

from vllm.unison.codecs import load_codec
from vllm.unison.codecs.base import Codec
from vllm.unison.codecs.channels import ChannelCodec
from vllm.unison.codecs.registry import registered_model_types
from vllm.unison.frontend.clip_encoder import CACHED_CLIPS, MAX_AHEAD, ClipEncoder, KeptClip
from vllm.unison.packaged_model import packaged_model
from vllm.unison.testing.random_codec import write_random_codec

RATE = 8000


class FirstSampleCodec(Codec):
    """One code a frame of 4 samples: its first sample's thousandths."""

    def __init__(self) -> None:
        super().__init__(
            sample_rate=RATE,
            samples_per_frame=4,
            num_codebooks=1,
            codebook_size=1000,
            device=torch.device("cpu"),
        )
        self.heard: list[torch.Tensor] = []
        self.threads: set[tuple[threading.Thread, int]] = set()

    def _encode(self, samples: torch.Tensor) -> torch.Tensor:
        self.heard.append(samples)
        self.threads.add((threading.current_thread(), torch.get_num_threads()))
        return (samples[::4, None] * 1000).round().long()

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        raise AssertionError("prompts are not decoded")


@pytest.fixture
def codec() -> FirstSampleCodec:
    return FirstSampleCodec()


def encoded(encoder: ClipEncoder, *clips: Any) -> list[np.ndarray]:
    return [future.result() for future in [encoder.submit(encoder.encode, c) for c in clips]]


def thousandths(*values: int) -> np.ndarray:
    return np.repeat(np.array(values, np.float32) / 1000, 4)


def test_codes_of_each_clip(codec: FirstSampleCodec) -> None:
    encoder = ClipEncoder(lambda: codec, num_threads=3)
    clips = [thousandths(n, n + 1) for n in range(50)]
    for n, codes in enumerate(encoded(encoder, *clips)):
        assert codes.dtype == np.int32 and codes.tolist() == [[n], [n + 1]]


def test_channels_of_a_clip(codec: FirstSampleCodec) -> None:
    """A stereo model hears each channel, and what has more channels or one mixed in both."""
    stereo = ClipEncoder(lambda: ChannelCodec(codec, 2), num_threads=1)
    left, right = thousandths(100, 200), thousandths(300, 500)
    clips = [np.stack([left, right]), np.stack([left, right], axis=1), left, left[None]]
    three = np.stack([left, right, np.zeros_like(left)])
    found = [codes.tolist() for codes in encoded(stereo, *clips, three)]
    assert found[0] == found[1] == [[100, 300], [200, 500]]
    assert found[2] == found[3] == [[100, 100], [200, 200]]
    assert found[4] == [[133, 133], [233, 233]]
    mono = ClipEncoder(lambda: codec, num_threads=1)
    assert encoded(mono, clips[0])[0].tolist() == [[200], [350]]


def test_channels_are_resampled_one_by_one(codec: FirstSampleCodec) -> None:
    stereo = ClipEncoder(lambda: ChannelCodec(codec, 2), num_threads=1)
    mono = ClipEncoder(lambda: codec, num_threads=1)
    time = np.arange(1600) / 16000
    left = np.float32(0.1 + 0.05 * np.sin(900 * time))
    right = np.float32(0.2 + 0.05 * np.cos(500 * time))
    both, one, other = (
        encoded(encoder, (clip, 16000))[0]
        for encoder, clip in ((stereo, np.stack([left, right])), (mono, left), (mono, right))
    )
    assert both.shape == (200, 2)
    np.testing.assert_array_equal(both, np.concatenate([one, other], axis=1))


def test_every_operator_runs_on_one_thread_and_only_there(codec: FirstSampleCodec) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        encoder = ClipEncoder(lambda: codec, num_threads=2)
        # Both threads are up: one that starts later has the setting changed for a moment.
        both = threading.Barrier(2)
        for waiting in [encoder.submit(both.wait) for _ in range(2)]:
            waiting.result()
        encoded(encoder, *(thousandths(n) for n in range(8)))
        assert 1 <= len(codec.threads) <= 2
        assert {number for _, number in codec.threads} == {1}
        assert torch.get_num_threads() == 3
        # A thread that uses PyTorch for the first time is not touched either.
        later: Future[int] = Future()
        thread = threading.Thread(target=lambda: later.set_result(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later.result() == 3
    finally:
        torch.set_num_threads(before)


def test_threads_are_not_bound_to_the_core_of_an_engine_in_this_process(
    codec: FirstSampleCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upstream's CPU worker binds the thread that it is made on, and disables the setting."""
    cores = os.sched_getaffinity(0)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    bound: list[set[int]] = []
    try:
        os.sched_setaffinity(0, {min(cores)})
        encoder = ClipEncoder(lambda: codec, num_threads=2)
        encoded(encoder, thousandths(1))
        bound.append(encoder.submit(os.sched_getaffinity, 0).result())
    finally:
        os.sched_setaffinity(0, cores)
    assert bound == [cores]
    assert {number for _, number in codec.threads} == {1}


def test_a_known_clip_is_not_encoded_again(codec: FirstSampleCodec) -> None:
    encoder = ClipEncoder(lambda: codec, num_threads=4)
    same = encoded(encoder, *[(thousandths(5, 6), RATE)] * 20)
    assert len(codec.heard) == 1
    assert all(codes.tolist() == [[5], [6]] for codes in same)
    # Equal bytes of another rate or shape are another clip.
    encoded(encoder, (thousandths(5, 6), 2 * RATE), (thousandths(5, 6).reshape(2, 4), RATE))
    assert len(codec.heard) == 3


def test_the_oldest_clip_is_forgotten(codec: FirstSampleCodec) -> None:
    encoder = ClipEncoder(lambda: codec, num_threads=1)
    assert MAX_AHEAD < CACHED_CLIPS
    clips = [thousandths(n) for n in range(CACHED_CLIPS + 1)]
    encoded(encoder, *clips)
    assert len(codec.heard) == CACHED_CLIPS + 1
    encoded(encoder, clips[1])
    assert len(codec.heard) == CACHED_CLIPS + 1
    encoded(encoder, clips[0])
    assert len(codec.heard) == CACHED_CLIPS + 2


def test_a_kept_clip_is_not_forgotten(codec: FirstSampleCodec) -> None:
    encoder = ClipEncoder(lambda: codec, num_threads=4)
    kept = KeptClip((thousandths(5, 6), RATE))
    same = encoded(encoder, *[kept] * 20, (thousandths(5, 6), RATE))
    assert len(codec.heard) == 1
    encoded(encoder, *(thousandths(n) for n in range(CACHED_CLIPS)))
    same += encoded(encoder, kept)
    assert len(codec.heard) == CACHED_CLIPS + 1
    assert all(codes.tolist() == [[5], [6]] for codes in same)


def test_a_failure_is_not_kept(codec: FirstSampleCodec) -> None:
    failures = [OSError("no codec yet")]

    def load() -> Codec:
        if failures:
            raise failures.pop()
        return codec

    encoder = ClipEncoder(load, num_threads=1)
    with pytest.raises(OSError, match="no codec yet"):
        encoded(encoder, thousandths(1))
    assert encoded(encoder, thousandths(1))[0].tolist() == [[1]]


@pytest.mark.parametrize(
    "kind", [*sorted(set(registered_model_types()) - {"espnet_dac", "spectral_codec"}), ""]
)
def test_codes_are_those_of_a_clip_alone(
    kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """To the bit, whatever is encoded beside it; with the packaged model's codec, too."""
    if kind:
        folder = write_random_codec(tmp_path_factory.mktemp(kind), kind, seed=1)
    else:
        folder = packaged_model() / "codec"
    real = load_codec(str(folder))
    random = np.random.default_rng(0)
    frames = (3, 7, 7, 7, 7, 10, 10, 10, 25, 25, 40)
    clips = [
        random.uniform(-0.5, 0.5, n * real.samples_per_frame).astype(np.float32) for n in frames
    ]
    alone = [encoded(ClipEncoder(lambda: real, num_threads=1), clip)[0] for clip in clips]
    together = encoded(ClipEncoder(lambda: real, num_threads=4), *clips)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
