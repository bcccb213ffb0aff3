# SPDX-License-Identifier: Apache-2.0
"""Measures the open-vocabulary default model, through the engine, with judges that are not ours.

    python benchmarks/evaluate_default_model.py --folder build/default_model \
        --output-json benchmarks/results/default_model.json

Sentences are held out from training; the folder of the training has them as the teachers say them.
Whisper's word errors on these originals are what all others are compared with. Clips are left in
`--clips`, with what each judge said of it. The voice that training never hears is measured once
`stranger.py` of the training has made its speech, and flite for comparison where it is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples" / "train_default_model")]

from corpus import SAMPLE_RATE, Shard  # noqa: E402

from benchmarks.default_model_report import plot_guidance, plot_spectrograms  # noqa: E402
from benchmarks.hardware import describe_machine  # noqa: E402
from benchmarks.judging import Score, judge  # noqa: E402
from benchmarks.speech_scores import error_rate, likeness, mean_known, word_errors  # noqa: E402

if TYPE_CHECKING:
    from vllm import LLM

Samples = NDArray[np.float32]
VOICES = ("heart", "joe")
"""Who says the originals, in turn; voices of the model."""

STRANGERS = ("michael",)
"""Voices that training never hears."""

FLITE = ("slt", "rms")
SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
SEED = 20260101
MAX_FRAMES = 500
"""20 seconds; a request that reaches it did not stop by itself."""

EARLY, LATE = 0.75, 1.25
"""Lengths, of the original's, at which an utterance stops too early or too late."""

SAMPLES = {
    "road": "The road to the village was closed by the snow.",
    "price": "That comes to forty two pounds, please.",
    "question": "Have you heard anything from your sister lately?",
    "weather": "Tomorrow it will rain in the north, and the south stays dry.",
    "story": "She closed the old book and looked out of the window.",
}
"""Sentences of the documentation's clips; ship.py makes sure that none of them was trained on."""


@dataclass(frozen=True)
class Original:
    """A held-out sentence as a teacher says it.

    Attributes:
        text: what is said.
        voice: who says it.
        samples: [num_samples] at SAMPLE_RATE.
    """

    text: str
    voice: str
    samples: Samples


@dataclass(frozen=True)
class Said:
    """What the engine made of a sentence.

    Attributes:
        samples: [num_samples] at SAMPLE_RATE.
        stopped: whether it stopped by itself.
    """

    samples: Samples
    stopped: bool


def originals(folder: Path, part: str, count: int, voices: Sequence[str]) -> list[Original]:
    """The first sentences of a held-out set, by voices in turn.

    Args:
        folder: of the training.
        part: of the held-out sentences.
        count: of sentences.
        voices: each has said all of the set.

    Raises:
        ValueError: the set has fewer sentences.
    """
    shards = [Shard(folder / "speech" / part / voice) for voice in voices]
    available = min(len(shard.utterances) for shard in shards)
    if not 1 <= count <= available:
        raise ValueError(f"--utterances must be between 1 and {available}, got {count}")
    made = []
    for number in range(count):
        shard = shards[number % len(voices)]
        text = shard.utterances[number].text
        made.append(Original(text, voices[number % len(voices)], shard.samples(number)))
    return made


def flite(texts: Sequence[str]) -> list[Samples]:
    """The same sentences by flite, for comparison; none where it is not installed."""
    if shutil.which("flite") is None:
        return []
    clips = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clip.wav"
        for number, text in enumerate(texts):
            voice = FLITE[number % len(FLITE)]
            subprocess.run(
                ["flite", "-voice", voice, "-t", text, "-o", str(file)],
                check=True,
                capture_output=True,
            )
            clips.append(soundfile.read(file, dtype="float32")[0])
    return clips


