# SPDX-License-Identifier: Apache-2.0
"""A light speech codec: spectral encoder, residual quantizer, inverse Fourier transform decoder.

The encoder reads log-mel spectra, the decoder writes short-time spectra of which an inverse Fourier
transform makes samples (the idea of Vocos, arXiv 2306.00814), so no layer runs at more than a few
hundred steps per second. Both are stacks of ConvNeXt blocks. The quantizer is residual with
factorized, normalized codebooks (as in DAC, arXiv 2306.06546). Its first codebook may be
*semantic*: a classifier that was trained with labels of what is said (the idea of CosyVoice's
supervised tokens, arXiv 2407.05407) chooses the code, and the later books hold what it leaves out.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from vllm.unison.codecs.base import Codec
from vllm.unison.codecs.convnext import ConvNeXtBlock
from vllm.unison.codecs.overlap_add import overlap_add
from vllm.unison.codecs.receptive_field import (
    Context,
    TransposedConvolution,
    looking_ahead,
    receptive_field,
)
from vllm.unison.codecs.source_filter_decoder import SourceFilterConfig, SourceFilterDecoder
from vllm.unison.codecs.stages import DecoderStage, WindowStage

MODEL_TYPE = "spectral_codec"
_LOWEST_POWER = 1e-5
_HIGHEST_LOG_MAGNITUDE = 7.0


@dataclass(frozen=True)
class SpectralCodecConfig:
    """Sizes of a codec; what its config.json holds besides `model_type`.

    Attributes:
        sample_rate: Hz.
        hop_length: samples per step of the spectra.
        steps_per_frame: steps of the spectra that one frame of codes stands for.
        window_length: samples that one spectrum covers; Hann window.
        num_mels: bands of the encoder's mel spectrum.
        hidden_size: channels.
        intermediate_size: channels inside a ConvNeXt block.
        kernel_size: of the convolutions, in steps.
        encoder_layers: blocks before and after the encoder's step rate falls to the frame rate.
        decoder_lookahead: per block of the decoder the steps that its convolution looks ahead,
            from 0 (causal) to `kernel_size` - 1. Their sum bounds the delay of streaming.
        num_codebooks: books of the residual quantizer, the semantic one among them.
        codebook_size: codes per book.
        codebook_size_semantic: codes of book 0 that are used if it is semantic; 0 if it is not.
        codebook_dimension: dimensions of the lookup.
        source_filter: of a decoder that filters a voice's source; None for one that writes spectra.
    """

    sample_rate: int = 16000
    hop_length: int = 320
    steps_per_frame: int = 2
    window_length: int = 1280
    num_mels: int = 80
    hidden_size: int = 256
    intermediate_size: int = 512
    kernel_size: int = 7
    encoder_layers: tuple[int, int] = (4, 3)
    decoder_lookahead: tuple[int, ...] = (3, 3, 0, 0, 0, 0, 0, 0)
    num_codebooks: int = 8
    codebook_size: int = 512
    codebook_size_semantic: int = 0
    codebook_dimension: int = 8
    source_filter: SourceFilterConfig | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoder_layers", tuple(self.encoder_layers))
        object.__setattr__(self, "decoder_lookahead", tuple(self.decoder_lookahead))
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.window_length % 2 or (self.window_length - self.hop_length) % 2:
            raise ValueError("window_length and window_length - hop_length must be even")
        if self.window_length < 2 * self.hop_length:
            raise ValueError("window_length must be at least 2 * hop_length")
        if not all(0 <= ahead < self.kernel_size for ahead in self.decoder_lookahead):
            raise ValueError(f"decoder_lookahead must lie in [0, {self.kernel_size - 1}]")
        if not 0 <= self.codebook_size_semantic <= self.codebook_size:
            raise ValueError(f"codebook_size_semantic must be in [0, {self.codebook_size}]")
        if isinstance(self.source_filter, dict):
            object.__setattr__(self, "source_filter", SourceFilterConfig(**self.source_filter))
        if self.source_filter is not None:
            self.source_filter.check_beside(self.hop_length, self.kernel_size)

    @property
    def samples_per_frame(self) -> int:
        """Samples that one frame stands for."""
        return self.hop_length * self.steps_per_frame


_POSITIVE = (
    "sample_rate",
    "hop_length",
    "steps_per_frame",
    "num_mels",
    "hidden_size",
    "intermediate_size",
    "kernel_size",
    "num_codebooks",
    "codebook_size",
    "codebook_dimension",
)


class Encoder(nn.Module):
    """Samples to one latent vector per frame."""

    window: torch.Tensor
    mel_filters: torch.Tensor

    def __init__(self, config: SpectralCodecConfig) -> None:
        super().__init__()
        self._config = config
        hidden, kernel = config.hidden_size, config.kernel_size
        before, after = config.encoder_layers
        scale = 1 / max(1, before + after)

        def block() -> ConvNeXtBlock:
            return ConvNeXtBlock(hidden, config.intermediate_size, kernel, (kernel - 1) // 2, scale)

        self.embed = nn.Linear(config.num_mels, hidden)
        self.fine = nn.Sequential(*[block() for _ in range(before)])
        self.reduce = nn.Linear(config.steps_per_frame * hidden, hidden)
        self.coarse = nn.Sequential(*[block() for _ in range(after)])
        self.norm = nn.LayerNorm(hidden)
        filters = mel_filters(config.sample_rate, config.window_length, config.num_mels)
        self.register_buffer("mel_filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(config.window_length), persistent=False)

    def log_mel(self, samples: torch.Tensor) -> torch.Tensor:
        """[batch, steps * hop_length] samples to [batch, steps, num_mels] in natural logarithm."""
        config = self._config
        margin = (config.window_length - config.hop_length) // 2
        # Autocast would round the sum over a band.
        with torch.autocast(samples.device.type, enabled=False):
            spectrum = torch.stft(
                functional.pad(samples, (margin, margin)),
                config.window_length,
                config.hop_length,
                window=self.window,
                center=False,
                return_complex=True,
            )
            power = spectrum.real.square() + spectrum.imag.square()
            return (self.mel_filters @ power).clamp_min(_LOWEST_POWER).log().transpose(1, 2)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """[batch, frames * samples_per_frame] to [batch, frames, hidden_size]."""
        values = self.fine(self.embed(self.log_mel(samples)))
        batch, steps, hidden = values.shape
        ratio = self._config.steps_per_frame
        frames = self.reduce(values.reshape(batch, steps // ratio, ratio * hidden))
        return self.norm(self.coarse(frames))


class Codebook(nn.Module):
    """One book: projects to few dimensions and takes the entry of the nearest direction."""

    def __init__(self, config: SpectralCodecConfig) -> None:
        super().__init__()
        self.project_in = nn.Linear(config.hidden_size, config.codebook_dimension)
        self.entries = nn.Parameter(torch.randn(config.codebook_size, config.codebook_dimension))
        self.project_out = nn.Linear(config.codebook_dimension, config.hidden_size)

    def choose(self, projected: torch.Tensor) -> torch.Tensor:
        """Codes [...] of projected vectors [..., codebook_dimension]."""
        directions = functional.normalize(self.entries, dim=-1)
        return (functional.normalize(projected, dim=-1) @ directions.T).argmax(-1)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """Vectors [..., hidden_size] of codes [...]."""
        return self.project_out(functional.normalize(self.entries, dim=-1)[codes])


class SemanticCodebook(nn.Module):
    """A book whose code a classifier chooses."""

    def __init__(self, config: SpectralCodecConfig) -> None:
        super().__init__()
        self.classify = nn.Linear(config.hidden_size, config.codebook_size_semantic)
        self.entries = nn.Parameter(0.02 * torch.randn(config.codebook_size, config.hidden_size))

    def choose(self, latents: torch.Tensor) -> torch.Tensor:
        """Codes [...] of latents [..., hidden_size]."""
        return self.classify(latents).argmax(-1)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """Vectors [..., hidden_size] of codes [...]."""
        return self.entries[codes]


class ResidualQuantizer(nn.Module):
    """Books in order; each codes what the ones before it left."""

    def __init__(self, config: SpectralCodecConfig) -> None:
        super().__init__()
        semantic = config.codebook_size_semantic > 0
        self.semantic = SemanticCodebook(config) if semantic else None
        self.books = nn.ModuleList(
            [Codebook(config) for _ in range(config.num_codebooks - semantic)]
        )

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """[..., hidden_size] to codes [..., num_codebooks]."""
        codes, residual = [], latents
        if self.semantic is not None:
            codes.append(self.semantic.choose(latents))
            residual = residual - self.semantic.lookup(codes[-1])
        for book in self.books:
            codes.append(book.choose(book.project_in(residual)))
            residual = residual - book.lookup(codes[-1])
        return torch.stack(codes, -1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes [..., at most num_codebooks] to [..., hidden_size]."""
        books = ([] if self.semantic is None else [self.semantic]) + list(self.books)
        return torch.stack([book.lookup(c) for book, c in zip(books, codes.unbind(-1))]).sum(0)  # noqa: B905


