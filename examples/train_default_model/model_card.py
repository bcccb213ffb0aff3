# SPDX-License-Identifier: Apache-2.0
"""The default model's card and the measured part of its page, written from what was measured.

Pure functions: nothing is read or written here.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.default_model_report import (
    best_row,
    missed,
    recognition_table,
    score_table,
    target_table,
    voice_table,
)
from benchmarks.report import Report, describe_measurement, percent

WIDTH = 140


@dataclass(frozen=True)
class Training:
    """What a checkpoint was made from.

    Attributes:
        hours: of speech, by voice.
        sentences: of training, by their source.
        codec_steps, decoder_steps, steps: of the codec's training, of the decoder's that filters a
            source, and of the language model's.
        parameters: of the language model.
        layers, width: of the language model.
        codec_parameters: of the codec.
        kilobits: a second that the codec makes.
        lexicon: words whose sounds are known.
        bytes: of all files.
        took: time and machine, in words; "" says nothing of them.
    """

    hours: Mapping[str, float]
    sentences: Mapping[str, int]
    codec_steps: int
    decoder_steps: int
    steps: int
    parameters: int
    layers: int
    width: int
    codec_parameters: int
    kilobits: float
    lexicon: int
    bytes: int
    took: str = ""


VOICES = {
    "heart": "female; hibari-tts, distilled from Kokoro-82M (Apache-2.0)",
    "joe": "male; Piper's en_US-joe (CC0)",
    "many": "hibari's network with another pitch, vocal tract and pace in every sentence "
    "(Apache-2.0); only recognized",
}
SOURCES = {
    "example": "WordNet's example sentences (WordNet licence)",
    "definition": "WordNet's definitions (WordNet licence)",
    "austen": "Jane Austen's novels (public domain)",
    "everyday": "own templates of everyday sentences, numbers, dates and names (Apache-2.0)",
    "words": "random words (WordNet licence)",
}


def _paragraph(text: str) -> str:
    lines = textwrap.wrap(
        text,
        WIDTH,
        subsequent_indent="  " if text.startswith("- ") else "",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines)


def _items(amounts: Mapping[str, str], described: Mapping[str, str]) -> str:
    return "\n".join(
        _paragraph(f"- {amount}: {described[name]}") for name, amount in amounts.items()
    )


def verdict(report: Report) -> str:
    """Which targets are missed, in a sentence."""
    left = missed(report)
    if not left:
        return "All targets are met."
    return "Missed, or not measured: " + "; ".join(left) + "."


def _guidance(report: Report) -> str:
    best = best_row(report)
    alone = [row for row in report["speech"] if row["guidance_scale"] == 1]
    if not alone or best is alone[0]:
        return "Guidance brings no fewer word errors here: scale 1, which is none, is the best."
    return (
        f"Guidance helps: scale {best['guidance_scale']:g} has {percent(best['word_error_rate'])} "
        f"word errors, no guidance {percent(alone[0]['word_error_rate'])}."
    )


def measured(report: Report) -> str:
    """Tables of all that was measured, as card and page show them."""
    return "\n\n".join(
        [
            _paragraph(
                f"Measured by `benchmarks/evaluate_default_model.py` on {report['utterances']} "
                "sentences that are held out from training, none within two words of one of "
                f"training's, through the engine ({describe_measurement(report)}). The judges know "
                "nothing of this model: Whisper tiny.en for words, DistillMOS and DNSMOS for "
                "sound, Resemblyzer for voices."
            ),
            target_table(report),
            verdict(report),
            score_table(report),
            _guidance(report),
            recognition_table(report),
            "Word errors by voice:",
            voice_table(report),
        ]
    )


def clips(report: Report, folder: str) -> str:
    """Links to the samples, and what was heard in them.

    Args:
        report: of the evaluation.
        folder: of the WAV files, as the page links to it.
    """
    return "\n".join(
        f"- [{sample['name']}.wav]({folder}/{sample['name']}.wav), `{sample['voice']}`: "
        f'"{sample["text"]}" Whisper hears "{sample["whisper"]}", the model "{sample["model"]}".'
        for sample in report["samples"]
    )


def _header(sample: Mapping[str, str]) -> list[str]:
    return [
        "---\nlicense: apache-2.0\nlanguage: en\n---\n# unison-default",
        _paragraph(
            "A small speech language model that comes with Unison, so that a fresh machine has "
            "something that really speaks and listens: English sentences of about 3 to 15 words, "
            "in two voices. It was trained from scratch on synthesized speech by the scripts in "
            "`examples/train_default_model`."
        ),
        f'    vllm speak "{sample["text"]}" --output {sample["name"]}.wav\n'
        f"    vllm transcribe {sample['name']}.wav",
    ]


def _what_it_is(training: Training) -> list[str]:
    points = [
        f"**Language model**: Llama of {training.layers} layers, {training.width} wide "
        f"({training.parameters / 1e6:.1f} million parameters), 8 streams with delays 0 to 7, one "
        "table for letters and codes. Weights are kept in bfloat16; on a CPU it computes in "
        "float32, see docs/default_model.md of the repository.",
        f"**Codec**: 16 kHz, 25 frames a second, 8 codebooks ({training.kilobits:.1f} kbit/s), "
        f"{training.codec_parameters / 1e6:.1f} million parameters, stored in float16. Stream 0 "
        "is semantic: its code tells the phone. See docs/codecs.md of the repository.",
        "**Tasks**: `text_to_speech` (voices `heart` and `joe`; default `heart`), "
        "`speech_to_text`, `speech_continuation`.",
        "**Text** that is to be spoken is English with the punctuation `, . ? ! ; : ' -`; numbers, "
        f"dates, money and abbreviations are written out first. {training.lexicon:,} words that "
        "have one pronunciation are told as their sounds (`lexicon.tsv.gz`, made with hibari-tts; "
        "Apache-2.0), all others by their letters. What the model hears it writes in letters.",
        f"All files together have {training.bytes / 1e6:.1f} MB.",
    ]
    return ["## What it is", "\n".join(_paragraph(f"- {point}") for point in points)]


def _training(training: Training) -> list[str]:
    hours = {name: f"`{name}`, {value:.1f} hours" for name, value in training.hours.items()}
    sentences = {name: f"{count:,}" for name, count in training.sentences.items()}
    decoder = ""
    if training.decoder_steps:
        decoder = f"the decoder that filters a source for {training.decoder_steps:,} on its codes, "
    steps = (
        f"The codec was trained for {training.codec_steps:,} steps, {decoder}the language model "
        f"for {training.steps:,}."
    )
    return [
        "## Training",
        "Speech, all of it synthesized:",
        _items(hours, VOICES),
        "Sentences, of which speech says a part:",
        _items(sentences, SOURCES),
        _paragraph(f"{steps} {training.took}".strip()),
    ]


def card(report: Report, training: Training) -> str:
    """The model card."""
    limits = _paragraph(
        "It knows two voices, both of them synthesized, and English as their teachers pronounce "
        "it. Long sentences, rare names and spelled letters are said and heard less surely."
    )
    parts = [
        *_header(report["samples"][0]),
        *_what_it_is(training),
        *_training(training),
        "## Quality",
        measured(report),
        "## Limits",
        limits,
    ]
    return "\n\n".join(parts) + "\n"


def page_part(report: Report) -> str:
    """What docs/default_model.md shows of the measurements."""
    return "\n\n".join(
        [
            clips(report, "audio"),
            "![Spectrograms of one sentence: original, through the codec, generated without and "
            "with guidance](images/default_model_spectrograms.png)",
            measured(report),
            "![Word errors, DistillMOS and similarity of voice over the guidance scale]"
            "(images/default_model_guidance.png)",
            "![Word errors over the training's steps](images/default_model_learning.png)",
            "![Losses of the language model's training](images/default_model_loss.png)",
        ]
    )