class Clips:
    """Sets of clips, as folders of WAV files.

    Args:
        folder: of all sets; made if missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, clips: Sequence[Samples] | Mapping[str, Samples]) -> Path:
        """Write a set, in place of what an earlier run left of it.

        Args:
            name: of the set.
            clips: by their names, or in order.

        Returns:
            The set's folder.
        """
        if not isinstance(clips, Mapping):
            clips = {f"{index:03d}": samples for index, samples in enumerate(clips)}
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.wav"):
            if left.stem not in clips:
                left.unlink()
        for stem, samples in clips.items():
            soundfile.write(folder / f"{stem}.wav", samples, SAMPLE_RATE)
        return folder


def summary(
    spoken: Sequence[Original], scores: Sequence[Score], references: Sequence[Score]
) -> dict[str, Any]:
    """What the judges say of a set.

    Args:
        spoken: what should be said, and by whom.
        scores: of the set's clips.
        references: of the originals' clips, with whose voices a clip's is compared; never with
            that of its own sentence.
    """
    texts = [o.text for o in spoken]
    heard = [score.heard for score in scores]
    voices = sorted({o.voice for o in spoken})
    by_voice = {}
    for voice in voices:
        own = [i for i, o in enumerate(spoken) if o.voice == voice]
        by_voice[voice] = error_rate([texts[i] for i in own], [heard[i] for i in own])
    alike = [
        likeness(
            score.voice,
            (
                reference.voice
                for j, reference in enumerate(references)
                if j != i and spoken[j].voice == spoken[i].voice
            ),
        )
        for i, score in enumerate(scores)
    ]
    return {
        "word_error_rate": error_rate(texts, heard),
        "word_error_rate_by_voice": by_voice,
        "distillmos": mean_known(score.distillmos for score in scores),
        "dnsmos": mean_known(score.dnsmos for score in scores),
        "speaker_similarity": mean_known(alike),
    }


def ends(spoken: Sequence[Original], said: Sequence[Said]) -> dict[str, float]:
    """How utterances end, as parts of all; those that are wrong in any way are ``wrong``."""
    ratios = np.array([len(s.samples) / len(o.samples) for o, s in zip(spoken, said, strict=True)])
    endless = np.array([not s.stopped for s in said])
    early, late = ratios < EARLY, ratios > LATE
    parts = {"early": early, "late": late, "endless": endless, "wrong": early | late | endless}
    return {
        "duration_ratio": float(ratios.mean()),
        **{name: float(part.mean()) for name, part in parts.items()},
    }


class Model:
    """The model in an engine.

    Args:
        llm: the engine.
    """

    def __init__(self, llm: LLM) -> None:
        from vllm.unison.codecs.of_model import codec_of
        from vllm.unison.model.spec import multistream_spec

        spec = multistream_spec(llm.model_config)
        assert spec is not None
        self._llm = llm
        self.defaults = dict(spec.generation_defaults["text_to_speech"])
        self.codec = codec_of(spec, "cpu")

    def _speech_params(self, scale: float, seed: int) -> Any:
        from vllm import SamplingParams

        fields = self.defaults | {"max_tokens": MAX_FRAMES, "guidance_scale": scale}
        return SamplingParams(seed=seed, **fields)

    @staticmethod
    def _hearing(clip: Samples) -> tuple[Any, Any]:
        from vllm import SamplingParams

        prompt = {
            "prompt": "",
            "multi_modal_data": {"audio": (clip, SAMPLE_RATE)},
            "mm_processor_kwargs": {"task": "speech_to_text"},
        }
        return prompt, SamplingParams(temperature=0.0, max_tokens=200)

    @staticmethod
    def _asked(text: str, voice: str) -> Any:
        return {"prompt": text, "mm_processor_kwargs": {"voice": voice}}

    def speak(self, wanted: Sequence[tuple[str, str]], scale: float) -> list[Said]:
        """Sentences as the model says them.

        Args:
            wanted: text and voice of each.
            scale: of guidance.
        """
        prompts = [self._asked(text, voice) for text, voice in wanted]
        params = [self._speech_params(scale, SEED + i) for i in range(len(prompts))]
        said = [output.outputs[0] for output in self._llm.generate(prompts, params)]
        return [
            Said(
                np.zeros(0, np.float32) if one.audio is None else one.audio.samples,
                one.finish_reason == "stop",
            )
            for one in said
        ]

    def transcribe(self, clips: Sequence[Samples]) -> list[str]:
        """What the model hears."""
        prompts, params = zip(*map(self._hearing, clips), strict=True)
        outputs = self._llm.generate(list(prompts), list(params))
        return [output.outputs[0].text.strip() for output in outputs]

    def transcribe_beside_speech(
        self, clips: Sequence[Samples], wanted: Sequence[tuple[str, str]], scale: float
    ) -> list[str]:
        """What the model hears in one batch with as many requests that speak."""
        prompts, params = [], []
        for number, (clip, (text, voice)) in enumerate(zip(clips, wanted, strict=True)):
            prompt, greedy = self._hearing(clip)
            prompts += [prompt, self._asked(text, voice)]
            params += [greedy, self._speech_params(scale, number)]
        outputs = self._llm.generate(prompts, params)[::2]
        return [output.outputs[0].text.strip() for output in outputs]

    def through_codec(self, samples: Samples) -> Samples:
        """Encoded and decoded."""
        decoded = self.codec.decode(self.codec.encode(torch.from_numpy(samples)))
        return np.asarray(decoded.numpy()[: len(samples)], np.float32)


def identity(model: str) -> dict[str, Any]:
    """Which weights were measured: their digest, and the training's step if they say it."""
    from safetensors import safe_open

    from vllm.unison.packaged_model import folder_of

    file = Path(folder_of(model)) / "model.safetensors"
    with safe_open(file, "pt") as weights:
        step = (weights.metadata() or {}).get("step")
    return {
        "name": Path(model).name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "step": None if step is None else int(step),
    }


