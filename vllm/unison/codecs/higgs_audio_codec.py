# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of Higgs Audio v2, which Higgs TTS 3 uses too, as transformers implements it.

transformers' module imports torchaudio, of which it calls one function: it changes the rate of a
clip for the semantic encoder. Where torchaudio is not installed, that function is the one here.
"""

from __future__ import annotations

import functools
import importlib
import math
import sys
import threading
from types import ModuleType
from typing import Any

import torch

from vllm.unison.codecs.transformers_codecs import XcodecCodec

_MODULE = "transformers.models.higgs_audio_v2_tokenizer.modeling_higgs_audio_v2_tokenizer"
_IMPORTING = threading.Lock()

# What torchaudio.functional.resample has where its caller says nothing.
_ZERO_CROSSINGS = 6
_ROLLOFF = 0.99


class HiggsAudioCodec(XcodecCodec):
    """X-codec's design at 24 kHz and 25 frames a second.

    Encoding pads the clip with zeros to whole frames. Clips of requests are padded to a second, as
    the published servers do.
    """

    model_class_name = "HiggsAudioV2TokenizerModel"
    # What masks the semantic encoder's inputs in training.
    unused_tensors = frozenset({"semantic_model.masked_spec_embed"})

    @classmethod
    def _model_class(cls) -> Any:
        return tokenizer_class()

    def __init__(self, model: Any, *, num_codebooks: int | None = None) -> None:
        super().__init__(model, num_codebooks=num_codebooks)
        self.min_clip_samples = self.sample_rate


@functools.cache
def tokenizer_class() -> Any:
    """transformers' HiggsAudioV2TokenizerModel, with or without torchaudio."""
    with _IMPORTING:
        try:
            return importlib.import_module(_MODULE).HiggsAudioV2TokenizerModel
        except ModuleNotFoundError as error:
            if error.name != "torchaudio":
                raise
        # It is torchaudio for this one import, and afterwards for this module alone.
        stand_in, functional = ModuleType("torchaudio"), ModuleType("torchaudio.functional")
        functional.__dict__["resample"] = resample_for_semantics
        stand_in.__dict__["functional"] = functional
        sys.modules["torchaudio"] = stand_in
        try:
            return importlib.import_module(_MODULE).HiggsAudioV2TokenizerModel
        finally:
            del sys.modules["torchaudio"]


def resample_for_semantics(waveform: torch.Tensor, orig_freq: int, new_freq: int) -> torch.Tensor:
    """Change the rate of samples by band-limited interpolation, with torchaudio's defaults.

    A sinc of 6 zero crossings on each side, cut off at 0.99 of the lower Nyquist frequency, under
    a Hann window (Smith and Gossett, "A flexible sampling-rate conversion method", 1984).

    Args:
        waveform: [..., num_samples].
        orig_freq, new_freq: rates, whole numbers of Hz.

    Returns:
        [..., ceil(num_samples * new_freq / orig_freq)].
    """
    divisor = math.gcd(orig_freq, new_freq)
    step, phases = orig_freq // divisor, new_freq // divisor
    if step == phases:
        return waveform
    cutoff = min(step, phases) * _ROLLOFF
    reach = math.ceil(_ZERO_CROSSINGS * step / cutoff)
    # [phases, taps] distance in time of an output sample from the inputs around it, in units of
    # `step` input samples, and then in zero crossings.
    taps = torch.arange(-reach, reach + step, dtype=torch.float64) / step
    shifts = torch.arange(phases, dtype=torch.float64) / phases
    distance = ((taps[None, :] - shifts[:, None]) * cutoff).clamp(-_ZERO_CROSSINGS, _ZERO_CROSSINGS)
    window = torch.cos(distance * (math.pi / (2 * _ZERO_CROSSINGS))).square()
    kernel = torch.sinc(distance) * window * (cutoff / step)
    kernel = kernel.to(device=waveform.device, dtype=waveform.dtype)
    length = waveform.shape[-1]
    padded = torch.nn.functional.pad(waveform.reshape(-1, 1, length), (reach, reach + step))
    # [num_clips, phases, num_steps]: the outputs of a step stand beside each other.
    outputs = torch.nn.functional.conv1d(padded, kernel[:, None], stride=step)
    whole = outputs.transpose(1, 2).flatten(1)[:, : -(-phases * length // step)]
    return whole.reshape(*waveform.shape[:-1], -1)
