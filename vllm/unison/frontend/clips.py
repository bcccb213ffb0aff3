# SPDX-License-Identifier: Apache-2.0
"""Audio as users and libraries hand it over, in one form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vllm.unison.frontend.errors import InvalidRequestError

MAX_LEVEL = 8.0
"""Magnitude beyond which float samples are not taken for sound whose full scale is 1. Mixing and
lossy codecs overshoot full scale by a few decibels; 8 are 18 dB. Integer samples in a float array
exceed it, unless they are so soft (-72 dB of 16 bits) that there is nothing to hear."""

FORMS = "samples, (samples, sample_rate) or {'array': samples, 'sampling_rate': rate}"


def check_samples(samples: NDArray[np.floating], field: str) -> None:
    """Refuse float samples that cannot be sound with a full scale of [-1, 1].

    Args:
        samples: of any shape, not empty.
        field: of the request, for messages.

    Raises:
        InvalidRequestError: NaN, infinity, or magnitudes beyond MAX_LEVEL.
    """
    low, high = float(samples.min()), float(samples.max())
    if not np.isfinite([low, high]).all():
        raise InvalidRequestError(f"{field} must have finite samples, not NaN or infinity")
    if max(-low, high) > MAX_LEVEL:
        raise InvalidRequestError(
            f"{field} must have float samples whose full scale is [-1, 1] (louder is taken up to "
            f"{MAX_LEVEL:g}), not in [{low:g}, {high:g}]; integer samples need an integer type"
        )


def read_clip(audio: Any) -> tuple[NDArray[np.float32], float | None]:
    """One clip in any form that libraries give audio in.

    Args:
        audio: samples (array, tensor or list); with their rate as (samples, rate) of soundfile,
            librosa and torchaudio, or (rate, samples) of SciPy; the dict {"array", "sampling_rate"}
            of Hugging Face's datasets; an object with `sample_rate` and `samples` or `data`, as
            this package's AudioOutput and torchcodec's AudioSamples are. Or a list of one of these.
            Samples are [num_samples], [num_channels, num_samples] or [num_samples, num_channels]:
            the smaller number is the channels'. Floats have full scale [-1, 1], integers of 8
            and 16 bits, and int32, that of their type.

    Returns:
        float32 [num_samples] or [num_channels, num_samples], and the rate in Hz, None if not given.

    Raises:
        InvalidRequestError: any other form, no samples, or samples that are no sound.
    """
    samples, rate = _split(audio)
    return _channels_first(_to_float(_array(samples))), rate


def _split(audio: Any) -> tuple[Any, float | None]:
    """Samples and rate, as given."""
    if isinstance(audio, Mapping):
        if not {"array", "sampling_rate"} <= set(audio) <= {"array", "sampling_rate", "path"}:
            keys = sorted(map(str, audio))
            raise InvalidRequestError(f"audio must be {FORMS}, not a dict with the keys {keys}")
        return audio["array"], _rate(audio["sampling_rate"])
    if hasattr(audio, "sample_rate") and (hasattr(audio, "samples") or hasattr(audio, "data")):
        samples = audio.samples if hasattr(audio, "samples") else audio.data
        return samples, _rate(audio.sample_rate)
    if isinstance(audio, (tuple, list)):
        if len(audio) == 2 and _is_scalar(audio[1]) and not _is_scalar(audio[0]):
            return audio[0], _rate(audio[1])
        if len(audio) == 2 and _is_scalar(audio[0]) and not _is_scalar(audio[1]):
            return audio[1], _rate(audio[0])
        if isinstance(audio, list) and audio and not _is_scalar(audio[0]):
            if len(audio) != 1:
                raise InvalidRequestError(f"audio must be one clip, not {len(audio)}")
            return _split(audio[0])
    return audio, None


def _is_scalar(value: Any) -> bool:
    return value is None or (np.isscalar(value)) or getattr(value, "ndim", None) == 0


def _rate(rate: Any) -> float:
    if isinstance(rate, (torch.Tensor, np.ndarray)) and rate.ndim == 0:
        rate = rate.item()
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.number)):
        raise InvalidRequestError(f"audio's sample rate must be a number of Hz, not {rate!r}")
    return rate  # type: ignore[return-value]


def _array(samples: Any) -> NDArray[Any]:
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu()
        # NumPy lacks bfloat16 and the 8-bit floats.
        samples = (samples.float() if samples.is_floating_point() else samples).numpy()
    try:
        array = np.asarray(samples)
    except ValueError as error:
        raise InvalidRequestError("audio must be an array, all rows of one length") from error
    if array.dtype.kind not in "fiu":
        raise InvalidRequestError(f"audio must be {FORMS}, not {type(samples).__name__}")
    return array


def _to_float(samples: NDArray[Any]) -> NDArray[np.float32]:
    if samples.size == 0:
        raise InvalidRequestError("audio must have at least one sample")
    if samples.dtype.kind == "f":
        check_samples(samples, "audio")
        return samples.astype(np.float32)
    # Integer samples are PCM: full scale is the integer's range, the middle of it is zero.
    bits = np.iinfo(samples.dtype).bits
    full_scale = 2.0 ** (bits - 1)
    centered = samples.astype(np.float64) - (full_scale if samples.dtype.kind == "u" else 0.0)
    if bits > 16:
        # Sound of 16 bits in a wider type, as a list of integers becomes, would be silence.
        low, high = int(samples.min()), int(samples.max())
        if samples.dtype != np.int32 or 0 < max(-low, high) <= 2**15:
            raise InvalidRequestError(
                f"audio must use its type's range, or be floats in [-1, 1]: {samples.dtype} "
                f"samples in [{low}, {high}] have no known full scale; if it is that of 16 bits, "
                "give int16"
            )
    return (centered / full_scale).astype(np.float32)


def _channels_first(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    if samples.ndim == 2 and samples.shape[0] > samples.shape[1]:
        samples = samples.T
    elif samples.ndim == 2 and samples.shape[0] == samples.shape[1] > 1:
        raise InvalidRequestError(
            f"audio of shape {list(samples.shape)} is ambiguous: its channels must be fewer than "
            "its samples"
        )
    if samples.ndim not in (1, 2):
        raise InvalidRequestError(
            "audio must have the shape [num_samples], [num_channels, num_samples] or "
            f"[num_samples, num_channels], not {list(samples.shape)}"
        )
    return np.ascontiguousarray(samples)