def evaluate(
    model: Model,
    spoken: Sequence[Original],
    strangers: Mapping[str, Sequence[Original]],
    scales: Sequence[float],
    clips: Clips,
    threads: int = 1,
) -> dict[str, Any]:
    """All measurements.

    Args:
        model: to be measured.
        spoken: sentences in the model's voices.
        strangers: sentences in voices that it does not know, by voice.
        scales: of guidance, in rising order.
        clips: where the clips go.
        threads: of the judges.
    """
    texts = [o.text for o in spoken]
    wanted = [(o.text, o.voice) for o in spoken]
    said = {scale: model.speak(wanted, scale) for scale in scales}
    folders = [
        clips.write("originals", [o.samples for o in spoken]),
        clips.write("codec", [model.through_codec(o.samples) for o in spoken]),
        clips.write("flite", flite(texts)),
        *(clips.write(f"scale_{scale:g}", [s.samples for s in said[scale]]) for scale in scales),
    ]
    scored = [list(scores.values()) for scores in judge(folders, threads)]
    references, codec, by_flite, *speech = scored
    rows = [
        {
            "guidance_scale": scale,
            **summary(spoken, scores, references),
            **ends(spoken, said[scale]),
        }
        for scale, scores in zip(scales, speech, strict=True)
    ]
    best = min(rows, key=lambda row: row["word_error_rate"])["guidance_scale"]
    heard = model.transcribe([o.samples for o in spoken])
    again = model.transcribe_beside_speech([s.samples for s in said[best]], wanted, best)
    exact = [not word_errors(text, own) for text, own in zip(texts, again, strict=True)]
    result: dict[str, Any] = {
        "utterances": len(spoken),
        "sampling": {name: model.defaults.get(name) for name in ("temperature", "top_k")},
        "originals": summary(spoken, references, references),
        "codec": summary(spoken, codec, references),
        "speech": rows,
        "recognition": {
            "known_voices": error_rate(texts, heard),
            "strangers": {
                voice: error_rate(
                    [o.text for o in theirs], model.transcribe([o.samples for o in theirs])
                )
                for voice, theirs in strangers.items()
            },
        },
        "round_trip": {
            "guidance_scale": best,
            "word_error_rate": error_rate(texts, again),
            "exact": float(np.mean(exact)),
        },
        "heard": [
            {"text": text, "whisper": score.heard, "model": own}
            for text, score, own in zip(texts, speech[list(scales).index(best)], again, strict=True)
        ][:20],
    }
    if by_flite:
        unknown = [Original(o.text, "flite", o.samples) for o in spoken]
        result["flite"] = summary(unknown, by_flite, by_flite)
    return result


