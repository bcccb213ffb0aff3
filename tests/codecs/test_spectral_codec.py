# SPDX-License-Identifier: Apache-2.0
"""The spectral codec: its parts against independent computations, and its file format."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch

from vllm.unison.codecs import load_codec
from vllm.unison.codecs.spectral_codec import (
    SpectralCodec,
    SpectralCodecConfig,
    SpectralCodecModel,
    mel_filters,
)

SMALL = SpectralCodecConfig(
    hidden_size=16,
    intermediate_size=32,
    encoder_layers=(1, 1),
    decoder_lookahead=(3, 1, 0),
    num_codebooks=4,
    codebook_size=32,
    codebook_size_semantic=11,
)


def model(seed: int, config: SpectralCodecConfig = SMALL) -> SpectralCodecModel:
    torch.manual_seed(seed)
    made = SpectralCodecModel(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def test_lengths_and_alignment() -> None:
    codec = SpectralCodec(model(1))
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
    restored = model(3).decoder._overlap_add(torch.from_numpy(np.array(spectra))[None])
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
    codes = torch.randint(0, 11, (60, 4))
    changed = codes.clone()
    changed[30] = (codes[30] + 1) % 11
    differ = (codec.decode(codes) != codec.decode(changed)).reshape(60, 640).any(1)
    assert differ.nonzero().flatten().tolist() == list(
        range(30 - context.right, 30 + context.left + 1)
    )


@pytest.mark.parametrize("used", [1, 2, 4])
def test_first_codebooks_alone(used: int) -> None:
    samples = 0.1 * torch.randn(6400)
    whole = SpectralCodec(model(6))
    part = SpectralCodec(model(6), num_codebooks=used)
    assert torch.equal(part.encode(samples), whole.encode(samples)[:, :used])
    assert part.decode(part.encode(samples)).shape == (6400,)


def test_written_and_loaded_by_the_registry(tmp_path: Path) -> None:
    saved = model(7)
    saved.save(tmp_path)
    codec = load_codec(str(tmp_path))
    assert isinstance(codec, SpectralCodec)
    samples = 0.1 * torch.randn(3200)
    codes = codec.encode(samples)
    assert torch.equal(codes, SpectralCodec(saved).encode(samples))
    assert torch.equal(codec.decode(codes), SpectralCodec(saved).decode(codes))


def test_half_precision_file_is_computed_in_float32(tmp_path: Path) -> None:
    model(8).save(tmp_path, torch.float16)
    codec = load_codec(str(tmp_path))
    assert isinstance(codec, SpectralCodec)
    assert {p.dtype for p in codec.model.parameters()} == {torch.float32}


def test_bfloat16_computation_stays_close(tmp_path: Path) -> None:
    model(9).save(tmp_path)
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