class Decoder(nn.Module):
    """Latent vectors to samples."""

    window: torch.Tensor

    def __init__(self, config: SpectralCodecConfig) -> None:
        super().__init__()
        self._config = config
        hidden = config.hidden_size
        scale = 1 / max(1, len(config.decoder_lookahead))
        self.expand = nn.Linear(hidden, config.steps_per_frame * hidden)
        self.blocks = nn.Sequential(
            *[
                ConvNeXtBlock(hidden, config.intermediate_size, config.kernel_size, ahead, scale)
                for ahead in config.decoder_lookahead
            ]
        )
        self.norm = nn.LayerNorm(hidden)
        self.spectrum = nn.Linear(hidden, config.window_length + 2)
        self.register_buffer("window", torch.hann_window(config.window_length), persistent=False)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """[batch, frames, hidden_size] to [batch, frames * samples_per_frame]."""
        batch, frames, hidden = latents.shape
        steps = frames * self._config.steps_per_frame
        values = self.norm(self.blocks(self.expand(latents).reshape(batch, steps, hidden)))
        magnitude, phase = self.spectrum(values).float().chunk(2, dim=-1)
        magnitude = magnitude.clamp_max(_HIGHEST_LOG_MAGNITUDE).exp()
        spectrum = torch.polar(magnitude, phase)
        return overlap_add(spectrum, self._config.hop_length, self.window)


