# SPDX-License-Identifier: Apache-2.0
"""The interface that every audio codec of a multi-stream model has."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence

import torch

from vllm.unison.codecs.receptive_field import Context
from vllm.unison.codecs.stages import DecoderStage, WindowStage


class Codec(ABC):
    """Turns samples into frames of codes and back.

    Samples are ``[num_samples]`` of a mono codec, ``[num_samples, num_channels]`` of another one:
    their number, and so every length, is that of one channel.

    The length rules are the same for all codecs:

    - ``encode`` of ``num_samples`` samples gives ``ceil(num_samples / samples_per_frame)`` frames.
    - ``decode`` of ``num_frames`` frames gives ``num_frames * samples_per_frame`` samples, and
      frame ``i`` starts at sample ``i * samples_per_frame``. Where a decoder stops a few samples
      early, zeros are appended; where it runs on, the end is cut. The start is never moved, so
      decoded audio stays aligned with what was encoded.

    Attributes:
        sample_rate: samples per second (Hz).
        samples_per_frame: samples that one frame stands for.
        num_codebooks: codes per frame; the first so many codebooks of the underlying model.
        codebook_size: a code lies in ``[0, codebook_size - 1]``.
        device: where the computation runs and where results live.
        num_channels: of the audio; more than one only in ``ChannelCodec``.
        min_clip_samples: up to which the clip of a request is completed with zeros before it is
            encoded.
    """

    num_channels: int = 1
    min_clip_samples: int = 0

    def __init__(
        self,
        *,
        sample_rate: int,
        samples_per_frame: int,
        num_codebooks: int,
        codebook_size: int,
        device: torch.device,
    ) -> None:
        self.sample_rate = sample_rate
        self.samples_per_frame = samples_per_frame
        self.num_codebooks = num_codebooks
        self.codebook_size = codebook_size
        self.device = device

    @abstractmethod
    def _encode(self, samples: torch.Tensor) -> torch.Tensor:
        """Encode float32 samples, shaped as the codec's, not empty, finite, on ``self.device``.

        Returns integer codes ``[num_frames, num_codebooks]``.
        """

    @abstractmethod
    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Decode valid int64 codes ``[batch, num_frames, num_codebooks]`` on ``self.device``.

        Neither dimension is empty. Returns samples ``[batch, any length]``, first frame first; a
        codec of several channels overrides what calls this.
        """

    def decoder_context(self) -> Context | None:
        """The frames around a frame that its samples depend on.

        For a codec whose decoder looks at a finite window and is built of layers that treat all
        frames alike; that is all that is needed to stream its audio. None for others.
        """
        return None

    def decoder_stages(self) -> tuple[DecoderStage, ...] | None:
        """The decoder as a chain of stages, codes [batch, frames, num_codebooks] to samples.

        The last stage gives float32 [batch, frames, samples_per_frame], and the channels' dimension
        after that if there are several. Overridden by codecs that carry a state from frame to
        frame. None if the audio cannot be decoded in parts: it is then
        streamed as one chunk at its end.
        """
        context = self.decoder_context()
        return None if context is None else (WindowStage(context, self._decode_frames),)

    def _decode_frames(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [batch, num_frames, num_codebooks] to [batch, num_frames, samples_per_frame].

        With the channels' dimension after that if there are several.
        """
        return self._by_frame(self._decode(codes), codes.shape[1])

    def no_samples(self) -> torch.Tensor:
        """The samples of no frames."""
        shape = (0,) if self.num_channels == 1 else (0, self.num_channels)
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def _by_frame(self, samples: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Samples [batch, any length] cut or completed: [batch, num_frames, samples_per_frame]."""
        length = self.num_samples(num_frames)
        missing = max(0, length - samples.shape[1])
        whole = torch.nn.functional.pad(samples.to(torch.float32), (0, missing))[:, :length]
        return whole.unflatten(1, (num_frames, self.samples_per_frame))

    def num_frames(self, num_samples: int) -> int:
        """Number of frames that ``encode`` returns for so many samples."""
        if num_samples < 0:
            raise ValueError(f"num_samples must be at least 0, got {num_samples}")
        return -(-num_samples // self.samples_per_frame)

    def num_samples(self, num_frames: int) -> int:
        """Number of samples that ``decode`` returns for so many frames."""
        if num_frames < 0:
            raise ValueError(f"num_frames must be at least 0, got {num_frames}")
        return num_frames * self.samples_per_frame

    @torch.inference_mode()
    def encode(self, samples: torch.Tensor) -> torch.Tensor:
        """Encode one clip.

        Args:
            samples: floating point ``[num_samples]`` at ``sample_rate``, on any device; full
                scale is [-1, 1]. May be empty. A codec of several channels also takes
                ``[num_samples, num_channels]``; it gives each of them what is mono.

        Returns:
            int32 codes ``[num_frames, num_codebooks]`` on ``device``.

        Raises:
            ValueError: ``samples`` has another shape or type, or is not finite everywhere.
        """
        self._check_shape(samples)
        if not samples.is_floating_point():
            raise ValueError(f"samples must be floating point, got {samples.dtype}")
        samples = samples.to(device=self.device, dtype=torch.float32)
        if not torch.isfinite(samples).all():
            raise ValueError("samples must be finite, got NaN or infinity")
        expected = (self.num_frames(samples.shape[0]), self.num_codebooks)
        if expected[0] == 0:
            return torch.empty(expected, dtype=torch.int32, device=self.device)
        codes = self._encode(samples)
        if codes.shape != expected:
            raise RuntimeError(
                f"codec: encoding {samples.shape[0]} samples gave codes of shape "
                f"{list(codes.shape)}, expected {list(expected)}"
            )
        return codes.to(torch.int32)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Decode one clip.

        Args:
            codes: integers ``[num_frames, num_codebooks]`` on any device. May have no frames.

        Returns:
            float32 samples ``[num_frames * samples_per_frame]`` on ``device``, and the channels'
            dimension after that if there are several.

        Raises:
            ValueError: ``codes`` has another shape or type, or a code out of range.
        """
        return self.decode_batch([codes])[0]

    @torch.inference_mode()
    def decode_batch(self, batch: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Decode several clips, those of equal length in one call of the model.

        Clips are never padded to a common length: most decoders look ahead, so padding would be
        heard at the end of the shorter clips. A batched call may round differently from a single
        one (the kernels sum in another order); the differences stay at the rounding of float32.

        Args and errors are those of ``decode``, for every element; a bad element fails the call
        before anything is decoded.

        Returns:
            one float32 tensor per element of ``batch``, in the same order.
        """
        for codes in batch:
            self._check_codes(codes)
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, codes in enumerate(batch):
            by_length[codes.shape[0]].append(index)
        decoded: list[torch.Tensor] = [self.no_samples()] * len(batch)
        for num_frames, indices in by_length.items():
            if num_frames == 0:
                for index in indices:
                    decoded[index] = self.no_samples()
                continue
            codes = torch.stack(
                [batch[index].to(device=self.device, dtype=torch.int64) for index in indices]
            )
            samples = self._decode_frames(codes)
            for row, index in enumerate(indices):
                decoded[index] = samples[row].flatten(0, 1).clone()
        return decoded

    def _check_shape(self, samples: torch.Tensor) -> None:
        if samples.ndim != 1:
            raise ValueError(f"samples must have shape [num_samples], got {list(samples.shape)}")

    def _check_codes(self, codes: torch.Tensor) -> None:
        if codes.ndim != 2 or codes.shape[1] != self.num_codebooks:
            raise ValueError(
                f"codes must have shape [num_frames, {self.num_codebooks}], got {list(codes.shape)}"
            )
        if codes.dtype == torch.bool or codes.is_floating_point() or codes.is_complex():
            raise ValueError(f"codes must be integers, got {codes.dtype}")
        if codes.shape[0] == 0:
            return
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= self.codebook_size:
            raise ValueError(
                f"codes must be in [0, {self.codebook_size - 1}], got {low if low < 0 else high}"
            )
