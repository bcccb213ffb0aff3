# SPDX-License-Identifier: Apache-2.0
"""The spectral codec: its parts against independent computations, and its file format."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch

from vllm.unison.codecs import load_codec
from vllm.unison.codecs.overlap_add import overlap_add
from vllm.unison.codecs.source_filter_decoder import SourceFilterConfig, SourceFilterDecoder
from vllm.unison.codecs.spectral_codec import (
    SpectralCodec,
    SpectralCodecConfig,
    SpectralCodecModel,
    mel_filters,
)
from vllm.unison.codecs.stages import WindowStage

SMALL = SpectralCodecConfig(
    hidden_size=16,
    intermediate_size=32,
    encoder_layers=(1, 1),
    decoder_lookahead=(3, 1, 0),
    num_codebooks=4,
    codebook_size=32,
    codebook_size_semantic=11,
)
VOICED = replace(SMALL, source_filter=SourceFilterConfig(lookahead=(1, 0), pitch_size=8))
BOTH = pytest.mark.parametrize("config", [SMALL, VOICED], ids=["spectra", "source"])


def model(seed: int, config: SpectralCodecConfig = SMALL) -> SpectralCodecModel:
    torch.manual_seed(seed)
    made = SpectralCodecModel(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


@BOTH
def test_lengths_and_alignment(config: SpectralCodecConfig) -> None:
    codec = SpectralCodec(model(1, config))
    for num_samples in (1, 639, 640, 641, 6400):
        codes = codec.encode(0.1 * torch.randn(num_samples))
        assert codes.shape == (-(-num_samples // 640), 4)
        assert codec.decode(codes).shape == (len(codes) * 640,)


def test_semantic_codes_stay_in_their_part_of_the_book() -> None:
    codes = SpectralCodec(model(2)).encode(0.1 * torch.randn(64000))
    assert int(codes[:, 0].max()) < 11 <= int(codes[:, 1:].max())


def test_inverse_transform_restores_spectra_of_real_samples() -> None:
    """Overlap-add of windowed inverse transforms inverts SciPy's short-time transform."""
    config = SMALL
    rng = np.random.default_rng(3)
    samples = rng.standard_normal(config.hop_length * 12)
    margin = (config.window_length - config.hop_length) // 2
    padded = np.pad(samples, margin)
    window = scipy.signal.windows.hann(config.window_length, sym=False)
    spectra = [
        np.fft.rfft(window * padded[start : start + config.window_length])
        for start in range(0, len(samples), config.hop_length)
    ]
    restored = overlap_add(
        torch.from_numpy(np.array(spectra))[None], config.hop_length, torch.from_numpy(window)
    )
    np.testing.assert_allclose(restored[0].numpy(), samples, atol=1e-5)


def test_log_mel_equals_an_independent_computation() -> None:
    encoder = model(4).encoder
    rng = np.random.default_rng(4)
    samples = rng.standard_normal(640 * 3).astype(np.float32)
    _, _, spectra = scipy.signal.stft(
        np.pad(samples, 480), nperseg=1280, noverlap=960, boundary=None, padded=False, scaling="psd"
    )
    window = scipy.signal.windows.hann(1280, sym=False)
    # SciPy scales by the window's energy and the rate.
    power = np.abs(spectra) ** 2 * (window**2).sum()
    expected = np.log(np.maximum(mel_filters(16000, 1280, 80).numpy() @ power, 1e-5)).T
    np.testing.assert_allclose(
        encoder.log_mel(torch.from_numpy(samples)[None])[0].numpy(), expected, atol=2e-3
    )


def test_each_mel_filter_sums_to_one_and_peaks_in_order() -> None:
    filters = mel_filters(16000, 1280, 80)
    torch.testing.assert_close(filters.sum(1), torch.ones(80))
    assert (filters.argmax(1).diff() >= 0).all()
    assert (filters >= 0).all()


def test_residual_books_reduce_what_is_left() -> None:
    """Encoding greedily, each book's choice is the nearest direction to the residual."""
    quantizer = model(5).quantizer
    assert quantizer.semantic is not None
    latents = torch.randn(7, 16)
    codes = quantizer.encode(latents)
    residual = latents - quantizer.semantic.lookup(codes[:, 0])
    for book, chosen in zip(quantizer.books, codes.unbind(1)[1:], strict=True):
        cosine = torch.nn.functional.cosine_similarity(
            book.project_in(residual)[:, None], book.entries[None], dim=-1
        )
        assert torch.equal(cosine.argmax(1), chosen)
        residual = residual - book.lookup(chosen)
    torch.testing.assert_close(latents - residual, quantizer.decode(codes))


def test_samples_depend_on_the_stated_context_only() -> None:
    """Changing a frame changes samples as far as the context says, and no further."""
    codec = SpectralCodec(model(12))
    context = codec.decoder_context()
    assert context is not None
    codes = torch.randint(0, 11, (60, 4))
    changed = codes.clone()
    changed[30] = (codes[30] + 1) % 11
    differ = (codec.decode(codes) != codec.decode(changed)).reshape(60, 640).any(1)
    assert differ.nonzero().flatten().tolist() == list(
        range(30 - context.right, 30 + context.left + 1)
    )


