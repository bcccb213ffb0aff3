# SPDX-License-Identifier: Apache-2.0
"""Makes the default model from nothing: speech, codec, language model, checkpoint.

    python examples/train_default_model/train.py --folder build/default_model

Every stage resumes where it was interrupted, and is skipped when it is complete. Needs flite.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from pathlib import Path

import layout
import torch
from export import export
from synthesize import Corpus, write_corpus
from tokenizers import Tokenizer
from train_codec import train_codec
from train_language_model import encode_corpus, train_language_model
from vocabulary import sentences

from vllm.unison.codecs.spectral_codec import SpectralCodec


class Stopwatch:
    """Seconds that each stage took, over all runs.

    Args:
        file: where they are kept.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.seconds: dict[str, float] = {}
        if file.exists():
            self.seconds = json.loads(file.read_text())["seconds"]

    def add(self, stage: str, since: float) -> None:
        """Add the time since a `time.monotonic` to a stage."""
        self.seconds[stage] = round(self.seconds.get(stage, 0) + time.monotonic() - since, 1)
        machine = {"processor": platform.processor() or platform.machine()}
        machine["threads"] = str(torch.get_num_threads())
        self._file.write_text(json.dumps({"seconds": self.seconds, "machine": machine}, indent=2))


def _tokenizer(file: Path) -> Tokenizer:
    if not file.exists():
        texts = itertools.islice(sentences(3, held_out=False), 20000)
        layout.train_tokenizer(texts).save(str(file))
    return Tokenizer.from_file(str(file))


def main() -> None:
    """Run all stages."""
    parser = argparse.ArgumentParser(description="Make the default model.", allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=Path("build/default_model"))
    parser.add_argument("--utterances", type=int, default=24000, help="of speech to learn from")
    parser.add_argument("--codec-steps", type=int, default=2600)
    parser.add_argument("--language-model-steps", type=int, default=9000)
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    watch = Stopwatch(folder / "time.json")

    started = time.monotonic()
    write_corpus(folder / "train", options.utterances, seed=1)
    write_corpus(folder / "validation", 300, seed=11, held_out=True)
    corpus, validation = Corpus(folder / "train"), Corpus(folder / "validation")
    watch.add("synthesize", started)

    started = time.monotonic()
    codec_model = train_codec(corpus, folder, options.codec_steps)
    watch.add("codec", started)

    started = time.monotonic()
    tokenizer = _tokenizer(folder / "tokenizer.json")
    codec = SpectralCodec.from_pretrained(str(folder / "codec"))
    training = encode_corpus(corpus, codec, tokenizer, folder / "train.npz", 1)
    held_out = encode_corpus(validation, codec, tokenizer, folder / "validation.npz", 2)
    watch.add("encode", started)

    started = time.monotonic()
    language_model = train_language_model(training, held_out, folder, options.language_model_steps)
    watch.add("language_model", started)
    export(language_model, codec_model, tokenizer, folder / "unison-default")
    print(f"wrote {folder / 'unison-default'}: {json.dumps(watch.seconds)} seconds")


if __name__ == "__main__":
    main()
