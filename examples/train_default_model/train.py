# SPDX-License-Identifier: Apache-2.0
"""Makes the default model from nothing: texts, speech, codec, language model, checkpoint.

    python examples/train_default_model/train.py --folder build/default_model

Every stage goes on where it was interrupted, and is skipped when it is complete. What it needs is
in requirements.txt of this folder.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from encode import encode
from export import export
from pitch import find_pitch
from place import add_arguments, place_of
from predict import predict_all
from progress import replace_text
from pronunciation import write_lexicon
from refine_decoder import refine_decoder
from synthesize import synthesize
from texts import write_texts
from train_codec import train_codec
from train_decoder import ADAPTING_STEPS, train_decoder
from train_language_model import train_language_model


class Stopwatch:
    """Seconds that each stage took, over all runs that were not interrupted.

    Args:
        file: where they are kept.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.seconds: dict[str, float] = {}
        if file.exists():
            self.seconds = json.loads(file.read_text())["seconds"]

    def run(self, stage: str, work: Callable[[], object]) -> None:
        """Do something and add the time that it took to a stage's."""
        started = time.monotonic()
        work()
        self.seconds[stage] = round(self.seconds.get(stage, 0) + time.monotonic() - started, 1)
        machine = {"processor": platform.processor() or platform.machine()}
        machine["threads"] = str(torch.get_num_threads())
        replace_text(
            self._file, json.dumps({"seconds": self.seconds, "machine": machine}, indent=2)
        )


def main() -> None:
    """Run all stages."""
    parser = argparse.ArgumentParser(description="Make the default model.", allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=Path("build/default_model"))
    parser.add_argument("--hours", type=float, default=40.0, help="of speech to learn from")
    parser.add_argument("--codec-steps", type=int, default=8000)
    parser.add_argument("--pitch-shards", type=int, default=16, help="of each voice, at most")
    parser.add_argument("--decoder-steps", type=int, default=4000)
    parser.add_argument(
        "--adapting-steps",
        type=int,
        default=ADAPTING_STEPS,
        help="of the decoder, on predicted codes too",
    )
    parser.add_argument("--refining-steps", type=int, default=0, help="against a discriminator")
    parser.add_argument("--language-model-steps", type=int, default=60000)
    parser.add_argument("--language-model-seconds", type=float, default=math.inf)
    parser.add_argument("--processes", type=int, default=2, help="that speak")
    add_arguments(parser)
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    watch = Stopwatch(folder / "time.json")
    place, steps = place_of(options), options.language_model_steps
    watch.run("texts", lambda: write_texts(folder / "texts"))
    watch.run("lexicon", lambda: write_lexicon(folder))
    watch.run("speech", lambda: synthesize(folder, options.hours, options.processes))
    watch.run("codec", lambda: train_codec(folder, options.codec_steps, place))
    watch.run("codes", lambda: encode(folder, place))
    watch.run("pitch", lambda: find_pitch(folder, options.pitch_shards))
    watch.run("decoder", lambda: train_decoder(folder, options.decoder_steps, place))
    watch.run(
        "language model",
        lambda: train_language_model(
            folder, steps, steps // 10, place=place, seconds=options.language_model_seconds
        ),
    )
    adapted = options.decoder_steps + options.adapting_steps
    watch.run("predictions", lambda: predict_all(folder, options.pitch_shards, place))
    watch.run("adapting", lambda: train_decoder(folder, adapted, place))
    watch.run("refining", lambda: refine_decoder(folder, options.refining_steps, place))
    print(f"wrote {export(folder)}: {json.dumps(watch.seconds)} seconds")


if __name__ == "__main__":
    main()
