# SPDX-License-Identifier: Apache-2.0
"""Contract 6: streamed samples are those of one call, for every codec and chunk size."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.support.codecs import FourierCodec, WindowSumCodec
from vllm.unison.audio_decoder.codec_stream import HostCodecStream
from vllm.unison.audio_decoder.decode_state import RequestDecodeState
from vllm.unison.audio_decoder.pipeline import TOLERANCE, StagePipeline, check_stages
from vllm.unison.audio_decoder.windows import frames_needed
from vllm.unison.codecs import Codec, load_codec
from vllm.unison.codecs.channels import ChannelCodec
from vllm.unison.codecs.receptive_field import Context
from vllm.unison.codecs.source_filter_decoder import SourceFilterConfig
from vllm.unison.codecs.spectral_codec import (
    SpectralCodec,
    SpectralCodecConfig,
    SpectralCodecModel,
)
from vllm.unison.packaged_model import packaged_model
from vllm.unison.testing.random_codec import write_random_codec

Load = Callable[..., Codec]
Codes = NDArray[np.int32]

KINDS: dict[str, dict[str, Any]] = {
    "dac": {},
    "encodec": {},
    # A sliding window that is soon full, and the published one, which the others never fill.
    "mimi": {"sliding_window": 20},
    "mimi, long window": {},
    "xcodec": {},
    "higgs_audio_v2_tokenizer": {},
    "encodec, looking ahead": {"use_causal_conv": False, "num_residual_layers": 2},
    "encodec, far mirrors": {"num_residual_layers": 3, "upsampling_ratios": [2, 4, 5, 8]},
}
STEREO = ("encodec, looking ahead, stereo", "mimi, stereo", "dac, stereo")


def source_and_filter() -> Codec:
    """A spectral codec whose decoder filters a voice's source, with random weights."""
    torch.manual_seed(5)
    parts = SourceFilterConfig(pitch_size=16)
    config = SpectralCodecConfig(hidden_size=32, intermediate_size=64, source_filter=parts)
    model = SpectralCodecModel(config)
    for weight in model.decoder.pitch.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    bins = parts.window_length // 2 + 1
    with torch.no_grad():
        # As loud as speech.
        model.decoder.filters.bias[:bins] = -3
        model.decoder.filters.bias[2 * bins :] = -4
    return SpectralCodec(model)


@pytest.fixture(scope="module")
def get_codec(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Codec]:
    loaded: dict[str, Codec] = {
        "fourier": FourierCodec(),
        "packaged": load_codec(str(packaged_model() / "codec")),
        "source and filter": source_and_filter(),
    }

    def get(name: str) -> Codec:
        if name not in loaded and name in STEREO:
            loaded[name] = ChannelCodec(get(name.removesuffix(", stereo")), 2)
        if name not in loaded:
            folder = tmp_path_factory.mktemp("codec")
            write_random_codec(folder, name.split(",")[0], seed=5, **KINDS[name])
            loaded[name] = load_codec(str(folder), num_codebooks=None if name == "dac" else 4)
        return loaded[name]

    return get


@pytest.fixture(params=[*KINDS, *STEREO, "fourier", "packaged", "source and filter"])
def codec(request: pytest.FixtureRequest, get_codec: Callable[[str], Codec]) -> Codec:
    return get_codec(request.param)


def random_codes(codec: Codec, num_frames: int, seed: int) -> Codes:
    shape = (num_frames, codec.num_codebooks)
    return np.random.default_rng(seed).integers(0, codec.codebook_size, shape, np.int32)


class Crowd:
    """Requests that receive frames and decode chunks beside each other."""

    def __init__(self, codec: Codec) -> None:
        stages = codec.decoder_stages()
        assert stages is not None
        self.codec_stream = HostCodecStream()
        self.pipeline = StagePipeline(stages, self.codec_stream)
        self.contexts = self.pipeline.contexts
        self.streams: dict[int, RequestDecodeState] = {}
        self.samples: dict[int, list[torch.Tensor]] = {}

    def enter(self, name: int, codes: Codes, num_emitted: int) -> None:
        self.samples.setdefault(name, [])
        self.streams[name] = RequestDecodeState(
            str(name), self.contexts, self.pipeline.has_state, codes, num_emitted
        )

    def decode(self, stops: dict[int, Sequence[int]]) -> None:
        with self.codec_stream.running():
            self.pipeline.decode([(self.streams[name], some) for name, some in stops.items()])
        for name in stops:
            assert self.streams[name].error is None
            self.samples[name] += self.streams[name].samples
            self.streams[name].samples = []

    def possible(self, num_frames: int) -> int:
        """Frames that can be decoded while more may follow."""
        return max(
            n for n in range(num_frames + 1) if frames_needed(self.contexts, n) <= num_frames
        )

    def all_samples(self, name: int) -> torch.Tensor:
        return torch.cat(self.samples[name]).flatten(0, 1)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 13, 32, 64])
