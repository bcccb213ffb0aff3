# SPDX-License-Identifier: Apache-2.0
"""MusicGen Melody by transformers, and melodies by a chromagram written out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import MusicgenMelodyForConditionalGeneration
from transformers.audio_utils import chroma_filter_bank

from tests.engine.musicgen.cases import DRAWN, GREEDY, MusicCase
from tests.engine.musicgen.reference import Lane, MusicReference, Sampling
from tests.support.musicgen import CHROMA_LENGTH, MELODY, SAMPLE_RATE

NUM_BINS = 12


def bins_of(clip: NDArray[np.float32]) -> NDArray[np.int64]:
    """[num_frames] loudest pitch class of each frame, in float64."""
    rate, window, hop = (MELODY[name] for name in ("sampling_rate", "n_fft", "hop_length"))
    samples = clip.astype(np.float64)
    if len(samples) < window:
        missing = window - len(samples)
        samples = np.pad(samples, (missing // 2, missing - missing // 2))
    padded = np.pad(samples, window // 2, mode="reflect")
    shape = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    filters = chroma_filter_bank(window, NUM_BINS, rate)
    bins = []
    for frame in range(len(samples) // hop + 1):
        spectrum = np.fft.rfft(padded[frame * hop : frame * hop + window] * shape)
        bins.append(int((filters @ np.abs(spectrum) ** 2).argmax()))
    return np.array(bins)


def tune(pitches: Sequence[int], seconds: float = 0.25) -> NDArray[np.float32]:
    """A clip of tones, given in semitones above A4, with some noise."""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tones = [np.sin(2 * np.pi * 440 * 2 ** (pitch / 12) * time) for pitch in pitches]
    noise = np.random.default_rng(len(pitches)).standard_normal(len(time) * len(pitches))
    return (0.3 * np.concatenate(tones) + 0.01 * noise).astype(np.float32)


class MelodyReference(MusicReference):
    """A published folder, in float32. What other models go on from is a melody here."""

    kind: Any = MusicgenMelodyForConditionalGeneration

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._melody: NDArray[np.int64] | None = None

    def generate(
        self,
        text: str,
        num_frames: int,
        scale: float,
        clip: NDArray[np.float32] | None = None,
        **features: torch.Tensor,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """What `generate` makes greedily, after the melody of a clip."""
        if clip is not None:
            features["input_features"] = _one_hot(bins_of(clip))
        return super().generate(text, num_frames, scale, **features)

    @torch.inference_mode()
    def prefixes(self, ids: list[int], bins: NDArray[np.int64]) -> torch.Tensor:
        """[2, num_positions, hidden_size] prefixes of the conditional and the null lane, as
        `generate` makes them."""
        settings = copy.deepcopy(self.model.generation_config)
        settings.guidance_scale = 3.0
        inputs = torch.tensor([ids])
        arguments = {"attention_mask": torch.ones_like(inputs), "input_features": _one_hot(bins)}
        made = self.model._prepare_encoder_hidden_states_kwargs_for_generation(
            inputs, arguments, "input_ids", settings
        )
        states: torch.Tensor = made["encoder_hidden_states"]
        return states

    def loop(
        self,
        lanes: Sequence[Lane],
        num_frames: int,
        sampling: Sampling | None = None,
        prompt: NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """[num_frames, num_streams] codes after a melody, whose bins are `prompt`."""
        self._melody = prompt
        return super().loop(lanes, num_frames, sampling)

    def codes_of(self, clip: NDArray[np.float32]) -> NDArray[np.int64]:
        """[num_frames] bins of a clip's melody."""
        return bins_of(clip)

    def _states_of(self, lanes: Sequence[Lane]) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        states: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        for index, (_, text) in enumerate(lanes):
            melody = self._melody if index == 0 else None
            bins = np.zeros(1, np.int64) if melody is None else melody
            chroma = self.model.audio_enc_to_dec_proj(_one_hot(np.resize(bins, CHROMA_LENGTH)))
            # A lane without a text has zeros in as many positions as the conditional lane's takes.
            of_text, _ = self._states(lanes[0][1] if text is None else text)
            if text is None:
                of_text = torch.zeros_like(of_text)
            states.append((torch.cat([chroma, of_text], dim=1), None))
        return states

    def _num_prefix(self, states: list[tuple[torch.Tensor, torch.Tensor | None]]) -> int:
        return int(states[0][0].shape[1])


def _one_hot(bins: NDArray[np.int64]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(bins), NUM_BINS).float()[None]


GUIDED = GREEDY | {"guidance_scale": 3.0}
TEXT, LONGER = "warm piano", "lo fi beat, slow drums and piano. noise jazz rock"
RISING, FALLING = tune([0, 2, 4, 5, 7, 9]), tune([12, 9, 5, 2, -3] * 3)
"""Shorter and longer than the positions of a melody."""
THREE_LANES = [{"weight": 2.5}, {"weight": -0.5, "prompt": LONGER}, {"weight": -1.0}]


def _mixed() -> list[MusicCase]:
    kinds: tuple[dict[str, Any], ...] = (
        {"guidance_scale": 3.0},
        {},
        {"guidance_scale": 2.0, "negative_prompt": "noise"},
        {"guidance_lanes": THREE_LANES},
    )
    texts, clips = (TEXT, LONGER, "beat"), (None, RISING, FALLING)
    cases = []
    for index in range(12):
        options = kinds[index % 4] | (GREEDY if index % 3 else DRAWN | {"seed": index})
        frames = (3, 17, 40, 24, 31)[index % 5]
        cases.append(MusicCase(texts[index % 3], frames, options, clips[index // 2 % 3]))
    return cases


MIXED = _mixed()
