# SPDX-License-Identifier: Apache-2.0
"""Puts a trained checkpoint into the package: weights, model card, numbers, images and clips.

    python examples/train_default_model/ship.py --folder build/default_model

exports the language model, evaluates it unless these very weights were evaluated, and writes what
belongs into the repository, ready to be committed. With `--evaluate-only` nothing but the folder of
the training is written: a milestone, which the curve of word errors over the steps shows. With
`--packaged` the package's own weights are measured again, and their numbers replaced.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from corpus import SAMPLE_RATE, read_texts  # noqa: E402
from export import export  # noqa: E402
from model_card import Training, card, measured, page_part  # noqa: E402
from progress import last_step  # noqa: E402
from safetensors import safe_open  # noqa: E402
from synthesize import VOICES  # noqa: E402
from texts import NearbySentences  # noqa: E402
from train_decoder import LOSS as DECODER_LOSS  # noqa: E402

from benchmarks.default_model_report import missed, plot_learning  # noqa: E402
from benchmarks.run_all import render  # noqa: E402
from vllm.unison.frontend.lexicon import Lexicon  # noqa: E402

EVALUATE = ROOT / "benchmarks" / "evaluate_default_model.py"
MAX_BYTES = 45_000_000
"""Of all files of the model together."""

MAX_CLIP_BYTES = 1_000_000
"""Of the documentation's clips together."""

PAGE_BEGIN, PAGE_END = "<!-- measured, by ship.py -->", "<!-- end of measured -->"
"""Around what is replaced in docs/default_model.md."""


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """All evaluations of a training, by their files' names."""
    files = sorted((folder / "evaluations").glob("*.json"))
    return [json.loads(file.read_text()) for file in files]


def evaluated(folder: Path, checkpoint: Path) -> dict[str, Any] | None:
    """The latest evaluation of a checkpoint's weights, if there is one."""
    weights = digest(checkpoint / "model.safetensors")
    found = [one for one in evaluations(folder) if one["model"]["sha256"] == weights]
    return max(found, key=lambda one: int(one["utterances"]), default=None)


def step_of(checkpoint: Path) -> int:
    """The step of the training at which the language model's weights were kept."""
    with safe_open(checkpoint / "model.safetensors", "pt") as weights:
        return int((weights.metadata() or {})["step"])


def pictures(folder: Path) -> Path:
    """Where an evaluation leaves its images."""
    return folder / "evaluations" / "images"


def evaluate(folder: Path, checkpoint: Path, arguments: Sequence[str]) -> None:
    """Run the evaluation in a process of its own; its JSON is kept with the training.

    Args:
        folder: of the training.
        checkpoint: to be measured.
        arguments: further ones of the evaluation.
    """
    kept = folder / "evaluations"
    pictures(folder).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(EVALUATE), "--model", str(checkpoint), "--folder", str(folder)]
    command += ["--clips", str(folder / "clips")]
    command += ["--output-json", str(kept / f"step_{step_of(checkpoint):08d}.json")]
    command += ["--output-plot", str(pictures(folder) / "default_model_guidance.png")]
    command += ["--output-spectrograms", str(pictures(folder) / "default_model_spectrograms.png")]
    subprocess.run([*command, *arguments], check=True)


def check_sentences(texts: Iterable[str], training: Iterable[str]) -> None:
    """Make sure that a demonstration's sentences were not learned.

    Args:
        texts: sentences.
        training: those that were learned.

    Raises:
        ValueError: one is within two words of a sentence of training.
    """
    texts = list(texts)
    index = NearbySentences(texts)
    for learned in training:
        if index.near(learned):
            text = next(text for text in texts if NearbySentences([text]).near(learned))
            raise ValueError(f"samples: {text!r} is within two words of training's {learned!r}")


def check_size(files: Iterable[Path], limit: int, what: str) -> int:
    """Bytes of files together.

    Raises:
        ValueError: they are more than the limit.
    """
    total = sum(file.stat().st_size for file in files)
    if total > limit:
        raise ValueError(f"{what} must have at most {limit:,} bytes together, not {total:,}")
    return total


def training_of(folder: Path, checkpoint: Path, took: str) -> Training:
    """What is known of a training, from its folder."""
    config = json.loads((checkpoint / "config.json").read_text())
    codec = json.loads((checkpoint / "codec" / "config.json").read_text())
    hours = {
        voice: sum(f.stat().st_size for f in (folder / "speech" / voice).glob("*.int16"))
        / (2 * SAMPLE_RATE * 3600)
        for voice in VOICES
    }
    lines = (folder / "texts" / "train.txt").read_text().splitlines()
    frames = SAMPLE_RATE / (codec["hop_length"] * codec["steps_per_frame"])
    bits = codec["num_codebooks"] * (codec["codebook_size"] - 1).bit_length()
    return Training(
        hours=hours,
        sentences=dict(Counter(line.split("\t", 1)[0] for line in lines).most_common()),
        codec_steps=last_step(folder / "codec_loss.jsonl"),
        decoder_steps=last_step(folder / f"{DECODER_LOSS}.jsonl"),
        steps=step_of(checkpoint),
        parameters=_parameters(checkpoint / "model.safetensors"),
        layers=config["backbone_config"]["num_hidden_layers"],
        width=config["backbone_config"]["hidden_size"],
        codec_parameters=_parameters(checkpoint / "codec" / "model.safetensors"),
        kilobits=frames * bits / 1000,
        lexicon=len(Lexicon.load(checkpoint / config["text_frontend"]["lexicon"])),
        bytes=sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file()),
        took=took,
    )


