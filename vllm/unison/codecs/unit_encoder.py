# SPDX-License-Identifier: Apache-2.0
"""Units of a clip beside its codes: ids of streams that are not the codec's.

A model whose first stream carries units of a self-supervised encoder hears a clip as both: what is
said by the units, how it sounds by the codes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from vllm.unison.codecs.base import Codec
from vllm.unison.codecs.resampling import resample
from vllm.unison.codecs.speech_units import SpeechUnits, load_speech_units
from vllm.unison.model.spec import SpeechSpec


class UnitEncoder(Protocol):
    """What hears units in a clip.

    Attributes:
        sample_rate: of the samples, in Hz.
        samples_per_frame: samples from one frame to the next.
        min_samples: of the shortest clip that has a frame.
    """

    sample_rate: int
    samples_per_frame: int
    min_samples: int

    def units(self, samples: torch.Tensor) -> torch.Tensor:
        """int32 [num_frames] units of float32 samples [num_samples], as many a second as the
        codec's frames; of the last frames of a clip some may be missing."""
        ...


class FrameEncoder:
    """Units and codes of a clip in one frame: the codes of all streams, units on stream 0.

    Args:
        units: the encoder of stream 0.
        codec: of all the other streams.

    Raises:
        ValueError: if the codec has another number of frames per second.
    """

    num_channels = 1

    def __init__(self, units: UnitEncoder, codec: Codec) -> None:
        frames = units.sample_rate * codec.samples_per_frame
        if frames != codec.sample_rate * units.samples_per_frame:
            raise ValueError(
                f"codec must have {units.sample_rate / units.samples_per_frame:g} frames per "
                "second, as the units of speech have, not "
                f"{codec.sample_rate / codec.samples_per_frame:g}"
            )
        self._units, self._codec = units, codec
        self.sample_rate, self.min_clip_samples = codec.sample_rate, codec.min_clip_samples

    def encode(self, samples: torch.Tensor) -> torch.Tensor:
        """int32 [num_frames, num_streams] of samples; as many frames as both encoders have.

        Raises:
            ValueError: if the clip is too short for a frame.
        """
        heard = resample(samples.numpy(), self.sample_rate, self._units.sample_rate)
        if len(heard) < self._units.min_samples:
            rate = self._units.sample_rate
            raise ValueError(
                f"audio must be at least {1000 * self._units.min_samples / rate:g} ms long, not "
                f"{1000 * len(heard) / rate:g} ms"
            )
        codes = self._codec.encode(samples)
        units = self._units.units(torch.from_numpy(heard)).to(codes.dtype)
        count = min(len(units), len(codes))
        return torch.cat([units[:count, None], codes[:count]], 1)


def frame_encoder_of(
    spec: SpeechSpec, codec_of: Callable[[SpeechSpec, str], Codec]
) -> Codec | FrameEncoder:
    """What makes the frames of a model's clips: its codec, and an encoder of units if it needs one.

    Args:
        spec: the model's specification.
        codec_of: gives a model's codec on a device.

    Raises:
        ValueError: if one of them cannot be loaded or does not fit the layout, or streams are left
            without ids.
    """
    layout = spec.layout
    missing = sorted(set(range(layout.num_streams)) - set(layout.codebook_streams))
    if not missing:
        return codec_of(spec, "cpu")
    instead = (
        "; or give the clip as its codes of all streams, "
        f'{{"codes": [num_frames, {layout.num_streams}]}}'
    )
    if spec.speech_units is None or missing != [0]:
        raise ValueError(
            f"audio: the model's codec gives no ids for streams {missing}, and the model names no "
            f"encoder of their units{instead}"
        )
    try:
        units = _speech_units_of(spec)
    except ValueError as error:
        raise ValueError(f"audio: {error}{instead}") from error
    return FrameEncoder(units, codec_of(spec, "cpu"))


def _speech_units_of(spec: SpeechSpec) -> SpeechUnits:
    assert spec.speech_units is not None
    local = Path(spec.model_path) / spec.speech_units
    units = _load(str(local) if local.is_dir() else spec.speech_units)
    begin, end = spec.layout.slices[0]
    if end - begin != units.num_units:
        raise ValueError(
            f"the encoder of speech units, {spec.speech_units!r}, must give {end - begin} units, "
            f"as stream 0 has, not {units.num_units}"
        )
    return units


@functools.lru_cache(maxsize=2)
def _load(place: str) -> SpeechUnits:
    """The units of a folder or a hub id, loaded once per process."""
    return load_speech_units(place)
