# SPDX-License-Identifier: Apache-2.0
"""Codecs against the transformers library itself, loaded and driven the way its users do."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.unison.codecs import Codec
from vllm.unison.codecs.higgs_audio_codec import tokenizer_class
from vllm.unison.codecs.transformers_codecs import EncodecCodec, MimiCodec
from vllm.unison.testing.random_codec import write_random_codec

Load = Callable[..., Codec]
Checkpoint = Callable[[str], Path]

HIGGS = "higgs_audio_v2_tokenizer"
SAMPLE_RATES = {"dac": 16000, "encodec": 24000, "mimi": 24000, "xcodec": 16000, HIGGS: 24000}
SAMPLES_PER_FRAME = {"dac": 320, "encodec": 320, "mimi": 1920, "xcodec": 320, HIGGS: 960}
NUM_CODEBOOKS = {"dac": 12, "encodec": 32, "mimi": 32, "xcodec": 8, HIGGS: 8}
CODEBOOK_SIZES = {"dac": 1024, "encodec": 1024, "mimi": 2048, "xcodec": 1024, HIGGS: 1024}
# Samples by which the decoder's own output is shorter than its frames (odd strides).
MISSING = {"dac": 8, "encodec": 0, "mimi": 0, "xcodec": 0, HIGGS: 0}

# Rounding of float32 where a batched call sums in another order; full scale is 1.
BATCH_TOLERANCE = 1e-5


def share_weights(model: torch.nn.Module, codec: Any) -> None:
    """Let a model compute with a codec's weights, which must be its own, bit for bit.

    The last bit of a product can depend on where its weights lie in memory.
    """
    own, others = model.state_dict(), codec.model.state_dict()
    assert own.keys() == others.keys()
    for name, weight in own.items():
        assert torch.equal(weight, others[name]), name
    model.load_state_dict(others, assign=True)


class Reference:
    """A checkpoint in the hands of the transformers library."""

    def __init__(self, folder: Path) -> None:
        self.extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        self.kind = transformers.AutoConfig.from_pretrained(folder).model_type
        # transformers offers this one only beside torchaudio.
        model_class = tokenizer_class() if self.kind == HIGGS else transformers.AutoModel
        self.model = model_class.from_pretrained(folder).eval()

    @torch.no_grad()
    def encode(self, samples: np.ndarray, num_codebooks: int) -> torch.Tensor:
        """int64 ``[num_codebooks, num_frames]``."""
        inputs = self.extractor(
            raw_audio=samples, sampling_rate=self.extractor.sampling_rate, return_tensors="pt"
        )
        values = inputs["input_values"]
        if self.kind == "dac":
            return self.model.encode(values, n_quantizers=num_codebooks).audio_codes[0]
        if self.kind == "mimi":
            mask = inputs["padding_mask"]
            return self.model.encode(values, mask, num_quantizers=num_codebooks).audio_codes[0]
        if self.kind == "encodec":
            # 75 frames per second of 10 bits per codebook.
            bandwidth = num_codebooks * 0.75
            mask = inputs["padding_mask"]
            return self.model.encode(values, mask, bandwidth=bandwidth).audio_codes[0, 0]
        # 50 or 25 frames per second of 10 bits per codebook.
        bandwidth = num_codebooks * (0.25 if self.kind == HIGGS else 0.5)
        return self.model.encode(values, bandwidth=bandwidth).audio_codes[0]

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, codec: Codec) -> torch.Tensor:
        """``[num_codebooks, num_frames]`` to ``[the library's number of samples]``, for a codec."""
        share_weights(self.model, codec)
        if self.kind == "encodec":
            return self.model.decode(codes[None, None], [None]).audio_values.flatten()
        return self.model.decode(audio_codes=codes[None]).audio_values.flatten()


@pytest.fixture(scope="session")
def reference(checkpoint: Checkpoint) -> Callable[[str], Reference]:
    references: dict[str, Reference] = {}

    def get(kind: str) -> Reference:
        if kind not in references:
            references[kind] = Reference(checkpoint(kind))
        return references[kind]

    return get


def noise(num_samples: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(num_samples, generator=generator)


def random_codes(codec: Codec, num_frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (num_frames, codec.num_codebooks)
    return torch.randint(codec.codebook_size, shape, generator=generator, dtype=torch.int32)


def test_attributes(kind: str, load: Load) -> None:
    codec = load(kind)
    assert codec.sample_rate == SAMPLE_RATES[kind]
    assert codec.samples_per_frame == SAMPLES_PER_FRAME[kind]
    assert codec.num_codebooks == NUM_CODEBOOKS[kind]
    assert codec.codebook_size == CODEBOOK_SIZES[kind]
    assert codec.device == torch.device("cpu")
    assert not codec.model.training  # type: ignore[attr-defined]


@pytest.mark.parametrize("length", [1, 13, 1919, 1920, 1921, 3840, 9601, 24000])
def test_encode_equals_transformers(
    kind: str, length: int, load: Load, reference: Callable[[str], Reference]
) -> None:
    codec = load(kind)
    samples = noise(length, seed=length)
    codes = codec.encode(samples)
    expected = reference(kind).encode(samples.numpy(), codec.num_codebooks)
    assert codes.dtype == torch.int32
    assert torch.equal(codes.long(), expected.T)


def test_random_checkpoints_use_their_codebooks(kind: str, load: Load) -> None:
    """Otherwise comparing codes would prove little."""
    codec = load(kind)
    codes = codec.encode(noise(60 * codec.samples_per_frame))
    assert all(column.unique().numel() >= 30 for column in codes.T)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 7, 30])
def test_decode_equals_transformers(
    kind: str, num_frames: int, load: Load, reference: Callable[[str], Reference]
) -> None:
    codec = load(kind)
    codes = random_codes(codec, num_frames, seed=num_frames)
    samples = codec.decode(codes)
    expected = reference(kind).decode(codes.long().T, codec)
    assert samples.dtype == torch.float32
    assert samples.shape == (num_frames * codec.samples_per_frame,)
    assert expected.shape[0] == samples.shape[0] - MISSING[kind]
    assert torch.equal(samples[: expected.shape[0]], expected)
    assert not samples[expected.shape[0] :].any()
    assert 0.01 < samples.std() < 1


@pytest.mark.parametrize(
    ("kind", "num_codebooks"),
    [
        ("dac", 1),
        ("dac", 8),
        ("encodec", 2),
        ("encodec", 8),
        ("mimi", 1),
        ("mimi", 8),
        ("xcodec", 1),
        ("xcodec", 4),
        (HIGGS, 2),
        (HIGGS, 6),
    ],
)
def test_fewer_codebooks_equal_transformers(
    kind: str, num_codebooks: int, load: Load, reference: Callable[[str], Reference]
) -> None:
    codec = load(kind, num_codebooks=num_codebooks)
    samples = noise(5000)
    codes = codec.encode(samples)
    assert codes.shape == (codec.num_frames(5000), num_codebooks)
    expected = reference(kind).encode(samples.numpy(), num_codebooks)
    assert torch.equal(codes.long(), expected.T)
    decoded = reference(kind).decode(expected, codec)
    assert torch.equal(codec.decode(codes)[: decoded.shape[0]], decoded)


@pytest.mark.parametrize(("kind", "num_codebooks"), [("encodec", 5), ("xcodec", 7), (HIGGS, 3)])
def test_codebooks_between_two_bandwidths(kind: str, num_codebooks: int, load: Load) -> None:
    samples = noise(5000)
    codes = load(kind, num_codebooks=num_codebooks).encode(samples)
    assert torch.equal(codes, load(kind).encode(samples)[:, :num_codebooks])


@settings(max_examples=40)
@given(num_samples=st.integers(0, 12000))
def test_num_frames_is_exact(kind: str, load: Load, num_samples: int) -> None:
    codec = load(kind, num_codebooks=1)
    codes = codec.encode(noise(num_samples))
    assert codec.num_frames(num_samples) == math.ceil(num_samples / codec.samples_per_frame)
    assert codes.shape == (codec.num_frames(num_samples), 1)
    assert codec.decode(codes).shape == (codec.num_samples(codes.shape[0]),)


def test_empty(kind: str, load: Load) -> None:
    codec = load(kind)
    codes = codec.encode(torch.empty(0))
    assert codes.shape == (0, codec.num_codebooks)
    assert codes.dtype == torch.int32
    samples = codec.decode(codes)
    assert samples.shape == (0,)
    assert samples.dtype == torch.float32
    assert codec.decode_batch([]) == []


def test_batched_decode_equals_single(kind: str, load: Load) -> None:
    codec = load(kind)
    batch = [random_codes(codec, length, seed) for seed, length in enumerate([5, 9, 0, 5, 1, 9, 5])]
    batched = codec.decode_batch(batch)
    assert len(batched) == len(batch)
    for codes, samples in zip(batch, batched, strict=True):
        single = codec.decode(codes)
        assert samples.shape == single.shape
        torch.testing.assert_close(samples, single, rtol=0, atol=BATCH_TOLERANCE)


def test_decode_repeats_exactly(kind: str, load: Load) -> None:
    codec = load(kind)
    codes = random_codes(codec, 11)
    first = codec.decode(codes)
    codec.decode_batch([random_codes(codec, 4, seed) for seed in range(3)])
    assert torch.equal(codec.decode(codes), first)


def test_frames_start_where_they_should(kind: str, load: Load) -> None:
    """A change of the codes of late frames must not move or touch what was long before."""
    codec = load(kind)
    codes = random_codes(codec, 40)
    changed = codes.clone()
    changed[30:] = random_codes(codec, 10, seed=9)
    difference = (codec.decode(codes) - codec.decode(changed)).abs()
    # No decoder here looks further ahead than 20 frames; causal ones not at all.
    ahead = 0 if kind in ("encodec", "mimi") else 20
    frame = codec.samples_per_frame
    assert difference[: (30 - ahead) * frame].max() < 1e-6
    assert difference[31 * frame :].max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64, torch.uint8])
