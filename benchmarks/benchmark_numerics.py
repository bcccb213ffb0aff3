# SPDX-License-Identifier: Apache-2.0
"""Whether the same weights say the same words in bfloat16 and float32, and on other processors.

    python benchmarks/benchmark_numerics.py --output-json benchmarks/results/numerics.json

Twenty sentences are said greedily with the model's own guidance, and the first variant's clips are
transcribed, by engines that differ in the dtype and in what they may use of the processor
(`numerics_variant.py`). Codes and words are compared with the first variant's. The margins between
the best and the second logit, over what bfloat16 changes of them, say how near to a change all
choices are. Time is that of the process, which other programs on the machine change little.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from benchmarks.hardware import describe_machine  # noqa: E402
from benchmarks.numerics_variant import PROCESSORS  # noqa: E402
from benchmarks.transformers_speech_lm import TransformersSpeechLM  # noqa: E402
from benchmarks.variant_process import VariantProcess  # noqa: E402
from vllm.unison.frontend.text_frontend import TextFrontend  # noqa: E402
from vllm.unison.model.spec import TextFrontendSpec  # noqa: E402
from vllm.unison.packaged_model import folder_of  # noqa: E402

SENTENCES = (
    "The train leaves Leeds at half past nine.",
    "Please close the window, it is cold in here.",
    "Have you heard anything from your sister lately?",
    "That comes to forty two pounds and ten pence.",
    "The old man walked slowly along the river.",
    "Nobody knew where the money had gone.",
    "Tomorrow it will rain in the north of the country.",
    "She closed the book and looked out of the window.",
    "Can you tell me the way to the station?",
    "He bought three apples, two pears and a lemon.",
    "What a beautiful garden you have!",
    "The meeting has been moved to Thursday morning.",
    "I would rather stay at home tonight.",
    "My brother works in a small factory near the harbour.",
    "Turn left at the second corner, then go straight on.",
    "The children were playing behind the house.",
    "It took them nearly seven hours to reach the top.",
    "There is no milk left in the kitchen.",
    "Call me again in twenty minutes.",
    "The doctor asked him to come back on the fifth of May.",
)
MANY, ONE = 64, 2
"""Sequences of a batch; a guided sentence takes two."""


@dataclass(frozen=True)
class Kind:
    """How a variant computes.

    Attributes:
        dtype: of the computation.
        processor: of `PROCESSORS`.
        max_num_seqs: of a batch.
    """

    dtype: str
    processor: str = "this"
    max_num_seqs: int = MANY


KINDS = (
    *(Kind(dtype, name) for name in PROCESSORS for dtype in ("float32", "bfloat16")),
    *(Kind(dtype, max_num_seqs=ONE) for dtype in ("float32", "bfloat16")),
)
"""The first is what others are compared with."""


def measure(model: str, kind: Kind, voices: Sequence[str], clips: Any) -> dict[str, Any]:
    """What one variant says and hears.

    Args:
        model: as `LLM` takes it.
        kind: how to compute.
        voices: of the sentences, in turn.
        clips: that are transcribed; None for what the variant says itself.
    """
    arguments = ["--model", model, "--dtype", kind.dtype, "--processor", kind.processor]
    arguments += ["--max-num-seqs", str(kind.max_num_seqs)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    script = Path(__file__).with_name("numerics_variant.py")
    process = VariantProcess(sys.executable, script, arguments, environment)
    try:
        process.wait_until_ready()
        said = process.call("speak", SENTENCES, voices)
        rate = said["sample_rate"]
        said["heard"] = process.call("transcribe", clips or said["samples"], rate)
        return dict(said)
    finally:
        process.end()


def compare(said: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """How many sentences are the same as the reference's.

    Returns:
        ``same_codes``, ``same_semantic_codes`` and ``same_transcripts``; and ``first_difference``,
        the median frame in which the codes of a sentence part.
    """
    pairs = list(zip(said["codes"], reference["codes"], strict=True))
    parted = [
        next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))
        for one, other in pairs
        if one != other
    ]
    return {
        "sentences": len(pairs),
        "same_codes": sum(one == other for one, other in pairs),
        "same_semantic_codes": sum(
            [frame[0] for frame in one] == [frame[0] for frame in other] for one, other in pairs
        ),
        "same_transcripts": sum(
            one == other for one, other in zip(said["heard"], reference["heard"], strict=True)
        ),
        "first_difference": float(np.median(parted)) if parted else None,
    }


def delayed(
    model: TransformersSpeechLM, prompt: Sequence[int], codes: NDArray[np.integer]
) -> torch.Tensor:
    """[streams, length] input of a prompt and codes after it, as `generate_codes` lays them out."""
    length, frames = len(prompt), len(codes)
    rows = torch.tensor(model.pads)[:, None].repeat(1, length + frames + max(model.delays))
    rows[0, :length] = model.codebook + torch.tensor(prompt)
    for stream, delay in enumerate(model.delays):
        begin = length + delay
        rows[stream, begin : begin + frames] = torch.from_numpy(codes[:, stream].copy())
    return rows


@torch.inference_mode()
def choices(
    model: TransformersSpeechLM, prompt: Sequence[int], codes: NDArray[np.integer]
) -> torch.Tensor:
    """[frames, streams, codebook] float32 logits from which each code is chosen."""
    logits = model(delayed(model, prompt, codes)).logits.float()
    starts = [len(prompt) - 1 + delay for delay in model.delays]
    return torch.stack(
        [logits[stream, start : start + len(codes)] for stream, start in enumerate(starts)], 1
    )


def margins(folder: Path, said: dict[str, Any], voices: Sequence[str]) -> dict[str, Any]:
    """Margins of the guided choices in float32, and how much bfloat16 changes them.

    Args:
        folder: of the model.
        said: of the reference.
        voices: as of `measure`.

    Returns:
        Quantiles of the ``margin`` and of the absolute ``change``, and the part of the choices that
        bfloat16 makes ``otherwise`` though all before are the same.
    """
    from transformers import AutoTokenizer

    config = json.loads((folder / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    frontend = TextFrontend(TextFrontendSpec(**config["text_frontend"]), str(folder))
    scale = config["generation_defaults"]["text_to_speech"]["guidance_scale"]
    task = config["tasks"]["text_to_speech"]
    found, changed, otherwise = [], [], []
    models = [TransformersSpeechLM.load(folder, d) for d in (torch.float32, torch.bfloat16)]
    for number, (text, frames) in enumerate(zip(SENTENCES, said["codes"], strict=True)):
        parts = {
            "voice": config["voices"][voices[number % len(voices)]],
            "text": tokenizer.encode(frontend.read(text), add_special_tokens=False),
        }
        prompt = [i for part in task for i in ([part] if isinstance(part, int) else parts[part])]
        codes = np.array(frames)
        guided = []
        for model in models:
            asked = choices(model, prompt, codes)
            null = choices(model, config["guidance"]["null_prompt"], codes)
            guided.append(null + scale * (asked - null))
        best = guided[0].topk(2, -1)
        exact = best.values[..., 0] - best.values[..., 1]
        rounded = guided[1].gather(-1, best.indices)
        found.append(exact.flatten())
        changed.append((rounded[..., 0] - rounded[..., 1] - exact).abs().flatten())
        otherwise.append((guided[1].argmax(-1) != best.indices[..., 0]).flatten())
    points = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95)

    def quantiles(values: list[torch.Tensor]) -> dict[str, float]:
        joined = torch.cat(values)
        return {f"{100 * point:g} %": float(joined.quantile(point)) for point in points}

    return {
        "choices": int(torch.cat(found).numel()),
        "margin": quantiles(found),
        "change": quantiles(changed),
        "otherwise": float(torch.cat(otherwise).float().mean()),
    }


def main() -> None:
    """Measure all variants, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", default="unison-default")
    parser.add_argument("--output-json", type=Path)
    options = parser.parse_args()
    folder = Path(folder_of(options.model))
    voices = list(json.loads((folder / "config.json").read_text())["voices"])
    result: dict[str, Any] = {"machine": describe_machine(), "model": options.model}
    result["variants"] = []
    reference: dict[str, Any] | None = None
    for kind in KINDS:
        clips = None if reference is None else reference["samples"]
        said = measure(options.model, kind, voices, clips)
        if reference is None:
            reference = said
            result["margins"] = margins(folder, reference, voices)
        row = asdict(kind) | compare(said, reference) | {"cpu_seconds": said["cpu_seconds"]}
        print(json.dumps(row), flush=True)
        result["variants"].append(row)
        # All takes long; what is known is kept.
        if options.output_json:
            options.output_json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["margins"], indent=2))


if __name__ == "__main__":
    main()