def make_samples(model: Model, scale: float, clips: Clips) -> list[dict[str, str]]:
    """The documentation's clips, and what Whisper and the model itself hear in them."""
    voices = [VOICES[number % len(VOICES)] for number in range(len(SAMPLES))]
    said = model.speak(list(zip(SAMPLES.values(), voices, strict=True)), scale)
    by_name = {name: s.samples for name, s in zip(SAMPLES, said, strict=True)}
    scores = judge([clips.write("samples", by_name)])[0]
    own = model.transcribe(list(by_name.values()))
    return [
        {
            "name": name,
            "voice": voice,
            "text": SAMPLES[name],
            "whisper": scores[f"{name}.wav"].heard,
            "model": mine,
        }
        for name, voice, mine in zip(SAMPLES, voices, own, strict=True)
    ]


def main() -> None:
    """Measure everything, print it and write it."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", default="unison-default")
    parser.add_argument("--dtype", default="float32", help="the package's own on a CPU")
    parser.add_argument("--folder", type=Path, default=Path("build/default_model"))
    parser.add_argument("--part", default="evaluation", help="evaluation or validation")
    parser.add_argument("--utterances", type=int, default=300)
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    parser.add_argument("--clips", type=Path, default=Path("build/default_model_clips"))
    parser.add_argument("--threads", type=int, default=1, help="of the judges")
    parser.add_argument("--output-json", type=Path)
    parser.add_argument("--output-plot", type=Path, help="PNG of all scores over guidance scale")
    parser.add_argument("--output-spectrograms", type=Path, help="PNG of one sentence")
    options = parser.parse_args()
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    spoken = originals(options.folder, options.part, options.utterances, VOICES)
    strangers = {
        voice: originals(options.folder, options.part, options.utterances, [voice])
        for voice in STRANGERS
        if (options.folder / "speech" / options.part / f"{voice}.jsonl").exists()
    }
    from vllm import LLM

    llm = LLM(
        options.model,
        dtype=options.dtype,
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=64,
    )
    model = Model(llm)
    clips = Clips(options.clips)
    result = {
        "machine": describe_machine(),
        "model": identity(options.model),
        "dtype": options.dtype,
        **evaluate(model, spoken, strangers, sorted(options.scales), clips, options.threads),
    }
    best = result["round_trip"]["guidance_scale"]
    result["samples"] = make_samples(model, model.defaults["guidance_scale"], clips)
    print(json.dumps(result, indent=2))
    if options.output_json:
        options.output_json.parent.mkdir(parents=True, exist_ok=True)
        options.output_json.write_text(json.dumps(result, indent=2) + "\n")
    if options.output_plot:
        plot_guidance(result, options.output_plot)
    if options.output_spectrograms:
        first = spoken[0]
        shown = {"original": "originals", "codec": "codec", "generated, scale 1": "scale_1"}
        shown[f"generated, scale {best:g}"] = f"scale_{best:g}"
        files = {name: options.clips / place / "000.wav" for name, place in shown.items()}
        plot_spectrograms(
            options.output_spectrograms,
            first.text,
            {n: soundfile.read(f, dtype="float32")[0] for n, f in files.items() if f.exists()},
            SAMPLE_RATE,
        )


if __name__ == "__main__":
    main()