def test_any_integer_type(dtype: torch.dtype, load: Load) -> None:
    codec = load("dac")
    codes = random_codes(codec, 3) % 128
    assert torch.equal(codec.decode(codes.to(dtype)), codec.decode(codes))


def test_codes_out_of_range(kind: str, load: Load) -> None:
    codec = load(kind)
    highest = CODEBOOK_SIZES[kind] - 1
    for bad in (-1, highest + 1, 2**31 - 1):
        codes = random_codes(codec, 3)
        codes[2, codec.num_codebooks - 1] = bad
        with pytest.raises(ValueError, match=rf"codes must be in \[0, {highest}\], got {bad}"):
            codec.decode(codes)
        with pytest.raises(ValueError, match="codes must be in"):
            codec.decode_batch([random_codes(codec, 3), codes])


def test_wrong_codes(load: Load) -> None:
    codec = load("dac")
    for shape in ((12,), (3, 11), (1, 3, 12), (12, 3)):
        with pytest.raises(ValueError, match=r"codes must have shape \[num_frames, 12\]"):
            codec.decode(torch.zeros(shape, dtype=torch.int32))
    for dtype in (torch.float32, torch.bool):
        with pytest.raises(ValueError, match="codes must be integers"):
            codec.decode(torch.zeros(3, 12, dtype=dtype))