def test_chunks_of_any_size(codec: Codec, chunk: int) -> None:
    num_frames = 150
    codes = random_codes(codec, num_frames, seed=chunk)
    crowd = Crowd(codec)
    crowd.enter(0, codes[:0], 0)
    emitted = 0
    for frame in range(num_frames):
        crowd.streams[0].feed(codes[frame : frame + 1])
        if frames_needed(crowd.contexts, emitted + chunk) <= frame + 1:
            emitted += chunk
            crowd.decode({0: [emitted]})
    crowd.decode({0: [num_frames]})
    whole = codec.decode(torch.from_numpy(codes))
    assert 0.01 < whole.std() < 1
    streamed = crowd.all_samples(0)
    assert streamed.shape == whole.shape
    assert (streamed - whole).abs().max() <= TOLERANCE


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 6, 7, 8, 11, 12])
def test_audio_shorter_than_the_context(codec: Codec, num_frames: int) -> None:
    codes = random_codes(codec, num_frames, seed=num_frames)
    crowd = Crowd(codec)
    crowd.enter(0, codes[:0], 0)
    emitted = 0
    for frame in range(num_frames):
        crowd.streams[0].feed(codes[frame : frame + 1])
        possible = crowd.possible(frame + 1)
        if possible > emitted:
            emitted = possible
            crowd.decode({0: [emitted]})
    if emitted < num_frames:
        crowd.decode({0: [num_frames]})
    whole = codec.decode(torch.from_numpy(codes))
    assert (crowd.all_samples(0) - whole).abs().max() <= TOLERANCE


@pytest.mark.parametrize("seed", range(3))
def test_crowds_with_interruptions(codec: Codec, seed: int) -> None:
    """Requests of any length begin, stop and go on at any time; chunks are of any size."""
    source = random.Random(seed)
    lengths = [source.randint(1, 60) for _ in range(7)]
    codes = [random_codes(codec, length, seed) for seed, length in enumerate(lengths)]
    crowd, received, emitted = Crowd(codec), [0] * 7, [0] * 7
    interruptions = 0
    while any(done < length for done, length in zip(emitted, lengths, strict=True)):
        stops: dict[int, Sequence[int]] = {}
        for name, length in enumerate(lengths):
            if emitted[name] == length or source.random() < 0.3:
                continue
            if name not in crowd.streams or source.random() < 0.1:
                interruptions += name in crowd.streams
                crowd.enter(name, codes[name][: received[name]], emitted[name])
            count = min(source.choice([1, 1, 4, 20]), length - received[name])
            crowd.streams[name].feed(codes[name][received[name] : received[name] + count])
            received[name] += count
            possible = crowd.possible(received[name])
            if received[name] == length:
                possible = length
            if possible > emitted[name] and source.random() < 0.6:
                stop = source.randint(emitted[name] + 1, possible)
                stops[name] = sorted({source.randint(emitted[name] + 1, stop), stop})
                emitted[name] = stop
        if stops:
            crowd.decode(stops)
    assert interruptions >= 3
    for name, own in enumerate(codes):
        whole = codec.decode(torch.from_numpy(own))
        streamed = crowd.all_samples(name)
        assert streamed.shape == whole.shape
        assert (streamed - whole).abs().max() <= TOLERANCE


