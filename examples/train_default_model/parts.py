# SPDX-License-Identifier: Apache-2.0
"""Carries a trained language model between machines, in files of a limited size.

    python examples/train_default_model/parts.py split --folder out --parts $OUT
    python examples/train_default_model/parts.py join --folder build/default_model --parts fetched

``split`` writes the running mean of a checkpoint's weights in two bytes each, which is what is
exported; ``join`` makes a checkpoint of it, from which training goes on with new optimizers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from progress import save_atomically
from safetensors.torch import load_file, save_file

CHECKPOINT = "language_model_checkpoint.pt"
_STEP = "step"


def split(folder: Path, parts: Path, largest: int = 15 << 20) -> list[Path]:
    """Write a checkpoint's mean as ``weights_0.safetensors`` and so on.

    Args:
        folder: of the training.
        parts: folder for the files.
        largest: bytes of weights in a file, unless one weight is larger.
    """
    state = torch.load(folder / CHECKPOINT, map_location="cpu")
    groups: list[dict[str, torch.Tensor]] = [{_STEP: torch.tensor(state["step"])}]
    used = 0
    for name, weight in state["mean"].items():
        half = weight.to(torch.bfloat16).contiguous()
        if used and used + half.nbytes > largest:
            groups.append({})
            used = 0
        groups[-1][name] = half
        used += half.nbytes
    parts.mkdir(parents=True, exist_ok=True)
    files = [parts / f"weights_{index}.safetensors" for index in range(len(groups))]
    for file, group in zip(files, groups, strict=True):
        save_file(group, file)
    return files


def join(folder: Path, parts: Path) -> None:
    """Make a checkpoint of what `split` wrote.

    Args:
        folder: of the training; a checkpoint that is there is replaced.
        parts: folder of the files.
    """
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(parts.glob("weights_*.safetensors")):
        weights |= load_file(file)
    if _STEP not in weights:
        raise ValueError(f"{parts} must hold weights_0.safetensors and what follows it")
    step = int(weights.pop(_STEP))
    wide = {name: weight.float() for name, weight in weights.items()}
    save_atomically({"model": wide, "mean": wide, "step": step}, folder / CHECKPOINT)


def main() -> None:
    """Split or join."""
    parser = argparse.ArgumentParser(description="Carry a language model.", allow_abbrev=False)
    parser.add_argument("action", choices=["split", "join"])
    parser.add_argument("--folder", type=Path, default=Path("build/default_model"))
    parser.add_argument("--parts", type=Path, required=True, help="folder of the files")
    options = parser.parse_args()
    if options.action == "split":
        print(*split(options.folder, options.parts), sep="\n")
    else:
        join(options.folder, options.parts)


if __name__ == "__main__":
    main()
