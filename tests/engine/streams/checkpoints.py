# SPDX-License-Identifier: Apache-2.0
"""The random checkpoints of these tests, by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from vllm.unison.testing.random_checkpoint import (
    BEGIN_AUDIO,
    BEGIN_TEXT,
    END_TEXT,
    END_TOKEN,
    FIRST_CODE,
    FIRST_TEXT,
    NUM_TEXT,
    SPEAKER,
    stream_layout,
    write_random_speech_lm,
)

SECOND_END = 6
"""Ends an audio phase of the layout `switching`, which goes on with text."""


def _random_delays(num_streams: int, largest: int, seed: int) -> list[int]:
    random = np.random.default_rng(seed)
    return [0, *random.integers(0, largest + 1, num_streams - 1).tolist()]


def write_speech_lm(
    folder: Path,
    backbone: str,
    layout: dict[str, Any],
    end_text: float = 2.5,
    louder: Mapping[int, float] | None = None,
    **options: Any,
) -> Path:
    """A checkpoint that ends phases now and then, and whose offset of stream 0 is not zero.

    `louder` has factors of the head's rows, by id, for ids to be chosen more often.
    """
    write_random_speech_lm(folder, backbone, layout=layout, **options)
    path = folder / "model.safetensors"
    weights = load_file(path)
    tied = options.get("tied", False)
    head = weights["backbone.model.embed_tokens.weight" if tied else "backbone.lm_head.weight"]
    # Larger rows give more extreme logits, which are chosen more often.
    head[END_TOKEN] *= 1.4
    head[END_TEXT] *= end_text
    head[SECOND_END] *= 2
    for token, factor in (louder or {}).items():
        head[token] *= factor
    if "head_offsets" in weights:
        generator = torch.Generator().manual_seed(1)
        weights["head_offsets"][0] = 0.2 * torch.randn(head.shape[1], generator=generator)
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def _switching_layout() -> dict[str, Any]:
    """Audio that may lead to text and back; slices of two sizes; stream 0 is no codebook."""
    sizes = [100, 64, 64, 64]
    begins = (FIRST_CODE + np.cumsum([0, *sizes])).tolist()
    layout = stream_layout(4, delays=[0, 0, 3, 1], text_then_audio=True, delay_scope="sequence")
    layout["vocabulary_size"] = begins[-1]
    layout["slices"] = [[a, b] for a, b in itertools.pairwise(begins)]
    layout["codebook_streams"] = [1, 3, 2]
    layout["phases"][1]["transitions"].append(
        {"token": SECOND_END, "to": "text", "forced": [BEGIN_TEXT, FIRST_TEXT + 5]}
    )
    return layout


CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    # Text to speech and back, random delays, each segment flushed.
    "llama": lambda folder: write_speech_lm(
        folder,
        "llama",
        stream_layout(4, delays=_random_delays(4, 6, seed=3), delay_scope="segment"),
    ),
    # Nine streams, delays through the whole sequence, text that leads to audio.
    "olmo2": lambda folder: write_speech_lm(
        folder,
        "olmo2",
        stream_layout(9, text_then_audio=True, delay_scope="sequence"),
        end_text=5,
        head_offsets=False,
        seed=1,
    ),
    # One stream.
    "qwen3": lambda folder: write_speech_lm(
        folder,
        "qwen3",
        stream_layout(1, text_then_audio=True),
        tied=True,
        seed=2,
    ),
    "switching": lambda folder: write_speech_lm(
        folder,
        "qwen3",
        _switching_layout(),
        end_text=5,
        embedding={"primary_skip_ids": [SPEAKER, BEGIN_AUDIO], "auxiliary_skip_ids": []},
        seed=14,
    ),
    # Nine streams, random delays, no offsets.
    "llama_nine": lambda folder: write_speech_lm(
        folder,
        "llama",
        stream_layout(
            9, delays=_random_delays(9, 12, seed=4), text_then_audio=True, delay_scope="segment"
        ),
        tied=True,
        head_offsets=False,
        seed=4,
    ),
}

__all__ = ["BEGIN_AUDIO", "BEGIN_TEXT", "CHECKPOINTS", "FIRST_TEXT", "NUM_TEXT"]
