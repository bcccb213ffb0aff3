# SPDX-License-Identifier: Apache-2.0
"""Measures the default model, through the engine, with a recognizer that is not ours.

    python examples/train_default_model/version_1/evaluate.py \
        --output-json benchmarks/results/default_model.json

Sentences are held out from training. Originals come from flite, the evaluator is pocketsphinx
with a grammar of the vocabulary; its error rate on the originals is the lower bound of all others.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from synthesize import HELD_OUT_SPEAKER, SAMPLE_RATE, SPEAKERS, synthesize
from vocabulary import WORDS, sentences

from benchmarks.default_model_report import plot_spectrograms
from benchmarks.hardware import describe_machine
from benchmarks.speech_evaluator import Evaluator, word_error_rate

if TYPE_CHECKING:
    from vllm import LLM

SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
SEED = 20260101
MAX_FRAMES = 400
"""16 seconds; a request that reaches it did not stop by itself."""


@dataclass(frozen=True)
class Original:
    """A sentence as the synthesizer says it.

    Attributes:
        text: the sentence.
        speaker: the voice.
        samples: [num_samples] float32 at SAMPLE_RATE.
    """

    text: str
    speaker: str
    samples: NDArray[np.float32]


def originals(count: int, speakers: Sequence[str]) -> list[Original]:
    """Held-out sentences, by the voices in turn."""
    texts = sentences(SEED, held_out=True)
    made = []
    for index in range(count):
        text, speaker = next(texts), speakers[index % len(speakers)]
        samples, _ = synthesize(text, speaker)
        made.append(Original(text, speaker, samples.astype(np.float32) / 32768))
    return made


def transcribed(evaluator: Evaluator, clips: Sequence[NDArray[np.float32]], what: str) -> list[str]:
    """What the evaluator hears."""
    return [evaluator.transcribe(clip) for clip in tqdm(clips, desc=f"transcribing {what}")]


def error_rates(spoken: Sequence[Original], heard: Sequence[str]) -> dict[str, Any]:
    """Word error rate of what was heard, over all sentences and for each voice."""
    by_voice = {}
    for speaker in sorted({o.speaker for o in spoken}):
        chosen = [index for index, o in enumerate(spoken) if o.speaker == speaker]
        by_voice[speaker] = word_error_rate(
            [spoken[index].text for index in chosen], [heard[index] for index in chosen]
        )
    return {
        "word_error_rate": word_error_rate([o.text for o in spoken], heard),
        "word_error_rate_by_voice": by_voice,
    }


def mel_distance(codec: Any, one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Mean absolute difference of log-mel spectra, in decibels."""
    length = min(len(one), len(other)) // codec.samples_per_frame * codec.samples_per_frame
    both = torch.from_numpy(np.stack([one[:length], other[:length]]))
    spectra = codec.model.encoder.log_mel(both)
    return float((spectra[0] - spectra[1]).abs().mean()) * 10 / float(np.log(10))


def evaluate_codec(codec: Any, evaluator: Evaluator, spoken: list[Original]) -> dict[str, Any]:
    """Error rate of speech that was encoded and decoded."""
    decoded = [
        codec.decode(codec.encode(torch.from_numpy(o.samples))).numpy()[: len(o.samples)]
        for o in tqdm(spoken, desc="codec")
    ]
    pairs = zip(spoken, decoded, strict=True)
    return error_rates(spoken, transcribed(evaluator, decoded, "codec")) | {
        "mel_distance_db": statistics.mean(mel_distance(codec, o.samples, d) for o, d in pairs),
    }


def speech_defaults(llm: LLM) -> dict[str, Any]:
    """The model's own sampling parameters of speech."""
    from vllm.unison.model.spec import multistream_spec

    spec = multistream_spec(llm.model_config)
    assert spec is not None
    return dict(spec.generation_defaults["text_to_speech"])


def speak(llm: LLM, spoken: Sequence[Original], scale: float) -> list[Any]:
    """Completions of the sentences, each in its original's voice."""
    from vllm import SamplingParams

    prompts: list[Any] = [
        {"prompt": o.text, "mm_processor_kwargs": {"voice": o.speaker}} for o in spoken
    ]
    fields = speech_defaults(llm) | {"max_tokens": MAX_FRAMES, "guidance_scale": scale}
    params = [SamplingParams(seed=SEED + index, **fields) for index in range(len(prompts))]
    return [output.outputs[0] for output in llm.generate(prompts, params)]


def transcribe(llm: LLM, clips: Sequence[NDArray[np.float32]]) -> list[str]:
    """Our own speech to text."""
    from vllm import SamplingParams

    prompts: list[Any] = [
        {
            "prompt": "",
            "multi_modal_data": {"audio": (clip, SAMPLE_RATE)},
            "mm_processor_kwargs": {"task": "speech_to_text"},
        }
        for clip in clips
    ]
    outputs = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=80))
    return [output.outputs[0].text.strip() for output in outputs]