class SpectralCodecModel(nn.Module):
    """The three parts together.

    Args:
        config: sizes.
    """

    def __init__(self, config: SpectralCodecConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = ResidualQuantizer(config)
        whole = config.source_filter is None
        self.decoder: Decoder | SourceFilterDecoder
        self.decoder = Decoder(config) if whole else SourceFilterDecoder(config)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes [batch, frames, at most num_codebooks] to [batch, frames * samples_per_frame]."""
        # The quantizer only adds up.
        with torch.autocast(codes.device.type, enabled=False):
            latents = self.quantizer.decode(codes)
        if isinstance(self.decoder, SourceFilterDecoder):
            return self.decoder(codes, latents)
        return self.decoder(latents)

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write config.json and model.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {"model_type": MODEL_TYPE, **asdict(self.config)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        weights = {name: w.detach().to(dtype).contiguous() for name, w in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path) -> SpectralCodecModel:
        """Read what `save` wrote.

        Raises:
            ValueError: a weight is missing or of a wrong shape, or the config has unknown fields.
        """
        config = json.loads((folder / "config.json").read_text())
        config.pop("model_type")
        unknown = sorted(set(config) - {field.name for field in fields(SpectralCodecConfig)})
        if unknown:
            raise ValueError(f"config.json must not have the fields {unknown}")
        model = cls(SpectralCodecConfig(**config))
        weights = load_file(folder / "model.safetensors")
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"model.safetensors does not fit config.json: {error}") from error
        return model


class SpectralCodec(Codec):
    """`SpectralCodecModel` behind the interface of all codecs.

    Args:
        model: on the device where it runs; put into eval mode.
        num_codebooks: how many of its codebooks to use, from the first on; default all.
        dtype: of the matrix products; weights and spectra stay float32.

    Raises:
        ValueError: `num_codebooks` out of range.
    """

    def __init__(
        self,
        model: SpectralCodecModel,
        num_codebooks: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        config = model.config
        used = config.num_codebooks if num_codebooks is None else num_codebooks
        if isinstance(used, bool) or not 1 <= used <= config.num_codebooks:
            raise ValueError(
                f"num_codebooks must be an integer in [1, {config.num_codebooks}], got {used!r}"
            )
        super().__init__(
            sample_rate=config.sample_rate,
            samples_per_frame=config.samples_per_frame,
            num_codebooks=used,
            codebook_size=config.codebook_size,
            device=next(model.parameters()).device,
        )
        self.model = model.eval().requires_grad_(False)
        self._autocast = {"dtype": dtype, "enabled": dtype != torch.float32}

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        num_codebooks: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
    ) -> SpectralCodec:
        """Load from a folder or a hub id; see ``registry.load_codec``."""
        folder = Path(name_or_path)
        if not folder.is_dir():
            folder = Path(snapshot_download(name_or_path, revision=revision))
        model = SpectralCodecModel.load(folder)
        return cls(model.to(device), num_codebooks, dtype)

    def decoder_context(self) -> Context | None:
        """The frames around a frame that its samples depend on; None if a source goes on."""
        config = self.model.config
        if config.source_filter is not None:
            return None
        convolutions = looking_ahead(config.kernel_size, config.decoder_lookahead)
        margin = (config.window_length - config.hop_length) // 2
        transform = TransposedConvolution(config.window_length, config.hop_length, margin)
        return receptive_field(
            [*convolutions, transform], self.samples_per_frame, config.steps_per_frame
        )

    def decoder_stages(self) -> tuple[DecoderStage, ...] | None:
        """A stage that looks at a window; or that, the voice's source, and its filtering."""
        decoder = self.model.decoder
        if not isinstance(decoder, SourceFilterDecoder):
            return super().decoder_stages()

        def plan(codes: torch.Tensor) -> torch.Tensor:
            latents = self.model.quantizer.decode(codes)
            with torch.autocast(self.device.type, **self._autocast):
                return decoder.plan(codes, latents)

        def filtered(source: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self.device.type, **self._autocast):
                return decoder.filter(source)

        planning, filtering = decoder.contexts()
        return WindowStage(planning, plan), decoder.source(), WindowStage(filtering, filtered)

    def _encode(self, samples: torch.Tensor) -> torch.Tensor:
        missing = -samples.shape[0] % self.samples_per_frame
        padded = functional.pad(samples, (0, missing))[None]
        with torch.autocast(self.device.type, **self._autocast):
            latents = self.model.encoder(padded)
        codes = self.model.quantizer.encode(latents.float())
        return codes[0, :, : self.num_codebooks]

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, **self._autocast):
            return self.model.decode(codes)


def mel_filters(sample_rate: int, window_length: int, num_mels: int) -> torch.Tensor:
    """[num_mels, window_length / 2 + 1] triangular filters, evenly spaced on the mel scale.

    Each filter's weights sum to 1, so silence and noise read alike in all bands. The scale is
    O'Shaughnessy's: mel = 2595 log10(1 + f / 700).
    """
    highest = 2595 * torch.log10(torch.tensor(1 + sample_rate / 2 / 700, dtype=torch.float64))
    mels = torch.linspace(0, float(highest), num_mels + 2, dtype=torch.float64)
    edges = 700 * (10 ** (mels / 2595) - 1)
    bins = torch.linspace(0, sample_rate / 2, window_length // 2 + 1, dtype=torch.float64)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = torch.minimum(rising, falling).clamp_min(0)
    # A narrow low band may miss every bin; the nearest one stands for it.
    nearest = functional.one_hot((edges[1:-1, None] - bins).abs().argmin(1), len(bins))
    filters = torch.where(filters.sum(1, keepdim=True) > 0, filters, nearest.double())
    return (filters / filters.sum(1, keepdim=True)).float()
