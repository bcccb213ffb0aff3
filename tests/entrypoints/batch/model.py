# SPDX-License-Identifier: Apache-2.0
"""A small random model, and rows for it."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vllm.entrypoints.speech.batch.rows import RowsFile
from vllm.unison.testing.random_checkpoint import (
    BEGIN_AUDIO,
    BEGIN_TEXT,
    default_tasks,
    stream_layout,
    write_random_speech_lm,
)

ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "block_size": 32,
    "max_model_len": 160,
    "max_num_seqs": 6,
    "kv_cache_memory_bytes": 2**25,
}
"""Arguments of an engine whose batch is smaller than the rows are many."""


def write_model(folder: Path) -> Path:
    """A guided model that goes on until its limit."""
    layout = stream_layout(3)
    for phase in layout["phases"]:
        phase["transitions"] = []
    tasks = default_tasks()
    tasks["text_to_speech"] = [BEGIN_TEXT, "voice", "text", BEGIN_AUDIO]
    return write_random_speech_lm(
        folder,
        layout=layout,
        num_layers=1,
        more={"tasks": tasks, "voices": {"slt": [6], "rms": [7]}, "default_voice": "slt"},
    )


def write_rows(path: Path, count: int, poisoned: Collection[int] = ()) -> RowsFile:
    """Rows of uneven length, guided and not, with and without seeds."""
    lines = []
    for index in range(count):
        row: dict[str, Any] = {"text": f"row {index}", "max_tokens": 5 + 7 * index % 11}
        if index % 3 == 0:
            row |= {"id": f"r{index}", "guidance_scale": 2.0}
        if index % 4 == 1:
            row["seed"] = index
        if index in poisoned:
            row["voice"] = "nobody"
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))
    return RowsFile(path)