def evaluate_speech(
    llm: LLM, evaluator: Evaluator, spoken: list[Original], scale: float
) -> dict[str, Any]:
    """Text to speech at one guidance scale."""
    completions = speak(llm, spoken, scale)
    clips = [
        c.audio.samples if c.audio is not None else np.zeros(0, np.float32) for c in completions
    ]
    ratios = [len(clip) / len(o.samples) for clip, o in zip(clips, spoken, strict=True)]
    return {
        "guidance_scale": scale,
        **error_rates(spoken, transcribed(evaluator, clips, f"scale {scale}")),
        "duration_ratio": statistics.mean(ratios),
        "did_not_stop": sum(c.finish_reason != "stop" for c in completions),
    }


def evaluate_round_trip(llm: LLM, spoken: list[Original], scale: float) -> dict[str, float]:
    """Speak, then recognize in one batch with as many requests that speak."""
    from vllm import SamplingParams

    fields = speech_defaults(llm) | {"max_tokens": MAX_FRAMES, "guidance_scale": scale}
    clips = [c.audio.samples for c in speak(llm, spoken, scale)]
    prompts: list[Any] = []
    params = []
    for clip, original in zip(clips, spoken, strict=True):
        prompts.append(
            {
                "prompt": "",
                "multi_modal_data": {"audio": (clip, SAMPLE_RATE)},
                "mm_processor_kwargs": {"task": "speech_to_text"},
            }
        )
        params.append(SamplingParams(temperature=0.0, max_tokens=80))
        prompts.append(
            {"prompt": original.text, "mm_processor_kwargs": {"voice": original.speaker}}
        )
        params.append(SamplingParams(seed=1, **fields))
    outputs = llm.generate(prompts, params)[::2]
    heard = [output.outputs[0].text.strip() for output in outputs]
    texts = [o.text for o in spoken]
    return {
        "exact_match": statistics.mean(a == b for a, b in zip(texts, heard, strict=True)),
        "word_error_rate": word_error_rate(texts, heard),
    }


def plot(result: dict[str, Any], file: Path) -> None:
    """Error rate over the guidance scale, with the originals' and the codec's as lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = result["text_to_speech"]
    figure, axes = plt.subplots(figsize=(6, 3.5))
    scales = [row["guidance_scale"] for row in rows]
    axes.plot(scales, [100 * row["word_error_rate"] for row in rows], "o-", label="text to speech")
    for name, style in (("originals", ":"), ("codec", "--")):
        level = 100 * result[name]["word_error_rate"]
        axes.axhline(level, linestyle=style, color="grey", label=name)
    axes.set_xlabel("guidance scale")
    axes.set_ylabel("word error rate, % (pocketsphinx)")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    """Measure everything, print it and write it."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", default="unison-default")
    parser.add_argument("--utterances", type=int, default=200, help="per measurement, at least 3")
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    parser.add_argument("--output-json", type=Path)
    parser.add_argument("--output-plot", type=Path, help="PNG of error rate over guidance scale")
    parser.add_argument("--output-spectrograms", type=Path, help="PNG of one sentence")
    options = parser.parse_args()
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM
    from vllm.unison.codecs.of_model import codec_of
    from vllm.unison.model.spec import multistream_spec

    llm = LLM(options.model, enforce_eager=True, max_model_len=1024, max_num_seqs=64)
    spec = multistream_spec(llm.llm_engine.model_config)
    assert spec is not None
    codec = codec_of(spec, "cpu")
    evaluator = Evaluator(WORDS)
    spoken = originals(options.utterances, SPEAKERS)
    texts = [o.text for o in spoken]
    defaults = spec.generation_defaults["text_to_speech"]
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "utterances": options.utterances,
        "words": len(WORDS),
        "sampling": {name: defaults[name] for name in ("temperature", "top_k")},
    }
    result["originals"] = error_rates(
        spoken, transcribed(evaluator, [o.samples for o in spoken], "originals")
    )
    result["codec"] = evaluate_codec(codec, evaluator, spoken)
    print(json.dumps({key: result[key] for key in ("originals", "codec")}, indent=2))
    result["text_to_speech"] = [evaluate_speech(llm, evaluator, spoken, s) for s in options.scales]
    print(json.dumps(result["text_to_speech"], indent=2))
    result["speech_to_text"] = {
        "known_voices": word_error_rate(texts, transcribe(llm, [o.samples for o in spoken])),
    }
    stranger = originals(options.utterances, [HELD_OUT_SPEAKER])
    result["speech_to_text"]["held_out_voice"] = word_error_rate(
        texts, transcribe(llm, [o.samples for o in stranger])
    )
    best = min(result["text_to_speech"], key=lambda row: row["word_error_rate"])
    result["round_trip"] = evaluate_round_trip(
        llm, spoken[: min(100, len(spoken))], best["guidance_scale"]
    ) | {"guidance_scale": best["guidance_scale"]}
    print(json.dumps(result, indent=2))
    if options.output_json:
        options.output_json.write_text(json.dumps(result, indent=2) + "\n")
    if options.output_plot:
        plot(result, options.output_plot)
    if options.output_spectrograms:
        first = spoken[0]
        clips = {
            "original": first.samples,
            "codec": codec.decode(codec.encode(torch.from_numpy(first.samples))).numpy(),
        }
        for scale in (1.0, best["guidance_scale"]):
            said = speak(llm, [first], scale)[0].audio
            clips[f"generated, scale {scale:g}"] = said.samples
        plot_spectrograms(options.output_spectrograms, first.text, clips, SAMPLE_RATE)


if __name__ == "__main__":
    main()