def test_what_a_source_is_filtered_with_depends_on_the_stated_context_only() -> None:
    codec = SpectralCodec(model(13, VOICED))
    assert codec.decoder_context() is None
    stages = codec.decoder_stages()
    assert stages is not None
    planning, _, filtering = stages
    assert isinstance(planning, WindowStage) and isinstance(filtering, WindowStage)
    codes = torch.randint(0, 11, (1, 60, 4))
    changed = codes.clone()
    changed[0, 30] = (codes[0, 30] + 1) % 11
    source = torch.randn(1, 60, 2 * 640 + 2 * 16)
    other = source.clone()
    other[0, 30] += 1
    for stage, inputs, others in ((planning, codes, changed), (filtering, source, other)):
        differ = (stage.apply(inputs) != stage.apply(others))[0].any(-1).nonzero().flatten()
        context = stage.context
        assert differ.min() == 30 - context.right and differ.max() == 30 + context.left


def test_a_source_is_where_its_decoder_is() -> None:
    decoder = model(15, VOICED).to("meta").decoder
    assert isinstance(decoder, SourceFilterDecoder)
    made, _ = decoder.source().step(torch.zeros(1, 3, 4 + 2, device="meta"), [None])
    assert made.shape == (1, 3, 2 * 640 + 2) and made.device.type == "meta"


def test_a_pitch_does_not_depend_on_its_neighbours_in_a_batch() -> None:
    network = model(14, VOICED).decoder.pitch.requires_grad_(False)
    codes = torch.randint(0, 32, (7, 50, 4))
    together = network(codes)
    for row in range(7):
        assert torch.equal(network(codes[row : row + 1])[0], together[row])
    context = network.context()
    part = network(codes[:, 20 - context.left : 31 + context.right])
    assert torch.equal(part[:, context.left : context.left + 11], together[:, 20:31])
    assert 50 <= float(together.min()) < float(together.max()) <= 600
    assert torch.equal(together * 1024, (together * 1024).round())


@BOTH
@pytest.mark.parametrize("used", [1, 2, 4])
def test_first_codebooks_alone(used: int, config: SpectralCodecConfig) -> None:
    samples = 0.1 * torch.randn(6400)
    whole = SpectralCodec(model(6, config))
    part = SpectralCodec(model(6, config), num_codebooks=used)
    assert torch.equal(part.encode(samples), whole.encode(samples)[:, :used])
    assert part.decode(part.encode(samples)).shape == (6400,)


@BOTH
def test_written_and_loaded_by_the_registry(tmp_path: Path, config: SpectralCodecConfig) -> None:
    saved = model(7, config)
    saved.save(tmp_path)
    codec = load_codec(str(tmp_path))
    assert isinstance(codec, SpectralCodec)
    samples = 0.1 * torch.randn(3200)
    codes = codec.encode(samples)
    assert torch.equal(codes, SpectralCodec(saved).encode(samples))
    assert torch.equal(codec.decode(codes), SpectralCodec(saved).decode(codes))


@BOTH
def test_half_precision_file_is_computed_in_float32(
    tmp_path: Path, config: SpectralCodecConfig
) -> None:
    model(8, config).save(tmp_path, torch.float16)
    codec = load_codec(str(tmp_path))
    assert isinstance(codec, SpectralCodec)
    assert {p.dtype for p in codec.model.parameters()} == {torch.float32}


@BOTH
def test_bfloat16_computation_stays_close(tmp_path: Path, config: SpectralCodecConfig) -> None:
    model(9, config).save(tmp_path)
    codes = torch.randint(0, 32, (20, 4))
    exact = load_codec(str(tmp_path)).decode(codes)
    rounded = load_codec(str(tmp_path), dtype=torch.bfloat16).decode(codes)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hop_length": 0}, "hop_length must be at least 1, got 0"),
        ({"decoder_lookahead": (7,)}, r"decoder_lookahead must lie in \[0, 6\]"),
        ({"window_length": 400}, "window_length must be at least 2"),
        ({"codebook_size_semantic": 999}, r"codebook_size_semantic must be in \[0, 512\]"),
        ({"source_filter": {"hop_length": 150, "window_length": 600}}, "must divide 320, got 150"),
        ({"source_filter": {"window_length": 200}}, "window_length must be at least 2"),
        ({"source_filter": {"lookahead": (9,)}}, r"source_filter.lookahead must lie in \[0, 6\]"),
    ],
)
def test_wrong_sizes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpectralCodecConfig(**change)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    model(10).save(tmp_path)
    config = tmp_path / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"num_mels": 80', '"num_mels": 40'))
    with pytest.raises(ValueError, match="does not fit"):
        load_codec(str(tmp_path))
    config.write_text(text.replace('"num_mels"', '"mels"'))
    with pytest.raises(ValueError, match=r"must not have the fields \['mels'\]"):
        load_codec(str(tmp_path))


def test_wrong_number_of_codebooks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"num_codebooks must be an integer in \[1, 4\], got 5"):
        SpectralCodec(model(11), num_codebooks=5)