def _parameters(file: Path) -> int:
    with safe_open(file, "pt") as weights:
        slices = (weights.get_slice(name) for name in weights.keys())  # noqa: SIM118
        return sum(_product(piece.get_shape()) for piece in slices)


def _product(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def replace_part(text: str, begin: str, end: str, part: str, what: str) -> str:
    """A text with another part between two marks.

    Args:
        text: has each mark once, in this order.
        begin, end: the marks; they stay.
        part: what stands between them then.
        what: the text's name, for the error.

    Raises:
        ValueError: the marks are not there once each.
    """
    marked = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if len(marked.findall(text)) != 1:
        raise ValueError(f"{what} must have {begin} and {end} once")
    return marked.sub(lambda _: f"{begin}\n\n{part}\n\n{end}", text)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Contents only: files of weights are written readable by their owner alone.
    shutil.copyfile(source, target)


def ship(folder: Path, checkpoint: Path, report: dict[str, Any], root: Path, took: str) -> None:
    """Write everything into a repository. What can be refused is checked before.

    Args:
        folder: of the training.
        checkpoint: exported.
        report: its evaluation.
        root: of the repository.
        took: how long the training took, on what.

    Raises:
        ValueError: the model or the clips are too large, or a sentence of the clips was learned.
    """
    files = [file for file in sorted(checkpoint.rglob("*")) if file.is_file()]
    check_size(files, MAX_BYTES, "the model's files")
    learned = read_texts(folder / "texts" / "train.txt")
    check_sentences((one["text"] for one in report["samples"]), learned)
    write_measured(folder, report, root)
    packaged = packaged_in(root)
    shutil.rmtree(packaged, ignore_errors=True)
    for file in files:
        _copy(file, packaged / file.relative_to(checkpoint))
    (packaged / "README.md").write_text(card(report, training_of(folder, checkpoint, took)))
    _copy(folder / "language_model_loss.png", root / "docs" / "images" / "default_model_loss.png")


def ship_measured(folder: Path, report: dict[str, Any], root: Path) -> None:
    """Write another evaluation of the weights that a repository has.

    Args:
        folder: with the evaluation's clips and images.
        report: the evaluation.
        root: of the repository.

    Raises:
        ValueError: other weights were evaluated, or the clips are too large.
    """
    readme = packaged_in(root) / "README.md"
    if report["model"]["sha256"] != digest(packaged_in(root) / "model.safetensors"):
        raise ValueError("the evaluation is of other weights than the package's")
    changed = replace_part(
        readme.read_text(), "## Quality", "## Limits", measured(report), "the model card"
    )
    write_measured(folder, report, root)
    readme.write_text(changed)


def packaged_in(root: Path) -> Path:
    """The default model's folder in a repository."""
    return root / "vllm" / "unison" / "default_model"


def write_measured(folder: Path, report: dict[str, Any], root: Path) -> None:
    """Write an evaluation's numbers, images and clips, but for the model card.

    Args:
        folder: with the evaluation's clips and images.
        report: the evaluation.
        root: of the repository.

    Raises:
        ValueError: the clips are too large, or the page lacks its marks; nothing is written.
    """
    page, audio = root / "docs" / "default_model.md", root / "docs" / "audio"
    changed = replace_part(
        page.read_text(), PAGE_BEGIN, PAGE_END, page_part(report), "docs/default_model.md"
    )
    clips = [folder / "clips" / "samples" / f"{one['name']}.wav" for one in report["samples"]]
    check_size(clips, MAX_CLIP_BYTES, "the clips")
    shutil.rmtree(audio, ignore_errors=True)
    for clip in clips:
        _copy(clip, audio / clip.name)
    for image in pictures(folder).glob("*.png"):
        _copy(image, root / "docs" / "images" / image.name)
    results = root / "benchmarks" / "results"
    results.mkdir(parents=True, exist_ok=True)
    (results / "default_model.json").write_text(json.dumps(report, indent=2) + "\n")
    page.write_text(changed)
    render(root)


def main() -> None:
    """Export, evaluate, ship."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=Path("build/default_model"))
    parser.add_argument("--root", type=Path, default=ROOT, help="of the repository")
    parser.add_argument("--as-exported", action="store_true", help="not what was trained since")
    parser.add_argument("--packaged", action="store_true", help="only measure it, again")
    parser.add_argument("--evaluate-only", action="store_true", help="leave the repository alone")
    parser.add_argument("--took", default="", help="time and machine of the training, a sentence")
    parser.add_argument("evaluation", nargs="*", help="after --: arguments of the evaluation")
    options = parser.parse_args()
    folder: Path = options.folder
    if options.packaged:
        checkpoint = packaged_in(options.root)
    else:
        checkpoint = folder / "unison-default" if options.as_exported else export(folder)
    report = evaluated(folder, checkpoint)
    if report is None:
        evaluate(folder, checkpoint, options.evaluation)
        report = evaluated(folder, checkpoint)
    assert report is not None
    if options.packaged:
        ship_measured(folder, report, options.root)
    else:
        plot_learning(evaluations(folder), pictures(folder) / "default_model_learning.png")
        if not options.evaluate_only:
            ship(folder, checkpoint, report, options.root, options.took)
    for text in missed(report):
        print(f"missed or not measured: {text}")


if __name__ == "__main__":
    main()
