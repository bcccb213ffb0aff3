# SPDX-License-Identifier: Apache-2.0
"""The random checkpoints of these tests, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from vllm.unison.testing.random_checkpoint import (
    BEGIN_AUDIO,
    BEGIN_TEXT,
    END_TEXT,
    END_TOKEN,
    stream_layout,
    write_random_speech_lm,
)


def _write(folder: Path, backbone: str, layout: dict[str, Any], **options: Any) -> Path:
    """A checkpoint that ends its phases now and then."""
    write_random_speech_lm(folder, backbone, layout=layout, codec="dac", **options)
    path = folder / "model.safetensors"
    weights = load_file(path)
    head = weights["backbone.lm_head.weight"]
    # Larger rows give more extreme logits, which are chosen more often.
    head[END_TOKEN] *= 1.3
    head[END_TEXT] *= 4
    if "head_offsets" in weights:
        generator = torch.Generator().manual_seed(1)
        weights["head_offsets"][0] = 0.2 * torch.randn(head.shape[1], generator=generator)
    save_file(weights, path, metadata={"format": "pt"})
    return folder


CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    # Guided from the first step on, with a constant null prompt; uneven delays.
    "constant": lambda folder: _write(
        folder,
        "llama",
        stream_layout(4, delays=[0, 2, 5, 1]),
        guidance={"null_prompt": [BEGIN_TEXT, BEGIN_AUDIO], "audio_only": False},
        seed=1,
    ),
    # Text that leads to audio; only the audio is guided.
    "audio_only": lambda folder: _write(
        folder,
        "llama",
        stream_layout(4, delays=[0, 3, 1, 6], text_then_audio=True),
        guidance={"null_prompt": [BEGIN_AUDIO], "audio_only": True},
        seed=2,
    ),
    # The null prompt is as long as the conditional lane; delays through the whole sequence.
    "pads": lambda folder: _write(
        folder,
        "qwen3",
        stream_layout(4, text_then_audio=True, delay_scope="sequence"),
        guidance={"null_prompt": "pads", "audio_only": True},
        head_offsets=False,
        seed=3,
    ),
    # The same without the late join, and with text that is guided too.
    "pads_throughout": lambda folder: _write(
        folder,
        "qwen3",
        stream_layout(3, delays=[0, 4, 2], text_then_audio=True),
        guidance={"null_prompt": "pads", "audio_only": False},
        seed=4,
    ),
}