def test_memory_does_not_grow_with_the_audio(codec: Codec) -> None:
    crowd = Crowd(codec)
    codes = random_codes(codec, 400, seed=0)
    crowd.enter(0, codes[:0], 0)
    held, state = [], []
    for frame in range(400):
        crowd.streams[0].feed(codes[frame : frame + 1])
        possible = crowd.possible(frame + 1)
        if possible:
            crowd.decode({0: [possible]})
            crowd.streams[0].take_codes(1)
        held.append(crowd.streams[0].num_bytes())
        state.append(sum(_num_bytes(stage.state) for stage in crowd.streams[0].stages))
    assert max(held[300:]) == max(held[100:200])
    # A sliding window of 250 positions is full after 125 frames.
    assert state[150] == state[399]


def _num_bytes(state: Any) -> int:
    if isinstance(state, torch.Tensor):
        # All that its storage keeps alive.
        return state.untyped_storage().nbytes()
    return sum(map(_num_bytes, state)) if isinstance(state, tuple) else 0


def test_one_call_for_windows_of_one_shape() -> None:
    codec = WindowSumCodec(2, 8)
    crowd = Crowd(codec)
    for name in range(5):
        crowd.enter(name, random_codes(codec, 20, seed=name), 8 if name < 3 else 0)
    crowd.decode({0: [12], 1: [12], 2: [14], 3: [5, 9], 4: [6]})
    # Windows: 2 + 4 + 1 frames twice, 2 + 6 + 1, 5 + 1, 6 + 1 (as long as the first), 2 + 4 + 1.
    assert sorted(codec.calls) == [(1, 6), (1, 7), (1, 9), (3, 7)]


def test_a_failing_call_is_charged_to_who_caused_it() -> None:
    codec = WindowSumCodec(2, 8)
    plain = codec._decode

    def broken(codes: torch.Tensor) -> torch.Tensor:
        if (codes == 7).any():
            raise RuntimeError("out of tune")
        return plain(codes)

    codec._decode = broken  # type: ignore[method-assign]
    crowd = Crowd(codec)
    for name in range(4):
        codes = random_codes(codec, 10, seed=name) % 7
        codes[4, 0] += 7 - codes[4, 0] if name == 2 else 0
        crowd.enter(name, codes, 0)
    with crowd.codec_stream.running():
        crowd.pipeline.decode([(stream, [6, 9]) for stream in crowd.streams.values()])
    assert [stream.error for stream in crowd.streams.values()] == [
        None, None, "the codec failed: out of tune", None,
    ]  # fmt: skip
    for name in (0, 1, 3):
        stream = crowd.streams[name]
        codes = torch.from_numpy(random_codes(codec, 10, seed=name) % 7)
        assert torch.equal(torch.cat(stream.samples).flatten(), codec.decode(codes)[:27])


@pytest.mark.parametrize("kind", ["dac", "encodec", "mimi", "xcodec", "higgs_audio_v2_tokenizer"])
def test_codecs_are_checked_when_they_are_loaded(kind: str, load: Load) -> None:
    check_stages(load(kind))
    check_stages(ChannelCodec(load(kind), 2))


@pytest.mark.parametrize("smaller", [Context(28, 29), Context(29, 28), Context(16, 16)])
def test_a_context_that_is_a_little_too_small_is_noticed(smaller: Context) -> None:
    codec = FourierCodec()
    check_stages(codec)
    codec.decoder_context = lambda: smaller  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"samples depend on frames beyond Context\(left="):
        check_stages(codec)


@pytest.mark.parametrize("smaller", [Context(0, 29), Context(29, 0)])
def test_a_context_that_is_missing_is_heard(smaller: Context) -> None:
    codec = FourierCodec()
    codec.decoder_context = lambda: smaller  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="samples decoded in parts differ by"):
        check_stages(codec)


def test_a_decoder_that_fails_in_parts_is_noticed() -> None:
    codec = WindowSumCodec(2, 8)
    plain = codec._decode

    def broken(codes: torch.Tensor) -> torch.Tensor:
        if codes.shape[1] == 4:
            raise RuntimeError("out of tune")
        return plain(codes)

    codec._decode = broken  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"its decoder fails in parts: .*out of tune"):
        check_stages(codec)


def test_a_codec_without_stages(tmp_path: Path) -> None:
    codec = WindowSumCodec(2, 8)
    codec.decoder_context = lambda: None  # type: ignore[method-assign, assignment, return-value]
    assert codec.decoder_stages() is None
    check_stages(codec)