def test_wrong_samples(kind: str, load: Load) -> None:
    codec = load(kind)
    for bad in (math.nan, math.inf, -math.inf):
        samples = noise(1000)
        samples[500] = bad
        with pytest.raises(ValueError, match="samples must be finite"):
            codec.encode(samples)
    with pytest.raises(ValueError, match=r"samples must have shape \[num_samples\]"):
        codec.encode(torch.zeros(1, 1000))
    with pytest.raises(ValueError, match="samples must be floating point"):
        codec.encode(torch.zeros(1000, dtype=torch.int16))


def test_negative_counts(load: Load) -> None:
    with pytest.raises(ValueError, match="num_samples must be at least 0"):
        load("dac").num_frames(-1)
    with pytest.raises(ValueError, match="num_frames must be at least 0"):
        load("dac").num_samples(-1)


@pytest.mark.parametrize("kind", ["encodec", "mimi"])
def test_too_long_for_exact_padding(kind: str, load: Load) -> None:
    with pytest.raises(ValueError, match="samples must be at most 16777216 long"):
        load(kind).encode(torch.zeros(2**24 + 1))


def small_encodec(**fields: Any) -> transformers.EncodecModel:
    return transformers.EncodecModel(
        transformers.EncodecConfig(num_filters=2, hidden_size=4, **fields)
    )


@pytest.mark.parametrize(
    ("field", "value", "others"),
    [
        ("audio_channels", 2, {}),
        ("normalize", True, {}),
        ("chunk_length_s", 1.0, {"overlap": 0.01}),
    ],
)
def test_encodec_models_that_do_not_fit(field: str, value: object, others: dict) -> None:
    with pytest.raises(ValueError, match=f"codec: {field} must be .*, got {value}"):
        EncodecCodec(small_encodec(**{field: value}, **others))


def test_mimi_without_resampling_of_frames(checkpoint: Checkpoint) -> None:
    fields = json.loads((checkpoint("mimi") / "config.json").read_text())
    del fields["_frame_rate"]
    config = transformers.MimiConfig(**{**fields, "frame_rate": 25})
    with pytest.raises(ValueError, match=r"codec: frame_rate must be half of .*, got 25"):
        MimiCodec(transformers.MimiModel(config))


@torch.no_grad()
def test_encodec_that_looks_ahead(tmp_path: Path) -> None:
    """The published 32 kHz model is not causal."""
    write_random_codec(
        tmp_path, "encodec", use_causal_conv=False, sampling_rate=32000, target_bandwidths=[2.2],
        upsampling_ratios=[8, 5, 4, 4], codebook_size=2048,
    )  # fmt: skip
    codec = EncodecCodec.from_pretrained(str(tmp_path))
    model = Reference(tmp_path).model
    assert (codec.samples_per_frame, codec.num_codebooks) == (640, 4)
    for length in (1, 639, 640, 641, 10000):
        samples = noise(length)
        codes = codec.encode(samples)
        expected = model.encode(samples[None, None], bandwidth=2.2).audio_codes
        assert torch.equal(codes.long(), expected[0, 0].T)
        share_weights(model, codec)
        decoded = model.decode(expected, [None]).audio_values.flatten()
        assert torch.equal(codec.decode(codes), decoded)


def test_lower_precision_still_gives_float32(kind: str, load: Load) -> None:
    codec = load(kind, dtype=torch.bfloat16)
    assert codec.model.dtype == torch.bfloat16  # type: ignore[attr-defined]
    codes = codec.encode(noise(5000))
    assert codes.dtype == torch.int32
    samples = codec.decode(codes)
    assert samples.dtype == torch.float32
    exact = load(kind).decode(codes)
    correlation = torch.corrcoef(torch.stack([samples, exact]))[0, 1]
    assert correlation > 0.9
